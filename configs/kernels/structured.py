"""Closed-form kernels of structured samples: images, graphs, nodes of one graph, paths, and Gram-layer models."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from ntkpipe.configs.kernels.base import KernelSection
from ntkpipe.configs.locations import Location


class ConvolutionalConfig(KernelSection):
    """The kernel of an infinitely wide convolutional ReLU network on images, (N, channels, P, Q).

    Filters are q x q at stride 1 with zero padding; [M]_{pp'} denotes the sum of M over the q^2 common offsets of the
    pixels p and p'. With S^0 = T^0 = [sum over channels x_p x'_p'], for the layers h = 1 ... depth

        K^h = E[s(u) s(v)] / q^2,  D^h = E[s'(u) s'(v)] / q^2,  (u, v) ~ N(0, S^(h-1) at (x_p, x'_p')),  s = sqrt(2) relu
        S^h = [K^h],  T^h = [D^h T^(h-1) + K^h], without [] in the last layer.

    The value is the sum of T (``ntk``) or K (``nngp``) of the last layer over equal pixels p = p' (head ``flatten``),
    or its mean over all pairs of pixels (head ``gap``). Arora, Du, Hu, Li, Salakhutdinov, Wang, 2019.
    """

    kind: Literal["cntk"] = "cntk"
    depth: int = Field(3, ge=1, le=64)
    """Convolutional layers, each followed by a ReLU; the read-out is a further, linear layer."""
    filter_size: int = Field(3, ge=1, le=63)
    """q, odd."""
    head: Literal["flatten", "gap"] = "flatten"
    """``flatten``: a linear layer on all pixels, O(P Q) per pair of images. ``gap``: a global average first, O(P^2 Q^2)."""
    output: Literal["ntk", "nngp"] = "ntk"
    """``ntk``: all layers are trained; ``nngp``: the covariance of the outputs, that is, only the last layer is."""

    @model_validator(mode="after")
    def _filters_have_a_middle(self) -> "ConvolutionalConfig":
        if self.filter_size % 2 == 0:
            raise ValueError(f"filter_size = {self.filter_size} must be odd: filters are centred at their pixel")
        return self


class GraphConfig(KernelSection):
    """The tangent kernel of an infinitely wide graph network on graphs, (N, V, V + F): adjacency beside node features.

    S = T = A H H'^T A'^T scaled. Each block applies ``num_mlp_layers`` times S <- dual(S), T <- T dual'(S) + S of the
    ReLU times sqrt(2), and between blocks both are aggregated, S <- A S A'^T scaled. The value is twice the sum of T
    over all pairs of nodes; with jumping knowledge twice the sum over H H'^T and the T of all blocks. Nodes that a
    graph does not have are rows of zeros. Du, Hou, Poczos, Salakhutdinov, Wang, Xu, 2019.
    """

    kind: Literal["gntk"] = "gntk"
    num_blocks: int = Field(2, ge=1, le=64)
    """How often neighbours are aggregated, each time followed by a perceptron."""
    num_mlp_layers: int = Field(2, ge=1, le=64)
    """Layers of every perceptron."""
    scale: Literal["uniform", "degree"] = "uniform"
    """``uniform``: sums over neighbours. ``degree``: means, a node's row of A divided by its sum; 0 without neighbours."""
    jumping_knowledge: bool = False
    """Whether the read-out sees every block's nodes and the raw features, not only those of the last block."""


class GraphNodeConfig(KernelSection):
    """The tangent kernel of an infinitely wide graph network between nodes of one graph; samples are node indices.

    The recursion of kind ``gntk`` without its read-out: K(i, j) is the entry T_ij of the whole graph. Krishnagopal,
    Ruiz, 2023: for graphs sampled from a graphon, with A / n, T / n converges, and its eigenvalues with it.
    """

    runtime_fields: ClassVar[frozenset[str]] = frozenset({"graph"})

    kind: Literal["gntk_node"] = "gntk_node"
    graph: Location
    """An npz file with ``adjacency``, (n, n), and ``features``, (n, F)."""
    num_blocks: int = Field(2, ge=1, le=64)
    """How often neighbours are aggregated, each time followed by a perceptron."""
    num_mlp_layers: int = Field(1, ge=1, le=64)
    """Layers of every perceptron."""
    scale: Literal["uniform", "degree", "graphon"] = "graphon"
    """``uniform``: A as it is. ``degree``: rows of A divided by their sums. ``graphon``: A / n."""
    jumping_knowledge: bool = False
    """Whether the kernels of all blocks and of the raw features are added up."""


class _PathSection(KernelSection):
    """What kernels of paths, (N, L, d), have in common: a static kernel and a grid.

    The static kernel is k(a, b) = scale <a, b> (``linear``) or scale exp(-|a - b|^2 / (2 bandwidth^2)) (``rbf``). A cell
    of the grid is a pair of steps, and g its second difference k(b, b') - k(b, a') - k(a, b') + k(a, a').
    """

    static: Literal["linear", "rbf"] = "linear"
    """``linear``: signatures of the paths themselves. ``rbf``: of the paths lifted to the space of a Gaussian kernel."""
    bandwidth: float | None = Field(None, gt=0)
    """The width of ``rbf``, 1 if absent."""
    scale: float = Field(1.0, gt=0)
    """Of the static kernel; smaller values weigh long iterated integrals less."""

    @model_validator(mode="after")
    def _bandwidth_belongs_to_rbf(self) -> "_PathSection":
        if self.static == "linear" and self.bandwidth is not None:
            raise ValueError(f"bandwidth = {self.bandwidth} has no meaning for static = 'linear'; use 'rbf' or drop it")
        return self


class SignatureConfig(_PathSection):
    """The untruncated signature kernel of piecewise linear paths, (N, L, d).

    K(x, y) = sum over levels m of <S_m(x), S_m(y)>, the signatures' iterated integrals, solves the Goursat problem
    d^2 K / ds dt = <x'(s), y'(t)> K with K = 1 at both starts (Salvi, Cass, Foster, Lyons, Yang, 2021). In a cell of the
    grid the product is constant, and the solution a power series in s and t that is known from two edges. With a dyadic
    order it is replaced by

        K_{i+1,j+1} = (K_{i+1,j} + K_{i,j+1}) (1 + g/2 + g^2/12) - K_ij (1 - g^2/12).

    Repeating points and moving a whole path changes nothing.
    """

    kind: Literal["signature"] = "signature"
    dyadic_order: int | None = Field(None, ge=0, le=10)
    """Absent: power series, as many terms as double precision needs. o: the scheme of second order on steps cut into 2^o
    equal parts; its error falls like 4^-o and its cost grows like 4^o. At o = 2 both cost about the same."""


class NeuralSignatureConfig(_PathSection):
    """The kernel of an infinitely wide controlled residual network on paths, (N, L, d), by a first-order scheme.

    K_{i+1,j+1} = K_{i+1,j} + K_{i,j+1} - K_ij + (weight_variance E[s(u) s(v)] + bias_variance) g, where (u, v) is
    Gaussian with the covariances K_xx at (i, i), K_xy at (i, j) and K_yy at (j, j), and K = 1 at both starts. The
    identity gives the signature kernel to first order. Muca Cirone, Lemercier, Salvi, 2023.
    """

    kind: Literal["neural_signature"] = "neural_signature"
    dyadic_order: int = Field(1, ge=0, le=10)
    """o: every step is cut into 2^o equal parts. The error falls like 2^-o, the cost grows like 4^o."""
    activation: Literal["identity", "relu", "erf", "gelu"] = "relu"
    """s; the plain ReLU is multiplied by sqrt(2), so that E[s(u)^2] = E[u^2]."""
    weight_variance: float = Field(1.0, gt=0)
    """Of the random vector fields' weights."""
    bias_variance: float = Field(0.0, ge=0)
    """Of the random vector fields' biases."""


class DeepKernelMachineConfig(KernelSection):
    """The last Gram matrix of a deep kernel machine that was fitted to inducing inputs and their labels.

    With G_0 = X X^T / d and K(G) the arc-cosine map of a Gram matrix, the layers maximise

        sum_t log N(y_t; 0, K(G_depth) + noise I) - sum_l nu/2 (tr(K_l^-1 G_l) - log det(K_l^-1 G_l) - P),

    K_l = K(G_{l-1}) + jitter. Other samples follow by K_l's conditional: G_ti = K_ti K_ii^-1 G_ii and
    G_tt = K_tt - K_ti K_ii^-1 K_it + K_ti K_ii^-1 G_ii K_ii^-1 K_it. nu -> infinity gives the NNGP kernel. Yang, Robeyns,
    Milsom, Schoots, Anson, Aitchison, 2023; Milsom, Anson, Aitchison, 2024.
    """

    runtime_fields: ClassVar[frozenset[str]] = frozenset({"inducing", "labels"})

    kind: Literal["deep_kernel_machine"] = "deep_kernel_machine"
    inducing: Location
    """An npy file with the P inducing inputs, shaped like the samples."""
    labels: Location
    """An npy file with their labels: P integer classes, taken one-hot, or real values, (P,) or (P, T)."""
    depth: int = Field(2, ge=1, le=32)
    """Gram layers."""
    nu: float = Field(10.0, gt=0)
    """How strongly each layer is held to the map of the layer before, against the evidence of all label columns."""
    noise: float = Field(0.1, gt=0)
    """The variance of the labels' noise."""
    jitter: float = Field(1e-4, gt=0, lt=1)
    """Added to the diagonal of K_l at inducing inputs, as a share of its mean."""
    normalisation: Literal["none", "mean-diagonal"] = "none"
    """``mean-diagonal`` divides every K_l by the mean of its diagonal at the inducing inputs, as batch norm would."""
    steps: int = Field(1000, ge=0)
    """The largest number of L-BFGS steps of the fit; 0 leaves the NNGP kernel."""
    tolerance: float = Field(1e-5, gt=0)
    """At which the fit ends; one that does not come so far within ``steps`` is an error. With K_l = C C^T, the unknowns are
    the triangular matrices A_l of G_l = C A_l A_l^T C^T, which without learning are the identity; the tolerance is that of
    the largest derivative of the objective with respect to their entries, over max(1, nu): about the error of A_l. Where
    nu is far below 1, fits take thousands of steps, and 0.01 is a tolerance that can be reached."""

    @model_validator(mode="after")
    def _tolerance_belongs_to_a_fit(self) -> "DeepKernelMachineConfig":
        if self.steps == 0 and self.departs("tolerance"):
            raise ValueError(f"tolerance = {self.tolerance} has no meaning without a fit; drop it, or give steps")
        return self


StructuredConfig = (
    ConvolutionalConfig
    | GraphConfig
    | GraphNodeConfig
    | SignatureConfig
    | NeuralSignatureConfig
    | DeepKernelMachineConfig
)
"""Any kernel of structured samples."""
