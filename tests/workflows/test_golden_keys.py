"""Golden keys: a step keeps its name, and what its name leaves unsaid keeps its meaning.

A key names fields that differ from their defaults. So a new field must have a default that changes nothing, and an old
default may change only together with the `version` of its component.
"""

from __future__ import annotations

import asyncio
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
    "quickstart": {
        "content": "6265b31a173c6766",
        "train": "9c36d33488c9337a93c488e73f8baa1e76f1bc7b351076f7c2e395fcd072e28f",
        "evaluate": "7c7c2eb847abf667e77c18163229da55f66d93a822097e191598f56e5348f1be",
        "prune": "6944d374ba80702b121f26ecc0ab5eac2faf653f1124725cc95e7001eee41518",
        "shuffle-mask": "d8755fe123ad31632d6370ac0fefcd2d2ec7978300cceacca71eff03998ce8b8",
        "all": "571f73ce2b312d78",
    },
    "imp-mnist": {
        "content": "0b22ddeddff5a9b8",
        "train": "c50ba64696df62ea4055ab3e1ad091cf442dcaa87cc3ce6d714736e189bceb17",
        "evaluate": "4226cd90ad491af86bbd2ddc965d46e8a11c948371f7dd597b6c2ed9d23f3247",
        "prune": "74db41dcc97cbbc30d126f7e0a3459acd609bc0abb2621f029eed6d914ff99d5",
        "shuffle-mask": "424d87d3c7b512354fefe61a43a4ef8f1e4623abbb62ee14b701789b6d6cb700",
        "all": "7ac74a5ff1b79799",
    },
    "imp-cifar10": {
        "content": "d742b01c33eb8eaf",
        "train": "1dbebaef5dd4abc23bb2af0c2a96edda19998c5ad886770f853f269e2ca2f9f8",
        "evaluate": "ff3e0a036c8434cae565c3468d8b039240ef6a15fe4904a5fcf2b1ccc36a0409",
        "prune": "b39ee7246137dff08adbb2a689b0a7eef52be60c6094a732d47222fe3b5d829a",
        "shuffle-mask": "ed0e46a4e9b8ca922e5ebab6bea8345dd7e69ff7cb0b75a9cda04315883f9bb8",
        "all": "65b2529cae558190",
    },
}
"""For each shipped recipe a digest of its content, its first step of each kind, and a digest of all its steps."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "tasks.attacks.Attack": {"norm": "linf"},
    "tasks.attacks.pgd.PGD": {"steps": 20, "relative_step": None, "restarts": 1},
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
        "seed": 0,
    },
    "tasks.models.mobilenet.MobileNetV2": {"small_images": True},
    "tasks.models.resnet.ResNet18": {"small_images": True},
    "tasks.models.resnet_cifar.ResNet20": {"width": 16},
    "tasks.models.vit.ViT": {"patch": 4, "dim": 192, "depth": 6, "heads": 3, "dropout": 0},
    "tasks.models.wide_resnet.WideResNet": {"depth": 28, "widen_factor": 10, "dropout": 0},
    "tasks.objectives.pgd.PGD": {"steps": 10, "relative_step": None, "norm": "linf"},
    "tasks.objectives.standard.Standard": {"label_smoothing": 0},
    "tasks.objectives.trades.TRADES": {"steps": 10, "relative_step": None, "norm": "linf", "beta": 6},
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
    },
}


def content_of(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((SHIPPED / f"{name}.yaml").read_text())
    return content


def digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def keys_of(content: dict[str, Any]) -> dict[str, str]:
    """The first key of each kind of step, and a digest over all keys in their order; needs no data."""
    downloading = {**content, "train": {**content["train"], "data": {**content["train"]["data"]}}}
    if content["train"]["data"]["kind"] != "mnist-mini":
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
