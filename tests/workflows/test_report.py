"""How a report reads on a narrow terminal and in files."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

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
