"""The command line: `hedgerow`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

import typer

from workflows.command.exit_codes import Exit
from workflows.command.manifest import cluster
from workflows.command.options import (
    DEFAULT_OUT,
    DEFAULT_STORE,
    MISUSED,
    AsJson,
    Options,
    Out,
    Overrides,
    RecipeName,
    StoreUrl,
    StudyUrl,
    Verify,
    resume_command,
    takes_options,
)
from workflows.command.recipe import BadRequest, Recipe
from workflows.command.signals import stoppable, way_on
from workflows.command.submission import app as submission
from workflows.command.terminal import err, out, print_json, print_line, print_view, warn
from workflows.command.top import top

app = typer.Typer(
    help="Find networks that are sparse and robust.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
@takes_options
def run(recipe: RecipeName, overrides: Overrides = None, *, options: Options, as_json: AsJson = False) -> None:
    """Run a recipe, or go on where it was left: finished steps are found, not computed again."""
    with stoppable(warn) as stop_if_asked:
        from workflows.command.recipe import load_recipe

        _launch(load_recipe(recipe, overrides or []), options, as_json, stop_if_asked)


@app.command()
@takes_options
def resume(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or its beginning.")],
    *,
    options: Options,
    as_json: AsJson = False,
) -> None:
    """Go on with a recorded run, wherever its recipe file went."""
    with stoppable(warn) as stop_if_asked:
        from workflows.command.inspect import recorded_recipe
        from workflows.command.launch import open_store

        _launch(recorded_recipe(open_store(options.store), run_id), options, as_json, stop_if_asked)


@app.command()
@takes_options
def search(
    recipe: Annotated[str, typer.Argument(help="A search: a shipped recipe's name, or the path of a .yaml file.")] = "",
    go_on: Annotated[str, typer.Option("--resume", metavar="STUDY", help="Go on with a recorded search instead.")] = "",
    trials: Annotated[int | None, typer.Option(min=1, help="Trials to ask for, instead of the recipe's.")] = None,
    overrides: Overrides = None,
    study: StudyUrl = None,
    *,
    options: Options,
    as_json: AsJson = False,
) -> None:
    """Search a space of recipes, or go on with a search: trials share what they have in common."""
    with stoppable(warn) as stop_if_asked:
        from workflows.command.launch import open_store
        from workflows.command.search import loaded_search

        loaded = loaded_search(recipe, go_on, lambda: open_store(options.store), overrides or [], trials)
        _launch(loaded, replace(options, study=study), as_json, stop_if_asked)


@app.command()
def export(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="A search's id, or its beginning.")],
    trial: Annotated[int, typer.Argument(help="The number of a trial.")],
    store: StoreUrl = DEFAULT_STORE,
) -> None:
    """Print the recipe of a search's trial: `hedgerow run` finds the very steps of the trial."""
    from workflows.command.launch import open_store
    from workflows.command.search import exported_trial

    sys.stdout.write(exported_trial(open_store(store), study, trial))


@app.command()
def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    store: StoreUrl = DEFAULT_STORE,
    verify: Verify = False,
    as_json: AsJson = False,
) -> None:
    """Say what is stored and what would run, without running anything."""
    from workflows.command.inspect import plan_records, plan_table
    from workflows.command.launch import open_store, plan_of
    from workflows.command.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    planned = plan_of(loaded, open_store(store, make=True), verify)
    print_json(plan_records(loaded, planned)) if as_json else print_view(plan_table(loaded, planned))


@app.command()
def runs(store: StoreUrl = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """List the runs of a store."""
    from workflows.command.inspect import runs_records, runs_table
    from workflows.command.launch import open_store

    records = runs_records(open_store(store))
    print_json(records) if as_json else print_view(runs_table(records))


@app.command()
def show(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or its beginning.")],
    store: StoreUrl = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Show a run's results and the state of its steps; works while it runs, from another terminal too."""
    from workflows.command.inspect import run_record, run_view
    from workflows.command.launch import open_store

    opened = open_store(store)
    print_json(run_record(opened, run_id)) if as_json else print_view(run_view(opened, run_id))


@app.command()
def explain(
    key: Annotated[str, typer.Argument(help="A step's key, or its beginning.")],
    store: StoreUrl = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Say where a step's result comes from, or why it is not reused: what differs from the nearest stored step."""
    from workflows.command.explain import explain_step, explanation_text
    from workflows.command.launch import open_store

    explanation = explain_step(open_store(store), key)
    print_json(explanation) if as_json else out.print(explanation_text(explanation), markup=False, soft_wrap=True)


@app.command()
def methods(as_json: AsJson = False) -> None:
    """List every method with its source."""
    from workflows.command.methods import methods_records, methods_table

    print_json(methods_records()) if as_json else out.print(methods_table())


@app.command()
def schema(
    workflow: Annotated[str, typer.Argument(help="A workflow's kind.")] = "imp", as_json: AsJson = False
) -> None:
    """Print the JSON schema of a workflow's recipes, for editors."""
    from workflows.command.methods import recipe_schema

    print_json(recipe_schema(workflow))


app.command()(top)
app.add_typer(submission, name="submit")
app.add_typer(cluster, name="cluster")


@app.command()
def doctor(
    store: StoreUrl = DEFAULT_STORE,
    address: Annotated[
        str, typer.Option("--address", help="Ray: `local`, `auto`, HOST:PORT, or http://HOST:PORT of a dashboard.")
    ] = "local",
    as_json: AsJson = False,
) -> None:
    """Check this machine, the store and every node of the cluster from the inside, and name what is wrong."""
    from workflows.command.check import check_line, checks_table
    from workflows.command.doctor import check_all
    from workflows.command.launch import require_address

    if not address.startswith(("http://", "https://")):
        require_address(address)
    checks = []
    for check in check_all(store, address):
        checks.append(check)
        if out.is_terminal and not as_json:
            out.print(check_line(check))
    if as_json:
        print_json([check.record() for check in checks])
    elif not out.is_terminal:
        out.print(checks_table(checks))
    if any(check.state == "wrong" for check in checks):
        raise typer.Exit(Exit.INFRASTRUCTURE)


@app.command()
def gc(
    store: StoreUrl = DEFAULT_STORE,
    forget: Annotated[
        list[str] | None, typer.Option(help="A run to drop: its steps go unless another run names them.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove; otherwise only say what would be removed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what no run names, and what unfinished attempts left behind."""
    from cluster.collect import collect
    from workflows.command.launch import open_store

    opened = open_store(store)
    try:
        collected = collect(opened, forget or [], remove=yes)
    except ValueError as error:
        raise BadRequest(f"gc: {error}") from None
    if as_json:
        print_json(collected.record())
    else:
        out.print(collected.summary(), markup=False, soft_wrap=True)


@app.command()
def sync(
    run_id: Annotated[str, typer.Argument(metavar="[RUN]", help="A run's id; every run when not given.")] = "",
    store: StoreUrl = DEFAULT_STORE,
    out_folder: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> None:
    """Push runs that were tracked offline to W&B."""
    from cluster.tracking import sync as push
    from workflows.command.inspect import chosen_runs
    from workflows.command.launch import open_store

    opened = open_store(store)
    pushed: dict[str, int] = {}
    for found in chosen_runs(opened, run_id):
        pushed |= push(opened, found.id, out_folder / found.id)
        if not as_json:
            print_line(out, f"{found.id}: {pushed[found.id]} steps pushed")
    if as_json:
        print_json(pushed)


def main() -> None:
    """Runs the command line; every foreseeable failure is one line and an exit code."""
    from cluster.session import ClusterUnreachable, leave
    from cluster.store import StoreError
    from cluster.wandb_sink import TrackingFailed

    code: Any = None
    try:
        code = app(prog_name="hedgerow", standalone_mode=False)
    except SystemExit as end:
        code = end.code
    except MISUSED as error:
        if message := " ".join(error.format_message().split()):  # without one, it has printed the help
            words = error.ctx.command_path if error.ctx else "hedgerow"
            where = f"{words.removeprefix('hedgerow ')}: " if " " in words else ""
            print(f"hedgerow: {where}{message} (`{words} -h` says more)", file=sys.stderr)  # noqa: T201
        code = Exit.WRONG
    except (BadRequest, ClusterUnreachable, StoreError, TrackingFailed) as error:
        for line in str(error).splitlines():
            print(f"hedgerow: {line}", file=sys.stderr)  # noqa: T201 - plain text, whatever it holds
        sys.exit(Exit.WRONG if isinstance(error, BadRequest) else Exit.INFRASTRUCTURE)
    leave(int(code or 0))


def _launch(recipe: Recipe, options: Options, as_json: bool, stop_if_asked: Callable[[], None]) -> None:
    from cluster.session import is_abandoned
    from workflows.command.launch import launch
    from workflows.command.rejoin import start_again_when_back

    ended = launch(recipe, options, err if as_json else out, stop_if_asked)
    if is_abandoned() and options.rejoins(ended.code):
        start_again_when_back(options.address, options.rejoin, warn)
    if as_json:
        print_json(
            {
                "run": ended.run,
                "code": ended.code,
                "results": ended.report.results if ended.report else [],
                "notes": ended.report.notes if ended.report else [],
                "about": ended.report.about if ended.report else {},
                "files": [str(path) for path in ended.files],
                "problems": ended.problems,
            }
        )
    else:
        if ended.report and ended.report.results:
            print_view(ended.report.view())
        for path in ended.files:
            print_line(out, f"wrote {path}")
    for problem in ended.problems:
        warn(problem)
    if ended.code:
        warn(way_on(resume_command(ended.run, options)))
        raise typer.Exit(ended.code)


if __name__ == "__main__":
    main()
