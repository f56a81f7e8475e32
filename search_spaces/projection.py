"""An Optuna study in a database that shows a search: for `optuna-dashboard` and for notebooks, never the truth.

What a search asked and was told is in the ledger. The study is brought up to it, and written anew when it was lost.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from optuna.exceptions import OptunaError
from optuna.storages import RDBStorage
from optuna.storages._rdb.models import SCHEMA_VERSION
from optuna.trial import FrozenTrial
from sqlalchemy import URL, Connection, NullPool, create_engine, make_url, text
from sqlalchemy.exc import ArgumentError, DatabaseError, SQLAlchemyError

from search_spaces import study_tables
from search_spaces.study_tables import About, Contradiction, Foreign, Row

CONNECT_SECONDS = 5
"""Given to a server to answer."""
BESIDE_SQLITE = ("", "-journal", "-wal", "-shm")
"""What belongs to an SQLite database: a journal that stays behind would be rolled back into the next one."""
STUDY = "study.db"
MAGIC = b"SQLite format 3\0"
"""What every SQLite database begins with."""
CORRUPT, NO_DATABASE, OTHER_TABLES = 11, 26, 1
"""SQLite's numbers for torn pages, for a header that is none, and for tables or columns that are missing."""
DAMAGE = (CORRUPT, NO_DATABASE)
SECRET = re.compile(r"(?i)pass|secret|key")
ALLOWED = "sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE"


class ProjectionFailed(RuntimeError):
    """The database does not take the study; the search itself is not affected. One line, without passwords."""


def default_url(folder: Path) -> str:
    """Where the study of a search is shown unless somewhere else is asked for: `study.db` in its folder."""
    path = str(folder.absolute() / STUDY)
    return "sqlite:///" + path.replace("{", "{{").replace("}", "}}")  # Optuna fills in its schema's version


def has_password(url: str) -> bool:
    """Whether a URL says what is nobody else's business.

    Raises:
        ProjectionFailed: it is no URL of a database.
    """
    parsed = _parse(url)
    return parsed.password is not None or any(map(SECRET.search, parsed.query))


class Projection:
    """A search, shown as an Optuna study in SQLite or PostgreSQL.

    One process at a time writes it, the first that comes: others leave it alone, and the next one takes over when that
    process is gone. Calls may come from any thread, one at a time.
    """

    def __init__(self, url: str, name: str, directions: Sequence[str], figures: Sequence[str]) -> None:
        """Prepares a projection; nothing is opened before the first `bring_up`.

        Args:
            url: `sqlite:///FILE` or `postgresql+psycopg://USER:PASSWORD@HOST/DATABASE`, as Optuna takes it.
            name: of the study.
            directions: `maximize` or `minimize`, for each objective.
            figures: what the objectives are called.

        Raises:
            ProjectionFailed: the URL is none of these, or the module that speaks to its database is not installed.
        """
        self._url = _parse(url)
        self._shown = _without_secrets(self._url)
        self._about = About(name, tuple(directions), tuple(figures))
        self._on_server = self._url.get_backend_name() == "postgresql"
        self._path = Path(self._url.database or "")
        self._lock: IO[bytes] | None = None
        self._connection: Connection | None = None
        self._has_turn = False
        self._study: int | None = None
        """Its number in the tables, once this process has looked."""
        self._stored = 0
        """How many trials they hold."""
        self._open: dict[int, Row] = {}
        """Those of them that may have to be written to: all after a look, then those that run."""
        self._file: tuple[int, int] | None = None
        self._news: list[str] = []
        self._options: dict[str, Any] = {"poolclass": NullPool}  # closed is closed: the lock goes with the connection
        if self._on_server and "connect_timeout" not in self._url.query:
            self._options["connect_args"] = {"connect_timeout": CONNECT_SECONDS}
        with self._in_one_line():
            self._engine = create_engine(self._url, **self._options)

    @property
    def is_writer(self) -> bool:
        """Whether this process is the one that writes the study."""
        return self._has_turn

    def bring_up(self, trials: Sequence[FrozenTrial]) -> str:
        """Makes the stored study equal to these trials; their numbers are their places.

        A trial that is finished must not change from one call to the next: it is not looked at again.

        Args:
            trials: all trials so far, running or finished.

        Returns:
            nothing, or one line for the user when what was stored had to be replaced.

        Raises:
            ProjectionFailed: the database does not answer or does not take them; the next call begins anew.
        """
        with self._in_one_line():
            self._bring_up(trials)
        news = "; ".join(self._news)
        self._news = []
        return news

    def close(self) -> None:
        """Lets the next process take over."""
        self._let_go()
        self._has_turn = False
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _bring_up(self, trials: Sequence[FrozenTrial]) -> None:
        """Tries again where that helps: a connection that broke while idle, tables that two made at once, damage."""
        for attempt in range(3):
            try:
                self._attempt(trials)
            except (SQLAlchemyError, OptunaError) as error:
                self._let_go()
                damaged = _sqlite_code(error) in (DAMAGE if attempt == 0 else (*DAMAGE, OTHER_TABLES))
                if attempt == 2 or (attempt == 1 and not damaged):
                    raise
                if damaged:
                    self._put_aside()
            else:
                return

    def _attempt(self, trials: Sequence[FrozenTrial]) -> None:
        if self._file is not None and self._file != _identity(self._path):
            self._let_go()  # deleted or replaced: what is written to the open one would be lost
        if not self._takes_turn():
            return
        if self._study is None:
            self._make_tables()
        connection = self._connect()
        with connection.begin():
            try:
                self._look(connection)
                changed = self._changed(trials)
            except (Contradiction, LookupError):  # the latter from words in the tables that Optuna does not know
                self._news.append(f"the study '{self._about.name}' in {self._shown} was not this one: written anew")
                self._study, self._stored, self._open = study_tables.create(connection, self._about), 0, {}
                changed = {}
            assert self._study is not None
            if changed:
                study_tables.bring_on(connection, self._study, changed)
            if len(trials) > self._stored:
                study_tables.add(connection, self._study, self._stored, trials[self._stored :])
        candidates = [*self._open, *range(self._stored, len(trials))]
        self._open = {number: Row.of(trials[number]) for number in candidates if not trials[number].state.is_finished()}
        self._stored = len(trials)

    def _takes_turn(self) -> bool:
        """Whether this process may write: it holds a lock that ends with it, whatever way it ends."""
        if not self._has_turn:
            name = hashlib.sha256(f"hedgerow {self._about.name}".encode()).digest()
            self._has_turn = self._locks_server(name) if self._on_server else self._locks_file(name)
        return self._has_turn

    def _locks_server(self, name: bytes) -> bool:
        """On the one connection that also writes: who loses the lock cannot write any more."""
        key = int.from_bytes(name[:8], "big", signed=True)
        connection = self._connect()
        with connection.begin():
            return bool(connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": key}).scalar())

    def _locks_file(self, name: bytes) -> bool:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lock = self._path.with_name(f"{self._path.name}.{name.hex()[:8]}.lock").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return False
        self._lock = lock
        return True

    def _connect(self) -> Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
            if not self._on_server:  # only a loss of power can tear a file then, and a torn one is written anew
                self._connection.exec_driver_sql("PRAGMA synchronous = OFF")
                self._connection.rollback()
        return self._connection

    def _let_go(self) -> None:
        """Forgets what is stored, and on a server the turn: whatever was the matter, the next look tells."""
        if self._connection is not None:
            with contextlib.suppress(SQLAlchemyError):  # broken already
                self._connection.rollback()
                if self._on_server and self._has_turn:  # a server notices in its own time that a client is gone
                    self._connection.execute(text("SELECT pg_advisory_unlock_all()"))
                self._connection.close()
        self._connection = self._study = self._file = None
        self._has_turn = self._lock is not None

    def _make_tables(self) -> None:
        """Lets Optuna make those that are not there, and checks what SQLite can check."""
        RDBStorage(_template(self._url), dict(self._options)).engine.dispose()
        if not self._on_server:
            self._file = _identity(self._path)
            if self._connect().execute(text("PRAGMA integrity_check(1)")).scalar() != "ok":
                raise DatabaseError("integrity_check", None, _Torn("database disk image is malformed"))
            self._connect().rollback()

    def _look(self, connection: Connection) -> None:
        """Finds out what is stored, unless that is known and still so."""
        if self._study is not None and study_tables.standing(connection, self._about.name) == (
            self._study,
            self._stored,
        ):
            return
        self._study = study_tables.find(connection, self._about)
        if self._study is None:
            self._study = study_tables.create(connection, self._about)
        self._open = dict(enumerate(study_tables.read(connection, self._study)))
        self._stored = len(self._open)

    def _changed(self, trials: Sequence[FrozenTrial]) -> dict[int, FrozenTrial]:
        """The stored trials that have gone on."""
        if self._stored > len(trials):
            raise Contradiction
        return {
            number: trials[number] for number, row in self._open.items() if not Row.of(trials[number]).is_shown_by(row)
        }

    def _put_aside(self) -> None:
        head = self._path.read_bytes()[: len(MAGIC)] if self._path.is_file() else b""
        if head != MAGIC[: len(head)] and self._path.name != STUDY:
            raise Foreign(f"{self._path} is a file of another kind; name one that is not there yet")
        number = 1
        while (aside := self._path.with_name(f"{self._path.name}.damaged-{number}")).exists():
            number += 1
        for end in BESIDE_SQLITE:
            with contextlib.suppress(FileNotFoundError):
                Path(f"{self._path}{end}").rename(f"{aside}{end}")
        self._news.append(f"{self._path} was damaged: put aside as {aside.name} and written anew")

    @contextlib.contextmanager
    def _in_one_line(self) -> Iterator[None]:
        try:
            yield
        except ModuleNotFoundError as missing:
            raise ProjectionFailed(
                f'{self._shown}: {missing.name} is not installed; pip install "hedgerow[postgresql]" '
                "brings what postgresql+psycopg:// needs"
            ) from None
        except (SQLAlchemyError, OptunaError, OSError, Foreign, RuntimeError) as error:
            said = _cause(error)
            line = " ".join(str(getattr(said, "orig", None) or said).split()) or type(error).__name__
            line = line.replace(self._url.password or "\n", "***")
            raise ProjectionFailed(f"{self._shown}: {line}") from error


class _Torn(Exception):
    """What SQLite would say of pages that it did not need to read yet."""

    sqlite_errorcode = CORRUPT


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url.format(SCHEMA_VERSION=SCHEMA_VERSION))
    except (ArgumentError, LookupError, ValueError):
        raise ProjectionFailed(f"{re.sub(':.*@', ':***@', url)}: no URL of a database; allowed: {ALLOWED}") from None
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    in_memory = parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:")
    if parsed.get_backend_name() not in ("sqlite", "postgresql") or in_memory:
        raise ProjectionFailed(f"{_without_secrets(parsed)}: a study is not kept there; allowed: {ALLOWED}")
    return parsed


def _template(url: URL) -> str:
    """As Optuna takes it: with braces that stand for themselves doubled."""
    return url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")


def _without_secrets(url: URL) -> str:
    query = {name: "***" if SECRET.search(name) else value for name, value in url.query.items()}
    return url.set(query=query).render_as_string(hide_password=True).replace("%2A%2A%2A", "***")


def _cause(error: BaseException) -> BaseException:
    """What Optuna wraps: its own words are about commits."""
    wrapped = error.__cause__
    return wrapped if isinstance(error, OptunaError) and isinstance(wrapped, SQLAlchemyError) else error


def _sqlite_code(error: BaseException) -> int | None:
    """The number of an error of SQLite, without its details."""
    code = getattr(getattr(_cause(error), "orig", None), "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from another one that has its name now."""
    with contextlib.suppress(FileNotFoundError):
        found = path.stat()
        return found.st_dev, found.st_ino
    return None
