"""Runs one order in several processes at once, through Ray Train: one lease, one publication, one fate.

Ray Train places the processes together, connects them and ends all when one dies. Whether to go on from there is left
to the engine, and what to go on from lies in the store: the first process holds the lease, saves, leaves and publishes
as that of any other step would, and the others only compute.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.failures import cause_of, first_line
from cluster.order import Order, Outcome
from cluster.placement import GPU_TYPE
from cluster.worker import Asked, inputs_of, run_step, told

SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # an end is noticed so much later; the default is 2
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "86400",  # to wait for room is no failure; the default is 60
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # the engine looks after nodes that leave
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths of stores and data may be relative
}
"""For Ray Train, which reads them where a group is started."""
PACKAGES = ("fsspec", "pandas", "pyarrow", "requests")
"""What Ray Train imports and Ray alone does not need."""
DAY = 86400
"""Time-out of the process group in seconds: long, since dead processes are noticed elsewhere within seconds."""


class Ended(Exception):
    """What became of one process's part, other than a publication."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome


def require_ray_train() -> None:
    """Looks whether Ray Train can be used here, without importing Ray: a session sets its environment first.

    Raises:
        ValueError: a package that it needs is missing.
    """
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(
            f"a step in several processes needs Ray Train, and {' and '.join(missing)} for it: "
            "python -m pip install 'ray[train]'"
        )


def run_group(order: Order) -> Outcome:
    """Runs one attempt in as many processes as its task asks for, to be called in a Ray task that takes no CPU.

    Ray gives each process what the order needs, all of them at once or none: two groups never wait for each other's
    rest. When this task is killed, they end with it.

    Args:
        order: the attempt.
    """
    try:
        require_ray_train()
    except ValueError as error:
        return Outcome("failed", "user", str(error))
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    train, connection = _ray_train()
    for name, value in {**SETTINGS, "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": f"{order.terms.ttl:g}"}.items():
        os.environ[name] = value
    here = ray.get_runtime_context()
    gpus = order.needs.gpus
    options = order.needs.options()
    session = Path(here.get_temp_dir(), here.get_session_name())
    with tempfile.TemporaryDirectory(prefix="group-", dir=session) as folder:
        trainer = train(
            _work,
            train_loop_config={"order": order, "nodes": [here.get_node_id()]},
            scaling_config=ScalingConfig(
                num_workers=order.needs.processes,
                use_gpu=gpus > 0,
                resources_per_worker={"CPU": order.needs.cpus, "GPU": gpus, "memory": options.get("memory", 0)},
                label_selector=options.get("label_selector"),
            ),
            # Ray Train has nothing of ours to keep: the folder has to be there, on this machine alone.
            run_config=RunConfig(
                name=order.attempt,
                storage_path=folder,
                failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),
            ),
            torch_config=connection(backend="nccl" if gpus else "gloo", timeout_s=DAY),
        )
        try:
            trainer.fit()
        except ray.train.WorkerGroupError as error:
            return _verdict(error.worker_failures)
        except ray.train.ControllerError as error:
            return _outcome_of(error.controller_failure, "the group")
    return Outcome("published")


def free_orphans() -> None:
    """Frees what this driver's groups reserved whose controller has died; call it now and then.

    A reservation outlives the task that asked for it, and the process that Ray Train sets beside it to notice that asks
    the dashboard, which need not run.
    """
    from ray import PlacementGroupID
    from ray._private import state, worker
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    ours = worker.global_worker.current_job_id.binary()
    for content in state.state._connect_and_get_accessor().get_placement_group_table():
        found = PlacementGroupTableData.FromString(content)
        gone = found.creator_actor_dead and found.state != PlacementGroupTableData.REMOVED
        if gone and found.creator_job_id == ours:
            remove_placement_group(PlacementGroup(PlacementGroupID(found.placement_group_id)))


def _ray_train() -> tuple[Any, Any]:
    """Ray Train's own trainer and connection, but for two things that cost time."""
    from ray.train.torch import TorchConfig, TorchTrainer

    class Trainer(TorchTrainer):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:  # without the process that `free_orphans` stands in for
            made = super()._create_default_callbacks()
            return [callback for callback in made if type(callback).__name__ != "PlacementGroupCleanerCallback"]

    class Backend(TorchConfig().backend_cls):  # type: ignore[misc]
        def on_shutdown(self, *given: Any) -> None:  # half a minute for a farewell where one is frozen; all are killed
            pass

    class Connection(TorchConfig):  # type: ignore[misc]
        @property
        def backend_cls(self) -> Any:
            return Backend

    return Trainer, Connection


def _work(given: Mapping[str, Any]) -> None:
    """One process's part."""
    import ray
    from torch import distributed

    order, here = given["order"], ray.get_runtime_context()
    nodes: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(nodes, here.get_node_id())
    if distributed.get_rank() == 0:
        beside = [node for node in dict.fromkeys([*nodes, *given["nodes"]]) if node != here.get_node_id()]
        outcome = _lead(order, here.get_node_id(), here.get_node_labels().get(GPU_TYPE, ""), beside)
    else:
        mine = replace(order, attempt=f"{order.attempt}.{distributed.get_rank()}")  # its log has a name of its own
        outcome = told(mine, lambda: _follow(mine))
    if outcome.state != "published":
        raise Ended(outcome)


def _lead(order: Order, node: str, gpu_type: str, beside: Iterable[str]) -> Outcome:
    """The first process's part: all that a step in one process does, but it tells the others before it computes."""
    begun = False

    def compute(context: Any, **inputs: Any) -> Any:
        nonlocal begun
        begun = True
        _say(True)
        return order.task.run(context, **inputs)

    outcome = run_step(order, node, gpu_type, beside, compute)
    if not begun:
        _say(False)
    return outcome


def _follow(order: Order) -> Outcome:
    """Any other process's part: computes if the first does."""
    if _say(None):
        order.task.run(_Follower(), **inputs_of(order))
    return Outcome("published")


def _say(word: bool | None) -> bool:
    """Broadcasts from the first process whether all compute; what the others pass is ignored."""
    from torch import distributed

    words = [word]
    distributed.broadcast_object_list(words, src=0)
    return bool(words[0])


class _Follower:
    """The context of any other process: its task follows the first one's context, and uses its own only to leave."""

    def saved(self) -> bytes | None:
        return None

    def should_save(self) -> bool:
        return False

    def save(self, state: bytes) -> None:
        raise Asked

    def progress(self, done: int, total: int, note: str = "") -> None:
        pass


def _verdict(failures: Mapping[int, BaseException]) -> Outcome:
    """The attempt's outcome from what its processes raised: when one dies, the others lose their connection."""
    found = {rank: _outcome_of(error, f"process {rank}") for rank, error in sorted(failures.items())}
    first = found.get(0)
    if first is not None and first.cause != "node":
        return first
    failed = [outcome for outcome in found.values() if outcome.state != "stopped"] or list(found.values())
    return next((outcome for outcome in failed if outcome.cause != "node"), failed[0])


def _outcome_of(error: BaseException, who: str) -> Outcome:
    """What one process raised, unwrapped from Ray Train's own errors."""
    from ray.exceptions import OutOfMemoryError, RayError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckTimeoutError

    error = getattr(error, "_base_exc", None) or getattr(error, "health_check_failure", None) or error
    if isinstance(error, Ended):
        return error.outcome
    message = f"{who}: {first_line(error)}"
    if isinstance(error, WorkerHealthCheckTimeoutError):
        return Outcome("failed", "partition", message)
    if isinstance(error, RayError):
        return Outcome("failed", "oom" if isinstance(error, OutOfMemoryError) else "node", message)
    return Outcome("failed", cause_of(error), message)
