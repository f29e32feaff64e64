"""What is to be done, in the units that the speed of a device is told in. Plain data: importing this module needs no torch."""

from dataclasses import dataclass, field
from typing import final

from ntkpipe.workers.passes import PassPlan


@final
@dataclass(frozen=True, slots=True)
class Work:
    """Amounts of work; seconds follow once a device is known."""

    flops: float = 0.0
    """Of matrix products in single precision."""
    double_flops: float = 0.0
    """Of those in double precision, and of formulas."""
    bytes: float = 0.0
    """Read or written in passes over memory."""
    fft_flops: float = 0.0
    scatters: float = 0.0
    launches: float = 0.0
    """Operations that are started."""

    def __add__(self, other: "Work") -> "Work":
        """Add two amounts."""
        return Work(
            self.flops + other.flops,
            self.double_flops + other.double_flops,
            self.bytes + other.bytes,
            self.fft_flops + other.fft_flops,
            self.scatters + other.scatters,
            self.launches + other.launches,
        )

    def times(self, factor: float) -> "Work":
        """Return so many times the amounts."""
        return Work(
            self.flops * factor,
            self.double_flops * factor,
            self.bytes * factor,
            self.fft_flops * factor,
            self.scatters * factor,
            self.launches * factor,
        )

    def in_double(self) -> "Work":
        """Return the same in double precision: slower products of numbers that are twice as long."""
        return Work(
            0.0, self.double_flops + self.flops, 2 * self.bytes, 2 * self.fft_flops, self.scatters, self.launches
        )


@final
@dataclass(frozen=True, slots=True)
class ModelWork:
    """What the kernels of a model take, all members of the model together."""

    sample: Work = field(default_factory=Work)
    """Of a sample in the features stage."""
    batch: Work = field(default_factory=Work)
    """Of a batch in the features stage, however small."""
    factors: Work = field(default_factory=Work)
    """Of the factors of a sample in the kernel stage; none without exact kernels."""
    factors_batch: Work = field(default_factory=Work)
    """Of a batch of them, however small."""
    pair: Work = field(default_factory=Work)
    """Of a pair of samples of exact kernels in the kernel stage."""
    passes: PassPlan | None = None
    """How batches are cut; None without a model."""
