"""A study's database that is torn, gone, in the way or not there at all."""

from __future__ import annotations

import random
import sqlite3
import sys
from pathlib import Path

import optuna
import pytest

from search_spaces.projection import Projection, ProjectionFailed, default_url
from tests.search_spaces.projected import projection, shows, trials


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file with a study of 60 trials."""
    path = tmp_path_factory.mktemp("whole") / "study.db"
    shown = projection(f"sqlite:///{path}")
    shown.bring_up(trials(60))
    shown.close()
    return path.read_bytes()


@pytest.fixture
def study(tmp_path: Path, whole: bytes) -> Path:
    """Such a file to work on."""
    path = tmp_path / "study.db"
    path.write_bytes(whole)
    return path


@pytest.mark.parametrize("part", [0.02, 0.5, 0.999])
def test_a_truncated_file_is_put_aside_and_written_anew(study: Path, part: float) -> None:
    torn = study.read_bytes()[: int(study.stat().st_size * part)]
    study.write_bytes(torn)
    again = projection(f"sqlite:///{study}")
    assert again.bring_up(trials(60)) == f"{study} was damaged: put aside as study.db.damaged-1 and written anew"
    assert shows(f"sqlite:///{study}", trials(60))
    assert study.with_name("study.db.damaged-1").read_bytes() == torn
    assert again.bring_up(trials(61)) == ""


def test_a_file_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("my thesis " * 1000)
    with pytest.raises(ProjectionFailed, match=r"notes\.txt is a file of another kind"):
        projection(f"sqlite:///{notes}").bring_up(trials(3))
    assert notes.read_text() == "my thesis " * 1000
    assert not list(tmp_path.glob("*damaged*"))


def test_an_empty_file_is_filled(study: Path) -> None:
    study.write_bytes(b"")
    assert projection(f"sqlite:///{study}").bring_up(trials(60)) == ""
    assert shows(f"sqlite:///{study}", trials(60))


@pytest.mark.parametrize("seed", range(3))
def test_whatever_a_page_is_overwritten_with_the_study_is_equal_afterwards(study: Path, seed: int) -> None:
    dice = random.Random(seed)
    content = bytearray(study.read_bytes())
    page = 4096 * dice.randrange(len(content) // 4096)
    content[page : page + 4096] = dice.choice([bytes(4096), dice.randbytes(4096)])
    study.write_bytes(content)
    projection(f"sqlite:///{study}").bring_up(trials(60))
    assert shows(f"sqlite:///{study}", trials(60))


def test_a_torn_index_that_only_optuna_would_read_is_noticed(study: Path) -> None:
    with sqlite3.connect(study) as connection:
        name = "sqlite_autoindex_trial_params_1"
        ((page,),) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", [name]).fetchall()
        ((size,),) = connection.execute("PRAGMA page_size").fetchall()
    connection.close()
    content = bytearray(study.read_bytes())
    content[size * (page - 1) : size * page] = bytes(size)
    study.write_bytes(content)
    assert "put aside" in projection(f"sqlite:///{study}").bring_up(trials(60))
    assert shows(f"sqlite:///{study}", trials(60))


def test_each_damaged_file_is_kept(study: Path) -> None:
    for number in (1, 2):
        study.write_bytes(b"no database " * number * 100)
        Path(f"{study}-journal").write_bytes(b"of another file")
        projection(f"sqlite:///{study}").bring_up(trials(4))
        assert study.with_name(f"study.db.damaged-{number}").stat().st_size == 1200 * number
    assert shows(f"sqlite:///{study}", trials(4))


def test_a_file_with_other_columns_is_put_aside(study: Path) -> None:
    with sqlite3.connect(study) as connection:
        connection.execute("ALTER TABLE trial_values DROP COLUMN value_type")
    connection.close()
    assert "put aside" in projection(f"sqlite:///{study}").bring_up(trials(60))
    assert shows(f"sqlite:///{study}", trials(60))


def test_a_file_that_is_deleted_or_torn_under_way_comes_back(study: Path) -> None:
    shown = projection(f"sqlite:///{study}")
    shown.bring_up(trials(60))
    study.unlink()
    shown.bring_up(trials(61))
    assert shows(f"sqlite:///{study}", trials(61))
    study.write_bytes(study.read_bytes()[:9000])
    shown.bring_up(trials(62))
    assert shows(f"sqlite:///{study}", trials(62))


def test_a_study_of_another_optuna_is_told_of_and_left_alone(study: Path) -> None:
    with sqlite3.connect(study) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v9.0.0'")
    connection.close()
    before = study.read_bytes()
    with pytest.raises(ProjectionFailed, match="no longer compatible with the table schema"):
        projection(f"sqlite:///{study}").bring_up(trials(60))
    assert study.read_bytes() == before


def test_a_locked_file_is_told_of_and_written_later(study: Path) -> None:
    shown = projection(f"sqlite:///{study}?timeout=0.05")
    shown.bring_up(trials(60))
    other = sqlite3.connect(study, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ProjectionFailed, match=r"study\.db.*: database is locked$"):
        shown.bring_up(trials(61))
    other.execute("ROLLBACK")
    other.close()
    assert shown.bring_up(trials(61)) == ""
    assert shows(f"sqlite:///{study}", trials(61))


def test_a_folder_may_have_any_usual_name(tmp_path: Path) -> None:
    folder = tmp_path / "a {b} 100% c"
    shown = projection(default_url(folder))
    shown.bring_up(trials(3))
    assert (folder / "study.db").is_file()
    assert shows(default_url(folder), trials(3))


def test_a_folder_that_cannot_be_made_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ProjectionFailed, match=r"study\.db: .*(Not a directory|File exists)"):
        projection(default_url(tmp_path / "file")).bring_up(trials(1))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("study.db", "no URL of a database; allowed: sqlite:///FILE or postgresql"),
        ("postgresql:/u:s3cret%2Fp%40ss@h/d", "no URL of a database"),
        ("sqlite://", "a study is not kept there; allowed: sqlite:///FILE"),
        ("mysql://u:s3cret%2Fp%40ss@h/d", r"mysql://u:\*\*\*@h/d: a study is not kept there"),
        ("nosuch://h/d", "not kept there"),
        ("postgresql+nosuch://u:s3cret%2Fp%40ss@h/d", "nosuch"),
        ("postgresql://u:s3cret%2Fp%40ss@127.0.0.1:9/d", r"psycopg://u:\*\*\*@127.0.0.1:9/d: .*refused"),
        ("postgresql://u@127.0.0.1:9/d?password=s3cret%2Fp%40ss", r"password=\*\*\*: .*refused"),
    ],
)
def test_what_is_wrong_with_a_url_is_said_in_one_line_without_passwords(url: str, said: str) -> None:
    with pytest.raises(ProjectionFailed, match=said) as failure:
        Projection(url, "x", ["maximize"], ["clean"]).bring_up([])
    line = str(failure.value)
    assert "\n" not in line
    assert "s3cret" not in line


def test_a_module_that_is_missing_is_named_with_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ProjectionFailed, match=r'psycopg is not installed; pip install "hedgerow\[postgresql\]"'):
        projection("postgresql://u:p@h/d")


def test_the_verbosity_of_optuna_is_left_alone(tmp_path: Path) -> None:
    before = optuna.logging.get_verbosity()
    projection(default_url(tmp_path)).bring_up(trials(2))
    assert optuna.logging.get_verbosity() == before
