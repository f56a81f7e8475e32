"""A study in a database shows exactly what a search asked and was told, whatever happened to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import create_engine, text

from search_spaces.projection import ProjectionFailed
from tests.search_spaces.projected import (
    in_another_process,
    load,
    on_each_statement,
    projection,
    shows,
    trial,
    trials,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 has doubts about forks
WRITES = ("INSERT", "UPDATE", "DELETE")


def change(url: str, statement: str) -> None:
    """Changes what is stored, behind everybody's back."""
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


def test_optuna_reads_what_was_brought_up(url: str) -> None:
    shown = projection(url)
    for count in (0, 1, 9, 24):
        assert shown.bring_up(trials(count)) == ""
        assert shown.is_writer
        assert shows(url, trials(count))


def test_running_trials_are_finished_where_they_are(url: str) -> None:
    running = [trial(number, TrialState.RUNNING) for number in range(4)]
    shown = projection(url)
    shown.bring_up(running)
    before = load(url).get_trials()
    assert shows(url, running)
    time.sleep(0.01)
    stages = [running[:2] + trials(4)[2:], [*trials(4), trial(4, TrialState.RUNNING)]]
    for number, stage in enumerate(stages):
        if number:
            shown.close()  # as after a resume
            shown = projection(url)
        assert shown.bring_up(stage) == ""
        assert shows(url, stage)
    after = load(url).get_trials()[:4]
    assert [trial._trial_id for trial in after] == [trial._trial_id for trial in before]
    assert [trial.datetime_start for trial in after] == [trial.datetime_start for trial in before]
    assert all(trial.duration.total_seconds() >= 0.01 for trial in after if trial.duration is not None)


def test_a_running_trial_shows_its_intermediate_values_as_they_come(url: str) -> None:
    shown = projection(url)
    for values in ({}, {1: 0.5}, {1: 0.5, 3: 0.25}):
        running = [trial(0, TrialState.RUNNING, intermediate_values=values)]
        shown.bring_up(running)
        assert shows(url, running)


def test_what_is_stored_already_is_not_written_again(url: str) -> None:
    stage = [*trials(9), trial(9, TrialState.RUNNING)]
    first = projection(url)
    first.bring_up(stage)
    first.close()
    again = projection(url)
    written: list[str] = []
    stop = on_each_statement(lambda statement: written.append(statement) if statement.startswith(WRITES) else None)
    try:
        again.bring_up(stage)
        again.bring_up(stage)
        assert written == []
        again.bring_up([*stage, trial(10)])
        assert written != []
    finally:
        stop()


CONTRADICTIONS = [
    "UPDATE trial_params SET param_value = 3 WHERE param_name = 'levels'",
    "UPDATE trial_values SET value = 0.5 WHERE objective = 1",
    "UPDATE trial_user_attributes SET value_json = '13' WHERE key = 'sample_steps'",
    "UPDATE trial_intermediate_values SET step = 2 WHERE step = 1",
    "UPDATE trials SET state = 'FAIL' WHERE number = 0",
    "UPDATE trials SET number = 7 WHERE number = 2",
    "DELETE FROM trial_values WHERE objective = 1",
    "DELETE FROM trial_system_attributes",
    "DELETE FROM study_system_attributes",
    "UPDATE study_directions SET direction = 'MAXIMIZE'",
    "DELETE FROM study_directions",
    "DROP TABLE trial_values",
]


def test_what_contradicts_the_search_is_written_anew(url: str) -> None:
    projected = projection(url)
    projected.bring_up(trials(6))
    projected.close()
    for statement in CONTRADICTIONS:
        change(url, statement)
        again = projection(url)
        assert "written anew" in again.bring_up(trials(6)), statement
        assert shows(url, trials(6)), statement
        again.close()
    assert projection(url).bring_up(trials(7)) == ""
    assert shows(url, trials(7))


def test_more_trials_than_the_search_has_are_written_anew(url: str) -> None:
    first = projection(url)
    first.bring_up(trials(6))
    assert "written anew" in first.bring_up(trials(5))
    assert shows(url, trials(5))


def test_a_running_trial_with_other_parameters_is_written_anew(url: str) -> None:
    shown = projection(url)
    shown.bring_up([*trials(3), trial(9, TrialState.RUNNING)])
    assert "written anew" in shown.bring_up(trials(4))
    assert shows(url, trials(4))


@pytest.mark.parametrize("resumed", [False, True])
def test_a_deleted_study_comes_back(url: str, resumed: bool) -> None:
    shown = projection(url)
    shown.bring_up(trials(5))
    if resumed:
        shown.close()
        shown = projection(url)
    optuna.delete_study(study_name="sparse and robust", storage=url)
    shown.bring_up(trials(6))
    assert shows(url, trials(6))


def test_notes_of_the_dashboard_stay(url: str) -> None:
    stage = [*trials(2), trial(2, TrialState.RUNNING)]
    first = projection(url)
    first.bring_up(stage)
    for number in (0, 2):  # the dashboard writes to finished trials as well
        change(
            url,
            "INSERT INTO trial_system_attributes (trial_id, key, value_json) "
            f"SELECT trial_id, 'dashboard:note_ver', '{number}' FROM trials WHERE number = {number}",
        )
    assert first.bring_up(trials(3)) == ""
    first.close()
    assert projection(url).bring_up(trials(3)) == ""
    assert [trial.system_attrs.get("dashboard:note_ver") for trial in load(url).get_trials()] == [0, None, 2]


def test_studies_in_one_database_leave_each_other_alone(url: str) -> None:
    one, two = projection(url, "one"), projection(url, "two")
    one.bring_up(trials(4))
    two.bring_up(trials(7))
    one.bring_up(trials(5))
    assert "written anew" in two.bring_up(trials(3))
    assert shows(url, trials(5), "one")
    assert shows(url, trials(3), "two")


def test_a_study_of_somebody_else_is_not_touched(url: str) -> None:
    study = optuna.create_study(study_name="sparse and robust", storage=url)
    study.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(
        ProjectionFailed, match="a study 'sparse and robust' is there already that hedgerow did not write"
    ):
        projection(url).bring_up(trials(2))
    assert [trial.value for trial in study.get_trials()] == [1.0]


def test_killed_at_any_statement_it_is_brought_up_all_the_same(url: str) -> None:
    def work(stage: int, last: int) -> None:
        left = [last]

        def count(_: str) -> None:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        on_each_statement(count)
        projection(url).bring_up([trial(0)] if stage == 0 else trials(400))

    killed = 0
    for stage, steps in ((0, 19), (1, 5)):
        for last in range(0, 200, steps):
            process = in_another_process(work, stage, last)
            process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL
            killed += 1
    assert killed > 5
    shown = projection(url)
    assert until_it_writes(shown, trials(400)) == ""
    assert shows(url, trials(400))


def until_it_writes(shown: Any, stage: list[Any]) -> str:
    """A server notices in its own time that a client died."""
    deadline = time.monotonic() + 10
    news = []
    while not news or not shown.is_writer:
        assert time.monotonic() < deadline
        news.append(shown.bring_up(stage))
        time.sleep(0.01)
    return "".join(news)


def test_of_two_processes_one_writes_and_the_other_takes_over_when_it_is_gone(url: str) -> None:
    read, write = os.pipe()

    def work() -> None:
        shown = projection(url)
        shown.bring_up(trials(3))
        os.write(write, b"." if shown.is_writer else b"!")
        signal.pause()

    first = in_another_process(work)
    assert os.read(read, 1) == b"."
    second = projection(url)
    assert second.bring_up(trials(8)) == ""
    assert not second.is_writer
    assert shows(url, trials(3))
    first.kill()
    first.join()
    assert until_it_writes(second, trials(8)) == ""
    assert shows(url, trials(8))
    third = projection(url)
    third.bring_up(trials(9))
    assert not third.is_writer
    second.close()
    third.bring_up(trials(9))
    assert shows(url, trials(9))


def test_the_dashboard_shows_the_study(url: str) -> None:
    dashboard = pytest.importorskip("optuna_dashboard")
    projection(url).bring_up([*trials(8), trial(8, TrialState.RUNNING)])
    app = dashboard.wsgi(optuna.storages.RDBStorage(url))
    (study,) = get(app, "/api/studies")["study_summaries"]
    assert study["study_name"] == "sparse and robust"
    assert study["directions"] == ["maximize", "minimize"]
    assert study["study_name"]
    detail = get(app, f"/api/studies/{study['study_id']}", after="0")
    states = [trial["state"] for trial in detail["trials"]]
    assert states == ["Complete", "Pruned", "Fail", "Complete"] * 2 + ["Running"]
    params = {param["name"]: param["param_external_value"] for param in detail["trials"][3]["params"]}
    assert params["train.objective"] == "trades"


def get(app: Callable[..., Any], path: str, **query: str) -> Any:
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    environ |= {"PATH_INFO": path, "wsgi.input": BytesIO(), "QUERY_STRING": "&".join(map("=".join, query.items()))}
    return json.loads(b"".join(app(environ, lambda *_: None)))


def test_nothing_is_printed_logged_or_warned_of(tmp_path: Path) -> None:
    script = """if True:
        import logging, sys, warnings
        warnings.simplefilter("always")
        logging.basicConfig(level=logging.INFO)
        from tests.search_spaces.projected import projection, trials
        for count in (3, 2):
            shown = projection(sys.argv[1])
            shown.bring_up(trials(count))
            shown.close()
    """
    command = [sys.executable, "-c", script, f"sqlite:///{tmp_path}/study.db"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_connection_that_broke_while_idle_is_made_anew(postgresql: str) -> None:
    url = postgresql.format("postgres")
    shown = projection(url)
    shown.bring_up(trials(3))
    engine = create_engine(url)
    with engine.connect() as connection:
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        connection.execute(text(others + " AND datname = 'postgres'"))
    engine.dispose()
    assert shown.bring_up(trials(4)) == ""
    assert shown.is_writer
    assert shows(url, trials(4))
    shown.close()


def test_a_database_that_refuses_is_told_of(postgresql: str) -> None:
    with pytest.raises(ProjectionFailed, match='database "nowhere" does not exist') as failure:
        projection(postgresql.format("nowhere")).bring_up([])
    assert "\n" not in str(failure.value)
