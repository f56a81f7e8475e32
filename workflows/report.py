"""What comes out of a run: a table to read, rows for machines, a figure."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from workflows.heat import HeatMap, draw


@dataclass
class Curve:
    """One line of the figure: points of every replicate, drawn through their means."""

    name: str
    points: Sequence[tuple[float, float]]
    style: Mapping[str, Any] = field(default_factory=dict)
    band: Sequence[tuple[float, float, float]] = ()
    """For each x what the line may be off by: the lower and the upper end."""
    scattered: bool = False
    """Whether the points stand for themselves, without a line through their means."""


@dataclass
class Section:
    """A further table."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Page:
    """A further file of a report."""

    draw: Callable[[], bytes]
    stamp: str = ""
    """Of what it shows: a file that has it at its end is not drawn again. An HTML comment, if it is given."""

    def written(self, path: Path) -> bytes | None:
        """What is to be written there; None if it is there already."""
        end = f"<!-- {self.stamp} -->\n".encode() if self.stamp else b""
        if end and path.is_file():
            with path.open("rb") as file:
                file.seek(-min(len(end), path.stat().st_size), 2)
                if file.read() == end:
                    return None
        return self.draw() + end


@dataclass
class Report:
    """The result of a run."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    results: Sequence[Mapping[str, Any]]
    """Every measured point with the key of the step behind it."""
    notes: Sequence[str] = ()
    curves: Sequence[Curve] = ()
    maps: Sequence[HeatMap] = ()
    """Drawn instead of curves."""
    x_label: str = ""
    y_label: str = ""
    sections: Sequence[Section] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    """What the results depend on, for machines."""
    linear: bool = False
    """Whether x rises linearly; it falls logarithmically otherwise, as densities do."""
    pages: Mapping[str, Page] = field(default_factory=dict)
    """Further files, drawn when the report is written."""
    replaces: str = ""
    """Files of this pattern that are none of the pages are of an earlier report, and go."""

    def view(self) -> Group:
        """For the terminal."""
        tables = [self.table()] if self.rows else []
        more = [part for section in self.sections for part in (Text(section.title, "bold"), _table(section))]
        return Group(Text(self.title, "bold"), *tables, *more, *map(Text, self.notes))

    def table(self) -> Table:
        """The rows alone."""
        return _table(self)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        about = {"about": dict(self.about)} if self.about else {}
        return {"title": self.title, "notes": list(self.notes), **about, "results": list(self.results)}

    def write(self, folder: Path) -> list[Path]:
        """Writes `results.json`, `table.md`, further pages and, if there is anything to draw, `figure.png`.

        Raises:
            OSError: there is no room, or no right to write; what stood there before still does.
        """
        content = f"{json.dumps(self.record(), indent=1, ensure_ascii=False)}\n"
        files = {"table.md": self._markdown().encode(), "results.json": content.encode()}
        if self.maps:
            files = {"figure.png": draw(self.maps, self.title, self.x_label, self.y_label), **files}
        elif any(curve.points for curve in self.curves):
            files = {"figure.png": self._figure(), **files}
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            _replace(folder / name, data)
        for name, page in self.pages.items():
            if (drawn := page.written(folder / name)) is not None:
                _replace(folder / name, drawn)
        for path in folder.glob(self.replaces) if self.replaces else ():
            if path.name not in self.pages:
                path.unlink()
        return [folder / name for name in (*files, *self.pages)]

    def _markdown(self) -> str:
        more = "".join(f"\n## {section.title}\n\n{_markdown(section)}\n" for section in self.sections)
        notes = "".join(f"\n{note}\n" for note in self.notes)
        return f"# {self.title}\n\n{_markdown(self)}\n{more}{notes}"

    def _figure(self) -> bytes:
        from matplotlib.figure import Figure  # half a second, and most commands draw nothing
        from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

        figure = Figure(figsize=(8.5, 4.2), layout="constrained")
        axes = figure.subplots()
        for curve in self.curves:
            if not curve.points:
                continue
            if curve.scattered:
                axes.plot(*zip(*curve.points, strict=True), label=curve.name, **{"linestyle": "", **curve.style})
                continue
            xs = sorted({x for x, _ in curve.points}, reverse=True)
            means = [mean(y for x, y in curve.points if x == at) for at in xs]
            (line,) = axes.plot(xs, means, label=curve.name, **curve.style)
            axes.plot(*zip(*curve.points, strict=True), ".", color=line.get_color(), alpha=0.5, markersize=4)
            if curve.band:
                ends, low, high = zip(*curve.band, strict=True)
                axes.fill_between(ends, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        if not self.linear:
            axes.set_xscale("log")
            axes.invert_xaxis()
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
        elif all(float(x).is_integer() for curve in self.curves for x, _ in curve.points):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # there is no round 2.5
        axes.set(title=self.title, xlabel=self.x_label, ylabel=self.y_label)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right center", fontsize="small", frameon=False)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=150, metadata={"Software": None})
        return drawn.getvalue()


def _table(shown: Report | Section) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for place, column in enumerate(shown.columns):
        lists = any(", " in row[place] for row in shown.rows)  # where room is short, these break into lines
        table.add_column(column.replace(" ", "\n", 1), justify="right", no_wrap=not lists)
    for row in shown.rows:
        table.add_row(*row)
    return table


def _markdown(shown: Report | Section) -> str:
    lines = [shown.columns, ["---:"] * len(shown.columns), *shown.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _replace(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all: a full disk must not cost the report of an earlier run."""
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
