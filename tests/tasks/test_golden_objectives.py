"""Golden results of adversarial objectives and budgets: they may change only together with their `version`."""

from __future__ import annotations

import pytest

from tasks.budgets.adaptive import Adaptive
from tasks.budgets.curriculum import Curriculum
from tasks.budgets.per_example import PerExample
from tasks.budgets.ramp import Ramp
from tasks.objectives import Objective
from tasks.objectives.awp import AWP
from tasks.objectives.fgsm import FGSM
from tasks.objectives.fgsm_rs import FGSMRS
from tasks.objectives.free import Free
from tasks.objectives.grad_align import GradAlign
from tasks.objectives.half_clean import HalfClean
from tasks.objectives.interpolated import Interpolated
from tasks.objectives.mart import MART
from tasks.objectives.pgd import PGD
from tasks.optimizers.sgd import SGD
from tasks.training.train import Train
from tests.tasks.test_golden import near, three_steps, unchanged


@pytest.mark.parametrize(
    ("objective", "golden"),
    [
        (FGSM(epsilon=0.3), [1.51357, 1.37235]),
        (FGSMRS(epsilon=0.3), [1.52009, 1.38259]),
        (Free(epsilon=0.3, replay=2), [1.46477, 1.36005]),
        (GradAlign(epsilon=0.3), [1.59709, 1.37608]),
        (HalfClean(epsilon=0.3, steps=3), [1.5017, 1.37293]),
        (Interpolated(epsilon=0.3, steps=3), [1.46653, 1.37072]),
        (Interpolated(epsilon=0.3, steps=3, alpha=0.5), [1.47358, 1.36624]),
        (MART(epsilon=0.3, steps=3), [1.95593, 1.38]),
        (AWP(objective=PGD(epsilon=0.3, steps=3), gamma=0.05), [1.63121, 1.38667]),
        (PGD(epsilon=0.3, steps=3, budget=Ramp()), [1.52322, 1.36627]),
        (PGD(epsilon=0.3, steps=3, budget=Curriculum(stages=3)), [1.52596, 1.38062]),
        (PGD(epsilon=0.3, steps=3, budget=Adaptive()), [1.485, 1.36374]),
        (PGD(epsilon=0.3, steps=3, budget=PerExample(first=0.5)), [1.51052, 1.37669]),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_three_steps_of_training_end_as_recorded(objective: Objective, golden: list[float]) -> None:
    found = three_steps(objective=objective, optimizer=SGD(learning_rate=0.2, momentum=0.9))
    inside = [getattr(objective, name) for name in ("objective", "budget") if hasattr(objective, name)]
    unchanged(found, near(golden), Train, type(objective), *map(type, inside))
