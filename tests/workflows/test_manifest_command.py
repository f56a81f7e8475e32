"""`hedgerow cluster manifest`: what it writes, says and refuses."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from cluster.manifests import TARGETS
from tests.workflows.submissions import Called
from workflows.command.cli import app
from workflows.command.recipe import BadRequest
from workflows.command.remote import remote_command

STORE = ("--store", "s3://bucket/store")


def _run(*words: str) -> Result:
    return CliRunner().invoke(app, ["cluster", "manifest", *words], catch_exceptions=False)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEDGEROW_STORE", raising=False)


def test_files_are_written_and_the_next_commands_said(tmp_path: Path) -> None:
    said = _run("kuberay", *STORE, "--name", "lab", "--", "run", "imp-cifar10", "--set", "levels=8").stdout
    assert "wrote hedgerow-cluster/job.yaml" in said
    assert "kubectl -n hedgerow create secret generic lab-token" in said
    job = yaml.safe_load((tmp_path / "hedgerow-cluster/job.yaml").read_text())
    words = "hedgerow run imp-cifar10 --set levels=8 --address auto --wait-for-nodes 3600"
    assert job["spec"]["entrypoint"] == words


def test_groups_and_fields_are_taken(tmp_path: Path) -> None:
    _run(
        "kuberay",
        *STORE,
        "--group",
        "gpu:cpus=8,gpus=1,type=NVIDIA-H100,max=4,spot",
        "--set",
        "cloud=gke",
        "--image",
        "lab/h:1",
    )
    cluster = yaml.safe_load((tmp_path / "hedgerow-cluster/cluster.yaml").read_text())
    (group,) = cluster["spec"]["workerGroupSpecs"]
    assert (group["groupName"], group["maxReplicas"]) == ("gpu", 4)
    assert group["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert group["template"]["spec"]["containers"][0]["image"] == "lab/h:1"


def test_times_are_not_read_as_numbers(tmp_path: Path) -> None:
    _run("slurm", "--set", "time=12:00:00", "--set", "nodes=3", "--set", "partition=2024")
    script = (tmp_path / "hedgerow-cluster/hedgerow.sbatch").read_text()
    assert {"#SBATCH --time=12:00:00", "#SBATCH --nodes=3", "#SBATCH --partition=2024"} <= set(script.splitlines())


def test_a_changed_file_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    _run("slurm", "--out", "here")
    path = tmp_path / "here/hedgerow.sbatch"
    _run("slurm", "--out", "here")  # the same again
    path.write_text("mine")
    with pytest.raises(BadRequest, match="--force overwrites it"):
        _run("slurm", "--out", "here")
    assert path.read_text() == "mine"
    _run("slurm", "--out", "here", "--force")
    assert path.read_text().startswith("#!/bin/bash")


def test_stdout_and_fields_write_nothing(tmp_path: Path) -> None:
    assert "#SBATCH --requeue" in _run("slurm", "--stdout").stdout
    assert "instance_profile" in _run("aws", "--fields").stdout
    records = json.loads(_run("kuberay", "--fields", "--json").stdout)
    assert {"field": "image", "default": "hedgerow:latest"}.items() <= next(
        record for record in records if record["field"] == "image"
    ).items()
    for target in TARGETS:
        assert all(record["what"] for record in json.loads(_run(target, "--fields", "--json").stdout))
    assert not list(tmp_path.iterdir())


def test_json_says_what_was_written() -> None:
    said = json.loads(_run("local", *STORE, "--set", "head=10.0.0.1", "--json").stdout)
    assert said["files"] == ["hedgerow-cluster/ray-local.yaml"]
    assert said["next"][-1] == (
        "hedgerow submit --address http://127.0.0.1:8265 run quickstart --wait-for-nodes 3600 --store s3://bucket/store"
    )


@pytest.mark.parametrize("target", ["kuberay", "aws", "gcp", "local"])
def test_the_submission_that_is_named_can_be_pasted(target: str, tmp_path: Path) -> None:
    own = {"gcp": ("--set", "project=p"), "local": ("--set", "head=10.0.0.1")}.get(target, ())
    words = ("run", "quickstart", "--set", "train.data={kind: mnist-mini, validation: 1000}")
    said = json.loads(_run(target, *STORE, *own, "--json", "--", "hedgerow", *words).stdout)
    text = "\n".join([*said["next"], *(Path(file).read_text() for file in said["files"])])
    (line,) = re.findall(r"hedgerow submit --address http://127\.0\.0\.1:8265.*", text)
    pasted = shlex.split(line)
    assert remote_command(pasted[4:]).words[: len(words)] == list(words)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/a.txt").write_text("a")
    called = Called("submit", "--address", "http://127.0.0.1:1", "--patience", "0", *pasted[4:], cwd=tmp_path / "tree")
    assert (called.code, called.err.count("\n")) == (3, 1)  # goes so far as to ask a cluster that is not there
    assert "127.0.0.1:1 does not answer" in called.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("kubernetes",), "no manifest is called 'kubernetes'; allowed: kuberay, slurm, aws, gcp, local"),
        (("kuberay",), "kuberay: store: nodes come and go, so results need a place of their own; give --store URL"),
        (("slurm", "--set", "node=2"), "slurm: it has no field node; did you mean 'nodes'?"),
        (("slurm", "--set", "nodes=0"), "slurm: nodes: Input should be greater than or equal to 1"),
        (("slurm", "--set", "nodes"), "--set nodes: give it as field=value"),
        (("slurm", "--group", "a"), "slurm: --group is not for it, but for kuberay, aws, gcp"),
        (("kuberay", *STORE, "--group", "gpu:cpu=8"), "--group gpu:cpu=8: no such field: cpu; allowed: name, min, max"),
        (("kuberay", *STORE, "--set", "ray=2.57.1"), "kuberay: ray: 2.57.1 is too old; allowed: 2.58 and later"),
        (("slurm", "--set", "ray=2.9.3"), "slurm: ray: 2.9.3 is too old; allowed: 2.58 and later"),
        (("slurm", "--set", "time=10"), "slurm: time: 10 is hardly more than the notice, 120 s"),
        (("kuberay", *STORE, "--", "doctor"), "kuberay: command: 'doctor' starts no run; allowed: run, resume, search"),
        (("gcp", *STORE), "gcp: project: Field required"),
    ],
)
def test_a_wrong_request_is_refused_in_a_line(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(BadRequest) as refused:
        _run(*words)
    assert said in str(refused.value)
    assert not list(tmp_path.iterdir())
