"""Which operations on parameters are recorded."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from ntkpipe.workers.jacobians.operations.base import Binder
from ntkpipe.workers.jacobians.operations.convolution import convolution, transposed_convolution
from ntkpipe.workers.jacobians.operations.elementwise import ELEMENTWISE
from ntkpipe.workers.jacobians.operations.embedding import embedding, indexing
from ntkpipe.workers.jacobians.operations.linear import addmm, linear, matmul
from ntkpipe.workers.jacobians.operations.normalisation import (
    batch_norm,
    group_norm,
    instance_norm,
    layer_norm,
    rms_norm,
)

OPERATIONS: dict[Callable[..., Any], Binder] = {
    functional.linear: linear,
    torch.matmul: matmul,
    torch.Tensor.matmul: matmul,
    torch.Tensor.__matmul__: matmul,
    torch.mm: matmul,
    torch.Tensor.mm: matmul,
    torch.addmm: addmm,
    torch.Tensor.addmm: addmm,
    functional.conv1d: convolution(1),
    functional.conv2d: convolution(2),
    functional.conv3d: convolution(3),
    functional.conv_transpose1d: transposed_convolution(1),
    functional.conv_transpose2d: transposed_convolution(2),
    functional.conv_transpose3d: transposed_convolution(3),
    functional.embedding: embedding,
    torch.Tensor.__getitem__: indexing,
    functional.layer_norm: layer_norm,
    functional.rms_norm: rms_norm,
    functional.group_norm: group_norm,
    functional.instance_norm: instance_norm,
    functional.batch_norm: batch_norm,
    **ELEMENTWISE,
}
"""By the function that PyTorch hands to a function mode; modules end up in these, and so do functional calls."""
