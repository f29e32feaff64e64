"""Floating point operations of an entry of a kernel that is a formula. Plain arithmetic: importing this needs no torch.

Counts follow the algorithms; an exponential or an arc cosine counts as twenty. They order formulas by their price, and
a calibration finds out how fast they really are.
"""

from typing import Final

from ntkpipe.configs.kernels.base import KernelSection
from ntkpipe.configs.kernels.infinite_width import NngpLimitConfig, NtkConfig
from ntkpipe.configs.kernels.structured import (
    ConvolutionalConfig,
    DeepKernelMachineConfig,
    GraphConfig,
    GraphNodeConfig,
    NeuralSignatureConfig,
    SignatureConfig,
)
from ntkpipe.workers.solvers.prediction import FORMULA_FLOPS

LAYER_FLOPS: Final = 60.0
"""Of a layer of an infinitely wide network for an entry: a root, an arc cosine and its neighbours."""

CELL_FLOPS: Final = 12.0
"""Of a cell of the grid that a signature kernel is the corner of."""


def formula_flops(kernel: KernelSection, sample_size: int) -> float:
    """Return the operations of an entry.

    Args:
        kernel: A closed form.
        sample_size: Numbers in a sample. How they are cut into positions, nodes or steps is not known here: each is
            taken for one of its own, which is an upper bound.
    """
    inner = 2.0 * sample_size + FORMULA_FLOPS
    match kernel:
        case NtkConfig() | NngpLimitConfig():
            return inner + kernel.depth * LAYER_FLOPS
        case DeepKernelMachineConfig():
            return inner + kernel.depth * LAYER_FLOPS
        case ConvolutionalConfig():
            pairs = float(sample_size) ** (2 if kernel.head == "gap" else 1)
            return inner + kernel.depth * pairs * (2 * kernel.filter_size + LAYER_FLOPS)
        case GraphConfig():
            pairs = float(sample_size)
            return inner + kernel.num_blocks * pairs * (4 + kernel.num_mlp_layers * LAYER_FLOPS)
        case GraphNodeConfig():
            return inner + kernel.num_blocks * kernel.num_mlp_layers * LAYER_FLOPS
        case SignatureConfig() | NeuralSignatureConfig():
            cells = float(sample_size) * float(4 ** (kernel.dyadic_order or 0))
            return inner + cells * CELL_FLOPS
    return inner
