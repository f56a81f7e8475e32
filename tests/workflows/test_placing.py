"""`--place` on the command line: mistakes are told before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.placement import GB, Machine, parse_rules
from cluster.plan import Plan
from cluster.profiles import Placing
from cluster.store import Store
from tasks.measuring.latency import MeasureLatency
from tests.workflows.conftest import SMALL, write_recipe
from workflows.command import cli
from workflows.command.launch import plan_of
from workflows.command.placing import check_rules, idle_rules, refuse_impossible, rules_of
from workflows.command.recipe import BadRequest, load_recipe


def planned(folder: Path, content: Any = SMALL) -> list[Any]:
    plan: Plan = plan_of(load_recipe(str(write_recipe(folder, content))), Store.open(str(folder / "store")))
    return [step.handle.task for step in plan.to_run]


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("gpus=lots", "--place gpus=lots: 'lots' is no gpus; allowed: 0, a fraction"),
        ("trian:memory=8", "--place trian:memory=8: no step is of the kind 'trian'; did you mean train?"),
        ("train:gpus=64", "train.gpus: 64 asked for, but this machine has "),
        ("memory", "--place memory: allowed is [KIND:]NAME=VALUE"),
        (["gpus=1", "gpus=0.5"], "--place gpus=0.5: another says gpus=1; leave one out"),
        (["train:zone=a", "train:zone=b"], "--place train:zone=b: another says train:zone=a; leave one out"),
    ],
)
def test_a_wrong_place_is_one_line_and_exit_code_2(tmp_path: Path, place: str | list[str], reason: str) -> None:
    recipe = str(write_recipe(tmp_path))
    command = ["run", recipe, "--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]
    for each in [place] if isinstance(place, str) else place:
        command += ["--place", each]
    ended = CliRunner().invoke(cli.app, command)
    assert isinstance(ended.exception, BadRequest)
    assert str(ended.exception).startswith(reason)
    assert "\n" not in str(ended.exception)
    assert list(Store.open(str(tmp_path / "store")).paths("runs")) == []


def test_every_kind_of_step_may_be_named() -> None:
    named = rules_of(["train:memory=8", "evaluate:zone=a", "prune:memory=auto", "memory=2"])
    assert [rule.kind for rule in named] == ["", "train", "evaluate", "prune"]


def test_steps_whose_numbers_depend_on_their_gpus_keep_them(tmp_path: Path) -> None:
    timed = MeasureLatency.model_validate({"data": "mnist-mini", "architecture": "lenet-300-100", "gpus": 1})
    assert Placing(rules_of(["gpus=auto"])).needs(timed).gpus == 1
    with pytest.raises(BadRequest, match="the gpus of `latency` are part of what it computes"):
        check_rules(Placing(rules_of(["latency:gpus=0.5"])), [timed])


def test_a_rule_about_gpus_where_no_step_asks_for_one_is_said_to_change_nothing(tmp_path: Path) -> None:
    (line,) = idle_rules(parse_rules(["gpus=0.5", "memory=4", "train:gpus=1"]), planned(tmp_path))
    assert line.startswith("--place gpus=0.5: no step asks for a GPU")
    assert idle_rules(parse_rules(["gpus=0.5"]), []) == []  # all is stored


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("zone=b", "train: no node has label zone=b: nodes have a"),
        ("train:memory=32", "train: needs 32 GB: the largest node has 16 GB"),
    ],
)
def test_what_the_only_node_can_never_run_is_refused(tmp_path: Path, place: str, reason: str) -> None:
    here = [Machine({"CPU": 2, "memory": 16 * GB}, {"zone": "a"})]
    tasks = planned(tmp_path)
    refuse_impossible(Placing(parse_rules(["zone=a", "memory=16"])), tasks, here)
    with pytest.raises(BadRequest) as error:
        refuse_impossible(Placing(parse_rules([place])), tasks, here)
    assert str(error.value) == reason
