"""`hedgerow submit`: what is refused before a cluster is asked, and the command that one would get."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.workflows.submissions import PLANTED, Called
from workflows.command.remote import remote_command
from workflows.content import SHIPPED


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
        (["run", "gone.yaml", "--store", "s3://b/s"], "recipe gone.yaml: cannot be read: No such file"),
        (["run", f"{'a' * 300}.yaml", "--store", "s3://b/s"], ".yaml: cannot be read: File name too long"),
        (["run", "quickstart", "--store", "s3://"], "--store s3://: no node of a cluster finds that"),
        (["run", "quickstart", "--store", ""], "it is empty; give a folder or a URL"),
        (["run", "quickstart", "--store", "s3://[x"], "--store 's3://[x': that is no URL"),
        (["run", "quickstart", "--store", "s3://b/s", "--set", "train.epochs=nan"], "train.epochs: "),
        (["run", "quickstart", "--store", "s3://b/s", "--set", "train.architecture=nosuch"], "train.architecture: no"),
        (["plan", "quickstart", "--store", "s3://b/s", "--set", "nosuch=1"], "nosuch: unknown field"),
        (["search", "search-sparsity", "--store", "s3://b/s", "--set", "nosuch=1"], "nosuch: unknown field"),
        (["search", "--store", "s3://b/s"], "search: give a recipe, or --resume STUDY"),
        (["search", "quickstart", "--resume", "s", "--store", "s3://b/s"], "not both"),
        (["stop", ""], "ID '': that names no job"),
        (["logs", ""], "ID '': that names no job"),
        (["status", ""], "ID '': that names no job"),
        (["status", "--address", ""], "--address '': allowed are"),
        (["--patience", "nan", "status"], "--patience"),
        (["--allow", "nosuch", "run", "quickstart", "--store", "s3://b/s"], "--allow nosuch: no such file goes along"),
        (["--tree", "none", "--allow", "x", "runs", "--store", "s3://b/s"], "--allow x: with --tree none no file goes"),
        (["--tree", "", "runs", "--store", "s3://b/s"], "--tree '': give a folder"),
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
        (tmp_path / path).write_text((SHIPPED / "quickstart.yaml").read_text())
    (tree / ".gitignore").write_text("ignored.yaml\n")
    (tree / "data.txt").write_text("x" * 2000)
    called = Called("submit", "--patience", "0", *words, cwd=tree)
    assert (called.code, called.out) == (2, "")
    first, *more = called.err.splitlines()
    assert said in first
    assert not more or "--max-size" in first, "only the biggest files get lines of their own"


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
    allowed = Called("submit", "--patience", "0", "--allow", "notes.txt", *words, cwd=tmp_path)
    assert allowed.code == 3  # it goes so far as to ask
    spelled = Called("submit", *words, "--study", f"postgresql://h/{PLANTED['WANDB_API_KEY']}", cwd=tmp_path)
    assert spelled.code == 2
    assert PLANTED["WANDB_API_KEY"] not in held.err + spelled.err


@pytest.mark.usefixtures("nowhere")
def test_an_address_that_does_not_answer_is_one_line_within_seconds(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    began = time.monotonic()
    called = Called("submit", "--patience", "0", "run", "quickstart", "--store", "s3://b/s", cwd=tmp_path)
    assert (called.code, called.err.count("\n")) == (3, 1)
    assert "127.0.0.1:1 does not answer" in called.err
    assert time.monotonic() - began < 10


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize("words", [["--patience", "0.3", "status"], ["logs", "x", "--patience", "0.3"]])
def test_an_address_that_does_not_answer_yet_is_said_at_once_and_tried_for_as_long_as_asked(words: list[str]) -> None:
    began = time.monotonic()
    called = Called("submit", *words)
    assert 0.3 <= time.monotonic() - began < 10
    first, last = called.err.splitlines()
    assert first.endswith("; trying again for 0.3 s, Ctrl-C ends it")
    assert last.endswith("; no answer for 0.3 s")
    assert called.code == 3


@pytest.mark.usefixtures("nowhere")
def test_the_address_of_the_submission_comes_before_that_of_the_environment() -> None:
    words = ["submit", "--patience", "0", "--address", "http://127.0.0.1:2"]
    assert "127.0.0.1:2 does not answer" in Called(*words, "status").err
    assert "127.0.0.1:3 does not answer" in Called(*words, "status", "--address", "http://127.0.0.1:3").err


def test_the_help_of_a_command_says_what_submitting_adds() -> None:
    called = Called("submit", "run", "-h")
    assert called.code == 0
    assert "--levels" not in called.out
    assert "--fail-fast" in called.out
    assert "submitted, it gets `--address auto` and an --out" in called.out


def test_commands_that_only_look_are_told_from_those_that_start_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEDGEROW_STORE", "s3://b/s")
    starting = [["run", "quickstart"], ["resume", "r"], ["search", "--resume", "s"]]
    looking = [["runs"], ["plan", "quickstart"], ["show", "r"], ["doctor"], ["gc"], ["explain", "k"], ["sync"]]
    assert [remote_command(words).starts for words in starting + looking] == [True] * 3 + [False] * 7


def test_the_command_gets_the_clusters_address_and_a_folder_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEDGEROW_STORE", "s3://b/s")
    asked = remote_command(["run", "quickstart", "--set", "levels=2"])
    assert asked.words == [
        "run", "quickstart", "--set", "levels=2", "--store", "s3://b/s", "--address", "auto",
        "--out", "~/hedgerow-results",
    ]  # fmt: skip
    given = ["search", "search-sparsity", "--store", "/nfs/s", "--address", "10.0.0.1:6379", "--out", "/nfs/o"]
    assert remote_command(given).words == given
    assert remote_command(["runs"]).words == ["runs", "--store", "s3://b/s"]


def test_a_tree_may_begin_at_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    called = Called("submit", "--patience", "0", "--tree", "~/gone", "runs", "--store", "s3://b/s")
    assert (called.code, called.err) == (2, f"hedgerow: --tree {tmp_path}/gone: no such folder\n")
