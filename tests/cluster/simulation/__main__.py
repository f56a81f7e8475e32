"""Replays one schedule with its events: `python -m tests.cluster.simulation SEED [gray]`."""

from __future__ import annotations

import sys

from tests.cluster.simulation.schedules import explore, gray


def main() -> int:
    which = gray if "gray" in sys.argv[2:] else explore
    verdict = which(int(sys.argv[1]), tracing=True)
    sys.stdout.write("\n".join(verdict.trace) + "\n")
    sys.stdout.write(f"{verdict.seconds:.1f} s, {verdict.requests} requests, faults: {', '.join(verdict.faults)}\n")
    for violation in verdict.violations:
        sys.stdout.write(f"VIOLATION {violation}\n")
    return int(bool(verdict.violations))


if __name__ == "__main__":
    sys.exit(main())
