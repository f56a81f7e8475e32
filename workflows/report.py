"""What comes out of a run: a table to read, rows for machines, a figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from rich.box import SIMPLE_HEAD
from rich.table import Table

mpl.use("Agg")


@dataclass
class Curve:
    """One line of the figure: points of every replicate, drawn through their means."""

    name: str
    points: Sequence[tuple[float, float]]
    style: Mapping[str, Any] = field(default_factory=dict)


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
    x_label: str = ""
    y_label: str = ""

    def table(self) -> Table:
        """For the terminal."""
        notes = "\n".join(self.notes) or None
        table = Table(title=self.title, caption=notes, caption_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column in self.columns:
            table.add_column(column.replace(" ", "\n", 1), justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        return table

    def write(self, folder: Path) -> list[Path]:
        """Writes `results.json`, `table.md` and, if there is anything to draw, `figure.png`."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {"title": self.title, "notes": list(self.notes), "results": list(self.results)}
        (folder / "results.json").write_text(json.dumps(content, indent=1) + "\n")
        (folder / "table.md").write_text(self._markdown())
        written = [folder / "table.md", folder / "results.json"]
        if any(curve.points for curve in self.curves):
            written.insert(0, folder / "figure.png")
            self._draw(written[0])
        return written

    def _markdown(self) -> str:
        lines = [self.columns, ["---:"] * len(self.columns), *self.rows]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        notes = "".join(f"\n{note}\n" for note in self.notes)
        return f"# {self.title}\n\n{table}\n{notes}"

    def _draw(self, path: Path) -> None:
        figure = Figure(figsize=(8.5, 4.2), layout="constrained")
        axes = figure.subplots()
        for curve in self.curves:
            if not curve.points:
                continue
            xs = sorted({x for x, _ in curve.points}, reverse=True)
            means = [mean(y for x, y in curve.points if x == at) for at in xs]
            (line,) = axes.plot(xs, means, label=curve.name, **curve.style)
            axes.plot(*zip(*curve.points, strict=True), ".", color=line.get_color(), alpha=0.5, markersize=4)
        axes.set_xscale("log")
        axes.invert_xaxis()
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(title=self.title, xlabel=self.x_label, ylabel=self.y_label)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right center", fontsize="small", frameon=False)
        figure.savefig(path, dpi=150, metadata={"Software": None})
