"""Look-ups of rows of a table."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from ntkpipe.workers.jacobians.factors.base import AbstractFactor
from ntkpipe.workers.jacobians.factors.rows import RowFactor
from ntkpipe.workers.jacobians.operations.base import Binding, arguments


def embedding(*args: Any, **kwargs: Any) -> Binding | None:
    """Rows by id; the row of the padding has no gradient, as in PyTorch."""
    names = ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
    given = arguments(names, args, kwargs)
    if given.get("max_norm") is not None or given.get("scale_grad_by_freq", False):
        return None  # the first changes the weight, the second depends on the batch
    num_rows, padding = len(given["weight"]), given.get("padding_idx")
    if padding is not None and padding < 0:
        padding += num_rows
    return Binding(
        given["input"], {"weight": given["weight"]}, partial(_factors, num_rows=num_rows, padding=padding), 0
    )


def indexing(table: torch.Tensor, index: Any) -> Binding | None:
    """Rows by id, written as table[ids]."""
    if not isinstance(table, nn.Parameter) or table.dim() != 2 or not isinstance(index, torch.Tensor):
        return None
    if index.dtype not in (torch.int64, torch.int32) or not index.dim():
        return None
    num_rows = len(table)
    rule = partial(_factors, num_rows=num_rows, padding=None)
    return Binding(index.remainder(num_rows), {"weight": table}, rule, 0)


def _factors(
    ids: torch.Tensor, deltas: torch.Tensor, num_samples: int, *, num_rows: int, padding: int | None
) -> Mapping[str, AbstractFactor]:
    ids_BT = ids.reshape(num_samples, -1)
    deltas_BVTQ = deltas.reshape(len(deltas), num_samples, -1, deltas.shape[-1]).transpose(0, 1)
    if padding is not None:
        deltas_BVTQ = deltas_BVTQ.masked_fill((ids_BT == padding)[:, None, :, None], 0.0)
    return {"weight": RowFactor(ids_BT, deltas_BVTQ, num_rows)}
