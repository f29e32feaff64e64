"""Blocks of kernel matrices from factors or from features, and their normalisation."""

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

import torch

from ntkpipe.workers.jacobians.engine import Factors

Components = dict[str, torch.Tensor]
"""Parameter name to (N, M) components, whose sum is the kernel; one entry, ``TOTAL``, where they are not kept apart."""

TOTAL = "total"

Seen = Mapping[Hashable, Factors]
"""Factors of a batch, by the view through which they are seen."""


def in_groups(batches: Iterable[Factors], num_samples: int) -> Iterator[Factors]:
    """Yield batches joined to groups of about ``num_samples``.

    A product of factors may materialise gradients of both sides, which pays only for many samples at a time; backward
    passes are faster on few.
    """
    waiting: list[Factors] = []
    for batch in batches:
        waiting.append(batch)
        if sum(_size(factors) for factors in waiting) >= num_samples:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _size(factors: Factors) -> int:
    return next(iter(factors.values())).num_samples


def _joined(batches: list[Factors]) -> Factors:
    first, *others = batches
    if not others:
        return first
    return {name: factor.joined([other[name] for other in others]) for name, factor in first.items()}


def exact_blocks(rows: Sequence[Seen], column: Seen, apart: Collection[Hashable]) -> dict[Hashable, Components]:
    """Return the components between batches of rows and one batch of columns.

    Args:
        rows: Factors of batches, by the view through which they are seen.
        column: The same of the columns.
        apart: Views whose components are kept apart.
    """
    parts = [_products(row, column, apart) for row in rows]
    return {view: stacked_rows([part[view] for part in parts]) for view in column}


def exact_diagonal_blocks(batches: Sequence[Seen], apart: Collection[Hashable]) -> dict[Hashable, Components]:
    """Return the symmetric components between batches and themselves; every pair of batches is computed once."""
    starts = {view: list(accumulate((_size(batch[view]) for batch in batches), initial=0)) for view in batches[0]}
    found: dict[Hashable, Components] = {view: {} for view in batches[0]}
    for position, row in enumerate(batches):
        for other, column in enumerate(batches[: position + 1]):
            for view, components in _products(row, column, apart).items():
                at, total = starts[view], found[view]
                at_rows, at_columns = (slice(at[index], at[index + 1]) for index in (position, other))
                for name, gram in components.items():
                    if name not in total:
                        total[name] = gram.new_empty(at[-1], at[-1])
                    if position == other:
                        total[name][at_rows, at_columns] = (gram + gram.T) / 2
                    else:
                        total[name][at_rows, at_columns] = gram
                        total[name][at_columns, at_rows] = gram.T
    return found


def _products(rows: Seen, columns: Seen, apart: Collection[Hashable]) -> dict[Hashable, Components]:
    """Multiply one pair of batches through all views, one after the other: they share work as long as they do."""
    return {view: gram_components(rows[view], columns[view], layerwise=view in apart) for view in columns}


def stacked_rows(parts: Sequence[Components]) -> Components:
    """Return components of rows one below the other."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def joined_columns(parts: Sequence[Components]) -> Components:
    """Return components of columns side by side."""
    return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}


def gram_components(rows: Factors, columns: Factors, *, layerwise: bool) -> Components:
    """Return the (B, B') Gram matrix of every parameter, or their sum."""
    grams = {name: rows[name].gram(columns[name]) for name in columns}
    return grams if layerwise else {TOTAL: sum_in_order(grams.values())}


def combined(components: Components, weights: Mapping[str, float] | None) -> Components:
    """Return the components that a kernel is made of, times their weights; all of them without weights."""
    if weights is None:
        return components
    return {name: components[name] if weight == 1 else components[name] * weight for name, weight in weights.items()}


def sum_in_order(parts: Iterable[torch.Tensor]) -> torch.Tensor:
    """Add tensors from first to last, so that the rounding never depends on anything else."""
    first, *others = parts
    total = first.clone()
    for part in others:
        total += part
    return total


def cosine_normalised(
    block_NM: torch.Tensor, row_diagonal_N: torch.Tensor, column_diagonal_M: torch.Tensor
) -> torch.Tensor:
    """Return K(x, x') / sqrt(K(x, x) K(x', x')), computed in float64; 0 where a sample has no gradient at all."""
    # The outer product first: of a symmetric block it is symmetric to the last bit.
    scale = torch.outer(_inverse_roots(row_diagonal_N), _inverse_roots(column_diagonal_M))
    return scale.mul_(block_NM).to(block_NM.dtype)


def _inverse_roots(diagonal_N: torch.Tensor) -> torch.Tensor:
    roots_N = diagonal_N.double().sqrt()
    return torch.where(roots_N > 0, 1 / roots_N, 0.0)
