"""The epsilon sweep: adversarial training over a grid of budgets, each network attacked over a grid of radii."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from torch import nn

from cluster.flow import Flow, Handle
from cluster.runs import Finished
from tasks.analysis.sensitivity import FilterSensitivity
from tasks.attacks import Attack
from tasks.attacks.pgd import PGD
from tasks.attacks.square import Square
from tasks.attacks.transfer import Transfer
from tasks.component import Component, require_rising
from tasks.measuring.evaluate import Evaluate
from tasks.measuring.ladder import ladder, scout
from tasks.models.prunable import prunable
from tasks.models.quantised import Quantised
from tasks.objectives.standard import Standard
from tasks.pruning.mask import Mask
from tasks.training.train import Train
from workflows.chain import Chain
from workflows.epsilon_report import report_on
from workflows.measured import seeded
from workflows.report import Report
from workflows.subjects import Key, Name, at_path, count_of, require_no_transfer, without_weights

Weights = Literal["last", "best"]

MASK = "mask.safetensors"
TWIN = "unrounded"
"""The name of a network whose features are not rounded, as the source of attacks on the one whose features are."""


class FeaturePrecision(Component):
    """How much robustness the precision of intermediate features makes (Sridhar et al. 2022, section 5)."""

    kind: Literal["feature-precision"] = "feature-precision"
    after: tuple[str, ...] = Field(min_length=1)
    """The modules whose outputs are rounded."""
    steps: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)
    """What they are rounded to multiples of, rising."""
    delta: float = Field(gt=0)
    """Radius of the attacks."""

    @field_validator("steps")
    @classmethod
    def _rise(cls, steps: tuple[float, ...]) -> tuple[float, ...]:
        require_rising("steps", steps)
        return steps


@dataclass(frozen=True)
class Network:
    """A trained network and its place in the sweep."""

    flow: Flow
    trained: Handle


class EpsilonSweep(Chain):
    """Trainings at a grid of radii, each attacked at a grid of radii: the over-design question (Sridhar et al. 2022).

    Each cell of the matrix is a step of its own, so a longer grid only costs its new cells. What the cells of a network
    have in common is found once, by a survey of the radii that each example withstands.
    """

    kind: Literal["epsilon-sweep"] = "epsilon-sweep"
    train: Train
    """How each network is trained: its objective's `epsilon` takes the values of the grid, its seeds count up."""
    epsilons: tuple[Annotated[float, Field(ge=0)], ...]
    """Radii to train with, rising; 0 stands for the objective `standard`."""
    deltas: tuple[Annotated[float, Field(gt=0)], ...]
    """Radii to attack with, rising."""
    replicates: int = Field(default=2, ge=1)
    """Trainings of every radius: other initial weights, other data orders."""
    masks: dict[Name, Key] = Field(default_factory=dict)
    """Stored masks to train under, by a name of one's choice, instead of the dense network."""
    every: int = Field(default=1, ge=1)
    """Of a pruning chain, the levels that are attacked: every so many, counted back from the last."""
    attacks: tuple[Attack, ...]
    """What each network is attacked with."""
    weights: tuple[Weights, ...] = ("last",)
    """Which networks of a training are attacked: the last, the best by validation, or both."""
    split: Literal["validation", "test"] = "test"
    """Validation to choose by, test to report."""
    examples: int | None = Field(default=None, ge=1)
    """How many examples of the split, drawn evenly over its classes; all unless given."""
    seed: int = Field(default=0, ge=0)
    """Of the drawn examples and of the attacks' noise."""
    sensitivity: float | None = Field(default=None, gt=0)
    """Also measure how much each layer amplifies perturbations of this radius."""
    precision: FeaturePrecision | None = None
    """Also attack every network with its features rounded."""

    @model_validator(mode="after")
    def _grids_rise(self) -> Self:
        for name in ("epsilons", "deltas", "attacks", "weights"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty")
        require_rising("epsilons", self.epsilons)
        require_rising("deltas", self.deltas)
        if len(set(self.weights)) < len(self.weights):
            raise ValueError(f"weights: {self.weights[0]} is there twice")
        return self

    @model_validator(mode="after")
    def _trains_to_the_end(self) -> Self:
        if self.train.stop_at is not None:
            raise ValueError("train.stop_at: a sweep attacks finished networks; leave it out")
        if self.train.sparsifier is not None:
            raise ValueError("train.sparsifier: sparse networks come from prune or masks here; leave it out")
        if self.every > 1 and self.prune is None:
            raise ValueError("every chooses levels of a pruning chain and needs prune")
        return self

    @model_validator(mode="after")
    def _one_norm(self) -> Self:
        for epsilon in self.epsilons:
            with at_path("train.objective"):
                threat = self.training(epsilon, 0).objective.threat
            for place, attack in enumerate(self.attacks):
                if threat is not None and attack.norm != threat[0]:
                    raise ValueError(
                        f"attacks.{place}: attacks in norm {attack.norm}, but train.objective trains in norm "
                        f"{threat[0]}: a matrix of radii needs one norm"
                    )
        return self

    @model_validator(mode="after")
    def _no_surrogates(self) -> Self:
        require_no_transfer(self.attacks)
        return self

    @model_validator(mode="after")
    def _masks_or_chain(self) -> Self:
        if self.masks and self.prune is not None:
            raise ValueError("give masks or prune: a chain finds its own masks")
        keys = list(self.masks.values())
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise ValueError(f"masks: {twice} is there twice")
        return self

    def check(self) -> None:
        """Builds the network without weights, and compares attacks, radii and examples with it and the data."""
        self.check_chain(self.train)
        signature = self.train.data.signature()
        widest = 2 * ladder(self.attacks[0].norm, signature)[-1]
        if self.deltas[-1] > widest:
            raise ValueError(
                f"deltas: {self.deltas[-1]} is more than any two images differ by in norm {self.attacks[0].norm}: at "
                f"most {widest:g}"
            )
        count_of(self.train.data, self.split, self.examples)
        network = without_weights(self.train.architecture, signature)
        with at_path("attacks"):
            self.evaluation("last")
            for attack in self.attacks:
                attack.check_model(network)
        with at_path("precision"):
            for _, rounded in self.rounded("last"):
                without_weights(rounded.architecture, signature)
        with at_path("sensitivity"):
            list(self.layers("last"))

    async def run(self, flow: Flow) -> None:
        """All networks side by side."""
        masks: dict[str, Handle] = {}
        network = without_weights(self.train.architecture, self.train.data.signature())
        for name, key in self.masks.items():
            with at_path(f"masks.{name}"):
                masks[name] = await _stored_mask(flow.at(mask=name), key, network)
                if twice := next((other for other in masks if masks[other] is masks[name] and other != name), None):
                    raise ValueError(f"this is the mask that '{twice}' is too")
        await flow.together(*(step for network in self.networks(flow, masks) for step in self.measured(network)))

    def networks(self, flow: Flow, masks: dict[str, Handle]) -> Iterator[Network]:
        """The networks of all radii and replicates: under each mask, at each level of a chain, or dense."""
        for epsilon in self.epsilons:
            for replicate in range(self.replicates):
                train = self.training(epsilon, replicate)
                here = flow.at(epsilon=epsilon, replicate=replicate)
                for name, mask in masks.items():
                    under = here.at(mask=name)
                    yield Network(under, under.step(train, mask=mask))
                if not masks:
                    tickets = list(self.tickets(here, train))
                    for ticket in tickets:
                        if (len(tickets) - 1 - ticket.level) % self.every == 0:
                            yield Network(ticket.flow, ticket.trained)

    def training(self, epsilon: float, replicate: int) -> Train:
        """How one network is trained.

        Raises:
            ValueError: the objective has no epsilon, or cannot have this one.
        """
        fields = dict(seeded(self.train, replicate))
        if epsilon:
            return Train.model_validate({**fields, "objective": self.train.objective.against(epsilon)})
        # What watches over an attacked training has nothing to do here.
        return Train.model_validate({**fields, "objective": Standard(), "robust_validation": None, "guard": None})

    def measured(self, network: Network) -> Iterator[Handle]:
        """One row of the matrix: the survey, and a cell for each radius; and the analyses."""
        for weights in self.weights:
            flow = network.flow.at(weights=weights)
            whole = self.evaluation(weights)
            survey = flow.step(whole, trained=network.trained)
            yield survey
            for delta in self.deltas:
                yield flow.at(delta=delta).step(_at(whole, delta), trained=network.trained, known=survey)
            for layers in self.layers(weights):
                yield flow.step(layers, trained=network.trained)
            for step, rounded in self.rounded(weights):
                yield flow.at(rounded=step).step(rounded, trained=network.trained, **{TWIN: network.trained})

    def evaluation(self, weights: Weights) -> Evaluate:
        """The survey of a network: which radii each example withstands, to within a rung of the ladder.

        Raises:
            ValueError: the attacks do not fit the data.
        """
        norm = self.attacks[0].norm
        return Evaluate(
            data=self.train.data,
            architecture=self.train.architecture,
            split=self.split,
            weights=weights,
            attacks=(scout(norm), *self.attacks),
            epsilons=ladder(norm, self.train.data.signature()),
            descend=True,
            examples=self.examples,
            seed=self.seed,
            threads=self.train.threads,
            gpus=self.train.gpus,
        )

    def layers(self, weights: Weights) -> Iterator[FilterSensitivity]:
        """How much each layer amplifies perturbations, if that was asked for."""
        if self.sensitivity is not None:
            yield FilterSensitivity(
                data=self.train.data,
                architecture=self.train.architecture,
                split=self.split,
                weights=weights,
                attack=PGD(norm=self.attacks[0].norm),
                epsilon=self.sensitivity,
                examples=self.examples,
                seed=self.seed,
                threads=self.train.threads,
                gpus=self.train.gpus,
            )

    def rounded(self, weights: Weights) -> Iterator[tuple[float, Evaluate]]:
        """For each precision of the features, and for 0, which is not rounded at all: attacks through the rounding,
        without gradients, and from the network that does not round.
        """
        if self.precision is None:
            return
        norm = self.attacks[0].norm
        base = self.train.architecture
        for step in (0.0, *self.precision.steps):
            evaluation = _at(
                self.evaluation(weights),
                self.precision.delta,
                architecture=Quantised(base=base, after=self.precision.after, step=step) if step else base,
                attacks=(*self.attacks, Square(norm=norm), Transfer(norm=norm, source=TWIN)),
                surrogates={TWIN: base},
            )
            yield step, evaluation

    def report(self, finished: Sequence[Finished]) -> Report:
        """The matrix with its intervals, the best training radius for each attack, and the heat map."""
        return report_on(self, finished)


def _at(whole: Evaluate, delta: float, **changes: Any) -> Evaluate:
    """The same evaluation at one radius.

    Raises:
        ValueError: there is no such radius, or the changes do not fit.
    """
    return Evaluate.model_validate({**dict(whole), "epsilons": (delta,), "descend": False, **changes})


async def _stored_mask(flow: Flow, key: str, network: nn.Module) -> Handle:
    """A finished step that holds a mask of this network.

    Raises:
        ValueError: there is no such step, or it holds none.
    """
    handle = await flow.stored(key)
    published = await handle.published()
    if MASK not in published.manifest["files"]:
        raise ValueError(f"step {published.key[:12]} is a '{published.manifest['task']['kind']}': it holds no mask")
    Mask.from_bytes(published.read(MASK)).require_fit(prunable(network))
    return handle
