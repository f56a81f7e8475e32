"""The table of what faults cost: `python -m tests.cluster.faults.report FILE`."""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def table(records: Sequence[dict[str, Any]]) -> str:
    """A row for each fault, in Markdown."""
    of: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        if record["fault"] != "none":
            of[record["fault"]].append(record)
    lines = [
        "| fault | times | work lost p50 / p95 (s) | recovery p50 / p95 (s) | end later by p50 / p95 (s) "
        "| published twice | refused |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for fault, found in of.items():
        spans = " | ".join(_span([record[name] for record in found]) for name in ("lost", "recovery", "longer"))
        twice, refused = (sum(record[name] for record in found) for name in ("published_twice", "refused"))
        lines.append(f"| {fault} | {len(found)} | {spans} | {twice} | {refused} |")
    return "\n".join(lines)


def _span(values: Sequence[float | None]) -> str:
    known = sorted(value for value in values if value is not None)
    if not known:
        return "-"
    return " / ".join(f"{known[max(0, math.ceil(share * len(known)) - 1)]:.1f}" for share in (0.5, 0.95))


if __name__ == "__main__":
    sys.stdout.write(table([json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]) + "\n")
