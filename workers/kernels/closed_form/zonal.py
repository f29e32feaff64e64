"""Kernels on the unit sphere that are given by their spectrum, and the spectra of kernels of the cosine."""

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import final

import numpy as np
import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.kernels.dot_products import ZonalConfig
from ntkpipe.workers.kernels.closed_form.base import AbstractClosedForm
from ntkpipe.workers.kernels.closed_form.distances import unit_rows
from ntkpipe.workers.kernels.closed_form.samples import as_vectors, vector_pair
from ntkpipe.workers.kernels.closed_form.tiling import fill


@final
class ZonalKernel(AbstractClosedForm):
    """A sum of Gegenbauer polynomials of the cosine; see :class:`ntkpipe.configs.kernels.dot_products.ZonalConfig`.

    Polynomials come from their recurrence in the degree, which is stable on [-1, 1]: O(N M (d + degrees)) time, O(N M)
    memory, which is the result, and O((N + M) d).
    """

    def __init__(self, config: ZonalConfig) -> None:
        self._eigenvalues = config.eigenvalues

    def block(self, x: torch.Tensor, x2: torch.Tensor | None = None) -> torch.Tensor:
        """Return the kernel between the directions of vectors.

        Raises:
            ConfigError: A vector is zero or has one coordinate only, or the two sets have different numbers of them.
        """
        rows_NX, columns_MX = vector_pair(x, x2)
        units_NX = _on_sphere(rows_NX)
        others_MX = units_NX if columns_MX is None else _on_sphere(columns_MX)
        shares = self._shares(units_NX.shape[1])

        def entries(rows: slice, columns: slice) -> torch.Tensor:
            cosines_RC = (units_NX[rows] @ others_MX[columns].T).clamp_(-1, 1)
            total_RC = torch.zeros_like(cosines_RC)
            for share, values_RC in zip(shares, gegenbauer(cosines_RC, units_NX.shape[1]), strict=False):
                if share:
                    total_RC.add_(values_RC, alpha=share)
            return total_RC

        return fill(len(rows_NX), None if columns_MX is None else len(columns_MX), entries, self.diagonal(x))

    def diagonal(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum of all eigenvalues, each as often as it occurs.

        Raises:
            ConfigError: A vector is zero or has one coordinate only.
        """
        units_NX = _on_sphere(as_vectors(x))
        return units_NX.new_full((len(units_NX),), math.fsum(self._shares(units_NX.shape[1])))

    def _shares(self, dim: int) -> list[float]:
        """Return what each degree contributes to K(x, x)."""
        # A multiplicity alone may exceed what a float holds.
        return [float(Fraction(value) * multiplicity(degree, dim)) for degree, value in enumerate(self._eigenvalues)]


def multiplicity(degree: int, dim: int) -> int:
    """Return the number of linearly independent spherical harmonics of a degree on the sphere in ``dim`` >= 2."""
    lower = math.comb(degree + dim - 3, dim - 1) if degree >= 2 else 0
    return math.comb(degree + dim - 1, dim - 1) - lower


def gegenbauer(cosines: torch.Tensor, dim: int) -> Iterator[torch.Tensor]:
    """Yield the polynomials P_0, P_1, ... of :class:`ZonalConfig` at cosines, without end; each is overwritten later.

    (l + d - 2) P_{l+1} = (2 l + d - 2) u P_l - l P_{l-1}, P_0 = 1, P_1 = u.
    """
    last, here = torch.ones_like(cosines), cosines.clone()
    yield last
    degree = 1
    while True:
        yield here
        above = degree + dim - 2
        last.mul_(-degree / above).addcmul_(cosines, here, value=(degree + above) / above)
        last, here = here, last
        degree += 1


def degree_eigenvalues(
    kappa: Callable[[torch.Tensor], torch.Tensor], dim: int, num_degrees: int, *, num_nodes: int = 1024
) -> torch.Tensor:
    """Return the eigenvalues of a kernel kappa(cosine) on the unit sphere, by the Funk-Hecke formula.

    eigenvalue_l = c int_0^pi kappa(cos t) P_l(cos t) sin(t)^(d-2) dt with c such that kappa = 1 has eigenvalue_0 = 1;
    the operator is f -> E_y[kappa(<x, y>) f(y)] over the uniform distribution. In the angle t, kernels with square
    roots at +-1, as those of ReLU networks, are smooth, and Gauss-Legendre quadrature converges geometrically.

    Args:
        kappa: The kernel of unit vectors as a function of their cosine, entry by entry in float64.
        dim: d >= 2, the number of coordinates.
        num_degrees: How many degrees, from 0; far fewer than ``num_nodes``.
        num_nodes: Of the quadrature.

    Returns:
        (num_degrees,) in float64. sum of eigenvalue_l multiplicity(l, d) over all degrees is kappa(1). A term of this sum
        has an error of about 1e-16 kappa(1) sqrt(multiplicity): in many dimensions, low degrees only can be told.
    """
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    angles_Q = torch.from_numpy((nodes + 1) * (np.pi / 2))
    log_surface = math.lgamma(dim / 2) - math.lgamma((dim - 1) / 2) - math.log(math.pi) / 2
    density_Q = torch.exp(log_surface + (dim - 2) * torch.log(torch.sin(angles_Q)))
    cosines_Q = torch.cos(angles_Q)
    weighted_Q = torch.from_numpy(weights * (np.pi / 2)) * density_Q * kappa(cosines_Q)
    values = zip(range(num_degrees), gegenbauer(cosines_Q, dim), strict=False)
    return torch.stack([weighted_Q @ values_Q for _, values_Q in values])


def _on_sphere(vectors_NX: torch.Tensor) -> torch.Tensor:
    if vectors_NX.shape[1] < 2:
        raise ConfigError("samples have one coordinate; a zonal kernel needs at least two, those of a circle.")
    units_NX, lengths_N = unit_rows(vectors_NX)
    if not bool((lengths_N > 0).all()):
        row = int((lengths_N == 0).nonzero()[0])
        raise ConfigError(f"sample {row} is a zero vector, which has no direction; remove it, or append a constant.")
    return units_NX
