"""The task that measures a trained network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator

from tasks.attacks import Attack, parts_of
from tasks.attacks.ball import require_radius
from tasks.attacks.transfer import Transfer
from tasks.component import require_rising
from tasks.data import Dataset, Examples
from tasks.device import device_of, settle
from tasks.measuring.masking import probe, warnings
from tasks.measuring.outcomes import FILE, Outcomes, Threat
from tasks.measuring.predictions import BLOCK, Predictions, predict
from tasks.measuring.robustness import Cascade, Siege, seeded_model
from tasks.measuring.subject import choose_examples, load_model
from tasks.models import Architecture
from tasks.task import Context, Result, Stored, Task


class Evaluate(Task):
    """Clean and robust accuracy, loss and calibration of a trained network, with the outcome of every example.

    Robust accuracy starts from the examples that are right without attack. Each attack meets what the ones before it
    left (`tasks.measuring.robustness` says at which epsilons); an adversarial image counts once it is checked to lie in
    the ball and in [0, 1] and to be misclassified in float32. What happens to an example depends on the network, the
    attacks, the epsilons and the seed, and not on which other examples are measured with it. (A network that draws
    random numbers draws them for a batch: there it depends on `first`, `count` and `batch` too.)

    Inputs are `trained`, a finished training, and one for each of `surrogates`, by its name. An input `known`, which
    may be left out, is an evaluation of the same network, examples and attacks at other radii: what it broke within an
    epsilon counts as broken there, what withstood a larger one before it broke counts as standing, and only the
    examples in between are attacked (`tasks.measuring.ladder`). Predictions and probes are then taken from it.

    Metrics are `clean` (accuracy, loss, nll, ece, confidence), `robust` (for each epsilon its accuracy, a 95 % interval
    and the examples that each attack broke there), `warnings`, `probes` and `rejected` (what the warnings rest on), the
    numbers of `examples` and of `correct` ones, `cost` (images that went through the network here, counted at every
    step) and `costs` (what it consists of). The file `outcomes.safetensors` holds the outcome of each example:
    `tasks.measuring.outcomes`.
    """

    version = 2

    kind: Literal["evaluate"] = "evaluate"
    data: Dataset
    """What to measure on."""
    architecture: Architecture
    """The network that the weights belong to."""
    split: Literal["validation", "test"] = "test"
    """Validation to choose by, test to report."""
    weights: Literal["last", "best"] = "last"
    """Those after the last step, or those of the best validation."""
    attacks: tuple[Attack, ...] = ()
    """Tried in this order; the cheap ones first save time."""
    epsilons: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Radii in input units, rising."""
    examples: int | None = Field(default=None, ge=1)
    """How many examples of the split, drawn evenly over its classes; all unless given."""
    first: int = Field(default=0, ge=0)
    """The first of these that is measured here."""
    count: int | None = Field(default=None, ge=1)
    """How many from there on are measured here; all unless given."""
    seed: int = 0
    """Of the drawn examples and of the attacks' noise."""
    votes: int = Field(default=1, ge=1)
    """Forward passes whose mean probabilities decide, for networks that draw random numbers."""
    surrogates: dict[str, Architecture] = Field(default_factory=dict)
    """Other networks, whose images `transfer` attacks try on this one."""
    descend: bool = False
    """Whether the epsilons are the many rungs of a ladder (`tasks.measuring.ladder`). Then the first attack, too, sets
    in at the largest and goes down while it succeeds; the network is probed for masked gradients at the median distance
    of its mistakes instead of at the middle epsilon; and what the attacks did is judged over the whole ladder."""
    batch: int = Field(default=128, ge=8)
    """Examples that go through the network together; on a CPU it changes no outcome of a network without randomness."""

    @model_validator(mode="after")
    def _attacks_fit_epsilons(self) -> Self:
        if bool(self.attacks) != bool(self.epsilons):
            raise ValueError("attacks and epsilons go together: give both, or neither for clean accuracy alone")
        require_rising("epsilons", self.epsilons)
        norms = {attack.norm for attack in self.attacks}
        if len(norms) > 1:
            raise ValueError(
                f"attacks must share one norm, not {' and '.join(sorted(norms))}: an epsilon is a radius in it"
            )
        if "l0" in norms and (parts := [epsilon for epsilon in self.epsilons if epsilon % 1]):
            raise ValueError(f"epsilon is {parts[0]}, but norm l0 counts changed values: a whole number")
        for norm in norms:
            require_radius(norm, self.epsilons[-1])
        return self

    @model_validator(mode="after")
    def _surrogates_are_given(self) -> Self:
        for name in ("trained", "known"):
            if name in self.surrogates:
                raise ValueError(f"no surrogate can be called '{name}': another input has this name")
        for attack in parts_of(self.attacks):
            if isinstance(attack, Transfer) and attack.source not in self.surrogates:
                known = ", ".join(self.surrogates) or "none"
                raise ValueError(
                    f"attack `transfer` from '{attack.source}': no surrogate has this name; given: {known}"
                )
        return self

    def run(self, context: Context, **inputs: Stored) -> Result:
        """Measures the network of the input `trained`.

        Raises:
            ValueError: the weights do not fit the architecture, the split has too few examples, a label is none of the
                network's classes, or `known` is about another network, other examples or other attacks.
        """
        settle(self.threads)
        device = device_of(self.gpus)
        model = load_model(self.architecture, self.data, inputs["trained"], self.weights, device)
        indices, examples = self._stretch()
        known = Outcomes.from_bytes(inputs["known"].read(FILE)) if "known" in inputs else None
        with seeded_model(device, self.seed, "model", int(indices[0])):
            predictions = predict(model, examples if known is None else _first_block(examples), device, self.votes)
        surrogates = {
            name: load_model(architecture, self.data, inputs[name], self.weights, device)
            for name, architecture in self.surrogates.items()
        }
        attacks = tuple(
            part.crafted_on(surrogates) if isinstance(part, Transfer) else part for part in parts_of(self.attacks)
        )
        siege = Siege(
            model=model,
            examples=examples,
            indices=indices,
            attacks=attacks,
            names=names_of(attacks),
            epsilons=self.epsilons,
            seed=self.seed,
            device=device,
            batch=self.batch,
            votes=self.votes,
            surrogates=tuple(surrogates.values()),
            descend=self.descend,
            known=known,
        )
        if known is not None:
            _require_fit(known, siege, predictions)
            predictions = Predictions(known.predictions, known.confidences, known.losses, known.correct)
        clean = model.take()
        cascade = self._besieged(context, siege, predictions.correct)
        probes: dict[str, int] = {}
        if known is not None:
            probes = dict(inputs["known"].metrics["probes"])
        elif attacks:
            probes = probe(siege, predictions.correct, self._probed_radius(cascade.distance[predictions.correct]))
        probing = model.take()
        outcomes = Outcomes(
            threat=Threat(attacks[0].norm if attacks else "linf", self.epsilons, tuple(siege.names)),
            indices=indices,
            labels=examples.labels.clone(),
            predictions=predictions.classes,
            confidences=predictions.confidences,
            losses=predictions.losses,
            broken_at=torch.tensor([0.0, *self.epsilons, torch.inf])[cascade.level + 1],
            broken_by=cascade.by,
            distances=cascade.distance,
        )
        costs = {"clean": clean, "probes": probing, **dict(zip(siege.names, cascade.cost.tolist(), strict=True))}
        classes = self.data.signature().classes
        rejected = cascade.rejected.tolist()
        metrics = metrics_of(
            outcomes, attacks, classes, self.votes, probes, rejected, costs, descended=self.descend, known=known
        )
        return Result(metrics, {FILE: outcomes.to_bytes()})

    def _besieged(self, context: Context, siege: Siege, correct: torch.Tensor) -> Cascade:
        saved = context.saved()
        if saved is not None:
            cascade = Cascade.from_bytes(saved)
        else:
            cascade = Cascade.begin(correct, len(self.epsilons), len(siege.attacks))
            if siege.known is not None:
                cascade.take_over(siege, siege.known)
        total = len(siege.examples)

        def after_block(share: float) -> None:
            context.progress(int(share * total), total)
            if context.should_save():
                context.save(cascade.to_bytes())

        cascade.run(siege, after_block)
        context.progress(total, total)
        return cascade

    def _probed_radius(self, distances: torch.Tensor) -> float:
        """Where twenty steps break some of the examples and others not, given how far each one's mistake is, (n,)."""
        if not self.descend or not len(distances):
            return self.epsilons[len(self.epsilons) // 2]
        return min(float(distances.median()), self.epsilons[-1])

    def _stretch(self) -> tuple[torch.Tensor, Examples]:
        """The chosen examples between `first` and `first + count`."""
        indices, examples = choose_examples(self.data, self.split, self.examples, self.seed)
        if self.first >= len(examples):
            raise ValueError(f"first is {self.first}, but there are {len(examples)} examples")
        last = len(examples) if self.count is None else self.first + self.count
        return indices[self.first : last], Examples(
            examples.images[self.first : last], examples.labels[self.first : last]
        )


def metrics_of(
    outcomes: Outcomes,
    attacks: Sequence[Attack],
    classes: int,
    votes: int,
    probes: Mapping[str, int],
    rejected: Sequence[int],
    costs: Mapping[str, int],
    descended: bool = False,
    known: Outcomes | None = None,
) -> dict[str, Any]:
    """The metrics of an evaluation, or of its shards together.

    Args:
        outcomes: of all examples.
        attacks: those of the outcomes' threat, in its order.
        classes: of the data.
        votes: forward passes that decided.
        probes: what was found by `tasks.measuring.masking.probe`.
        rejected: for each attack, images that it returned from outside the ball or [0, 1].
        costs: images that went through the network, and what for.
        descended: whether the epsilons are the rungs of a ladder.
        known: what outcomes of the same examples were taken over from.
    """
    return {
        **outcomes.summary(),
        "warnings": [
            *(line for attack in attacks for line in attack.fallbacks(classes)),
            *warnings(outcomes, attacks, votes, probes, rejected, descended, known),
        ],
        "probes": dict(probes),
        "rejected": list(rejected),
        "cost": sum(costs.values()),
        "costs": dict(costs),
    }


def names_of(attacks: tuple[Attack, ...]) -> list[str]:
    """A name for each attack: its label, numbered where several share one."""
    labels = [attack.label() for attack in attacks]
    return [
        f"{label}-{labels[: turn + 1].count(label)}" if labels.count(label) > 1 else label
        for turn, label in enumerate(labels)
    ]


def _first_block(examples: Examples) -> Examples:
    return Examples(examples.images[:BLOCK], examples.labels[:BLOCK])


def _require_fit(known: Outcomes, siege: Siege, predictions: Predictions) -> None:
    """Refuses outcomes that say nothing about this network, these examples or these attacks.

    Args:
        known: the outcomes.
        siege: what is to be measured.
        predictions: of the first examples.

    Raises:
        ValueError: says what differs.
    """
    threat, names = known.threat, ", ".join(siege.names) or "nothing"
    if not torch.equal(known.indices, siege.indices) or not torch.equal(known.labels, siege.examples.labels):
        raise ValueError(
            f"known: holds {len(known)} other examples than the {len(siege.examples)} that are measured here"
        )
    if threat.attacks != tuple(siege.names):
        raise ValueError(f"known: attacked with {', '.join(threat.attacks) or 'nothing'}, but here it is {names}")
    if siege.attacks and threat.norm != siege.attacks[0].norm:
        raise ValueError(f"known: attacked in norm {threat.norm}, but here it is {siege.attacks[0].norm}")
    count = len(predictions.losses)
    same = torch.isclose(known.losses[:count], predictions.losses, rtol=1e-2, atol=1e-3)  # another machine may round
    if not same.all():
        raise ValueError(
            f"known: is about another network: its losses differ on {int((~same).sum())} of the first {count} examples"
        )
