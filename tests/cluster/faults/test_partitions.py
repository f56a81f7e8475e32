"""Hosts that lose each other: network namespaces on a bridge, whose cables are pulled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.ledger import Ledger
from cluster.order import Terms
from tests.cluster.clusters import Cluster, Node, cluster, free_port
from tests.cluster.conftest import BUCKET, make_bucket
from tests.cluster.faults.climbs import Work
from tests.cluster.faults.hosts import Host, Network, missing, network
from tests.cluster.faults.trials import REPETITIONS, Trial, calm, leases_of, trial

WHY_NOT = missing()
pytestmark = [pytest.mark.faults, pytest.mark.timeout(600), pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]
SHIPPED = Terms()


@pytest.fixture(scope="module")
def hosts() -> Iterator[Network]:
    with network() as made:
        yield made


@pytest.fixture(scope="module")
def bucket(hosts: Network) -> Iterator[dict[str, str]]:
    """An S3 server that every host reaches while its cable is in, and the environment that leads to it."""
    port = free_port()
    endpoint = f"http://{hosts.address}:{port}"
    keys = {"AWS_ACCESS_KEY_ID": "fake", "AWS_SECRET_ACCESS_KEY": "fake", "AWS_REGION": "us-east-1"}
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", hosts.address, "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as environment:
        found = {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true", **keys}
        for name, value in found.items():
            environment.setenv(name, value)
        try:
            make_bucket(endpoint, BUCKET)
            yield found
        finally:
            server.kill()
            server.wait()


@pytest.fixture(scope="module")
def shared(hosts: Network, bucket: dict[str, str]) -> Iterator[Cluster]:
    with cluster(host=hosts.address, **bucket) as made:
        yield made


class Machines:
    """A host for each node; those that a test did something to are not used again."""

    def __init__(self, made: Cluster, hosts: Network) -> None:
        self.cluster = made
        self._hosts = hosts
        self._of: dict[str, Host] = {}

    def fill(self, count: int) -> None:
        """Brings them to a number."""
        while len(self.cluster.nodes) < count:
            host = self._hosts.host()
            self._of[self.cluster.add(2, prefix=host.prefix, at=host.address).name] = host

    def under(self, name: str) -> tuple[Node, Host]:
        """A node and its host."""
        return self.cluster.named(name), self._of[name]

    def discard(self, name: str) -> None:
        """Takes a node away for good."""
        node = self.cluster.named(name)
        node.signal(signal.SIGCONT)
        node.kill()
        self.cluster.nodes.remove(node)


@pytest.fixture(scope="module")
def machines(shared: Cluster, hosts: Network) -> Machines:
    return Machines(shared, hosts)


def refused(run: Trial) -> set[str]:
    """The attempts whose publication was refused."""
    return {outcome["attempt"] for outcome in run.outcomes() if outcome["state"] == "fenced"}


def struck(run: Trial) -> set[str]:
    """The attempts at which the struck climbs were when it happened."""
    return {
        event["attempt"]
        for driver in run.drivers
        for event in driver.states("started")
        if event["number"] in run.affected and event["t"] < run.struck
    }


@pytest.mark.parametrize("repetition", range(REPETITIONS))
def test_a_zombie_that_reaches_the_store_is_refused_by_its_fence(
    machines: Machines, tmp_path: Path, repetition: int
) -> None:
    """Ray's head and the driver lose the node, which goes on computing on a store that it still reaches."""
    machines.fill(2)
    work = Work(end=330)
    calm(machines.cluster, tmp_path, work, terms=SHIPPED)
    with trial("node partitioned from the cluster", tmp_path / "run", work, terms=SHIPPED) as run:
        run.start(machines.cluster)
        run.until_at(105 + repetition)
        victim, host = machines.under(run.busy())
        run.strike(victim.name)
        host.cut()
        run.until_begun_again()
        run.until(lambda: refused(run) >= struck(run))
        run.finish()
        figures = run.figures()
        host.heal()
        machines.discard(victim.name)
    assert figures.recovery is not None
    assert figures.recovery < 30
    assert refused(run) == struck(run)


@pytest.mark.parametrize("repetition", range(REPETITIONS))
def test_a_partition_that_heals_leaves_one_publication(
    machines: Machines, bucket: dict[str, str], tmp_path: Path, repetition: int
) -> None:
    """The node loses everything, the store too; when it is back, its steps run elsewhere, and it must not publish.

    Its raylet is not let to end them first, as it does when it hears that it was given up: that would hide the fence.
    """
    machines.fill(2)
    url = f"s3://{BUCKET}/{os.urandom(6).hex()}"
    work, terms = Work(end=150), Terms(beat=3.0)  # as shipped for a store behind a network
    calm(machines.cluster, tmp_path, work, "s3", url=url + "-calm", terms=terms)
    with trial("node partitioned, healed", tmp_path / "run", work, terms=terms, url=url, shape="s3") as run:
        run.start(machines.cluster)
        run.until_at(105 + repetition)
        victim, host = machines.under(run.busy())
        run.strike(victim.name)
        host.cut()
        run.until_begun_again()
        victim.signal(signal.SIGSTOP, "raylet/raylet")
        host.heal()
        run.until(lambda: refused(run) >= struck(run))
        run.finish()
        figures = run.figures()
        machines.discard(victim.name)
    assert figures.recovery is not None
    assert figures.recovery < 30
    assert refused(run) == struck(run)


@pytest.mark.parametrize("repetition", range(REPETITIONS))
def test_another_driver_goes_on_when_a_machine_is_lost_with_the_first(
    machines: Machines, tmp_path: Path, repetition: int
) -> None:
    """The driver sits on a node that also computes; power goes; a driver on another host is started by hand."""
    machines.fill(2)
    work = Work(end=100)
    calm(machines.cluster, tmp_path, work)
    with trial("driver's machine lost", tmp_path / "run", work) as run:
        victim, host = machines.under(machines.cluster.nodes[0].name)
        driver = run.start(machines.cluster, prefix=host.prefix)
        run.until_at(40 + repetition)
        run.strike(victim.name)
        driver.kill()
        victim.kill()
        host.cut()
        machines.cluster.nodes.remove(victim)
        run.affected = set(range(work.width))  # with their driver, all of them
        run.start(machines.cluster)
        run.finish()
        figures = run.figures()
        owners = _owners(run)
    assert figures.recovery is not None
    assert figures.recovery < 60
    assert len(owners) > 1, "names of hosts tell owners apart"


def _owners(run: Trial) -> set[str]:
    """The hosts that leases were held on."""
    keys = {event["key"] for driver in run.drivers for event in driver.states("started")}
    leases = [lease for key in keys for lease in leases_of(Ledger(run.store), key)]
    return {lease.owner.machine for lease in leases if lease.owner}
