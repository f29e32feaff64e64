"""Samples as vectors."""

import torch

from ntkpipe.configs.errors import ConfigError


def as_vectors(x: torch.Tensor, width: int | None = None) -> torch.Tensor:
    """Return samples as an (N, D) matrix in float64; all axes but the first are flattened.

    Args:
        x: (N, ...) samples.
        width: The D that is expected; None takes any.

    Raises:
        ConfigError: The samples have no coordinates, or not as many as expected.
    """
    if x.ndim < 2 or x.shape[1:].numel() == 0:
        raise ConfigError(
            f"random features need samples of shape (N, D) with D > 0, found {tuple(x.shape)}; "
            "give scalars as one column, x[:, None]."
        )
    vectors_ND = x.reshape(len(x), x.shape[1:].numel()).double()
    if width is not None and vectors_ND.shape[1] != width:
        raise ConfigError(
            f"samples have {vectors_ND.shape[1]} coordinates, but means and scales have {width}; make them agree."
        )
    return vectors_ND
