"""Which matrices the kernels of a run are, by the reference that names them, and what is known of them beforehand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ntkpipe.configs.base import unknown_name
from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.kernels.derived import (
    WITH_STATISTICS,
    CentredConfig,
    DerivedConfig,
    EnsembleConfig,
    NormalisedConfig,
    PosteriorConfig,
    ScaledConfig,
    SumConfig,
)
from ntkpipe.configs.kernels.empirical import EmpiricalKernel
from ntkpipe.configs.kernels.union import KernelConfig


@dataclass(frozen=True, slots=True)
class MatrixTraits:
    """What is known of a kernel matrix before it is computed."""

    symmetric: bool = True
    """Whether K(x, x') = K(x', x)."""
    per_output: bool = False
    """Whether rows and columns are (sample, output) pairs."""
    level: int = 0
    """How many passes over other matrices it needs, one after the other."""
    components: bool = False
    """Whether it is stored in components too."""
    diagonal: bool = True
    """Whether K(x, x) is known for the samples of every split."""


def matrix_traits(kernels: Sequence[KernelConfig], members: Sequence[str]) -> dict[str, MatrixTraits]:
    """Return every matrix of a run, in the order of its kernels.

    Args:
        kernels: Of the run.
        members: Of the model; empty for a model on its own.

    Raises:
        ConfigError: A derived kernel names one that is not listed before it, or that it cannot be made of.
    """
    found: dict[str, MatrixTraits] = {}
    for kernel in kernels:
        if isinstance(kernel, DerivedConfig):
            found[kernel.label] = _derived(kernel, found, members)
        elif isinstance(kernel, EmpiricalKernel):
            _check_members(kernel, members)
            symmetric = kernel.cross is None and kernel.kind != "signgd_asym"
            scalar = kernel.kind != "full"
            traits = MatrixTraits(symmetric, not scalar, components=kernel.layerwise, diagonal=symmetric and scalar)
            names = [f"{kernel.label}@{m}" for m in members] if members and kernel.cross is None else [kernel.label]
            found |= dict.fromkeys(names, traits)
        else:
            found[kernel.label] = MatrixTraits()
    return found


def parents_of(kernel: DerivedConfig, members: Sequence[str]) -> tuple[str, ...]:
    """Return the references of the matrices that a derived kernel is made of, one per term."""
    if isinstance(kernel, EnsembleConfig):
        return tuple(f"{kernel.of}@{member}" for member in kernel.members or members)
    return kernel.references


def _derived(kernel: DerivedConfig, known: Mapping[str, MatrixTraits], members: Sequence[str]) -> MatrixTraits:
    parents = parents_of(kernel, members)
    if not parents:
        raise ConfigError(f"kernel {kernel.label!r} averages over members, but model.members names none.")
    for reference in parents:
        if reference not in known:
            raise ConfigError(f"kernel {kernel.label!r}: {unknown_name('kernel', reference, known)}")
    traits = [known[reference] for reference in parents]
    symmetric, per_output = all(t.symmetric for t in traits), traits[0].per_output
    if any(t.per_output != per_output for t in traits):
        raise ConfigError(f"kernel {kernel.label!r} joins kernels of samples with kernels of (sample, output) pairs.")
    if isinstance(kernel, NormalisedConfig | CentredConfig | PosteriorConfig) and (per_output or not symmetric):
        what = "is of (sample, output) pairs" if per_output else "is not symmetric"
        raise ConfigError(f"kernel {kernel.label!r} cannot be {kernel.kind}: {kernel.of!r} {what}.")
    diagonal = all(t.diagonal for t in traits) and symmetric and not per_output
    if isinstance(kernel, ScaledConfig) and kernel.factor is None and not diagonal:
        raise ConfigError(f"kernel {kernel.label!r}: K(x, x) of {kernel.of!r} is not stored; give a factor.")
    if isinstance(kernel, NormalisedConfig) and not diagonal:
        raise ConfigError(
            f"kernel {kernel.label!r}: K(x, x) of {kernel.of!r} is not stored, because it is a sum of components. Give the "
            "components as a kernel of their own, with its option parameters."
        )
    if isinstance(kernel, SumConfig):
        for term in kernel.terms:
            if term.component is not None and not known[term.of].components:
                raise ConfigError(f"kernel {kernel.label!r}: {term.of!r} has no components; set its layerwise: true.")
        diagonal = diagonal and all(term.component is None for term in kernel.terms)
    level = max(t.level for t in traits) + (kernel.kind in WITH_STATISTICS)
    return MatrixTraits(symmetric, per_output, level, diagonal=diagonal)


def _check_members(kernel: EmpiricalKernel, members: Sequence[str]) -> None:
    for member in kernel.cross or ():
        if member not in members:
            raise ConfigError(f"kernel {kernel.label!r}: {unknown_name('member', member, members)}")
