"""Writing what a query found: NumPy, CSV or JSON."""

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import typer

from ntkpipe.configs.errors import ConfigError, StorageError
from ntkpipe.pipeline.cli.terminal import printable

MAX_SCREEN_CELLS = 1_000_000


@dataclass(frozen=True, slots=True)
class Answer:
    """Values with the names of their rows, and of their columns where these are samples."""

    values: Any
    """An array, or rows of mixed values."""
    row_ids: list[str]
    column_ids: list[str] | None = None
    row_kind: str = "sample"
    """What a row is."""


def write_answer(answer: Answer, out: Path | None) -> None:
    """Write to a file by its ending, or as CSV to the screen, which shows control characters by their codes.

    Raises:
        ConfigError: The ending is unknown, or the answer does not suit it.
        StorageError: The file cannot be written.
    """
    if out is None:
        if np.size(answer.values) > MAX_SCREEN_CELLS:
            raise ConfigError(f"{np.size(answer.values):,} values are too many for the screen; give --out FILE.npy")
        typer.echo(printable(_csv(answer)), nl=False)
        return
    writers = {".npy": _npy, ".csv": lambda found: _csv(found).encode(), ".json": _json}
    if out.suffix not in writers:
        raise ConfigError(f"{out} has the ending {out.suffix!r}; known are {', '.join(writers)}.")
    try:
        out.write_bytes(writers[out.suffix](answer))
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error.strerror}.") from None
    typer.echo(f"wrote {out}")


def _npy(answer: Answer) -> bytes:
    values = np.asarray(answer.values)
    if values.dtype.kind not in "fiu":
        raise ConfigError("the answer holds names as well as numbers, which .npy cannot; choose .csv or .json.")
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def _csv(answer: Answer) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    if np.ndim(answer.values) > 2:
        raise ConfigError(
            f"the answer has {np.ndim(answer.values)} axes, as features of a layerwise kernel have, which CSV cannot show; "
            "choose .npy or .json."
        )
    rows = _rows(answer)
    width = len(rows[0]) if rows else 0
    writer.writerow([answer.row_kind, *(answer.column_ids or [str(column) for column in range(width)])])
    writer.writerows([name, *row] for name, row in zip(answer.row_ids, rows, strict=True))
    return buffer.getvalue()


def _json(answer: Answer) -> bytes:
    values = answer.values.tolist() if isinstance(answer.values, np.ndarray) else answer.values
    document = {"rows": answer.row_ids, "columns": answer.column_ids, "values": values}
    return json.dumps(document, indent=1).encode()


def _rows(answer: Answer) -> list[list[Any]]:
    if not isinstance(answer.values, np.ndarray):
        return list(answer.values)
    values = answer.values[:, np.newaxis] if answer.values.ndim == 1 else answer.values
    # Shortest text that reads back as the stored number, whatever its precision.
    return [[item.item() if values.dtype.kind in "iu" else str(item) for item in row] for row in values]
