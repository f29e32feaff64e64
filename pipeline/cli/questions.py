"""What `ntkpipe query` can be asked, and how a question becomes an answer."""

import numpy as np

from ntkpipe.configs.errors import ConfigError, NotFoundError
from ntkpipe.pipeline.cli.output import Answer
from ntkpipe.pipeline.cli.selection import parse_selection
from ntkpipe.pipeline.query.matrices import ErrorQuery, KernelQuery
from ntkpipe.pipeline.query.run import Run

MAX_CELLS = 200_000_000
"""A question whose answer has more values is refused: 1.6 GB in float64."""

QUESTIONS = (
    "kernel/NAME[/ROWS-COLUMNS]",
    "component/NAME/PARAMETER[/ROWS-COLUMNS]",
    "error/NAME[/ROWS-COLUMNS]",
    "features/NAME[/SPLIT]",
    "diagonal/NAME[/SPLIT]",
    "neighbors/NAME[/SPLIT]",
    "solution/NAME",
    "prediction/NAME/SPLIT",
    "extra/SOLUTION/WHAT",
    "outputs/SPLIT[/MEMBER]",
    "labels/SPLIT",
    "ids/SPLIT",
)


def ask(run: Run, what: str, rows: str, cols: str, k: int) -> Answer:
    """Read what was asked for, with the ids of its rows and columns.

    Args:
        run: The run.
        what: A question of the forms in ``QUESTIONS``.
        rows: Which samples; see :func:`parse_selection`.
        cols: Which columns, for kernels.
        k: How many neighbors.

    Raises:
        ConfigError: The question has no such form, or its answer would be too large.
        NotFoundError: It names something that the run does not have.
    """
    kind, *names = what.split("/")
    match kind, names:
        case "kernel", [name]:
            return _matrix(run, name, None, "", rows, cols)
        case "kernel", [name, pair]:
            return _matrix(run, name, None, pair, rows, cols)
        case "error", [name, *pair] if len(pair) <= 1:
            return _errors(run, name, pair[0] if pair else "", rows, cols)
        case "component", [name, parameter]:
            return _matrix(run, name, parameter, "", rows, cols)
        case "component", [name, parameter, pair]:
            return _matrix(run, name, parameter, pair, rows, cols)
        case "neighbors", [name, *split]:
            return _neighbors(run, name, _split(run, split), rows, k)
        case "features" | "diagonal" | "prediction", [name, *split]:
            return _rows(run, kind, name, _split(run, split), rows)
        case "solution", [name]:
            return _rows(run, kind, name, run.train_split, rows)
        case "extra", [name, found]:
            return _extra(run, name, found, rows)
        case "outputs", [split, member]:
            at = run.positions(parse_selection(rows), split)
            return Answer(run.outputs(split, member)[at], [run.ids(split)[i] for i in at])
        case "outputs" | "labels" | "ids", split if len(split) <= 1:
            return _rows(run, kind, "", _split(run, split), rows)
    raise ConfigError(f"{what!r} is nothing that can be asked for. Ask for {', '.join(QUESTIONS)}.")


def _split(run: Run, names: list[str]) -> str:
    if len(names) > 1:
        raise ConfigError(f"{'/'.join(names)!r} is not the name of a split. Ask for {', '.join(QUESTIONS)}.")
    return names[0] if names else run.train_split


def _matrix(run: Run, name: str, parameter: str | None, pair: str, rows: str, cols: str) -> Answer:
    row_split, column_split = _sides(run, pair)
    matrix = run.kernel(name, row_split, column_split, component=parameter)
    return _entries(run, matrix, row_split, column_split, rows, cols)


def _errors(run: Run, name: str, pair: str, rows: str, cols: str) -> Answer:
    row_split, column_split = _sides(run, pair)
    errors = run.standard_errors(name, row_split, column_split)
    return _entries(run, errors, row_split, column_split, rows, cols)


def _sides(run: Run, pair: str) -> tuple[str, str]:
    row_split, _, column_split = pair.partition("-")
    return row_split or run.train_split, column_split or run.train_split


def _entries(
    run: Run, matrix: KernelQuery | ErrorQuery, row_split: str, column_split: str, rows: str, cols: str
) -> Answer:
    at = run.positions(parse_selection(rows), row_split)
    columns = run.positions(parse_selection(cols), column_split)
    width = matrix.width if isinstance(matrix, KernelQuery) else 1
    _check_cells(len(at) * len(columns) * width**2)
    row_ids, column_ids = (
        _spread([run.ids(split)[i] for i in positions], width)
        for split, positions in ((row_split, at), (column_split, columns))
    )
    return Answer(matrix[at, columns], row_ids, column_ids)


def _spread(ids: list[str], width: int) -> list[str]:
    """Return one name per row of a kernel of (sample, output) pairs: ``digits-0000/3``."""
    return ids if width == 1 else [f"{name}/{output}" for name in ids for output in range(width)]


def _rows(run: Run, kind: str, name: str, split: str, rows: str) -> Answer:
    at = run.positions(parse_selection(rows), split)
    ids = [run.ids(split)[i] for i in at]
    match kind:
        case "features":
            found = run.features[name, split]
            _check_cells(len(at) * found.num_values)
            return Answer(found[at], ids)
        case "diagonal":
            return Answer(run.diagonal(name, split)[at], ids)
        case "solution":
            return Answer(run.solution(name)[at], ids)
        case "prediction":
            return Answer(run.predictions(name, split)[at], ids)
        case "outputs":
            return Answer(run.outputs(split)[at], ids)
        case "ids":
            return Answer(at, ids, ["position"])
    labels = run.labels(split)
    if labels is None:
        raise ConfigError(f"split {split!r} has no labels.")
    return Answer(labels[at], ids)


def _extra(run: Run, name: str, what: str, rows: str) -> Answer:
    """Return what a solver has left beside a solution; its rows are no samples, and a single number is one row."""
    values, selected = np.atleast_1d(run.solution_extra(name, what)), parse_selection(rows)
    num = len(values)
    if isinstance(selected, slice):
        at = list(range(num))[selected]
    else:
        for item in selected:
            if isinstance(item, str) or not -num <= item < num:
                raise NotFoundError(f"{what!r} of solution {name!r} has no row {item!r}; its {num} rows are numbered.")
        at = [int(item) % num for item in selected]
    _check_cells(values[at].size)
    return Answer(values[at], [str(position) for position in at], row_kind="row")


def _neighbors(run: Run, name: str, split: str, rows: str, k: int) -> Answer:
    at = run.positions(parse_selection(rows), split)
    found = [run.neighbors(int(position), k, kernel=name, split=split) for position in at]
    ids = [run.ids(split)[position] for position, row in zip(at, found, strict=True) for _ in row]
    flat = [neighbor for row in found for neighbor in row]
    return Answer([[neighbor.sample_id, neighbor.value] for neighbor in flat], ids, ["neighbor", "kernel"])


def _check_cells(num_cells: int) -> None:
    if num_cells > MAX_CELLS:
        raise ConfigError(f"that would be {num_cells:,} values; ask for at most {MAX_CELLS:,} with --rows and --cols.")
