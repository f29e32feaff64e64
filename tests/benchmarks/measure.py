"""Time, memory and the machine."""

import ctypes
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

import ntkpipe

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Timing:
    """How long one thing took, each time."""

    seconds: tuple[float, ...]
    """In order."""

    @property
    def median(self) -> float:
        """The median in seconds."""
        return statistics.median(self.seconds)


def timed(call: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """Return what a call returns and the seconds it took, waiting for the accelerator before and after."""
    _synchronise(device)
    start = time.perf_counter()
    result = call()
    _synchronise(device)
    return result, time.perf_counter() - start


def alternate(calls: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, Timing]:
    """Time several calls in turn, ``repeats`` rounds, so that a slow minute of a shared machine meets all of them.

    The calls are expected to be warm.
    """
    rounds = [{name: timed(call, device)[1] for name, call in calls.items()} for _ in range(repeats)]
    return {name: Timing(tuple(found[name] for found in rounds)) for name in calls}


def with_peak_memory(call: Callable[[], T], device: torch.device) -> tuple[T, int | None]:
    """Return what a call returns, and by how many bytes memory grew at its peak.

    On a CUDA device this is the allocator's figure. On a CPU it is the growth of the resident set: freed memory is
    given back to the kernel, VmHWM is reset through /proc/self/clear_refs, and read again afterwards. None where the
    kernel does not permit this (or is not Linux). Buffers that libraries keep from earlier calls are not counted twice,
    so small figures are lower bounds.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = call()
        return result, torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        resident = _status_bytes("VmRSS")
    except (OSError, AttributeError):
        return call(), None
    result = call()
    return result, max(0, _status_bytes("VmHWM") - resident)


@dataclass(frozen=True, slots=True)
class Machine:
    """What the figures were measured on."""

    device: str
    """The accelerator, or ``cpu``."""
    processor: str
    """The CPU's model."""
    num_processors: int
    """CPUs this process may use."""
    num_threads: int
    """Threads PyTorch uses."""
    memory_bytes: int
    """Of the whole machine."""
    load: float
    """Load average of the last minute: beside what is measured, others may be running."""
    python: str
    """Version."""
    torch: str
    """Version."""
    ntkpipe: str
    """Version and commit."""


def machine(device: torch.device) -> Machine:
    """Return the facts about this machine."""
    processors = [
        line.partition(":")[2].strip()
        for line in _lines(Path("/proc/cpuinfo"))
        if line.startswith("model name")
    ]  # fmt: skip
    return Machine(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        processor=processors[0] if processors else platform.processor() or platform.machine(),
        num_processors=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        num_threads=torch.get_num_threads(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        load=os.getloadavg()[0],
        python=platform.python_version(),
        torch=torch.__version__,
        ntkpipe=f"{ntkpipe.__version__} ({_commit()})",
    )


def _commit() -> str:
    folder = Path(__file__).resolve().parent
    command = ["git", "--no-optional-locks", "-C", str(folder), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "no git"


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _status_bytes(field: str) -> int:
    (line,) = (line for line in _lines(Path("/proc/self/status")) if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
