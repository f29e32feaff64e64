"""Names of the stages and tasks that write the tiles of a Cholesky factor."""

from typing import Final

FACTOR_PREFIX: Final = "factor-"


def factor_stage(row: int, column: int) -> str:
    """Return the stage of a tile: the diagonal tile of a column comes before the tiles below it."""
    return f"{FACTOR_PREFIX}{column:04d}-{'diagonal' if row == column else 'panel'}"


def factor_stages(num_tiles: int) -> tuple[str, ...]:
    """Return the stages of a factor with so many columns of tiles, in order."""
    last = num_tiles - 1
    return tuple(
        factor_stage(row, column)
        for column in range(num_tiles)
        for row in ((column, last) if column < last else (last,))
    )


def factor_task(name: str, row: int, column: int) -> str:
    """Return the id of the task of a tile."""
    return f"{name}/{row:04d}-{column:04d}"
