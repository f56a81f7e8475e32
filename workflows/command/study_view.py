"""Shows a search to Optuna's tools while it goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from cluster.flow import Handle
from cluster.ledger import Published
from search_spaces.projection import Projection, ProjectionFailed, default_url, has_password
from workflows.command.recipe import BadRequest
from workflows.search import Search


class StudyView:
    """Shows a search as an Optuna study in a database; the search neither waits for it nor reads it."""

    def __init__(self, search: Search, name: str, url: str | None, folder: Path) -> None:
        """Prepares a view; the database is opened by `begin`.

        Args:
            search: what is shown.
            name: of the study.
            url: of the database; a file in `folder` when not given.
            folder: of the report.

        Raises:
            BadRequest: it is no database that can be written here.
        """
        self._search = search
        self._trials: dict[int, FrozenTrial] = {}
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._over = False
        self._thread: threading.Thread | None = None
        self._trouble: list[str] = []
        objectives = search.objectives
        try:
            if url and has_password(url):
                raise BadRequest(
                    "--study: a URL must hold no password, for commands are recorded: set PGPASSWORD, or use ~/.pgpass"
                )
            self._projection = Projection(
                url or default_url(folder),
                name,
                [objective.direction for objective in objectives],
                [objective.figure for objective in objectives],
            )
        except ProjectionFailed as error:
            raise BadRequest(f"--study: {error}") from None

    def begin(self, known: Iterable[Published]) -> None:
        """Shows what the ledger has already.

        Raises:
            BadRequest: the database does not take it.
        """
        for step in known:
            self._note(step)
        try:
            self._show()
        except ProjectionFailed as error:
            raise BadRequest(f"--study: {error}") from None
        self._thread = threading.Thread(target=self._follow, name="study", daemon=True)
        self._thread.start()

    def tell(self, state: str, handle: Handle, **news: Any) -> None:
        """Takes in one piece of the engine's news."""
        if state in ("found", "published"):
            self._note(news["published"])

    def end(self) -> list[str]:
        """Waits until the study shows all that was told.

        Returns:
            lines for the user.
        """
        self._over = True
        self._news.set()
        if self._thread is not None:
            self._thread.join()
        self._show_or_say()
        self._projection.close()
        return self._trouble

    def _note(self, step: Published) -> None:
        task = step.manifest["task"]
        if task["kind"] not in ("ask", "trial") or task["study"] != self._search.key:
            return
        trial = self._search.frozen(task["number"], step.metrics)
        if trial is None:
            return
        with self._lock:
            known = self._trials.get(task["number"])
            if known is None or not known.state.is_finished():
                self._trials[task["number"]] = trial
        self._news.set()

    def _follow(self) -> None:
        while not self._over:
            self._news.wait()
            self._news.clear()
            self._show_or_say()

    def _show_or_say(self) -> None:
        try:
            self._show()
        except ProjectionFailed as error:
            self._say(f"--study: {error}; results are not affected, and the next start brings the study up to date")

    def _show(self) -> None:
        with self._lock:
            known = takewhile(self._trials.__contains__, count())
            trials = [self._trials[number] for number in known]
        self._say(self._projection.bring_up(trials))

    def _say(self, line: str) -> None:
        if line and line not in self._trouble:
            self._trouble.append(line)
