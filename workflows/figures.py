"""What a search may look at: the figures that a finished workflow comes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean

import torch

from cluster.runs import Finished
from tasks.measuring.outcomes import FILE, Outcomes
from tasks.pruning.mask import Mask


@dataclass(frozen=True)
class Figures:
    """What a finished workflow measured, by name.

    Names are the same in every workflow: `clean` and `robust@EPSILON` (accuracies, as shares), `clean-drop` and
    `robust-drop@EPSILON` (accuracy lost against the network that was not pruned), `sparsity` (share of prunable weights
    that are gone), `size` (weights left, biases included), `latency` (seconds for an image), `attack-cost` (images that
    went through the network to attack it), `sample-steps` (all that its steps cost, as if none were shared: examples
    times forward-and-backward passes, of trainings and of scores).
    """

    values: Mapping[str, float]
    outcomes: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """For figures that are accuracies: which examples were right, (examples times replicates,) bool."""


@dataclass(frozen=True)
class Measurement:
    """A network as it was measured."""

    evaluation: Finished
    """What holds its outcomes,"""
    trained: Finished
    """and the step that holds the network."""

    def accuracies(self) -> dict[str, float]:
        """Shares of right answers, without attack and at every epsilon."""
        metrics = self.evaluation.metrics
        robust = {_robust(entry["epsilon"]): float(entry["accuracy"]) for entry in metrics["robust"]}
        return {"clean": float(metrics["clean"]["accuracy"]), **robust}

    def outcomes(self) -> dict[str, torch.Tensor]:
        """The same example by example, (examples,) bool.

        Raises:
            Damaged: the file is not what was published.
        """
        found = Outcomes.from_bytes(self.evaluation.step.read(FILE))
        robust = {_robust(epsilon): found.standing(epsilon) for epsilon in found.threat.epsilons}
        return {"clean": found.correct, **robust}

    def size(self) -> int:
        """Weights that are left, and all other parameters.

        Raises:
            Damaged: the file is not what was published.
        """
        parameters, pruned = int(self.trained.metrics["parameters"]), 0
        if self.trained.metrics["density"] < 1:
            mask = Mask.from_bytes(self.trained.step.read("mask.safetensors"))
            pruned = mask.total - mask.nnz
        return parameters - pruned


def names_of(epsilons: Sequence[float], drops: bool = False, latency: bool = False) -> tuple[str, ...]:
    """What `figures_of` yields.

    Args:
        epsilons: budgets of the attacks.
        drops: whether there is a network that was not pruned.
        latency: whether it was measured.
    """
    accuracies = ["clean", *map(_robust, epsilons)]
    lost = [_drop(name) for name in accuracies] if drops else []
    return (*accuracies, *lost, "sparsity", "size", *(["latency"] if latency else []), "sample-steps")


def figures_of(
    networks: Sequence[Measurement], finished: Sequence[Finished], dense: Sequence[Measurement] = ()
) -> Figures:
    """The figures of a network: means over its replicates, whose outcomes follow each other.

    Args:
        networks: one for each replicate.
        finished: all steps of the run.
        dense: the networks that were not pruned, one for each replicate, if there are any.

    Raises:
        Damaged: a file is not what was published.
    """
    values = _means([each.accuracies() for each in networks])
    if dense:
        before = _means([each.accuracies() for each in dense])
        values |= {_drop(name): before[name] - share for name, share in values.items()}
    values["sparsity"] = mean(1 - each.trained.metrics["density"] for each in networks)
    values["size"] = float(mean(each.size() for each in networks))
    seconds = latencies(finished)
    own = [seconds[each.trained.step.key] for each in networks if each.trained.step.key in seconds]
    if own:
        values["latency"] = mean(own)
    distinct = {step.step.key: step.metrics.get("sample_steps", 0) for step in finished}
    values["sample-steps"] = float(sum(distinct.values()))
    outcomes = [each.outcomes() for each in networks]
    return Figures(values, {name: torch.cat([each[name] for each in outcomes]) for name in outcomes[0]})


def latencies(finished: Sequence[Finished]) -> dict[str, float]:
    """Seconds for an image, by the key of the step that holds the network."""
    timed = [step for step in finished if step.kind == "latency"]
    return {step.step.manifest["inputs"]["trained"]: float(step.metrics["seconds"]) for step in timed}


def _means(shares: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: mean(each[name] for each in shares) for name in shares[0]}


def _robust(epsilon: float) -> str:
    return f"robust@{epsilon:g}"


def _drop(name: str) -> str:
    """What the loss of an accuracy is called."""
    first, at, epsilon = name.partition("@")
    return f"{first}-drop{at}{epsilon}"
