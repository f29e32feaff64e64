"""The Walsh-Hadamard transform."""

from functools import lru_cache

import torch

SIDE = 64
"""Six levels of a transform at a time are one product with a small matrix: fewer passes over memory than butterflies."""


def hadamard(vectors: torch.Tensor) -> torch.Tensor:
    """Return sum_j H_ij v_j with H_ij = (-1)^popcount(i and j) along the last axis; unscaled, differentiable.

    H is a Kronecker product of small ones. Each step multiplies by one of them on the last axis and moves that axis to the
    front; after all steps the axes are back in their order. O(n log n) operations per vector of n numbers.

    Args:
        vectors: (..., n) of any floating-point type, n a power of two.
    """
    length = vectors.shape[-1]
    assert length.bit_count() == 1, "the length of a Hadamard transform is a power of two"
    transformed_BN, left = vectors.reshape(-1, length), length
    while left > 1:
        side = min(left, SIDE)
        small = _matrix(side, vectors.dtype, vectors.device)
        transformed_BN = (transformed_BN.view(-1, length // side, side) @ small).transpose(1, 2).reshape(-1, length)
        left //= side
    return transformed_BN.view(vectors.shape)


@lru_cache(maxsize=32)
def _matrix(side: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return Sylvester's matrix."""
    # A tensor that is first made in inference mode could not take part in a backward pass later.
    with torch.inference_mode(False):
        if side == 1:
            return torch.ones(1, 1, dtype=dtype, device=device)
        half = _matrix(side // 2, dtype, device)
        return torch.cat([torch.cat([half, half], dim=1), torch.cat([half, -half], dim=1)])
