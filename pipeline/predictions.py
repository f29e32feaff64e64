"""Predictions for new samples: a small run computes their kernel rows, stored coefficients are applied to them."""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt

from ntkpipe.configs.errors import (
    ChunkNotReadyError,
    ConfigError,
    NotFoundError,
    NtkPipeError,
    PlanError,
    error_of_kind,
)
from ntkpipe.configs.run import RunConfig
from ntkpipe.configs.units import size
from ntkpipe.pipeline.events import Progress, Silent
from ntkpipe.pipeline.execution import absolute, make_plan, worker_spec
from ntkpipe.pipeline.manifests import check_same, make_manifest
from ntkpipe.pipeline.new_samples import (
    Data,
    StageWork,
    check_new_samples,
    data_section,
    new_samples_config,
    new_split,
    work_of,
)
from ntkpipe.pipeline.plan import Plan
from ntkpipe.pipeline.query.run import Run, open_run
from ntkpipe.pipeline.query.stored import StoredRunReader
from ntkpipe.pipeline.run import Url, carry_out, check_free, check_shared
from ntkpipe.pipeline.stopping import StopRequest
from ntkpipe.storage import layout
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.records import Manifest
from ntkpipe.storage.solutions import SolutionRecord
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.storage.stores.registry import open_store
from ntkpipe.workers.applying import loss, predicted
from ntkpipe.workers.context import WorkerContext
from ntkpipe.workers.probing.probe import Probe, probe_run

Doubles = npt.NDArray[np.float64]

ARRAYS: Final = "samples.npz"
"""To which samples in memory are written, for workers of other processes to read."""

RESUME: Final = "ntkpipe resume"
"""What messages advise where a run can go on."""

NOTHING_KEPT: Final = (
    "But nothing is kept of a prediction without a place to keep it at: give one (--keep) to go on after this."
)

SERVICES: Final = ("http://", "https://")


@final
@dataclass(frozen=True, slots=True)
class Predictions:
    """What solutions of a run say of new samples."""

    url: str
    """Of the run."""
    ids: tuple[str, ...]
    """(M,) of the new samples."""
    records: dict[str, SolutionRecord]
    """How each solution was found, by its name."""
    values: dict[str, Doubles]
    """(M, T) predictions of each solution: K(new, training samples) alpha."""
    losses: dict[str, float]
    """Share of wrong classes, or mean square error, of each solution that the new samples have labels for."""

    def classes(self, solution: str) -> npt.NDArray[np.int64]:
        """Return the (M,) predicted classes of a solution.

        Raises:
            NotFoundError: It was not asked, or has real targets.
        """
        if solution not in self.values or not self.records[solution].classes:
            raise NotFoundError(f"there are no predicted classes of solution {solution!r}.")
        found: npt.NDArray[np.int64] = self.values[solution].argmax(axis=1).astype(np.int64)
        return found


@dataclass(frozen=True, slots=True)
class _Job:
    """A run of new samples that has been looked at, but not started."""

    run: Run
    url: str
    config: RunConfig
    probe: Probe
    plan: Plan
    kernels: dict[str, str]
    """By solution."""
    records: dict[str, SolutionRecord]


def predict(
    run: Run | Url,
    data: Data,
    solutions: str | Sequence[str] | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    keep: Url | None = None,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    stop: StopRequest | None = None,
) -> Predictions:
    """Apply stored solutions to new samples.

    Features, or what exact kernels need, are computed for the new samples only, and the rows of their kernels with the
    training samples; memory is that of a run. All of it is a small run in a temporary folder, deleted at the end, which
    takes the features of the training samples over from the run: it links to them on one file system, and copies them
    to another. The run itself is only read. As for :func:`~ntkpipe.resume`, its model and training samples must be at
    hand, and its code is trusted.

    Args:
        run: Or its path or URL; may be unfinished, if the solutions are there.
        data: A ``.npy`` or ``.npz`` file, or the import path of a callable; or a :class:`~ntkpipe.Samples` object, or
            (M, ...) inputs.
        solutions: A name, or several; all of the run by default.
        options: Of the callable.
        keep: Path or URL at which the small run is kept. If it is interrupted, the same call goes on with it.
        overrides: Assignments to resources, such as ``resources.device=cuda``, and to where files are.
        progress: Is told what happens.
        stop: As for :func:`~ntkpipe.run`.

    Raises:
        NotFoundError: There is no such run or solution.
        ChunkNotReadyError: A solution has not been found yet.
        RunMismatchError: Model, training samples or code are others than those of the run; every difference is named.
        ConfigError: The new samples cannot be read, do not fit, or lack the labels that a kernel needs.
        NtkPipeError: Whatever else ends a run.
    """
    told = progress or Silent()
    with _looked_at(run, data, solutions, options or {}, keep, overrides) as job:
        work = _work(job)
        told.note(cost_line(work, job.plan))
        for line in _strangers(job):
            told.note(line)
        try:
            _carry_out(job, work, told, stop)
        except NtkPipeError as error:
            if keep is not None or RESUME not in error.message:
                raise
            # What a run advises is of no use for one whose folder is about to be deleted.
            raise error_of_kind(error.kind, f"{error.message} {NOTHING_KEPT}") from error
        return _applied(job)


def prediction_work(
    run: Run | Url,
    data: Data,
    solutions: str | Sequence[str] | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> tuple[Plan, list[StageWork]]:
    """Return what :func:`predict` would do, stage by stage; computes and writes nothing.

    Raises:
        NtkPipeError: As there.
    """
    with _looked_at(run, data, solutions, options or {}, None, overrides) as job:
        return job.plan, _work(job)


def cost_line(work: Sequence[StageWork], plan: Plan) -> str:
    """Say in a sentence what a prediction will take."""
    geometry = plan.geometry
    train = geometry.splits[geometry.train_split].num_samples
    num = sum(split.num_samples for split in geometry.splits.values()) - train
    todo, taken = (sum(getattr(stage, field) for stage in work) for field in ("num_tasks", "num_taken"))
    flops, written = (sum(getattr(stage.cost, field) for stage in work) for field in ("flops", "bytes_written"))
    return (
        f"{num:,} new samples against {train:,}: {todo:,} tasks, {float(flops):.1e} operations, {size(written)} to write; "
        f"{taken:,} tasks of the run can be taken over"
    )


@contextmanager
def _looked_at(
    source: Run | Url,
    data: Data,
    solutions: str | Sequence[str] | None,
    options: Mapping[str, Any],
    keep: Url | None,
    overrides: Sequence[str],
) -> Iterator[_Job]:
    """Check all that can be checked before anything is computed; temporary files last as long as the context."""
    run = _opened(source)
    records = _records(run, solutions)
    kernels = {solve.name: solve.kernel for solve in run.config.solve if solve.name in records}
    with tempfile.TemporaryDirectory(prefix="ntkpipe-predict-", ignore_cleanup_errors=True) as folder:
        config = new_samples_config(
            run, list(kernels.values()), data_section(data, options, Path(folder) / ARRAYS), overrides
        )
        probe = probe_run(config)
        check_new_samples(run, make_manifest(config, probe))
        url = os.fspath(keep) if keep is not None else f"{folder}/run"
        yield _Job(run, url, config, probe, make_plan(probe), kernels, records)


def _strangers(job: _Job) -> Iterator[str]:
    """Say which new samples are of classes that the run does not have."""
    source, train = job.probe.splits[new_split(job.run)], job.run.manifest.geometry.splits[job.run.train_split]
    if source.labels is None or (source.label_kind, train.labels) != ("classes", "classes"):
        return
    strange = (source.labels >= train.num_targets).nonzero().flatten().tolist()
    if strange:
        first = strange[0]
        yield (
            f"{len(strange):,} new samples are of classes that the run does not have, the first of them {source.ids[first]!r} "
            f"(label {int(source.labels[first])}, of {train.num_targets} classes): what is predicted for them counts as wrong"
        )


def _opened(source: Run | Url) -> Run:
    """Return a run that is not behind a service, which would not compute anything."""
    url = source.url if isinstance(source, Run) else os.fspath(source)
    is_remote = not isinstance(source.reader, StoredRunReader) if isinstance(source, Run) else url.startswith(SERVICES)
    if is_remote:
        raise ConfigError(f"{url} is a service: predictions for new samples are computed where the run is stored.")
    return source if isinstance(source, Run) else open_run(url)


def _records(run: Run, solutions: str | Sequence[str] | None) -> dict[str, SolutionRecord]:
    """Return the records of solutions.

    Raises:
        ChunkNotReadyError: Some are not there; all of them are named.
    """
    asked = [solutions] if isinstance(solutions, str) else solutions
    names = list(dict.fromkeys(run.manifest.geometry.solutions if asked is None else asked))
    if not names:
        raise ConfigError(f"{run.url} has no solutions that could be applied to new samples; see the section `solve`.")
    found, missing = {}, []
    for name in names:
        try:
            found[name] = run.solution_record(name)
        except ChunkNotReadyError:
            missing.append(name)
    if missing:
        others = f" Those that are there: {', '.join(found)}." if found else ""
        raise ChunkNotReadyError(
            f"{run.url}: not found yet: {', '.join(missing)}.{others} Finish the run with `ntkpipe resume`, or name other "
            "solutions."
        )
    return found


def _work(job: _Job) -> list[StageWork]:
    return work_of(job.run, job.plan, Ledger(open_store(job.run.url)))


def _carry_out(job: _Job, work: Sequence[StageWork], progress: Progress, stop: StopRequest | None) -> None:
    """Start the run of new samples, or go on with the one that was kept."""
    store = open_store(job.url)
    check_shared(job.config, store)
    origin, asked = absolute(job.run.url), None
    if store.get(layout.MANIFEST) is None:
        check_free(store)
        _check_space(store, sum(stage.cost.bytes_written for stage in work))
        asked = make_manifest(job.config, job.probe, origin=origin)
    else:
        check_same(store.url, Manifest.read(store), make_manifest(job.config, job.probe))
    carry_out(job.url, job.config, job.probe, job.plan, progress, stop, origin=origin, manifest=asked)


def _check_space(store: AbstractStore, needed: int) -> None:
    """Refuse what would fill the store; what is linked takes no space, and is not counted."""
    free = store.free_bytes()
    if free is not None and needed > free:
        raise PlanError(
            f"{store.url}: the prediction needs {size(needed)} of storage and {size(free)} are free. Predict fewer samples at a "
            "time, or choose another place: --keep, or the folder for temporary files (TMPDIR)."
        )


def _applied(job: _Job) -> Predictions:
    """Multiply; solutions of one kernel share a pass over its rows."""
    context, split = WorkerContext(worker_spec(open_store(job.url), job.plan, job.probe)), new_split(job.run)
    by_kernel: dict[str, list[str]] = {}
    for name, kernel in job.kernels.items():
        by_kernel.setdefault(kernel, []).append(name)
    values: dict[str, Doubles] = {}
    for kernel, names in by_kernel.items():
        found = predicted(context, kernel, split, [job.run.solution(name) for name in names])
        values |= dict(zip(names, found, strict=True))
    labels = job.probe.splits[split].labels
    losses = {name: loss(record, values[name], labels) for name, record in job.records.items()}
    return Predictions(
        url=job.run.url,
        ids=job.probe.splits[split].ids,
        records=job.records,
        values={name: values[name] for name in job.records},
        losses={name: found for name, found in losses.items() if found is not None},
    )
