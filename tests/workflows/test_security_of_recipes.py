"""YAML that asks for more than data, and names that lead elsewhere: one line, exit code 2, and nothing is done."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.runs import Run
from cluster.store import Store
from search_spaces.shelf import Shelf
from tests.workflows.conftest import SMALL
from tests.workflows.searches import search_content
from workflows.command import cli, launch

Refused = Callable[..., str]

TAGS = [
    "!!python/object/apply:os.mkdir [{target}]",
    "!!python/object/apply:os.system ['mkdir {target}']",
    "!!python/object/new:pathlib.Path [{target}]",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/object/apply:subprocess.check_output [[mkdir, {target}]]",
    "!custom {{a: 1}}",
]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """The folder that must not come into being."""
    return tmp_path / "executed"


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refused:
    """The one line with which the command line, in this process and an empty folder, refuses a request."""

    def no_session(*arguments: Any, **named: Any) -> Any:
        raise AssertionError("a Ray session was started")

    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["hedgerow", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert (ended.value.code, said.out) == (2, ""), said
        (line,) = said.err.splitlines()
        return line

    monkeypatch.setattr(launch, "session", no_session)
    monkeypatch.chdir(tmp_path)
    return call


@pytest.mark.parametrize("tag", TAGS[:2])
def test_the_tags_of_these_tests_would_be_obeyed_by_a_loader_that_obeys(tag: str, target: Path) -> None:
    yaml.load(tag.format(target=target), yaml.UnsafeLoader)
    assert target.exists()


def written(path: Path, content: dict[str, Any], place: str, tag: str, target: Path) -> None:
    """A file in which a tag stands at a place, given by its first key or as the whole."""
    text = tag.format(target=target)
    if place:
        rest = yaml.safe_dump({name: value for name, value in content.items() if name != place}, sort_keys=False)
        text = f"{rest}{place}: {text}\n"
    path.write_text(text)


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("place", ["", "levels", "train"])
def test_a_tag_in_a_recipe_is_refused(refused: Refused, target: Path, tmp_path: Path, tag: str, place: str) -> None:
    written(tmp_path / "bad.yaml", SMALL, place, tag, target)
    line = refused("run", "bad.yaml")
    assert line.startswith("hedgerow: recipe bad.yaml, line ")
    assert "could not determine a constructor for the tag" in line
    assert not target.exists()
    assert not (tmp_path / "hedgerow-store").exists()


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_in_an_override_is_refused(refused: Refused, target: Path, tmp_path: Path, tag: str) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    line = refused("plan", "small.yaml", "--set", f"levels={tag.format(target=target)}")
    assert line.startswith("hedgerow: --set levels=!")
    assert "is not a YAML value" in line
    assert not target.exists()


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("place", ["", "parameters"])
def test_a_tag_in_a_space_is_refused(refused: Refused, target: Path, tmp_path: Path, tag: str, place: str) -> None:
    written(tmp_path / "space.yaml", {"parameters": {}, "constants": {}}, place, tag, target)
    content = search_content(space=str(tmp_path / "space.yaml"))
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(content))
    line = refused("search", "search.yaml")
    assert "could not determine a constructor for the tag" in line
    assert not target.exists()


def test_aliases_that_multiply_are_read_without_harm(tmp_path: Path) -> None:
    """Nine levels of ten aliases each: a billion values if they were copies, nine lists as they are."""
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    (tmp_path / "laughs.yaml").write_text("\n".join(levels))
    assert len(Shelf("recipe", "a `kind`", tmp_path).read("laughs")) == 9


@pytest.mark.parametrize("run_id", ["../x", "..", "/etc", "../../x/run.json"])
def test_a_run_s_id_leads_to_no_folder_outside_the_store(refused: Refused, tmp_path: Path, run_id: str) -> None:
    store = Store.open(str(tmp_path / "store"))
    Run.open(store, "small-1234", {"name": "small", "recipe": SMALL})
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "run.json").write_text('{"name": "theirs"}')
    for command in (("show",), ("resume",), ("gc", "--forget"), ("sync",), ("search", "--resume")):
        line = refused(*command, run_id, "--store", store.url)
        assert f"'{run_id}'" in line
        assert "small-1234" in line


@pytest.mark.parametrize("url", ["s3://key:secret@bucket/x", "s3://bucket/x?key=secret", "az://c/x?sig=secret"])
def test_credentials_in_a_url_are_refused_without_repeating_them(refused: Refused, tmp_path: Path, url: str) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    for command in (("run", "small.yaml"), ("plan", "small.yaml"), ("runs",), ("show", "x"), ("gc",)):
        line = refused(*command, "--store", url)
        assert "secret" not in line
        assert "come from the environment" in line or "set them in the environment" in line
