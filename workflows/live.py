"""What a person sees while a run goes on: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cluster.flow import Handle, describe
from cluster.ledger import Ledger, Published
from cluster.store import Store, StoreError

SHOWN = 12
"""Running steps that fit on a screen."""


@dataclass
class _Running:
    handle: Handle
    since: float = field(default_factory=time.monotonic)
    done: float = 0.0
    note: str = "queued"


class LiveView:
    """Follows the engine's news; progress inside a step is read from its heartbeat in the store."""

    def __init__(self, console: Console, store: Store, title: str, total: int, workers: int) -> None:
        """Prepares a view.

        Args:
            console: where to draw.
            store: that the heartbeats are read from.
            title: of the table.
            total: steps known beforehand; grows when a workflow asks for more.
            workers: steps that can run at once, for the time that is left.
        """
        self._console = console
        self._ledger = Ledger(store)
        self._title = title
        self._total = total
        self._workers = workers
        self._asked: set[str] = set()
        self._running: dict[str, _Running] = {}
        self._counts: Counter[str] = Counter()
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._kinds: Counter[str] = Counter()
        self._started = time.monotonic()
        self._live = Live(console=console, get_renderable=self._draw, refresh_per_second=2, transient=True)

    def __enter__(self) -> LiveView:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.stop()

    def tell(self, state: str, handle: Handle, **news: Any) -> None:
        """Takes in one piece of the engine's news."""
        if state == "asked":
            self._asked.add(handle.key)
            self._kinds[handle.task.kind] += 1
        elif state == "started":
            self._running[handle.key] = _Running(handle)
        elif state in ("found", "published", "failed"):
            self._running.pop(handle.key, None)
            self._counts[state] += 1
            if state == "published":
                self._seconds[handle.task.kind].append(news["published"].manifest["seconds"])
        self._say(state, handle, news)

    def _say(self, state: str, handle: Handle, news: dict[str, Any]) -> None:
        """One line for what is worth one; on a terminal the table shows the rest."""
        if state == "published" and not self._console.is_terminal:
            published: Published = news["published"]
            done = self._counts["published"] + self._counts["found"]
            took = published.manifest["seconds"]
            self._console.print(
                f"[{done}/{self._known()}] {handle}  {took:.1f} s  {headline(published)}", markup=False, soft_wrap=True
            )
        elif state in ("failed", "retried", "recomputed"):
            cause = f" ({news['cause']})" if "cause" in news else ""
            self._console.print(f"{state}: {handle}{cause}: {news['message']}", markup=False, soft_wrap=True)

    def _known(self) -> int:
        return max(self._total, len(self._asked))

    def _draw(self) -> RenderableType:
        self._look_at_heartbeats()
        done = self._counts["published"] + self._counts["found"]
        table = Table(title=self._title, title_justify="left", expand=False)
        for column, justify in (
            ("step", "left"),
            ("where", "left"),
            ("progress", "left"),
            ("", "left"),
            ("time", "right"),
        ):
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        busiest = sorted(self._running.values(), key=lambda running: -running.done)
        for running in busiest[:SHOWN]:
            handle = running.handle
            bar = ProgressBar(total=1.0, completed=running.done, width=20)
            elapsed = f"{time.monotonic() - running.since:.0f} s" if running.done else ""
            table.add_row(handle.task.kind, describe(handle.at), bar, running.note, elapsed)
        line = f"{done} of {self._known()} steps done ({self._counts['found']} found), {self._eta()}"
        if self._counts["failed"]:
            line += f", {self._counts['failed']} failed"
        return Group(table, Text(line))

    def _look_at_heartbeats(self) -> None:
        for key, running in list(self._running.items()):
            try:
                lease = self._ledger.current_lease(key)
            except StoreError:
                continue
            if lease is not None and "progress" in lease.record:
                step, steps, note = lease.record["progress"]
                running.done = step / steps if steps else 0.0
                running.note = note or f"{step}/{steps}"

    def _eta(self) -> str:
        """Time left, from what finished steps of each kind took and how far the running ones are."""
        typical = {kind: sum(took) / len(took) for kind, took in self._seconds.items()}
        for running in self._running.values():
            if running.done > 0.02 and running.handle.task.kind not in typical:
                typical[running.handle.task.kind] = (time.monotonic() - running.since) / running.done
        if not typical:
            return "time left: not known yet"
        longest = max(typical.values())
        left = self._known() - self._counts["published"] - self._counts["found"]
        kinds = Counter({kind: n - len(self._seconds[kind]) for kind, n in self._kinds.items()})
        asked = sum(kinds.values()) - self._counts["found"]
        work = sum(typical.get(kind, longest) * max(n, 0) for kind, n in kinds.items()) * left / max(asked, 1)
        work -= sum(typical.get(r.handle.task.kind, longest) * r.done for r in self._running.values())
        seconds = max(work, 0) / self._workers
        return f"about {seconds:.0f} s left" if seconds < 120 else f"about {seconds / 60:.0f} min left"


def headline(published: Published) -> str:
    """The few metrics of a step that fit on a line."""
    flat = flatten(published.metrics)
    wanted = ("clean/accuracy", "last/accuracy", "density")
    return "  ".join(f"{name} {flat[name]:.4f}" for name in wanted if isinstance(flat.get(name), int | float))


def flatten(metrics: Any, prefix: str = "") -> dict[str, Any]:
    """Nested metrics as `a/b/c: value`."""
    if not isinstance(metrics, dict):
        return {prefix: metrics}
    return {
        name: item
        for key, value in metrics.items()
        for name, item in flatten(value, f"{prefix}/{key}".strip("/")).items()
    }
