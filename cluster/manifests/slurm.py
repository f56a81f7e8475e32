"""Slurm: one batch script that starts Ray on its nodes, runs hedgerow, and comes back when its time is up.

Plain `ray start`, not `ray symmetric-run`: the latter ends with 0 when Ray did not start, waits only 30 seconds for the
other nodes, does not pass on the signal that says the time is nearly up, and its `ray stop` ends whatever else this
user runs with Ray on the node. Here the driver is a child of the script itself, so that its exit code and its signals
are its own.
"""

from __future__ import annotations

import shlex
from typing import Annotated, ClassVar

from pydantic import Field

from cluster.manifests.manifest import MAKE_TOKEN, MOST, Manifest, Path, Word, exports, spelled
from cluster.settings import HEAD_PORT

STRETCH = 600
"""Seconds, at least, for Ray to start and for work, before the notice that the time is nearly up."""
Duration = Annotated[str, spelled(r"(\d+-)?\d+(:\d\d){0,2}", "[DAYS-]HOURS:MINUTES:SECONDS, or MINUTES")]


class Slurm(Manifest):
    """A Slurm job over whole nodes."""

    target: ClassVar[str] = "slurm"

    nodes: int = Field(default=2, ge=1, le=MOST)
    """Whole nodes: Ray's ports and memory are not shared with others' jobs."""
    gpus: int = Field(default=0, ge=0, le=MOST)
    """GPUs of each node."""
    type: Word | None = None
    """Kind of GPU, as the site calls it."""
    time: Duration = "24:00:00"
    """Time of one stretch; the job queues up again until hedgerow is done."""
    partition: Word | None = None
    """The site's own when not given."""
    account: Word | None = None
    """Who is charged."""
    notice: int = Field(default=120, ge=30, le=65535)
    """Seconds before the end at which hedgerow is asked to save its state."""
    setup: tuple[str, ...] = ()
    """Shell lines that bring `ray` and `hedgerow` onto the PATH, such as `module load ...` or `source .../activate`."""
    scratch: Path = ".hedgerow-jobs"
    """A folder on storage that all nodes share, of which only this user reads the jobs' tokens."""
    port: int = Field(default=HEAD_PORT, ge=1024, le=65535)
    """Of Ray's head."""

    def mistakes(self) -> list[str]:
        """What Slurm would misread, too."""
        found = super().mistakes()
        if self.type and not self.gpus:
            found.append(f"type: {self.type} names a GPU; give gpus too")
        if any("\n" in line for line in self.setup):
            found.append("setup: one line each")
        if 0 < _seconds(self.time) <= self.notice + STRETCH:  # 0 is no limit
            found.append(
                f"time: {self.time} is hardly more than the notice, {self.notice} s, and the job would queue up for "
                f"ever; allowed: more than {self.notice + STRETCH} s"
            )
        return found

    def files(self) -> dict[str, str]:
        """`NAME.sbatch`."""
        script = SCRIPT
        for word, text in {
            "@OPTIONS@": "\n".join(f"#SBATCH --{option}" for option in self._options()),
            "@SETUP@": "\n".join(self.setup) or "# Nothing to set up: `ray` and `hedgerow` are on the nodes' PATH.",
            "@ENVIRONMENT@": exports(self.environment()),
            "@TOKEN@": MAKE_TOKEN,
            "@SCRATCH@": self.scratch,
            "@NODES@": str(self.nodes),
            "@PORT@": str(self.port),
            "@COMMAND@": f'{shlex.join(self.hedgerow("")[:-1])} "$address"',
        }.items():
            script = script.replace(word, text)
        return {f"{self.name}.sbatch": script}

    def steps(self, folder: str) -> list[str]:
        """Submit, and look."""
        return [
            f"sbatch {shlex.quote(f'{folder}/{self.name}.sbatch')}",
            f"squeue --name {self.name}",
            f"hedgerow runs{f' --store {self.store}' if self.store else ''}",
        ]

    def _options(self) -> list[str]:
        gpus = [f"gpus-per-node={f'{self.type}:' if self.type else ''}{self.gpus}"] if self.gpus else []
        return [
            f"job-name={self.name}",
            f"nodes={self.nodes}",
            "ntasks-per-node=1",
            "exclusive",
            "mem=0",
            *gpus,
            f"time={self.time}",
            *([f"partition={self.partition}"] if self.partition else []),
            *([f"account={self.account}"] if self.account else []),
            f"signal=B:USR1@{self.notice}",
            "requeue",
            "open-mode=append",
            "output=%x-%j.log",
        ]


def _seconds(time: str) -> int:
    """A time as Slurm reads it: D-H, D-H:M, D-H:M:S, H:M:S, M:S or M (sbatch's manual, `--time`)."""
    days, dash, rest = time.rpartition("-")
    parts = rest.split(":")
    units = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)
    return 86400 * int(days or 0) + sum(unit * int(part) for unit, part in zip(units, parts, strict=False))


SCRIPT = """\
#!/bin/bash
@OPTIONS@
#
# Runs hedgerow on Ray over whole nodes. Ends with hedgerow's own exit code, and only 0 leaves the file `done`:
#   0 done, 1 a step failed, 2 the request was wrong, 3 Ray did not start or was lost, 75 stopped and to be run again.
# Shortly before its time is up it saves its state, queues up again, and goes on from the store. Where jobs are
# preempted, PreemptParameters=send_user_signal gives them the same notice.
# Relative paths, such as a recipe's, are looked for in the folder in which `sbatch` is called.
#
# The token that Ray's processes share is made for each job, in a file that only its user reads; it is on no command
# line. Ray does not encrypt what it sends, and answers gRPC health checks, /api/healthz and /api/local_raylet_healthz
# without the token.

umask 077

@SETUP@
@ENVIRONMENT@
set -uo pipefail # only here: what is sourced for modules and environments often reads variables that nobody has set

folder=$(realpath -m "${HEDGEROW_JOBS:-@SCRATCH@}")/$SLURM_JOB_ID
mkdir -p "$folder" && chmod 700 "$folder" || exit 3
rm -f "$folder/done" "$folder/exit-code"
export RAY_AUTH_TOKEN_PATH="$folder/token"
unset RAY_AUTH_TOKEN RAY_ADDRESS
@TOKEN@ > "$RAY_AUTH_TOKEN_PATH" || exit 3

head=${SLURMD_NODENAME:-$(hostname -s)}
host=$(python -c 'import socket, sys
found = socket.gethostbyname(sys.argv[1])
if found.startswith("127.") and @NODES@ > 1:  # what some systems call themselves; asks for a route, and sends nothing
    with socket.socket(type=socket.SOCK_DGRAM) as route:
        route.connect(("192.0.2.1", 9))
        found = route.getsockname()[0]
print(found)' "$head") || exit 3
address=$host:${HEDGEROW_PORT:-@PORT@}
started=${HEDGEROW_START_SECONDS:-300}
processes=()
driver=
signalled=
asked=
preempted=

finish() {
    echo "$1" > "$folder/exit-code"
    [ "$1" -eq 0 ] && touch "$folder/done"
    rm -f "$RAY_AUTH_TOKEN_PATH"
    [ ${#processes[@]} -eq 0 ] || kill -TERM "${processes[@]}" 2> /dev/null
    exit "$1"
}

stop() {
    signalled=1
    [ -z "$driver" ] || { asked=1 && kill -TERM "$driver" 2> /dev/null; }
}
trap 'preempted=1; stop' USR1
trap stop TERM INT

nodes_alive() {
    timeout 15 python -c 'import sys
from ray._raylet import GcsClient
print(sum(node.state == 0 for node in GcsClient(address=sys.argv[1]).get_all_node_info(timeout=5).values()))' \\
        "$address" 2> /dev/null
}

# The head serves no dashboard: `hedgerow top` and `show` read the store.
ray start --head --block --node-ip-address="$host" --port="${address##*:}" --num-cpus="$SLURM_CPUS_ON_NODE" \\
    --include-dashboard=false --disable-usage-stats ${HEDGEROW_RAY_OPTIONS:-} > "$folder/head.log" 2>&1 &
processes+=($!)
until ray health-check --address "$address" > /dev/null 2>&1; do
    [ -z "$signalled" ] || break
    if ! kill -0 "${processes[0]}" 2> /dev/null || [ "$SECONDS" -ge "$started" ]; then
        echo "hedgerow: Ray's head did not start on $head: $folder/head.log" >&2
        finish 3
    fi
    sleep 1
done

if [ @NODES@ -gt 1 ] && [ -z "$signalled" ]; then
    srun --nodes=$((@NODES@ - 1)) --ntasks=$((@NODES@ - 1)) --ntasks-per-node=1 --exclude="$head" \\
        --overlap --cpu-bind=none --kill-on-bad-exit=0 \\
        bash -c 'exec ray start --block --address="$0" --num-cpus="$SLURM_CPUS_ON_NODE" --disable-usage-stats \\
            ${HEDGEROW_RAY_OPTIONS:-}' "$address" > "$folder/workers.log" 2>&1 &
    processes+=($!)
    alive=1
    until [ "$alive" = "@NODES@" ] || [ -n "$signalled" ]; do
        sleep 1
        if ! kill -0 "${processes[1]}" 2> /dev/null || [ "$SECONDS" -ge "$started" ]; then
            echo "hedgerow: Ray has ${alive:-none} of @NODES@ nodes after $SECONDS s: $folder/workers.log" >&2
            finish 3
        fi
        alive=$(nodes_alive)
    done
fi

code=75
if [ -z "$signalled" ]; then
    @COMMAND@ &
    driver=$!
    [ -z "$signalled" ] || stop # it came before there was somebody to tell
    code=
    until [ -n "$code" ]; do # a trapped signal ends `wait` too; only its next answer is the driver's
        signalled=
        wait "$driver"
        status=$?
        [ -n "$signalled" ] || code=$status
    done
fi

if [ "$code" -eq 143 ] && [ -n "$asked" ]; then
    code=75 # the signal came where hedgerow does not hear it: while it started, or was about to end
fi
if [ "$code" -eq 75 ] && [ -n "$preempted" ]; then
    echo "hedgerow: stopped in time; queues up again and goes on from the store"
    scontrol requeue "$SLURM_JOB_ID"
fi
finish "$code"
"""
