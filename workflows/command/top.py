"""`hedgerow top`: what the runs of a store are doing, live, from any terminal."""

from __future__ import annotations

from typing import Annotated

import typer

from workflows.command.options import DEFAULT_STORE, AsJson, StoreUrl
from workflows.command.terminal import out, print_json, print_view


def top(
    run_id: Annotated[
        str, typer.Argument(metavar="[RUN]", help="A run's id, or its beginning; all that are at work when not given.")
    ] = "",
    store: StoreUrl = DEFAULT_STORE,
    once: Annotated[bool, typer.Option("--once", help="One look instead of a live view, which `q` leaves.")] = False,
    as_json: AsJson = False,
) -> None:
    """Watch runs: nodes, running steps, throughput, failures and the time left, also of a run on a cluster."""
    from cluster.overview import Overview
    from workflows.command.inspect import load_run
    from workflows.command.launch import open_store
    from workflows.command.top_view import top_records, top_view, watch

    opened = open_store(store)
    overview = Overview(opened, load_run(opened, run_id).id if run_id else "")
    if as_json:
        print_json(top_records(overview.look()))
    elif once or not out.is_terminal:
        print_view(top_view(overview.look(), opened.url))
    else:
        try:
            watch(opened, overview, out)
        except KeyboardInterrupt:
            return
