"""Golden results of pruning: scores, densities and sparsifiers may change only together with their `version`."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.objectives.distilled import Distilled
from tasks.objectives.pgd import PGD
from tasks.optimizers.sgd import SGD
from tasks.pruning import Saliency
from tasks.pruning.channels import PruneChannels
from tasks.pruning.gap import GAP
from tasks.pruning.grasp import GraSP
from tasks.pruning.hydra import Hydra
from tasks.pruning.magnitude import Magnitude
from tasks.pruning.magnitude_gradient import MagnitudeGradient
from tasks.pruning.mask import Mask
from tasks.pruning.prune import Prune
from tasks.pruning.shuffle import ShuffleMask
from tasks.pruning.snip import SNIP
from tasks.pruning.sparsifiers import Sparsifier
from tasks.pruning.sparsifiers.admm import ADMM
from tasks.pruning.sparsifiers.early_bird import EarlyBird
from tasks.pruning.sparsifiers.gradual import Gradual
from tasks.pruning.sparsifiers.lagrangian_dual import LagrangianDual
from tasks.pruning.synflow import SynFlow
from tasks.task import Task
from tasks.training.train import Train
from tests.tasks.test_golden import near, unchanged
from tests.tasks.training_toys import Blobs, Finished, Tiny, Watch, history, toy, trained

pytestmark = pytest.mark.usefixtures("one_thread")


def kept_by(task: Task, **inputs: Finished) -> list[int]:
    """How many weights each kernel keeps."""
    result = task.run(Watch(), **inputs)
    return list(Mask.from_bytes(result.files["mask.safetensors"]).layer_nnz.values())


def about(golden: Any) -> Any:
    """Room for a weight whose score is near that of the last one kept."""
    return pytest.approx(golden, abs=1)


@pytest.mark.parametrize(
    ("saliency", "scope", "golden"),
    [
        (Magnitude(), "global", [17, 151, 27]),
        (Magnitude(), "uniform", [8, 173, 14]),
        (Magnitude(), "erk", [23, 136, 36]),
        (MagnitudeGradient(), "global", [20, 141, 34]),
        (SNIP(examples=12), "global", [22, 142, 31]),
        (GraSP(per_class=3), "global", [22, 144, 29]),
        (SynFlow(), "global", [24, 142, 29]),
        (GAP(epsilon=0.1, steps=2), "global", [15, 162, 18]),
        (GAP(epsilon=0.1, steps=2, variant="global-times-parameter"), "global", [16, 154, 25]),
        (GAP(epsilon=0.1, steps=2, variant="layer"), "layerwise", [8, 173, 14]),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_a_pruning_to_a_density_keeps_what_it_kept(saliency: Saliency, scope: Any, golden: Any) -> None:
    task = Prune(saliency=saliency, scope=scope, density=0.3).beside(Blobs(), Tiny())
    unchanged(kept_by(task, trained=trained(toy(epochs=1))), about(golden), Prune, type(saliency))


def test_channels_and_scattered_masks_are_as_recorded() -> None:
    dense = trained(toy(epochs=1))
    channels = PruneChannels(data=Blobs(), architecture=Tiny(), fraction=0.4)
    unchanged(kept_by(channels, trained=dense), [18, 224, 28], PruneChannels)
    mask = Finished({}, Prune(density=0.3).run(Watch(), trained=dense).files)
    unchanged(kept_by(ShuffleMask(scope="global"), mask=mask), [6, 177, 12], ShuffleMask)


@pytest.mark.parametrize(
    ("sparsifier", "golden"),
    [
        (Gradual(density=0.3, every=2), [18, 1.17912, 1.01746]),
        (ADMM(density=0.3, rho=0.1), [18, 1.49548, 0.79168]),
        (LagrangianDual(density=0.3, rate=1.0), [18, 1.19722, 0.86909]),
        (EarlyBird(density=0.3, window=1, distance=0.4), [12, 1.29054, 1.15689]),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_a_sparsified_training_ends_as_recorded(sparsifier: Sparsifier, golden: Any) -> None:
    step = trained(toy(sparsifier=sparsifier))
    last = history(step)[-1]
    found = [step.metrics["step"], last["train_loss"], last["validation_loss"]]
    unchanged(found, near(golden), Train, type(sparsifier))


def test_learned_scores_end_as_recorded() -> None:
    task = Hydra(
        data=Blobs(),
        architecture=Tiny(),
        optimizer=SGD(learning_rate=0.1),
        batch_size=8,
        density=0.3,
        epochs=2,
        objective=PGD(epsilon=0.1, steps=1),
    )
    metrics = task.run(Watch(), trained=trained(toy(epochs=1))).metrics
    unchanged(metrics["last"]["loss"], near(1.35978), Hydra)


def test_a_distilled_training_ends_as_recorded() -> None:
    step = trained(toy(objective=Distilled(objective=PGD(epsilon=0.1, steps=1))), teacher=trained(toy()))
    last = history(step)[-1]
    unchanged([last["train_loss"], last["validation_loss"]], near([0.82915, 1.31699]), Train, Distilled)
