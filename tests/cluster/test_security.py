"""What comes from a URL, a name or a stored record leads nowhere outside, and secrets stay where they are."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from obstore.exceptions import GenericError

from cluster.collect import collect
from cluster.ledger import Damaged, Ledger, folder_of
from cluster.order import Order, Terms
from cluster.runs import Run, finished_steps, write_plan
from cluster.step import key_of
from cluster.store import Store, StoreError
from cluster.worker import run_step
from tests.cluster.toys import Made, Toy

KEY = "ab" * 32
OUTSIDE = ["../x", "a/../../x", "..", "../../etc/passwd", "/etc/passwd", "a/..", "./x", "a/./b", "a\0b", "a//b"]


# ---- URLs


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/x?access_key=secret",
        "s3://bucket/x?X-Amz-Signature=secret",
        "az://container/x?sv=2024-11-04&sig=secret",
        "gs://bucket/x?access_token=secret",
        "gs://bucket/x#secret",
        "file:///tmp/x?token=secret",
        "memory:///?key=secret",
    ],
)
def test_keys_and_signatures_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="come from the environment") as failure:
        Store.open(url)
    assert "secret" not in str(failure.value)
    assert "\n" not in str(failure.value)


class _Refuses(BaseHTTPRequestHandler):
    """Repeats in its refusal all that it was given."""

    protocol_version = "HTTP/1.1"

    def _refuse(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = f"no: {self.path} {dict(self.headers)}".encode()
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _refuse  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[str]:
    """The URL of a server that refuses whatever it is asked."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Refuses)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


CREDENTIALS = {
    "s3://bucket/x": {
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "TOP-SECRET",
        "AWS_SESSION_TOKEN": "TOP-SECRET",
    },
    "az://container/x": {"AZURE_STORAGE_ACCOUNT_NAME": "name", "AZURE_STORAGE_SAS_KEY": "sv=2024-11-04&sig=TOP-SECRET"},
    "gs://bucket/x": {"GOOGLE_BEARER_TOKEN": "TOP-SECRET"},
}
ENDPOINTS = {"s3": "AWS_ENDPOINT_URL", "az": "AZURE_STORAGE_ENDPOINT", "gs": "GOOGLE_BASE_URL"}


@pytest.mark.parametrize("url", CREDENTIALS)
def test_a_refusal_is_one_line_without_the_credentials_that_were_refused(
    url: str, refusing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENDPOINTS[url[:2]], refusing)
    for name, value in CREDENTIALS[url].items():
        monkeypatch.setenv(name, value)
    store = Store.open(url)
    for act in (
        lambda: store.put("a", b"1"),
        lambda: store.create("a", b"1"),
        lambda: store.get("a"),
        lambda: store.look("a"),
        lambda: list(store.paths("")),
        lambda: store.delete(["a", "b"]),
    ):
        with pytest.raises(StoreError) as failure:
            act()
        assert "SECRET" not in str(failure.value)
        assert "\n" not in str(failure.value)


class _Asks:
    """A backend that asks the machine for credentials, in vain."""

    def get(self, path: str, **how: Any) -> Any:
        raise GenericError(
            "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 3 ms - no"
        )


def test_missing_credentials_are_called_so() -> None:
    with pytest.raises(StoreError, match=r"^a: no credentials: not in the environment \(AWS_\*, "):
        Store("s3://bucket/x", _Asks()).get("a")


def test_an_azure_store_without_an_account_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(StoreError, match=r"^az://container/x: Account must be specified.*AZURE_STORAGE_ACCOUNT_NAME"):
        Store.open("az://container/x")


# ---- paths


@pytest.mark.parametrize("path", OUTSIDE)
def test_no_path_leads_out_of_a_store(store: Store, path: str) -> None:
    acts: list[Callable[[], Any]] = [
        lambda: store.put(path, b"x"),
        lambda: store.put_all({path: b"x", "a/b": b"x"}),
        lambda: store.create(path, b"x"),
        lambda: store.get(path),
        lambda: store.look(path),
        lambda: store.exists(path),
        lambda: list(store.paths(path)),
        lambda: store.folders(path),
        lambda: store.delete([path]),
        lambda: store.delete([path, "a/c"]),
        lambda: store.move(path, "a/d"),
    ]
    for act in acts:
        with pytest.raises(StoreError) as failure:
            act()
        assert "\n" not in str(failure.value).replace(path, "")


@pytest.mark.parametrize("path", ["%2e%2e/x", "~/x", "c:/x", "a\\..\\b"])
def test_what_looks_like_a_way_out_is_a_name_inside(tmp_path: Path, path: str) -> None:
    store = Store.open(str(tmp_path / "store"))
    store.put(path, b"mine")
    assert store.get(path) == b"mine"
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]
    assert list(store.paths("")) == [path]


@pytest.fixture
def linked(tmp_path: Path) -> tuple[Store, Path]:
    """A store in which links lead to a folder outside and to a file in it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    store = Store.open(str(tmp_path / "store"))
    (tmp_path / "store" / "folder").symlink_to(outside)
    (tmp_path / "store" / "file").symlink_to(outside / "secret")
    return store, outside


@pytest.mark.parametrize("path", ["file", "folder/secret", "folder/new", "folder/deep/new"])
def test_links_out_of_the_store_are_not_followed(linked: tuple[Store, Path], path: str) -> None:
    store, outside = linked
    acts: list[Callable[[], Any]] = [
        lambda: store.get(path),
        lambda: store.look(path),
        lambda: store.put(path, b"theirs"),
        lambda: store.create(path, b"theirs"),
        lambda: store.delete([path]),
    ]
    for act in acts:
        with pytest.raises(StoreError, match=f"^{path}: leads out of the store$"):
            act()
    assert [(entry.name, entry.read_bytes()) for entry in outside.iterdir()] == [("secret", b"secret")]


def test_a_store_may_itself_lie_behind_a_link_and_have_links_within(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "disk")
    store = Store.open(str(tmp_path / "store"))
    store.put("a/b", b"1")
    (tmp_path / "disk" / "c").symlink_to(tmp_path / "disk" / "a")
    assert store.get("c/b") == b"1"


def test_garbage_collection_removes_nothing_behind_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "0001").mkdir(parents=True)
    (outside / "0001" / "thesis.tex").write_text("a year")
    store = Store.open(str(tmp_path / "store"))
    (tmp_path / "store" / "steps" / "ab").mkdir(parents=True)
    (tmp_path / "store" / folder_of(KEY)).symlink_to(outside)
    with pytest.raises(StoreError, match="leads out of the store"):
        collect(store, remove=True, grace=-1.0)
    assert (outside / "0001" / "thesis.tex").read_text() == "a year"


# ---- names and records


class Names(Toy):
    """Publishes a file of a given name."""

    def __init__(self, name: str) -> None:
        self.name, self.threads, self.gpus = name, 1, 0

    def identity(self) -> dict[str, Any]:
        return {"kind": self.kind, "name": self.name}

    def run(self, context: Any, **inputs: Any) -> Made:
        return Made({}, {"good.txt": b"x", self.name: b"x"})


@pytest.mark.parametrize(
    "name", ["../../x", "a/b", "/etc/x", "..", ".", ".hidden", "a\0b", "a\nb", "", "a\\b", "a?b", "é", "x" * 129]
)
def test_a_file_whose_name_leads_elsewhere_is_a_mistake_of_its_task_and_nothing_is_stored(
    disk: Store, name: str
) -> None:
    task = Names(name)
    key = key_of(task.identity(), {})
    outcome = run_step(Order(key, task, {}, disk.url, "driver", "driver-1", 0, Terms()))
    assert (outcome.state, outcome.cause) == ("failed", "user")
    assert outcome.message.startswith(f"a file cannot be called {name!r}: ")
    assert "\n" not in outcome.message
    kept = {path.rsplit("/", 1)[-1] for path in disk.paths("")}
    assert kept == {"lease-0001.json", "failure-driver-1.txt"}


def altered(store: Store, change: Callable[[dict[str, Any]], Any]) -> None:
    """Publishes a step, then rewrites its manifest with a digest that fits."""
    ledger = Ledger(store)
    lease = ledger.lease(KEY, "a")
    assert lease is not None
    ledger.publish(lease, {"one.bin": b"data"}, {"metrics": {}})
    path = f"{folder_of(KEY)}/manifest.json"
    manifest = json.loads(store.get(path) or b"")
    del manifest["digest"]
    change(manifest)
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    store.put(path, json.dumps({**manifest, "digest": hashlib.sha256(text.encode()).hexdigest()}).encode())


SECRET = hashlib.sha256(b"secret").hexdigest()


@pytest.mark.parametrize(
    "entry",
    [
        {"path": "../secret"},
        {"path": "/etc/passwd"},
        {"path": "steps/cd/" + "cd" * 32 + "/0001/one.bin"},
        {"path": f"{folder_of(KEY)}/0001/../../../../secret"},
        {"path": f"{folder_of(KEY)}/lease-0001.json"},
        {"path": f"{folder_of(KEY)}/0001/other.bin"},
        {"path": 7},
        {"path": None},
        {"sha256": "../../secret"},
        {"sha256": SECRET.upper()},
        {"sha256": 7},
    ],
)
def test_a_manifest_that_points_elsewhere_is_damaged_and_not_followed(disk: Store, entry: dict[str, Any]) -> None:
    disk.put("secret", b"secret")
    altered(disk, lambda manifest: manifest["files"]["one.bin"].update({"sha256": SECRET, **entry}))
    with pytest.raises(Damaged, match=r"manifest\.json is damaged") as damaged:
        Ledger(disk).find(KEY)
    assert Ledger(disk).set_aside(damaged.value) is not None  # and the step can be computed anew
    assert Ledger(disk).find(KEY) is None
    assert disk.get("secret") == b"secret"


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "a\0b", ""])
def test_a_manifest_whose_file_has_the_name_of_a_way_out_is_damaged(disk: Store, name: str) -> None:
    path = f"{folder_of(KEY)}/0001/{name}"
    altered(disk, lambda manifest: manifest.update(files={name: {"path": path, "sha256": SECRET, "size": 6}}))
    with pytest.raises(Damaged, match=r"manifest\.json is damaged"):
        Ledger(disk).find(KEY)


@pytest.mark.parametrize("files", [[], "x", 7, None, {"one.bin": None}, {"one.bin": []}, {"one.bin": {}}])
def test_a_manifest_without_a_list_of_files_is_damaged(disk: Store, files: Any) -> None:
    altered(disk, lambda manifest: manifest.update(files=files))
    with pytest.raises(Damaged, match="not a manifest"):
        Ledger(disk).find(KEY)


@pytest.mark.parametrize("run_id", ["../x", "..", "../../etc", "/etc", "a/../../b", "no-such"])
def test_a_run_s_id_is_one_of_those_that_are_there(disk: Store, tmp_path: Path, run_id: str) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "run.json").write_text('{"name": "theirs"}')
    Run.open(disk, "imp-1234", {"name": "mine"})
    with pytest.raises(ValueError, match=r"no run starts with .*; runs here: imp-1234"):
        Run.load(disk, run_id)
    with pytest.raises(ValueError, match="no run starts with"):
        collect(disk, forget=[run_id], remove=True)


@pytest.mark.parametrize("prefix", ["../x", "../../../../etc", "steps", "ab/../cd", "AB" * 32, "ab*"])
def test_a_key_is_hexadecimal_digits(disk: Store, prefix: str) -> None:
    with pytest.raises(ValueError, match="is no step's key"):
        Ledger(disk).look_up(prefix)


def test_a_plan_that_names_a_way_out_is_refused_in_one_line(disk: Store, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    write_plan(disk, "run", [{"key": "../../../../..", "kind": "theirs"}])
    with pytest.raises(StoreError) as failure:
        finished_steps(disk, "run")
    assert "\n" not in str(failure.value)


def test_nothing_of_the_environment_s_credentials_is_recorded(
    disk: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_SAS_KEY", "GOOGLE_BEARER_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "TOP-SECRET")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "TOP-SECRET")
    for name in ("good", "../bad"):
        task = Names(name)
        run_step(Order(key_of(task.identity(), {}), task, {}, disk.url, "driver", f"driver-{len(name)}", 0, Terms()))
    texts = [path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert len(texts) > 4
    assert not any(b"TOP-SECRET" in text for text in texts)
    assert os.environ["RAY_AUTH_TOKEN"] == "TOP-SECRET"
