"""Whether what a manifest says of a run's arrays can be true. A run may come from anybody, so it is checked before it is used."""

from typing import TYPE_CHECKING

from ntkpipe.configs.kernels.derived import CentredConfig, PosteriorConfig, SumConfig

if TYPE_CHECKING:
    from ntkpipe.storage.records import Geometry, KernelGeometry


def check_geometry(geometry: "Geometry") -> None:
    """Refuse names that are not there, and numbers that do not fit each other.

    Raises:
        ValueError: Says what is wrong.
    """
    for split in (geometry.train_split, *geometry.paired_splits, *_predicted(geometry)):
        if split not in geometry.splits:
            raise ValueError(f"there is no split {split!r}")
    if len({kernel.name for kernel in geometry.kernels}) < len(geometry.kernels):
        raise ValueError("two kernels have the same name")
    if len(geometry.solution_targets) != len(geometry.solutions):
        raise ValueError(
            f"{len(geometry.solutions)} solutions have {len(geometry.solution_targets)} numbers of targets"
        )
    if len(geometry.solution_splits) not in (0, len(geometry.solutions)):
        raise ValueError(
            f"{len(geometry.solutions)} solutions predict on {len(geometry.solution_splits)} lists of splits"
        )
    for kernel in geometry.kernels:
        _check_kernel(geometry, kernel)
    _check_ancestry(geometry)


def _predicted(geometry: "Geometry") -> list[str]:
    return [split for splits in geometry.solution_splits for split in splits]


def _check_kernel(geometry: "Geometry", kernel: "KernelGeometry") -> None:
    if kernel.width not in (1, geometry.num_outputs):
        raise ValueError(
            f"kernel {kernel.name!r} has {kernel.width} rows per sample, and there are {geometry.num_outputs} outputs"
        )
    if kernel.cross and len(kernel.members) != 2:
        raise ValueError(f"kernel {kernel.name!r} is between {len(kernel.members)} members")
    if kernel.derived is None:
        return
    if isinstance(kernel.derived, CentredConfig | PosteriorConfig) and kernel.statistic_dim is None:
        raise ValueError(f"kernel {kernel.name!r} keeps nothing of samples, which it is made with")
    if not kernel.parents or kernel.groups or kernel.members:
        raise ValueError(
            f"kernel {kernel.name!r} is made of {len(kernel.parents)} others, and has components or members"
        )
    for parent in kernel.parents:
        if parent not in geometry.references:
            raise ValueError(f"kernel {kernel.name!r} is made of {parent!r}, which there is not")
        if geometry.matrix(parent)[0].width != kernel.width:
            raise ValueError(f"kernel {kernel.name!r} is made of {parent!r}, whose rows are others")
    if isinstance(kernel.derived, SumConfig):
        _check_terms(geometry, kernel, kernel.derived)


def _check_terms(geometry: "Geometry", kernel: "KernelGeometry", of: SumConfig) -> None:
    if len(of.terms) != len(kernel.parents):
        raise ValueError(f"kernel {kernel.name!r} has {len(of.terms)} terms of {len(kernel.parents)} kernels")
    for term, parent in zip(of.terms, kernel.parents, strict=True):
        if term.component is not None and term.component not in geometry.matrix(parent)[0].groups:
            raise ValueError(f"kernel {kernel.name!r} is made of component {term.component!r}, which there is not")


def _check_ancestry(geometry: "Geometry") -> None:
    """Refuse kernels that are made of themselves."""
    remaining = {
        kernel.name: {parent.partition("@")[0] for parent in kernel.parents}
        for kernel in geometry.kernels
        if kernel.derived is not None
    }
    while remaining:
        ready = [name for name, parents in remaining.items() if not parents & remaining.keys()]
        if not ready:
            raise ValueError(f"kernels are made of themselves: {', '.join(sorted(remaining))}")
        for name in ready:
            del remaining[name]
