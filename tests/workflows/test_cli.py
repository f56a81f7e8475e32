"""The command line: what it refuses, and how; what it prints."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import group
from cluster.runs import named_steps
from cluster.store import Store, StoreError
from tests.workflows.conftest import SMALL, write_recipe
from workflows.command import cli, doctor, launch
from workflows.command.options import DEFAULT_STORE

Said = tuple[int, str, str]
"""Exit code, standard output, standard error."""
Call = Callable[..., Said]


@pytest.fixture
def hedgerow(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """The command line in this process, in an empty folder; a Ray session is a failure."""

    def no_session(*arguments: Any, **named: Any) -> Any:
        raise AssertionError("a Ray session was started")

    def call(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["hedgerow", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    monkeypatch.setattr(launch, "session", no_session)
    monkeypatch.chdir(tmp_path)
    return call


def refused(said: Said) -> str:
    """The one line with which a request was refused."""
    code, out, err = said
    assert (code, out) == (2, ""), said
    (line,) = err.splitlines()
    assert line.startswith("hedgerow: ")
    return line.removeprefix("hedgerow: ")


def small(**train: Any) -> dict[str, Any]:
    return {**SMALL, "train": {**SMALL["train"], **train}}


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({**SMALL, "kind": "ipm"}, "recipe small: no workflow is called 'ipm'; did you mean 'imp'?"),
        (small(epoch=3), "recipe small: train.epoch: unknown field; did you mean 'epochs'?"),
        (small(optimizer={"kind": "sgd", "learning_rate": "fast"}), "recipe small: train.optimizer.learning_rate: "),
        ({**SMALL, "attacks": ["fgsm", {"kind": "pgd", "steps": "x"}]}, "recipe small: attacks.1.steps: "),
        ({**SMALL, "replicates": 0}, "recipe small: replicates: Input should be greater than or equal to 1 (found 0)"),
        (
            {**SMALL, "levels": None, "sparsity": 0.9999999},
            "recipe small: sparsity: sparsity 0.9999999 is out of reach",
        ),
        (
            small(architecture={"kind": "vit", "patch": 5}),
            "recipe small: train.architecture: vit needs height and width",
        ),
        (
            small(data={"kind": "cifar10", "root": "nowhere"}),
            "recipe small: train.data: cifar10: nowhere/cifar-10-batches-py lacks",
        ),
        (
            small(data={"kind": "image-folder", "root": "nowhere"}),
            "recipe small: train.data: nowhere/train: no such folder",
        ),
        (small(gpus=64), "train.gpus: 64 asked for, but this machine has "),
        (small(threads=4096), "train.threads: 4096 asked for, but this machine has "),
        ("kind: [imp", "recipe small.yaml, line 1: not YAML: "),
        ("- imp", "recipe small.yaml: a recipe is a mapping with a `kind`, not a list"),
        ("", "recipe small.yaml: a recipe is a mapping with a `kind`, not an empty file"),
    ],
    ids=lambda value: value.split(":")[1].strip()[:20] if isinstance(value, str) and ":" in value else None,
)
def test_a_bad_recipe_is_refused_in_one_line_before_anything_starts(
    hedgerow: Call, tmp_path: Path, command: str, content: Any, line: str
) -> None:
    write_recipe(tmp_path, content)
    said = hedgerow(command, "small.yaml", "--store", "store")
    if command == "plan" and "asked for" in line:
        assert said[0] == 0  # a plan may be made on another machine than the run
        return
    assert refused(said).startswith(line), said
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


def test_a_recipe_that_is_not_there_is_refused(hedgerow: Call, tmp_path: Path) -> None:
    assert refused(hedgerow("run", "quikstart")).startswith(
        "no recipe is called 'quikstart'; did you mean 'quickstart'?"
    )
    assert refused(hedgerow("run", "./none.yaml")) == "recipe ./none.yaml: cannot be read: No such file or directory"
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    assert "recipe bytes.yaml" in refused(hedgerow("run", "bytes.yaml"))
    assert refused(hedgerow("run", ".//")).startswith("recipe .//: cannot be read")
    assert [path.name for path in tmp_path.iterdir()] == ["bytes.yaml"]


def test_a_bad_override_is_refused(hedgerow: Call, tmp_path: Path) -> None:
    write_recipe(tmp_path)
    assert refused(hedgerow("run", "small.yaml", "--set", "levels")) == "--set levels: give it as a.b=c"
    assert refused(hedgerow("run", "small.yaml", "--set", "epsilons.4=1")).startswith(
        "--set epsilons.4=1: '4' is no place"
    )
    assert not (tmp_path / DEFAULT_STORE).exists()


def test_damaged_data_are_refused(hedgerow: Call, tmp_path: Path) -> None:
    for part in ("train", "t10k"):
        for name in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"):
            (tmp_path / name).write_bytes(b"not mnist")
    write_recipe(tmp_path, small(data={"kind": "mnist", "root": str(tmp_path)}))
    assert "its content is not that of the published mnist file" in refused(hedgerow("run", "small.yaml"))


def test_a_store_that_is_no_store_is_refused(hedgerow: Call, tmp_path: Path) -> None:
    write_recipe(tmp_path)
    (tmp_path / "file").touch()
    assert refused(hedgerow("run", "small.yaml", "--store", "file")).startswith("--store: cannot make the folder")
    assert "unknown scheme 'ftp'" in refused(hedgerow("plan", "small.yaml", "--store", "ftp://here/x"))
    line = refused(hedgerow("plan", "small.yaml", "--store", "s3://me:secret@bucket/x"))
    assert "must not hold credentials" in line
    assert "secret" not in line


@pytest.mark.parametrize("words", [("run", "small.yaml"), ("top", "--once")], ids=["run", "top"])
def test_a_store_where_nothing_listens_is_told_within_seconds(
    hedgerow: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.setenv(name, "x")
    write_recipe(tmp_path)
    started = time.monotonic()
    code, out, err = hedgerow(*words, "--store", "s3://bucket/x")
    assert time.monotonic() - started < 20
    (line,) = err.splitlines()
    assert (code, out) == (3, ""), line
    assert line.startswith("hedgerow: --store s3://bucket/x: Error performing ")
    assert f"127.0.0.1:{port}" in line


@pytest.mark.parametrize("command", ["resume", "show"])
def test_an_unknown_run_is_refused_with_those_that_exist(hedgerow: Call, finished: Store, command: str) -> None:
    (run_id,) = finished.folders("runs")
    assert refused(hedgerow(command, "nope", "--store", finished.url)) == (
        f"no run starts with 'nope'; runs here: {run_id}"
    )
    Path("empty").mkdir()
    assert refused(hedgerow(command, "nope", "--store", "empty")).endswith("runs here: none yet")


def test_other_wrong_requests_are_refused(hedgerow: Call, finished: Store) -> None:
    store = ("--store", finished.url)
    assert refused(hedgerow("explain", "zz", *store)).startswith("'zz' is no step's key")
    assert refused(hedgerow("gc", "--forget", "nope", *store)).startswith("gc: no run starts with 'nope'")
    assert refused(hedgerow("schema", "ipm")).startswith("no workflow is called 'ipm'")
    assert refused(hedgerow("runs", "--store", "az://")).startswith("--store az://: ")


def test_an_unknown_way_of_tracking_is_refused(hedgerow: Call, tmp_path: Path) -> None:
    write_recipe(tmp_path)
    assert "'maybe' is no mode" in refused(hedgerow("run", "small.yaml", "--wandb", "maybe"))


def modules_of(*arguments: str) -> set[str]:
    """What a process has imported that was given these words of a command line; none only imports it."""
    program = (
        "import sys\nfrom workflows.command.cli import app\n"
        "if sys.argv[1:]: app(standalone_mode=False)\n"
        "print('imported', *sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stderr
    return set(said.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("words", [(), ("--help",), ("runs",), ("top", "--once"), ("submit", "--help"), ("gc",)])
def test_what_needs_no_workflow_starts_without_torch_and_ray(tmp_path: Path, words: tuple[str, ...]) -> None:
    store = ("--store", str(tmp_path)) if words and "--help" not in words else ()
    imported = modules_of(*words, *store)
    assert "workflows.command.cli" in imported
    assert not imported & {"torch", "ray", "wandb", "matplotlib"}


def test_ray_is_not_even_imported_for_a_bad_recipe(tmp_path: Path) -> None:
    write_recipe(tmp_path, small(epoch=3))
    program = (
        "import sys\nfrom workflows.command.cli import main\n"
        "sys.argv = ['hedgerow', 'run', 'small.yaml']\n"
        "try:\n    main()\nfinally:\n    print('ray' in sys.modules)\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert (said.returncode, said.stdout) == (2, "False\n")
    (line,) = said.stderr.splitlines()
    assert line.startswith("hedgerow: recipe small: train.epoch: unknown field; did you mean 'epochs'? allowed: ")
    assert os.listdir(tmp_path) == ["small.yaml"]


def test_a_run_whose_steps_are_all_stored_needs_no_ray(hedgerow: Call, finished: Store, tmp_path: Path) -> None:
    write_recipe(tmp_path)
    code, out, err = hedgerow("run", "small.yaml", "--store", finished.url, "--out", "results")
    assert (code, err) == (0, "")
    assert "8 steps, 8 stored, 0 to run" in out
    (run_id,) = finished.folders("runs")
    written = {path.name for path in (tmp_path / "results" / run_id).iterdir()}
    assert written == {"figure.png", "table.md", "results.json"}
    assert hedgerow("resume", run_id[:7], "--store", finished.url)[0] == 0


def test_json_is_all_that_standard_output_holds(
    hedgerow: Call, finished: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_ray", list)
    write_recipe(tmp_path)
    (run_id,) = finished.folders("runs")
    key = next(iter(named_steps(finished, run_id)))
    calls = [("run", "small.yaml"), ("resume", run_id), ("plan", "small.yaml"), ("show", run_id), ("explain", key)]
    found = {}
    for call in [*calls, ("runs",), ("gc",), ("doctor",)]:
        code, out, _ = hedgerow(*call, "--store", finished.url, "--json")
        assert code == 0, call
        found[call[0]] = json.loads(out)
    assert found["run"]["run"] == found["show"]["id"] == found["runs"][0]["id"] == run_id
    assert found["run"]["results"] == found["show"]["results"]
    assert found["plan"]["to_run"] == 0
    assert found["explain"]["key"] == key
    assert found["gc"]["removed"] is False
    for call in (("methods",), ("schema",)):
        assert json.loads(hedgerow(*call, "--json")[1])


def test_the_other_commands_speak_to_people_too(hedgerow: Call, finished: Store) -> None:
    (run_id,) = finished.folders("runs")
    assert "finished, 8 of 8 steps stored" in hedgerow("show", run_id, "--store", finished.url)[1]
    assert "Goodfellow" in hedgerow("methods")[1]
    key = next(iter(named_steps(finished, run_id)))
    assert f"step {key}" in hedgerow("explain", key[:12], "--store", finished.url)[1]
    assert "nothing to remove" in hedgerow("gc", "--store", finished.url)[1]


def test_gc_removes_only_when_told_to(hedgerow: Call, finished: Store) -> None:
    (run_id,) = finished.folders("runs")
    forget = ("gc", "--forget", run_id, "--store", finished.url)
    assert "nothing was removed" in hedgerow(*forget)[1]
    assert len(list(finished.folders("steps"))) > 0
    assert hedgerow(*forget, "--yes")[0] == 0
    assert not list(finished.paths(""))


def test_a_wrong_check_of_the_doctor_is_an_exit_code(
    hedgerow: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_ray", list)
    (tmp_path / "file").touch()
    code, out, _ = hedgerow("doctor", "--store", "file")
    assert code == 3
    assert "wrong" in out


def test_more_threads_than_workers_are_refused_instead_of_waiting_for_ever(hedgerow: Call, tmp_path: Path) -> None:
    write_recipe(tmp_path, small(threads=2))
    line = refused(hedgerow("run", "small.yaml", "--store", "store", "--workers", "1"))
    assert line == "train.threads: 2 asked for, but --workers is 1"


def test_more_processes_than_workers_or_no_ray_train_is_refused_before_any_work(
    hedgerow: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recipe(tmp_path, small(world_size=2))
    monkeypatch.setattr(group, "PACKAGES", ())
    line = refused(hedgerow("run", "small.yaml", "--store", "store", "--workers", "1"))
    assert line == "train.threads: 1 for each of 2 processes asked for, but --workers is 1"
    monkeypatch.setattr(group, "PACKAGES", ("json", "no_such_package"))
    line = refused(hedgerow("run", "small.yaml", "--store", "store", "--workers", "2"))
    assert line.startswith("a step in several processes needs Ray Train, and no_such_package for it: ")


def test_a_folder_for_results_that_cannot_be_is_refused_before_any_work(hedgerow: Call, tmp_path: Path) -> None:
    write_recipe(tmp_path)
    (tmp_path / "file").touch()
    line = refused(hedgerow("run", "small.yaml", "--store", "store", "--out", "file"))
    assert line.startswith("--out file/small-")
    assert line.endswith(": cannot make the folder: Not a directory")


@pytest.mark.parametrize(
    "address", ["here", "host:", ":6379", "host:port", "h:99999", "http://h:8265", "ray://h:10001"]
)
def test_an_address_that_is_none_is_a_wrong_request(hedgerow: Call, tmp_path: Path, address: str) -> None:
    write_recipe(tmp_path)
    for command in (["run", "small.yaml"], *([] if address.startswith("http:") else [["doctor"]])):
        line = refused(hedgerow(*command, "--address", address))
        assert line == f"--address {address}: allowed are `local`, `auto` and HOST:PORT, where Ray's GCS listens"


def test_what_goes_into_a_pipe_is_neither_cut_nor_wrapped(finished: Store) -> None:
    (run_id,) = finished.folders("runs")
    command = [sys.executable, "-m", "workflows.command.cli", "show", run_id, "--store", finished.url]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "COLUMNS": ""})
    assert said.returncode == 0, said.stderr
    assert "…" not in said.stdout
    assert "sample-steps of training\n" in said.stdout


def test_a_store_that_goes_away_before_the_report_costs_neither_the_code_nor_the_problems(
    hedgerow: Call, finished: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(store: Store, run_id: str) -> Any:
        raise StoreError("runs: the server is gone")

    monkeypatch.setattr(launch, "finished_steps", gone)
    write_recipe(tmp_path)
    code, _, err = hedgerow("run", "small.yaml", "--store", finished.url)
    assert code == 3
    problem, resume = err.splitlines()
    assert problem == "no report was written: runs: the server is gone; the results are in the store"
    assert resume.startswith("to go on: hedgerow resume small-")


def test_a_signal_before_the_first_step_is_one_line_and_a_code(
    hedgerow: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recipe(tmp_path)
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 75)):
        monkeypatch.setattr(launch, "plan_of", lambda *arguments, number=number: signal.raise_signal(number))
        said = hedgerow("run", "small.yaml", "--store", "a store")
        assert said == (code, "", "to go on: hedgerow run small.yaml --store 'a store'\n")


def test_a_signal_that_was_swallowed_while_ray_started_still_stops_the_run(
    hedgerow: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def careless(*arguments: Any, **named: Any) -> Iterator[Any]:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        yield None

    monkeypatch.setattr(launch, "session", careless)
    write_recipe(tmp_path)
    code, _, err = hedgerow("run", "small.yaml", "--store", "store")
    assert (code, err) == (130, "to go on: hedgerow run small.yaml --store store\n")


def test_sync_tells_what_it_pushed_as_json_too(
    hedgerow: Call, finished: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run_id,) = finished.folders("runs")
    monkeypatch.setattr("cluster.tracking.sync", lambda store, run, folder: {run: 7})
    code, out, _ = hedgerow("sync", "--store", finished.url, "--json")
    assert (code, json.loads(out)) == (0, {run_id: 7})
    assert hedgerow("sync", "--store", finished.url) == (0, f"{run_id}: 7 steps pushed\n", "")
