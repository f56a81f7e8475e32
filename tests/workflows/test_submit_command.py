"""`hedgerow submit` against a real head: what runs there, and what is sent, printed and left behind."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.runs import all_runs, finished_steps
from cluster.store import Store
from cluster.submission import JobServer, Patience, Request, follow, start
from cluster.tree import pack
from tests.cluster.clusters import Cluster, cluster
from tests.workflows.conftest import write_recipe
from workflows.command import cli
from workflows.command.submission import remote_command

PLANTED = {
    "AWS_SECRET_ACCESS_KEY": "planted-aws-secret-0123456789abcdefghij",
    "WANDB_API_KEY": "planted0wandb0key0123456789abcdef0123456",
    "RAY_AUTH_TOKEN": "planted0ray0token0123456789abcdef",
}
"""Secrets of the cluster and of whoever submits, to look for in all that is written."""
PATIENT = Patience(60, lambda line: None)
TALKER = """
import signal, sys, time
def bye(*signal):
    print("bye", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, bye)
told = dict(zip(sys.argv, sys.argv[1:]))
lines, pause, code = int(told["--workers"]), float(told["--checkpoint"]), int(told["--wandb"])
for number in range(lines):
    print(f"line {number} of {lines} ε", flush=number % 7 == 0)
    time.sleep(pause)
sys.exit(code)
"""
"""Stands in for hedgerow's command line in a tree: it runs only if the files that were sent do."""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head and a node; its commands and its secrets are found in its environment."""
    home = tmp_path_factory.mktemp("home")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with pytest.MonkeyPatch.context() as environment:
        for name in ("WANDB_MODE", "WANDB_PROJECT", "RAY_AUTH_TOKEN_PATH"):
            environment.delenv(name, raising=False)
        for name, value in PLANTED.items():
            environment.setenv(name, value)
        tracked = {"HOME": str(home), "PATH": path, "WANDB_MODE": "offline"}
        with cluster(dashboard=True, token=PLANTED["RAY_AUTH_TOKEN"], **tracked) as made:
            apart_from(made)
            environment.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{made.dashboard_port}")
            yield made


def apart_from(made: Cluster) -> None:
    """Adds a node with a folder of its own, as on another machine: two in one unpack over each other's packages."""
    made.add(1, options=["--temp-dir", str(made.folder / "node")])


@pytest.fixture(scope="module")
def server(head: Cluster) -> JobServer:
    return JobServer.connect(f"http://127.0.0.1:{head.dashboard_port}", head.token)


class Called:
    """A command line that has ended, in this process."""

    def __init__(self, *words: str, cwd: Path | None = None) -> None:
        printed, warned = io.StringIO(), io.StringIO()
        before, here = sys.argv, Path.cwd()
        sys.argv = ["hedgerow", *words]
        os.chdir(cwd or here)
        self.code: Any = 0
        try:
            with redirect_stdout(printed), redirect_stderr(warned):
                cli.main()
        except SystemExit as end:
            self.code = int(end.code or 0)
        finally:
            sys.argv = before
            os.chdir(here)
        self.out, self.err = printed.getvalue(), warned.getvalue()


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


def talk(lines: int, pause: float = 0.1, code: int = 0) -> list[str]:
    """The command that prints so many lines, so many seconds apart, and ends with this code."""
    options = ["--workers", str(lines), "--checkpoint", str(pause), "--wandb", str(code)]
    return ["run", "quickstart", "--store", "/shared/store", *options]


def begin(server: JobServer, tree: Path, words: list[str]) -> str:
    """Starts a command without following it, and gives its job's name."""
    package = pack(tree)
    return start(server, Request(tuple(words), {}, package.digest), package, PATIENT)[0].id


def wait_for(server: JobServer, job_id: str, words: str) -> None:
    until = time.monotonic() + 30
    while words not in server.logs(job_id):
        assert time.monotonic() < until, server.logs(job_id)
        time.sleep(0.1)


def spoken(log: str) -> list[str]:
    return [line for line in log.splitlines() if line.startswith("line ")]


def results_of(store: Path) -> dict[str, Any]:
    """Metrics and files of every step of the only run of a store."""
    opened = Store.open(str(store))
    (run,) = all_runs(opened)
    return {
        step.step.key: (
            step.step.metrics, {name: file["sha256"] for name, file in step.step.manifest["files"].items()}
        )
        for step in finished_steps(opened, run.id)
    }  # fmt: skip


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
    through = JobServer.connect(f"http://127.0.0.1:{line.port}", head.token)
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


@pytest.mark.faults
def test_a_command_that_was_killed_is_the_clusters_failure_and_submitted_again_as_the_next(
    server: JobServer, talker: Path
) -> None:
    words = talk(100)
    with submitting(talker, words) as process:
        name = first_word(process)
        wait_for(server, name, "line 6")
        (victim,) = [found for found in psutil.process_iter() if _is_talker(found)]
        victim.kill()
        assert process.wait(30) == 3
    assert Called("submit", "--detach", *words, cwd=talker).out == f"{name}-2\n"
    assert server.stop(f"{name}-2")


def test_stopping_lets_the_command_say_goodbye_and_ends_the_one_who_follows(server: JobServer, talker: Path) -> None:
    with submitting(talker, talk(100)) as process:
        name = first_word(process)
        wait_for(server, name, "line 6")
        assert "was asked" in Called("submit", "stop", name).out
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
    assert wrong.err.count("\n") == missing.err.count("\n") == 1
    assert "refuses the token" in wrong.err
    assert "asks for a token" in missing.err


@pytest.mark.faults
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
        assert (lost.code, lost.err.count("\n")) == (3, 1)
        made.start_head("--num-cpus", "1")
        again = Called("submit", "--address", address, *words, cwd=tree)
    assert again.code == 0, again.err
    assert again.err.startswith(f"submitted {detached.out.strip()}\n")
    assert "[8/8]" in again.out


@pytest.mark.faults
def test_a_cluster_without_a_token_is_refused_unless_insecure(tmp_path: Path, talker: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with cluster(dashboard=True, PATH=path, RAY_AUTH_MODE="disabled") as made:
        address = f"http://127.0.0.1:{made.dashboard_port}"
        refused = Called("submit", "--address", address, *talk(1), cwd=talker)
        assert (refused.code, refused.err.count("\n")) == (3, 1)
        assert "--insecure" in refused.err
        assert Called("submit", "--address", address, "--insecure", *talk(1), cwd=talker).code == 0


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address where nobody listens: what gets so far as to ask ends with code 3."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.delenv("HEDGEROW_STORE", raising=False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "quickstart"], "--store: results in a folder of the head's would be lost"),
        (["run", "quickstart", "--store", "here"], "--store here: no node of a cluster finds that"),
        (["run", "quickstart", "--store", "memory:///"], "--store memory:///: no node"),
        (["run", "quickstart", "--store", "s3://me:word@b/s"], "must not hold credentials"),
        (["run", "quickstart", "--store", "s3://b/s", "--out", "here"], "--out here: it would be gone"),
        (["run", "quickstart", "--store", "s3://b/s", "--levels", "3"], "No such option: --levels"),
        (["run", "--store", "s3://b/s"], "run: Missing argument"),
        (["run", "gone.yaml", "--store", "s3://b/s"], "recipe gone.yaml: there is no such file"),
        (["run", "ignored.yaml", "--store", "s3://b/s"], "an ignore file names it"),
        (["run", "../outside.yaml", "--store", "s3://b/s"], "--tree must be a folder that holds it"),
        (["walk"], "'walk' is no command for a cluster; there are"),
        (["--env", "NOT_SET_HERE", "run", "quickstart", "--store", "s3://b/s"], "--env NOT_SET_HERE: there is no such"),
        (["--tree", "gone", "run", "quickstart", "--store", "s3://b/s"], "no such folder"),
        (["--max-size", "0.001", "run", "quickstart", "--store", "s3://b/s"], "--max-size is 0.001 MB"),
    ],
)
@pytest.mark.usefixtures("nowhere")
def test_a_wrong_request_is_said_before_anybody_is_asked(words: list[str], said: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for path in ("tree/ignored.yaml", "outside.yaml"):
        (tmp_path / path).write_text("kind: imp\n")
    (tree / ".gitignore").write_text("ignored.yaml\n")
    (tree / "data.txt").write_text("x" * 2000)
    called = Called("submit", *words, cwd=tree)
    assert (called.code, called.out) == (2, "")
    assert said in called.err


@pytest.mark.usefixtures("nowhere")
def test_a_symlink_and_a_secret_in_the_tree_are_refused_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", PLANTED["WANDB_API_KEY"])
    words = ["run", "quickstart", "--store", "s3://b/s"]
    (tmp_path / "link").symlink_to("/etc/passwd")
    linked = Called("submit", *words, cwd=tmp_path)
    assert (linked.code, linked.err.split(":")[1]) == (2, " link")
    (tmp_path / "link").unlink()
    (tmp_path / "notes.txt").write_text(PLANTED["WANDB_API_KEY"])
    held = Called("submit", *words, cwd=tmp_path)
    assert held.code == 2
    assert "notes.txt: holds the value of WANDB_API_KEY" in held.err
    assert Called("submit", "--allow", "notes.txt", *words, cwd=tmp_path).code == 3  # goes so far as to ask
    spelled = Called("submit", *words, "--study", f"postgresql://h/{PLANTED['WANDB_API_KEY']}", cwd=tmp_path)
    assert spelled.code == 2
    assert PLANTED["WANDB_API_KEY"] not in held.err + spelled.err


@pytest.mark.usefixtures("nowhere")
def test_an_address_that_does_not_answer_is_one_line_within_seconds(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    began = time.monotonic()
    called = Called("submit", "run", "quickstart", "--store", "s3://b/s", cwd=tmp_path)
    assert (called.code, called.err.count("\n")) == (3, 1)
    assert "127.0.0.1:1 does not answer" in called.err
    assert time.monotonic() - began < 10


def test_the_command_gets_the_clusters_address_and_a_folder_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEDGEROW_STORE", "s3://b/s")
    asked = remote_command(["run", "quickstart", "--set", "levels=2"])
    assert asked.words == [
        "run", "quickstart", "--set", "levels=2", "--store", "s3://b/s", "--address", "auto",
        "--out", "~/hedgerow-results",
    ]  # fmt: skip
    given = ["search", "x.yaml", "--store", "/nfs/s", "--address", "10.0.0.1:6379", "--out", "/nfs/o"]
    assert remote_command(given).words == given
    assert remote_command(["runs"]).words == ["runs", "--store", "s3://b/s"]


def first_word(process: subprocess.Popen[str]) -> str:
    """The name of the job that a process submits."""
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith("submitted "), line
    return line.split()[1]


@contextmanager
def submitting(tree: Path, words: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that submits and follows."""
    process = subprocess.Popen(
        [sys.executable, "-m", "workflows.command.cli", "submit", "--tree", str(tree), *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class Line:
    """A line to a port of this machine that can be cut, connections and all, and mended."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._is_cut, self._is_busy = False, threading.Event()
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, seconds: float) -> None:
        """Cuts it for a while, in the middle of an answer."""
        self._is_busy.clear()
        self._is_busy.wait(10)
        self._is_cut = True
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        time.sleep(seconds)
        self._is_cut = False

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                if self._is_cut:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._target))
                self._ends += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(300):  # small pieces, so that an answer is cut in the middle
                sink.sendall(data)
                self._is_busy.set()
                time.sleep(0.002)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def _is_talker(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        words = process.cmdline()
        return words[1:3] == ["-m", "workflows.command.cli"] and words[3] == "run" and "/shared/store" in words
    return False
