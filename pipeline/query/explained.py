"""Neighbours and attributions by name: what a user asks of a run, checked, and answered with ids and classes."""

from typing import TYPE_CHECKING

import numpy as np

from ntkpipe.configs.errors import ConfigError
from ntkpipe.pipeline.query.attributions import checked_target, extremes, shares
from ntkpipe.pipeline.query.names import AttributionSummary, Doubles, Index, MatrixName, Nearest, Neighbor, Positions
from ntkpipe.pipeline.query.neighbors import nearest_by_class, training_classes
from ntkpipe.storage.arrays import Array

if TYPE_CHECKING:
    from ntkpipe.pipeline.query.run import Run


def neighbors_of(
    run: "Run", name: MatrixName, samples: Index, k: int, *, opposed: bool, label: int | None
) -> list[list[Neighbor]]:
    """Return the neighbours of some samples; see :meth:`KernelQuery.neighbors`."""
    _check_neighbors(run, name, k)
    found = run.reader.nearest(name, run.positions(samples, name.rows), k, opposed=opposed, label=label)
    return _named(run, found)


def neighbors_by_class_of(
    run: "Run", name: MatrixName, sample: str | int, k: int, *, opposed: bool
) -> dict[int, list[Neighbor]]:
    """Return those of one sample for every class."""
    _check_neighbors(run, name, k)
    found = nearest_by_class(run.reader, name, run.positions([sample], name.rows), k, opposed=opposed)  # type: ignore[arg-type]
    return {label: _named(run, best)[0] for label, best in found.items()}


def attributions_of(run: "Run", solution: str, rows: Positions, split: str, target: int | None) -> Doubles:
    """Return what every training sample contributes; see :meth:`Run.attributions`."""
    if target is not None:
        target = checked_target(target, run.num_targets(solution), solution)
    return run.reader.attributions(solution, split, rows, target)


def summary_of(
    run: "Run", solution: str, sample: str | int, split: str, target: int | None, k: int
) -> AttributionSummary:
    """Return a prediction in parts; see :meth:`Run.attribution_summary`."""
    _check_count(k, 0)
    row, num_targets = run.positions([sample], split), run.num_targets(solution)  # type: ignore[arg-type]
    predictions_T = run.predictions(solution, split)[row[0]]
    if target is None:
        target = int(predictions_T.argmax()) if run.reader.solution_record(solution).classes else 0
    target = checked_target(target, num_targets, solution)
    values_N = run.reader.attributions(solution, split, row, target)[0]
    classes = _classes(run)
    helpful, harmful = (_neighbors(run, at, values_N[at], classes) for at in extremes(values_N, k))
    return AttributionSummary(
        sample_id=run.ids(split)[row[0]],
        position=int(row[0]),
        target=target,
        prediction=float(predictions_T[target]),
        total=float(values_N.sum()),
        by_class=() if classes is None else shares(values_N, classes),
        helpful=tuple(helpful),
        harmful=tuple(harmful),
    )


def _check_neighbors(run: "Run", name: MatrixName, k: int) -> None:
    _check_count(k, 1)
    if run.shape_of(name.kernel)[0].width > 1:
        raise ConfigError("rows of a kernel of (sample, output) pairs are no samples; ask for neighbors under another.")
    if name.columns != run.train_split:
        raise ConfigError(
            f"neighbors are samples of split {run.train_split!r}; the columns are those of {name.columns!r}."
        )


def _check_count(k: int, least: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < least:
        raise ConfigError(f"k = {k!r} must be a whole number and at least {least}.")


def _classes(run: "Run") -> Array | None:
    has_classes = run.manifest.geometry.splits[run.train_split].labels == "classes"
    return training_classes(run.reader) if has_classes else None


def _named(run: "Run", found: Nearest) -> list[list[Neighbor]]:
    classes = _classes(run)
    return [
        _neighbors(run, row[row >= 0], values[row >= 0], classes)
        for row, values in zip(found.positions, found.values, strict=True)
    ]


def _neighbors(run: "Run", at: Positions, values: Doubles, classes: Array | None) -> list[Neighbor]:
    ids = run.sample_ids
    return [
        Neighbor(ids[position], int(position), float(value), None if classes is None else int(classes[position]))
        for position, value in zip(at, values, strict=True)
    ]
