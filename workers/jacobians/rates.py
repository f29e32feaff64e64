"""How fast a device does the few things that routes are chosen by: a roofline of four numbers.

A route is chosen by the time it is predicted to take, never by FLOPs alone: a Gram matrix of materialised gradients runs
at the speed of matrix multiplication, adding entries to random places at the speed of memory. Only ratios matter, and
nothing that is stored depends on them: all routes give the same numbers up to rounding.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import final

import torch


@final
@dataclass(frozen=True, slots=True)
class Rates:
    """Work per second."""

    flops: float
    """Of matrix products in single precision."""
    bytes: float
    """Read or written in passes over memory."""
    fft_flops: float
    """Of batches of real Fourier transforms, each counted as 2.5 n log2 n."""
    scatters: float
    """Numbers added to random places of a row."""
    launch_seconds: float
    """Taken by starting an operation, however small."""

    def matmul(self, flops: float) -> float:
        """Return the seconds of matrix products."""
        return flops / self.flops

    def passes(self, numbers: float) -> float:
        """Return the seconds of reading and writing ``numbers`` numbers once each, in single precision."""
        return 8 * numbers / self.bytes

    def transforms(self, num: float, length: int) -> float:
        """Return the seconds of ``num`` real Fourier transforms."""
        return num * 2.5 * length * math.log2(max(2, length)) / self.fft_flops

    def scatter(self, numbers: float) -> float:
        """Return the seconds of adding ``numbers`` numbers to random places."""
        return numbers / self.scatters


CPU = Rates(flops=1.0e11, bytes=2.5e10, fft_flops=3.0e10, scatters=1.5e9, launch_seconds=1e-5)
"""Measured on two cores with AVX-512; other CPUs differ by a common factor more than by ratios."""

GPU = Rates(flops=4.0e13, bytes=2.0e12, fft_flops=4.0e12, scatters=1.0e11, launch_seconds=1e-5)
"""From the data sheets of current data-centre GPUs, at the usual shares of their peaks; not measured."""


_ASSUMED: ContextVar[Rates | None] = ContextVar("assumed rates", default=None)


@contextmanager
def assumed(rates: Rates) -> Iterator[None]:
    """Tell times as they would be at other rates than those of the device at hand; for predictions only."""
    token = _ASSUMED.set(rates)
    try:
        yield
    finally:
        _ASSUMED.reset(token)


def rates_of(device: torch.device) -> Rates:
    """Return the rates of a kind of device."""
    return _ASSUMED.get() or (CPU if device.type == "cpu" else GPU)
