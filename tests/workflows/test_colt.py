"""What COLT asks for, round by round, and what it reports; mistakes are found before any work."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from cluster.runs import Finished
from cluster.store import Store
from tasks.data.mnist import Mnist
from tests.workflows.chains import finish_under_fire, results_of
from tests.workflows.colts import content, mask_of, pick, recipe, run_colt
from tests.workflows.conftest import write_recipe
from workflows.command.launch import plan_of
from workflows.command.recipe import BadRequest
from workflows.imp import IMP

HEAD = "body.output.weight"
ARMS = ("iid", "class-ranges")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a store with one finished run; a test may add to the store."""
    return tmp_path_factory.mktemp("colt")


@pytest.fixture(scope="module")
def finished(folder: Path) -> list[Finished]:
    return run_colt(folder)


def rounds_of(finished: list[Finished], arm: str) -> int:
    return max(step.at["round"] for step in finished if step.at.get("arm") == arm and "round" in step.at) + 1


def weights_of(step: Finished) -> dict[str, torch.Tensor]:
    return load(step.step.read("weights.safetensors"))


@pytest.mark.parametrize("arm", ARMS)
def test_a_round_trains_every_part_from_one_start_and_keeps_what_all_keep(finished: list[Finished], arm: str) -> None:
    start = pick(finished, "fresh-head", arm=arm)
    before = None
    for number in range(rounds_of(finished, arm)):
        prunings = []
        for part in range(2):
            trained = pick(finished, "train", arm=arm, round=number, part=part)
            pruned = pick(finished, "prune", arm=arm, round=number, part=part)
            fed = {"start": start.step.key} | ({"mask": before.step.key} if before else {})
            assert trained.step.manifest["inputs"] == fed
            assert trained.step.manifest["task"]["data"]["partition"]["index"] == part
            assert pruned.step.manifest["inputs"]["trained"] == trained.step.key
            prunings.append(mask_of(pruned))
        common = pick(finished, "intersect-masks", arm=arm, round=number)
        assert mask_of(common) == prunings[0] & prunings[1]
        assert before is None or mask_of(common).nested_in(mask_of(before))
        assert mask_of(common).layer_densities[HEAD] == 1, "heads are never pruned"
        assert 0.4 - 1e-3 < common.metrics["survival"] < 0.7 + 1e-3
        before = common


def test_the_parts_of_a_round_see_other_orders_and_all_of_the_data(finished: list[Finished]) -> None:
    tasks = [pick(finished, "train", arm="iid", round=0, part=part).step.manifest["task"] for part in range(2)]
    assert tasks[0]["seed"] != tasks[1]["seed"]
    assert {name for name in tasks[0] if tasks[0][name] != tasks[1][name]} == {"data", "seed"}
    seen = [pick(finished, "train", arm="iid", round=0, part=part).metrics["sample_steps"] for part in range(2)]
    assert sum(seen) == pick(finished, "train", arm="dense").metrics["sample_steps"]


def test_random_pruning_of_the_parts_overlaps_by_chance(tmp_path: Path) -> None:
    """The parts draw by themselves: with the same draws they would agree wholly."""
    prune = {"fraction": 0.3, "output_layer": "exclude", "saliency": "random"}
    fields = {
        "prune": prune,
        "partitions": ["iid"],
        "sparsity": 0.3,
        "beside_imp": False,
        "controls": [],
        "transfer": [],
    }
    (only,) = [step for step in run_colt(tmp_path, **fields) if step.kind == "intersect-masks"]
    assert only.metrics["overlap"] == pytest.approx(0.3, abs=0.01)
    assert only.metrics["survival"] == pytest.approx(0.49, abs=0.01)


def test_everything_begins_at_one_body(finished: list[Finished]) -> None:
    initial = weights_of(pick(finished, "train"))
    starts = [step for step in finished if step.kind == "fresh-head"]
    assert {len(weights_of(step)[HEAD]) for step in starts} == {5, 10}
    for step in starts:
        found = weights_of(step)
        assert all(torch.equal(found[name], initial[name]) for name in found if not name.startswith("body.output."))
    dense, chained = (pick(finished, "train", **at).step for at in ({"arm": "dense"}, {"arm": "imp", "level": 1}))
    tickets = [pick(finished, "train", arm=arm).step for arm in ARMS]
    assert {step.manifest["inputs"]["start"] for step in (dense, chained, *tickets)} == {
        pick(finished, "fresh-head").step.key
    }, "tickets, the chain and the dense network have the same fresh head"


@pytest.mark.parametrize("arm", ARMS)
def test_it_stops_at_the_first_round_that_is_sparse_enough(finished: list[Finished], arm: str) -> None:
    last = rounds_of(finished, arm) - 1
    densities = [pick(finished, "fresh-head", arm=arm, round=number).metrics["density"] for number in range(last + 1)]
    assert densities[-1] <= 0.3 < densities[-2]
    ticket = pick(finished, "train", arm=arm)
    assert ticket.metrics["density"] == densities[-1]
    common = mask_of(pick(finished, "intersect-masks", arm=arm, round=last))
    own = mask_of(ticket)
    assert all(torch.equal(own[name], common[name]) for name in own if name != HEAD)
    assert own[HEAD].shape == (10, 100)
    assert own[HEAD].all()
    weights = weights_of(ticket)
    assert all(not weights[name][~own[name]].any() for name in own)


def test_the_chain_beside_it_is_magnitude_pruning_to_the_same_sparsity(finished: list[Finished]) -> None:
    fields = {name: content()[name] for name in ("train", "prune", "sparsity")}
    chain = IMP.model_validate({"kind": "imp", **fields})
    densities = list(chain.densities(chain.train))
    found = [pick(finished, "prune", arm="imp", level=level).metrics["density"] for level in range(len(densities))]
    assert found == densities
    assert pick(finished, "train", arm="imp", level=len(densities)).metrics["density"] == densities[-1]


def test_tickets_have_their_controls(finished: list[Finished]) -> None:
    for arm in ARMS:
        ticket = pick(finished, "train", arm=arm).step.manifest
        reinit = pick(finished, "train", arm=arm, control="reinit").step.manifest
        assert reinit["inputs"] == {"mask": ticket["inputs"]["mask"]}
        shuffled = pick(finished, "train", arm=arm, control="shuffled").step.manifest
        assert shuffled["task"] == ticket["task"]
        assert shuffled["inputs"]["start"] == ticket["inputs"]["start"]
        masks = [mask_of(pick(finished, "train", arm=arm, **at)) for at in ({}, {"control": "shuffled"})]
        assert masks[0] != masks[1]
        assert masks[0].layer_nnz == masks[1].layer_nnz


def test_tickets_go_to_other_data_with_a_head_of_its_classes(finished: list[Finished]) -> None:
    for arm in (*ARMS, "imp", "dense"):
        there = pick(finished, "train", arm=arm, transfer=0)
        assert len(weights_of(there)[HEAD]) == 5
        if arm != "dense":
            here, own = mask_of(last_mask(finished, arm)), mask_of(there)
            assert all(torch.equal(own[name], here[name]) for name in own if name != HEAD)
            assert own[HEAD].all()
        assert pick(finished, "evaluate", arm=arm, transfer=0).metrics["clean"]["accuracy"] > 0.4


def last_mask(finished: list[Finished], arm: str) -> Finished:
    if arm != "imp":
        return pick(finished, "fresh-head", arm=arm, round=rounds_of(finished, arm) - 1)
    levels = [step.at["level"] for step in finished if step.kind == "prune" and step.at["arm"] == "imp"]
    return pick(finished, "prune", arm="imp", level=max(levels))


def test_a_sparser_run_computes_nothing_of_the_shorter_one_again(folder: Path, finished: list[Finished]) -> None:
    deeper = run_colt(folder, sparsity=0.85)
    before = {step.step.key: step.step.manifest for step in finished}
    shared = {step.step.key: step.step.manifest for step in deeper if step.step.key in before}
    assert shared == {key: before[key] for key in shared}
    again = [step for step in finished if step.step.key not in shared]
    assert {step.at["arm"] for step in again} == {*ARMS, "imp"}
    assert not [step for step in again if "round" in step.at], "every round is found"
    assert not [step for step in again if step.kind == "prune"]
    assert rounds_of(deeper, "iid") > rounds_of(finished, "iid")


LONGER: dict[str, Any] = {
    "train__data": {"kind": "mnist-mini", "validation": 200, "subset": 3000},
    "train__objective": {"kind": "pgd", "epsilon": 0.1, "steps": 2},
    "sparsity": 0.5,
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """Results and report of a run without Ray that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    report = recipe(folder, **LONGER).workflow.report(run_colt(folder, **LONGER))
    return results_of(folder), report.record()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(3))
def test_killed_and_run_again_it_ends_with_the_bytes_of_an_undisturbed_run(
    seed: int, undisturbed: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    write_recipe(tmp_path, content(**LONGER), "chain")
    assert finish_under_fire(tmp_path, seed, kills=3), "no kill struck: the schedule tests nothing"
    results, report = undisturbed
    assert results_of(tmp_path) == results
    (found,) = tmp_path.glob("out/*/results.json")
    assert json.loads(found.read_text()) == report


def test_the_report_sets_every_way_to_a_ticket_beside_the_chain(folder: Path, finished: list[Finished]) -> None:
    report = recipe(folder).workflow.report(finished)
    assert [row[0] for row in report.rows] == ["dense", "COLT iid", "COLT class-ranges", "IMP"]
    assert all(cell for row in report.rows[1:] for cell in row)
    effort, other = report.sections
    assert [row[0] for row in effort.rows] == ["COLT iid", "COLT class-ranges", "IMP"]
    assert [row[2] for row in effort.rows][-1] == "1.00"
    assert [row[0] for row in other.rows] == [row[0] for row in report.rows]
    searches = {each["arm"]: each for each in report.results if each["what"] == "search"}
    epoch = pick(finished, "train", arm="dense").metrics["sample_steps"]
    for arm in (*ARMS, "imp"):
        assert searches[arm]["sample_steps"] == searches[arm]["rounds"] * epoch, "a round costs as much as a level"
    assert [len(curve.points) - 1 for curve in report.curves] == [searches[arm]["rounds"] for arm in (*ARMS, "imp")]
    assert recipe(folder).workflow.report(finished[::-1]).record() == report.record()


def test_a_report_on_what_is_there_so_far_does_not_fail(folder: Path, finished: list[Finished]) -> None:
    for count in range(0, len(finished), 7):
        recipe(folder).workflow.report(finished[:count]).view()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parts": 1}, "parts: .*greater than or equal to 2"),
        ({"parts": 3}, "parts: 3 class ranges of 10 classes need output layers of different sizes.*allowed: 2, 5, 10"),
        ({"parts": 12}, "parts: 12 class ranges cannot be made of 10 classes; allowed: 1 to 10"),
        ({"parts": 401, "partitions": ["iid"]}, "partitions: iid: the train split is empty"),
        ({"partitions": []}, "partitions: give at least one"),
        ({"partitions": ["iid", "iid"]}, "partitions: give at least one, and each only once"),
        ({"partitions": ["by-colour"]}, r"partitions.0: Input should be 'class-ranges', 'iid' or 'stratified'"),
        ({"sparsity": 0.999}, "sparsity: sparsity 0.999 is out of reach; pruning ends at level"),
        ({"prune": {"fraction": 0.2}}, "prune.output_layer: include .output layers are drawn anew.*allowed: exclude"),
        ({"prune": {"density": 0.2, "output_layer": "exclude"}}, "prune.density: .*give prune.fraction"),
        (
            {"prune": {"fraction": 0.2, "output_layer": "exclude", "scope": "erk"}},
            "prune.scope: erk .*allowed: global, layerwise",
        ),
        ({"train__stop_at": 3}, "train.stop_at: every training goes from the shared initial weights to its end"),
        ({"train__rewind_optimizer": True}, "train.rewind_optimizer: every training goes"),
        (
            {"train__data": {"kind": "mnist-mini", "partition": {"kind": "iid", "parts": 2, "index": 0}}},
            "train.data.partition: the data are divided by `partitions`",
        ),
        ({"train__data": {"kind": "mnist-mini", "validation": 0}}, "train.data: the validation split is empty"),
        (
            {"train__data": {"kind": "mnist-mini", "validation": 1}},
            "partitions: class-ranges: the validation split is empty",
        ),
        ({"examples": 100_000}, "examples is 100000, but the test split holds 2000"),
        ({"examples": 1500}, "transfer.0: examples is 1500, but the test split holds 9"),
        ({"attacks": [{"kind": "transfer", "source": "x"}]}, "attacks.0: a transfer takes images from another network"),
        (
            {"train__objective": {"kind": "grad-align", "epsilon": 0.1}, "train__compile": True},
            "train: compile: grad-align needs second derivatives",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_mistake_is_one_line(changes: dict[str, Any], words: str, disk: Store, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=words) as refusal:
        plan_of(recipe(tmp_path, **changes), disk)
    assert "\n" not in str(refusal.value)


def test_other_data_whose_images_have_another_shape_are_refused(
    disk: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Mnist, "known", replace(Mnist.known, height=32, width=32))
    with pytest.raises(BadRequest, match=r"transfer.0: images of 1x32x32 need another network than 1x28x28: the body"):
        plan_of(recipe(tmp_path, transfer=["mnist"]), disk)
