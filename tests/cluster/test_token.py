"""Where a cluster's token is looked for: in Ray's own places, in Ray's own order, and always with Ray's own result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.session import TokenRefused, check_head
from cluster.token import find, mode
from tests.cluster.clusters import cluster
from tests.cluster.faults.test_joining import told

PLACES = {
    "none": {},
    "value": {"RAY_AUTH_TOKEN": " the-value "},
    "empty value": {"RAY_AUTH_TOKEN": ""},
    "value and file": {"RAY_AUTH_TOKEN": "the-value", "RAY_AUTH_TOKEN_PATH": "{folder}/named"},
    "file": {"RAY_AUTH_TOKEN_PATH": "{folder}/named"},
    "no file": {"RAY_AUTH_TOKEN_PATH": "{folder}/gone"},
    "empty file": {"RAY_AUTH_TOKEN_PATH": "{folder}/empty"},
    "a tilde": {"RAY_AUTH_TOKEN_PATH": "~/named"},
    "no name": {"RAY_AUTH_TOKEN_PATH": ""},
}
RAY = """
import json, os, sys
from ray._raylet import AuthenticationTokenLoader
from ray.exceptions import AuthenticationError
loader = AuthenticationTokenLoader.instance()
found = []
for environment in json.load(sys.stdin):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        os.environ.pop(name, None)
    os.environ.update(environment)
    loader.reset_cache()
    try:
        has = loader.has_token(ignore_auth_mode=True)
        found.append(loader.get_token_for_http_header()["authorization"].removeprefix("Bearer ") if has else "")
    except AuthenticationError:
        found.append("refused")
print(json.dumps(found))
"""


def environments(home: Path, lone: bool) -> list[dict[str, str]]:
    """What is set in each case of `PLACES`, with and without a file where Ray keeps its own."""
    if lone:
        (home / ".ray").mkdir(parents=True)
        (home / ".ray" / "auth_token").write_text("the-usual\n")
    (home / "named").write_text("the-named\n")
    (home / "empty").write_text("\n")
    return [
        {"HOME": str(home), **{name: text.format(folder=home) for name, text in given.items()}}
        for given in PLACES.values()
    ]


def found_by_us(environment: dict[str, str]) -> str:
    try:
        token = find(environment)
    except ValueError:
        return "refused"
    return token.value if token else ""


@pytest.mark.parametrize("lone", [True, False])
def test_the_token_is_the_one_that_ray_finds(lone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    given = environments(tmp_path, lone)
    said = subprocess.run(
        [sys.executable, "-c", RAY], input=json.dumps(given), capture_output=True, text=True, check=True,
        env={**os.environ, "RAY_AUTH_MODE": "token"},
    )  # fmt: skip
    assert dict(zip(PLACES, map(found_by_us, given), strict=True)) == dict(
        zip(PLACES, json.loads(said.stdout), strict=True)
    )


def test_a_token_says_where_it_was_found_and_never_what_it_is(tmp_path: Path) -> None:
    of = dict(zip(PLACES, environments(tmp_path, lone=True), strict=True))
    found = [find(of[case]) for case in ("value", "file", "none")]
    assert [token and token.place for token in found] == ["RAY_AUTH_TOKEN", f"{tmp_path}/named", "~/.ray/auth_token"]
    assert "the-" not in str(found)


@pytest.mark.parametrize("wrong", [b"sec\nret123", "sec€ret".encode(), b"sec\x00ret", b"\xff\xfesecret"])
def test_what_is_no_token_is_refused_by_its_place_and_never_repeated(wrong: bytes, tmp_path: Path) -> None:
    (tmp_path / "named").write_bytes(wrong)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_bytes(wrong)
    given = {
        "RAY_AUTH_TOKEN": {"RAY_AUTH_TOKEN": os.fsdecode(wrong)},
        f"{tmp_path}/named": {"RAY_AUTH_TOKEN_PATH": f"{tmp_path}/named"},
        "~/.ray/auth_token": {"HOME": str(tmp_path)},
    }
    for place, environment in given.items():
        assert mode(environment) == "token"  # so that somebody asks for it, and is told
        with pytest.raises(ValueError, match="is no token, which is one line of printable ASCII") as refused:
            find(environment)
        assert str(refused.value).startswith(f"{place}: ")
        assert "sec" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "lone", "wanted"),
    [
        ({}, False, "disabled"),
        ({}, True, "token"),  # a head that is started beside such a file asks for what it holds
        ({"RAY_AUTH_TOKEN": "t"}, False, "token"),
        ({"RAY_AUTH_TOKEN_PATH": "/gone"}, False, "token"),  # so that somebody says that it is gone
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "t"}, True, "disabled"),
        ({"RAY_AUTH_MODE": "TOKEN"}, False, "token"),
    ],
)
def test_whoever_has_a_token_shows_it_unless_the_mode_is_set(
    given: dict[str, str], lone: bool, wanted: str, tmp_path: Path
) -> None:
    environments(tmp_path, lone)
    assert mode({"HOME": str(tmp_path), **given}) == wanted


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "RAY_AUTH_MODE is token, but there is none: set RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_TOKEN_PATH": "/gone"}, "RAY_AUTH_TOKEN_PATH: /gone: No such file or directory"),
    ],
)
def test_a_token_that_is_missing_is_named_before_anybody_is_asked(
    given: dict[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token", **given}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TokenRefused) as refused:
        check_head("127.0.0.1:9")
    assert str(refused.value) == f"--address 127.0.0.1:9: {said}"


@pytest.mark.faults
@pytest.mark.parametrize("server", ["token", "disabled"])
def test_a_lone_file_opens_a_cluster_with_its_token_and_shuts_nobody_out_of_one_without(
    server: str, tmp_path: Path
) -> None:
    with cluster(RAY_AUTH_MODE=server) as made:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text(made.token if server == "token" else "of another cluster")
        assert told(made.address, tmp_path) == "joined\n"
