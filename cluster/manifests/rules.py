"""What KubeRay's controller refuses although the schemas of its resources allow it.

Read in KubeRay 1.7, ray-operator/controllers/ray/utils/validation.go; one line for each rule that is broken, before
anything is written, instead of a resource that never gets ready.
"""

from __future__ import annotations

import re
from typing import Any

CLUSTER_NAME = 53
JOB_NAME = 47
RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
QUALIFIED = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
TOKENS_SINCE = (2, 52)
KUBERNETES_TOKENS_SINCE = (2, 55)
SECOND_AUTOSCALER_SINCE = (2, 47)


def check_cluster(cluster: dict[str, Any]) -> None:
    """Looks at a RayCluster.

    Raises:
        ValueError: the controller would refuse it.
    """
    _check_name(cluster, CLUSTER_NAME)
    _check_spec(cluster["spec"])


def check_job(job: dict[str, Any]) -> None:
    """Looks at a RayJob, and the cluster within.

    Raises:
        ValueError: the controller would refuse it.
    """
    _check_name(job, JOB_NAME)
    spec = job["spec"]
    _check_ending(spec)
    selector, within = spec.get("clusterSelector"), spec.get("rayClusterSpec")
    _refuse((within is None) == (selector is None), "RayJob: give one of rayClusterSpec and clusterSelector")
    mode = spec.get("submissionMode", "K8sJobMode")
    retries = spec.get("backoffLimit", 0)
    _refuse(retries < 0, f"RayJob: backoffLimit {retries} is below 0")
    for name in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        _refuse(spec.get(name, 1) <= 0, f"RayJob: {name} must be above 0")
    if selector:
        _refuse(not selector.get("ray.io/cluster"), "RayJob: clusterSelector needs ray.io/cluster")
        _refuse(mode == "SidecarMode", "RayJob: SidecarMode does not go with clusterSelector")
        _refuse(retries > 0, "RayJob: backoffLimit does not go with clusterSelector")
        _refuse(spec.get("suspend", False), "RayJob: suspend does not go with clusterSelector")
        return
    _refuse(mode == "InteractiveMode" and retries > 0, "RayJob: backoffLimit does not go with InteractiveMode")
    if mode == "SidecarMode":
        for name in ("submitterPodTemplate", "submitterConfig"):
            _refuse(name in spec, f"RayJob: {name} does not go with SidecarMode")
        policy = within["headGroupSpec"]["template"]["spec"].get("restartPolicy", "Never")
        _refuse(policy != "Never", f"RayJob: SidecarMode needs the head's restartPolicy Never (found {policy})")
    kubernetes_tokens = within.get("authOptions", {}).get("enableK8sTokenAuth", False)
    _refuse(kubernetes_tokens, "RayJob: enableK8sTokenAuth does not go with a job")
    _refuse("upgradeStrategy" in within, "RayJob: upgradeStrategy does not go with a job's cluster")
    _check_spec(within)


def _check_ending(spec: dict[str, Any]) -> None:
    shuts_down, keeps = spec.get("shutdownAfterJobFinishes", False), spec.get("ttlSecondsAfterFinished", 0)
    _refuse(keeps < 0, f"RayJob: ttlSecondsAfterFinished {keeps} is below 0")
    _refuse(keeps > 0 and not shuts_down, "RayJob: ttlSecondsAfterFinished needs shutdownAfterJobFinishes")
    _refuse(spec.get("suspend", False) and not shuts_down, "RayJob: suspend needs shutdownAfterJobFinishes")
    deletes = bool(spec.get("deletionStrategy", {}).get("deletionRules"))
    _refuse(deletes and (shuts_down or keeps > 0), "RayJob: deletionRules exclude shutdownAfterJobFinishes and TTL")


def _check_name(resource: dict[str, Any], longest: int) -> None:
    kind, name = resource["kind"], resource["metadata"]["name"]
    _refuse(len(name) > longest, f"{kind}: the name {name} has more than {longest} characters")
    _refuse(not DNS_1035.fullmatch(name), f"{kind}: the name {name} must be a-z, 0-9 and -, from a letter on")


def _check_spec(spec: dict[str, Any]) -> None:
    scales = spec.get("enableInTreeAutoscaling", False)
    head, groups = spec["headGroupSpec"], spec.get("workerGroupSpecs", [])
    _check_group("head", head)
    for group in groups:
        _check_group(group["groupName"], group)
        _check_counts(group, scales)
    _check_autoscaler(spec, scales)
    _check_token(spec)


def _check_group(name: str, group: dict[str, Any]) -> None:
    _refuse(not group["template"]["spec"].get("containers"), f"group {name}: needs a container")
    start = group.get("rayStartParams", {})
    both = group.get("resources") and any(start.get(resource) for resource in RESOURCES)
    _refuse(bool(both), f"group {name}: resources are in rayStartParams and in resources; allowed: one of them")
    _refuse("labels" in start, f"group {name}: labels belong beside rayStartParams, not in it")
    for key, value in group.get("labels", {}).items():
        well_formed = QUALIFIED.fullmatch(key) and LABEL_VALUE.fullmatch(value)
        _refuse(not well_formed, f"group {name}: {key}={value} is no label that Kubernetes allows")


def _check_counts(group: dict[str, Any], scales: bool) -> None:
    name = group["groupName"]
    least, most = group.get("minReplicas"), group.get("maxReplicas")
    if least is None or most is None:
        _refuse(not scales, f"group {name}: minReplicas and maxReplicas are needed without an autoscaler")
        return
    _refuse(least < 0 or most < 0, f"group {name}: replicas must not be below 0")
    _refuse(least > most, f"group {name}: minReplicas {least} is above maxReplicas {most}")


def _check_autoscaler(spec: dict[str, Any], scales: bool) -> None:
    options = spec.get("autoscalerOptions", {})
    container = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    switch = {each["name"]: each.get("value") for each in container.get("env", [])}.get("RAY_enable_autoscaler_v2")
    if not scales:
        _refuse(switch in ("1", "true"), "RAY_enable_autoscaler_v2 needs enableInTreeAutoscaling")
        return
    both = switch is not None and "version" in options
    _refuse(both, "autoscalerOptions.version and RAY_enable_autoscaler_v2 are both set; allowed: one of them")
    _refuse(options.get("idleTimeoutSeconds", 0) < 0, "autoscalerOptions.idleTimeoutSeconds must not be below 0")
    known = bool(spec.get("rayVersion"))
    version = options.get(
        "version", "v2" if known and _release(spec["rayVersion"]) >= SECOND_AUTOSCALER_SINCE else "v1"
    )
    if version == "v2":
        for group in (spec["headGroupSpec"], *spec.get("workerGroupSpecs", [])):
            policy = group["template"]["spec"].get("restartPolicy", "Never")
            where = group.get("groupName", "head")
            _refuse(policy != "Never", f"group {where}: autoscaler v2 needs restartPolicy Never (found {policy})")


def _check_token(spec: dict[str, Any]) -> None:
    options = spec.get("authOptions", {})
    by_kubernetes = options.get("enableK8sTokenAuth", False)
    if options.get("mode") != "token":
        _refuse(by_kubernetes, "authOptions: enableK8sTokenAuth needs mode token")
        return
    version = spec.get("rayVersion", "")
    _refuse(not re.match(r"\d+\.\d+", version), "authOptions: mode token needs rayVersion")
    needed = KUBERNETES_TOKENS_SINCE if by_kubernetes else TOKENS_SINCE
    said = ".".join(map(str, needed))
    _refuse(_release(version) < needed, f"rayVersion {version} knows no such tokens; allowed: {said} and later")
    _refuse(by_kubernetes and "secretName" in options, "authOptions: give one of enableK8sTokenAuth and secretName")


def _release(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _refuse(broken: bool, why: str) -> None:
    if broken:
        raise ValueError(why)
