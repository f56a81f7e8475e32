"""What a person sees while a run goes on: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from cluster.flow import Handle
from cluster.follower import scalars
from cluster.ledger import Ledger, Progress, Published
from cluster.plan import Plan
from cluster.runs import Finished
from cluster.store import Store, StoreError
from workflows.command.forecast import Forecast, in_words
from workflows.command.standing_view import Row, running_table

SHOWN = 12
"""Running steps that fit on a screen."""
LOOK_SECONDS = 1.0
"""Between two looks at the heartbeats."""


@dataclass
class _UnderWay:
    """A step that was handed to Ray."""

    handle: Handle
    began: float | None = None
    """When its worker was first seen at work; before that it waits in Ray's queue."""
    progress: Progress = field(default_factory=Progress)


@dataclass
class _News:
    """What is known, changed by the event loop and the look at the heartbeats, drawn by a thread of rich."""

    forecast: Forecast
    known: set[str]
    under_way: dict[str, _UnderWay] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)
    """How each step ended: found, published or failed."""
    lock: threading.Lock = field(default_factory=threading.Lock)


class LiveView:
    """Follows the engine's news; progress inside a step is read from its heartbeat in the store.

    The store is read by a thread of its own: a slow one must hold up neither the table nor the engine.
    """

    def __init__(
        self,
        console: Console,
        store: Store,
        plan: Plan,
        cpus: float,
        gpus: float,
        so_far: Callable[[Sequence[Finished]], RenderableType | None] = lambda notes: None,
    ) -> None:
        """Prepares a view.

        Args:
            console: where to draw.
            store: that the heartbeats are read from.
            plan: the steps known beforehand; a workflow may ask for more.
            cpus: of the whole cluster, for the time that is left.
            gpus: of the whole cluster.
            so_far: what to show of the driver's own notes, above the running steps.
        """
        self._console = console
        self._so_far = so_far
        self._notes: list[Finished] = []
        self._board: tuple[int, RenderableType | None] = (0, None)
        """What is shown of so many notes."""
        self._waiting: set[str] = set()
        """Steps of which was told that another driver is at work on them."""
        self._held_up = False
        """Whether was told that the store does not answer, and it has not answered since."""
        self._ledger = Ledger(store)
        forecast = Forecast((step.handle for step in plan.to_run), cpus, gpus)
        self._news = _News(forecast, {step.handle.key for step in plan.steps})
        self._live = Live(console=console, get_renderable=self._draw, refresh_per_second=2, transient=True)
        self._over = threading.Event()
        self._looking = threading.Thread(target=self._look, name="heartbeats", daemon=True)

    def __enter__(self) -> LiveView:
        if self._console.is_terminal:
            self._looking.start()
            self._live.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._over.set()
        self._live.stop()

    def tell(self, state: str, handle: Handle, **news: Any) -> None:
        """Takes in one piece of the engine's news."""
        now = self._news
        with now.lock:
            if state == "asked":
                now.known.add(handle.key)
                now.ended.pop(handle.key, None)  # it was damaged, and is computed anew
                now.forecast.add(handle)
            elif state == "started":
                now.under_way[handle.key] = _UnderWay(handle)
            elif state in ("found", "published", "failed"):
                now.under_way.pop(handle.key, None)
                now.ended[handle.key] = state
                seconds = news["published"].manifest["seconds"] if state == "published" else None
                now.forecast.end(handle, seconds)
        if state in ("found", "published"):
            self._held_up = False
            if handle.task.threads == 0:
                self._notes.append(Finished(handle.at, news["published"]))
        self._tell_in_a_line(state, handle, news)

    def say(self, line: str) -> None:
        """One line that stays."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _tell_in_a_line(self, state: str, handle: Handle, news: dict[str, Any]) -> None:
        """One line for what is worth one; on a terminal the table shows the rest."""
        if state == "published" and not self._console.is_terminal:
            published: Published = news["published"]
            done = sum(state != "failed" for state in self._news.ended.values())
            took = published.manifest["seconds"]
            self.say(f"[{done}/{len(self._news.known)}] {handle}  {took:.1f} s  {headline(published)}".rstrip())
        elif state == "failed":  # why, and what to do about it, stands at the end
            self.say(f"failed: {handle} ({news['cause']})")
        elif state == "unplaced":
            self.say(f"waiting for a node: {handle}: {news['message']}")
        elif state == "waiting" and handle.key not in self._waiting:
            self._waiting.add(handle.key)
            self.say(f"waiting: {handle}: another driver is at work on it, or was until a moment ago")
        elif state == "held-up" and not self._held_up:
            self._held_up = True
            self.say(f"the store does not answer, and is asked again: {news['message']}")
        elif state in ("retried", "recomputed"):
            cause = f" ({news['cause']})" if "cause" in news else ""
            self.say(f"{state}: {handle}{cause}: {news['message']}")

    def _draw(self) -> RenderableType:
        with self._news.lock:
            running = [step for step in self._news.under_way.values() if step.began is not None]
            table = running_table(map(_row, sorted(running, key=lambda step: -step.progress.part)[:SHOWN]))
            line = self._line(running)
        if self._board[0] != len(self._notes):
            notes = self._notes[:]
            self._board = (len(notes), self._so_far(notes))
        board = self._board[1]
        return Group(*([board] if board else []), *([table] if running else []), Text(line))

    def _line(self, running: list[_UnderWay]) -> str:
        counts, queued = Counter(self._news.ended.values()), len(self._news.under_way) - len(running)
        parts = [f"{counts['found'] + counts['published']} of {len(self._news.known)} steps done"]
        parts += [f"{counts['found']} of them found"] if counts["found"] else []
        parts += [f"{counts['failed']} failed"] if counts["failed"] else []
        parts += [f"{len(running)} running"] if running else []
        parts += [f"{queued} queued"] if queued else []
        now = time.monotonic()
        at = {step.handle.key: (now - step.began, step.progress.part) for step in running if step.began is not None}
        return ", ".join([*parts, in_words(self._news.forecast.seconds(at))])

    def _look(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            with self._news.lock:
                under_way = list(self._news.under_way.values())
            for step in under_way:
                try:
                    lease = self._ledger.current_lease(step.handle.key)
                except StoreError:  # the next look may see it
                    continue
                if lease is not None and lease.record["state"] == "held":
                    with self._news.lock:
                        step.began = step.began or time.monotonic()
                        step.progress = lease.progress


def _row(step: _UnderWay) -> Row:
    elapsed = Text(f"{time.monotonic() - (step.began or 0):.0f} s")
    return Row(step.handle.task.kind, step.handle.at, step.progress, elapsed)


def headline(published: Published) -> str:
    """The few metrics of a step that fit on a line."""
    if published.manifest["task"]["kind"] in ("ask", "trial"):
        return _noted(published.metrics)
    found = dict(scalars(published.metrics, "metrics"))
    radii = [name for name in found if name.startswith("metrics/robust/") and name.endswith("/accuracy")]
    robust = [radii[0].removeprefix("metrics/")] if len(radii) == 1 else []
    wanted = ("clean/accuracy", *robust, "last/accuracy", "density")
    return "  ".join(f"{name} {found[f'metrics/{name}']:.4f}" for name in wanted if f"metrics/{name}" in found)


def _noted(metrics: Mapping[str, Any]) -> str:
    """A trial that was asked for, or what became of it."""
    shown = metrics.get("values") or ({} if "state" in metrics else metrics["parameters"] or {})
    words = [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in shown.items()]
    return "  ".join([*([metrics["state"]] if "state" in metrics else []), *words])
