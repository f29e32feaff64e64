"""Which components of a kernel are summed, and which transforms are possible, as they are asked for by name."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import get_args

from ntkpipe.configs.base import unknown_name
from ntkpipe.configs.errors import ConfigError, NotFoundError
from ntkpipe.pipeline.query.names import Transform
from ntkpipe.storage.records import Geometry, KernelGeometry

MAX_TRANSFORMS = 4
"""Applied one after the other. More than two add nothing: the cosine of a cosine is itself, as is a centred centred one."""


def chosen_layers(kernel: KernelGeometry, patterns: Sequence[str]) -> tuple[str, ...]:
    """Return the components that any of some patterns names, in the kernel's order, each once; none for no patterns.

    Args:
        kernel: Whose components are meant.
        patterns: Names of components, or patterns of names as of files: ``layer1.*``.

    Raises:
        NotFoundError: The kernel has no components, or a pattern names none of them.
    """
    if isinstance(patterns, str):
        raise ConfigError(f"layers = {patterns!r} must be a list of names or patterns, such as [{patterns!r}].")
    for pattern in patterns:
        if not kernel.groups:
            raise NotFoundError(
                f"kernel {kernel.name!r} stores no components, so there is no {pattern!r}. A layerwise kernel has them: set "
                "its option layerwise."
            )
        if pattern not in kernel.groups and not any(fnmatchcase(group, pattern) for group in kernel.groups):
            raise NotFoundError(unknown_name(f"component of kernel {kernel.name!r}", pattern, kernel.groups))
    # A name may itself hold a character that patterns use.
    return tuple(
        group
        for group in kernel.groups
        if any(
            group == pattern or (pattern not in kernel.groups and fnmatchcase(group, pattern)) for pattern in patterns
        )
    )


def checked_transforms(kernel: KernelGeometry, transforms: Sequence[str]) -> tuple[Transform, ...]:
    """Return transforms, if a kernel can be transformed.

    Raises:
        ConfigError: One is not known, there are too many, or the kernel is not a symmetric one of samples.
    """
    if isinstance(transforms, str):
        raise ConfigError(f"transforms = {transforms!r} must be a list, such as [{transforms!r}].")
    known: dict[str, Transform] = {name: name for name in get_args(Transform)}
    for name in transforms:
        if name not in known:
            raise ConfigError(unknown_name("transform", name, known))
    if len(transforms) > MAX_TRANSFORMS:
        raise ConfigError(f"{len(transforms)} transforms were given; expected at most {MAX_TRANSFORMS}.")
    if transforms and (kernel.width > 1 or not kernel.symmetric):
        # What derived kernels refuse too: K(x, x) and the mean of a row would have another meaning.
        what = "is of (sample, output) pairs" if kernel.width > 1 else "is not symmetric"
        raise ConfigError(
            f"kernel {kernel.name!r} {what}, so it cannot be {' and '.join(transforms)}. Read it as it is."
        )
    return tuple(known[name] for name in transforms)


def is_mirrored(geometry: Geometry, kernel: KernelGeometry, pair: tuple[str, str]) -> bool:
    """Return whether a matrix between two splits can only be read as the transpose of the one that is stored."""
    return pair not in geometry.pairs and kernel.symmetric and pair[::-1] in geometry.pairs
