"""Whether this machine, a store and a cluster are fit for runs: one finding for each thing that goes wrong in practice."""

import importlib.metadata
import importlib.util
import os
import re
import resource
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, final
from urllib.parse import urlsplit

from ntkpipe.configs.errors import ConfigError, NtkPipeError
from ntkpipe.configs.store import StoreConfig
from ntkpipe.configs.units import size
from ntkpipe.pipeline.credentials import token
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.storage.stores.writable import open_for_writing

Status = Literal["ok", "warning", "problem"]

TESTED: Final = {
    "fsspec": "2026.9.0",
    "google-crc32c": "1.9.0",
    "numpy": "2.4.6",
    "pydantic": "2.14.3",
    "PyYAML": "6.0.3",
    "ray": "2.60.0",
    "rich": "15.0.0",
    "safetensors": "0.8.0",
    "torch": "2.13.0",
    "typer": "0.29.2",
    "zarr": "3.1.6",
}
"""The versions that are tested together; those of the project's constraints."""

LEAST_PYTHON: Final = (3, 11)
LEAST_MEMORY: Final = 2 * 2**30
LEAST_DISK: Final = 5 * 2**30
LEAST_SHARED_MEMORY: Final = 128 * 2**20
"""Of /dev/shm: Ray keeps its object store there. Runs send a few hundred bytes for a task, so that little is enough."""

LEAST_FILES: Final = 4096
MOST_CLOCK_SECONDS: Final = 5.0
CONNECT_SECONDS: Final = 5.0


@final
@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, how it is, and what to do if it is not as it should be."""

    name: str
    status: Status
    text: str
    advice: str = ""


def findings(*, store: str | None = None, address: str | None = None) -> Iterator[Finding]:
    """Look at this machine, and where they are given at a store and a cluster; yields each finding as it is made.

    Args:
        store: Path or URL of a run, or of a folder of runs; a few small objects are written there and removed.
        address: Of a Ray cluster or of its job server.
    """
    yield _python()
    for name in TESTED:
        yield _library(name)
    yield _devices()
    yield _token_mode()
    yield _memory()
    yield _disk()
    yield _shared_memory()
    yield _open_files()
    if store is not None:
        yield from _store(store)
    if address is not None:
        yield _cluster(address)


def _python() -> Finding:
    text = f"{'.'.join(map(str, sys.version_info[:3]))} on {len(os.sched_getaffinity(0))} cores"
    if sys.version_info[:2] < LEAST_PYTHON:
        return Finding("python", "problem", text, "Use Python 3.11 or later.")
    return Finding("python", "ok", text)


def _library(name: str) -> Finding:
    tested = TESTED[name]
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if name == "torch":
            return Finding(
                name, "warning", "not installed", "Runs need it; `ntkpipe submit` and `ntkpipe status` do not."
            )
        return Finding(name, "problem", "not installed", f"Install it: pip install {name}=={tested}")
    least = _least(name)
    if least is not None and _numbers(found) < _numbers(least):
        return Finding(name, "problem", found, f"At least {least} is needed, {tested} is tested.")
    if _numbers(found)[:2] != _numbers(tested)[:2]:
        return Finding(
            name, "warning", f"{found}, tested with {tested}", "It should work; if not, install what is tested."
        )
    return Finding(name, "ok", found)


def _least(name: str) -> str | None:
    """Return the oldest version of a library that the package asks for; None where it is not installed as one."""
    try:
        wanted = importlib.metadata.requires("ntkpipe") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for text in wanted:
        match = re.fullmatch(r"([A-Za-z0-9_.-]+)>=([\d.]+)", text.strip())
        if match is not None and match[1].lower() == name.lower():
            return match[2]
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _devices() -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding(
            "devices", "warning", "unknown without torch", "Runs need torch; a client that submits does not."
        )
    from ntkpipe.workers.calibration import gpu_names

    names = gpu_names()
    if not names:
        return Finding("devices", "ok", "CPU only")
    return Finding("devices", "ok", ", ".join(f"cuda:{index} {name}" for index, name in enumerate(names)))


def _token_mode() -> Finding:
    if importlib.util.find_spec("ray") is None:
        return Finding("ray tokens", "problem", "Ray is not installed", "Install it: pip install 'ntkpipe[cluster]'")
    mode = os.environ.get("RAY_AUTH_MODE", "")
    if mode.lower() != "token":
        return Finding(
            "ray tokens",
            "warning",
            f"RAY_AUTH_MODE is {mode or 'not set'}",
            "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH: anybody who reaches a cluster without tokens "
            "can run code on it. A private Ray (address local) gets a token of its own.",
        )
    advice = "Set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that only you can read."
    try:
        found = token()
    except ConfigError as error:
        return Finding("ray tokens", "problem", error.message, advice)
    if not found:
        return Finding("ray tokens", "problem", "RAY_AUTH_MODE=token, but there is no token", advice)
    return Finding("ray tokens", "ok", "on")


def _memory() -> Finding:
    free = _free_memory()
    if free is None:
        return Finding("memory", "ok", "unknown here")
    text = f"{size(free)} free"
    if free < LEAST_MEMORY:
        return Finding("memory", "warning", text, "Lower resources.max_worker_bytes or resources.workers.")
    return Finding("memory", "ok", text)


def _free_memory() -> int | None:
    """Return the memory that is free, or that the container may still take."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return None
    free = next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
    try:
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text("ascii").strip() for name in ("max", "current"))
    except OSError:
        return free
    if limit == "max" or free is None:
        return free
    return min(free, max(0, int(limit) - int(used)))


def _disk() -> Finding:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    text = f"{size(free)} free in {folder}"
    if free < LEAST_DISK:
        return Finding("disk", "warning", text, "Ray logs and spills there: free some space, or set TMPDIR.")
    return Finding("disk", "ok", text)


def _shared_memory() -> Finding:
    try:
        total = shutil.disk_usage("/dev/shm").total
    except OSError:
        return Finding("/dev/shm", "ok", "not used on this system")
    if total < LEAST_SHARED_MEMORY:
        return Finding(
            "/dev/shm", "warning", size(total), "Give containers more, such as `docker run --shm-size=1g`; Ray uses it."
        )
    return Finding("/dev/shm", "ok", size(total))


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = "no limit" if soft == resource.RLIM_INFINITY else f"{soft:,} at once"
    if soft != resource.RLIM_INFINITY and soft < LEAST_FILES:
        highest = "as many as wanted" if hard == resource.RLIM_INFINITY else f"up to {hard:,}"
        return Finding(
            "open files", "warning", text, f"Raise it before a large run: `ulimit -n 65536` ({highest} here)."
        )
    return Finding("open files", "ok", text)


def _store(url: str) -> Iterator[Finding]:
    try:
        store = open_for_writing(url, StoreConfig())
    except NtkPipeError as error:
        yield Finding("store", "problem", error.message, "Runs cannot be kept apart there.")
        return
    yield Finding("store", "ok", f"{store.url} creates each object once")
    try:
        yield _clock(store)
        free = store.free_bytes()
    except NtkPipeError as error:
        yield Finding("store", "problem", error.message, "The store must be readable and writable.")
        return
    if free is not None:
        enough = free >= LEAST_DISK
        advice = "" if enough else "Free some space: a run that does not fit is refused."
        yield Finding("space", "ok" if enough else "warning", f"{size(free)} free at {store.url}", advice)


def _clock(store: AbstractStore) -> Finding:
    before = time.time()
    theirs = store.now()
    ours = (before + time.time()) / 2
    text = f"{abs(theirs - ours):.1f} s from the store's"
    if abs(theirs - ours) > MOST_CLOCK_SECONDS + (time.time() - before):
        return Finding(
            "clock", "warning", text, "Set this machine's clock: times in events and receipts will not compare."
        )
    return Finding("clock", "ok", text)


def _cluster(address: str) -> Finding:
    if address.lower().startswith(("http://", "https://")):
        from ntkpipe.pipeline.jobs import connect

        try:
            jobs = connect(address, answer_seconds=CONNECT_SECONDS).jobs()
        except NtkPipeError as error:
            return Finding("cluster", "problem", error.message, "Look at the address, the token and the network.")
        return Finding("cluster", "ok", f"{address} answers and lets you in; {len(jobs)} jobs")
    try:
        parts = urlsplit(address if "://" in address else f"ray://{address}")
        with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=CONNECT_SECONDS):
            return Finding("cluster", "ok", f"{address} accepts connections")
    except (OSError, ValueError) as error:
        return Finding(
            "cluster",
            "problem",
            f"{address} cannot be reached: {error}",
            "Give HOST:PORT of the head node, or http://HOST:8265 of its job server, and look at the network.",
        )
