"""Where the time of workers goes."""

from dataclasses import dataclass, fields
from typing import Final, final

PARTS: Final = {
    "computing": "compute",
    "storage": "a worker's own reading and writing",
    "bandwidth": "storage bandwidth",
    "requests": "requests to the storage",
    "waiting": "the driver",
    "tail": "the tail of a stage",
    "starting": "workers that start",
    "lost": "lost work",
}
"""What a run would be faster without, by the part of the account that it takes."""


@final
@dataclass(slots=True)
class Account:
    """Worker-seconds by what they were spent on."""

    computing: float = 0.0
    storage: float = 0.0
    """Reading and writing as fast as a worker can on its own."""
    bandwidth: float = 0.0
    """Waiting for bytes of others."""
    requests: float = 0.0
    """Waiting for requests of others."""
    waiting: float = 0.0
    """Without a task, before the last one of the stages under way was handed out."""
    tail: float = 0.0
    """Without a task, after that."""
    starting: float = 0.0
    lost: float = 0.0
    """On attempts that came to nothing."""

    @property
    def total(self) -> float:
        """Of all workers, as long as they were there."""
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, float]:
        """By name."""
        return {part.name: float(getattr(self, part.name)) for part in fields(self)}

    @property
    def busy(self) -> float:
        """Spent on tasks that were finished."""
        return self.computing + self.storage + self.bandwidth + self.requests

    @property
    def bottleneck(self) -> str:
        """What took the most, in words."""
        parts = self.parts
        return PARTS[max(parts, key=lambda name: parts[name])]
