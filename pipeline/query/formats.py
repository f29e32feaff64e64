"""Answers as bytes: NumPy, CSV, JSON, Arrow and Parquet, for files and for a service."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np

from ntkpipe.configs.errors import ConfigError

if TYPE_CHECKING:
    import pandas
    import pyarrow

INSTALL = "pip install 'ntkpipe[tables]'"

Format = Literal["npy", "csv", "json", "arrow", "parquet"]

MEDIA_TYPES: dict[Format, str] = {
    "npy": "application/x-npy",
    "csv": "text/csv; charset=utf-8",
    "json": "application/json",
    "arrow": "application/vnd.apache.arrow.stream",
    "parquet": "application/vnd.apache.parquet",
}

RUN_HEADER: Final = "ntkpipe-run"
"""Of a request to a service: the id of the run that it is about, whatever goes by the name in its address by now."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Values with the names of their rows, and of their columns where these have names."""

    values: Any
    """An array, or rows of mixed values."""
    row_ids: list[str]
    column_ids: list[str] | None = None
    row_kind: str = "sample"
    """What a row is."""

    def encode(self, form: Format) -> bytes:
        """Return it in a format; see :func:`encode`."""
        return encode(self, form)

    def to_arrow(self) -> "pyarrow.Table":
        """Return a table of Arrow; see :func:`arrow_table`."""
        return arrow_table(self)

    def to_dataframe(self) -> "pandas.DataFrame":
        """Return a table of pandas, with the ids as its index and columns.

        Raises:
            ConfigError: The answer has more than two axes, or pandas is missing.
        """
        _require_table(self, "a data frame")
        try:
            import pandas
        except ImportError as error:
            raise ConfigError(f"data frames need pandas, which cannot be loaded ({error}): {INSTALL}") from None
        index = pandas.Index(self.row_ids, name=self.row_kind, dtype="object")
        return pandas.DataFrame(self.values, index=index, columns=self.column_ids)


def encode(answer: Answer, form: Format) -> bytes:
    """Return an answer in a format; memory is that of the answer and of the bytes, ten times the values for text.

    ``npy`` is the plain array. ``json`` has ``values`` (null for what is not finite), ``dtype``, ``shape``, ``row_ids`` and
    ``column_ids``. The others are tables with a first column of row ids: ``arrow`` is an IPC stream.

    Raises:
        ConfigError: The answer does not suit the format, or a package is missing.
    """
    encoders: dict[Format, Callable[[Answer], bytes]] = {
        "npy": _npy,
        "csv": lambda found: csv_text(found).encode(),
        "json": _json,
        "arrow": _arrow,
        "parquet": _parquet,
    }
    return encoders[form](answer)


def format_of(ending: str) -> Format:
    """Return the format of files with an ending, such as ``.npy``.

    Raises:
        ConfigError: There is none.
    """
    for form in get_args(Format):
        if ending == f".{form}":
            return form  # type: ignore[no-any-return]
    known = ", ".join(f".{form}" for form in get_args(Format))
    raise ConfigError(f"{ending!r} is the ending of no known format; known are {known}.")


def csv_text(answer: Answer) -> str:
    """Return a table of text; numbers are the shortest that read back as what is stored.

    Raises:
        ConfigError: The answer has more than two axes.
    """
    _require_table(answer, "csv")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    rows = _rows(answer)
    width = len(rows[0]) if rows else 0
    writer.writerow([answer.row_kind, *(answer.column_ids or [str(column) for column in range(width)])])
    writer.writerows([name, *row] for name, row in zip(answer.row_ids, rows, strict=True))
    return buffer.getvalue()


def arrow_table(answer: Answer) -> "pyarrow.Table":
    """Return a table with a column of row ids, named by what a row is, and a column for each column of values.

    Raises:
        ConfigError: The answer has more than two axes, or pyarrow is missing.
    """
    _require_table(answer, "arrow")
    arrow = _pyarrow()
    columns: list[Any] = [arrow.array(answer.row_ids, arrow.string())]
    if isinstance(answer.values, np.ndarray):
        values = answer.values[:, np.newaxis] if answer.values.ndim == 1 else answer.values
        columns += [arrow.array(np.ascontiguousarray(column)) for column in values.T]
    else:
        columns += [arrow.array(list(column)) for column in zip(*answer.values, strict=True)]
    names = answer.column_ids or [str(number) for number in range(len(columns) - 1)]
    if len(columns) == 1:  # without rows
        columns += [arrow.array([], arrow.null())] * len(names)
    return arrow.Table.from_arrays(columns, names=[answer.row_kind, *names])


def _require_table(answer: Answer, form: str) -> None:
    if np.ndim(answer.values) > 2:
        raise ConfigError(
            f"the answer has {np.ndim(answer.values)} axes, which {form} cannot show: features of a layerwise kernel have, "
            "and attributions to several targets. Choose npy or json (`--out FILE.npy`), or one target (`--target N`)."
        )


def _npy(answer: Answer) -> bytes:
    values = np.asarray(answer.values)
    if values.dtype.kind not in "fiu":
        raise ConfigError("the answer holds names as well as numbers, which npy cannot; choose csv or json.")
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def _json(answer: Answer) -> bytes:
    document: dict[str, Any] = {}
    if isinstance(answer.values, np.ndarray):
        values = answer.values
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            values = values.astype(object)
            values[~np.isfinite(answer.values)] = None
        document = {"values": values.tolist(), "dtype": answer.values.dtype.name, "shape": answer.values.shape}
    else:
        document = {"values": answer.values}
    document["row_ids"] = answer.row_ids
    if answer.column_ids is not None:
        document["column_ids"] = answer.column_ids
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()


def _arrow(answer: Answer) -> bytes:
    table, sink = arrow_table(answer), io.BytesIO()
    with _pyarrow().ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _parquet(answer: Answer) -> bytes:
    _require_table(answer, "parquet")
    table, sink = arrow_table(answer), io.BytesIO()
    name, times = Counter(table.column_names).most_common(1)[0]
    if times > 1:
        raise ConfigError(f"{times} columns are named {name!r}, which readers of parquet refuse; choose arrow.")
    _pyarrow().parquet.write_table(table, sink)
    return sink.getvalue()


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(f"tables need pyarrow, which cannot be loaded ({error}): {INSTALL}") from None
    return pyarrow


def _rows(answer: Answer) -> list[list[Any]]:
    if not isinstance(answer.values, np.ndarray):
        return list(answer.values)
    values = answer.values[:, np.newaxis] if answer.values.ndim == 1 else answer.values
    return [[item.item() if values.dtype.kind in "iu" else str(item) for item in row] for row in values]
