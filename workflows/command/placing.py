"""What `--place` says, checked before any work: rules that nobody can mean, and steps that no node here can run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from cluster.group import require_ray_train
from cluster.placement import Machine, Rule, misfit, parse_rules
from cluster.plan import Plan
from cluster.profiles import Placing
from cluster.session import usable_cpus
from cluster.step import Runnable, processes_of
from workflows.command.recipe import BadRequest


def rules_of(places: Iterable[str], planned: Iterable[Runnable] = ()) -> tuple[Rule, ...]:
    """The rules that were given.

    Args:
        places: as `[KIND:]NAME=VALUE`.
        planned: tasks whose kinds may be named beside the known ones.

    Raises:
        BadRequest: one of them has another form, names what there is not, or says what another has said already.
    """
    try:
        rules = parse_rules(places)
    except ValueError as error:
        raise BadRequest(str(error)) from None
    said: dict[tuple[str, str], Rule] = {}
    for rule in rules:
        other = said.setdefault((rule.kind, rule.name), rule)
        if other is not rule:
            place = f"{rule.kind}:{rule.name}".removeprefix(":")
            raise BadRequest(f"--place {place}={rule.value}: another says {place}={other.value}; leave one out")
    if any(rule.kind for rule in rules):
        kinds = _task_kinds() | {task.kind for task in planned}
        for rule in rules:
            if rule.kind and rule.kind not in kinds:
                raise BadRequest(f"--place {rule.kind}:{rule.name}={rule.value}: {_unknown(rule.kind, kinds)}")
    return rules


def check_rules(placing: Placing, planned: Iterable[Runnable]) -> None:
    """Looks whether the rules leave alone what steps compute.

    Raises:
        BadRequest: a rule would change it.
    """
    for task in planned:
        try:
            placing.needs(task)
        except ValueError as error:
            raise BadRequest(str(error)) from None


def idle_rules(rules: Iterable[Rule], planned: Sequence[Runnable]) -> list[str]:
    """A line for each rule that changes nothing, where somebody may think that it does."""
    if not planned or any(task.gpus for task in planned):
        return []
    return [
        f"--place gpus={rule.value}: no step asks for a GPU; name a kind to move its steps, such as train:gpus=1"
        for rule in rules
        if rule.name == "gpus" and not rule.kind
    ]


def refuse_impossible(placing: Placing, planned: Iterable[Runnable], machines: Sequence[Machine]) -> None:
    """Looks whether these nodes, which are all that there will be, can run every step.

    Raises:
        BadRequest: none can run a step.
    """
    for task in planned:
        why = misfit(placing.needs(task), machines)
        if why:
            raise BadRequest(f"{task.kind}: {why}")


def check_resources(plan: Plan, address: str, workers: int | None, placing: Placing) -> None:
    """Looks whether a local session has what each step asks for: a step that asks for more would wait for ever.

    Args:
        plan: of the run.
        address: Ray's.
        workers: CPUs of a local session; all of this machine's when None.
        placing: what steps need of a node.

    Raises:
        BadRequest: it has not, or a package is missing.
    """
    try:
        if any(processes_of(step.handle.task) > 1 for step in plan.to_run):
            require_ray_train()
    except ValueError as error:
        raise BadRequest(str(error)) from None
    if address != "local":
        return
    cpus = workers or usable_cpus()
    limit = f"--workers is {cpus}" if workers else f"this machine has {cpus} CPUs"
    for step in plan.to_run:
        task = step.handle.task
        gpus, processes = placing.needs(task).gpus, processes_of(task)
        each = f" for each of {processes} processes" if processes > 1 else ""
        if gpus > 0:
            import torch  # only a plan with GPU steps needs to know

            found = torch.cuda.device_count()
            if gpus * processes > found:
                raise BadRequest(f"{task.kind}.gpus: {gpus:g}{each} asked for, but this machine has {found}")
        if task.threads * processes > cpus:
            raise BadRequest(f"{task.kind}.threads: {task.threads}{each} asked for, but {limit}")


def _task_kinds() -> set[str]:
    from workflows.command.methods import methods_records  # imports every method

    return {record["kind"] for record in methods_records() if record["family"] == "Task"}


def _unknown(kind: str, kinds: set[str]) -> str:
    near = get_close_matches(kind, sorted(kinds), n=1)
    meant = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(sorted(kinds))}"
    return f"no step is of the kind '{kind}'; {meant}"
