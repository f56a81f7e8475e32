"""How a report reads on a narrow terminal and in files."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from math import nan
from pathlib import Path

from PIL import Image
from rich.console import Console

from workflows.heat import HeatMap, draw
from workflows.report import Report

WIDE = Report(
    title="wide",
    columns=["model", "interval (95 %)", "broken by"],
    rows=[["a-name-of-24-characters-", "89.4 to 99.9", ", ".join(f"attack-{number} 1" for number in range(8))]],
    results=[{"epsilon": 0.1}],
    notes=["ε in input units"],
    about={"seed": 3},
)


def test_a_long_list_breaks_into_lines_and_nothing_is_cut_off() -> None:
    console = Console(width=80)
    with console.capture() as captured:
        console.print(WIDE.table())
    shown = captured.get()
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    for whole in ("a-name-of-24-characters-", "89.4 to 99.9", *(f"attack-{number}" for number in range(8))):
        assert whole in shown


def test_the_file_for_machines_says_what_the_results_depend_on(tmp_path: Path) -> None:
    (table, results) = WIDE.write(tmp_path)
    assert json.loads(results.read_text(encoding="utf-8")) == {
        "title": "wide",
        "notes": ["ε in input units"],
        "about": {"seed": 3},
        "results": [{"epsilon": 0.1}],
    }
    assert "ε in input units" in table.read_text(encoding="utf-8")


MAP = HeatMap("one", x=["clean", "0.1"], y=["0", "0.1"], values=[[99.0, 3.0], [98.0, nan]], framed=[(1, 0)])


def colours(*maps: HeatMap) -> set[tuple[int, ...]]:
    drawn = Image.open(io.BytesIO(draw(maps, "title", "x", "y"))).convert("RGB")
    found = drawn.getcolors(drawn.width * drawn.height)
    assert found is not None
    return {colour for _, colour in found if isinstance(colour, tuple)}


def test_a_heat_map_shades_its_values_and_frames_what_stands_out(tmp_path: Path) -> None:
    red = (255, 0, 0)
    shaded = colours(MAP)
    assert red in shaded
    assert red not in colours(replace(MAP, framed=[]))
    dark = colours(replace(MAP, values=[[3.0, 3.0], [3.0, 3.0]], framed=[]))
    bright = colours(replace(MAP, values=[[99.0, 99.0], [99.0, 99.0]], framed=[]))
    assert any(min(colour[:2]) > 200 > 100 > colour[2] for colour in bright), "yellow"
    assert not any(min(colour[:2]) > 200 > 100 > colour[2] for colour in dark)


def test_a_report_with_maps_draws_them(tmp_path: Path) -> None:
    (figure, *_) = replace(WIDE, maps=[MAP, MAP]).write(tmp_path)
    wide, narrow = (Image.open(io.BytesIO(draw([MAP] * count, "title", "x", "y"))).width for count in (2, 1))
    assert Image.open(figure).width == wide > narrow
