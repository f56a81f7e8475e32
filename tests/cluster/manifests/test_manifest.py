"""What all manifests have in common: versions, words of the command, what is told of Ray's open doors."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest

from cluster.manifests import TARGETS, Slurm
from cluster.manifests.dockerfile import IGNORED
from cluster.manifests.manifest import RAY_SINCE
from cluster.tree import LEFT_OUT
from tests.cluster.manifests.manifests import OPEN_PAGES, made

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("target", TARGETS)
def test_a_leading_hedgerow_is_no_word_of_the_command(target: str) -> None:
    words = ("run", "imp", "--set", "a={b: 'c d'}")
    assert made(target, command=("hedgerow", *words)) == made(target, command=words)
    with pytest.raises(ValueError, match="starts no run"):
        made(target, command=("hedgerow", "hedgerow", *words))


@pytest.mark.parametrize("target", TARGETS)
def test_the_oldest_ray_is_the_one_that_the_package_asks_for(target: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = chain(project["dependencies"], *project["optional-dependencies"].values())
    floors = {match[1] for each in wanted if (match := re.fullmatch(r"ray\[\w+\]>=(.+)", each))}
    oldest = ".".join(map(str, RAY_SINCE))
    assert floors == {oldest}
    assert made(target, ray=f"{oldest}.0").files()
    with pytest.raises(ValueError, match=f"ray: 2.9.3 is too old; allowed: {oldest} and later") as refused:
        made(target, ray="2.9.3")
    assert str(refused.value).count("too old") == 1


@pytest.mark.parametrize("target", TARGETS)
def test_a_folder_with_blanks_stays_one_word_in_the_steps(target: str) -> None:
    steps = [step for step in made(target).steps("my clusters") if "my clusters" in step]
    assert steps
    for step in steps:
        assert any(word.startswith("my clusters/") for word in shlex.split(step)), step


def test_jobs_of_slurm_with_their_tokens_stay_at_home() -> None:
    folder = Slurm.model_fields["scratch"].default
    assert folder in LEFT_OUT
    assert f"**/{folder}" in IGNORED.splitlines()


@pytest.mark.parametrize(
    ("target", "file"),
    [("kuberay", "base.yaml"), ("kuberay", "job.yaml"), ("aws", "ray-aws.yaml"), ("local", "ray-local.yaml")],
)
def test_what_answers_without_the_token_is_named(target: str, file: str) -> None:
    comment = "\n".join(line for line in made(target).files()[file].splitlines() if line.startswith("#"))
    for page in OPEN_PAGES - {"/"}:
        assert page in comment
    assert "login page, `/`" in comment


@pytest.mark.parametrize("target", ["aws", "gcp", "local"])
def test_what_trainings_of_several_processes_need_is_installed(target: str) -> None:
    (text,) = made(target).files().values()
    (install,) = [line for line in text.splitlines() if "--reinstall-package hedgerow" in line]
    assert "~/hedgerow-source[multi-gpu]" in shlex.split(install)


def test_the_same_request_writes_the_same_bytes_in_every_process() -> None:
    program = (
        "import json\n"
        "from tests.cluster.manifests.manifests import FIELDS, made\n"
        "print(json.dumps({target: made(target).files() for target in FIELDS}))"
    )
    mine = {target: made(target).files() for target in TARGETS}
    for hashing in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hashing}
        said = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        assert json.loads(said.stdout) == mine


@pytest.mark.parametrize("target", TARGETS)
def test_comments_stay_readable(target: str) -> None:
    lines = [line for text in made(target).files().values() for line in text.splitlines()]
    comments = [line for line in lines if line.startswith("# ") and not line.startswith("#   ")]
    assert max(map(len, comments)) <= 120  # commands to copy, behind three blanks, stay whole
