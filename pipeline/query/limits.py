"""How much may be asked for at once."""

from dataclasses import dataclass
from typing import final

from ntkpipe.configs.errors import TooLargeError


@final
@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may take; the defaults are for a process of one's own."""

    max_cells: int = 200_000_000
    """Numbers in an answer."""
    max_bytes: int = 64 * 2**30
    """Of all chunks that hold any of them, which have to be read, or found in a cache. Entries that lie apart need many."""

    def check(self, num_cells: int, num_bytes: int = 0) -> None:
        """Refuse what is too much, before anything is read.

        Raises:
            TooLargeError: With what may be asked for, and what was.
        """
        if num_cells > self.max_cells:
            raise TooLargeError(
                f"that would be {num_cells:,} numbers; ask for at most {self.max_cells:,} at once, with fewer rows or columns.",
                limit=self.max_cells,
                asked=num_cells,
            )
        if num_bytes > self.max_bytes:
            raise TooLargeError(
                f"for that {num_bytes:,} bytes would have to be read; expected at most {self.max_bytes:,} at once. Ask for fewer "
                "rows or columns, or for such that lie side by side.",
                limit=self.max_bytes,
                asked=num_bytes,
            )
