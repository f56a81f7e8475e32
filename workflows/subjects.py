"""What an evaluation measures: a training, a checkpoint of one's own, or any stored step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import BeforeValidator, Field, StringConstraints, TypeAdapter, ValidationError
from torch import nn

from cluster.flow import Flow, Handle
from cluster.ledger import Published
from tasks.attacks import Attack
from tasks.attacks.transfer import Transfer
from tasks.component import Component, kind_of
from tasks.data import Dataset, Signature, Split
from tasks.measuring.subject import FILES
from tasks.models import Architecture
from tasks.training.imported import ImportWeights
from tasks.training.train import Train

Part = TypeVar("Part", bound=Component)


def _is_text(given: Any) -> Any:
    if isinstance(given, int | float):
        raise ValueError("YAML reads these digits as a number: put the key in quotes")
    return given


Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+$")]
"""What a recipe calls a network or a mask."""
Key = Annotated[str, BeforeValidator(_is_text), StringConstraints(pattern=r"^[0-9a-f]{4,64}$")]
"""The key of a stored step, or an unambiguous beginning of at least 4 digits."""


class StoredStep(Component):
    """A finished training or import, by its key in the store."""

    kind: Literal["stored"] = "stored"
    step: Key
    """The key, or an unambiguous beginning of at least 4 digits."""
    data: Dataset | None = None
    """What to measure on; what it was trained on unless given. Needed if where that lies is not known here."""


def _of_its_kind(given: Any) -> Any:
    """Reads a mapping as what its `kind` says; pydantic's own choice would put the kind into the paths of mistakes."""
    kinds = {kind_of(model): model for model in (Train, ImportWeights, StoredStep)}
    if not isinstance(given, Mapping):
        return given
    if given.get("kind") not in kinds:
        close = get_close_matches(str(given.get("kind", "")), list(kinds), n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        found = f"no model is of kind '{given['kind']}'" if "kind" in given else "`kind` is missing"
        raise ValueError(f"{found}; {hint}allowed: {', '.join(kinds)}")
    return kinds[given["kind"]].model_validate(given)


Model = Annotated[Train | ImportWeights | StoredStep, Field(discriminator="kind"), BeforeValidator(_of_its_kind)]
"""Where a network comes from."""


@dataclass(frozen=True)
class Subject:
    """A network to measure."""

    trained: Handle
    data: Dataset
    architecture: Architecture


async def subject_of(
    flow: Flow, model: Train | ImportWeights | StoredStep, weights: Literal["last", "best"]
) -> Subject:
    """The step that yields the network, asked for, and what is to be known of it.

    Raises:
        ValueError: a stored step is not there, holds no network, or does not say enough of it.
    """
    if not isinstance(model, StoredStep):
        return Subject(flow.step(model), model.data, model.architecture)
    trained = await flow.stored(model.step)
    published = await trained.published()
    task: Mapping[str, Any] = published.manifest["task"]
    what = f"step {published.key[:12]} is a '{task['kind']}'"
    if "architecture" not in task or FILES[weights] not in published.manifest["files"]:
        raise ValueError(f"{what}: it holds no network; give the key of a training or of an import")
    try:
        # A step that changes the network says what it has become.
        architecture = _rebuilt(Architecture, published.metrics.get("architecture", task["architecture"]))
    except ValueError as problem:
        raise ValueError(f"{what} of an architecture that is not known here: {problem}") from None
    data = model.data
    if data is None:
        try:
            data = _rebuilt(Dataset, task["data"])
        except ValueError as problem:
            raise ValueError(f"{what} on data that are not known here; give `data`: {problem}") from None
    _require_fit(published, data, architecture)
    return Subject(trained, data, architecture)


def without_weights(architecture: Architecture, data: Signature) -> nn.Module:
    """The network for these images, with shapes but without numbers: nothing is computed.

    Raises:
        ValueError: it does not take images of this shape.
    """
    with torch.device("meta"):
        return architecture.build(data)


def count_of(data: Dataset, split: Split, examples: int | None) -> int:
    """How many examples of a split are measured, all unless said.

    Raises:
        ValueError: the split has fewer.
    """
    held = len(data.load(split))
    if examples is not None and examples > held:
        raise ValueError(f"examples is {examples}, but the {split} split holds {held}")
    return examples or held


def require_no_transfer(attacks: Sequence[Attack]) -> None:
    """Refuses attacks that need another network, where there is none.

    Raises:
        ValueError: one does.
    """
    for place, attack in enumerate(attacks):
        if isinstance(attack, Transfer):
            raise ValueError(
                f"attacks.{place}: a transfer takes images from another network, and here is none: measure the "
                "trained steps with the recipe `evaluate`"
            )


def require_no_teacher(train: Train) -> None:
    """Refuses an objective that learns from a trained network, where there is none.

    Raises:
        ValueError: it does.
    """
    if train.objective.taught:
        raise ValueError(
            f"train.objective: {kind_of(type(train.objective))} learns from a teacher, and here is none: the method "
            "`deadwooding` of the recipe `compare-pruning` has one"
        )


def check_sparsifier(train: Train) -> None:
    """Asks what sparsifies a training whether it can, of this network.

    Raises:
        ValueError: it cannot.
    """
    if train.sparsifier is not None:
        with at_path("train.sparsifier"):
            train.sparsifier.check(without_weights(train.architecture, train.data.signature()))


@contextmanager
def at_path(path: str) -> Iterator[None]:
    """Puts the path of a field before what is wrong with it, in one line."""
    try:
        yield
    except ValidationError as error:
        mistakes = [(mistake["loc"], mistake["msg"].removeprefix("Value error, ")) for mistake in error.errors()]
        words = "; ".join(": ".join(filter(None, (".".join(map(str, loc)), words))) for loc, words in mistakes)
        raise ValueError(f"{path}: {words}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _rebuilt(family: type[Part], record: Mapping[str, Any]) -> Part:
    """The component that a manifest names.

    Raises:
        ValueError: its fields do not say all of it, or what is made of them here is another one.
    """
    with at_path(str(record["kind"])):
        made: Part = TypeAdapter(family).validate_python(_configured(record))
        if made.identity() != record:
            raise ValueError("the content or the version differs from that of the step")
    return made


def _configured(identity: Any) -> Any:
    """An identity without what is no field: the version of the code, and the fingerprint of the content."""
    if isinstance(identity, list):
        return [_configured(item) for item in identity]
    if not isinstance(identity, Mapping):
        return identity
    added = {"version", "fingerprint"} if "kind" in identity else set[str]()
    return {name: _configured(item) for name, item in identity.items() if name not in added}


def _require_fit(published: Published, data: Dataset, architecture: Architecture) -> None:
    """Compares the number of parameters: cheaper than the weights, which nobody has read so far."""
    signature = data.signature()
    needed = sum(parameter.numel() for parameter in without_weights(architecture, signature).parameters())
    if published.metrics["parameters"] != needed:
        raise ValueError(
            f"step {published.key[:12]} has {published.metrics['parameters']:,} parameters, but "
            f"{kind_of(type(architecture))} for images of {signature.channels}x{signature.height}x{signature.width} in "
            f"{signature.classes} classes has {needed:,}: give data of the shape and classes that it was trained on"
        )
