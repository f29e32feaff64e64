"""How samples are cut into shards and kernel matrices into blocks."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shard:
    """A contiguous range of samples of one split: one features task, one chunk of features."""

    split: str
    index: int
    start: int
    stop: int

    @property
    def task(self) -> str:
        """The id of its features task."""
        return f"{self.split}/{self.index:08d}"

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Block:
    """A rectangle of a kernel matrix: one kernel task, one chunk of every kernel."""

    rows: Shard
    columns: Shard

    @property
    def pair(self) -> str:
        """The name of the matrix it belongs to."""
        return pair_name(self.rows.split, self.columns.split)

    @property
    def task(self) -> str:
        """The id of its kernel task."""
        return f"{self.pair}/{self.rows.index:06d}-{self.columns.index:06d}"

    @property
    def on_diagonal(self) -> bool:
        """Whether it holds the inner products of a range of samples with itself."""
        return self.rows == self.columns


def pair_name(row_split: str, column_split: str) -> str:
    """Return the name of the kernel matrix between two splits; split names hold no hyphen."""
    return f"{row_split}-{column_split}"


def num_chunks(num_rows: int, chunk_rows: int) -> int:
    """Return how many chunks of ``chunk_rows`` cover ``num_rows``."""
    return -(-num_rows // chunk_rows)


def shard_at(split: str, index: int, num_samples: int, rows: int) -> Shard:
    """Return shard ``index`` of a split, clipped at its end."""
    return Shard(split, index, index * rows, min((index + 1) * rows, num_samples))


def shards(split: str, num_samples: int, rows: int) -> Iterator[Shard]:
    """Yield the shards of a split in order; together they cover it once."""
    for index in range(num_chunks(num_samples, rows)):
        yield shard_at(split, index, num_samples, rows)


def blocks(row_split: str, num_rows: int, column_split: str, num_columns: int, rows: int) -> Iterator[Block]:
    """Yield the blocks of a kernel matrix row by row, so that consecutive blocks share their rows.

    Between a split and itself only the lower triangle is yielded, diagonal blocks included.
    """
    for row in shards(row_split, num_rows, rows):
        for column in shards(column_split, num_columns, rows):
            if row_split == column_split and column.index > row.index:
                break
            yield Block(row, column)


def num_blocks(row_split: str, num_rows: int, column_split: str, num_columns: int, rows: int) -> int:
    """Return how many blocks :func:`blocks` yields."""
    num_row_chunks, num_column_chunks = num_chunks(num_rows, rows), num_chunks(num_columns, rows)
    if row_split == column_split:
        return num_row_chunks * (num_row_chunks + 1) // 2
    return num_row_chunks * num_column_chunks
