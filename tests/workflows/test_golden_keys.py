"""Golden keys: a step keeps its name, and what its name leaves unsaid keeps its meaning.

A key names fields that differ from their defaults. So a new field must have a default that changes nothing, and an old
default may change only together with the `version` of its component.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import importlib
import json
from typing import Any

import pytest
import yaml

from cluster.plan import make_plan
from cluster.store import Store
from tasks.component import Component
from workflows.command.recipe import SHIPPED, workflow_from_record

KEYS: dict[str, dict[str, str]] = {
    "evaluate": {
        "content": "5e500da4bdcf2cd6",
        "train": "6cc2dccd95cdabfa833634f4bd6651c8df936a1f12c47d943f21bfe711cf5794",
        "evaluate": "cbe2af5278972e550675a539f09ef438e8aad30c4745cc3851958a155bef0934",
        "merge-outcomes": "36ce9b4544763b302d4f42d9f3014c74272f6d5d2aa4bf6a74a0bc16e168aae1",
        "evaluate-corrupted": "34192c59e200ecabb4be9a24c0c43499e0fb2e085acfa5946ba6d5c09adc3a48",
        "calibrate-attacked": "b69866dde9a9c9f740bab08b8df0c4fe89c5e6d5b424c72e5045e3880e6e7a6b",
        "all": "62d5fb427439c7ff",
    },
    "epsilon-sweep": {
        "content": "f114dade4f459078",
        "train": "04153b7f51717bdaad25c05d28c6fc83a8c3966a2193cf881edfb6117c0ac6e8",
        "evaluate": "8798456a9d75594afdfe10554e28e83d7d1dee915028d844dd005f09e19b98cd",
        "all": "f3275a07ad35840a",
    },
    "over-design": {
        "content": "619cc327e641789c",
        "train": "bba4a3d209607d9d74a7516e45b6f3e8d874d66e216c9f4923e9c532b88446e9",
        "evaluate": "1bd582d6ce0af455a450e987117e210a196abd78632ac122d2334679df715297",
        "all": "d1e5ea9ef9e28919",
    },
    "quickstart": {
        "content": "6265b31a173c6766",
        "train": "9c36d33488c9337a93c488e73f8baa1e76f1bc7b351076f7c2e395fcd072e28f",
        "evaluate": "3be477d4fb660c8e4672f01aaff1e08284df30e182514da061f45dbeafcf7df9",
        "prune": "6944d374ba80702b121f26ecc0ab5eac2faf653f1124725cc95e7001eee41518",
        "shuffle-mask": "d8755fe123ad31632d6370ac0fefcd2d2ec7978300cceacca71eff03998ce8b8",
        "all": "c69e84fc04f8f90d",
    },
    "imp-mnist": {
        "content": "0b22ddeddff5a9b8",
        "train": "c50ba64696df62ea4055ab3e1ad091cf442dcaa87cc3ce6d714736e189bceb17",
        "evaluate": "6e98556c074535637d29b5f38974dfcebdd83dda4afec6cfae33f35e85b2b286",
        "prune": "74db41dcc97cbbc30d126f7e0a3459acd609bc0abb2621f029eed6d914ff99d5",
        "shuffle-mask": "424d87d3c7b512354fefe61a43a4ef8f1e4623abbb62ee14b701789b6d6cb700",
        "all": "14a2ec9479b0449b",
    },
    "imp-cifar10": {
        "content": "d742b01c33eb8eaf",
        "train": "1dbebaef5dd4abc23bb2af0c2a96edda19998c5ad886770f853f269e2ca2f9f8",
        "evaluate": "9179ec51345b82463c9298a6d2f3b09fa2226176b32578bc6df6e8df437ca4b4",
        "prune": "b39ee7246137dff08adbb2a689b0a7eef52be60c6094a732d47222fe3b5d829a",
        "shuffle-mask": "ed0e46a4e9b8ca922e5ebab6bea8345dd7e69ff7cb0b75a9cda04315883f9bb8",
        "all": "c86d80666b5a7ec6",
    },
}
"""For each shipped recipe a digest of its content, its first step of each kind, and a digest of all its steps."""

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
        "output_layer": "include",
        "seed": 0,
    },
    "tasks.pruning.shuffle.ShuffleMask": {"threads": 1, "seed": 0},
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
    },
}


def content_of(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((SHIPPED / f"{name}.yaml").read_text())
    return content


def digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def keys_of(content: dict[str, Any]) -> dict[str, str]:
    """The first key of each kind of step, and a digest over all keys in their order; needs no data."""
    downloading = copy.deepcopy(content)
    if "train" in content and content["train"]["data"]["kind"] != "mnist-mini":
        downloading["train"]["data"]["download"] = True  # no part of the identity, and nothing is loaded here
    workflow = workflow_from_record({"recipe": downloading}, check=False)
    plan = asyncio.run(make_plan(Store.open("memory://"), workflow.run))
    keys: dict[str, str] = {}
    for step in plan.steps:
        keys.setdefault(step.handle.task.kind, step.handle.key)
    return {**keys, "all": digest([step.handle.key for step in plan.steps])}


@pytest.mark.parametrize("name", KEYS)
def test_the_steps_of_a_shipped_recipe_keep_their_keys(name: str) -> None:
    golden = dict(KEYS[name])
    content = content_of(name)
    assert digest(content) == golden.pop("content"), f"recipe {name} was changed: record its content and its keys anew"
    found = keys_of(content)
    changed = [kind for kind in golden if found.get(kind) != golden[kind]]
    assert not changed, (
        f"steps of {name} have other keys ({', '.join(changed)}), so nothing stored is found: a new field needs a "
        f"default that changes nothing; if a `version` was raised, record {found}"
    )


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
