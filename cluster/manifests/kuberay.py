"""Kubernetes: a RayCluster to keep, or a RayJob that starts one, runs a command on it and takes it down."""

from __future__ import annotations

import shlex
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import Field

from cluster.manifests.dockerfile import image_files
from cluster.manifests.manifest import ENVIRONMENT, MAKE_TOKEN, MOST, Elastic, Group, Image, Name, spelled
from cluster.manifests.rules import check_cluster, check_job
from cluster.settings import DASHBOARD_PORT, HEAD_PORT

SPOT: dict[str, dict[str, str]] = {
    "generic": {"node.kubernetes.io/lifecycle": "spot"},
    "gke": {"cloud.google.com/gke-spot": "true"},
    "eks": {"eks.amazonaws.com/capacityType": "SPOT"},
    "karpenter": {"karpenter.sh/capacity-type": "spot"},
    "aks": {"kubernetes.azure.com/scalesetpriority": "spot"},
}
"""The labels, and taints, of spot nodes."""
GPU = {
    "generic": "nvidia.com/gpu.product",  # NVIDIA's GPU feature discovery, on any Kubernetes
    "gke": "cloud.google.com/gke-accelerator",
    "eks": "nvidia.com/gpu.product",
    "karpenter": "karpenter.k8s.aws/instance-gpu-name",
    "aks": "nvidia.com/gpu.product",
}
"""The label that names a node's GPU."""
FAREWELL = 5
"""Seconds of a pod's grace that are left for Ray to end by itself, when its node has left the cluster (preStop)."""
STORE = "/store"
"""Where `claim` is mounted."""
MARK = "hedgerow-cluster"
"""The label of this cluster's pods: KubeRay's own names the RayCluster, which is a new one for each retry of a job."""
HEAD = "headgroup"
"""What Ray's autoscaler calls the head among the groups."""
PART = "hedgerow-part"
"""The label that tells the pods of the job, `job`, from those of the cluster to keep, `cluster`."""

Secret = Annotated[
    str, spelled("[a-z0-9]([-a-z0-9.]*[a-z0-9])?", "a-z, 0-9, - and ., from a letter or digit on, and one at the end")
]


class KubeRay(Elastic):
    """Kubernetes through the KubeRay operator, version 1.5 or later."""

    target: ClassVar[str] = "kuberay"
    sees_files: ClassVar[bool] = False

    image: Image = "hedgerow:latest"
    """Built from the Dockerfile, pushed to where the nodes can pull it."""
    namespace: Name = "hedgerow"
    """Made by base.yaml."""
    cloud: Literal["generic", "gke", "eks", "karpenter", "aks"] = "generic"
    """Whose labels say which nodes are spot and which GPU they have."""
    operator: Name | None = None
    """The namespace of the KubeRay operator; any when not given."""
    operator_name: Name = "kuberay-operator"
    """The operator's label app.kubernetes.io/name."""
    head_cpus: int = Field(default=2, ge=1, le=MOST)
    """CPUs of the head, where the driver runs; no step does."""
    head_memory: int = Field(default=8, ge=2, le=MOST)
    """GiB of the head."""
    start_minutes: int = Field(default=60, ge=1, le=MOST)
    """How long a job waits for its head and the smallest number of workers, and a step for a node that can run it."""
    deadline_hours: int = Field(default=168, ge=1, le=MOST // 10)
    """How long one try of a job may take."""
    retries: int = Field(default=3, ge=0, le=MOST)
    """New clusters for a job that failed: each goes on from the store."""
    keep_minutes: int = Field(default=5, ge=0, le=MOST)
    """How long a cluster stays after its job, to be looked at."""
    credentials: Secret | None = None
    """A Secret whose keys become environment variables: the store's credentials, where no cloud identity gives them."""

    claim: Name | None = None
    """A PersistentVolumeClaim for many writers, mounted at /store: for a store that is a folder."""

    def mistakes(self) -> list[str]:
        """What no pod finds, and no node is, too."""
        found = super().mistakes()
        in_claim = self.store is not None and f"{self.store}/".startswith(f"{STORE}/")
        if self.store is not None and self.store.startswith("/") and not (self.claim and in_claim):
            found.append(f"store: {self.store} is on no pod; give a URL, or `claim` and a folder below {STORE}")
        for group in self.groups:
            if group.type and not group.gpus:
                found.append(f"group {group.name}: type={group.type} names a GPU; give gpus= too")
            if group.name == HEAD:
                found.append(f"group {HEAD}: Ray's autoscaler calls the head so; give another name")
        return found

    def files(self) -> dict[str, str]:
        """`base.yaml`, `cluster.yaml`, `job.yaml` and the image's files."""
        cluster = self._object("RayCluster", self.name, self._cluster("cluster", dashboard="127.0.0.1"))
        job = self._object("RayJob", f"{self.name}-run", self._job())
        check_cluster(cluster)
        check_job(job)
        return {
            "base.yaml": BASE.format(**self._words()) + _documents(*self._base()),
            "cluster.yaml": CLUSTER.format(**self._words()) + _documents(cluster),
            "job.yaml": JOB.format(**self._words()) + _documents(job),
            **image_files(self.ray, self.python),
        }

    def steps(self, folder: str) -> list[str]:
        """The image, the namespace, the token, and then either the job or the cluster."""
        words = self._words()
        return [
            "# `docker build` takes the folder it is typed in: that of hedgerow's working tree, with pyproject.toml",
            f"docker build -f {shlex.quote(f'{folder}/Dockerfile')} -t {self.image} . && docker push {self.image}",
            f"kubectl apply -f {shlex.quote(f'{folder}/base.yaml')}",
            TOKEN.format(**words),
            f"kubectl apply -f {shlex.quote(f'{folder}/job.yaml')}",
            LOGS.format(**words),
        ]

    def _words(self) -> dict[str, str]:
        words = {"name": self.name, "namespace": self.namespace, "secret": self._secret, "mark": MARK, "part": PART}
        words |= {"token": TOKEN.format(**words), "logs": LOGS.format(**words)}
        return {**words, "submission": self.submission(60 * self.start_minutes), "port": str(DASHBOARD_PORT)}

    @property
    def _secret(self) -> str:
        return f"{self.name}-token"

    def _base(self) -> list[dict[str, Any]]:
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}}
        account = {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": self.name, "namespace": self.namespace},
        }
        mine = {"podSelector": {"matchLabels": {MARK: self.name}}}
        operator = {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self.operator}}
            if self.operator
            else {},
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": self.operator_name}},
        }
        policy = {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": {
                **mine,
                "policyTypes": ["Ingress"],
                "ingress": [
                    {"from": [mine]},
                    {"from": [operator], "ports": [{"port": DASHBOARD_PORT, "protocol": "TCP"}]},
                ],
            },
        }
        return [namespace, account, policy]

    def _job(self) -> dict[str, Any]:
        return {
            "entrypoint": shlex.join([*self.hedgerow("auto"), *self.patience(60 * self.start_minutes)]),
            "submissionMode": "SidecarMode",
            "backoffLimit": self.retries,
            "preRunningDeadlineSeconds": 60 * self.start_minutes,
            "activeDeadlineSeconds": 3600 * self.deadline_hours,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 60 * self.keep_minutes,
            "rayClusterSpec": self._cluster("job", dashboard="0.0.0.0"),
        }

    def _object(self, kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
        metadata = {"name": name, "namespace": self.namespace, "labels": {MARK: self.name}}
        return {"apiVersion": "ray.io/v1", "kind": kind, "metadata": metadata, "spec": spec}

    def _cluster(self, part: str, dashboard: str) -> dict[str, Any]:
        return {
            "rayVersion": self.ray,
            "authOptions": {"mode": "token", "secretName": self._secret},
            "enableInTreeAutoscaling": True,
            "autoscalerOptions": {
                "version": "v2",
                "idleTimeoutSeconds": 300,
                "env": _pairs(ENVIRONMENT),
                "securityContext": CONFINED,
            },
            "headGroupSpec": self._head(part, dashboard),
            "workerGroupSpecs": [self._workers(part, group) for group in self.groups],
        }

    def _head(self, part: str, dashboard: str) -> dict[str, Any]:
        container = self._container("ray-head", self.head_cpus, self.head_memory, self.environment())
        container["ports"] = [
            {"containerPort": HEAD_PORT, "name": "gcs-server"},
            {"containerPort": DASHBOARD_PORT, "name": "dashboard"},
        ]
        template = self._template(part, container, self.head_memory)
        template["metadata"]["annotations"] = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
        template["spec"]["serviceAccountName"] = self.name
        return {
            "rayStartParams": {
                "dashboard-host": dashboard,
                "dashboard-port": str(DASHBOARD_PORT),
                "num-cpus": "0",
                "disable-usage-stats": "true",
            },
            "template": template,
        }

    def _workers(self, part: str, group: Group) -> dict[str, Any]:
        environment = {**self.environment(), "RAY_NODE_MARKET_TYPE": "spot" if group.spot else "on-demand"}
        container = self._container("ray-worker", group.cpus, group.memory, environment)
        if group.gpus:
            container["resources"]["limits"]["nvidia.com/gpu"] = group.gpus
            container["resources"]["requests"]["nvidia.com/gpu"] = group.gpus
        leave = ["python", "-m", "cluster.leaving", "--within", str(group.grace - FAREWELL)]
        container["lifecycle"] = {"preStop": {"exec": {"command": leave}}}
        template = self._template(part, container, group.memory)
        template["spec"] |= {
            "serviceAccountName": self.name,
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": group.grace,
            **self._placement(group),
        }
        return {
            "groupName": group.name,
            "replicas": group.min,
            "minReplicas": group.min,
            "maxReplicas": group.max,
            "rayStartParams": {"disable-usage-stats": "true"},
            "template": template,
        }

    def _placement(self, group: Group) -> dict[str, Any]:
        spot = SPOT[self.cloud] if group.spot else {}
        gpu = {GPU[self.cloud]: group.type} if group.gpus and group.type else {}
        taints = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}] if group.gpus else []
        taints += [
            {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"} for key, value in spot.items()
        ]
        placement = {"nodeSelector": {**spot, **gpu}, "tolerations": taints}
        return {name: value for name, value in placement.items() if value}

    def _container(self, name: str, cpus: int, memory: int, environment: dict[str, str]) -> dict[str, Any]:
        size = {"cpu": str(cpus), "memory": f"{memory}Gi"}
        container: dict[str, Any] = {
            "name": name,
            "image": self.image,
            "env": _pairs(environment),
            "resources": {"limits": {**size}, "requests": {**size}},
            "securityContext": CONFINED,
            "volumeMounts": [{"name": "shared-memory", "mountPath": "/dev/shm"}],
        }
        if self.claim:
            container["volumeMounts"].append({"name": "store", "mountPath": STORE})
        if self.credentials:
            container["envFrom"] = [{"secretRef": {"name": self.credentials}}]
        return container

    def _template(self, part: str, container: dict[str, Any], memory: int) -> dict[str, Any]:
        shared = {"medium": "Memory", "sizeLimit": f"{max(1, memory * 3 // 10)}Gi"}
        volumes: list[dict[str, Any]] = [{"name": "shared-memory", "emptyDir": shared}]
        if self.claim:
            volumes.append({"name": "store", "persistentVolumeClaim": {"claimName": self.claim}})
        return {
            "metadata": {"labels": {MARK: self.name, PART: part}},
            "spec": {
                "restartPolicy": "Never",
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": 1000,
                    "runAsGroup": 1000,
                    "fsGroup": 1000,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [container],
                "volumes": volumes,
            },
        }


CONFINED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _pairs(environment: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in environment.items()]


class _Plain(yaml.SafeDumper):
    """Writes repeated values out: an anchor helps nobody who reads or edits a manifest."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _documents(*documents: dict[str, Any]) -> str:
    return "---\n".join(yaml.dump(each, Dumper=_Plain, sort_keys=False, width=120) for each in documents)


TOKEN = MAKE_TOKEN + " | kubectl -n {namespace} create secret generic {secret} --from-file=auth_token=/dev/stdin"
LOGS = "kubectl -n {namespace} logs -f -l {mark}={name},{part}=job,ray.io/node-type=head -c ray-job-submitter"

BASE = """\
# hedgerow on Kubernetes: the namespace, the identity of its pods, and who may talk to them. Apply this first.
#
# The token that every process of the cluster shares is made here and now, and is in none of these files:
#   {token}
#
# Bind the ServiceAccount to a cloud identity (eks.amazonaws.com/role-arn, iam.gke.io/gcp-service-account) that may read
# and write the store. Workers get no token of the Kubernetes API; the head does, for Ray's autoscaler.
#
# NetworkPolicy, where the cluster's network enforces it: only this cluster's own pods reach its ports, and the KubeRay
# operator the dashboard alone. Without the token Ray answers gRPC health checks and, over HTTP, /api/healthz,
# /api/local_raylet_healthz and /api/gcs_healthz, which say that it is alive (Kubernetes needs them for its probes),
# /api/authentication_mode, which says that a token is needed, and the dashboard's login page, `/`, which asks for it.
# Ray does not encrypt what it sends: between the pods the network must be trusted.
"""

CLUSTER = """\
# A cluster to keep, for `hedgerow submit`. Its dashboard, with the job server, listens on loopback alone, and is
# reached by those who may forward a port of the head:
#   head="$(kubectl -n {namespace} get pod -l {mark}={name},{part}=cluster,ray.io/node-type=head -o name)"
#   kubectl -n {namespace} port-forward "$head" {port}:{port} &
#   export RAY_AUTH_TOKEN="$(kubectl -n {namespace} get secret {secret} -o jsonpath='{{.data.auth_token}}' | base64 -d)"
#   {submission}
#
# A pod that will be stopped leaves its cluster first (preStop): hedgerow saves the state of its steps and moves them.
"""

JOB = """\
# Starts a cluster, runs the command and takes the cluster down. A failed job starts over with a new cluster, and goes
# on from the store. Follow it with
#   {logs}
#
# The dashboard listens on the pod's address, not on loopback: whatever the submission mode, the KubeRay operator asks
# it for the state of the job, and gives the job up when it gets no answer. The token guards it but for the health
# checks (/api/healthz, /api/local_raylet_healthz, /api/gcs_healthz), /api/authentication_mode and the login page, `/`;
# base.yaml's NetworkPolicy lets nobody but the operator and this cluster through.
"""
