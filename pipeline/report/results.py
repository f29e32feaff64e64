"""What a report says of kernels and solutions."""

from collections.abc import Iterator
from contextlib import suppress
from math import prod

from ntkpipe.configs.errors import NtkPipeError
from ntkpipe.pipeline.query.run import Run
from ntkpipe.pipeline.report.html import Html, element, joined
from ntkpipe.pipeline.report.tables import table
from ntkpipe.storage.records import KernelGeometry, Manifest
from ntkpipe.storage.schema import array_specs

READ_BY_BLOCKS = ("features/", "diagonal/")
"""Arrays that blocks of kernels are made of."""


def num_stored_chunks(manifest: Manifest) -> int:
    """Return how many chunks of features and diagonals a run stores."""
    return sum(
        prod(-(-size // chunk) for size, chunk in zip(spec.shape, spec.chunks, strict=True))
        for spec in array_specs(manifest.geometry)
        if spec.path.startswith(READ_BY_BLOCKS)
    )


def kernels_table(manifest: Manifest) -> Html:
    """Return what the kernels of a run are."""
    rows = [(kernel.name, kernel.kind, ", ".join(_facts(kernel))) for kernel in manifest.geometry.kernels]
    return table(("kernel", "kind", "how"), rows, text=frozenset({0, 1}), long=2)


def solutions_section(run: Run) -> Html:
    """Return how solutions were found and how well they solve their systems."""
    names = run.manifest.geometry.solutions
    if not names:
        return element("p", "The run solves no linear systems.")
    rows, notes = [], []
    for name in names:
        chosen = run.manifest.solvers[name].why if name in run.manifest.solvers else ""
        record = None
        # One that is not there yet, or damaged, is for `ntkpipe status` and `ntkpipe verify` to tell.
        with suppress(NtkPipeError):
            record = run.solution_record(name)
        if record is None:
            rows.append((name, "", "", "not committed", "", "", ""))
        else:
            residual = f"{max(record.residuals, default=0.0):.1e}"
            error = f"{max(record.backward_errors):.1e}" if record.backward_errors else ""
            rows.append((name, record.kernel, record.method, record.status, residual, error, f"{record.ridge:.3g}"))
            chosen = record.chosen or chosen
            notes += [f"{name}: {flag}" for flag in record.flags]
        notes += [f"{name}: {chosen}"] if chosen else []
    head = ("solution", "kernel", "method", "status", "largest residual", "backward error", "ridge")
    return joined(
        table(head, rows, text=frozenset({0, 1, 2, 3})), *(element("p", note, class_="soft") for note in notes)
    )


def _facts(kernel: KernelGeometry) -> Iterator[str]:
    if kernel.feature_dim is not None:
        yield f"{kernel.feature_dim:,} features{' of a random projection' if kernel.sketched else ''}"
    if kernel.parents:
        yield f"made of {', '.join(kernel.parents)}"
    if kernel.groups:
        yield f"{len(kernel.groups):,} components"
    if kernel.members:
        yield f"{len(kernel.members):,} members"
    if kernel.cosine:
        yield "normalised"
    if not kernel.symmetric:
        yield "not symmetric"
