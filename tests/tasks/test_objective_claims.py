"""What the papers say of their objectives, as far as minutes on one core can show it.

Two that did not reproduce are absent. Gradient alignment did not reliably keep one-step training from catastrophic
overfitting. At epsilon 0.3, one run each with weights 0.2 and 2, at learning rates 5e-3 and 1e-3 and with a ramp, ended
with at most 1 % under PGD-40 or as a constant. At 0.2, with weight 0.2, six runs of 4 and of 8 epochs kept 17, 0, 37,
63, 44 and 3 %, and FGSM training without it 5, 2, 42, 18, 4 and 4. Interpolated training was behind its half-clean
control: 96 % on clean digits and 74 under PGD-40 at epsilon 0.2, against 97 and 82, in two runs of 6 epochs.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch.nn import functional as F

from tasks.attacks import Attack, fgsm, pgd
from tasks.attacks.ascent import ascend, cross_entropy_gradient
from tasks.attacks.ball import ball
from tasks.attacks.draws import Draws
from tasks.budgets.ramp import Ramp
from tasks.data import Dataset
from tasks.data.mnist import Mnist
from tasks.models.small_cnn import SmallCNN
from tasks.models.weights import restore
from tasks.objectives import Objective
from tasks.objectives.fgsm import FGSM
from tasks.objectives.fgsm_rs import FGSMRS
from tasks.objectives.free import Free
from tasks.objectives.pgd import PGD
from tasks.objectives.standard import Standard
from tasks.objectives.trades import TRADES
from tasks.optimizers.adam import Adam
from tasks.schedules.one_cycle import OneCycle
from tasks.seeds import generator
from tasks.task import Alone
from tasks.training.train import Train
from tests.tasks import digits
from tests.tasks.training_toys import Tiny, toy
from tests.tasks.training_toys import trained as trained_toy

pytestmark = pytest.mark.usefixtures("one_thread")

ONE_STEP, MANY_STEPS = fgsm.FGSM(), pgd.PGD(steps=40)


class Standing:
    """A small network trained on digits, and how many of the first 1000 test digits it gets right, in percent."""

    def __init__(self, objective: Objective, epochs: int, data: Dataset = digits.DATA, seed: int = 0) -> None:
        task = Train(
            data=data,
            architecture=SmallCNN(),
            objective=objective,
            optimizer=Adam(learning_rate=5e-3),
            schedule=OneCycle(warmup=0.4),
            epochs=epochs,
            seed=seed,
            init_seed=seed,
        )
        self.model = SmallCNN().build(data.signature())
        restore(self.model, task.run(Alone()).files["weights.safetensors"])
        self.model.eval().requires_grad_(False)
        test = data.load("test")
        self.images, self.labels = test.images[:1000].float() / 255, test.labels[:1000]

    def clean(self) -> float:
        return 100 * digits.accuracy(self.model, self.images, self.labels)

    def against(self, attack: Attack, epsilon: float) -> float:
        draws = Draws(0, torch.arange(len(self.images)))
        perturbed = attack.perturb(self.model, self.images, self.labels, epsilon, draws)
        return 100 * digits.accuracy(self.model, perturbed, self.labels)


def mnist() -> Dataset:
    if "HEDGEROW_DATA" not in os.environ:
        pytest.skip("HEDGEROW_DATA names no folder with MNIST")
    return Mnist(validation=1000, subset=20000)


def test_trades_without_beta_is_standard_training_with_the_same_digest() -> None:
    fields = {"architecture": Tiny(dropout=0.5, norm=True), "augmentation": "crop-flip"}
    standard, none, some = (
        trained_toy(toy(objective=objective, **fields)).metrics["digest"]
        for objective in (Standard(), TRADES(epsilon=0.1, beta=0), TRADES(epsilon=0.1, beta=1))
    )
    assert standard == none != some


def test_the_best_step_is_one_share_of_the_radius_whatever_the_radius() -> None:
    """Kinfu & Vidal 2022: it is linear in epsilon. Three nets had it at 0.2, 0.4 and 0.4 of all four radii."""
    grid = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
    model = digits.net("standard")
    images, labels = digits.pixels(500)
    best = []
    for epsilon in (0.05, 0.1, 0.2, 0.3):
        losses = []
        for share in grid:
            noise = torch.rand(images.shape, generator=generator("start")).mul_(2).sub_(1)
            start = (images + epsilon * noise).clamp_(0, 1)
            within = ball("linf", images, epsilon)
            end = ascend(cross_entropy_gradient(model, labels), start, within, share * epsilon, 10)
            losses.append(F.cross_entropy(model(end), labels).item())
        best.append(grid[losses.index(max(losses))])
    assert set(best) <= {0.1, 0.2, 0.4}
    assert max(best) <= 2 * min(best)


def test_fgsm_training_withstands_one_step_and_no_more() -> None:
    """Catastrophic overfitting: three runs had 84, 87 and 95 % against FGSM and 0.0 % against PGD-40."""
    standing = Standing(FGSM(epsilon=0.3), epochs=8)
    assert standing.clean() > 80
    assert standing.against(ONE_STEP, 0.3) > 60
    assert standing.against(MANY_STEPS, 0.3) < 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_random_start_keeps_some_of_what_fgsm_training_loses(seed: int) -> None:
    """Wong et al. 2020. Three runs kept 17, 56 and 71 % under PGD-40: it softens the fall, and does not prevent it."""
    data = mnist()
    from_image, from_anywhere = (
        Standing(objective, 4, data, seed) for objective in (FGSM(epsilon=0.3), FGSMRS(epsilon=0.3))
    )
    assert from_image.against(ONE_STEP, 0.3) > 60
    assert from_image.against(MANY_STEPS, 0.3) < 1
    assert from_anywhere.against(MANY_STEPS, 0.3) > 10


@pytest.mark.slow
def test_free_training_withstands_many_steps_for_the_price_of_one() -> None:
    """Shafahi et al. 2019: three runs had 97 % on clean digits and 74 to 78 under PGD-40."""
    standing = Standing(Free(epsilon=0.3, replay=4), epochs=16)
    assert standing.clean() > 94
    assert standing.against(MANY_STEPS, 0.3) > 60


@pytest.mark.slow
def test_beta_trades_accuracy_for_robustness() -> None:
    """Zhang et al. 2019: three runs lost 1.4 to 2.2 points on clean digits and won 4.2 to 6.9 under PGD-40."""
    accurate, robust = (Standing(TRADES(epsilon=0.2, steps=7, beta=beta), epochs=5) for beta in (1.0, 6.0))
    assert accurate.clean() > robust.clean() + 0.5
    assert robust.against(MANY_STEPS, 0.2) > accurate.against(MANY_STEPS, 0.2) + 2


@pytest.mark.slow
def test_training_at_half_the_attacks_radius_costs_robustness() -> None:
    """Sridhar et al. 2022: at 0.2 two runs had 23 and 25 %, not 79 and 82; at 0.1 three lost 4.8 to 5.9 points."""
    half, whole = (
        Standing(PGD(epsilon=epsilon, steps=7, budget=Ramp()), epochs=5).against(MANY_STEPS, 0.2)
        for epsilon in (0.1, 0.2)
    )
    assert whole > half + 5
