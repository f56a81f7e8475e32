"""A search: what it asks, what its trials share, what it leaves, and that it goes on where it was left."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import yaml

from cluster.collect import collect
from cluster.order import Order
from cluster.plan import make_plan
from cluster.runs import finished_steps
from cluster.store import Store
from tests.workflows.conftest import Inline, drive, write_recipe
from tests.workflows.searches import CHAIN, fronts, load_search, published, searched, told
from workflows.command.recipe import load_recipe
from workflows.search import Search
from workflows.search_report import exported


@pytest.fixture(scope="module")
def finished_search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a store with one finished search; not to be changed."""
    folder = tmp_path_factory.mktemp("searched")
    searched(Store.open(str(folder / "store")), folder)
    return folder


def test_every_trial_comes_to_the_figures_that_are_asked_for(finished_search: Path) -> None:
    store = Store.open(str(finished_search / "store"))
    recipe = load_search(finished_search)
    run, code = drive(store, recipe, finished_search / "out")
    trials = told(store, run)
    assert code == 0
    assert [trial["number"] for trial in trials] == list(range(6))
    assert {trial["state"] for trial in trials} == {"complete"}
    for trial in trials:
        sparsity = 1 - 0.5 ** trial["parameters"]["levels"]
        assert trial["values"]["sparsity"] == pytest.approx(sparsity, abs=1e-3)
        assert 0 <= trial["values"]["robust@0.1"] <= 1


def test_trials_share_their_prefixes_and_the_report_says_what_that_saved(finished_search: Path) -> None:
    store = Store.open(str(finished_search / "store"))
    recipe = load_search(finished_search)
    run, _ = drive(store, recipe, finished_search / "out")
    trials = told(store, run)
    alone = sum(trial["sample_steps"] for trial in trials)
    together = {key: cost for trial in trials for key, cost in trial["steps"].items()}
    by_hand = {(trial["parameters"]["train.objective.epsilon"], trial["parameters"]["levels"]) for trial in trials}
    deepest = {epsilon: max(levels for other, levels in by_hand if other == epsilon) for epsilon, _ in by_hand}
    trainings = sum(levels + 1 for levels in deepest.values())
    a_training = 200 * 2
    assert sum(together.values()) == trainings * a_training
    assert alone == sum(trial["parameters"]["levels"] + 1 for trial in trials) * a_training
    notes = " ".join(recipe.workflow.report(finished_steps(store, run.id)).notes)
    assert f"sharing saved {alone - sum(together.values()):,}" in notes


def test_what_is_searched_by_is_validation_data_and_the_front_alone_is_measured_on_test(finished_search: Path) -> None:
    store = Store.open(str(finished_search / "store"))
    run, _ = drive(store, load_search(finished_search), finished_search / "out")
    (closing,) = fronts(store, run)
    splits: dict[str, set[int]] = {"validation": set(), "test": set()}
    for step in finished_steps(store, run.id):
        if step.kind == "evaluate":
            splits[step.step.manifest["task"].get("split", "test")].add(step.at["trial"])
    front = {entry["number"] for entry in closing["front"]}
    assert splits["test"]
    assert splits["test"] <= front
    assert all(entry["test"].keys() == entry["figures"].keys() for entry in closing["front"])


def test_a_finished_search_is_found_and_computes_nothing(finished_search: Path) -> None:
    store = Store.open(str(finished_search / "store"))
    plan = asyncio.run(make_plan(store, load_search(finished_search).workflow.run))
    assert plan.steps
    assert not plan.to_run


def test_a_smaller_budget_is_a_beginning_of_the_same_study(finished_search: Path, tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    run, _ = searched(store, tmp_path, budget={"trials": 3})
    first = told(store, run)
    again, _ = searched(store, tmp_path)
    whole = Store.open(str(finished_search / "store"))
    reference, _ = drive(whole, load_search(finished_search), finished_search / "out")
    assert run.id == again.id == reference.id
    assert told(store, again) == told(whole, reference)
    assert told(store, again)[:3] == first
    assert len(fronts(store, again)) == 2


@pytest.mark.parametrize("parallel", [2, 4])
def test_a_plan_of_a_new_search_knows_the_trials_of_the_first_window(
    parallel: int, tmp_path: Path, disk: Store
) -> None:
    plan = asyncio.run(make_plan(disk, load_search(tmp_path, parallel=parallel).workflow.run))
    assert {step.handle.at["trial"] for step in plan.steps} == set(range(parallel))
    assert {step.handle.task.kind for step in plan.steps} == {"ask", "train", "evaluate", "prune"}
    assert not published(disk)


def test_an_exported_trial_is_a_recipe_whose_steps_are_all_stored(finished_search: Path, tmp_path: Path) -> None:
    store = Store.open(str(finished_search / "store"))
    recipe = load_search(finished_search)
    run, _ = drive(store, recipe, finished_search / "out")
    trial = told(store, run)[-1]
    assert isinstance(recipe.workflow, Search)
    path = tmp_path / "winner.yaml"
    path.write_bytes(exported(recipe.workflow, trial))
    plan = asyncio.run(make_plan(store, load_recipe(str(path)).workflow.run))
    assert not plan.to_run
    assert {step.handle.key for step in plan.steps} == set(trial["steps"])


def test_the_first_trials_are_those_that_the_recipe_gives(tmp_path: Path, disk: Store) -> None:
    start = [{"levels": 3, "train.objective.epsilon": 0.05}, {"levels": 1, "train.objective.epsilon": 0.1}]
    run, _ = searched(disk, tmp_path, start=start, budget={"trials": 3})
    assert [trial["parameters"] for trial in told(disk, run)][:2] == start


def test_a_budget_of_sample_steps_counts_each_step_once(tmp_path: Path, disk: Store) -> None:
    run, _ = searched(disk, tmp_path, budget={"sample_steps": 3000}, parallel=1)
    trials = told(disk, run)
    spent = [
        sum({key: cost for trial in trials[:count] for key, cost in trial["steps"].items()}.values())
        for count in (len(trials) - 1, len(trials))
    ]
    assert spent[0] < 3000 <= spent[1]


def test_a_grid_ends_when_all_is_tried(tmp_path: Path, disk: Store) -> None:
    space = {"parameters": {"levels": {"int": [1, 2]}, "train.objective.epsilon": {"choice": [0.05, 0.1]}}}
    run, _ = searched(disk, tmp_path, space=space, sampler="grid", budget={"trials": 50}, parallel=3)
    tried = [
        (trial["parameters"]["levels"], trial["parameters"]["train.objective.epsilon"]) for trial in told(disk, run)
    ]
    assert sorted(tried) == [(1, 0.05), (1, 0.1), (2, 0.05), (2, 0.1)]


def test_a_trial_that_fails_is_told_with_its_cause_and_the_search_goes_on(tmp_path: Path, disk: Store) -> None:
    space = {"parameters": {"train.optimizer.learning_rate": {"choice": [0.05, 1e30]}}}
    run, search = searched(disk, tmp_path, space=space, budget={"trials": 6}, sampler="random", parallel=1)
    trials = told(disk, run)
    failed = [trial for trial in trials if trial["state"] == "failed"]
    assert 0 < len(failed) < 6
    for trial in failed:
        assert trial["parameters"] == {"train.optimizer.learning_rate": 1e30}
        assert trial["cause"] == "user"
        assert "NaN or infinite" in trial["message"] or "loss" in trial["message"]
    report = search.report(finished_steps(disk, run.id))
    assert any("failed (user)" in note for note in report.notes)


def test_a_search_whose_trials_all_fail_says_why_and_ends_as_failed(tmp_path: Path, disk: Store) -> None:
    space = {"parameters": {"train.optimizer.learning_rate": {"choice": [1e29, 1e30]}}}
    _, code = drive(disk, load_search(tmp_path, space=space, budget={"trials": 2}), tmp_path / "out")
    assert code == 1


def test_a_rung_stops_a_trial_and_only_the_steps_up_to_it_are_there(tmp_path: Path, disk: Store) -> None:
    space = {"parameters": {"train.optimizer.learning_rate": {"choice": [0.05, 1e-6]}}}
    stopping = {"kind": "median", "field": "levels", "rungs": [1, 2], "warm_up": 2, "audit": 1}
    base = {**load_search(tmp_path).content["base"], "levels": 3}
    run, _ = searched(
        disk, tmp_path, base=base, space=space, stopping=stopping, objectives=[{"maximise": "clean"}],
        sampler="random", budget={"trials": 10}, parallel=1,
    )  # fmt: skip
    trials = told(disk, run)
    stopped = [trial for trial in trials if trial["state"] == "stopped"]
    assert stopped
    for trial in stopped:
        assert trial["parameters"]["train.optimizer.learning_rate"] == 1e-6
        assert trial["stopped_at"] == "1"
        assert trial["because"]
    assert all(trial["rungs"].keys() == {"1", "2"} for trial in trials if trial["state"] == "complete")
    (closing,) = fronts(disk, run)
    assert closing["audit"]["of"] == 1


def test_a_training_that_was_stopped_at_a_rung_goes_on_from_there_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"kind": "train", **CHAIN["train"], "optimizer": {"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9}}
    base = {"kind": "evaluate", "models": {"net": train}, "attacks": ["fgsm"], "epsilons": [0.1], "examples": 20}
    space = {"parameters": {"models.net.seed": {"int": [0, 1]}}}
    stopping = {"kind": "median", "field": "models.net.stop_at", "rungs": [1, 3], "warm_up": 9}
    search = {"base": base, "space": space, "objectives": [{"maximise": "clean"}], "sampler": "grid", "parallel": 1}
    orders: list[Order] = []
    submit = Inline.submit
    monkeypatch.setattr(Inline, "submit", lambda self, order: (orders.append(order), submit(self, order))[1])
    with_rungs = Store.open(str(tmp_path / "with"))
    run, _ = searched(with_rungs, tmp_path, **search, stopping=stopping)
    begun = [order.prefix is not None for order in orders if order.task.kind == "train"]
    assert begun == [False, True, True] * 2
    without = Store.open(str(tmp_path / "without"))
    plain, _ = searched(without, tmp_path, **search)
    files = [
        {step.step.key: step.step.manifest["files"] for step in finished_steps(store, each.id) if step.kind == "train"}
        for store, each in ((with_rungs, run), (without, plain))
    ]
    assert files[1].items() <= files[0].items()
    assert len(files[1]) == 2


def test_what_the_trials_rest_on_is_kept_even_where_the_events_were_lost(tmp_path: Path, disk: Store) -> None:
    run, _ = searched(disk, tmp_path)
    disk.delete(disk.paths(f"runs/{run.id}/events"))
    searched(disk, tmp_path)
    disk.delete(disk.paths(f"runs/{run.id}/events"))
    before = published(disk)
    collect(disk, [], remove=True, grace=0.0)
    steps = {key for trial in told(disk, run) for key in trial["steps"]}
    assert steps
    assert steps <= published(disk) <= before


def test_the_recipe_of_a_run_is_the_one_it_was_last_asked_for_with(tmp_path: Path, disk: Store) -> None:
    run, _ = searched(disk, tmp_path, budget={"trials": 2})
    longer, _ = searched(disk, tmp_path, budget={"trials": 3})
    assert run.id == longer.id
    assert longer.record["recipe"]["budget"]["trials"] == 3
    assert longer.record["created"] == run.record["created"]
    content = dict(longer.record["recipe"])
    assert load_recipe(str(write_recipe(tmp_path, yaml.safe_load(yaml.safe_dump(content)), "again"))).workflow == (
        load_search(tmp_path, budget={"trials": 3}).workflow
    )


def test_the_page_of_a_study_is_drawn_again_only_when_there_is_more_to_show(tmp_path: Path, disk: Store) -> None:
    out = tmp_path / "out"
    for trials in (4, 4, 5):
        run, search = searched(disk, tmp_path, budget={"trials": trials})
        search.report(finished_steps(disk, run.id)).write(out)
        written = (out / "study.html").stat().st_mtime_ns
        search.report(finished_steps(disk, run.id)).write(out)
        assert (out / "study.html").stat().st_mtime_ns == written
    assert (out / "study.html").read_text().rstrip().endswith(f"{search.key} 5 -->")
