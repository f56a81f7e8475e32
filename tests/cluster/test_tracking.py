"""Tracking follows a run without ever being in its way."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster import tracking, wandb_sink
from cluster.follower import scalars
from cluster.store import Store
from cluster.tracking import choose_mode, sync
from cluster.tracking_cursor import Cursor
from cluster.wandb_sink import Sink, TrackingFailed
from tests.cluster.tracked import MARKER, Driver, content, core_of, exit_code, is_gone, keys, offline_runs, rows, until


@pytest.fixture(autouse=True)
def _nothing_of_wandb_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for kind in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{kind}_DIR", str(tmp_path / "wandb-home"))


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    driver = Driver(tmp_path)
    yield driver
    driver.log.close()


def test_an_offline_run_has_the_rows_of_every_step_of_its_chain(driver: Driver) -> None:
    tracker = driver.track()
    driver.finish(0, 1)
    driver.finish(0, replicate=1)
    driver.log.close()
    assert tracker.stop() == ""

    first, second = offline_runs(driver.results, {"replicate": 0}), offline_runs(driver.results, {"replicate": 1})
    assert [len(rows(records)) for records in first + second] == [6, 3]
    numbers, values = zip(*rows(first[0]), strict=True)
    assert numbers == tuple(range(6))
    assert values[0] == {"curves/evaluate/epoch": 1, "curves/evaluate/loss": 2, "level": 0}
    assert values[5].pop("key")
    assert values[5] == {
        "evaluate/clean/accuracy": 0.5,
        "evaluate/robust/0.1/accuracy": 0.25,
        "evaluate/robust/0.2/accuracy": 0.125,
        "evaluate/sparse": 1,
        "level": 1,
    }
    about = next(record["run"] for record in first[0] if record["type"] == "run")
    assert about["run_id"] == hashlib.sha256(b'run1 {"replicate":0}').hexdigest()[:16]
    assert (about["project"], about["run_group"]) == ("mnist-lottery", "run1")
    assert (about["display_name"], about["job_type"]) == ("replicate 0", "lottery")
    config = about["config"]["update"]
    assert (config["kind"], config["rounds"], config["at"]) == ("lottery", 3, {"replicate": 0})
    assert exit_code(first[0]) == exit_code(second[0]) == 0


def test_a_resumed_run_goes_on_in_the_same_wandb_run_and_repeats_nothing(tmp_path: Path) -> None:
    for levels in ((0, 1), (0, 1, 2)):
        driver = Driver(tmp_path)
        tracker = driver.track()
        driver.finish(*levels)
        driver.log.close()
        assert tracker.stop() == ""
    before, after = offline_runs(driver.results, {"replicate": 0})
    assert [number for number, _ in rows(before)] == [0, 1, 2, 3, 4, 5]
    assert [number for number, _ in rows(after)] == [6, 7, 8]
    assert [row["level"] for _, row in rows(after)] == [2, 2, 2]


def test_a_step_that_another_run_computed_is_tracked_in_this_one_too(driver: Driver, tmp_path: Path) -> None:
    driver.finish(0)
    other = Driver(tmp_path, "run2")
    other.finish(0)
    other.log.close()
    assert sync(other.store, "run2", other.results, "offline") == {"run2": 1}


def test_a_killed_tracker_is_told_of_in_one_line_and_sync_makes_up_for_it(driver: Driver) -> None:
    tracker = driver.track()
    driver.finish(0)
    core = core_of(tracker)
    until(lambda: b'"next": {"' in (driver.store.get("runs/run1/tracking-offline.json") or b""))
    assert tracker.pid is not None
    os.kill(tracker.pid, signal.SIGKILL)
    driver.finish(1)
    driver.log.close()
    before = content(driver.store)

    began = time.monotonic()
    message = tracker.stop()
    assert time.monotonic() - began < 1
    assert "hedgerow sync run1" in message
    assert "\n" not in message
    until(lambda: is_gone(core))

    assert sync(driver.store, None, driver.results, "offline") == {"run1": 2}
    assert sync(driver.store, None, driver.results, "offline") == {"run1": 0}
    assert content(driver.store) == before
    late = offline_runs(driver.results, {"replicate": 0})[-1]
    assert len(keys(late)) == 2
    assert [number for number, _ in rows(late)] == [3, 4, 5, 6, 7, 8]  # beyond what the killed one may have used


def test_a_killed_wandb_core_is_told_of_and_nothing_counts_as_tracked(driver: Driver) -> None:
    tracker = driver.track()
    driver.finish(0)
    core_of(tracker).kill()
    driver.finish(1)
    driver.log.close()
    before = content(driver.store)
    began = time.monotonic()
    message = tracker.stop()
    assert time.monotonic() - began < 5
    assert "hedgerow sync run1" in message
    assert json.loads(driver.store.get("runs/run1/tracking-offline.json") or b"")["logged"] == []
    assert content(driver.store) == before


def test_an_unreachable_server_costs_the_driver_no_more_than_its_patience(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", MARKER)
    tracker = driver.track("online")
    driver.finish(0)
    driver.log.close()
    core = core_of(tracker)
    began = time.monotonic()
    message = tracker.stop(patience=1)
    assert time.monotonic() - began < 4
    assert "hedgerow sync run1" in message
    until(lambda: is_gone(core))

    monkeypatch.setattr(wandb_sink, "INIT_SECONDS", 1)
    Sink("online", driver.results, 1).abandon()  # W&B in this process reads the environment anew
    with pytest.raises(TrackingFailed, match=r"127\.0\.0\.1:9.*refused") as failure:
        sync(driver.store, "run1", driver.results)
    assert "\n" not in str(failure.value)
    assert files_with(MARKER, driver.results, Path(driver.store.url)) == []


def test_the_api_key_is_in_no_file(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", MARKER)
    tracker = driver.track()
    driver.finish(0)
    driver.log.close()
    assert tracker.stop() == ""
    assert files_with("replicate", driver.results, Path(driver.store.url)) != []
    assert files_with(MARKER, driver.results.parent) == []


def test_the_api_key_is_cut_out_of_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", MARKER)
    assert wandb_sink.one_line(ValueError(f"bad key\n {MARKER}!")) == "bad key ***!"


def files_with(text: str, *folders: Path) -> list[Path]:
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if text.encode() in path.read_bytes()]


def test_a_folder_that_cannot_be_made_is_told_of(driver: Driver) -> None:
    driver.results.write_text("in the way")
    tracker = driver.track()
    driver.finish(0)
    driver.log.close()
    before = content(driver.store)
    message = tracker.stop()
    assert "Not a directory" in message or "File exists" in message
    assert content(driver.store) == before


@pytest.mark.parametrize("room", [0, 3])
def test_a_full_disk_is_told_of_although_wandb_does_not_notice(tmp_path: Path, room: int) -> None:
    (tmp_path / "results").mkdir()
    mount = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=4m none "$0" && exec "$@"', str(tmp_path / "results")]
    if subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("no mounts here")
    script = textwrap.dedent("""
        import shutil, sys
        from pathlib import Path
        from tests.cluster.test_tracking import Driver, content, core_of
        driver = Driver(Path(sys.argv[1]))
        fill = lambda size: (driver.results / str(size)).write_bytes(bytes(size))
        fill(shutil.disk_usage(driver.results).free - int(sys.argv[2]) * 2**20)
        tracker = driver.track()
        driver.finish(0)
        if int(sys.argv[2]):
            core_of(tracker)
            fill(shutil.disk_usage(driver.results).free)
        driver.log.close()
        before = content(driver.store)
        print(tracker.stop())
        assert content(driver.store) == before
    """)
    told = subprocess.run(
        [*mount, sys.executable, "-c", script, str(tmp_path), str(room)], capture_output=True, text=True
    )
    assert "No space left on device" in told.stdout, told.stderr


def test_tracking_stays_out_of_the_way(driver: Driver) -> None:
    began = time.monotonic()
    tracker = driver.track()
    assert time.monotonic() - began < 0.5
    process = psutil.Process(tracker.pid)
    niced = min(19, psutil.Process().nice() + 19)
    until(lambda: process.nice() == niced)
    driver.finish(0)
    core = core_of(tracker)
    assert core.nice() == niced
    assert {os.getsid(process.pid), os.getsid(core.pid)}.isdisjoint({os.getsid(0)})  # Ctrl-C does not reach them
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    driver.log.close()
    assert tracker.stop() == ""


def test_a_tracker_whose_driver_is_killed_finishes_by_itself(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from tests.cluster.test_tracking import Driver
        driver = Driver(Path(sys.argv[1]))
        tracker = driver.track()
        driver.finish(0)
        driver.ask({"replicate": 0, "level": 1})
        driver.log._flush()
        print(tracker.pid, flush=True)
        time.sleep(60)
    """)
    driver = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    tracker = psutil.Process(int(driver.stdout.readline()))
    driver.kill()
    driver.communicate()
    until(lambda: is_gone(tracker))
    (records,) = offline_runs(tmp_path / "results")
    assert len(keys(records)) == 1
    assert exit_code(records) == 1  # a step of the chain was under way


def test_only_one_tracker_at_a_time_logs_a_run(driver: Driver) -> None:
    tracker = driver.track()
    driver.finish(0)
    until(lambda: b'"next": {"' in (driver.store.get("runs/run1/tracking-offline.json") or b""))
    with pytest.raises(TrackingFailed, match=f"process {tracker.pid} is tracking this run"):
        sync(driver.store, "run1", driver.results, "offline")
    driver.log.close()
    assert tracker.stop() == ""
    assert len(offline_runs(driver.results)) == 1


def test_of_two_who_claim_the_turn_at_once_one_has_it(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    cursors = [Cursor(store, "run1", "offline") for _ in range(2)]
    data = None
    for cursor in cursors:  # both see a free turn
        if data is None:
            assert not cursor.take()
            data = store.get("runs/run1/tracking-offline.json")
            store.delete(["runs/run1/tracking-offline.json"])
        else:
            assert not cursor.take()
    time.sleep(0.6)
    assert [cursor.take() for cursor in cursors] == [False, True]
    with pytest.raises(TrackingFailed, match="took over"):
        cursors[0].save()


def test_events_of_drivers_side_by_side_are_all_tracked(driver: Driver, tmp_path: Path) -> None:
    later = Driver(tmp_path)
    later.finish(0)
    later.log.close()
    assert sync(driver.store, "run1", driver.results, "offline") == {"run1": 1}
    driver.finish(1)  # in objects that sort before those of the later driver
    driver.log.close()
    assert sync(driver.store, "run1", driver.results, "offline") == {"run1": 1}


def test_disabled_starts_no_process_and_leaves_nothing(driver: Driver) -> None:
    processes = psutil.Process().children()
    tracker = driver.track("disabled")
    assert tracker.pid is None
    assert psutil.Process().children() == processes
    driver.finish(0)
    assert tracker.stop() == ""
    assert not driver.results.exists()


def test_a_tracker_that_cannot_be_started_is_only_told_of(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking.sys, "executable", "/nowhere/python")
    assert "hedgerow sync run1" in driver.track().stop()


def test_the_mode_is_online_only_for_those_with_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", MARKER)
    assert choose_mode() == "online"
    assert choose_mode("offline") == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert choose_mode() == "disabled"
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY")
    for host in ("api.wandb.ai", "wandb.example:8080"):
        (tmp_path / "netrc").write_text(f"machine {host} login user password {MARKER}\n")
        monkeypatch.setenv("WANDB_BASE_URL", f"http://{host}")
        assert choose_mode() == "online"
        monkeypatch.setenv("WANDB_BASE_URL", "http://elsewhere.example")
        assert choose_mode() == "offline"
    with pytest.raises(ValueError, match="'on' is no mode; allowed: offline, online, disabled"):
        choose_mode("on")


def test_sync_without_a_key_says_what_to_do(driver: Driver) -> None:
    with pytest.raises(TrackingFailed, match="WANDB_API_KEY"):
        sync(driver.store, None, driver.results)


def test_lists_are_flattened_under_what_tells_their_items_apart() -> None:
    value = {"layers": [{"name": "fc1", "density": 0.5}], "losses": [2, 1.5], "digest": "x", "none": None, "ok": False}
    assert dict(scalars(value, "prune")) == {
        "prune/layers/fc1/density": 0.5,
        "prune/losses/0": 2,
        "prune/losses/1": 1.5,
        "prune/ok": 0,
    }
