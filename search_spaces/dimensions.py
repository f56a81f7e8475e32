"""What one parameter may be: a whole number, a number, or one of several choices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Self

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import BeforeValidator, Field, SerializeAsAny, StrictInt, field_validator, model_validator

from search_spaces.checked import Checked, mistakes, nearest

Value = bool | int | float | str | None
"""What a trial's record holds of a parameter: a number, or which choice."""


class Dimension(Checked):
    """A parameter's range: which fields it sets, and when it is there at all."""

    when: dict[str, Any] = Field(default_factory=dict)
    """Other parameters and the value, or list of values, that each must have; otherwise this one is left out."""
    fields: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Dotted paths of the fields that it sets; its own name is the path unless given."""

    def distribution(self) -> BaseDistribution:
        """As Optuna knows it."""
        raise NotImplementedError

    def values(self) -> Sequence[Value] | None:
        """All of them, in order; None where there is no end of them."""
        raise NotImplementedError

    def allowed(self) -> str:
        """All of them, for people."""
        raise NotImplementedError

    def contains(self, value: Value) -> bool:
        """Whether it can take this value."""
        raise NotImplementedError

    def at(self, share: float) -> Value:
        """The value at this share of the range, 0 to 1; choices and whole numbers have equal parts of it."""
        raise NotImplementedError

    def only(self, value: Value) -> Self:
        """The same parameter where nothing but this value is left."""
        raise NotImplementedError

    def settled(self, value: Value) -> Value:
        """The value that Optuna means: a stepped number without its rounding error."""
        return value

    def probes(self) -> tuple[Value, ...]:
        """Both ends and a value between, or every choice."""
        raise NotImplementedError

    def settings(self, name: str, value: Value) -> list[tuple[str, Any]]:
        """Dotted path and value of each field that a value of the parameter with this name sets."""
        return [(path, value) for path in self.fields or (name,)]

    def allowed_by(self, parent: str) -> tuple[Value, ...]:
        """The values of another parameter, named in `when`, with which this one is there."""
        wanted = self.when[parent]
        return tuple(wanted) if isinstance(wanted, list | tuple) else (wanted,)


class Ints(Dimension):
    """A whole number: `{int: [2, 8], step: 2}` or `{int: [1, 1000], log: true}`."""

    bounds: tuple[StrictInt, StrictInt] = Field(alias="int")
    """Lowest and highest, both included."""
    log: bool = False
    """Whether sizes are tried evenly rather than values."""
    step: StrictInt | None = Field(default=None, gt=0)
    """Distance between neighbours."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        _check_range("int", self.bounds, self.log, self.step)
        return self

    def distribution(self) -> IntDistribution:
        """As Optuna knows it."""
        return IntDistribution(*self.bounds, log=self.log, step=self.step or 1)

    def values(self) -> range:
        """All of them."""
        return range(self.bounds[0], self.bounds[1] + 1, self.step or 1)

    def allowed(self) -> str:
        """From where to where."""
        return _as_words(self.bounds, self.step if self.step != 1 else None)

    def contains(self, value: Value) -> bool:
        """Whether it is one of them; a float never is."""
        return type(value) is int and value in self.values()

    def at(self, share: float) -> int:
        """The value at this share; of equal parts, by size with `log`."""
        low, high = self.bounds
        if self.log:
            size = math.log(low - 0.5) + share * (math.log(high + 0.5) - math.log(low - 0.5))
            return min(max(round(math.exp(size)), low), high)
        values = self.values()
        return values[min(int(share * len(values)), len(values) - 1)]

    def only(self, value: Value) -> Self:
        """Nothing but this value."""
        return self.model_copy(update={"bounds": (value, value)})

    def probes(self) -> tuple[int, ...]:
        """Both ends and the middle."""
        return tuple(dict.fromkeys((self.bounds[0], self.at(0.5), self.bounds[1])))


class Floats(Dimension):
    """A number: `{float: [0.01, 0.3], log: true}` or `{float: [0.0, 1.0], step: 0.05}`."""

    bounds: tuple[float, float] = Field(alias="float")
    """Lowest and highest, both included."""
    log: bool = False
    """Whether sizes are tried evenly rather than values."""
    step: float | None = Field(default=None, gt=0)
    """Distance between neighbours; without one there is no end of values."""

    @field_validator("bounds", "step", mode="before")
    @classmethod
    def _is_no_truth_value(cls, given: Any) -> Any:
        if any(isinstance(part, bool) for part in (given if isinstance(given, list | tuple) else [given])):
            raise ValueError("should be a number")
        return given

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        _check_range("float", self.bounds, self.log, self.step)
        return self

    def distribution(self) -> FloatDistribution:
        """As Optuna knows it."""
        return FloatDistribution(*self.bounds, log=self.log, step=self.step)

    def values(self) -> tuple[float, ...] | None:
        """The steps, if there are any."""
        if self.bounds[0] == self.bounds[1]:
            return (self.bounds[0],)
        return None if self.step is None else tuple(self._nth(place) for place in range(self._steps() + 1))

    def allowed(self) -> str:
        """From where to where."""
        return _as_words(self.bounds, self.step)

    def contains(self, value: Value) -> bool:
        """Whether it lies within, on a step if there are any."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        low, high = self.bounds
        return low <= value <= high and (self.step is None or self.settled(value) == value)

    def at(self, share: float) -> float:
        """The value at this share; by size with `log`."""
        low, high = self.bounds
        if low == high:
            return low
        if self.step is not None:
            return self._nth(min(int(share * (self._steps() + 1)), self._steps()))
        if self.log:
            return min(max(math.exp(math.log(low) + share * (math.log(high) - math.log(low))), low), high)
        return min(low + share * (high - low), high)

    def only(self, value: Value) -> Self:
        """Nothing but this value."""
        number = float(value)  # type: ignore[arg-type]
        return self.model_copy(update={"bounds": (number, number)})

    def settled(self, value: Value) -> float:
        """The step as it is written: 0.15, and not 0.15000000000000002."""
        number = float(value)  # type: ignore[arg-type]
        return number if self.step is None else self._nth(round((number - self.bounds[0]) / self.step))

    def probes(self) -> tuple[float, ...]:
        """Both ends and a value between that is no whole number, so that a field of whole numbers shows."""
        between = [self.at(share) for share in (0.5, 0.3, 0.7)]
        inner = next((value for value in between if not value.is_integer()), between[0])
        return tuple(dict.fromkeys((self.bounds[0], inner, self.bounds[1])))

    def _steps(self) -> int:
        low, high = map(_exact, self.bounds)
        return int((high - low) / _exact(self.step or 0.0))

    def _nth(self, place: int) -> float:
        return float(_exact(self.bounds[0]) + place * _exact(self.step or 0.0))


class Choice(Dimension):
    """One of several: a list of scalars, or a mapping of labels to values of any form."""

    choice: tuple[Value, ...] | dict[str, Any]
    """The scalars, or label -> value. A trial's record holds the scalar or the label."""

    @field_validator("choice", mode="before")
    @classmethod
    def _are_choices(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            for label in given:
                if not isinstance(label, str):
                    raise ValueError(f"YAML reads the label {label} as a {type(label).__name__}: put it in quotes")
        elif not isinstance(given, list | tuple):
            raise ValueError("should be a list of scalars, or a mapping of labels to values")
        if not given:
            raise ValueError("no choices")
        if not isinstance(given, Mapping):
            _check_scalars(given)
        return given

    @model_validator(mode="after")
    def _fills_its_fields(self) -> Self:
        if self.fields is None or not isinstance(self.choice, Mapping):
            return self
        for label, value in self.choice.items():
            if isinstance(value, list | tuple) and len(value) != len(self.fields):
                what = f"a list of {len(value)} for {len(self.fields)} fields ({', '.join(self.fields)})"
                raise mistakes([(("choice", label), what, value)])
        return self

    def distribution(self) -> CategoricalDistribution:
        """As Optuna knows it."""
        return CategoricalDistribution(self.values())

    def values(self) -> tuple[Value, ...]:
        """The scalars as they are listed, or the labels by name: in a mapping their order means nothing."""
        return tuple(sorted(self.choice)) if isinstance(self.choice, Mapping) else tuple(self.choice)

    def allowed(self) -> str:
        """All of them, in order."""
        return ", ".join(map(str, self.values()))

    def contains(self, value: Value) -> bool:
        """Whether it is one of them, of the same type."""
        return any(value == known and type(value) is type(known) for known in self.values())

    def at(self, share: float) -> Value:
        """The choice at this share."""
        values = self.values()
        return values[min(int(share * len(values)), len(values) - 1)]

    def only(self, value: Value) -> Self:
        """Nothing but this choice."""
        choice = {str(value): self.choice[str(value)]} if isinstance(self.choice, Mapping) else (value,)
        return self.model_copy(update={"choice": choice})

    def probes(self) -> tuple[Value, ...]:
        """Every choice."""
        return self.values()

    def settings(self, name: str, value: Value) -> list[tuple[str, Any]]:
        """The value behind the label; with `fields`, a list is spread over them."""
        meant = self.choice[str(value)] if isinstance(self.choice, Mapping) else value
        if self.fields is not None and isinstance(meant, list | tuple):
            return list(zip(self.fields, meant, strict=True))
        return super().settings(name, meant)


FORMS: dict[str, type[Dimension]] = {"int": Ints, "float": Floats, "choice": Choice}


def _of_its_form(given: Any) -> Any:
    if isinstance(given, Dimension):
        return given
    if not isinstance(given, Mapping):
        raise ValueError("a parameter is a mapping with one of `int`, `float` and `choice`")
    forms = [form for form in FORMS if form in given]
    if len(forms) > 1:
        raise ValueError(f"a parameter has one of `int`, `float` and `choice`, not {' and '.join(forms)}")
    if not forms:
        near = nearest(next(iter(given), ""), FORMS)
        raise ValueError(
            f"a parameter has one of `int`, `float` and `choice`; found {', '.join(given) or 'none'}; {near}"
        )
    return FORMS[forms[0]].model_validate(given)


AnyDimension = Annotated[SerializeAsAny[Dimension], BeforeValidator(_of_its_form)]


def _check_range(form: str, bounds: Sequence[float], log: bool, step: float | None) -> None:
    low, high = bounds
    found = []
    if low >= high:
        found.append(((form,), f"the range from {low} to {high} is empty; a single value is a choice of one"))
    elif log and low <= 0:
        found.append(((form,), f"a range with `log` starts above 0, not at {low}"))
    elif log and step is not None:
        found.append((("step",), "`log` and `step` exclude each other"))
    elif step is not None and (_exact(high) - _exact(low)) % _exact(step):
        last = _exact(high) - (_exact(high) - _exact(low)) % _exact(step)
        found.append((("step",), f"steps of {step} from {low} do not meet {high}; the last one is {last}"))
    if found:
        raise mistakes([(place, what, list(bounds) if place == (form,) else step) for place, what in found])


def _as_words(bounds: Sequence[float], step: float | None) -> str:
    steps = "" if step is None else f" in steps of {step}"
    return f"{bounds[0]} to {bounds[1]}{steps}"


def _check_scalars(given: Sequence[Any]) -> None:
    for place, value in enumerate(given):
        if value is not None and not isinstance(value, bool | int | float | str):
            raise ValueError(
                f"choice {place + 1} is a {type(value).__name__}: give each a label, {{label: value, ...}}"
            )
        if value in given[:place]:
            raise ValueError(f"the choice {value!r} is there twice")


def _exact(number: float) -> Decimal:
    """The number as it was written: 0.1 rather than the nearest binary fraction."""
    return Decimal(str(number))
