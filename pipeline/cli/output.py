"""Writing what a query found: to a file by its ending, or to the screen."""

from pathlib import Path

import numpy as np
import typer

from ntkpipe.configs.errors import ConfigError, StorageError
from ntkpipe.pipeline.cli.terminal import printable
from ntkpipe.pipeline.query.formats import Answer, csv_text, encode, format_of

MAX_SCREEN_CELLS = 1_000_000


def write_answer(answer: Answer, out: Path | None) -> None:
    """Write to a file by its ending, or as CSV to the screen, which shows control characters by their codes.

    Raises:
        ConfigError: The ending is unknown, or the answer does not suit it.
        StorageError: The file cannot be written.
    """
    if out is None:
        if np.size(answer.values) > MAX_SCREEN_CELLS:
            raise ConfigError(f"{np.size(answer.values):,} values are too many for the screen; give --out FILE.npy")
        typer.echo(printable(csv_text(answer)), nl=False)
        return
    content = encode(answer, format_of(out.suffix))
    try:
        out.write_bytes(content)
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error.strerror}.") from None
    typer.echo(f"wrote {out}")
