"""Jobs on a server that fails as servers do: a double of Ray's REST interface, whose every answer can be spoilt.

The same on a real head is in `tests/workflows/test_submit_command.py`.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from cluster.job_server import Job, JobServer, Request
from cluster.session import ClusterUnreachable, TokenRefused
from cluster.settings import STOP_WAIT
from cluster.submission import STOPPING, Patience, follow, insist, start, stop
from cluster.token import Token
from cluster.tree import Package

REQUEST = Request(("run", "quickstart", "--store", "s3://b/s"), {"WANDB_PROJECT": "p"}, "d" * 64)
NONE = Patience(0, lambda line: None)
PACKAGE = Package("d" * 64, b"zip", ("a.py",))


class Double:
    """A head: jobs, packages, what was asked of it, and what shall go wrong."""

    def __init__(self, token: str = "") -> None:
        self.token = token
        self.jobs: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, str] = {}
        self.packages: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.shown: list[str] = []
        self.spoil: Callable[[str, str], str] = lambda method, path: ""
        """What goes wrong with a request: `before` or `after` it was carried out, the line is cut; or a status."""
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def put(self, job_id: str, status: str, code: int | None = None, started: int = 1000) -> None:
        self.jobs[job_id] = {
            "submission_id": job_id, "status": status, "entrypoint": "x", "metadata": {"hedgerow": "run"},
            "start_time": started, "driver_exit_code": code,
        }  # fmt: skip

    def count(self, method: str, path: str) -> int:
        return sum(asked[0] == method and asked[1].startswith(path) for asked in self.asked)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, str]:
        if path == "/api/version":
            return 200, '{"ray_version": "2.60.0"}'
        if path.startswith("/api/packages/gcs/"):
            name = path.rsplit("/", 1)[-1]
            if method == "PUT":
                self.packages[name] = body
            return (200, "") if name in self.packages else (404, "no such package")
        if method == "POST":
            if path.endswith("/stop"):
                return 200, '{"stopped": true}'
            record = json.loads(body)
            if record["submission_id"] in self.jobs:
                return 500, f"Traceback\nValueError: Job {record['submission_id']} already exists.\n.\n"
            self.put(record["submission_id"], "RUNNING")
            self.jobs[record["submission_id"]] |= record
            return 200, "{}"
        job_id = path.split("/")[3]
        if job_id not in self.jobs:
            return 404, "no such job"
        return 200, json.dumps({"logs": self.logs.get(job_id, "")} if path.endswith("/logs") else self.jobs[job_id])

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        double = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *words: Any) -> None:
                pass

            def _do(self) -> None:
                double.asked.append((self.command, self.path))
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                double.shown.append(shown := self.headers.get("Authorization", ""))
                wrong = double.spoil(self.command, self.path)
                if wrong == "before":
                    return
                if wrong.isdigit():
                    status, text = int(wrong), "Traceback\nOSError: trouble\n"
                elif double.token and shown != f"Bearer {double.token}":
                    status, text = (403, "Forbidden") if shown else (401, "Unauthorized")
                else:
                    status, text = double.answer(self.command, self.path, body)
                if wrong == "after":
                    return
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_POST = do_PUT = _do  # noqa: N815 - their names are the library's

        return Handler


@pytest.fixture
def head() -> Iterator[Double]:
    double = Double(token="the right token")
    yield double
    double.server.shutdown()
    double.server.server_close()


def connected(head: Double) -> JobServer:
    return JobServer.connect(head.url, Token(head.token, "RAY_AUTH_TOKEN"))


def test_a_token_is_shown_only_to_a_server_that_asks_for_one(head: Double) -> None:
    head.token, precious = "", Token("precious", "RAY_AUTH_TOKEN")
    JobServer.connect(head.url, precious).versions()
    assert set(head.shown) == {""}
    head.token = "precious"
    assert JobServer.connect(head.url, precious).versions() == ("2.60.0", "")
    assert "Bearer precious" in head.shown


def test_a_server_that_lets_in_anybody_is_refused_unless_that_is_wanted(head: Double) -> None:
    head.token = ""
    with pytest.raises(ClusterUnreachable, match=r"lets in anybody.*--insecure"):
        JobServer.connect(head.url, None, insecure=False)
    JobServer.connect(head.url, None, insecure=True)


def test_a_missing_and_a_wrong_token_are_named(head: Double) -> None:
    with pytest.raises(TokenRefused, match=r"asks for a token: set RAY_AUTH_TOKEN") as missing:
        JobServer.connect(head.url, None)
    with pytest.raises(TokenRefused, match=r"refuses the token in ~/\.ray/auth_token: ") as wrong:
        JobServer.connect(head.url, Token("the wrong token", "~/.ray/auth_token"))
    assert "\n" not in f"{missing.value}{wrong.value}"
    assert "the wrong token" not in str(wrong.value)


def test_where_nobody_answers_and_where_no_job_server_does_is_said_at_once(head: Double) -> None:
    began = time.monotonic()
    with pytest.raises(ClusterUnreachable, match=r"127\.0\.0\.1:1 does not answer"):
        JobServer.connect("127.0.0.1:1", None)
    assert time.monotonic() - began < 5
    head.spoil = lambda method, path: "404"
    with pytest.raises(ClusterUnreachable, match="not as Ray's job server"):
        JobServer.connect(head.url, None)


@pytest.mark.parametrize(
    "address",
    [
        "host", "ftp://host:1", "http://", "host:x", "http://me:word@host:1", "", "http://a b:80", "http://host:1?x=1",
        "http://host:1/#/jobs", f"http://{'a' * 70}:80", "::1", "http://host:1/a\nb",
    ],
)  # fmt: skip
def test_what_is_no_address_is_a_wrong_request(address: str) -> None:
    with pytest.raises(ValueError, match=r"^--address .*: allowed are http://HOST:PORT, "):
        JobServer.connect(address, None)


@pytest.mark.parametrize("answer", ['{"ray_version": "2.60"}', "<html>sign in</html>", "[1]", "null", '"x"'])
def test_who_answers_in_other_ways_than_a_job_server_is_told_apart(answer: str, head: Double) -> None:
    server = connected(head)
    head.answer = lambda method, path, body: (200, answer)  # type: ignore[method-assign]
    requests = [
        server.versions, server.jobs, lambda: server.job("j"), lambda: server.logs("j"), lambda: server.stop("j"),
    ]  # fmt: skip
    for request in requests:
        with pytest.raises(ClusterUnreachable, match="answers, but not as Ray's job server: give the dashboard's"):
            request()
    if "ray_version" not in answer:
        with pytest.raises(ClusterUnreachable, match="not as Ray's job server"):
            connected(head)


def test_the_port_of_rays_own_servers_is_told_apart_and_what_it_says_is_not_repeated() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"\x00\x00\x06\x04\x00\n\xff")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(ClusterUnreachable, match=r"not as Ray's job server.* \(does Ray's GCS listen") as told:
            JobServer.connect(f"127.0.0.1:{listening.getsockname()[1]}", None)
    assert str(told.value).isprintable()


def test_a_path_that_leads_nowhere_is_told_with_and_without_a_token(head: Double) -> None:
    normal = head.answer
    head.answer = lambda method, path, body: (404, "") if path.startswith("/a/") else normal(method, path, body)  # type: ignore[method-assign]
    for head.token in ("the right token", ""):
        with pytest.raises(ClusterUnreachable, match=r"/a/b answers, but .* give the dashboard's address"):
            JobServer.connect(f"{head.url}/a/b", Token("the right token", "RAY_AUTH_TOKEN"))


def test_a_head_that_is_not_there_yet_is_asked_again_and_a_refusal_is_not(head: Double) -> None:
    said, tries = list[str](), 0

    def trouble(method: str, path: str) -> str:
        nonlocal tries
        tries += 1
        return ("before", "503", "")[min(tries, 3) - 1]

    head.spoil = trouble
    insist(lambda: connected(head), Patience(5, said.append, 0.01))
    assert said[0].endswith("; trying again for 5 s, Ctrl-C ends it")
    assert [line for line in said if "trying" not in line] == ["the cluster answers again"]
    with pytest.raises(TokenRefused):
        insist(lambda: JobServer.connect(head.url, None), Patience(60, said.append))
    assert len(said) == 2


def test_a_submission_is_named_by_command_files_and_environment() -> None:
    assert REQUEST.id.startswith("run-quickstart-")
    assert Request(REQUEST.words, dict(REQUEST.environment), REQUEST.tree).id == REQUEST.id
    others = [
        Request((*REQUEST.words, "--verify"), REQUEST.environment, REQUEST.tree),
        Request(REQUEST.words, {"WANDB_PROJECT": "q"}, REQUEST.tree),
        Request(REQUEST.words, REQUEST.environment, "e" * 64),
    ]
    assert len({REQUEST.id, *(other.id for other in others)}) == 4


def test_what_runs_is_found_what_failed_is_submitted_under_the_next_number(head: Double) -> None:
    server, name = connected(head), REQUEST.id
    assert start(server, REQUEST, PACKAGE, NONE)[1]
    job, mine = start(server, REQUEST, PACKAGE, NONE)
    assert (job.id, mine) == (name, False)
    head.put(name, "FAILED", 1)
    assert start(server, REQUEST, PACKAGE, NONE)[0].id == f"{name}-2"
    head.put(f"{name}-2", "STOPPED")
    assert start(server, REQUEST, PACKAGE, NONE)[0].id == f"{name}-3"
    head.put(f"{name}-3", "SUCCEEDED", 0)
    job, mine = start(server, REQUEST, PACKAGE, NONE)
    assert (job.id, mine) == (f"{name}-3", False)
    assert start(server, REQUEST, PACKAGE, NONE, again=True)[0].id == f"{name}-4"
    assert head.count("PUT", "/api/packages") == 1
    assert head.jobs[f"{name}-4"]["runtime_env"]["working_dir"] == f"gcs://_ray_pkg_{'d' * 64}.zip"
    assert head.packages == {f"_ray_pkg_{'d' * 64}.zip": b"zip"}


def test_a_command_that_only_looks_is_another_job_each_time_and_one_job_each_time(head: Double) -> None:
    server, looks = connected(head), [Request(("runs",), {}, nonce=nonce) for nonce in ("a", "b")]
    head.spoil = lambda method, path: "after" if method == "POST" else ""
    assert [start(server, look, None, NONE)[0].id for look in looks] == [look.id for look in looks]
    assert len(head.jobs) == 2


def test_a_stopped_job_is_waited_for_so_that_the_next_submission_begins_anew(head: Double) -> None:
    server, looks = connected(head), 0
    start(server, REQUEST, None, NONE)

    def end_slowly(method: str, path: str) -> str:
        nonlocal looks
        looks += method == "GET"
        if looks == 4:
            head.put(REQUEST.id, "STOPPED")
        return "503" if looks == 2 else ""

    head.spoil = end_slowly
    stopped = stop(server, REQUEST.id, Patience(5, lambda line: None, 0.01), limit=5, pause=0.01)
    assert stopped is not None
    assert stopped.status == "STOPPED"
    assert start(server, REQUEST, None, NONE)[0].id == f"{REQUEST.id}-2"


def test_a_job_that_does_not_end_when_stopped_is_not_waited_for_longer_than_said(head: Double) -> None:
    head.put("j", "RUNNING")
    began = time.monotonic()
    stopped = stop(connected(head), "j", NONE, limit=0.2, pause=0.01)
    assert stopped is not None
    assert stopped.status == "RUNNING"
    assert 0.2 <= time.monotonic() - began < 2
    assert STOPPING > STOP_WAIT


def test_a_submitted_command_finds_the_mark_that_it_is_one(head: Double) -> None:
    start(connected(head), REQUEST, None, NONE)
    assert head.jobs[REQUEST.id]["runtime_env"]["env_vars"]["HEDGEROW_SUBMITTED"] == "1"


def test_many_at_once_are_one_job(head: Double) -> None:
    server, together, started = connected(head), threading.Barrier(8), list[tuple[Job, bool]]()

    def look(method: str, path: str) -> str:
        if method == "GET" and path.startswith("/api/jobs/") and not head.jobs:
            together.wait(10)  # all have looked before the first submits
        return ""

    head.spoil = look
    threads = [threading.Thread(target=lambda: started.append(start(server, REQUEST, PACKAGE, NONE))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [job.id for job, _ in started] == [REQUEST.id] * 8
    assert sum(mine for _, mine in started) == 1
    assert list(head.jobs) == [REQUEST.id]


def test_a_submission_whose_answer_was_lost_is_found(head: Double) -> None:
    server = connected(head)
    head.spoil = lambda method, path: "after" if method == "POST" else ""
    job, _ = start(server, REQUEST, None, NONE)
    assert (job.id, job.status) == (REQUEST.id, "RUNNING")
    assert head.count("POST", "/api/jobs/") == 1


def test_a_submission_that_never_arrived_is_an_error_and_the_next_is_the_first(head: Double) -> None:
    server = connected(head)
    head.spoil = lambda method, path: "before" if method == "POST" else ""
    with pytest.raises(ClusterUnreachable, match="does not answer"):
        start(server, REQUEST, None, NONE)
    head.spoil = lambda method, path: ""
    assert start(server, REQUEST, None, NONE)[0].id == REQUEST.id


def test_a_head_that_has_just_started_is_waited_for(head: Double) -> None:
    server, said = connected(head), list[str]()
    head.spoil = lambda method, path: "500" if method == "POST" and head.count("POST", "/api/jobs/") < 4 else ""
    job, mine = start(server, REQUEST, PACKAGE, Patience(5, said.append, 0.01))
    assert (job.id, mine) == (REQUEST.id, True)
    assert [line.rpartition("; ")[2] for line in said] == [
        "trying again for 5 s, Ctrl-C ends it",
        "the cluster answers again",
    ]


@pytest.mark.parametrize("wrong", ["before", "after", "500", "503"])
def test_a_log_arrives_whole_and_once_over_a_line_that_breaks(wrong: str, head: Double) -> None:
    server, heard, said = connected(head), list[str](), list[str]()
    whole = "".join(f"line {number} ε\n" for number in range(100)) + "no end of line"
    head.put("j", "RUNNING")
    asked = 0

    def grow_and_break(method: str, path: str) -> str:
        nonlocal asked
        asked += 1
        head.logs["j"] = whole[: asked * 61]
        if len(head.logs["j"]) == len(whole):
            head.put("j", "FAILED", 4)
        return wrong if asked % 5 == 3 else ""

    head.spoil = grow_and_break
    job = follow(server, "j", heard.append, Patience(5, said.append, 0.001), pause=0.001)
    assert "".join(heard) == whole
    assert (job.status, job.exit_code) == ("FAILED", 4)
    assert len([line for line in said if "trying again" in line]) == len([x for x in said if "answers again" in x]) > 3


def test_a_cluster_that_is_away_for_too_long_is_given_up(head: Double) -> None:
    server = connected(head)
    head.put("j", "RUNNING")
    head.spoil = lambda method, path: "before"
    began = time.monotonic()
    with pytest.raises(ClusterUnreachable, match=r"no answer for 0\.3 s"):
        follow(server, "j", lambda text: None, Patience(0.3, lambda line: None, 0.01))
    assert 0.3 <= time.monotonic() - began < 3


def test_a_job_that_a_new_head_does_not_know_is_said(head: Double) -> None:
    server = connected(head)
    head.put("j", "RUNNING")

    def forget(text: str) -> None:
        head.jobs.clear()

    with pytest.raises(ClusterUnreachable, match="knows no job j"):
        follow(server, "j", forget, NONE, pause=0.01)


def test_a_job_of_the_same_name_on_a_new_head_is_heard_from_its_beginning(head: Double) -> None:
    server, heard = connected(head), list[str]()
    head.put("j", "RUNNING")
    head.logs["j"] = "of the old head\n"

    def write(text: str) -> None:
        heard.append(text)
        head.put("j", "SUCCEEDED", 0, started=2000)
        head.logs["j"] = "new\n"

    follow(server, "j", write, NONE, pause=0.01)
    assert heard == ["of the old head\n", "new\n"]
