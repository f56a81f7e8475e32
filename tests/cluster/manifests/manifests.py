"""Manifests that use whatever their targets offer."""

from __future__ import annotations

from typing import Any

import yaml

from cluster.manifests import TARGETS, Group, Manifest

GPU = Group(name="gpu", min=1, max=4, cpus=8, memory=64, gpus=2, type="NVIDIA-H100", spot=True, grace=60)
CPU = Group(name="cpu")
FIELDS: dict[str, dict[str, Any]] = {
    "kuberay": {"groups": (GPU, CPU), "credentials": "s3-keys", "operator": "ray-system", "cloud": "gke"},
    "slurm": {"nodes": 4, "gpus": 8, "type": "h100", "partition": "gpu", "account": "lab", "setup": ("module load x",)},
    "aws": {
        "groups": (GPU.model_copy(update={"type": "p5.4xlarge"}), CPU),
        "instance_profile": "store",
        "zones": ("us-west-2a",),
    },
    "gcp": {"groups": (GPU.model_copy(update={"type": "g2-standard-24"}), CPU), "project": "lab-1"},
    "local": {"head": "10.0.0.1", "workers": ("10.0.0.2", "10.0.0.3"), "ssh_private_key": "~/.ssh/id_ed25519"},
}
STORE = "s3://bucket/store"
OPEN_PAGES = {
    "/",  # the page that asks for the token
    "/api/authentication_mode",
    "/api/gcs_healthz",
    "/api/healthz",
    "/api/local_raylet_healthz",
}
"""What Ray shows to anybody by itself; the manifests say so."""


def made(target: str, **fields: Any) -> Manifest:
    """A manifest for a target."""
    return TARGETS[target].model_validate({"store": STORE, **FIELDS[target], **fields})


def documents(text: str) -> list[dict[str, Any]]:
    """What a YAML file holds."""
    return list(yaml.load_all(text, yaml.CSafeLoader))
