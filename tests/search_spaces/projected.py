"""Trials to show, and a look at what a database shows of them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import Engine, event

from search_spaces.projection import Projection

DISTRIBUTIONS = {
    "levels": IntDistribution(2, 8),
    "train.objective.epsilon": FloatDistribution(0.01, 0.3, log=True),
    "train.objective": CategoricalDistribution(["pgd", "trades"]),
    "layers": CategoricalDistribution([None, True, 1.5]),
}
BETA = FloatDistribution(1, 8, step=0.5)


def trial(number: int, state: TrialState = TrialState.COMPLETE, **other: Any) -> FrozenTrial:
    """The trial of a number: every third has a parameter that the others lack."""
    params: dict[str, Any] = {
        "levels": 2 + number % 7,
        "train.objective.epsilon": 0.01 + number / 7000,
        "train.objective": "trades" if number % 3 == 0 else "pgd",
        "layers": [None, True, 1.5][number % 3],
    }
    distributions: dict[str, Any] = dict(DISTRIBUTIONS)
    if number % 3 == 0:
        params["train.objective.beta"], distributions["train.objective.beta"] = 1.5, BETA
    told: dict[str, Any] = {"params": params, "distributions": distributions, "state": state}
    if state == TrialState.COMPLETE:
        told |= {
            "values": [number / 7, float("inf") if number % 5 == 0 else 0.1 + 0.2],
            "constraints": {"clean-drop": 0.01},
        }
    if state == TrialState.PRUNED:
        told |= {"intermediate_values": {1: 1 / 3, 3: float("nan")}}
    if state.is_finished():
        told |= {"user_attrs": {"state": state.name.lower(), "because": "gräßlich 'quoted'", "sample_steps": 12}}
    return create_trial(**told | other)


def trials(count: int) -> list[FrozenTrial]:
    """Trials of every state."""
    states = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.COMPLETE]
    return [trial(number, states[number % 4]) for number in range(count)]


def projection(url: str, name: str = "sparse and robust") -> Projection:
    return Projection(url, name, ["maximize", "minimize"], ["robust@0.1", "size"])


def load(url: str, name: str = "sparse and robust") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=optuna.storages.RDBStorage(url, skip_compatibility_check=True))


def told(trial: FrozenTrial) -> dict[str, Any]:
    """What a trial says, without when."""
    return {
        "state": trial.state,
        "values": trial.values,
        "params": trial.params,
        "distributions": trial.distributions,
        "user_attrs": trial.user_attrs,
        "constraints": trial.constraints,
        "intermediate_values": {step: repr(value) for step, value in trial.intermediate_values.items()},
    }


def shows(url: str, expected: list[FrozenTrial], name: str = "sparse and robust") -> bool:
    """Whether Optuna reads exactly these trials from a database."""
    study = load(url, name)
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == ["robust@0.1", "size"]
    found = study.get_trials(deepcopy=False)
    assert [trial.number for trial in found] == list(range(len(found)))
    assert [told(trial) for trial in found] == [told(trial) for trial in expected]
    return True


def in_another_process(work: Callable[..., None], *arguments: Any) -> Any:
    """A process that works beside this one; it shares nothing of it but memory that is copied."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


def on_each_statement(act: Callable[[str], None]) -> Callable[[], None]:
    """Acts before every statement that is sent to a database.

    Returns:
        what ends this.
    """

    def listen(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        act(statement)

    event.listen(Engine, "before_cursor_execute", listen)
    return lambda: event.remove(Engine, "before_cursor_execute", listen)
