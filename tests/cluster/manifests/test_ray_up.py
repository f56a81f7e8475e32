"""Files for `ray up`, against the schema and the checks that come with Ray."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster.manifests import Group
from cluster.settings import RAY_ENVIRONMENT
from tests.cluster.manifests.manifests import STORE, documents, made

TARGETS = ("aws", "gcp", "local")


def _config(target: str, **fields: Any) -> dict[str, Any]:
    (text,) = made(target, **fields).files().values()
    return documents(text)[0]


@pytest.mark.parametrize("target", TARGETS)
def test_rays_launcher_takes_the_file(target: str) -> None:
    config = _config(target)
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    validate_config(prepare_config(config))
    with pytest.raises(jsonschema.ValidationError, match="head_node"):
        jsonschema.validate({**config, "head_node": {}}, schema)


@pytest.mark.parametrize("target", TARGETS)
def test_commands_are_good_bash_and_every_ray_process_reads_the_environment(target: str, tmp_path: Path) -> None:
    config = _config(target)
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    for command in [*config["initialization_commands"], *config["setup_commands"], *starts]:
        subprocess.run(["bash", "-n"], input=command, text=True, check=True)
    assert all(command.startswith("source ~/.hedgerow-environment; ") for command in starts)
    (writes,) = [command for command in config["setup_commands"] if command.startswith("echo 'export PATH")]
    script = f"{writes}; env -i HOME=$HOME PATH=$PATH bash -c 'source ~/.hedgerow-environment; env'"
    said = subprocess.run(["bash", "-c", script], env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}, text=True,
                          check=True, capture_output=True).stdout  # fmt: skip
    seen = dict(line.split("=", 1) for line in said.splitlines())
    assert {**RAY_ENVIRONMENT, "RAY_AUTH_MODE": "token", "HEDGEROW_STORE": STORE}.items() <= seen.items()
    assert seen["PATH"].startswith(f"{tmp_path}/hedgerow-venv/bin:")


@pytest.mark.parametrize("target", TARGETS)
def test_the_token_travels_as_a_file_and_the_dashboard_stays_on_loopback(target: str) -> None:
    config = _config(target)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.hedgerow/hedgerow.token"
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]
    assert " --dashboard-host=127.0.0.1 " in config["head_start_ray_commands"][1]


def test_spot_machines_watch_for_the_clouds_notice() -> None:
    for cloud, market in (("aws", {"MarketType": "spot"}), ("gcp", None)):
        config = _config(cloud)
        types = config["available_node_types"]
        spot, plain = types["gpu"]["node_config"], types["cpu"]["node_config"]
        if market:
            assert (spot["InstanceMarketOptions"], plain.get("InstanceMarketOptions")) == (market, None)
        else:
            assert (spot["scheduling"][0]["provisioningModel"], plain.get("scheduling")) == ("SPOT", None)
        assert f"--on-notice {cloud} --within 60 " in config["worker_start_ray_commands"][2]
        assert len(_config(cloud, groups=(Group(name="cpu"),))["worker_start_ray_commands"]) == 2


def test_workers_come_and_go_within_their_bounds_and_the_head_runs_no_step() -> None:
    config = _config("aws")
    types = config["available_node_types"]
    assert (types["gpu"]["min_workers"], types["gpu"]["max_workers"], config["max_workers"]) == (1, 4, 6)
    assert types["gpu"]["resources"] == {"CPU": 8, "GPU": 2}
    assert types["head"]["resources"] == {"CPU": 0}
    assert types["gpu"]["node_config"]["IamInstanceProfile"] == {"Name": "store"}


def test_no_port_is_opened_to_the_world() -> None:
    assert _config("aws")["provider"]["security_group"] == {"GroupName": "hedgerow"}


@pytest.mark.parametrize("target", TARGETS)
def test_the_step_that_makes_the_token_keeps_one_that_is_there(target: str, tmp_path: Path) -> None:
    (step,) = [step for step in made(target).steps("f") if "umask" in step]
    token = tmp_path / ".hedgerow/hedgerow.token"
    seen = []
    for _ in range(2):
        subprocess.run(["bash", "-c", step], env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]}, check=True)
        seen.append(token.read_text())
    assert seen[0] == seen[1]
    assert len(seen[0]) == 64
    assert token.stat().st_mode & 0o077 == 0
    token.write_text("")  # of an attempt that failed
    subprocess.run(["bash", "-c", step], env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]}, check=True)
    assert len(token.read_text()) == 64


@pytest.mark.parametrize("target", TARGETS)
def test_a_source_that_depends_on_where_one_stands_is_told_of(target: str) -> None:
    steps = made(target).steps("f")
    assert steps[steps.index(f"ray up f/ray-{target}.yaml") - 1].startswith("# `source: .`")
    assert not any(step.startswith("#") for step in made(target, source="/src/hedgerow").steps("f"))


@pytest.mark.parametrize(
    ("target", "fields", "said"),
    [
        ("aws", {"groups": (Group(name="a", gpus=1),)}, "needs the machine type"),
        ("local", {"store": "hedgerow-store"}, "folder that all machines mount"),
        ("local", {"head": "a b"}, "head"),
        ("gcp", {"project": None}, "project"),
    ],
)
def test_what_cannot_work_is_refused(target: str, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made(target, **fields).files()
