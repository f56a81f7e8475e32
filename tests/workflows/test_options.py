"""The options of what runs a recipe: the command that goes on says them again, and none is forgotten."""

from __future__ import annotations

import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from workflows.command import cli, inspect, launch, search  # whole before anything of them is replaced
from workflows.command.exit_codes import Exit
from workflows.command.options import DEFAULT_STORE, Options, resume_command

EVERYWHERE = Options(
    store="my store",
    out=Path("my results"),
    address="h:1",
    workers=3,
    wandb="disabled",
    checkpoint=0.25,
    fail_fast=True,
    verify=True,
    place=["gpus=auto", "train:zone=in(a,b)"],
    wait_for_nodes=12345678.0,
    rejoin=2.5,
)
"""Every option that all commands have, as nobody has it who gives none."""


@pytest.mark.parametrize("study", [None, "sqlite:///a study.db"])
def test_the_command_that_goes_on_repeats_every_option(monkeypatch: pytest.MonkeyPatch, study: str | None) -> None:
    asked: list[Options] = []

    def note(recipe: Any, options: Options, *rest: Any) -> launch.Ended:
        asked.append(options)
        return launch.Ended(Exit.DONE, "r-1", [])

    monkeypatch.setattr(launch, "launch", note)
    monkeypatch.setattr(launch, "open_store", lambda url: None)
    monkeypatch.setattr(inspect, "recorded_recipe", lambda store, run_id: run_id)
    monkeypatch.setattr(search, "loaded_search", lambda name, go_on, *rest: go_on)
    for options in (replace(EVERYWHERE, study=study), Options(study=study)):
        said = CliRunner().invoke(cli.app, shlex.split(resume_command("r-1", options))[1:])
        assert said.exit_code == 0, said.output
        assert asked.pop() == options
    usual = Options()
    alike = [field.name for field in fields(Options) if getattr(EVERYWHERE, field.name) == getattr(usual, field.name)]
    assert alike == ["study"], "this test would not see whether these are repeated"


def test_the_command_that_goes_on_is_short_where_nothing_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resume_command("r-1", Options()) == "hedgerow resume r-1"
    assert resume_command("r-1", Options(wait_for_nodes=60.0, fail_fast=True)) == (
        "hedgerow resume r-1 --fail-fast --wait-for-nodes 60"
    )
    monkeypatch.setenv("HEDGEROW_STORE", "s3://ours/all")
    assert resume_command("r-1", Options("s3://ours/all")) == "hedgerow resume r-1"
    assert resume_command("r-1", Options()) == f"hedgerow resume r-1 --store {DEFAULT_STORE}"
