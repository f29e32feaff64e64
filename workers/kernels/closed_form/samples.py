"""Samples as kernels without a model take them: numbers in double precision, vectors, or indices of nodes."""

import math

import torch

from ntkpipe.configs.errors import ConfigError


def as_doubles(x: torch.Tensor) -> torch.Tensor:
    """Return samples in float64; integers, such as pixels of 8 bits, are taken as numbers.

    Raises:
        ConfigError: They are a single number, complex, or one of them is not finite.
    """
    if x.dim() == 0:
        raise ConfigError("samples have shape (N, ...), found a single number.")
    if x.is_complex():
        raise ConfigError(f"samples are real numbers, found {x.dtype}; split them into real and imaginary parts.")
    doubles = x.to(torch.float64)
    if not torch.isfinite(doubles).all():
        sample = int((~torch.isfinite(doubles)).reshape(len(x), -1).any(1).nonzero()[0])
        raise ConfigError(f"sample {sample} has coordinates that are not finite; remove it, or replace them.")
    return doubles


def as_vectors(x: torch.Tensor) -> torch.Tensor:
    """Return samples as (N, d) vectors in float64; all axes but the first are flattened, numbers become vectors of one.

    Raises:
        ConfigError: There are no coordinates, one is not finite, or they are complex.
    """
    width = math.prod(x.shape[1:])
    if x.dim() == 0 or width == 0:
        raise ConfigError(f"samples of shape {tuple(x.shape)} have no coordinates; expected one row per sample.")
    return as_doubles(x).reshape(len(x), width)


def vector_pair(x: torch.Tensor, x2: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return both sets of samples as vectors of one length; None stays None.

    Raises:
        ConfigError: There are no coordinates, the two sets have different ones, one is not finite, or they are complex.
    """
    rows_NX = as_vectors(x)
    if x2 is None:
        return rows_NX, None
    columns_MX = as_vectors(x2)
    if rows_NX.shape[1] != columns_MX.shape[1]:
        raise ConfigError(
            f"samples have {rows_NX.shape[1]} and {columns_MX.shape[1]} coordinates; a kernel takes equally long vectors."
        )
    return rows_NX, columns_MX


def node_indices(x: torch.Tensor, num_nodes: int) -> torch.Tensor:
    """Return samples that are nodes of a graph, (N,) or (N, 1), as (N,) int64.

    Whole numbers of any type are indices: arrays of mixed content are often saved as floats.

    Raises:
        ConfigError: They have another shape, are no whole numbers, or the graph has no such nodes.
    """
    if x.dim() not in (1, 2) or (x.dim() == 2 and x.shape[1] != 1):
        raise ConfigError(
            f"samples are one index of a node each, of shape (N,) or (N, 1); found shape {tuple(x.shape)}."
        )
    flat_N = x.reshape(-1)
    if x.dtype == torch.bool or x.is_complex() or (x.is_floating_point() and bool((flat_N != flat_N.floor()).any())):
        raise ConfigError(f"samples are indices of nodes, found {x.dtype} that are no whole numbers; give integers.")
    if len(flat_N) and not 0 <= float(flat_N.min()) <= float(flat_N.max()) < num_nodes:
        raise ConfigError(
            f"the graph has nodes 0 to {num_nodes - 1}, found indices {flat_N.min().item():g} to "
            f"{flat_N.max().item():g}; check the inputs, or the graph."
        )
    return flat_N.long()
