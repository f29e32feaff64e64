"""Exact kernels of a block: products of factors that are computed afresh, shared by all kernels with equal views."""

from collections.abc import Iterator
from dataclasses import replace
from typing import final

import torch

from ntkpipe.configs.kernels.empirical import EmpiricalKernel
from ntkpipe.storage.grid import Block, Shard
from ntkpipe.workers.context import BaseFactors, WorkerContext
from ntkpipe.workers.jacobians.engine import BatchJacobian, Factors, Portion
from ntkpipe.workers.kernels.blocks import (
    Components,
    exact_block,
    exact_diagonal_block,
    in_groups,
    joined_columns,
)
from ntkpipe.workers.kernels.views import View

Strips = dict[object, Components]
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
        self.kernels = context.exact_kernels(members)
        # One view per side: scales belong to a member.
        self._views: dict[object, tuple[View, View]] = {}
        self._apart: set[object] = set()
        for kernel in self.kernels:
            one, other = (context.view(kernel, member) for member in members)
            self._views[one.key] = (one, other)
            if kernel.layerwise or context.is_restricted(kernel):
                self._apart.add(one.key)
        # Between a split and itself, kernels that are not symmetric need both sides of the diagonal.
        self._mirrors = block.rows.split == block.columns.split and not block.on_diagonal
        self._found: tuple[Strips, Strips] = ({}, {})
        for portion in context.portions(self.kernels):
            for total, part in zip(self._found, self._portion(portion), strict=True):
                for key, components in part.items():
                    known = total.get(key)
                    total[key] = (
                        components if known is None else {n: known[n] + value for n, value in components.items()}
                    )

    def components(self, kernel: EmpiricalKernel, *, mirrored: bool) -> Components:
        """Return the components of a kernel, or those of the block's mirror image."""
        return self._found[mirrored][self._context.view(kernel, self._members[0]).key]

    def _portion(self, portion: Portion) -> tuple[Strips, Strips]:
        """Return what one pass gives, for as many rows at a time as may be kept."""
        keys = [key for key, (view, _) in self._views.items() if _is_of(view, portion)]
        step = self._context.spec.passes.row_samples
        rows, whole = self._block.rows, ([], [])  # type: Shard, tuple[list[Strips], list[Strips]]
        for start in range(rows.start, rows.stop, step):
            part = replace(rows, start=start, stop=min(start + step, rows.stop))
            for parts, strip in zip(whole, self._strip(part, portion, keys), strict=True):
                parts.append(strip)
        down, across = whole
        found = {key: _stacked([strip[key] for strip in down]) for key in keys}
        mirror = {key: joined_columns([strip[key] for strip in across]) for key in across[0]}
        return found, mirror

    def _strip(self, rows: Shard, portion: Portion, keys: list[object]) -> tuple[Strips, Strips]:
        """Return the entries between some rows and all columns of the block, and those of the mirror image."""
        same_member = self._members[0] == self._members[1]
        kept = self._kept(rows, portion, self._members[0])
        seen_by_other = kept if same_member or not self._mirrors else list(self._factors(rows, portion, 1))
        found: Strips = {}
        straight: dict[object, list[Components]] = {}
        back: dict[object, list[Components]] = {}
        for key in keys:
            view, _ = self._views[key]
            if rows == self._block.rows and self._block.on_diagonal and same_member and view.symmetric:
                batches = [view.of(group[view.base_key], "rows") for group in kept]
                found[key] = exact_diagonal_block(batches, layerwise=key in self._apart)
            else:
                straight[key] = []
                if self._mirrors and not (same_member and view.symmetric):
                    back[key] = []
        if straight:
            for column in self._column_groups(rows, kept, portion):
                for key, parts in straight.items():
                    parts.append(self._product(key, kept, column[1], mirrored=False))
                for key, parts in back.items():
                    parts.append(self._product(key, seen_by_other, column[0], mirrored=True))
        found |= {key: joined_columns(parts) for key, parts in straight.items()}
        return found, {key: _stacked(parts) for key, parts in back.items()}

    def _product(self, key: object, rows: list[BaseFactors], column: BaseFactors, *, mirrored: bool) -> Components:
        """Return entries between the block's rows and a group of its columns; mirrored with the sides exchanged."""
        one, other = self._views[key]
        apart = key in self._apart
        if not mirrored:
            batches = [one.of(group[one.base_key], "rows") for group in rows]
            return exact_block(batches, other.of(column[other.base_key], "columns"), layerwise=apart)
        left = one.of(column[one.base_key], "rows")
        parts = [exact_block([left], other.of(group[other.base_key], "columns"), layerwise=apart) for group in rows]
        return joined_columns(parts)

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
        key = (rows, portion, member)
        context = self._context
        if context.kept_factors is None or context.kept_factors[0] != key:
            context.kept_factors = None
            context.kept_factors = (key, list(self._factors(rows, portion, 0)))
        return context.kept_factors[1]

    def _factors(self, side: Shard, portion: Portion, eye: int) -> Iterator[BaseFactors]:
        """Yield the factors of groups of samples, under the member of the rows (0) or of the columns (1)."""
        passes = self._context.spec.passes
        engine = self._context.engine(self._members[eye])
        views = [pair[eye] for pair in self._views.values() if _is_of(pair[eye], portion)]
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


def _stacked(parts: list[Components]) -> Components:
    """Return components of rows one below the other."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
