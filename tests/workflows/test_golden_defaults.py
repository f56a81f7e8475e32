"""Golden defaults: what the name of a step leaves unsaid keeps its meaning.

A key names fields that differ from their defaults, so an old default may change only together with the `version` of its
component.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from tasks.component import Component

DEFAULTS: dict[str, dict[str, Any]] = {
    "tasks.attacks.Attack": {"norm": "linf"},
    "tasks.attacks.pgd.PGD": {"steps": 20, "relative_step": None, "restarts": 1, "eot": 1},
    "tasks.attacks.apgd.APGD": {"steps": 100, "restarts": 1, "rho": 0.75, "eot": 1, "loss": "ce"},
    "tasks.attacks.apgd_t.APGDT": {"steps": 100, "restarts": 1, "rho": 0.75, "eot": 1, "targets": 9},
    "tasks.attacks.autoattack.AutoAttack": {"suite": "standard"},
    "tasks.attacks.cw.CarliniWagner": {
        "norm": "l2",
        "searches": 9,
        "steps": 10000,
        "learning_rate": 0.01,
        "first_weight": 0.001,
    },
    "tasks.attacks.ddn.DDN": {"norm": "l2", "steps": 100, "first_radius": 1.0, "gamma": 0.05, "levels": None},
    "tasks.attacks.deepfool.DeepFool": {"norm": "l2", "steps": 50, "overshoot": 0.02, "candidates": 10},
    "tasks.attacks.fab.FAB": {
        "steps": 100,
        "restarts": 1,
        "alpha_max": 0.1,
        "eta": 1.05,
        "beta": 0.9,
        "start_radius": None,
    },
    "tasks.attacks.fab_t.FABT": {
        "steps": 100,
        "restarts": 1,
        "alpha_max": 0.1,
        "eta": 1.05,
        "beta": 0.9,
        "start_radius": None,
        "targets": 9,
    },
    "tasks.attacks.fgsm_rs.FGSMRS": {"relative_step": 1.25},
    "tasks.attacks.fmn.FMN": {"steps": 100, "step": 1.0, "gamma": 0.05},
    "tasks.attacks.krylov.Krylov": {"steps": 1, "relative_step": 1.0, "dimension": 3},
    "tasks.attacks.mi_fgsm.MIFGSM": {"steps": 10, "decay": 1.0},
    "tasks.attacks.random_noise.RandomNoise": {"points": 100},
    "tasks.attacks.sigma_zero.SigmaZero": {
        "norm": "l0",
        "steps": 1000,
        "step": 1.0,
        "sigma": 0.001,
        "threshold": 0.3,
        "threshold_rate": 0.01,
    },
    "tasks.attacks.square.Square": {"queries": 5000, "restarts": 1, "share": 0.8},
    "tasks.attacks.transfer.Transfer": {"steps": 20, "relative_step": None, "decay": 1.0},
    "tasks.measuring.corrupted.EvaluateCorrupted": {
        "threads": 1,
        "split": "test",
        "weights": "last",
        "severities": [1, 2, 3, 4, 5],
        "examples": None,
        "seed": 0,
    },
    "tasks.measuring.calibrate.CalibrateAttacked": {
        "threads": 1,
        "split": "test",
        "weights": "last",
        "norm": "linf",
        "steps": 20,
        "examples": None,
        "seed": 0,
    },
    "tasks.measuring.merge.MergeOutcomes": {"threads": 1, "attacks": [], "votes": 1},
    "tasks.objectives.fgsm_rs.FGSMRS": {"relative_step": 1.25},
    "tasks.models.torchvision.Torchvision": {"mean": None, "std": None},
    "tasks.data.Dataset": {"validation": None, "subset": None, "partition": None, "label_noise": 0, "split_seed": 0},
    "tasks.data.augmentation.crop_flip.CropFlip": {"padding": 4, "flip": 0.5},
    "tasks.data.image_folder.ImageFolder": {"size": None, "colour": "rgb"},
    "tasks.measuring.evaluate.Evaluate": {
        "threads": 1,
        "split": "test",
        "weights": "last",
        "attacks": [],
        "epsilons": [],
        "examples": None,
        "first": 0,
        "count": None,
        "seed": 0,
        "votes": 1,
        "surrogates": {},
        "batch": 128,
        "descend": False,
    },
    "tasks.models.mobilenet.MobileNetV2": {"small_images": True},
    "tasks.models.resnet.ResNet18": {"small_images": True},
    "tasks.models.resnet_cifar.ResNet20": {"width": 16},
    "tasks.models.vit.ViT": {"patch": 4, "dim": 192, "depth": 6, "heads": 3, "dropout": 0},
    "tasks.models.wide_resnet.WideResNet": {"depth": 28, "widen_factor": 10, "dropout": 0},
    "tasks.objectives.pgd.PGD": {"steps": 10, "relative_step": None, "norm": "linf"},
    "tasks.objectives.standard.Standard": {"label_smoothing": 0},
    "tasks.objectives.trades.TRADES": {"steps": 10, "relative_step": None, "norm": "linf", "beta": 6},
    "tasks.objectives.adversarial.Adversarial": {"norm": "linf", "budget": {"kind": "fixed"}},
    "tasks.objectives.adversarial.Iterated": {"steps": 10, "relative_step": None},
    "tasks.budgets.adaptive.Adaptive": {"levels": 4, "eta": 1.0, "rate": 0.1},
    "tasks.budgets.curriculum.Curriculum": {"stages": 5, "over": 0.6},
    "tasks.budgets.per_example.PerExample": {"first": 0.0, "growth": 0.1, "shrinkage": 0.1, "floor": 0.0},
    "tasks.budgets.ramp.Ramp": {"first": 0.0, "over": 0.6},
    "tasks.objectives.awp.AWP": {"gamma": 0.01, "warmup": 0},
    "tasks.objectives.fgsm.FGSM": {"relative_step": 1.0},
    "tasks.objectives.free.Free": {"replay": 8, "relative_step": 1.0},
    "tasks.objectives.grad_align.GradAlign": {"weight": 0.2},
    "tasks.objectives.interpolated.Interpolated": {"alpha": 1.0},
    "tasks.objectives.mart.MART": {"beta": 5.0},
    "tasks.training.guard.Guard": {
        "every": 100,
        "drop": 0.2,
        "attack": {"kind": "pgd", "version": 2, "steps": 10},
        "epsilon": None,
        "examples": 256,
    },
    "tasks.training.robust_validation.RobustValidation": {
        "attack": {"kind": "pgd", "version": 2, "steps": 10},
        "epsilon": None,
        "examples": 1000,
        "patience": None,
    },
    "tasks.models.quantised.Quantised": {"gradient": "straight-through"},
    "tasks.analysis.sensitivity.FilterSensitivity": {
        "threads": 1,
        "split": "test",
        "weights": "last",
        "attack": {"kind": "pgd", "version": 2},
        "examples": None,
        "seed": 0,
    },
    "tasks.optimizers.adam.Adam": {
        "learning_rate": 0.001,
        "beta1": 0.9,
        "beta2": 0.999,
        "epsilon": 1e-8,
        "weight_decay": 0,
    },
    "tasks.optimizers.adamw.AdamW": {
        "learning_rate": 0.001,
        "beta1": 0.9,
        "beta2": 0.999,
        "epsilon": 1e-8,
        "weight_decay": 0.01,
    },
    "tasks.optimizers.sgd.SGD": {"learning_rate": 0.1, "momentum": 0, "weight_decay": 0, "nesterov": False},
    "tasks.pruning.prune.Prune": {
        "threads": 1,
        "saliency": {"kind": "magnitude"},
        "scope": "global",
        "fraction": None,
        "density": None,
        "output_layer": "include",
        "rounds": None,
        "seed": 0,
        "data": None,
        "architecture": None,
    },
    "tasks.pruning.shuffle.ShuffleMask": {"threads": 1, "scope": "layerwise", "seed": 0},
    "tasks.schedules.Schedule": {"warmup": 0},
    "tasks.schedules.cosine.Cosine": {"final": 0},
    "tasks.schedules.one_cycle.OneCycle": {"warmup": 0.3, "first": 0.04, "final": 4e-6},
    "tasks.schedules.step.Step": {"milestones": [0.5, 0.75], "drop": 0.1},
    "tasks.training.train.Train": {
        "threads": 1,
        "initialiser": "default",
        "objective": {"kind": "standard"},
        "schedule": {"kind": "constant"},
        "stop_at": None,
        "schedule_from": "start",
        "rewind_optimizer": False,
        "batch_size": 128,
        "augmentation": {"kind": "none"},
        "seed": 0,
        "init_seed": 0,
        "validate_every": 1,
        "precision": "fp32",
        "compile": False,
        "channels_last": False,
        "robust_validation": None,
        "guard": None,
        "sparsifier": None,
    },
    "tasks.analysis.alignment.Align": {
        "threads": 1,
        "matching": {"kind": "weight-matching"},
        "weights": "last",
        "seed": 0,
    },
    "tasks.analysis.interpolation.Interpolate": {
        "threads": 1,
        "split": "test",
        "weights": "last",
        "points": 30,
        "examples": None,
        "recalibrate": None,
        "seed": 0,
    },
    "tasks.analysis.matching.activation_matching.ActivationMatching": {"examples": 1000},
    "tasks.analysis.matching.weight_matching.WeightMatching": {"sweeps": 100},
    "tasks.analysis.ticket.DescribeTicket": {"threads": 1, "weights": "last"},
    "tasks.objectives.distilled.Distilled": {"objective": {"kind": "standard"}, "alpha": 0.5, "temperature": 1.0},
    "tasks.pruning.channels.PruneChannels": {
        "threads": 1,
        "norm": "l1",
        "scope": "layerwise",
        "fraction": None,
        "density": None,
    },
    "tasks.pruning.compact.Compact": {"threads": 1, "examples": 256},
    "tasks.pruning.gap.GAP": {
        "variant": "global",
        "norm": "linf",
        "steps": 10,
        "relative_step": 0.1275,
        "examples": None,
    },
    "tasks.pruning.grasp.GraSP": {"per_class": 10, "temperature": 200},
    "tasks.pruning.hydra.Hydra": {
        "threads": 1,
        "objective": {"kind": "standard"},
        "schedule": {"kind": "constant"},
        "batch_size": 128,
        "augmentation": {"kind": "none"},
        "seed": 0,
    },
    "tasks.pruning.intersect.IntersectMasks": {"threads": 1, "spared": []},
    "tasks.pruning.magnitude_gradient.MagnitudeGradient": {"examples": None},
    "tasks.pruning.snip.SNIP": {"examples": 128},
    "tasks.pruning.sparsifiers.admm.ADMM": {
        "scope": "global",
        "output_layer": "include",
        "rho": 0.001,
        "growth": 1.3,
        "largest": 1.0,
        "every": 1,
    },
    "tasks.pruning.sparsifiers.early_bird.EarlyBird": {
        "scope": "global",
        "output_layer": "include",
        "distance": 0.25,
        "window": 5,
        "every": 1.0,
    },
    "tasks.pruning.sparsifiers.gradual.Gradual": {
        "scope": "global",
        "output_layer": "include",
        "saliency": {"kind": "magnitude"},
        "begin": 0.0,
        "end": 0.75,
        "every": 100,
        "seed": 0,
    },
    "tasks.pruning.sparsifiers.lagrangian_dual.LagrangianDual": {
        "scope": "global",
        "output_layer": "include",
        "rate": 0.1,
        "mass": "squared",
    },
    "tasks.measuring.latency.MeasureLatency": {"threads": 1, "weights": "last", "batch": 1, "repeats": 15, "gpus": 0},
    "tasks.models.robust_wide_resnet.RobustWideResNet": {"depths": [2, 2, 2], "widths": [5, 5, 2], "dropout": 0},
    "tasks.training.fresh_head.FreshHead": {"threads": 1, "initialiser": "default", "init_seed": 0},
}


@pytest.mark.parametrize("path", DEFAULTS)
def test_a_default_keeps_its_meaning(path: str) -> None:
    module, name = path.rsplit(".", 1)
    component = getattr(importlib.import_module(module), name)
    found = {field: default_of(component, field) for field in DEFAULTS[path]}
    assert found == DEFAULTS[path], (
        f"a default changed, and steps that leave the field out keep their keys: raise `version` of {path}, or restore "
        "the behaviour"
    )


def default_of(component: type[Component], field: str) -> Any:
    if field not in component.model_fields:
        return "the field is gone"
    default = component.model_fields[field].get_default(call_default_factory=True)
    if isinstance(default, Component):
        return default.identity()
    return list(default) if isinstance(default, tuple) else default
