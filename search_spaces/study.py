"""A study: which parameters to try next, as a function of the results so far and of nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState

from search_spaces.goals import Constraint, Objective
from search_spaces.records import front_of, frozen_trial
from search_spaces.samplers import SamplerModel
from search_spaces.space import Space

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Study:
    """Asks for parameters and is told results, both in order of the trials' numbers.

    The sampler is built anew for every ask, with a seed from the study's key and the trial's number, and nothing that
    Optuna leaves on a trial outlives the ask. So another study that is given the same asks (`replay`) and results
    (`tell`) in the same order goes on with the same parameters, whatever the process or the state of global generators.
    """

    def __init__(
        self,
        key: str,
        space: Space,
        sampler: SamplerModel,
        objectives: Sequence[Objective],
        constraints: Sequence[Constraint] = (),
        start: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Opens an empty study.

        Args:
            key: its name; what is drawn depends on it.
            space: what is varied.
            sampler: what suggests.
            objectives: what is better.
            constraints: what a complete trial must meet to count.
            start: parameters of the first trials; the sampler is asked for the rest.

        Raises:
            ValueError: the sampler cannot search this space for these objectives.
        """
        sampler.check(space, len(objectives))
        self._key = key
        self._space = space
        self._sampler = sampler
        self._objectives = tuple(objectives)
        self._constraints = tuple(constraints)
        self._start = tuple(start)
        self._limit = sampler.limit(space)
        self._idle = RandomSampler(seed=0)
        self._study = optuna.create_study(
            directions=[objective.direction for objective in objectives], sampler=self._idle
        )
        self._asked: list[dict[str, Any]] = []
        self._told: list[Mapping[str, Any]] = []

    @property
    def asked(self) -> int:
        """How many trials were asked, those found in the ledger included."""
        return len(self._asked)

    def ask(self) -> dict[str, Any] | None:
        """The next trial's parameters; None if there are none left to try."""
        number = len(self._asked)
        if number < len(self._start):
            self._add(self._start[number])
            return self._asked[number]
        if self._limit is not None and number - len(self._start) >= self._limit:
            return None
        self._study.sampler = self._sampler.build(self._space, self._key, number - len(self._start))
        parameters = self._space.suggest(self._study.ask())
        self._study.sampler = self._idle  # nothing it may remember, or warn of, reaches the next trial
        trial = self._study.get_trials(deepcopy=False)[number]
        trial.params = dict(parameters)
        if not self._sampler.replays:
            trial.system_attrs = {}  # a trial that is replayed has none either
        self._asked.append(parameters)
        return parameters

    def replay(self, parameters: Mapping[str, Any]) -> None:
        """The next trial as it was asked once.

        Args:
            parameters: what `ask` gave. As many trials must have been told by now as were told then.

        Raises:
            ValueError: the sampler now asks for something else, so what it kept of earlier trials is lost.
        """
        if self._sampler.replays and len(self._asked) >= len(self._start):
            self._ask_again(parameters)
        else:
            self._add(parameters)

    def tell(self, number: int, told: Mapping[str, Any]) -> None:
        """What became of a trial.

        Args:
            number: of the trial; every one before it was told.
            told: `state` (complete, stopped, failed), `figures` by name, `rungs` (of each the figures), and words.

        Raises:
            ValueError: out of order, or a figure is missing.
        """
        if number != len(self._told) or number >= len(self._asked):
            raise ValueError(
                f"trial {number} is told, but it is trial {len(self._told)}'s turn of {len(self._asked)} asked"
            )
        shown = self._frozen(number, told)
        trial = self._study.get_trials(deepcopy=False)[number]
        trial.intermediate_values = dict(shown.intermediate_values)
        for name, violation in shown.constraints.items():
            trial.set_constraint(name, violation)
        self._study.tell(number, shown.values if shown.state is TrialState.COMPLETE else None, shown.state)
        self._told.append(told)

    def parameters(self, number: int) -> dict[str, Any]:
        """What was asked."""
        return self._asked[number]

    def frozen(self, number: int) -> FrozenTrial:
        """A trial for a study that people look at: nothing of what a sampler keeps on its own."""
        return self._frozen(number, self._told[number] if number < len(self._told) else None)

    def front(self) -> list[int]:
        """Numbers of the best trials so far."""
        return front_of(self._told, self._objectives, self._constraints)

    def _frozen(self, number: int, told: Mapping[str, Any] | None) -> FrozenTrial:
        return frozen_trial(self._space, self._objectives, self._constraints, number, self._asked[number], told)

    def _add(self, parameters: Mapping[str, Any]) -> None:
        self._asked.append(dict(parameters))
        self._study.add_trial(self._frozen(len(self._asked) - 1, None))

    def _ask_again(self, parameters: Mapping[str, Any]) -> None:
        number = len(self._asked)
        again = self.ask()
        if again != parameters:
            raise ValueError(
                f"trial {number} was asked with {dict(parameters)}, but now Optuna {optuna.__version__} asks for "
                f"{again}; go on with the version that the study began with"
            )
