"""A search space: which fields of a workflow vary, over what, and which of them depend on others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from heapq import heapify, heappop, heappush
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import BaseTrial
from pydantic import Field, ValidationError, model_validator

from search_spaces.checked import Checked, mistakes, nearest, one_line_each
from search_spaces.dimensions import AnyDimension, Choice, Dimension, Ints, Value
from search_spaces.shelf import Shelf

SPACES = Shelf("space", "`parameters`", files("search_spaces"))
shipped_spaces = SPACES.names


class Space(Checked):
    """What a search may vary: parameters by name, each with its range and the fields it sets."""

    parameters: dict[str, AnyDimension] = Field(min_length=1)
    """By dotted path into the workflow's fields, or by any name where `fields` says which."""

    @classmethod
    def load(cls, given: str | Path | Mapping[str, Any]) -> Self:
        """The space of this name, in this file, or written out.

        Raises:
            ValueError: it cannot be found, read or understood; one line for each mistake.
        """
        if isinstance(given, Mapping):
            where, content = "space", given
        else:
            where, content = f"space {given}", SPACES.read(str(given))
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            lines = one_line_each(error).splitlines()
            raise ValueError("\n".join(f"{where}: {line}" for line in lines)) from None

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        checks = (self._mistaken_conditions, self._cycles, self._never_there, self._fields_set_twice)
        found = next(filter(None, (list(check()) for check in checks)), None)
        if found:
            raise mistakes((("parameters", name, *place), what, value) for name, place, what, value in found)
        return self

    @cached_property
    def order(self) -> tuple[str, ...]:
        """All parameters: those on which others depend before these, otherwise by name."""
        waiting = {name: set(dimension.when) for name, dimension in self.parameters.items()}
        ready = [name for name, parents in waiting.items() if not parents]
        heapify(ready)
        ordered = []
        while ready:
            ordered.append(heappop(ready))
            for name, parents in waiting.items():
                if ordered[-1] in parents:
                    parents.remove(ordered[-1])
                    if not parents:
                        heappush(ready, name)
        return tuple(ordered)

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """A value for each parameter whose conditions hold, as this trial suggests them."""
        parameters: dict[str, Any] = {}
        for name in self.order:
            if self.holds(name, parameters):
                dimension = self.parameters[name]
                parameters[name] = dimension.settled(_suggested(trial, name, dimension.distribution()))
        return parameters

    def holds(self, name: str, parameters: Mapping[str, Any]) -> bool:
        """Whether this parameter is there, given those on which it depends."""
        dimension = self.parameters[name]
        return all(
            parent in parameters and parameters[parent] in dimension.allowed_by(parent) for parent in dimension.when
        )

    def require(self, parameters: Mapping[str, Any]) -> None:
        """Refuses what is no whole parameter set of this space.

        Raises:
            ValueError: a parameter is missing, out of its range, or has no place beside the others.
        """
        for name in parameters:
            if name not in self.parameters:
                raise ValueError(f"{name}: unknown parameter; {nearest(name, self.parameters)}")
        for name in self.order:
            dimension = self.parameters[name]
            if not self.holds(name, parameters):
                if name in parameters:
                    raise ValueError(f"{name}: its conditions do not hold here; leave it out")
            elif name not in parameters:
                raise ValueError(f"{name}: missing; allowed: {dimension.allowed()}")
            elif not dimension.contains(parameters[name]):
                raise ValueError(f"{name}: {parameters[name]!r} is out of its range; allowed: {dimension.allowed()}")

    def fields(self, parameters: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """Dotted path and value of each field that these parameters set, in the order to apply: outer fields first."""
        settings = [pair for name, value in parameters.items() for pair in self.parameters[name].settings(name, value)]
        return sorted(settings, key=lambda setting: (setting[0].count("."), setting[0]))

    def distributions(self) -> dict[str, BaseDistribution]:
        """Every parameter as Optuna knows it, conditions aside."""
        return {name: self.parameters[name].distribution() for name in self.order}

    def probes(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Whole parameter sets in which each parameter takes both ends and an inner value, or every choice.

        Conditions are made true; all that is not probed stays at its first value. With each set comes the name of the
        parameter that is probed.
        """
        for name in self.order:
            for value in self.parameters[name].probes():
                yield name, self._first_with(name, value)

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Every parameter set of a space of whole numbers, choices and stepped numbers, each once.

        Raises:
            ValueError: a parameter has no end of values.
        """
        self._require_ends()
        return self._combined(self.order, {})

    def size(self) -> int | None:
        """How many combinations there are; None if a parameter has no end of values."""
        if any(dimension.values() is None for dimension in self.parameters.values()):
            return None
        parents = {parent for dimension in self.parameters.values() for parent in dimension.when}
        leaves = [name for name in self.order if name not in parents]
        return sum(
            math.prod(len(self._values(name)) for name in leaves if self.holds(name, chosen))
            for chosen in self._combined([name for name in self.order if name in parents], {})
        )

    def narrowed(self, fixed: Mapping[str, Any]) -> Space:
        """The same space where these parameters have nothing but one value left."""
        narrow = {name: self.parameters[name].only(value) for name, value in fixed.items()}
        return Space.model_construct(parameters={**self.parameters, **narrow})

    def varying(self) -> dict[str, Dimension]:
        """The parameters that have more than one value, in order."""
        found = {name: (self.parameters[name], self.parameters[name].values()) for name in self.order}
        return {name: dimension for name, (dimension, values) in found.items() if values is None or len(values) > 1}

    def _values(self, name: str) -> Sequence[Value]:
        values = self.parameters[name].values()
        if values is None:
            raise ValueError(f"parameters.{name}: a float without a `step` has no end of values")
        return values

    def _require_ends(self) -> None:
        for name in self.order:
            self._values(name)

    def _combined(self, names: Sequence[str], chosen: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if not names:
            yield dict(chosen)
            return
        first, *rest = names
        if not self.holds(first, chosen):
            yield from self._combined(rest, chosen)
            return
        for value in self._values(first):
            yield from self._combined(rest, {**chosen, first: value})

    def _first_with(self, probed: str, value: Value) -> dict[str, Any]:
        """A whole set: what is probed, what it depends on, and the first value of everything else."""
        wanted = {**(self._condition_of(probed) or {}), probed: value}
        parameters: dict[str, Any] = {}
        for name in self.order:
            if self.holds(name, parameters):
                parameters[name] = wanted[name] if name in wanted else self.parameters[name].probes()[0]
        return parameters

    def _condition_of(self, name: str) -> dict[str, Any] | None:
        """The first values of all that this parameter depends on with which it is there; None if there are none."""
        above = set(self.parameters[name].when)
        for other in reversed(self.order):
            if other in above:
                above |= self.parameters[other].when.keys()
        found = self._combined([other for other in self.order if other in above], {})
        return next((chosen for chosen in found if self.holds(name, chosen)), None)

    def _never_there(self) -> Iterator[tuple[str, tuple[str, ...], str, Any]]:
        for name, dimension in self.parameters.items():
            if self._condition_of(name) is None:
                yield name, ("when",), "its conditions are never met together", dimension.when

    def _mistaken_conditions(self) -> Iterator[tuple[str, tuple[str, ...], str, Any]]:
        for name, dimension in self.parameters.items():
            for parent, wanted in dimension.when.items():
                place = ("when", parent)
                if parent not in self.parameters:
                    yield name, place, f"no such parameter; {nearest(parent, self.parameters)}", wanted
                    continue
                other = self.parameters[parent]
                if not isinstance(other, Choice | Ints) and other.values() is None:
                    yield name, place, "a condition needs a choice, an int or a float with a step", wanted
                    continue
                if not dimension.allowed_by(parent):
                    yield name, place, "no value is listed", wanted
                for value in dimension.allowed_by(parent):
                    if not other.contains(value):
                        yield name, place, f"'{parent}' is never {value!r}; allowed: {other.allowed()}", wanted

    def _cycles(self) -> Iterator[tuple[str, tuple[str, ...], str, Any]]:
        caught = [name for name in self.parameters if name not in self.order]
        if caught:
            path = [min(caught)]
            while path[-1] not in path[:-1]:
                path.append(min(parent for parent in self.parameters[path[-1]].when if parent in caught))
            cycle = path[path.index(path[-1]) :]
            yield cycle[0], ("when",), f"a cycle of conditions: {' -> '.join(cycle)}", self.parameters[cycle[0]].when

    def _fields_set_twice(self) -> Iterator[tuple[str, tuple[str, ...], str, Any]]:
        setters: dict[str, list[str]] = {}
        for name, dimension in self.parameters.items():
            for path in dimension.fields or (name,):
                for other in setters.setdefault(path, []):
                    if other == name or not self._exclude_each_other(name, other):
                        yield name, ("fields",), f"the field {path} is set by '{other}' already", path
                setters[path].append(name)

    def _exclude_each_other(self, one: str, other: str) -> bool:
        first, second = self.parameters[one], self.parameters[other]
        return any(
            not set(first.allowed_by(parent)) & set(second.allowed_by(parent))
            for parent in first.when.keys() & second.when.keys()
        )


def _suggested(trial: BaseTrial, name: str, distribution: BaseDistribution) -> Any:
    match distribution:
        case IntDistribution(low=low, high=high, step=step, log=log):
            return trial.suggest_int(name, low, high, step=step, log=log)
        case FloatDistribution(low=lowest, high=highest, step=size, log=log):
            return trial.suggest_float(name, lowest, highest, step=size, log=log)
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(name, choices)
