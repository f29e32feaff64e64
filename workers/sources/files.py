"""Files that kernels are defined by: graphs, inducing points, labels."""

import hashlib

from ntkpipe.configs.kernels.base import KernelSection
from ntkpipe.configs.kernels.empirical import EmpiricalKernel
from ntkpipe.storage.assets import read_asset


def file_digests(kernel: KernelSection) -> dict[str, str]:
    """Return the SHA-256 of every file that the section of a kernel without a model names, as ``FIELD.KERNEL``."""
    if isinstance(kernel, EmpiricalKernel):
        return {}
    locations = {field: getattr(kernel, field) for field in sorted(kernel.runtime_fields)}
    return {
        f"{field}.{kernel.label}": hashlib.sha256(read_asset(location)).hexdigest()
        for field, location in locations.items()
        if location is not None
    }
