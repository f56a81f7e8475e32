"""Commands that run on a cluster while this machine may leave: started once, and followed to their end."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

from cluster.job_server import Answer, Job, JobServer, Request, Unanswered
from cluster.session import ClusterUnreachable
from cluster.settings import STOP_WAIT
from cluster.tree import Package

STOPPING = STOP_WAIT + 10.0
"""Seconds in which a stopped job is over: Ray ends what has not ended itself, and then says so."""
BACK_OFF = 10.0
"""Most seconds between two tries to reach a cluster."""
SHARE = 20
"""Times as long as reading a log took until it is read again: a long log on a slow line must not fill the line."""


class Patience:
    """Tries again when a cluster does not answer, less and less often, and for a limited time."""

    def __init__(self, seconds: float, say: Callable[[str], None], pause: float = 1.0) -> None:
        """Prepares it.

        Args:
            seconds: without an answer after which to give up.
            say: takes a line when the cluster is lost or found again.
            pause: seconds until the second try; each later one takes twice as long, up to `BACK_OFF`.
        """
        self._seconds, self._say, self._pause = seconds, say, pause
        self._lost: float | None = None
        self._wait = pause

    def after(self, error: Unanswered) -> None:
        """Waits for the next try.

        Raises:
            ClusterUnreachable: there were enough.
        """
        now = time.monotonic()
        if self._lost is None:
            self._lost, self._wait = now, self._pause
            if self._seconds:
                self._say(f"{error}; trying again for {self._seconds:g} s, Ctrl-C ends it")
        left = self._seconds - (now - self._lost)
        if left <= 0:
            waited = f"; no answer for {self._seconds:g} s" if self._seconds else ""
            raise ClusterUnreachable(f"{error}{waited}") from None
        time.sleep(min(self._wait, left))
        self._wait = min(2 * self._wait, BACK_OFF)

    def answered(self) -> None:
        """Notes that the cluster is there."""
        if self._lost is not None:
            self._say("the cluster answers again")
        self._lost = None


def insist(ask: Callable[[], Answer], patience: Patience) -> Answer:
    """What a cluster answers, asked again while it does not.

    Args:
        ask: asks it.
        patience: with a cluster that does not answer.

    Raises:
        ClusterUnreachable: patience is at its end, or the answer is a refusal.
    """
    while True:
        try:
            answer = ask()
        except Unanswered as error:
            patience.after(error)
        else:
            patience.answered()
            return answer


def start(
    server: JobServer, request: Request, package: Package | None, patience: Patience, again: bool = False
) -> tuple[Job, bool]:
    """The job that runs a request: the one that does or did already, or a new one.

    A job that failed or was stopped is followed by another, whose name ends in the next number; its steps go on from
    the store.

    Args:
        server: of the cluster.
        request: what to run.
        package: the files that it runs in, of the request's digest.
        patience: with a server that is in trouble, as one is that has just started.
        again: whether to run what has succeeded before.

    Returns:
        the job, and whether this call started it.

    Raises:
        ClusterUnreachable: patience is at its end, or the server refuses the request.
    """
    return insist(lambda: _start(server, request, package, again), patience)


def _start(server: JobServer, request: Request, package: Package | None, again: bool) -> tuple[Job, bool]:
    for number in itertools.count(1):
        job_id = request.id if number == 1 else f"{request.id}-{number}"
        job = server.job(job_id)
        if job is None:
            mine = server.submit(job_id, request, server.ship(package) if package else "")
            job = server.job(job_id)
            if job is None:
                raise Unanswered(f"{server.url}: job {job_id} was submitted, and is not there")
            return job, mine
        if not job.is_over or (job.status == "SUCCEEDED" and not again):
            return job, False
    raise AssertionError("there is always a next number")


def stop(server: JobServer, job_id: str, patience: Patience, limit: float = STOPPING, pause: float = 0.5) -> Job | None:
    """Asks a job to save its state and end, and waits until it has: until then, `start` would find it.

    Args:
        server: of the cluster.
        job_id: of the job.
        patience: with a cluster that does not answer.
        limit: seconds to wait at most.
        pause: seconds between two looks.

    Returns:
        the job, over or not; None if the cluster does not know it any more.

    Raises:
        ClusterUnreachable: patience is at its end.
    """
    insist(lambda: server.stop(job_id), patience)
    until = time.monotonic() + limit
    while True:
        job = insist(lambda: server.job(job_id), patience)
        if job is None or job.is_over or time.monotonic() >= until:
            return job
        time.sleep(pause)


def follow(server: JobServer, job_id: str, write: Callable[[str], None], patience: Patience, pause: float = 1.0) -> Job:
    """Hands on what a job prints, all of it and once, until it is over.

    Args:
        server: of the cluster.
        job_id: of the job.
        write: takes what was printed since the last call.
        patience: with a cluster that does not answer, while the job goes on.
        pause: seconds between two looks, at least.

    Raises:
        ClusterUnreachable: the cluster was away for too long, or does not know the job any more.
    """
    printed, first = 0, None
    while True:
        began = time.monotonic()
        try:
            job, text = server.job(job_id), server.logs(job_id)
        except Unanswered as error:
            patience.after(error)
            continue
        patience.answered()
        if job is None:
            raise ClusterUnreachable(f"{server.url} knows no job {job_id} (its head may have been started anew)")
        if first is not None and job.started != first:  # another of the same name, on a head that was started anew
            printed = 0
        first = job.started
        write(text[printed:])
        printed = len(text)
        if job.is_over:
            return job
        time.sleep(max(pause, min(SHARE * (time.monotonic() - began), 3 * BACK_OFF)))
