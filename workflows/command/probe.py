"""Looks at the nodes of a Ray cluster from the inside: a program of its own that needs Ray alone.

`python -P probe.py REQUEST` prints one line of JSON. Nothing of hedgerow is imported before a node tries to, and
functions of a main program travel by value: so a node that lacks hedgerow, or has another one, can say so. The text of
this file can be sent to a cluster as a job for the same reason.
"""

from __future__ import annotations

import base64
import importlib.metadata
import json
import os
import platform
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.store import Store

MARK = "hedgerow-probe:"
"""What the line with the answer begins with: a job's log holds more."""
PAYLOAD = 4 * 2**20
"""Bytes that are written and read to time the store: the weights of a small network, in one request."""
TORCH = "import json, torch; print(json.dumps([torch.__version__, torch.cuda.device_count()]))"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def has_one_winner(store: Store, path: str) -> bool:
    """Whether of two writers of one object the first wins, and the second is told: what leases are built from.

    Args:
        store: where to try it, with some requests.
        path: of an object that nobody else writes; it is removed.

    Raises:
        StoreError: the store does not do what was asked, or does not give back what was written.
    """
    from cluster.store import StoreError

    first, second = os.urandom(8), os.urandom(8)
    won = store.create(path, first)
    if not won or store.get(path) != first:
        raise StoreError("what was written cannot be read back")
    won_too = store.create(path, second)
    kept = store.get(path) == first
    store.delete([path])
    return kept and not won_too


def try_store(url: str, folder: str, writer: str) -> dict[str, Any]:
    """Writes to a store what tells how it behaves, and removes it, but for what all writers race for.

    Args:
        url: of the store.
        folder: in the store; `folder/marker` was written by who asks, `folder/race` is for one of all writers.
        writer: a name that no other writer has.

    Returns:
        `one_winner`: as `has_one_winner`; `marker`: what it says; `won`: whether the race was; `writes`, `reads`: MB/s;
        `ahead`: seconds by which the store's clock is ahead.

    Raises:
        StoreError: the store does not do what was asked.
        ValueError: the URL is none.
    """
    from cluster.store import Store, StoreError

    store = Store.open(url)
    probe = f"{folder}/{writer}"
    one_winner = has_one_winner(store, probe)
    payload = os.urandom(PAYLOAD)
    began = time.monotonic()
    store.put(probe, payload)
    written = time.monotonic()
    if store.get(probe) != payload:
        raise StoreError("what was written cannot be read back")
    read = time.monotonic()
    store.delete([probe])
    writes, reads = (PAYLOAD / 1e6 / max(seconds, 1e-6) for seconds in (written - began, read - written))
    return {
        "one_winner": one_winner,
        "won": store.create(f"{folder}/race", writer.encode()),
        "marker": (store.get(f"{folder}/marker") or b"").decode(),
        "writes": round(writes),
        "reads": round(reads),
        "ahead": round(store.clock() - time.time(), 3),
    }


def look(request: Mapping[str, Any]) -> dict[str, Any]:
    """What is to be said of the node that this runs on.

    Args:
        request: `store`, `folder`: for `try_store`; `environment`: names of variables to tell; `patience`: seconds for
            the store and for PyTorch, which are tried side by side.
    """
    environment = _nodes_environment()
    report: dict[str, Any] = {
        "ray": importlib.metadata.version("ray"),
        "python": platform.python_version(),
        "environment": {name: environment[name] for name in request["environment"] if name in environment},
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "disks": {"Ray's temporary folder": _free(_session_folder())},
    }
    threads = [
        threading.Thread(target=_note, args=(report, name, function, *arguments), daemon=True)
        for name, function, *arguments in (
            ("hedgerow", _hedgerow),
            ("memory", _memory),
            ("token_file", _token_file, environment),
            ("torch", _torch, environment, request["patience"]),
            ("store", _store, request),
            ("cache", _cache, environment),
        )
    ]
    for thread in threads:
        thread.start()
    until = time.monotonic() + request["patience"]
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return dict(report)


def probe(request: Mapping[str, Any]) -> dict[str, Any]:
    """What every node of a cluster says of itself.

    Args:
        request: as for `look`; `address`: Ray's; `ping`, `look`: seconds that a node has to show that it is there, and
            then to say how it is.
    """
    import ray

    ray.init(address=request["address"], log_to_driver=False, logging_level="ERROR")
    nodes = {node["NodeID"]: _described(node) for node in ray.nodes() if node["Alive"]}
    asked, began = time.time(), time.monotonic()
    waiting = {_send(ray, _ping, node): (node, "clock") for node in nodes}
    while waiting:
        looking = any(part == "report" for _, part in waiting.values())
        left = began + request["ping"] + (request["look"] if looking else 0.0) - time.monotonic()
        if left <= 0:
            break
        for reference in ray.wait(list(waiting), timeout=left)[0]:
            node, part = waiting.pop(reference)
            nodes[node][part] = _got(ray, reference)
            if part == "clock":
                nodes[node] |= {"asked": asked, "answered": time.time()}
                if isinstance(nodes[node]["clock"], float):
                    waiting[_send(ray, look, node, dict(request))] = node, "report"
    return {"ray": ray.__version__, "python": platform.python_version(), "nodes": list(nodes.values())}


def main() -> None:
    """Answers the request that is the only argument: JSON in base 64."""
    answer: dict[str, Any]
    try:
        answer = probe(json.loads(base64.b64decode(sys.argv[1])))
    except Exception as error:  # whatever Ray raises is for the reader to judge
        answer = {"error": f"{type(error).__name__}: {error}"}
    sys.stdout.write(f"{MARK}{json.dumps(answer)}\n")
    sys.stdout.flush()
    os._exit(0)  # Ray's farewell to a node that does not answer may take minutes


def _send(ray: Any, function: Callable[..., Any], node: str, *arguments: Any) -> Any:
    """Starts a function on a node, however busy that is."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(*arguments)


def _got(ray: Any, reference: Any) -> Any:
    """What a function returned, or a list with the reason why it did not."""
    try:
        return ray.get(reference, timeout=1)
    except Exception as error:  # of the function, or of Ray
        return [(str(error).strip() or type(error).__name__).splitlines()[-1]]


def _ping() -> float:
    return time.time()


def _described(node: Mapping[str, Any]) -> dict[str, Any]:
    resources = node["Resources"]
    return {
        "id": node["NodeID"],
        "host": node["NodeManagerHostname"],
        "head": "node:__internal_head__" in resources,
        "cpus": resources.get("CPU", 0.0),
        "gpus": resources.get("GPU", 0.0),
    }


def _note(report: dict[str, Any], name: str, function: Callable[..., Any], *arguments: Any) -> None:
    try:
        report[name] = function(*arguments)
    except Exception as error:
        text = " ".join(str(error).split())
        report[name] = {"error": f"{type(error).__name__}: {text}" if text else type(error).__name__}


def _hedgerow() -> dict[str, Any]:
    from cluster.session import usable_cpus

    return {"version": importlib.metadata.version("hedgerow"), "cpus": usable_cpus()}


def _memory() -> dict[str, float]:
    import psutil

    memory = psutil.virtual_memory()
    return {"free": memory.available, "total": memory.total}


def _torch(environment: Mapping[str, str], patience: float) -> dict[str, Any]:
    """In a process of its own, with the node's environment: Ray hides the GPUs from a task that asked for none."""
    began = time.monotonic()
    made = subprocess.run(
        [sys.executable, "-c", TORCH], env=dict(environment), capture_output=True, text=True, timeout=patience + 1
    )
    if made.returncode:
        raise RuntimeError(made.stderr.strip().splitlines()[-1])
    version, gpus = json.loads(made.stdout)
    return {"version": version, "gpus": gpus, "seconds": round(time.monotonic() - began, 1)}


def _store(request: Mapping[str, Any]) -> dict[str, Any]:
    import ray

    return try_store(request["store"], request["folder"], ray.get_runtime_context().get_node_id())


def _cache(environment: Mapping[str, str]) -> dict[str, Any]:
    if "HEDGEROW_CACHE" in environment:
        os.environ["HEDGEROW_CACHE"] = environment["HEDGEROW_CACHE"]
    from tasks.data.prepared import cache_folder

    return _free(cache_folder())


def _free(folder: Path) -> dict[str, Any]:
    folder = folder.expanduser().absolute()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    return {"path": str(folder), "free": shutil.disk_usage(there).free}


def _session_folder() -> Path:
    from ray._private import worker

    return Path(worker._global_node.get_session_dir_path())


def _token_file(environment: Mapping[str, str]) -> dict[str, Any]:
    """Where the file with the token is and who may read it; its content is not looked at."""
    from cluster.token import file_of

    file = file_of(environment)
    return {"path": str(file), "mode": stat.S_IMODE(file.stat().st_mode)} if file.exists() else {}


def _nodes_environment() -> dict[str, str]:
    """What the node was started with; Ray and the job have changed that of this process."""
    import psutil

    for parent in psutil.Process().parents():
        if "raylet" in parent.name():
            return dict(parent.environ())
    return dict(os.environ)


if __name__ == "__main__":
    main()
