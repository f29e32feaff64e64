"""How one kernel matrix is named: ``trntk``, or ``trntk@late`` for one member of a model with several."""

from ntkpipe.configs.kernels.base import NAME_PATTERN

REFERENCE_PATTERN = NAME_PATTERN.removesuffix("$") + r"(@[A-Za-z0-9][A-Za-z0-9_.-]*)?$"
