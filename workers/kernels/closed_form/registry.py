"""From the section of a closed form to the kernel; modules are loaded when a kernel of theirs is first made."""

import importlib
from typing import cast

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.kernels.base import KernelSection
from ntkpipe.workers.kernels.closed_form.base import AbstractClosedForm

_HOMES = {
    "gaussian": "stationary:GaussianKernel",
    "laplace": "stationary:LaplaceKernel",
    "matern": "stationary:MaternKernel",
    "dispersal": "stationary:DispersalKernel",
    "polynomial": "dot_products:PolynomialKernel",
    "cosine": "dot_products:CosineKernel",
    "arc_cosine": "dot_products:ArcCosineKernel",
    "zonal": "zonal:ZonalKernel",
    "kerple": "kerple:KerpleKernel",
    "ntk": "infinite_width:NtkKernel",
    "nngp_limit": "infinite_width:NngpLimitKernel",
    "cntk": "convolutional:ConvolutionalKernel",
    "gntk": "graphs:GraphKernel",
    "gntk_node": "graph_nodes:GraphNodeKernel",
    "signature": "signatures:SignatureKernel",
    "neural_signature": "neural_signatures:NeuralSignatureKernel",
    "deep_kernel_machine": "deep_kernel_machine:DeepKernelMachineKernel",
}


def make_closed_form(config: KernelSection) -> AbstractClosedForm:
    """Return the kernel of a section.

    Raises:
        ConfigError: The section is of no closed form, or a file that it names cannot be used.
    """
    if config.kind not in _HOMES:
        raise ConfigError(f"kernel {config.kind!r} is no closed form. There are: {', '.join(_HOMES)}.")
    module, _, name = _HOMES[config.kind].partition(":")
    return cast(AbstractClosedForm, getattr(importlib.import_module(f"{__package__}.{module}"), name)(config))
