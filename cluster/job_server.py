"""Ray's job server over HTTP: what it is asked, and what it says of its jobs.

What is used is its REST interface (Ray documentation, "Ray Jobs REST API"), and the address that its own client sends
packages to. Nothing of Ray is imported: the cluster may have another version.
"""

from __future__ import annotations

import http.client
import json
import re
import shlex
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from cluster.session import ClusterUnreachable, TokenRefused
from cluster.settings import STOP_WAIT, SUBMITTED
from cluster.step import key_of
from cluster.token import Token
from cluster.tree import Package

MARK = "hedgerow"
"""The entry of a job's metadata that holds its command, and tells jobs of ours from others."""
TIMEOUT = 10.0
"""Seconds without an answer after which a request is given up."""
SENDING = 300.0
"""Seconds for a package."""
VERSION = "/api/version"
Answer = TypeVar("Answer")
_HOST = re.compile(r"[A-Za-z0-9_.:%-]+")
"""A name, or a number of IPv4 or IPv6."""


class Unanswered(ClusterUnreachable):
    """The job server did not answer this request; it may answer the next."""


@dataclass(frozen=True)
class Job:
    """One command on a cluster, as its job server knows it."""

    id: str
    status: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    command: str
    """Without the program's name."""
    message: str
    started: float | None
    """Seconds since the epoch, as `ended`."""
    ended: float | None
    exit_code: int | None
    """Of the command; None while it runs, when it was stopped, and when it never started."""

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Job:
        """The job that the server describes."""
        return cls(
            id=record["submission_id"],
            status=record["status"],
            command=(record.get("metadata") or {}).get(MARK, record["entrypoint"]),
            message=record.get("message") or "",
            started=_seconds(record.get("start_time")),
            ended=_seconds(record.get("end_time")),
            exit_code=record.get("driver_exit_code"),
        )

    @property
    def is_over(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


@dataclass(frozen=True)
class Request:
    """What is to run on the cluster."""

    words: tuple[str, ...]
    """Of hedgerow's command line, without the program's name."""
    environment: Mapping[str, str]
    """Variables that the command and its workers get; whoever reaches the cluster can read them."""
    tree: str = ""
    """The digest of the files that it runs in; none when empty."""
    nonce: str = ""
    """Sets it apart from the same request of another time; empty for what is to run once."""

    @property
    def id(self) -> str:
        """A name that the same command over the same files has again, unless a nonce sets it apart."""
        name = "-".join(re.findall(r"[A-Za-z0-9]+", " ".join(self.words[:2])))[:40]
        identity = {
            "words": list(self.words), "environment": dict(self.environment), "tree": self.tree, "nonce": self.nonce,
        }  # fmt: skip
        return f"{name}-{key_of(identity, {})[:12]}"


class JobServer:
    """The job server of a cluster: its dashboard's address."""

    def __init__(self, url: str, token: Token | None = None) -> None:
        parts = urlsplit(url)
        self.url = url
        self._token = token
        self._tls = parts.scheme == "https"
        self._host, self._port = parts.hostname or "", parts.port
        self._below = parts.path.rstrip("/")

    @classmethod
    def connect(cls, address: str, token: Token | None, insecure: bool = True) -> JobServer:
        """The job server at an address; the token is shown only to one that asks for it.

        Args:
            address: `http://HOST:PORT`, `https://...` or `HOST:PORT`.
            token: that the cluster was started with.
            insecure: whether a server that lets in anybody will do.

        Raises:
            ValueError: the address is none.
            Unanswered: nobody answers, or the server is in trouble.
            ClusterUnreachable: it is no job server, or it lets in anybody.
            TokenRefused: it asks for a token, and this is none or another.
        """
        url = _url(address)
        server = cls(url)
        try:
            status, text = server._exchange("GET", VERSION)
        except Unanswered as error:
            raise Unanswered(f"{error} (is the cluster up, and is this its dashboard's address?)") from None
        if status == 401:
            if token is None:
                raise TokenRefused(f"{url} asks for a token: set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to its file")
            server = cls(url, token)
            text = server._request("GET", VERSION, absent="")
        elif status >= 500:
            raise Unanswered(f"{url}: GET {VERSION}: {status}: {_reason(text)}")
        server._read(text, lambda told: told["ray_version"])
        if status == 200 and not insecure:
            raise ClusterUnreachable(
                f"{url} lets in anybody, and so whoever reaches it can run programs there: start the cluster with "
                "RAY_AUTH_MODE=token, or say `--insecure`"
            )
        return server

    def versions(self) -> tuple[str, str]:
        """Of Ray and of Python, on the head; that of Python is empty when the server does not tell."""
        ray = self._read(self._request("GET", VERSION), lambda told: str(told["ray_version"]))
        status, text = self._exchange("GET", "/api/v0/cluster_metadata")
        return ray, self._read(text, lambda told: str(told["data"].get("pythonVersion", ""))) if status == 200 else ""

    def job(self, job_id: str) -> Job | None:
        """A job, or None if the cluster knows none of this name."""
        text = self._request("GET", f"/api/jobs/{quote(job_id, safe='')}", absent="")
        return self._read(text, Job.from_json) if text else None

    def jobs(self) -> list[Job]:
        """All jobs that were submitted with hedgerow, the newest first."""

        def ours(records: Any) -> list[Job]:
            return [Job.from_json(record) for record in records if MARK in (record.get("metadata") or {})]

        jobs = self._read(self._request("GET", "/api/jobs/"), ours)
        return sorted(jobs, key=lambda job: job.started or 0.0, reverse=True)

    def logs(self, job_id: str) -> str:
        """All that a job has printed so far."""
        text = self._request("GET", f"/api/jobs/{quote(job_id, safe='')}/logs", absent='{"logs": ""}')
        return self._read(text, lambda told: str(told["logs"]))

    def stop(self, job_id: str) -> bool:
        """Asks a job to save its state and end; says whether it was running."""
        text = self._request("POST", f"/api/jobs/{quote(job_id, safe='')}/stop")
        return self._read(text, lambda told: bool(told["stopped"]))

    def ship(self, package: Package) -> str:
        """Sends a package unless the cluster has it already, and gives its address there."""
        name = f"_ray_pkg_{package.digest}.zip"
        if self._request("GET", f"/api/packages/gcs/{name}", absent="absent") == "absent":
            self._request("PUT", f"/api/packages/gcs/{name}", package.data, timeout=SENDING)
        return f"gcs://{name}"

    def submit(self, job_id: str, request: Request, package: str = "") -> bool:
        """Starts a job; says whether this call did, and not somebody who was quicker.

        Args:
            job_id: a name that no job has had on this cluster.
            request: what to run.
            package: the address of the files that it runs in.
        """
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT), SUBMITTED: "1", **request.environment}
        record = {
            "submission_id": job_id,
            "entrypoint": _entrypoint(request.words),
            "runtime_env": {"env_vars": variables} | ({"working_dir": package} if package else {}),
            "metadata": {MARK: shlex.join(request.words), "tree": request.tree},
        }
        try:
            self._request("POST", "/api/jobs/", json.dumps(record).encode(), timeout=3 * TIMEOUT)
        except Unanswered:  # also what it says of a name that is taken, and perhaps by this very request
            if self.job(job_id) is None:
                raise
            return False
        return True

    def _request(
        self, method: str, path: str, body: bytes | None = None, absent: str | None = None, timeout: float = TIMEOUT
    ) -> str:
        """The server's answer, which is `absent` where there is no such thing.

        Raises:
            Unanswered: none came, or the server is in trouble.
            TokenRefused: it refuses the token.
            ClusterUnreachable: it refuses the request.
        """
        status, text = self._exchange(method, path, body, timeout)
        if status == 200:
            return text
        if status == 404 and absent is not None:
            return absent
        if status in (401, 403):
            place = f" in {self._token.place}" if self._token else ""
            raise TokenRefused(f"{self.url} refuses the token{place}: it is not the one that it was started with")
        kind = Unanswered if status >= 500 else ClusterUnreachable
        raise kind(f"{self.url}: {method} {path}: {status}: {_reason(text)}")

    def _exchange(self, method: str, path: str, body: bytes | None = None, timeout: float = TIMEOUT) -> tuple[int, str]:
        """One request on a connection of its own: status and text of the answer."""
        connection = self._connection(timeout)
        headers = {"Authorization": f"Bearer {self._token.value}"} if self._token else {}
        try:
            connection.request(method, self._below + path, body, headers)
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        except http.client.BadStatusLine as error:
            if isinstance(error, http.client.RemoteDisconnected):
                raise Unanswered(f"{self.url} does not answer: {error}") from None
            raise ClusterUnreachable(f"{self._stranger()} (does Ray's GCS listen there?)") from None
        except (OSError, http.client.HTTPException) as error:
            raise Unanswered(f"{self.url} does not answer: {str(error) or type(error).__name__}") from None
        finally:
            connection.close()

    def _read(self, text: str, take: Callable[[Any], Answer]) -> Answer:
        """What is taken from an answer in JSON; that of somebody else, such as a proxy, holds no such thing.

        Raises:
            ClusterUnreachable: the answer is none of a job server's.
        """
        try:
            return take(json.loads(text))
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ClusterUnreachable(self._stranger()) from None

    def _stranger(self) -> str:
        return f"{self.url} answers, but not as Ray's job server: give the dashboard's address, http://HOST:PORT"

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        if self._tls:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(self._host, self._port, timeout=timeout, context=context)
        return http.client.HTTPConnection(self._host, self._port, timeout=timeout)


def _url(address: str) -> str:
    url = address if "://" in address else f"http://{address}"
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna").decode()  # as it will be asked for
        fits = parts.scheme in ("http", "https") and _HOST.fullmatch(host) and "@" not in parts.netloc
        fits = fits and parts.port != 0 and not re.search(r"[?#\s]", url) and url.isprintable()
    except ValueError:  # no port, or no host: a label of more than 63 letters
        fits = False
    if not fits or not (parts.port or parts.scheme == "https" or "://" in address):
        allowed = "http://HOST:PORT, https://HOST and HOST:PORT, with a path if a proxy needs one"
        raise ValueError(f"--address {address!r}: allowed are {allowed}")
    return url.rstrip("/")


def _entrypoint(words: Sequence[str]) -> str:
    """The command for the shell of the head, which gives its place to it, so that signals arrive.

    `~/` at the beginning of a word is the home folder there.
    """
    quoted = [f"~/{shlex.quote(word[2:])}" if word.startswith("~/") else shlex.quote(word) for word in words]
    return " ".join(["exec python -m workflows.command.cli", *quoted])


def _reason(text: str) -> str:
    """The line that says it, of a traceback."""
    lines = [line.strip() for line in text.splitlines() if len(line.strip()) > 1]
    return lines[-1] if lines else "no reason given"


def _seconds(milliseconds: int | None) -> float | None:
    return milliseconds / 1000 if milliseconds else None
