"""Where the batch is in what a layer sees.

A layer may be fed (B, ...), with positions folded into the batch (B L, ...), with time first, (L, B, ...) or (L B, ...),
or with something that all samples share, (1, ...) or no batch at all. The layout of a parameter is found out by trying
and proving (see ``coverage``); at run time it is known, and never guessed from sizes that may agree by chance.
"""

import torch

from ntkpipe.workers.jacobians.routes import Layout


def batch_major(
    values: torch.Tensor, num_samples: int, layout: Layout, num_feature_axes: int, axis: int = 0
) -> torch.Tensor | None:
    """Return values with B or B L as an axis, samples slowest; None if they cannot have this layout.

    Args:
        values: What a layer saw, or gradients at its output.
        num_samples: B.
        layout: Known of the layer's parameters.
        num_feature_axes: How many of the last axes are features, not positions.
        axis: The first axis of positions; those before it, of output vectors, are left alone.
    """
    num_position_axes = values.dim() - num_feature_axes - axis
    if num_position_axes < 1:
        return None
    leading = values.shape[axis]
    if layout != "batch-second":
        return values if leading % num_samples == 0 and leading else None
    if num_position_axes > 1:
        return values.movedim(axis + 1, axis) if values.shape[axis + 1] == num_samples else None
    if leading % num_samples:
        return None
    folded: torch.Tensor = values.unflatten(axis, (-1, num_samples))
    return folded.transpose(axis, axis + 1).flatten(axis, axis + 1)


def expanded(output: torch.Tensor, num_samples: int) -> torch.Tensor:
    """Return what all samples share once for every sample; its gradients are then those of single samples."""
    if output.dim() > 1 and output.shape[0] == 1:
        return output.expand(num_samples, *output.shape[1:])
    return output.unsqueeze(0).expand(num_samples, *output.shape)
