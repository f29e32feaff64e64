"""What a run can be asked in a word, in Python as on the command line, and how a question becomes an answer."""

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from ntkpipe.configs.base import nearest_name, unknown_name
from ntkpipe.configs.errors import ConfigError
from ntkpipe.pipeline.query.formats import Answer
from ntkpipe.pipeline.query.limits import Limits
from ntkpipe.pipeline.query.matrices import ErrorQuery, KernelQuery
from ntkpipe.pipeline.query.names import Index, Missing, Positions
from ntkpipe.pipeline.query.selection import positions_of
from ntkpipe.pipeline.query.spectra import DEFAULT_SAMPLES
from ntkpipe.pipeline.query.views import names_of_rows

if TYPE_CHECKING:
    from ntkpipe.pipeline.query.run import Run

LIMITS = Limits()
"""Of an answer, whose ids take memory before any reader sees the request."""

QUESTIONS = (
    "kernel/NAME[/ROWS-COLUMNS]",
    "component/NAME/PARAMETER[/ROWS-COLUMNS]",
    "error/NAME[/ROWS-COLUMNS]",
    "features/NAME[/SPLIT]",
    "diagonal/NAME[/SPLIT]",
    "neighbors/NAME[/SPLIT]",
    "spectrum/NAME",
    "solution/NAME",
    "prediction/NAME/SPLIT",
    "attribution/SOLUTION[/SPLIT]",
    "extra/SOLUTION/WHAT",
    "outputs/SPLIT[/MEMBER]",
    "labels/SPLIT",
    "ids/SPLIT",
)

DEFAULT_NEIGHBORS = 5

OF_KERNELS = ("kernel", "neighbors", "spectrum")
"""Questions about a matrix that can be transformed before it is read, or be a sum of components."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """What goes with a question."""

    rows: Index = field(default_factory=lambda: slice(None))
    """Which samples."""
    columns: Index = field(default_factory=lambda: slice(None))
    """Which columns, for kernels and attributions."""
    k: int = DEFAULT_NEIGHBORS
    """How many neighbors."""
    opposed: bool = False
    """The most opposed neighbors are wanted."""
    label: int | None = None
    """Neighbors of this class only."""
    target: int | None = None
    """Of an attribution."""
    missing: Missing = "raise"
    """What becomes of entries that are not committed yet."""
    layers: tuple[str, ...] = ()
    """Components that are summed."""
    transforms: tuple[str, ...] = ()
    """In the order in which they are applied."""
    max_samples: int | None = None
    """Of a spectrum."""


def details_of(given: dict[str, Any]) -> Details:
    """Return details from keywords.

    Raises:
        ConfigError: One is not known.
    """
    known = [one.name for one in fields(Details)]
    for name in given:
        if name not in known:
            raise ConfigError(unknown_name("detail", name, known))
    return Details(**given)


def ask(run: "Run", what: str, details: Details) -> Answer:
    """Read what was asked for, with the ids of its rows and columns.

    Args:
        run: The run.
        what: A question of the forms in ``QUESTIONS``.
        details: What goes with it.

    Raises:
        ConfigError: The question has no such form, its answer would be too large, or a detail does not belong to it.
        NotFoundError: It names something that the run does not have.
    """
    kind, *names = what.split("/")
    _check_details(kind, details)
    match kind, names:
        case "kernel", [name, *pair] if len(pair) <= 1:
            return _matrix(run, name, None, pair, details)
        case "error", [name, *pair] if len(pair) <= 1:
            return _errors(run, name, pair, details)
        case "component", [name, parameter, *pair] if len(pair) <= 1:
            return _matrix(run, name, parameter, pair, details)
        case "neighbors", [name, *split]:
            return _neighbors(run, name, _split(run, split), details)
        case "spectrum", [name]:
            return _spectrum(run, name, details)
        case "attribution", [name, *split]:
            return _attribution(run, name, _split(run, split), details)
        case "features" | "diagonal" | "prediction", [name, *split]:
            return _rows(run, kind, name, _split(run, split), details.rows)
        case "solution", [name]:
            return _rows(run, kind, name, run.train_split, details.rows)
        case "extra", [name, found]:
            return _extra(run, name, found, details.rows)
        case "outputs", [split, member]:
            return _outputs(run, split, member, details.rows)
        case "outputs", split if len(split) <= 1:
            return _outputs(run, _split(run, split), None, details.rows)
        case "labels" | "ids", split if len(split) <= 1:
            return _rows(run, kind, "", _split(run, split), details.rows)
    raise ConfigError(_unanswerable(run, what, kind))


def _check_details(kind: str, details: Details) -> None:
    """Refuse a detail that would be ignored."""
    needed = {
        "layers": (bool(details.layers), OF_KERNELS),
        "transforms": (bool(details.transforms), (*OF_KERNELS, "component")),
        "missing": (details.missing != "raise", ("kernel", "component")),
        "opposed": (details.opposed, ("neighbors",)),
        "label": (details.label is not None, ("neighbors",)),
        "target": (details.target is not None, ("attribution",)),
        "max_samples": (details.max_samples is not None, ("spectrum",)),
        "rows": (
            not _is_all(details.rows),
            tuple(one.partition("/")[0] for one in QUESTIONS if not one.startswith("spectrum")),
        ),
        "k": (details.k != DEFAULT_NEIGHBORS, ("neighbors",)),
        "columns": (not _is_all(details.columns), ("kernel", "component", "error", "attribution")),
    }
    for option, (given, kinds) in needed.items():
        if given and kind not in kinds and any(kind == question.partition("/")[0] for question in QUESTIONS):
            raise ConfigError(f"{option} belongs to {', '.join(kinds)}, not to {kind}; leave it out.")


def _is_all(index: Index) -> bool:
    return isinstance(index, slice) and index == slice(None)


def _unanswerable(run: "Run", what: str, kind: str) -> str:
    """Say what is missing of a question, or which one may have been meant."""
    forms = {form.partition("/")[0]: form for form in QUESTIONS}
    if kind not in forms:
        nearest = nearest_name(kind, forms)
        hint = f"; did you mean {forms[nearest]}?" if nearest else "."
        return f"{what!r} is nothing that can be asked for{hint} Ask for {', '.join(QUESTIONS)}."
    geometry = run.manifest.geometry
    of_solutions = kind in ("solution", "prediction", "attribution", "extra")
    names = {"solutions": geometry.solutions} if of_solutions else {"kernels": geometry.references}
    names["splits"] = tuple(geometry.splits)
    known = "; ".join(f"{some}: {', '.join(found) or 'none'}" for some, found in names.items())
    return f"{what!r} is not of the form {forms[kind]}. {run.url} has {known}."


def _split(run: "Run", names: list[str]) -> str:
    if len(names) > 1:
        raise ConfigError(f"{'/'.join(names)!r} is not the name of a split. Ask for {', '.join(QUESTIONS)}.")
    return names[0] if names else run.train_split


def _matrix(run: "Run", name: str, parameter: str | None, pair: list[str], details: Details) -> Answer:
    sides = _sides(run, pair)
    matrix = run.kernel(name, *sides, component=parameter, layers=details.layers, transforms=details.transforms)
    return _entries(run, matrix, sides, details)


def _errors(run: "Run", name: str, pair: list[str], details: Details) -> Answer:
    sides = _sides(run, pair)
    return _entries(run, run.standard_errors(name, *sides), sides, details)


def _sides(run: "Run", pair: list[str]) -> tuple[str, str]:
    row_split, _, column_split = (pair[0] if pair else "").partition("-")
    return row_split or run.train_split, column_split or run.train_split


def _entries(run: "Run", matrix: KernelQuery | ErrorQuery, sides: tuple[str, str], details: Details) -> Answer:
    at, columns = (
        run.positions(text, split) for text, split in zip((details.rows, details.columns), sides, strict=True)
    )
    LIMITS.check(len(at) * len(columns) * matrix.width**2)
    row_ids, column_ids = (
        names_of_rows(_ids(run, split, positions), matrix.width)
        for split, positions in zip(sides, (at, columns), strict=True)
    )
    if isinstance(matrix, KernelQuery):
        return Answer(matrix.read(at, columns, missing=details.missing), row_ids, column_ids)
    return Answer(matrix[at, columns], row_ids, column_ids)


def _rows(run: "Run", kind: str, name: str, split: str, rows: Index) -> Answer:
    at = run.positions(rows, split)
    ids = _ids(run, split, at)
    match kind:
        case "features":
            found = run.features[name, split]
            LIMITS.check(len(at) * found.num_values)
            return Answer(found[at], ids)
        case "diagonal":
            return Answer(run.diagonal(name, split)[at], ids)
        case "solution":
            return Answer(run.solution(name)[at], ids)
        case "prediction":
            return Answer(run.predictions(name, split)[at], ids)
        case "ids":
            return Answer(at, ids, ["position"])
    labels = run.labels(split)
    if labels is None:
        raise ConfigError(f"split {split!r} has no labels.")
    return Answer(labels[at], ids)


def _outputs(run: "Run", split: str, member: str | None, rows: Index) -> Answer:
    at = run.positions(rows, split)
    return Answer(run.outputs(split, member, at), _ids(run, split, at))


def _extra(run: "Run", name: str, what: str, rows: Index) -> Answer:
    """Return what a solver has left beside a solution; its rows are no samples, and a single number is one row."""
    values = np.atleast_1d(run.solution_extra(name, what))
    at = positions_of(rows, len(values), f"rows of {what!r} of solution {name!r}")
    return Answer(values[at], [str(position) for position in at], row_kind="row")


def _neighbors(run: "Run", name: str, split: str, details: Details) -> Answer:
    at = run.positions(details.rows, split)
    matrix = run.kernel(name, split, layers=details.layers, transforms=details.transforms)
    found = matrix.neighbors(at, details.k, opposed=details.opposed, label=details.label)
    ids = [run.ids(split)[position] for position, row in zip(at, found, strict=True) for _ in row]
    flat = [neighbor for row in found for neighbor in row]
    return Answer([[neighbor.sample_id, neighbor.value] for neighbor in flat], ids, ["neighbor", "kernel"])


def _spectrum(run: "Run", name: str, details: Details) -> Answer:
    matrix = run.kernel(name, layers=details.layers, transforms=details.transforms)
    found = matrix.spectrum(DEFAULT_SAMPLES if details.max_samples is None else details.max_samples)
    ranks = [str(rank + 1) for rank in range(len(found.eigenvalues))]
    if found.label_energy is None:
        return Answer(found.eigenvalues, ranks, ["eigenvalue"], row_kind="rank")
    values = np.stack([found.eigenvalues, found.label_energy], axis=1)
    return Answer(values, ranks, ["eigenvalue", "label_energy"], row_kind="rank")


def _attribution(run: "Run", name: str, split: str, details: Details) -> Answer:
    """Return contributions, (M, N) of one target, else (M, N, T)."""
    at, columns = run.positions(details.rows, split), run.positions(details.columns, run.train_split)
    num_targets = run.num_targets(name)
    target = 0 if num_targets == 1 and details.target is None else details.target
    LIMITS.check(len(at) * len(run.sample_ids) * (num_targets if target is None else 1))
    values = run.attributions(name, at, split, target=target)[:, columns]
    return Answer(values, _ids(run, split, at), _ids(run, run.train_split, columns))


def _ids(run: "Run", split: str, at: Positions) -> list[str]:
    names = run.ids(split)
    return [names[position] for position in at]
