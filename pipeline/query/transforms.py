"""Which components of a kernel are summed, and which transforms are possible, as they are asked for by name."""

import re
from collections.abc import Sequence
from fnmatch import translate
from typing import get_args

from ntkpipe.configs.base import unknown_name
from ntkpipe.configs.errors import ConfigError, NotFoundError
from ntkpipe.pipeline.query.names import Transform
from ntkpipe.storage.records import Geometry, KernelGeometry

LONGEST_PATTERN = 1000
"""Characters; the time that a pattern takes grows with their square. What is longer can only be a name."""

MAX_PATTERNS = 10_000

MAX_TRANSFORMS = 4
"""Applied one after the other. More than two add nothing: the cosine of a cosine is itself, as is a centred centred one."""


def chosen_layers(kernel: KernelGeometry, patterns: Sequence[str]) -> tuple[str, ...]:
    """Return the components that any of some patterns names, in the kernel's order, each once; none for no patterns.

    Args:
        kernel: Whose components are meant.
        patterns: Names of components, or patterns of names as of files: ``layer1.*``.

    Raises:
        NotFoundError: The kernel has no components, or a pattern names none of them.
        ConfigError: They are no list, or too many.
    """
    if isinstance(patterns, str):
        raise ConfigError(f"layers = {patterns!r} must be a list of names or patterns, such as [{patterns!r}].")
    if len(patterns) > MAX_PATTERNS:
        raise ConfigError(f"{len(patterns):,} layers were given; expected at most {MAX_PATTERNS:,} names or patterns.")
    chosen = set[str]()
    for pattern in dict.fromkeys(patterns):
        if not kernel.groups:
            raise NotFoundError(
                f"kernel {kernel.name!r} stores no components, so there is no {pattern!r}. A layerwise kernel has them: set "
                "its option layerwise."
            )
        found = _named(kernel.groups, pattern)
        chosen |= found
        if not found:
            raise NotFoundError(unknown_name(f"component of kernel {kernel.name!r}", pattern, kernel.groups))
    return tuple(group for group in kernel.groups if group in chosen)


def _named(groups: Sequence[str], pattern: str) -> set[str]:
    """Return the components that a name or a pattern names."""
    # A name may itself hold a character that patterns use.
    if pattern in groups or len(pattern) > LONGEST_PATTERN:
        return {pattern}.intersection(groups)
    # Not fnmatch itself, which would keep every pattern that anybody has ever asked with.
    expression = re.compile(translate(pattern))
    return {group for group in groups if expression.match(group)}


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
