"""How fast this machine does what routes are chosen by, and tasks of a job, measured."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, final

import torch

from ntkpipe.workers.sources.model import usable_device
from ntkpipe.workers.tasks import Task, TaskResult, WorkerSpec
from ntkpipe.workers.worker import Worker

MATRIX_ROWS: Final = {"cpu": 1024, "gpu": 8192}
PASS_NUMBERS: Final = {"cpu": 2**25, "gpu": 2**28}
"""Larger than the caches."""

TRANSFORM: Final = 2048
"""Length of the Fourier transforms, as usual in tensor sketches."""

ROW_NUMBERS: Final = 2048
"""Numbers of a row that others are added to, as wide as a sketch."""

LAUNCHES: Final = 200


@final
@dataclass(frozen=True, slots=True)
class Figures:
    """Work per second of a device with a number of threads, as in the catalogue."""

    float32_flops: float
    float64_flops: float
    bytes: float
    fft_flops: float
    scatters: float
    launch_seconds: float


@final
@dataclass(frozen=True, slots=True)
class Timing:
    """How long a task took."""

    task: Task
    result: TaskResult
    first: bool
    """Whether it was the first one of its stage on its worker."""


@final
@dataclass(frozen=True, slots=True)
class Session:
    """What one worker process measured."""

    ready_at: float
    """When it could take a task; its first one loads model and data."""
    timings: tuple[Timing, ...]


def measure_figures(device: str, threads: int | None = None, seconds: float = 0.25) -> Figures:
    """Measure each rate for a fraction of a second.

    Args:
        device: A PyTorch device.
        threads: Of a CPU; None leaves PyTorch's choice.
        seconds: For each rate.

    Raises:
        ConfigError: This machine has no such device.
    """
    place = usable_device(device)
    kind = "cpu" if place.type == "cpu" else "gpu"
    rows, numbers = MATRIX_ROWS[kind], PASS_NUMBERS[kind]
    with _threads(threads):
        single = torch.ones(rows, rows, device=place)
        double = single[: rows // 2, : rows // 2].double()
        long = torch.ones(numbers, device=place)
        other = torch.empty_like(long)
        signal = torch.ones(numbers // TRANSFORM // 16, TRANSFORM, device=place)
        bins = torch.zeros(numbers // ROW_NUMBERS // 16, ROW_NUMBERS, device=place)
        places = torch.randint(ROW_NUMBERS, (ROW_NUMBERS,), device=place)
        small = torch.ones(8, device=place)

        def launches() -> None:
            for _ in range(LAUNCHES):
                small.add_(0.0)

        def each(operation: Callable[[], object]) -> float:
            return _least(operation, place, seconds)

        transforms = 2 * len(signal) * 2.5 * TRANSFORM * (TRANSFORM.bit_length() - 1)
        return Figures(
            float32_flops=2.0 * rows**3 / each(lambda: single @ single),
            float64_flops=2.0 * len(double) ** 3 / each(lambda: double @ double),
            bytes=8.0 * numbers / each(lambda: torch.add(long, 1.0, out=other)),
            fft_flops=transforms / each(lambda: torch.fft.irfft(torch.fft.rfft(signal), n=TRANSFORM)),
            scatters=bins.numel() / each(lambda: bins.index_add_(1, places, signal[: len(bins)])),
            launch_seconds=each(launches) / LAUNCHES,
        )


def time_tasks(spec: WorkerSpec, tasks: Sequence[Task], seconds: float, at_least: int = 3) -> Session:
    """Carry out tasks of one stage on the worker of this process: each once, and again until the time is up.

    Args:
        spec: Of the worker, which is made when it is first asked for.
        tasks: Of one stage.
        seconds: To be spent, beside each task once.
        at_least: How many tasks are timed, however long they take.
    """
    worker = _workers.get(spec.url)
    if worker is None:
        _workers.clear()
        worker = _workers[spec.url] = Worker(spec)
    ready_at, ready = time.time(), time.perf_counter()
    timings: list[Timing] = []
    while tasks:
        for task in tasks:
            if len(timings) >= max(at_least, len(tasks)) and time.perf_counter() - ready > seconds:
                return Session(ready_at, tuple(timings))
            timings.append(Timing(task, worker.run(task), first=not timings))
    return Session(ready_at, tuple(timings))


_workers: dict[str, Worker] = {}
"""The one of this process, by the URL of its run."""


def gpu_names() -> list[str]:
    """Return what the GPUs of this machine are called."""
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def device_bytes(device: str) -> int:
    """Return the memory of a GPU of this machine."""
    return int(torch.cuda.get_device_properties(usable_device(device)).total_memory)


@contextmanager
def _threads(num: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(num or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _least(operation: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Return the least time of an operation, after one that warms up: what else the machine does only adds to it."""
    times: list[float] = []
    operation()
    _finish(device)
    until = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < until:
        started = time.perf_counter()
        operation()
        _finish(device)
        times.append(time.perf_counter() - started)
    return min(times)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
