"""Files that make a cluster: Kubernetes, Slurm, or machines that Ray's launcher starts."""

from __future__ import annotations

from cluster.manifests.kuberay import KubeRay
from cluster.manifests.manifest import Group, Manifest
from cluster.manifests.ray_up import Aws, Gcp, Local
from cluster.manifests.slurm import Slurm

TARGETS: dict[str, type[Manifest]] = {each.target: each for each in (KubeRay, Slurm, Aws, Gcp, Local)}
"""What a manifest can be for, by name."""

__all__ = ["TARGETS", "Aws", "Gcp", "Group", "KubeRay", "Local", "Manifest", "Slurm"]
