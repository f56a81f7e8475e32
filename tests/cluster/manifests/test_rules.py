"""The controller's rules that no schema holds: each has a manifest that breaks it."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from cluster.manifests.rules import check_cluster, check_job
from tests.cluster.manifests.manifests import documents, made

Resource = dict[str, Any]
FILES = made("kuberay").files()
CLUSTER, JOB = documents(FILES["cluster.yaml"])[0], documents(FILES["job.yaml"])[0]


def _set(path: str, value: Any) -> Callable[[Resource], None]:
    """Changes one place, such as `spec.workerGroupSpecs.0.replicas`; takes it away when None."""

    def change(resource: Resource) -> None:
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        here: Any = resource
        for part in parents:
            here = here[part] if isinstance(part, int) else here.setdefault(part, {})
        if value is None:
            here.pop(last, None)
        else:
            here[last] = value

    return change


def _all(*changes: Callable[[Resource], None]) -> Callable[[Resource], None]:
    return lambda resource: [change(resource) for change in changes] and None  # type: ignore[return-value]


HEAD, WORKERS, POD = "spec.headGroupSpec", "spec.workerGroupSpecs.0", "template.spec"
SWITCH = [{"name": "RAY_enable_autoscaler_v2", "value": "1"}]
UNSCALED = _set("spec.enableInTreeAutoscaling", False)
SELECTED = _all(_set("spec.rayClusterSpec", None), _set("spec.clusterSelector", {"ray.io/cluster": "x"}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("metadata.name", "a" * 54), "more than 53 characters"),
        (_set("metadata.name", "1a"), "from a letter on"),
        (_set(f"{HEAD}.{POD}.containers", []), "group head: needs a container"),
        (_set(f"{WORKERS}.{POD}.containers", []), "group gpu: needs a container"),
        (_set(f"{HEAD}.resources", {"CPU": "1"}), "in rayStartParams and in resources"),
        (_set(f"{WORKERS}.rayStartParams", {"labels": "a=b"}), "labels belong beside rayStartParams"),
        (_set(f"{WORKERS}.labels", {"a": "b c"}), "no label that Kubernetes allows"),
        (_set(f"{WORKERS}.minReplicas", 5), "minReplicas 5 is above maxReplicas 4"),
        (_set(f"{WORKERS}.minReplicas", -1), "must not be below 0"),
        (_all(UNSCALED, _set(f"{WORKERS}.maxReplicas", None)), "are needed without an autoscaler"),
        (_all(UNSCALED, _set(f"{HEAD}.{POD}.containers.0.env", SWITCH)), "needs enableInTreeAutoscaling"),
        (_set(f"{HEAD}.{POD}.containers.0.env", SWITCH), "allowed: one of them"),
        (_set("spec.autoscalerOptions.idleTimeoutSeconds", -1), "must not be below 0"),
        (_set(f"{HEAD}.{POD}.restartPolicy", "Always"), "group head: autoscaler v2 needs restartPolicy Never"),
        (_set(f"{WORKERS}.{POD}.restartPolicy", "OnFailure"), "group gpu: autoscaler v2 needs restartPolicy Never"),
        (
            _all(_set("spec.autoscalerOptions.version", None), _set(f"{HEAD}.{POD}.restartPolicy", "Always")),
            "group head: autoscaler v2 needs restartPolicy Never",
        ),
        (_set("spec.rayVersion", ""), "mode token needs rayVersion"),
        (_set("spec.rayVersion", "2.51.9"), "allowed: 2.52 and later"),
        (_set("spec.authOptions", {"enableK8sTokenAuth": True}), "needs mode token"),
        (_set("spec.authOptions.enableK8sTokenAuth", True), "one of enableK8sTokenAuth and secretName"),
        (
            _all(
                _set("spec.authOptions", {"mode": "token", "enableK8sTokenAuth": True}),
                _set("spec.rayVersion", "2.54.0"),
            ),
            "allowed: 2.55 and later",
        ),
    ],
)
def test_a_cluster_that_the_controller_refuses_is_refused_here(change: Callable[[Resource], None], said: str) -> None:
    broken = deepcopy(CLUSTER)
    change(broken)
    with pytest.raises(ValueError, match=said):
        check_cluster(broken)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("metadata.name", "a" * 48), "more than 47 characters"),
        (_set("spec.rayClusterSpec", None), "give one of"),
        (_set("spec.clusterSelector", {"ray.io/cluster": "x"}), "give one of"),
        (_set("spec.backoffLimit", -1), "below 0"),
        (_set("spec.activeDeadlineSeconds", 0), "activeDeadlineSeconds must be above 0"),
        (_set("spec.preRunningDeadlineSeconds", 0), "preRunningDeadlineSeconds must be above 0"),
        (_all(SELECTED, _set("spec.submissionMode", "HTTPMode")), "backoffLimit does not go with clusterSelector"),
        (SELECTED, "SidecarMode does not go with clusterSelector"),
        (_all(SELECTED, _set("spec.clusterSelector", {"a": "b"})), "needs ray.io/cluster"),
        (_set("spec.submissionMode", "InteractiveMode"), "does not go with InteractiveMode"),
        (_set("spec.submitterPodTemplate", {}), "submitterPodTemplate does not go with SidecarMode"),
        (_set("spec.submitterConfig", {}), "submitterConfig does not go with SidecarMode"),
        (_set("spec.rayClusterSpec.headGroupSpec.template.spec.restartPolicy", "Always"), "head's restartPolicy Never"),
        (_set("spec.shutdownAfterJobFinishes", False), "needs shutdownAfterJobFinishes"),
        (_set("spec.ttlSecondsAfterFinished", -1), "below 0"),
        (
            _all(
                _set("spec.shutdownAfterJobFinishes", None),
                _set("spec.ttlSecondsAfterFinished", None),
                _set("spec.suspend", True),
            ),
            "suspend needs shutdownAfterJobFinishes",
        ),
        (_set("spec.deletionStrategy", {"deletionRules": [{}]}), "deletionRules exclude"),
        (_set("spec.rayClusterSpec.authOptions.enableK8sTokenAuth", True), "does not go with a job"),
        (_set("spec.rayClusterSpec.upgradeStrategy", {"type": "None"}), "does not go with a job's cluster"),
        (_set("spec.rayClusterSpec.rayVersion", "2.40.0"), "allowed: 2.52 and later"),
    ],
)
def test_a_job_that_the_controller_refuses_is_refused_here(change: Callable[[Resource], None], said: str) -> None:
    broken = deepcopy(JOB)
    change(broken)
    with pytest.raises(ValueError, match=said):
        check_job(broken)


def test_what_is_written_passes() -> None:
    check_cluster(CLUSTER)
    check_job(JOB)
