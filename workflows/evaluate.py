"""Evaluation of trained networks: robustness in shards, common corruptions, calibration under attack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from torch import nn

from cluster.flow import Flow, Handle
from cluster.runs import Finished
from tasks.attacks import Attack
from tasks.attacks.transfer import Transfer
from tasks.component import Placement, kind_of
from tasks.corruptions import SEVERITIES, Corruption, benchmark
from tasks.data import Dataset, Signature
from tasks.measuring.calibrate import CalibrateAttacked
from tasks.measuring.corrupted import EvaluateCorrupted
from tasks.measuring.evaluate import Evaluate
from tasks.measuring.latency import MeasureLatency
from tasks.measuring.merge import MergeOutcomes
from tasks.models import Architecture
from tasks.training.imported import ImportWeights
from workflows import Workflow
from workflows.content import OrName
from workflows.evaluation_report import report_on
from workflows.figures import Figures, Measurement, figures_of, names_of
from workflows.measured import current
from workflows.report import Report
from workflows.subjects import (
    Model,
    Name,
    StoredStep,
    Subject,
    at_path,
    check_sparsifier,
    count_of,
    require_no_teacher,
    subject_of,
    without_weights,
)

Epsilon = Annotated[float, Field(gt=0)]
Corruptions = Annotated[
    tuple[Corruption, ...], OrName(lambda name: benchmark() if name == "benchmark" else name, "benchmark")
]
"""Corruptions; `benchmark` stands for the fifteen that are usually reported."""


class EvaluateModels(Workflow):
    """Accuracy of trained networks under attacks and corruptions (Croce et al. 2021; Hendrycks & Dietterich 2019)."""

    kind: Literal["evaluate"] = "evaluate"
    models: dict[Name, Model] = Field(min_length=1)
    """What is measured, by a name of one's choice: a training, a checkpoint, or a stored step. The others are compared
    with the first, example by example."""
    split: Literal["validation", "test"] = "test"
    """Validation to choose by, test to report."""
    weights: Literal["last", "best"] = "last"
    """Of a training: those after the last step, or those of the best validation."""
    attacks: tuple[Attack, ...] = ()
    """Tried in this order. A `transfer` attack names another model as its `source`, and leaves that one alone."""
    epsilons: tuple[Epsilon, ...] = ()
    """Radii in input units, rising."""
    examples: int | None = Field(default=None, ge=1)
    """How many examples of the split, drawn evenly over its classes; all unless given."""
    seed: int = 0
    """Of the drawn examples and of all noise."""
    votes: int = Field(default=1, ge=1)
    """Forward passes whose mean probabilities decide, for networks that draw random numbers."""
    shard_size: int = Field(default=250, ge=1)
    """Examples that one step attacks."""
    corruptions: Corruptions = ()
    """Common corruptions to measure under; `benchmark` stands for the fifteen that are usually reported."""
    severities: tuple[Annotated[int, Field(ge=1, le=5)], ...] = Field(default=SEVERITIES, min_length=1)
    """Of the corruptions, rising."""
    calibrate: bool = False
    """Whether to measure how sure the networks are under attack, at the same epsilons."""
    latency: int | None = Field(default=None, ge=1)
    """Also measure how long each network takes for an image, so many of them at once; not unless given."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of a step."""
    gpus: Annotated[float, Placement()] = Field(default=0, ge=0)
    """GPUs, or a fraction of one, of a step."""

    @model_validator(mode="after")
    def _names_are_free(self) -> Self:
        if "trained" in self.models:
            raise ValueError("no model can be called 'trained': steps call the network that they measure so")
        return self

    @model_validator(mode="after")
    def _sources_are_known(self) -> Self:
        for place, attack in enumerate(self.attacks):
            if isinstance(attack, Transfer) and attack.source not in self.models:
                raise ValueError(
                    f"attacks.{place}.source: no model is called '{attack.source}'; allowed: {', '.join(self.models)}"
                )
            if isinstance(attack, Transfer) and len(self.models) == 1:
                raise ValueError(
                    f"attacks.{place}: a transfer from '{attack.source}' needs another model to attack; there is none"
                )
        return self

    @model_validator(mode="after")
    def _calibration_has_a_ball(self) -> Self:
        if self.calibrate and (not self.attacks or self.attacks[0].norm not in ("linf", "l2")):
            raise ValueError("calibrate: needs attacks and epsilons in norm linf or l2")
        return self

    def check(self) -> None:
        """Builds each network without weights, compares checkpoints and attacks with it, and counts examples.

        What a stored step holds is looked up when its run is planned, which is before any work starts too.
        """
        for name, model in self.models.items():
            if isinstance(model, StoredStep):
                continue
            with at_path(f"models.{name}"):
                network = without_weights(model.architecture, model.data.signature())
                count_of(model.data, self.split, self.examples)
                if isinstance(model, ImportWeights):
                    model.check()
                else:
                    require_no_teacher(model)
                    check_sparsifier(model)
                    model.data.load("train")
            with at_path(f"attacks on {name}"):
                self.check_attacks(network)
                surrogates = dict.fromkeys(self.sources(name), model.architecture)
                whole = self.evaluation(name, model.data, model.architecture, surrogates)
            with at_path(f"corruptions of {name}"):
                list(self.corrupted(whole))

    async def run(self, flow: Flow) -> None:
        """All models side by side."""
        subjects = {}
        for name, model in self.models.items():
            with at_path(f"models.{name}"):
                subjects[name] = await subject_of(flow.at(model=name), model, self.weights)
            if isinstance(model, StoredStep):  # nothing was known of its network before
                with at_path(f"attacks on {name}"):
                    self.check_attacks(without_weights(subjects[name].architecture, subjects[name].data.signature()))
        await flow.together(*(step for name in subjects for step in self.measured(flow.at(model=name), name, subjects)))

    def measured(self, flow: Flow, name: str, subjects: Mapping[str, Subject]) -> Iterator[Handle]:
        """One network: attacked shard by shard, corrupted, and asked how sure it is."""
        trained, data = subjects[name].trained, subjects[name].data
        surrogates = {source: subjects[source] for source in self.sources(name)}
        for source, surrogate in surrogates.items():
            _require_same_images(f"{source} to {name}", surrogate.data.signature(), data.signature())
        architectures = {source: surrogate.architecture for source, surrogate in surrogates.items()}
        handles = {source: surrogate.trained for source, surrogate in surrogates.items()}
        with at_path(f"attacks on {name}"):
            whole = self.evaluation(name, data, subjects[name].architecture, architectures)
        shards = {}
        for shard, first in enumerate(range(0, count_of(data, self.split, self.examples), self.shard_size)):
            stretch = whole.model_copy(update={"first": first, "count": self.shard_size})
            shards[f"shard{shard:04d}"] = flow.at(shard=shard).step(stretch, trained=trained, **handles)
        merge = MergeOutcomes(attacks=whole.attacks, classes=data.signature().classes, votes=self.votes)
        yield flow.step(merge, **shards)
        with at_path(f"corruptions of {name}"):
            corrupted = list(self.corrupted(whole))
        for task in corrupted:
            yield flow.at(corruption=kind_of(type(task.corruptions[0]))).step(task, trained=trained)
        if self.calibrate:
            yield flow.step(self.calibration(whole), trained=trained)
        if self.latency is not None:
            yield flow.step(MeasureLatency.beside(whole, self.latency), trained=trained)

    def check_attacks(self, network: nn.Module) -> None:
        """Asks each attack whether it can attack this network.

        Raises:
            ValueError: one cannot.
        """
        for attack in self.attacks:
            attack.check_model(network)

    def attacks_on(self, name: str) -> tuple[tuple[Attack, ...], tuple[float, ...]]:
        """The attacks on a model, and their radii: what comes from it is no transfer to it."""
        attacks = tuple(each for each in self.attacks if not (isinstance(each, Transfer) and each.source == name))
        return attacks, self.epsilons if attacks or not self.attacks else ()

    def sources(self, name: str) -> list[str]:
        """The models whose adversarial images are tried on this one."""
        found = (attack.source for attack in self.attacks if isinstance(attack, Transfer) and attack.source != name)
        return list(dict.fromkeys(found))

    def evaluation(
        self, name: str, data: Dataset, architecture: Architecture, surrogates: Mapping[str, Architecture]
    ) -> Evaluate:
        """How a model is attacked, all examples at once.

        Raises:
            ValueError: attacks and epsilons do not fit each other.
        """
        attacks, epsilons = self.attacks_on(name)
        return Evaluate(
            data=data,
            architecture=architecture,
            split=self.split,
            weights=self.weights,
            attacks=attacks,
            epsilons=epsilons,
            examples=self.examples,
            seed=self.seed,
            votes=self.votes,
            surrogates=dict(surrogates),
            threads=self.threads,
            gpus=self.gpus,
        )

    def corrupted(self, whole: Evaluate) -> Iterator[EvaluateCorrupted]:
        """The same model and examples, a task for each corruption.

        Raises:
            ValueError: a corruption is given twice, or severities do not rise.
        """
        if not self.corruptions:
            return
        together = EvaluateCorrupted(
            data=whole.data,
            architecture=whole.architecture,
            split=self.split,
            weights=self.weights,
            examples=self.examples,
            seed=self.seed,
            corruptions=self.corruptions,
            severities=self.severities,
            threads=self.threads,
            gpus=self.gpus,
        )
        for corruption in self.corruptions:
            yield together.model_copy(update={"corruptions": (corruption,)})

    def calibration(self, whole: Evaluate) -> CalibrateAttacked:
        """How sure the same model is of the same examples."""
        return CalibrateAttacked.model_validate(
            {
                "data": whole.data,
                "architecture": whole.architecture,
                "split": self.split,
                "weights": self.weights,
                "norm": self.attacks[0].norm,
                "epsilons": self.epsilons,
                "examples": self.examples,
                "seed": self.seed,
                "threads": self.threads,
                "gpus": self.gpus,
            }
        )

    def figure_names(self) -> tuple[str, ...]:
        """Those of the first model, and the price of its attacks."""
        return (*names_of(self.attacks_on(next(iter(self.models)))[1], latency=self.latency is not None), "attack-cost")

    def figures(self, finished: Sequence[Finished]) -> Figures:
        """Those of the first model; `attack-cost` are the images that went through it to attack it."""
        name = next(iter(self.models))
        own = [step for step in current(finished) if step.at.get("model") == name]
        (merged,) = (step for step in own if step.kind == "merge-outcomes")
        key = next(step.step.manifest["inputs"]["trained"] for step in own if step.kind == "evaluate")
        trained = next(step for step in finished if step.step.key == key)
        found = figures_of([Measurement(merged, trained)], finished)
        return replace(found, values={**found.values, "attack-cost": float(merged.metrics["cost"])})

    def report(self, finished: Sequence[Finished]) -> Report:
        """Robust accuracy over epsilon for each model, with what stands behind the figures."""
        return report_on(self, finished)


def _require_same_images(between: str, source: Signature, target: Signature) -> None:
    shapes = [(each.channels, each.height, each.width, each.classes) for each in (source, target)]
    if shapes[0] != shapes[1]:
        words = " and ".join("{}x{}x{} in {} classes".format(*shape) for shape in shapes)
        raise ValueError(f"attacks: transfer from {between}: their images differ: {words}")
