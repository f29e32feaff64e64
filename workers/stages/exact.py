"""Exact kernels of a block: products of factors that are computed afresh, shared by all kernels with equal views."""

from collections.abc import Hashable, Iterator
from dataclasses import replace
from typing import final

from ntkpipe.configs.kernels.empirical import EmpiricalKernel
from ntkpipe.storage.grid import Block, Shard
from ntkpipe.workers.context import BaseFactors, WorkerContext
from ntkpipe.workers.jacobians.engine import BatchJacobian, Factors, Portion
from ntkpipe.workers.kernels.blocks import (
    Components,
    Seen,
    exact_blocks,
    exact_diagonal_blocks,
    in_groups,
    joined_columns,
    stacked_rows,
)
from ntkpipe.workers.kernels.views import Side, View

Strips = dict[Hashable, Components]
"""Components by the key of the view that they are of."""


@final
class ExactKernels:
    """Components of all exact kernels of a block, seen by one member of the model, or by one for each side.

    Factors of as many rows as the plan allows are kept, and serve the next block with the same rows; columns stream past.

    Args:
        context: Of the worker.
        block: To be computed.
        members: Of the model, for rows and for columns; equal but for cross kernels.
    """

    def __init__(self, context: WorkerContext, block: Block, members: tuple[str, str]) -> None:
        self._context = context
        self._block = block
        self._members = members
        self.kernels = context.kernels.exact(members)
        # One view per side: scales belong to a member.
        self._views: dict[Hashable, tuple[View, View]] = {}
        self._apart: set[Hashable] = set()
        self._names: dict[Hashable, set[str]] = {}
        for kernel in self.kernels:
            one, other = (context.kernels.view(kernel, member) for member in members)
            self._views[one.key] = (one, other)
            self._names.setdefault(one.key, set()).update(context.kernels.weights(kernel))
            if kernel.layerwise or context.kernels.is_restricted(kernel):
                self._apart.add(one.key)
        # Between a split and itself, kernels that are not symmetric need both sides of the diagonal.
        self._mirrors = block.rows.split == block.columns.split and not block.on_diagonal
        self._found: tuple[Strips, Strips] = ({}, {})
        for portion in context.kernels.portions(self.kernels):
            for total, part in zip(self._found, self._portion(portion), strict=True):
                for key, components in part.items():
                    known = total.get(key)
                    total[key] = (
                        components if known is None else {n: known[n] + value for n, value in components.items()}
                    )

    def components(self, kernel: EmpiricalKernel, *, mirrored: bool) -> Components:
        """Return the components of a kernel, or those of the block's mirror image."""
        return self._found[mirrored][self._context.kernels.view(kernel, self._members[0]).key]

    def _portion(self, portion: Portion) -> tuple[Strips, Strips]:
        """Return what one pass gives, for as many rows at a time as may be kept."""
        keys = [key for key, (view, _) in self._views.items() if _is_of(view, portion)]
        step = self._context.passes.row_samples
        rows = self._block.rows
        down: list[Strips] = []
        across: list[Strips] = []
        for start in range(rows.start, rows.stop, step):
            part = replace(rows, start=start, stop=min(start + step, rows.stop))
            strip, mirror = self._strip(part, portion, keys)
            down.append(strip)
            across.append(mirror)
        found = {key: stacked_rows([strip[key] for strip in down]) for key in keys}
        return found, {key: joined_columns([strip[key] for strip in across]) for key in across[0]}

    def _strip(self, rows: Shard, portion: Portion, keys: list[Hashable]) -> tuple[Strips, Strips]:
        """Return the entries between some rows and all columns of the block, and those of the mirror image."""
        kept = self._kept(rows, portion, self._members[0])
        whole_diagonal = self._block.on_diagonal and rows == self._block.rows
        once = [key for key in keys if whole_diagonal and self._is_symmetric(key)]
        straight = [key for key in keys if key not in once]
        back = [key for key in straight if self._mirrors and not self._is_symmetric(key)]
        found: Strips = {}
        if once:
            found |= exact_diagonal_blocks([self._seen(group, once, "rows") for group in kept], self._apart)
        if not straight:
            return found, {}
        batches = [self._seen(group, straight, "rows") for group in kept]
        by_other = kept
        if back and self._members[0] != self._members[1]:
            by_other = list(self._factors(rows, portion, 1))
        others = [self._seen(group, back, "columns") for group in by_other]
        columns: list[Strips] = []
        mirrors: list[Strips] = []
        for seen_by_rows, seen_by_columns in self._column_groups(rows, kept, portion):
            columns.append(exact_blocks(batches, self._seen(seen_by_columns, straight, "columns"), self._apart))
            left = self._seen(seen_by_rows, back, "rows")
            strips = [exact_blocks([left], other, self._apart) for other in others if back]
            mirrors.append({key: joined_columns([strip[key] for strip in strips]) for key in back})
        found |= {key: joined_columns([part[key] for part in columns]) for key in straight}
        return found, {key: stacked_rows([part[key] for part in mirrors]) for key in back}

    def _seen(self, base: BaseFactors, keys: list[Hashable], side: Side) -> Seen:
        """Return the factors of a group of samples through several views, on one side of the product."""
        seen: dict[Hashable, Factors] = {}
        for key in keys:
            view, names = self._views[key][0 if side == "rows" else 1], self._names[key]
            wanted = {name: factor for name, factor in base[view.base_key].items() if name in names}
            seen[key] = view.of(wanted, side)
        return seen

    def _is_symmetric(self, key: Hashable) -> bool:
        return self._members[0] == self._members[1] and self._views[key][0].symmetric

    def _column_groups(
        self, rows: Shard, kept: list[BaseFactors], portion: Portion
    ) -> Iterator[tuple[BaseFactors, BaseFactors]]:
        """Yield groups of the block's columns, as seen by the member of the rows and by that of the columns."""
        same_member = self._members[0] == self._members[1]
        if same_member and self._block.on_diagonal and rows == self._block.rows:
            yield from ((group, group) for group in kept)
            return
        columns = self._factors(self._block.columns, portion, 1)
        if same_member or not self._mirrors:
            yield from ((group, group) for group in columns)
            return
        yield from zip(self._factors(self._block.columns, portion, 0), columns, strict=True)

    def _kept(self, rows: Shard, portion: Portion, member: str) -> list[BaseFactors]:
        """Return the factors of rows; kept for the next task, which usually has the same rows."""
        keys = frozenset(one.base_key for one, _ in self._views.values())
        key = (rows, portion, member, keys, self._context.passes)
        context = self._context
        if context.kept_factors is None or context.kept_factors[0] != key:
            context.kept_factors = None
            context.kept_factors = (key, list(self._factors(rows, portion, 0)))
        return context.kept_factors[1]

    def _factors(self, side: Shard, portion: Portion, which: int) -> Iterator[BaseFactors]:
        """Yield the factors of groups of samples, under the member of the rows (0) or of the columns (1)."""
        passes = self._context.passes
        engine = self._context.engine(self._members[which])
        views = [pair[which] for pair in self._views.values() if _is_of(pair[which], portion)]
        step = max(passes.gram_samples, passes.batch_size)
        for start in range(side.start, side.stop, step):
            group = replace(side, start=start, stop=min(start + step, side.stop))
            batches = [engine.run(inputs, portion, labels) for inputs, labels in self._context.batches(group)]
            yield {view.base_key: _joined(view, batches, len(group)) for view in views}


def _joined(view: View, batches: list[BatchJacobian], num_samples: int) -> Factors:
    return next(in_groups((view.base(batch) for batch in batches), num_samples))


def _is_of(view: View, portion: Portion) -> bool:
    """Return whether a pass gives what a view looks at."""
    functional = view.definition.functional
    return functional in portion.functionals if functional is not None else bool(portion.modules)
