"""What `doctor` looks at: this machine, the store, Ray, tracking and data, each with what to do if it is wrong."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import secrets
import shutil
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from cluster.failures import first_line
from cluster.session import ClusterUnreachable, session, usable_cpus
from cluster.store import Store, StoreError
from cluster.token import file_of, mode
from cluster.tracking import choose_mode
from tasks.component import members
from tasks.data import Dataset
from tasks.data.prepared import cache_folder
from workflows.command.check import GIGABYTE, MEMORY_A_CPU, ROOM, SKEW, TWO_WINNERS, UNCONDITIONAL, Check
from workflows.command.doctor_cluster import check_cluster
from workflows.command.probe import try_store

PACKAGES = ("torch", "torchvision", "ray", "pydantic", "obstore", "safetensors", "wandb")
OLDEST_PYTHON = (3, 11)
STORE_PATIENCE = 25.0
"""Seconds after which a store that does not answer is given up."""
STORE_ADVICE = "check the URL, the credentials in the environment and that the server runs"


def check_all(store_url: str, address: str) -> Iterator[Check]:
    """Looks at everything, one after another; what depends on something that is wrong is left out.

    Args:
        store_url: of the store; a small object is written, read and removed.
        address: Ray's; `local` starts a session and ends it, of any other every node is asked.
    """
    yield from _software()
    yield from _machine()
    yield from _disks(store_url)
    store = _store(store_url)
    yield from store
    yield from _ray() if address == "local" else check_cluster(address, store_url, store[0].state == "ok")
    yield _ray_token(address)
    yield _tracking()
    yield from _data()


def _software() -> Iterator[Check]:
    found = platform.python_version()
    if sys.version_info >= OLDEST_PYTHON:
        yield Check("python", "ok", found)
    else:
        yield Check("python", "wrong", found, f"use Python {'.'.join(map(str, OLDEST_PYTHON))} or newer")
    for package in PACKAGES:
        try:
            yield Check(package, "ok", importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Check(package, "wrong", "not installed", "install hedgerow again: pip install hedgerow")


def _machine() -> Iterator[Check]:
    cpus = usable_cpus()
    yield Check("CPUs", "ok", f"{cpus} usable of {os.cpu_count()}")
    yield _thread_environment(cpus)
    memory = psutil.virtual_memory()
    free = memory.available / GIGABYTE
    found = f"{free:.1f} GB free of {memory.total / GIGABYTE:.1f} GB"
    if free < MEMORY_A_CPU * cpus:
        fits = max(1, int(free / MEMORY_A_CPU))
        yield Check("memory", "warn", found, f"about {MEMORY_A_CPU:g} GB a worker are needed: give --workers {fits}")
    else:
        yield Check("memory", "ok", found)
    yield _gpus()


def _thread_environment(cpus: int) -> Check:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    given = {name: os.environ[name] for name in names if name in os.environ}
    found = ", ".join(f"{name}={value}" for name, value in given.items()) or "not set: each task sets its own"
    odd = [name for name, value in given.items() if not value.isdigit() or int(value) > cpus]
    if odd:
        return Check("threads", "warn", found, f"unset {', '.join(odd)}: tasks set their threads themselves")
    return Check("threads", "ok", found)


def _gpus() -> Check:
    import torch  # takes a second, and only this check needs it

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if names:
        return Check("GPUs", "ok", ", ".join(names))
    if list(Path("/dev").glob("nvidia[0-9]*")):
        advice = f"PyTorch {torch.__version__} cannot use them: install a CUDA build that fits the driver"
        return Check("GPUs", "warn", "NVIDIA devices, but none for PyTorch", advice)
    return Check("GPUs", "ok", "none; tasks run on CPUs")


def _disks(store_url: str) -> Iterator[Check]:
    places = {"disk of the cache": cache_folder()}
    if "://" not in store_url or store_url.startswith("file://"):
        places = {"disk of the store": Path(store_url.removeprefix("file://")), **places}
    for name, folder in places.items():
        there = _nearest_that_exists(folder)
        free = shutil.disk_usage(there).free / GIGABYTE
        found = f"{free:.1f} GB free at {there}"
        if free < ROOM:
            yield Check(name, "warn", found, "make room, or `hedgerow gc` what no run needs")
        else:
            yield Check(name, "ok", found)
    there = _nearest_that_exists(cache_folder())
    if os.access(there, os.W_OK | os.X_OK):
        yield Check("cache", "ok", f"{cache_folder()} can be written")
    else:
        advice = "set HEDGEROW_CACHE to a folder of your own: without it every process decodes its data anew"
        yield Check("cache", "warn", f"{there} cannot be written", advice)


def _nearest_that_exists(folder: Path) -> Path:
    folder = folder.expanduser().absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def _store(url: str) -> list[Check]:
    """A store that does not answer is given up after a while: its own patience is longer."""
    checks: list[Check] = []
    trial = threading.Thread(target=lambda: checks.extend(_tried_store(url)), daemon=True)
    trial.start()
    trial.join(STORE_PATIENCE)
    if trial.is_alive():
        return [Check("store", "wrong", f"{url}: no answer within {STORE_PATIENCE:g} s", STORE_ADVICE)]
    return checks


def _tried_store(url: str) -> Iterator[Check]:
    folder = f"probe/{secrets.token_hex(16)}"
    try:
        found = try_store(url, folder, "here")
        store = Store.open(url)
        store.delete([f"{folder}/race"])
    except (StoreError, ValueError) as error:
        yield Check("store", "wrong", f"{url}: {str(error).removeprefix(f'{folder}/here: ')}", STORE_ADVICE)
        return
    yield Check("store", "ok", f"{store.url}; writes {found['writes']} MB/s, reads {found['reads']} MB/s")
    if found["one_winner"]:
        yield Check("conditional puts", "ok", "of two writers of one object the first wins, and the second is told")
    else:
        yield Check("conditional puts", "wrong", TWO_WINNERS, UNCONDITIONAL)
    skew = abs(found["ahead"])
    late = skew > SKEW
    advice = "set this machine's clock (NTP)" if late else ""
    yield Check("clock", "warn" if late else "ok", f"{skew:.1f} s between this machine and the store", advice)


def _ray() -> Iterator[Check]:
    """A session of our own, started and ended."""
    started = time.monotonic()
    try:
        with session("local", cpus=1) as ray:
            answer: Callable[[], Any] = lambda: 42  # noqa: E731 - what Ray runs must not need this module on the worker
            working = ray.get(ray.remote(answer).remote(), timeout=60) == 42
            seconds = time.monotonic() - started
    except ClusterUnreachable as error:
        yield Check("ray session", "wrong", str(error), "see Ray's logs in /tmp/ray")
    except Exception as error:  # whatever Ray raises when a worker does not come up
        advice = "no worker ran: is its environment the one of this process?"
        yield Check("ray session", "wrong", first_line(error), advice)
    else:
        yield Check("ray session", "ok" if working else "wrong", f"local: ran a task after {seconds:.1f} s")


def _ray_token(address: str) -> Check:
    """A file that others can read gives them every cluster that uses it; its content is not looked at."""
    file = file_of(os.environ)
    if file.exists() and (rights := stat.S_IMODE(file.stat().st_mode)) & 0o077:
        return Check("ray token", "warn", f"{file} has mode {rights:04o}", f"chmod 600 {file}")
    if address == "local":
        return Check("ray token", "ok", "a fresh one for each local session, kept in memory")
    if mode(os.environ) == "token":
        return Check("ray token", "ok", "mode `token`")
    advice = "whoever reaches the cluster can run code on it: start it with RAY_AUTH_MODE=token and a RAY_AUTH_TOKEN"
    return Check("ray token", "warn", "mode `disabled`: no token was found", advice)


def _tracking() -> Check:
    try:
        mode = choose_mode()
    except ValueError as error:
        return Check("tracking", "warn", str(error), "unset WANDB_MODE, or set it to one of these")
    key = {"online": "W&B key found; runs are tracked online", "disabled": "disabled by WANDB_MODE"}
    return Check(
        "tracking", "ok", key.get(mode, "no W&B key or WANDB_MODE=offline: tracked offline, `sync` pushes later")
    )


def _data() -> Iterator[Check]:
    folder = os.environ.get("HEDGEROW_DATA")
    if folder and not Path(folder).expanduser().is_dir():
        yield Check("HEDGEROW_DATA", "warn", f"{folder}: no such folder", "set it to the folder that holds data sets")
    there, missing = [], []
    for kind, member in members(Dataset).items():
        if any(field.is_required() for field in member.model_fields.values()):
            continue  # where its data are is for a recipe to say
        try:
            member().fingerprint()
            there.append(kind)
        except ValueError:
            missing.append(kind)
    found = f"found {', '.join(there)}" + (f"; not here: {', '.join(missing)}" if missing else "")
    yield Check("data sets", "ok" if there else "warn", found, "" if there else "install hedgerow again")
