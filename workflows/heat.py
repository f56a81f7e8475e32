"""Heat maps: a matrix of percentages as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan

LIGHT = 55
"""Percent from which the colour is so light that text on it is dark."""


@dataclass
class HeatMap:
    """A matrix: a row for each of its y labels, from below, a column for each of its x labels."""

    title: str
    x: Sequence[str]
    y: Sequence[str]
    values: Sequence[Sequence[float]]
    """Percent; NaN where there is none."""
    framed: Sequence[tuple[int, int]] = ()
    """(row, column) of the cells that stand out."""


def draw(maps: Sequence[HeatMap], title: str, x_label: str, y_label: str) -> bytes:
    """The maps side by side, three in a row at most, as PNG."""
    from matplotlib.figure import Figure  # half a second, and most commands draw nothing
    from matplotlib.patches import Rectangle

    across = min(len(maps), 3)
    down = -(-len(maps) // across)
    wide = max(7.2 if across == 1 else 4.6, 0.62 * max(len(heat.x) for heat in maps) + 1.6)
    high = max(3.4, 0.42 * max(len(heat.y) for heat in maps) + 1.6)
    figure = Figure(figsize=(across * wide, down * high), layout="constrained")
    figure.suptitle(title, wrap=True)
    for place, heat in enumerate(maps):
        axes = figure.add_subplot(down, across, place + 1)
        axes.imshow(heat.values, origin="lower", aspect="auto", vmin=0, vmax=100, cmap="viridis")
        for row, line in enumerate(heat.values):
            for column, value in enumerate(line):
                if not isnan(value):
                    colour = "black" if value > LIGHT else "white"
                    axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8)
        for row, column in heat.framed:
            axes.add_patch(
                Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="red", linewidth=1.8, clip_on=False)
            )
        axes.set_xticks(range(len(heat.x)), heat.x, fontsize=8)
        axes.set_yticks(range(len(heat.y)), heat.y, fontsize=8)
        axes.set(title=heat.title, xlabel=x_label, ylabel=y_label)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=150, metadata={"Software": None})
    return drawn.getvalue()
