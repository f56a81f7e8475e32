"""`hedgerow submit`: what is refused before a cluster is asked, and the command that one would get."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.workflows.submissions import PLANTED, Called
from workflows.command.submission import remote_command


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
