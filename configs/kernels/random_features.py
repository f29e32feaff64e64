"""Random feature maps: kernels that are estimated without bias by inner products of K random features per sample."""

import math
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from ntkpipe.configs.kernels.base import KernelSection
from ntkpipe.configs.locations import Location

Coupling = Literal["iid", "orthogonal", "simplex", "simplex_plus"]
"""How the directions of the frequencies in one block of D depend on each other; D is the dimension of a sample.

``iid``: not at all. ``orthogonal``: at right angles (Yu et al. 2016). ``simplex``: as far apart as D directions can be,
at equal angles with sum zero. ``simplex_plus``: such that the frequencies themselves, whose lengths differ, sum to zero
(both Reid et al. 2023). Each frequency alone has the same law in all four.
"""

Frequencies = Literal["dense", "fastfood"]
"""``dense``: a (frequencies, D) matrix. ``fastfood``: products of Hadamard and diagonal matrices and a permutation (Le,
Sarlos, Smola 2013): O(log D) instead of O(D) operations per feature and O(1) numbers instead of D."""


class RandomFeaturesSection(KernelSection):
    """What all random feature maps have."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Two seeds give independent maps."""


class SizedRandomFeatures(RandomFeaturesSection):
    """A random feature map whose number of features is free."""

    dim: int = Field(1024, ge=1, lt=2**31)
    """K, the number of features of a sample; the variance of an estimate falls as 1/K."""


class FourierFeaturesConfig(SizedRandomFeatures):
    """Pairs [cos(w_j . x), sin(w_j . x)] / sqrt(K / 2) with frequencies from a stationary kernel's spectral density.

    ============  =======================================================================  =============================
    ``of``        K(x, x'), d = |x - x'|                                                   frequencies
    ============  =======================================================================  =============================
    ``gaussian``  exp(-d^2 / (2 bandwidth^2))                                              normal
    ``laplace``   exp(-d / bandwidth), d in the norm ``l2`` or ``l1``                      Cauchy, or one per coordinate
    ``matern``    2^(1-nu) / Gamma(nu) s^nu K_nu(s), s = sqrt(2 nu) d / bandwidth          Student t, 2 nu degrees
    ============  =======================================================================  =============================

    Estimates are unbiased and K(x, x) is exactly 1. With independent frequencies the variance of an entry is
    ((1 + k(2 delta)) / 2 - k(delta)^2) / (K / 2), delta = x - x'. For the Gaussian kernel, orthogonal ones improve on
    it up to distances of about two bandwidths, most of all in few dimensions, and change nothing much beyond. Simplex
    couplings reduce the error of positive features; of these ones they reduce it too, but less than orthogonal ones.
    Fast-food frequencies have the right law one by one, but pairs of a block are less spread than independent ones: at
    distances below a bandwidth their variance is up to twice as large, from three bandwidths on it is the same, and for
    samples that differ in one coordinate only it is smaller.
    Rahimi, Recht 2007; Yu et al. 2016; Le, Sarlos, Smola 2013.
    """

    kind: Literal["fourier_features"] = "fourier_features"
    of: Literal["gaussian", "laplace", "matern"] = "gaussian"
    """The kernel that is estimated."""
    bandwidth: float = Field(1.0, gt=0)
    """The distance, in units of the samples, over which the kernel falls off."""
    norm: Literal["l1", "l2"] = "l2"
    """Which distance ``laplace`` is a function of."""
    nu: float = Field(1.5, gt=0, le=100)
    """Smoothness of ``matern``: 0.5 is the Laplace kernel, large values approach the Gaussian one."""
    coupling: Coupling = "iid"
    """How frequencies depend on each other; all but ``iid`` need a kernel of the Euclidean distance."""
    frequencies: Frequencies = "dense"
    """How frequencies are made and applied."""

    @model_validator(mode="after")
    def _options_fit_the_kernel(self) -> "FourierFeaturesConfig":
        if self.dim % 2:
            raise ValueError(f"dim = {self.dim} must be even: features are pairs of a cosine and a sine")
        if self.departs("nu") and self.of != "matern":
            raise ValueError(f"nu is an option of matern, not of {self.of}; leave it out")
        if self.norm == "l1":
            self._check_l1()
        if self.coupling.startswith("simplex") and self.of != "gaussian":
            raise ValueError(f"coupling {self.coupling!r} is for gaussian only; choose orthogonal or iid for {self.of}")
        if self.frequencies == "fastfood" and self.coupling != "iid":
            raise ValueError("fast-food frequencies have a coupling of their own; leave coupling out")
        return self

    def _check_l1(self) -> None:
        if self.of != "laplace":
            raise ValueError(f"norm l1 is an option of laplace, not of {self.of}; leave it out")
        if self.coupling != "iid" or self.frequencies != "dense":
            raise ValueError(
                "the frequencies of the Laplace kernel in the l1 norm have no rotational symmetry; "
                "only coupling iid and dense frequencies are possible"
            )


class PositiveFeaturesConfig(SizedRandomFeatures):
    """Positive features exp(w_j . x - |x|^2) / sqrt(K) of normal w_j, with x divided by ``bandwidth``.

    ============  =================================  =======================================
    ``of``        K(x, x')                           feature, up to 1 / sqrt(K)
    ============  =================================  =======================================
    ``gaussian``  exp(-|x - x'|^2 / 2)               exp(w_j . x - |x|^2)
    ``softmax``   exp(<x, x'>)                       exp(w_j . x - |x|^2 / 2)
    ============  =================================  =======================================

    Estimates are unbiased and never negative, at the price of a variance that grows with |x + x'|: with independent w_j
    it is (exp(2 |x + x'|^2 - 2 |x|^2 - 2 |x'|^2) - exp(-|x - x'|^2)) / K for the Gaussian kernel. The better the
    frequencies of a block cancel, the smaller it is: simplex_plus <= simplex <= orthogonal <= iid. K should be a
    multiple of the dimension of a sample: only whole blocks cancel.
    Choromanski et al. 2021; Reid et al. 2023.
    """

    kind: Literal["positive_features"] = "positive_features"
    of: Literal["gaussian", "softmax"] = "gaussian"
    """The kernel that is estimated."""
    bandwidth: float = Field(1.0, gt=0)
    """What samples are divided by; the square of it is the temperature of ``softmax``."""
    coupling: Coupling = "simplex"
    """How frequencies depend on each other."""


class SpectralMixtureFeaturesConfig(SizedRandomFeatures):
    """Random features of a kernel whose spectral density is a mixture of C normal ones, w = mean_c + scale_c e.

    ============  =================================================================================================
    ``features``  K(x, x')
    ============  =================================================================================================
    ``fourier``   sum_c weight_c cos(<mean_c, x - x'>) exp(-|scale_c (x - x')|^2 / 2)
    ``positive``  sum_c weight_c exp(<mean_c, x + x'> + |scale_c (x + x')|^2 / 2 - |x|^2 / 2 - |x'|^2 / 2)
    ============  =================================================================================================

    Every component has an equal share of the features, [cos, sin](w . x) or exp(w . x - |x|^2 / 2) times
    sqrt(weight_c C / count), so that weights are learnable and no component is missed by chance. One component of mean
    0 and scale 1 / bandwidth is the Gaussian kernel, and its positive variant with scale 1 is exp(<x, x'>). The
    parameters are learned by :class:`ntkpipe.workers.kernels.random_features.spectral_mixture.SpectralMixture`.
    Wilson, Adams 2013; Chowdhury et al. 2022.
    """

    kind: Literal["spectral_mixture_features"] = "spectral_mixture_features"
    weights: tuple[float, ...] = Field(min_length=1)
    """One positive number per component; for ``fourier`` their sum is K(x, x)."""
    means: tuple[tuple[float, ...], ...]
    """Per component, one number for every coordinate of a sample."""
    scales: tuple[tuple[float, ...], ...]
    """Per component, one positive standard deviation for every coordinate of a sample."""
    features: Literal["fourier", "positive"] = "fourier"
    """Which of the two kernels."""
    frequencies: Frequencies = "dense"
    """How the normal numbers e are made and applied."""

    @model_validator(mode="after")
    def _components_agree(self) -> "SpectralMixtureFeaturesConfig":
        num, widths = len(self.weights), {len(row) for row in (*self.means, *self.scales)}
        if len(self.means) != num or len(self.scales) != num:
            raise ValueError(f"{num} weights, {len(self.means)} means and {len(self.scales)} scales: give one each")
        if len(widths) != 1 or 0 in widths:
            raise ValueError(f"means and scales have lengths {sorted(widths)}; all must be the dimension of a sample")
        numbers = (*self.weights, *(number for row in (*self.means, *self.scales) for number in row))
        if not all(map(math.isfinite, numbers)):
            raise ValueError("weights, means and scales must be finite")
        if min(self.weights) <= 0 or min(min(row) for row in self.scales) <= 0:
            raise ValueError("weights and scales must be positive; leave a component of weight 0 out")
        step = num * (2 if self.features == "fourier" else 1)
        if self.dim % step:
            raise ValueError(f"dim = {self.dim} must be a multiple of {step}, so that components share it equally")
        return self


class UniversalFeaturesConfig(SizedRandomFeatures):
    """Features whose inner products estimate f(scale <x, x'> + offset), for f with a known Fourier transform.

    ============  ===========================  ==================================================
    ``function``  f(t)                         frequencies s
    ============  ===========================  ==================================================
    ``cosine``    cos(t)                       1
    ``sine``      sin(t)                       1
    ``gaussian``  exp(-t^2 / 2)                absolute values of normal numbers
    ``sinc``      sin(t) / t                   uniform in (0, 1)
    ``erf``       erf(t)                       squares of normal numbers
    ``exp``       exp(t)                       none: plain positive features
    ============  ===========================  ==================================================

    f(t) = Re E[c(s) exp(i s t)], and exp(i s <x, x'>) is the mean of phi(x) phi(x') for normal g, where phi(x) =
    exp(a g . x - a^2 |x|^2 / 2) and a^2 = i s. The real part of a product of complex features is a difference of two
    real ones, so that K / 2 features enter inner products negatively; ``exp`` has none of them. The estimate need not
    be positive semi-definite, even where f is. Its variance grows as exp(s |x + x'|^2) / K, at scale one: samples
    should not be much longer than 1 / 2. Sehanobish et al. 2024 (scalable neural network kernels).
    """

    kind: Literal["universal_features"] = "universal_features"
    function: Literal["cosine", "sine", "gaussian", "sinc", "erf", "exp"] = "gaussian"
    """f."""
    scale: float = Field(1.0, gt=0)
    """Factor of the inner product."""
    offset: float = Field(0.0)
    """Added to the inner product."""
    coupling: Literal["iid", "orthogonal"] = "iid"
    """How the normal vectors g depend on each other."""

    @model_validator(mode="after")
    def _pairs_are_whole(self) -> "UniversalFeaturesConfig":
        if self.function != "exp" and self.dim % 2:
            raise ValueError(f"dim = {self.dim} must be even: a complex feature is two real ones")
        return self


class GraphWalkFeaturesConfig(RandomFeaturesSection):
    """Features of the nodes of a graph from random walks; samples are indices of nodes.

    With U = sigma^2 D^(-1/2) W D^(-1/2), W the weights of the edges and D their sums at the nodes:

    ==================  ==============================  ==============================
    ``function``        K                               feature of a visit at step l
    ==================  ==============================  ==============================
    ``exponential``     exp(U)                          1 / (2^l l!)
    ``inverse``         (1 - U)^-1                      (2 l - 1)!! / (2 l)!!
    ``inverse_square``  (1 - U)^-2                      1
    ``square``          (1 + U)^2                       1 for l <= 1
    ==================  ==============================  ==============================

    A node has two independent sets of walks, and K = 2 n features for n nodes, of which the last n enter inner products
    negatively, so that no walk meets itself and estimates are unbiased on the diagonal too; they need not be positive
    semi-definite. The variance falls as 1 / ``num_walks``.
    Reid et al. 2024 (general graph random features).
    """

    runtime_fields: ClassVar[frozenset[str]] = frozenset({"graph"})

    kind: Literal["graph_walk_features"] = "graph_walk_features"
    graph: Location
    """An .npz file with ``adjacency``, (n, n): symmetric weights of edges, none negative, zero for no edge."""
    function: Literal["exponential", "inverse", "inverse_square", "square"] = "exponential"
    """Of U."""
    sigma: float = Field(0.5, gt=0, le=10)
    """The largest eigenvalue of U is sigma^2 if there is an edge; less than one for both inverses."""
    num_walks: int = Field(16, ge=1, le=1_000_000)
    """Walks from a node in each of its two sets."""
    stop: float = Field(0.1, ge=0.001, lt=1)
    """The probability that a walk stops at any step; shorter walks are cheaper and noisier."""

    @model_validator(mode="after")
    def _walks_have_finite_variance(self) -> "GraphWalkFeaturesConfig":
        if self.function.startswith("inverse") and self.sigma**4 >= 1 - self.stop:
            raise ValueError(
                f"sigma = {self.sigma} and stop = {self.stop}: {self.function} needs sigma^4 < 1 - stop, "
                "or the variance of its walks is infinite; lower one of them"
            )
        return self


class MultilayerFeaturesConfig(SizedRandomFeatures):
    """Outputs of the last of L random layers, phi_(l+1) = sqrt(2 / m) relu(W phi_l), phi_0 = x, W standard normal.

    Inner products tend to |x| |x'| kappa_1(...kappa_1(cos)), kappa_1 composed L times: the infinite-width kernel of a
    network of L hidden layers, kappa_1(u) = (u (pi - arccos u) + sqrt(1 - u^2)) / pi. The error falls as K^(-1/2). The
    diagonal is unbiased, with variance |x|^4 (prod_l (1 + 5 / m_l) - 1), and so is everything for one layer; a deeper
    layer sees the random kernel of the one before, which biases it by O(1 / width) elsewhere.
    """

    kind: Literal["multilayer_features"] = "multilayer_features"
    depth: int = Field(1, ge=1, le=100)
    """L."""
    width: int | None = Field(None, ge=1, le=2**20)
    """Of all layers but the last, whose width is ``dim``; None takes ``dim`` for all of them."""


RandomFeaturesConfig = (
    FourierFeaturesConfig
    | PositiveFeaturesConfig
    | SpectralMixtureFeaturesConfig
    | UniversalFeaturesConfig
    | GraphWalkFeaturesConfig
    | MultilayerFeaturesConfig
)
