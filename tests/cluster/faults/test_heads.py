"""What happens to Ray's head: killed, restarted, frozen, replaced. The driver goes on, or ends with 3 and goes on."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.executor import PATIENCE
from tests.cluster.clusters import Cluster, cluster
from tests.cluster.faults.climbs import Work
from tests.cluster.faults.trials import LIMIT, REPETITIONS, Trial, calm, trial

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


@contextmanager
def at_work(fault: str, made: Cluster, folder: Path, work: Work, link: int = 25) -> Iterator[Trial]:
    """A trial whose climbs have come so far."""
    calm(made, folder, work)
    with trial(fault, folder / "run", work) as run:
        run.start(made)
        run.until_at(link)
        yield run


@contextmanager
def restarted_gcs(made: Cluster, seconds: float) -> Iterator[None]:
    """The process that knows all nodes is killed, and started again after a while at the same port.

    What started the head would end all of it now: it is stopped, as a supervisor that has other things to do.
    """
    (gcs,) = made.head.members("gcs_server")
    command, environment = gcs.cmdline(), gcs.environ()
    made.head.process.send_signal(signal.SIGSTOP)
    gcs.kill()
    time.sleep(seconds)
    again = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield
    finally:
        again.kill()
        again.wait()


@pytest.mark.parametrize("repetition", range(REPETITIONS))
@pytest.mark.parametrize("storage", ["memory", "rocksdb"])
def test_a_gcs_that_is_killed_and_restarted_costs_no_result(tmp_path: Path, storage: str, repetition: int) -> None:
    """It forgets everything, or finds what it wrote down; the driver goes on, or ends with 3 and goes on."""
    durable = {"RAY_gcs_storage": storage, "RAY_gcs_storage_path": str(tmp_path / "gcs")} if storage != "memory" else {}
    with (
        cluster(2, 2, **durable) as made,
        at_work(f"GCS killed, restarted ({storage})", made, tmp_path, Work(end=100), 25 + repetition) as run,
    ):
        run.strike()
        with restarted_gcs(made, 2):
            run.repaired()
            if goes_on(run):
                run.figures(run.resumed(), went_on=True)
                return
        made.head.kill()
        made.start_head()
        made.add(2)
        run.repaired()
        run.start(made)
        run.finish()
        run.figures(run.resumed(), went_on=False)


@pytest.mark.parametrize("repetition", range(REPETITIONS))
def test_a_head_that_is_killed_and_restarted_costs_no_result(tmp_path: Path, repetition: int) -> None:
    with (
        cluster(2, 2) as made,
        at_work("head killed, restarted", made, tmp_path, Work(end=100), 25 + repetition) as run,
    ):
        run.strike()
        made.head.kill()
        time.sleep(2)
        made.start_head()
        run.repaired()
        went_on = goes_on(run)
        if not went_on:
            made.add(2)  # those of a head that is no more end themselves
            run.start(made)
            run.finish()
        run.figures(run.resumed(), went_on=went_on)


def goes_on(run: Trial) -> bool:
    """Whether the driver comes to its end all the same; if not, it must say so by its code."""
    driver = run.drivers[-1]
    code = driver.process.wait(LIMIT)
    assert code in (0, 3), driver.said()
    return code == 0


@pytest.mark.parametrize("repetition", range(REPETITIONS))
def test_a_frozen_head_is_noticed_within_the_drivers_patience(tmp_path: Path, repetition: int) -> None:
    """It takes connections and never answers; the driver ends with 3 and a reason, and another driver goes on."""
    with cluster(2) as made, at_work("head frozen", made, tmp_path, Work(end=600), 25 + repetition) as run:
        run.strike()
        made.head.signal(signal.SIGSTOP)
        run.finish(code=3, seconds=PATIENCE + 20)
        noticed = time.monotonic() - run.struck
        assert "has not answered for 40 s" in run.drivers[-1].said()
        made.head.signal(signal.SIGCONT)
        while not made.nodes or not _alive(made):
            made.add(2)
        run.repaired()
        run.start(made)
        run.finish()
        run.figures(run.resumed(), noticed=round(noticed, 1))
    assert noticed < PATIENCE + 15


def _alive(made: Cluster) -> bool:
    return made.nodes[-1].process.poll() is None


@pytest.mark.parametrize("repetition", range(REPETITIONS))
@pytest.mark.parametrize("where", ["same address", "another address"])
def test_a_fresh_cluster_goes_on_from_the_store_alone(tmp_path: Path, where: str, repetition: int) -> None:
    """Head and nodes are gone for good, with all that Ray knew."""
    with (
        cluster(2) as lost,
        at_work(f"cluster lost, fresh one at {where}", lost, tmp_path, Work(), 25 + repetition) as run,
    ):
        run.strike()
        for node in [*lost.nodes, lost.head]:
            node.kill()
        run.finish(code=3)
        noticed = round(time.monotonic() - run.struck, 1)
        if where == "same address":
            lost.nodes.clear()
            shutil.rmtree(lost.folder / "ray")
            lost.start_head()
            lost.add(2)
            run.repaired()
            run.start(lost)
            run.finish()
        else:
            with cluster(2) as fresh:
                run.repaired()
                run.start(fresh)
                run.finish()
        run.figures(run.resumed(), noticed=noticed)


def test_the_command_line_waits_for_a_lost_cluster_and_goes_on_by_itself(tmp_path: Path) -> None:
    """One process from beginning to end: it says that it waits, and that it goes on."""
    from tests.workflows.chains import command, results_of, run_chain

    quiet, loud = tmp_path / "quiet", tmp_path / "loud"
    quiet.mkdir()
    loud.mkdir()
    assert run_chain(quiet).returncode == 0
    with cluster(1) as made:
        run = subprocess.Popen(
            command(loud, "--address", made.address, "--rejoin", "3"),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=loud, env=made.environment,
        )  # fmt: skip
        until = time.monotonic() + 90
        while not list((loud / "store" / "steps").glob("*/*/lease-*")):
            assert time.monotonic() < until
            time.sleep(0.1)
        time.sleep(2)
        for node in [*made.nodes, made.head]:
            node.kill()
        struck = time.monotonic()
        made.nodes.clear()
        shutil.rmtree(made.folder / "ray")
        time.sleep(2)
        made.start_head()
        made.add(1)
        said, _ = run.communicate(timeout=240)
        took = time.monotonic() - struck
    assert run.returncode == 0, said
    assert "waiting up to 3 minutes" in said
    assert "going on" in said
    assert results_of(loud) == results_of(quiet)
    assert took < 200
