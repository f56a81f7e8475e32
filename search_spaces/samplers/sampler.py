"""What all samplers have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from warnings import catch_warnings, simplefilter

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from search_spaces.checked import Checked, nearest
from search_spaces.space import Space


class SamplerModel(Checked):
    """Decides which parameters to try next.

    It keeps nothing from one trial to the next: it is built anew for each, with a seed from the study and the trial's
    number. So an interrupted study goes on as if it had never stopped.
    """

    @property
    def replays(self) -> bool:
        """Whether Optuna keeps the state of the search beside the asks, so that they must be asked again for it."""
        return False

    def check(self, space: Space, objectives: int) -> None:
        """Finds what it cannot search.

        Raises:
            ValueError: with the parameter or field, and what is allowed.
        """

    def limit(self, space: Space) -> int | None:
        """How many trials there are; None if there is no end of them."""
        return None

    def build(self, space: Space, key: str, number: int) -> BaseSampler:
        """What Optuna asks for this one trial.

        Args:
            space: what it searches.
            key: of the study: what is drawn once for all its trials depends on it alone.
            number: of the trial.
        """
        raise NotImplementedError


class Chosen(BaseSampler):
    """Parameters that are known before Optuna asks for them; those that a trial leaves out are not looked at."""

    def __init__(self, space: Space, values: Mapping[str, Any]) -> None:
        self._distributions = {name: space.parameters[name].distribution() for name in values}
        self._values = values

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Everything."""
        return dict(self._distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """What was chosen of it."""
        return {name: self._values[name] for name in search_space}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """What was chosen, where Optuna does not take it from `sample_relative`."""
        return self._values[param_name]


def seed_of(*purpose: str | int) -> int:
    """A 32-bit seed; equal purposes give equal seeds everywhere."""
    digest = hashlib.sha256("/".join(map(str, purpose)).encode()).digest()
    return int.from_bytes(digest[:4], "big")


@contextmanager
def without_notices() -> Iterator[None]:
    """Optuna says of some options that they may change; that is for who reads its release notes, not for users."""
    with catch_warnings():
        simplefilter("ignore", ExperimentalWarning)
        yield


def of_its_kind(*members: type[SamplerModel]) -> Callable[[Any], Any]:
    """Reads a name, or a mapping as what its `kind` says; left to pydantic, paths of mistakes would hold the kind."""
    kinds = {str(member.model_fields["kind"].default): member for member in members}

    def read(given: Any) -> Any:
        if isinstance(given, SamplerModel):
            return given
        if isinstance(given, str):
            given = {"kind": given}
        if not isinstance(given, Mapping):
            raise ValueError(f"a sampler is a name or a mapping with a `kind`; allowed: {', '.join(kinds)}")
        kind = str(given.get("kind", ""))
        if kind not in kinds:
            found = f"no sampler is called '{kind}'" if kind else "`kind` is missing"
            raise ValueError(f"{found}; {nearest(kind, kinds)}")
        return kinds[kind].model_validate(given)

    return read
