"""KubeRay manifests against the schemas of Kubernetes and of KubeRay, and against what its controller asks."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from cluster.manifests import Group, KubeRay
from cluster.settings import RAY_ENVIRONMENT
from tests.cluster.manifests.manifests import STORE, documents, made

CLOUDS = ("generic", "gke", "eks", "karpenter", "aks")
HERE = Path(__file__).parent


def _one(file: str, **fields: Any) -> dict[str, Any]:
    return documents(made("kuberay", **fields).files()[file])[0]


def _spec(file: str, **fields: Any) -> dict[str, Any]:
    spec: dict[str, Any] = _one(file, **fields)["spec"]
    return spec.get("rayClusterSpec", spec)


def _groups(file: str, **fields: Any) -> list[dict[str, Any]]:
    spec = _spec(file, **fields)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def _against_schema(resource: dict[str, Any]) -> None:
    schema = json.loads((HERE / f"ray.io_{resource['kind'].lower()}s_v1.json").read_text())
    jsonschema.validate(resource, schema)


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize("file", ["cluster.yaml", "job.yaml"])
def test_resources_follow_kuberays_schema(file: str, cloud: str) -> None:
    _against_schema(_one(file, cloud=cloud, claim="shared", store="/store/x"))


def test_the_schema_is_strict() -> None:
    resource = _one("job.yaml")
    resource["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        _against_schema(resource)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_pods_and_core_kinds_follow_kubernetes_schemas(cloud: str) -> None:
    for resource in documents(made("kuberay", cloud=cloud).files()["base.yaml"]):
        kubernetes_validate.validate(resource, "1.31", strict=True)
    for group in _groups("job.yaml", cloud=cloud, claim="shared", store="/store"):
        pod = {"apiVersion": "v1", "kind": "Pod", **group["template"], "metadata": {"name": "pod"}}
        kubernetes_validate.validate(pod, "1.31", strict=True)
    pod["spec"]["tolerationSeconds"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, "1.31", strict=True)


def test_every_ray_process_gets_the_tuned_environment_and_the_token_by_reference() -> None:
    for file in ("cluster.yaml", "job.yaml"):
        spec = _spec(file)
        pods = [group["template"]["spec"]["containers"][0]["env"] for group in _groups(file)]
        for pairs in [*pods, spec["autoscalerOptions"]["env"]]:
            environment = {pair["name"]: pair["value"] for pair in pairs}
            assert RAY_ENVIRONMENT.items() <= environment.items()
            assert environment["RAY_AUTH_MODE"] == "token"
            assert "RAY_AUTH_TOKEN" not in environment
        assert all({"name": "HEDGEROW_STORE", "value": STORE} in pairs for pairs in pods)
        assert spec["authOptions"] == {"mode": "token", "secretName": "hedgerow-token"}


def test_the_dashboard_is_on_loopback_unless_the_operator_must_reach_it() -> None:
    assert _spec("cluster.yaml")["headGroupSpec"]["rayStartParams"]["dashboard-host"] == "127.0.0.1"
    assert _spec("job.yaml")["headGroupSpec"]["rayStartParams"]["dashboard-host"] == "0.0.0.0"


def test_only_the_cluster_and_the_operator_reach_its_pods() -> None:
    policy = documents(made("kuberay").files()["base.yaml"])[2]["spec"]
    mine = {"podSelector": {"matchLabels": {"hedgerow-cluster": "hedgerow"}}}
    inside, operator = policy["ingress"]
    assert policy["podSelector"] == mine["podSelector"]
    assert inside == {"from": [mine]}
    assert operator["ports"] == [{"port": 8265, "protocol": "TCP"}]
    assert operator["from"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "ray-system"}
    for file in ("cluster.yaml", "job.yaml"):
        labels = [group["template"]["metadata"]["labels"]["hedgerow-cluster"] for group in _groups(file)]
        assert set(labels) == {"hedgerow"}


def test_pods_have_few_rights() -> None:
    head, *workers = _groups("cluster.yaml")
    for group in (head, *workers):
        spec = group["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert all(group["template"]["spec"]["automountServiceAccountToken"] is False for group in workers)


def test_pods_leave_their_cluster_before_they_are_stopped() -> None:
    for group, grace in zip(_groups("cluster.yaml")[1:], (60, 25), strict=True):
        spec = group["template"]["spec"]
        command = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert command == ["python", "-m", "cluster.leaving", "--within", str(grace - 5)]
        assert spec["terminationGracePeriodSeconds"] == grace


@pytest.mark.parametrize("cloud", CLOUDS)
def test_spot_groups_run_on_spot_nodes_alone(cloud: str) -> None:
    _, spot, plain = _groups("cluster.yaml", cloud=cloud)
    selector = spot["template"]["spec"]["nodeSelector"]
    tolerated = {each["key"] for each in spot["template"]["spec"]["tolerations"]}
    assert any("spot" in f"{key}={value}".lower() for key, value in selector.items())
    assert "NVIDIA-H100" in selector.values()
    assert tolerated > {"nvidia.com/gpu"}
    assert "nodeSelector" not in plain["template"]["spec"]
    environment = spot["template"]["spec"]["containers"][0]["env"]
    assert {"name": "RAY_NODE_MARKET_TYPE", "value": "spot"} in environment


def test_gpus_are_asked_for() -> None:
    _, gpu, plain = _groups("cluster.yaml")
    assert gpu["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert "nvidia.com/gpu" not in plain["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert (gpu["replicas"], gpu["minReplicas"], gpu["maxReplicas"]) == (1, 1, 4)


def test_a_job_ends_in_time_and_is_taken_down() -> None:
    spec = _one("job.yaml")["spec"]
    assert {"backoffLimit": 3, "shutdownAfterJobFinishes": True, "ttlSecondsAfterFinished": 300}.items() <= spec.items()
    assert spec["preRunningDeadlineSeconds"] == 3600
    assert spec["activeDeadlineSeconds"] == 604800


def test_the_jobs_command_is_one_that_a_shell_takes_apart_again() -> None:
    command = ("hedgerow", "run", "imp", "--set", "a={b: 'c d'}", "--set", "x=$(id)")
    words = shlex.split(_one("job.yaml", command=command)["spec"]["entrypoint"])
    assert words == [*command, "--address", "auto", "--wait-for-nodes", "3600"]


def test_steps_wait_for_nodes_as_long_as_the_job_does_unless_the_command_says_how_long() -> None:
    assert _one("job.yaml", start_minutes=90)["spec"]["entrypoint"].endswith(" --wait-for-nodes 5400")
    own = ("run", "imp", "--wait-for-nodes=60")
    assert _one("job.yaml", command=own)["spec"]["entrypoint"] == "hedgerow run imp --wait-for-nodes=60 --address auto"


def test_the_store_is_mounted_where_it_is_a_folder() -> None:
    with pytest.raises(ValueError, match="is on no pod"):
        made("kuberay", store="/data/store")
    for group in _groups("job.yaml", claim="shared", store="/store/lab"):
        container = group["template"]["spec"]["containers"][0]
        assert {"name": "store", "mountPath": "/store"} in container["volumeMounts"]


def test_the_image_holds_the_versions_that_the_manifest_names() -> None:
    files = made("kuberay", ray="2.60.0", python="3.12.4").files()
    assert _one("job.yaml", ray="2.60.0")["spec"]["rayClusterSpec"]["rayVersion"] == "2.60.0"
    dockerfile = files["Dockerfile"]
    assert "FROM python:3.12.4-slim" in dockerfile
    assert 'pip install "ray[default,train]==2.60.0"' in dockerfile
    assert 'pip install "/opt/hedgerow[multi-gpu]" "ray[default]==2.60.0"' in dockerfile
    assert re.search(r"^USER 1000", dockerfile, re.MULTILINE)
    assert {"**/.git", "**/hedgerow-*", "**/.env"} <= set(files["Dockerfile.dockerignore"].splitlines())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "a" * 44}, "at most 43"),
        ({"name": "Lab"}, "name"),
        ({"store": "s3://key:secret@bucket"}, "credentials come from the environment"),
        ({"command": ("doctor",)}, "starts no run"),
        ({"command": ("run", "imp", "--store=x")}, "leave them out"),
        ({"command": ("run", "imp", "--set", "x=\u2028y: 1")}, "control characters"),
        ({"ray": "2.57.1"}, "ray: 2.57.1 is too old; allowed: 2.58 and later"),
        ({"image": "x: {}\n"}, "image"),
        ({"groups": (Group(name="a"), Group(name="a"))}, "a name of its own"),
        ({"groups": (Group(name="a", type="H100"),)}, "give gpus="),
    ],
)
def test_what_cannot_work_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made("kuberay", **fields).files()


def test_groups_are_easily_asked_for() -> None:
    group = Group.parse("gpu:cpus=8,gpus=1,type=NVIDIA-H100,max=4,spot")
    assert group == Group(name="gpu", cpus=8, gpus=1, type="NVIDIA-H100", max=4, spot=True)
    with pytest.raises(ValueError, match="no such field: cpu; allowed: name, min, max, cpus"):
        Group.parse("gpu:cpu=8")
    with pytest.raises(ValueError, match="min 3 is above max 2"):
        Group.parse("a:min=3")


def test_nodes_that_come_and_go_need_a_store() -> None:
    with pytest.raises(ValueError, match="give --store URL"):
        KubeRay()
