"""The image of every node: hedgerow from its working tree, with the versions that the manifest names."""

from __future__ import annotations

from cluster.manifests.manifest import Release
from cluster.tree import LEFT_OUT


def image_files(ray: Release, python: Release) -> dict[str, str]:
    """A Dockerfile, and the list of what stays out of the image, by name.

    Args:
        ray: version of Ray.
        python: version of Python.
    """
    return {
        "Dockerfile": DOCKERFILE.format(ray=ray, python=python),
        "Dockerfile.dockerignore": IGNORED,  # the name that BuildKit looks for beside a Dockerfile
    }


DOCKERFILE = """\
# Built from hedgerow's working tree. Every node and the driver run this image, so that steps end with the same bytes.
FROM python:{python}-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

# Ray alone first: it changes seldom, and its layer is kept when the working tree changes.
RUN python -m pip install "ray[default,train]=={ray}"
COPY . /opt/hedgerow
RUN python -m pip install "/opt/hedgerow[multi-gpu]" "ray[default]=={ray}" && useradd --create-home --uid 1000 hedgerow

USER 1000:1000
WORKDIR /home/hedgerow
"""

IGNORED = "\n".join(
    ["# What is built, stored or secret stays out of the image.", *(f"**/{name}" for name in LEFT_OUT), ""]
)
