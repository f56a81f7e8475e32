"""The table of what faults cost: `python -m tests.cluster.faults.report FILE`."""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SPANS = {"lost": "work lost", "recovery": "recovery", "longer": "end later by"}


def table(records: Sequence[dict[str, Any]]) -> str:
    """A row for each fault, in Markdown; seconds."""
    of: defaultdict[tuple[str, float], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        of[record["fault"], record["checkpoint"]].append(record)
    titles = ["fault", "times", "a checkpoint each", *(f"{name} p50 / p95 / max" for name in SPANS.values()), "refused"]
    lines = [f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}"]
    for (fault, checkpoint), found in of.items():
        spans = " | ".join(_span([record.get(name) for record in found]) for name in SPANS)
        refused = sum(record["refused"] for record in found) if "refused" in found[0] else "-"
        lines.append(f"| {fault} | {len(found)} | {checkpoint:g} | {spans} | {refused} |")
    return "\n".join(lines)


def _span(values: Sequence[float | None]) -> str:
    known = sorted(value for value in values if value is not None)
    if not known:
        return "-"
    return " / ".join(f"{known[max(0, math.ceil(share * len(known)) - 1)]:.1f}" for share in (0.5, 0.95, 1))


if __name__ == "__main__":
    sys.stdout.write(table([json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]) + "\n")
