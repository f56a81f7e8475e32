"""What `search` and `export` do beside running: find the recipe of a search, and that of one of its trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cluster.runs import finished_steps
from cluster.store import Store
from tasks.component import kind_of
from workflows import Workflow
from workflows.command.inspect import load_run, recorded_recipe
from workflows.command.recipe import BadRequest, Recipe, load_recipe
from workflows.search import Search
from workflows.search_report import exported, told_trials


def loaded_search(
    name: str, go_on: str, store: Callable[[], Store], overrides: Sequence[str], trials: int | None
) -> Recipe:
    """The recipe of a search: by its name, or of one that is recorded.

    Args:
        name: of a recipe; empty to go on with a search.
        go_on: the id of a search, or its beginning.
        store: opens the store, which is needed to go on.
        overrides: as `a.b=c`.
        trials: how many to ask for instead of what the recipe says.

    Raises:
        BadRequest: neither or both are given, or it is no search.
    """
    check_asked(name, go_on, overrides)
    recipe = recorded_recipe(store(), go_on) if go_on else load_recipe(name, overrides)
    search = as_search(recipe.workflow, f"recipe {recipe.name}")
    if trials is not None:
        budget = search.budget.model_copy(update={"trials": trials})
        recipe = Recipe(recipe.name, search.model_copy(update={"budget": budget}), recipe.content)
    return recipe


def check_asked(name: str, go_on: str, overrides: Sequence[str]) -> None:
    """Whether it is clear which search is meant.

    Args:
        name: of a recipe; empty to go on with a search.
        go_on: the id of a search, or its beginning.
        overrides: as `a.b=c`.

    Raises:
        BadRequest: it is not.
    """
    if bool(name) == bool(go_on):
        both = ", not both" if name else ""
        raise BadRequest(f"search: give a recipe, or --resume STUDY to go on with a search{both}")
    if go_on and overrides:
        raise BadRequest("--set changes what is searched, and so makes another search; --resume takes --trials alone")


def exported_trial(store: Store, study: str, number: int) -> str:
    """The recipe of a trial, as YAML.

    Raises:
        BadRequest: there is no such search or trial.
    """
    run = load_run(store, study)
    search = as_search(recorded_recipe(store, run.id, check=False).workflow, f"run {run.id}")
    trials = told_trials(search, finished_steps(store, run.id))
    known = {trial["number"]: trial for trial in trials}
    if number not in known:
        numbers = f"0 to {len(trials) - 1}" if trials else "none yet"
        raise BadRequest(f"run {run.id}: no finished trial is number {number}; allowed: {numbers}")
    return exported(search, known[number]).decode()


def as_search(workflow: Workflow, where: str) -> Search:
    """The workflow, if it is a search.

    Args:
        workflow: any.
        where: what messages call it.

    Raises:
        BadRequest: it is none.
    """
    if not isinstance(workflow, Search):
        raise BadRequest(
            f"{where}: not a search, but a workflow of kind '{kind_of(type(workflow))}': use `hedgerow run`"
        )
    return workflow
