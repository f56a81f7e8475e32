"""What cannot be evaluated is one line before any work starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.ledger import Ledger
from cluster.store import Store
from tasks.data.mnist_mini import MnistMini
from tests.workflows.evaluations import TRAIN, recipe
from workflows.command.launch import plan_of
from workflows.command.recipe import BadRequest


def publish(store: Store, key: str, task: Mapping[str, Any], *files: str, **metrics: Any) -> str:
    ledger = Ledger(store)
    lease = ledger.lease(key, "attempt")
    assert lease is not None
    ledger.publish(lease, dict.fromkeys(files, b""), {"task": task, "inputs": {}, "metrics": metrics})
    return key


def test_what_a_manifest_does_not_say_must_be_given(disk: Store, tmp_path: Path) -> None:
    folder = {"kind": "image-folder", "size": 28, "colour": "grey", "fingerprint": "0" * 64}
    task = {"kind": "train", "data": folder, "architecture": {"kind": "lenet-300-100"}}
    key = publish(disk, "ab" * 32, task, "weights.safetensors", parameters=266_610)
    mine: dict[str, Any] = {"kind": "stored", "step": key}
    small = {"attacks": ["fgsm"], "corruptions": [], "calibrate": False}
    with pytest.raises(BadRequest) as refusal:
        plan_of(recipe(tmp_path, models={"mine": mine}, **small), disk)
    assert str(refusal.value) == (
        "recipe small: models.mine: step abababababab is a 'train' on data that are not known here; give `data`: "
        "image-folder: root: Field required"
    )
    mine["data"] = "mnist-mini"
    assert len(plan_of(recipe(tmp_path, models={"mine": mine}, **small), disk).to_run) == 4


@pytest.mark.parametrize(
    ("task", "files", "message"),
    [
        (
            {"kind": "prune"},
            ["mask.safetensors"],
            "is a 'prune': it holds no network; give the key of a training or of an",
        ),
        ({"kind": "train", "architecture": "x"}, ["history.jsonl"], "is a 'train': it holds no network"),
        (
            {"kind": "train", "architecture": {"kind": "lenet-300", "version": 2}},
            ["weights.safetensors"],
            "of an architecture that is not known here: lenet-300: no architecture is called 'lenet-300'; did you mean",
        ),
        (
            {"kind": "train", "architecture": {"kind": "lenet-300-100", "version": 7}},
            ["weights.safetensors"],
            "not known here: lenet-300-100: the content or the version differs from that of the step",
        ),
        (
            {
                "kind": "train",
                "architecture": {"kind": "lenet-300-100"},
                "data": {"kind": "mnist-mini", "fingerprint": "0" * 64},
            },
            ["weights.safetensors"],
            "on data that are not known here; give `data`: mnist-mini: the content or the version differs",
        ),
    ],
)
def test_a_step_that_holds_no_network_of_ours_is_refused_in_a_line(
    disk: Store, tmp_path: Path, task: dict[str, Any], files: list[str], message: str
) -> None:
    publish(disk, "ab" * 32, task, *files, parameters=1)
    with pytest.raises(BadRequest, match=message) as refusal:
        plan_of(recipe(tmp_path, models={"mine": {"kind": "stored", "step": "abab"}}, attacks=["fgsm"]), disk)
    assert str(refusal.value).startswith("recipe small: models.mine: step abababababab ")
    assert "\n" not in str(refusal.value)


STORED = {"kind": "stored", "step": "abcd"}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"models": {}}, "recipe small: models: Should have at least 1 item"),
        ({"models": {"A b": TRAIN}}, "recipe small: models.A b.[key]: String should match pattern"),
        ({"models": {"trained": TRAIN}}, "recipe small: no model can be called 'trained'"),
        ({"models": {"mine": {"step": "abcd"}}}, "models.mine: `kind` is missing; allowed: train, import-weights, st"),
        ({"models": {"mine": {"kind": "import"}}}, "no model is of kind 'import'; did you mean 'import-weights'?"),
        ({"models": {"mine": "abcd"}}, "recipe small: models.mine: Input should be a mapping (found 'abcd')"),
        ({"models": {"mine": {**STORED, "stop": 1}}}, "models.mine.stop: unknown field; did you mean 'step'?"),
        ({"models": {"mine": {**STORED, "step": 12345678}}}, "put the key in quotes (found 12345678)"),
        ({"models": {"mine": {**STORED, "step": "abc"}}}, "models.mine.step: String should match pattern"),
        (
            {"models": {"mine": STORED}, "attacks": ["fgsm"]},
            "models.mine: no finished step begins with 'abcd'; `hedgerow",
        ),
        (
            {"attacks": [{"kind": "transfer", "source": "three"}]},
            "recipe small: attacks.0.source: no model is called 'three'; allowed: one, two",
        ),
        (
            {"models": {"one": TRAIN}},
            "recipe small: attacks.1: a transfer from 'one' needs another model to attack; there is none",
        ),
        (
            {"attacks": [{"kind": "bpda", "attack": "pgd", "through": ["relu"]}]},
            "recipe small: attacks on one: through: the network has no module 'relu'; did you mean 'relu2'? it has",
        ),
        ({"epsilons": 0.1}, "recipe small: epsilons: Input should be a list (found 0.1)"),
        ({"epsilons": [0.2, 0.1]}, "recipe small: attacks on one: epsilons must rise, but 0.2 is followed by 0.1"),
        ({"epsilons": [-0.1]}, "recipe small: epsilons.0: Input should be greater than 0 (found -0.1)"),
        ({"epsilons": [1.5]}, "recipe small: attacks on one: epsilon is 1.5, but images lie in [0, 1]"),
        ({"epsilons": []}, "recipe small: attacks on one: attacks and epsilons go together"),
        ({"attacks": ["fgsm", {"kind": "pgd", "norm": "l2"}]}, "attacks must share one norm"),
        ({"attacks": [{"kind": "pgd", "norm": "l0"}]}, "pgd attacks in norm "),
        (
            {"attacks": ["sigma-zero"], "epsilons": [1, 2.5], "calibrate": False},
            "recipe small: attacks on one: epsilon is 2.5, but norm l0 counts changed values: a whole number",
        ),
        ({"attacks": [], "epsilons": []}, "recipe small: calibrate: needs attacks and epsilons in norm linf or l2"),
        ({"examples": 3000}, "recipe small: models.one: examples is 3000, but the test split holds 2000"),
        (
            {"models": {"one": {**TRAIN, "data": {"kind": "mnist-mini", "validation": 10000}}}, "attacks": ["fgsm"]},
            "recipe small: models.one: too few training examples: `validation` = 10000",
        ),
        ({"severities": []}, "recipe small: severities: Should have at least 1 item"),
        ({"severities": [2, 1]}, "recipe small: corruptions of one: severities must rise"),
        (
            {"corruptions": ["fog", "fog"]},
            "corruptions of one: corruptions must differ, but fog is given more than once",
        ),
        (
            {
                "models": {"one": {**TRAIN, "architecture": {"kind": "torchvision", "name": "alexnet"}}},
                "attacks": ["fgsm"],
            },
            "recipe small: models.one: torchvision's alexnet does not take images of 1x28x28: ",
        ),
        (
            {
                "models": {
                    "one": {
                        "kind": "import-weights",
                        "path": "gone.pt",
                        "data": "mnist-mini",
                        "architecture": "lenet-300-100",
                    }
                },
                "attacks": ["fgsm"],
            },
            "recipe small: models.one: gone.pt: cannot be read: No such file or directory",
        ),
    ],
)
def test_a_mistake_is_one_line_before_any_work_starts(
    disk: Store, tmp_path: Path, changes: dict[str, Any], line: str
) -> None:
    with pytest.raises(BadRequest) as refusal:
        plan_of(recipe(tmp_path, **changes), disk)
    assert line in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_transfer_between_networks_for_other_images_is_refused(tmp_path: Path, disk: Store) -> None:
    part = {"kind": "mnist-mini", "partition": {"kind": "class-ranges", "parts": 2, "index": 0}}
    models = {"one": {**TRAIN, "data": part}, "two": TRAIN}
    with pytest.raises(
        BadRequest, match="from one to two: their images differ: 1x28x28 in 5 classes and 1x28x28 in 10"
    ):
        plan_of(recipe(tmp_path, models=models), disk)


def test_modules_that_a_stored_network_lacks_are_named_before_any_work_starts(disk: Store, tmp_path: Path) -> None:
    task = {"kind": "train", "data": MnistMini().identity(), "architecture": {"kind": "lenet-300-100"}}
    publish(disk, "ab" * 32, task, "weights.safetensors", parameters=266_610)
    lacking = {"kind": "bpda", "attack": "pgd", "through": ["clamp"]}
    fields: dict[str, Any] = {"models": {"mine": STORED | {"step": "abab"}}, "corruptions": [], "calibrate": False}
    with pytest.raises(BadRequest, match=r"^recipe small: attacks on mine: through: the network has no module 'clamp'"):
        plan_of(recipe(tmp_path, **fields, attacks=[lacking]), disk)
    assert plan_of(recipe(tmp_path, **fields, attacks=[{**lacking, "through": ["relu1"]}]), disk).to_run
