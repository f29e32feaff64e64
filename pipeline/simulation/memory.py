"""The rows and columns of kernel blocks whose features a worker has in its memory."""

from collections import OrderedDict
from typing import final

from ntkpipe.storage.grid import Block


@final
class KeptSides:
    """Those that were used last, as many as fit; as the memory of a real worker.

    Args:
        most: Rows and columns that fit.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._sides: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._rows: tuple[str, int] | None = None

    def has_rows_of(self, block: Block) -> bool:
        """Return whether the block before this one had the same rows."""
        side = (block.rows.split, block.rows.index)
        is_same, self._rows = side == self._rows, side
        return is_same

    def look_at(self, block: Block) -> tuple[bool, bool]:
        """Return whether rows and columns of a block have to be read; those of a diagonal block are read once."""
        rows = self._use(block.rows.split, block.rows.index)
        return rows, not block.on_diagonal and self._use(block.columns.split, block.columns.index)

    def _use(self, split: str, index: int) -> bool:
        """Return whether a side has to be read, and keep it."""
        side, sides = (split, index), self._sides
        if side in sides:
            sides.move_to_end(side)
            return False
        sides[side] = None
        if len(sides) > self._most:
            sides.popitem(last=False)
        return True
