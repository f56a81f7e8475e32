"""`hedgerow cluster manifest`: requests that would fail only on the cluster, and how what is wrong is said."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from workflows.command.cli import app
from workflows.command.recipe import BadRequest
from workflows.command.terminal import PIPE_WIDTH, width

STORE = ("--store", "s3://bucket/store")


def _run(*words: str) -> Result:
    return CliRunner().invoke(app, ["cluster", "manifest", *words], catch_exceptions=False)


def _refused(*words: str) -> str:
    with pytest.raises(BadRequest) as refused:
        _run(*words)
    return str(refused.value)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEDGEROW_STORE", raising=False)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("run", "nosuchrecipe"), "command: no recipe is called 'nosuchrecipe'"),
        (("run", "imp-cifar10", "--frob", "1"), "command: run: No such option"),
        (("run",), "command: run: Missing argument"),
        (("resume",), "command: resume: Missing argument"),
        (("run", "imp-cifar10", "--set", "levels=none"), "command: recipe imp-cifar10: levels: Input should be"),
        (("search",), "command: search: give a recipe"),
        (("search", "quickstart"), "command: recipe quickstart: not a search"),
        (("hedgerow", "run", "nosuchrecipe"), "command: no recipe is called 'nosuchrecipe'"),
    ],
)
def test_a_command_that_hedgerow_would_refuse_is_refused_here(command: tuple[str, ...], said: str) -> None:
    lines = _refused("kuberay", *STORE, "--", *command).splitlines()
    assert len(lines) == 1
    assert said in lines[0]


@pytest.mark.parametrize(
    "command", [("resume", "imp-12"), ("search", "--resume", "x"), ("search", "search-colt", "--trials", "3")]
)
def test_commands_about_which_the_store_alone_knows_are_taken(command: tuple[str, ...], tmp_path: Path) -> None:
    _run("kuberay", *STORE, "--", *command)
    assert " ".join(command) in (tmp_path / "hedgerow-cluster/job.yaml").read_text()


def test_a_recipe_file_is_refused_where_no_node_has_it_and_read_where_it_goes_along(tmp_path: Path) -> None:
    said = _refused("kuberay", *STORE, "--", "run", "mine.yaml")
    assert "recipe mine.yaml: it is not in the image" in said
    assert "`hedgerow submit`" in said
    assert "cannot be read" in _refused("slurm", "--", "run", "mine.yaml")
    (tmp_path / "mine.yaml").write_text("kind: imp\n")
    assert "recipe mine: train" in _refused("slurm", "--", "run", "mine.yaml")


def test_a_missing_store_hides_no_mistake_of_the_command() -> None:
    said = _refused("kuberay", "--", "run", "nosuchrecipe").splitlines()
    assert [line.split(": ")[1] for line in said] == ["store", "command"]


@pytest.mark.parametrize(
    "given", [("--set", "name=a", "--set", "name=b"), ("--name", "a", "--set", "name=b"), (*STORE, "--set", "store=/x")]
)
def test_a_field_is_given_once(given: tuple[str, ...]) -> None:
    assert "leave one out" in _refused("slurm", *given)


def test_options_of_other_targets_are_called_so() -> None:
    assert _refused("slurm", "--image", "x") == "slurm: --image is not for it, but for kuberay"
    assert _refused("local", "--group", "a") == "local: --group is not for it, but for kuberay, aws, gcp"


def test_no_regular_expression_is_shown() -> None:
    said = _refused("kuberay", *STORE, "--name", "Lab", "--group", "a", "--set", "image=a b", "--set", "ray=2")
    assert len(said.splitlines()) == 3
    assert "^" not in said
    assert "pattern" not in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--group", "gpu:cpus=99999999999999999999"), "cpus: Input should be less than or equal to 1000000"),
        (("--set", "retries=1000000000000"), "retries: Input should be less than or equal to 1000000"),
        (("--set", "deadline_hours=1000000"), "deadline_hours: Input should be less than or equal to 100000"),
        (("--group", "gpu:cpus"), "--group gpu:cpus: cpus needs a value, as in cpus=..."),
        (("--group", "gpu:type="), "--group gpu:type=: type needs a value, as in type=..."),
        (("--set", "head_cpus="), "--set head_cpus=: head_cpus needs a value"),
        (("--set", "groups=gpu"), "groups is a list; write it as --set 'groups=[\"gpu\"]'"),
        (("--out", "a" * 300), ": cannot be written to: File name too long"),
        (("--", "run", ""), "command: no recipe is called ''; shipped: "),
    ],
)
def test_what_no_cluster_takes_is_told_in_words(given: tuple[str, ...], said: str) -> None:
    assert said in _refused("kuberay", *STORE, *given)


def test_a_list_can_be_written_as_the_refusal_of_another_says(tmp_path: Path) -> None:
    said = _refused("slurm", "--set", "setup=module load x, y")
    _run("slurm", *shlex.split(said.partition("write it as ")[2]))
    assert "\nmodule load x, y\n" in (tmp_path / "hedgerow-cluster/hedgerow.sbatch").read_text()


def test_a_field_that_may_be_left_out_may_be_given_nothing(tmp_path: Path) -> None:
    _run("slurm", "--set", "partition=")
    assert "--partition" not in (tmp_path / "hedgerow-cluster/hedgerow.sbatch").read_text()


def test_a_profile_is_given_by_its_name() -> None:
    said = _refused("aws", *STORE, "--set", "instance_profile=arn:aws:iam::1:instance-profile/x")
    assert "instance_profile: allowed: the name of the profile, not its ARN" in said


def test_the_home_folder_is_meant_where_no_shell_has_put_it_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert "sbatch " in _run("slurm", "--out", "~/x y").stdout
    assert (tmp_path / "home/x y/hedgerow.sbatch").exists()
    assert not (tmp_path / "~").exists()


def test_nothing_is_no_folder_to_write_to(tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["cluster", "manifest", "slurm", "--out", ""])
    assert said.exit_code == 2
    assert "it is empty; give a folder" in said.output
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_folder_to_write_to(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    for out in ("taken", "taken/below"):
        assert _refused("slurm", "--out", out) == f"--out {out}: taken is a file; give a folder"


def test_json_says_only_what_was_written() -> None:
    assert "give one of them" in _refused("slurm", "--stdout", "--json")


@pytest.mark.parametrize(("columns", "wide"), [("100", 100), ("", PIPE_WIDTH), (None, PIPE_WIDTH)])
def test_tables_in_a_pipe_are_as_wide_as_columns_says(
    columns: str | None, wide: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    assert Console(width=width(to_terminal=False)).width == wide
