"""`hedgerow submit` against a real head: what runs there, and what is sent, printed and left behind."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.job_server import JobServer, Request
from cluster.submission import Patience, follow, start
from cluster.token import Token
from cluster.tree import pack
from tests.cluster.clusters import Cluster, cluster
from tests.workflows.conftest import write_recipe
from tests.workflows.submissions import (
    PLANTED,
    TALKER,
    Called,
    Line,
    apart_from,
    first_word,
    is_talker,
    results_of,
    spoken,
    submitting,
    talk,
    wait_for,
)

pytestmark = pytest.mark.faults

PATIENT = Patience(60, lambda line: None)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head and a node; its commands and its secrets are found in its environment."""
    home = tmp_path_factory.mktemp("home")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with pytest.MonkeyPatch.context() as environment:
        for name in ("WANDB_MODE", "WANDB_PROJECT", "RAY_AUTH_TOKEN_PATH"):
            environment.delenv(name, raising=False)
        for name, value in {**PLANTED, "HOME": str(home)}.items():
            environment.setenv(name, value)
        tracked = {"HOME": str(home), "PATH": path, "WANDB_MODE": "offline"}
        with cluster(dashboard=True, token=PLANTED["RAY_AUTH_TOKEN"], **tracked) as made:
            apart_from(made)
            environment.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{made.dashboard_port}")
            yield made


@pytest.fixture(scope="module")
def server(head: Cluster) -> JobServer:
    return JobServer.connect(f"http://127.0.0.1:{head.dashboard_port}", Token(head.token, "RAY_AUTH_TOKEN"))


@pytest.fixture(scope="module")
def finished(head: Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Called]:
    """A small recipe that was submitted and followed to its end: its folder, and how the command ended."""
    folder = tmp_path_factory.mktemp("submitted")
    (folder / "tree").mkdir()
    write_recipe(folder / "tree")
    return folder, Called("submit", *recipe_words(folder), cwd=folder / "tree")


def recipe_words(folder: Path) -> list[str]:
    return ["run", "small.yaml", "--store", str(folder / "store"), "--out", str(folder / "out"), "--wandb", "offline"]


@pytest.fixture
def talker(tmp_path: Path) -> Path:
    """A tree with a command line that prints and ends as it is told."""
    tree = tmp_path / "talker"
    (tree / "workflows" / "command").mkdir(parents=True)
    for name in ("workflows/__init__.py", "workflows/command/__init__.py"):
        (tree / name).write_text("")
    (tree / "workflows" / "command" / "cli.py").write_text(TALKER)
    (tree / "unlike-others").write_text(str(tmp_path))
    return tree


def begin(server: JobServer, tree: Path, words: list[str]) -> str:
    """Starts a command without following it, and gives its job's name."""
    package = pack(tree)
    return start(server, Request(tuple(words), {}, package.digest), package, PATIENT)[0].id


def test_a_recipe_submitted_ends_with_the_bytes_of_one_run_here(finished: tuple[Path, Called], small_run: Path) -> None:
    folder, called = finished
    assert called.code == 0, called.err
    assert "tracking:" not in called.out
    assert results_of(folder / "store") == results_of(small_run)
    assert "[8/8]" in called.out
    assert list((folder / "out").rglob("table.md"))


def test_the_same_submission_is_found_and_another_try_asks_for_it(
    finished: tuple[Path, Called], server: JobServer
) -> None:
    folder, first = finished
    name = first.err.split()[1]
    again = Called("submit", *recipe_words(folder), cwd=folder / "tree")
    assert (again.code, again.out) == (0, "")
    assert again.err.startswith(f"{name} has succeeded already; `--again` runs it again\n")
    once_more = Called("submit", "--again", *recipe_words(folder), cwd=folder / "tree")
    assert once_more.code == 0
    assert "8 steps, 8 stored, 0 to run" in once_more.out
    assert [job.id for job in server.jobs() if job.id.startswith(name)] == [f"{name}-2", name]


def test_secrets_are_in_nothing_that_was_written_or_said(
    finished: tuple[Path, Called], head: Cluster, server: JobServer
) -> None:
    folder, called = finished
    said = called.out + called.err + server._request("GET", "/api/jobs/") + Called("submit", "status", "--json").out
    searched = 0
    for root in (folder, head.folder):
        for path in root.rglob("*"):
            if path.is_file() and not path.is_symlink():
                content = path.read_bytes()
                searched += len(content)
                assert not [name for name, value in PLANTED.items() if value.encode() in content], path
    assert list(folder.rglob("*.wandb")), "nothing was tracked: the search for secrets would prove little"
    assert searched > 100_000
    assert not [name for name, value in PLANTED.items() if value in said]


def test_a_command_that_only_looks_runs_each_time_and_its_store_is_seen_from_there(
    finished: tuple[Path, Called], server: JobServer
) -> None:
    folder, _ = finished
    looks = [Called("submit", "runs", "--store", str(folder / "store"), cwd=folder / "tree") for _ in range(2)]
    assert [(look.code, "small-" in look.out) for look in looks] == [(0, True)] * 2
    assert len({look.err for look in looks}) == 2


def test_the_port_that_nodes_join_is_no_job_server_and_said_so(head: Cluster) -> None:
    called = Called("submit", "--address", head.address, "status")
    assert called.code == 3
    assert called.err.endswith("(does Ray's GCS listen there?)\n")
    assert called.err.isascii()


def test_a_line_cut_mid_log_loses_nothing_and_doubles_nothing(head: Cluster, server: JobServer, talker: Path) -> None:
    name = begin(server, talker, talk(60))
    heard, said = list[str](), list[str]()
    line = Line(head.dashboard_port)

    def cut_thrice() -> None:
        for number in (10, 25, 40):
            wait_for(server, name, f"line {number} ")
            line.cut(1.0)

    cutting = threading.Thread(target=cut_thrice)
    cutting.start()
    through = JobServer.connect(f"http://127.0.0.1:{line.port}", Token(head.token, "RAY_AUTH_TOKEN"))
    job = follow(through, name, heard.append, Patience(60, said.append, 0.2), pause=0.05)
    cutting.join()
    line.close()
    assert "".join(heard) == server.logs(name)
    assert spoken("".join(heard)) == [f"line {number} of 60 ε" for number in range(60)]
    assert job.exit_code == 0
    assert sum("trying again" in line for line in said) == sum("answers again" in line for line in said) >= 1


def test_many_at_once_are_one_job_that_all_can_follow(server: JobServer, talker: Path) -> None:
    package = pack(talker)
    request = Request(tuple(talk(5)), {}, package.digest)
    found, heard = list[tuple[Any, bool]](), list[str]()

    def submit() -> None:
        job, mine = start(server, request, package, PATIENT)
        found.append((job.id, mine))
        printed = list[str]()
        follow(server, job.id, printed.append, PATIENT, pause=0.2)
        heard.append("".join(printed))

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {name for name, _ in found} == {request.id}
    assert sum(mine for _, mine in found) == 1
    assert len(set(heard)) == 1
    assert len(spoken(heard[0])) == 5
    assert [job.id for job in server.jobs() if job.id.startswith(request.id)] == [request.id]


def test_the_exit_code_of_the_command_is_that_of_the_submission(head: Cluster, talker: Path) -> None:
    called = Called("submit", *talk(2, code=4), cwd=talker)
    assert (called.code, len(spoken(called.out))) == (4, 2)


def test_a_command_that_was_killed_is_the_clusters_failure_and_submitted_again_as_the_next(
    server: JobServer, talker: Path
) -> None:
    words = talk(100)
    with submitting(talker, words) as process:
        name = first_word(process)
        wait_for(server, name, "line 6")
        (victim,) = [found for found in psutil.process_iter() if is_talker(found)]
        victim.kill()
        assert process.wait(30) == 3
    assert Called("submit", "--detach", *words, cwd=talker).out == f"{name}-2\n"
    assert server.stop(f"{name}-2")


def test_stopping_waits_for_the_goodbye_of_the_command_and_the_next_submission_runs(
    server: JobServer, talker: Path
) -> None:
    with submitting(talker, talk(100)) as process:
        name = first_word(process)
        wait_for(server, name, "line 6")
        stopped = Called("submit", "stop", name)
        assert (stopped.code, stopped.out) == (0, f"{name} is over: STOPPED\n")
        assert stopped.err.startswith(f"asking {name} to save its state and stop; waiting until it is over, 70 s at")
        assert Called("submit", "--detach", *talk(100), cwd=talker).out == f"{name}-2\n"
        assert Called("submit", "stop", f"{name}-2").code == 0
        printed = process.communicate(timeout=30)[0]
    assert process.returncode == 130
    assert printed.rstrip().endswith("bye")
    assert f"{name}  STOPPED" in Called("submit", "status", name).out
    assert "over already: STOPPED" in Called("submit", "stop", name).out


def test_an_interrupt_leaves_the_job_and_says_how_to_come_back(server: JobServer, talker: Path) -> None:
    with submitting(talker, talk(30)) as process:
        name = first_word(process)
        wait_for(server, name, "line 6")
        process.send_signal(signal.SIGINT)
        _, warned = process.communicate(timeout=30)
    assert process.returncode == 130, warned
    assert warned.splitlines() == [
        f"left {name}, which goes on",
        f"to follow again: hedgerow submit logs {name} --follow",
        f"to stop it: hedgerow submit stop {name}",
    ]
    followed = Called("submit", "logs", name, "--follow")
    assert (followed.code, len(spoken(followed.out))) == (0, 30)


def test_a_missing_and_a_wrong_token_are_one_line_each(
    head: Cluster, talker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "not0the0token0of0this0cluster000")
    wrong = Called("submit", *talk(1), cwd=talker)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    missing = Called("submit", *talk(1), cwd=talker)
    assert (wrong.code, missing.code) == (3, 3)
    assert wrong.err.count("\n") == missing.err.count("\n") == 1  # at once: patience is for who does not answer
    assert "refuses the token" in wrong.err
    assert "asks for a token" in missing.err


def test_a_head_that_is_lost_is_said_and_the_next_head_gets_the_job_from_the_store(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    tree = tmp_path / "tree"
    tree.mkdir()
    write_recipe(tree)
    words = [*recipe_words(tmp_path)[:-1], "disabled"]
    with cluster(dashboard=True, PATH=path) as made, pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_TOKEN", made.token)
        address = f"http://127.0.0.1:{made.dashboard_port}"
        detached = Called("submit", "--address", address, "--detach", *words, cwd=tree)
        assert detached.code == 0, detached.err
        made.head.kill()
        lost = Called("submit", "logs", detached.out.strip(), "--address", address, "--follow", "--patience", "2")
        assert (lost.code, lost.err.count("\n")) == (3, 2)  # that it tries again, and that it gives up
        made.start_head("--num-cpus", "1")
        again = Called("submit", "--address", address, *words, cwd=tree)
    assert again.code == 0, again.err
    assert again.err.startswith(f"submitted {detached.out.strip()}\n")
    assert "[8/8]" in again.out


def test_a_cluster_without_a_token_is_refused_unless_insecure(tmp_path: Path, talker: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with cluster(dashboard=True, PATH=path, RAY_AUTH_MODE="disabled") as made:
        address = f"http://127.0.0.1:{made.dashboard_port}"
        refused = Called("submit", "--address", address, *talk(1), cwd=talker)
        assert (refused.code, refused.err.count("\n")) == (3, 1)
        assert "--insecure" in refused.err
        assert Called("submit", "--address", address, "--insecure", *talk(1), cwd=talker).code == 0
