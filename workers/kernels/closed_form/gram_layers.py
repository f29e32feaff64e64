"""Gram matrices as the unknowns of a network: the objective, its fit at inducing inputs, and what follows elsewhere."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ntkpipe.configs.errors import NumericalError
from ntkpipe.workers.kernels.closed_form.duals.covariances import relu_duals

Normalisation = Literal["none", "mean-diagonal"]


@dataclass(frozen=True, slots=True)
class GramLayer:
    """A fitted layer at the P inducing inputs: G = C A A' C' and K = C C', so that A is what was learned."""

    variance_P: torch.Tensor
    """The diagonal of the layer before, which K is the arc-cosine map of."""
    unit: float
    """What K was divided by."""
    kernel_factor_PP: torch.Tensor
    """C, lower triangular, of K with its jitter."""
    learned_PP: torch.Tensor
    """A, lower triangular; the identity if the layer is the map of the layer before."""

    @property
    def gram_PP(self) -> torch.Tensor:
        """G."""
        root_PP = self.kernel_factor_PP @ self.learned_PP
        return root_PP @ root_PP.T

    def to(self, device: torch.device) -> "GramLayer":
        """Return the layer on a device."""
        tensors = (self.kernel_factor_PP.to(device), self.learned_PP.to(device))
        return GramLayer(self.variance_P.to(device), self.unit, *tensors)


@dataclass(frozen=True, slots=True)
class LayerState:
    """Samples at some layer: their Gram matrices with the inducing inputs, with themselves, and with other samples."""

    variance_N: torch.Tensor
    inducing_NP: torch.Tensor


def arc_cosine_map(gram_PP: torch.Tensor) -> torch.Tensor:
    """Return K(G): the covariance of sqrt(2) relu of Gaussians with covariance G. First derivatives only.

    K_ij is homogeneous of degree one in (G_ii, G_ij, G_jj), hence the sum of its partial derivatives times these. With
    the derivatives held fixed, differentiating the sum gives them back, without the infinite slope of the arc cosine at
    correlations of 1, on the whole diagonal.
    """
    variance_P = gram_PP.diagonal()
    with torch.no_grad():
        dual_PP, slope_PP = relu_duals(variance_P[:, None], gram_PP, variance_P)
        rest_PP = (dual_PP - slope_PP * gram_PP) / 2
        row_slope_PP = torch.where(variance_P[:, None] > 0, rest_PP / variance_P[:, None], 0.0)
        column_slope_PP = torch.where(variance_P > 0, rest_PP / variance_P, 0.0)
    return slope_PP * gram_PP + row_slope_PP * variance_P[:, None] + column_slope_PP * variance_P


def layer_kernel(
    gram_PP: torch.Tensor, *, jitter: float, normalisation: Normalisation
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return K(G) / unit with its jitter, a share of the mean diagonal, and the unit that it was divided by."""
    kernel_PP = arc_cosine_map(gram_PP)
    mean = kernel_PP.diagonal().mean()
    unit = mean if normalisation == "mean-diagonal" else torch.ones_like(mean)
    identity_PP = torch.eye(len(gram_PP), dtype=gram_PP.dtype, device=gram_PP.device)
    return kernel_PP / unit + jitter * mean / unit * identity_PP, unit


def gram_divergence(gram_PP: torch.Tensor, kernel_PP: torch.Tensor) -> torch.Tensor:
    """Return KL(N(0, G) || N(0, K)) = 1/2 (tr(K^-1 G) - log det(K^-1 G) - P), at least 0, and 0 for G = K only."""
    kernel_factor_PP, gram_factor_PP = _cholesky(kernel_PP), _cholesky(gram_PP)
    ratio_PP = torch.linalg.solve_triangular(kernel_factor_PP, gram_factor_PP, upper=False)
    return _divergence_of_root(ratio_PP)


def label_evidence(gram_PP: torch.Tensor, targets_PT: torch.Tensor, *, noise: float) -> torch.Tensor:
    """Return sum_t log N(y_t; 0, gram + noise I), in nats."""
    num, num_targets = targets_PT.shape
    factor_PP = _cholesky(gram_PP + noise * torch.eye(num, dtype=gram_PP.dtype, device=gram_PP.device))
    white_PT = torch.linalg.solve_triangular(factor_PP, targets_PT, upper=False)
    half_log_det = factor_PP.diagonal().log().sum()
    normaliser: torch.Tensor = num_targets * (half_log_det + num / 2 * math.log(2 * math.pi))
    misfit: torch.Tensor = white_PT.square().sum() / 2
    return -misfit - normaliser


def deep_kernel_objective(
    grams: Sequence[torch.Tensor],
    input_gram_PP: torch.Tensor,
    targets_PT: torch.Tensor | None,
    *,
    nu: float,
    noise: float,
    jitter: float,
    normalisation: Normalisation = "none",
) -> torch.Tensor:
    """Return the objective of :class:`ntkpipe.configs.kernels.structured.DeepKernelMachineConfig` for any Gram matrices.

    Args:
        grams: G_1 ... G_L, (P, P), positive definite.
        input_gram_PP: G_0.
        targets_PT: None leaves out the evidence of the labels; the optimum is then 0, at G_l = K(G_{l-1}).
        nu: Weight of the divergences.
        noise: Variance of the labels' noise.
        jitter: Share of the mean diagonal that is added to the kernels.
        normalisation: Of the kernels.
    """
    total, before = input_gram_PP.new_zeros(()), input_gram_PP
    for gram_PP in grams:
        kernel_PP, _ = layer_kernel(before, jitter=jitter, normalisation=normalisation)
        total, before = total - nu * gram_divergence(gram_PP, kernel_PP), gram_PP
    if targets_PT is None:
        return total
    last_PP, _ = layer_kernel(before, jitter=0.0, normalisation=normalisation)
    return total + label_evidence(last_PP, targets_PT, noise=noise)


def fit_gram_layers(
    input_gram_PP: torch.Tensor,
    targets_PT: torch.Tensor,
    *,
    depth: int,
    nu: float,
    noise: float,
    jitter: float,
    normalisation: Normalisation = "none",
    steps: int,
    tolerance: float,
) -> list[GramLayer]:
    """Return the layers that maximise the objective, by L-BFGS from G_l = K(G_{l-1}); no randomness.

    The unknowns are A_l in G_l = C_l A_l A_l' C_l' with the Cholesky factor C_l of K_l, lower triangular with a positive
    diagonal: every divergence is then 1/2 (|A|^2 - 2 sum log A_ii - P) whatever the layers before, and the unknowns
    start, and for large nu end, at the identity. Each step takes O(depth P^3).

    Args:
        input_gram_PP: G_0.
        targets_PT: One column per target.
        depth: How many layers.
        nu: Weight of the divergences.
        noise: Variance of the labels' noise.
        jitter: Share of the mean diagonal that is added to the kernels.
        normalisation: Of the kernels.
        steps: Not to be exceeded; 0 returns the start.
        tolerance: At which the fit ends: the largest derivative of the objective with respect to an entry of an A_l below
            its diagonal, or to the logarithm of one on it, over max(1, nu).

    Raises:
        NumericalError: The tolerance was not reached, or a matrix stopped being positive definite.
    """
    num = len(input_gram_PP)
    unknowns = input_gram_PP.new_zeros(depth, num, num).requires_grad_(steps > 0)
    # Of the order of one whatever P and nu, which is where the optimiser's first step fits.
    scale = num * max(1.0, nu)

    def loss() -> torch.Tensor:
        layers = _layers(input_gram_PP, unknowns, jitter, normalisation)
        divergence = torch.stack([_divergence_of_root(layer.learned_PP) for layer in layers]).sum()
        last_PP, _ = layer_kernel(layers[-1].gram_PP, jitter=0.0, normalisation=normalisation)
        return (nu * divergence - label_evidence(last_PP, targets_PT, noise=noise)) / scale

    if steps:
        taken, slope = _minimise(loss, unknowns, steps, tolerance / num)
        _check_optimum(taken, slope * num, steps, tolerance)
    return _layers(input_gram_PP, unknowns.detach(), jitter, normalisation)


def propagate(layer: GramLayer, state: LayerState) -> tuple[LayerState, torch.Tensor]:
    """Take samples through a layer; returns their state and C^-1 K_it, (P, N), from which :func:`cross` follows.

    Given the inducing inputs, other samples are Gaussian with the conditional of K, so that G_ti = K_ti K^-1 G_ii, and
    variances are K_tt - K_ti K^-1 K_it (the Nystrom residual) + K_ti K^-1 G_ii K^-1 K_it. O(N P^2).
    """
    kernel_NP = relu_duals(state.variance_N[:, None], state.inducing_NP, layer.variance_P)[0] / layer.unit
    white_PN = torch.linalg.solve_triangular(layer.kernel_factor_PP, kernel_NP.T, upper=False)
    learned_PN = layer.learned_PP.T @ white_PN
    residual_N = (state.variance_N / layer.unit - white_PN.square().sum(0)).clamp_min(0)
    inducing_NP = learned_PN.T @ (layer.kernel_factor_PP @ layer.learned_PP).T
    return LayerState(residual_N + learned_PN.square().sum(0), inducing_NP), white_PN


def cross(
    layer: GramLayer,
    gram_NM: torch.Tensor,
    state: LayerState,
    other: LayerState,
    white_PN: torch.Tensor,
    white_PM: torch.Tensor,
) -> torch.Tensor:
    """Return the Gram matrix between two sets of samples behind a layer, given it and their states before, O(N M P)."""
    kernel_NM = relu_duals(state.variance_N[:, None], gram_NM, other.variance_N)[0] / layer.unit
    learned_PN, learned_PM = layer.learned_PP.T @ white_PN, layer.learned_PP.T @ white_PM
    return kernel_NM - white_PN.T @ white_PM + learned_PN.T @ learned_PM


def _layers(
    input_gram_PP: torch.Tensor, unknowns_LPP: torch.Tensor, jitter: float, normalisation: Normalisation
) -> list[GramLayer]:
    """Return the layers of unknowns: below the diagonal A itself, on it the logarithm."""
    layers, gram_PP = [], input_gram_PP
    for unknown_PP in unknowns_LPP:
        kernel_PP, unit = layer_kernel(gram_PP, jitter=jitter, normalisation=normalisation)
        learned_PP = unknown_PP.tril(-1) + torch.diag(unknown_PP.diagonal().exp())
        layer = GramLayer(gram_PP.diagonal(), float(unit.detach()), _cholesky(kernel_PP), learned_PP)
        gram_PP = layer.gram_PP
        layers.append(layer)
    return layers


def _cholesky(matrix_PP: torch.Tensor) -> torch.Tensor:
    factor_PP: torch.Tensor
    factor_PP, info = torch.linalg.cholesky_ex(matrix_PP)
    if int(info):
        raise NumericalError(
            f"a Gram matrix of {len(matrix_PP)} inducing inputs is not positive definite: inputs that are all zero, or a "
            "fit that diverged. Give a larger jitter or noise, or other inducing inputs."
        )
    return factor_PP


def _divergence_of_root(root_PP: torch.Tensor) -> torch.Tensor:
    return (root_PP.square().sum() - 2 * root_PP.diagonal().log().sum() - len(root_PP)) / 2


def _minimise(
    loss: Callable[[], torch.Tensor], unknowns: torch.Tensor, steps: int, tolerance: float
) -> tuple[int, float]:
    """Return how many steps were taken, and the largest derivative of the loss where they end."""
    optimiser = torch.optim.LBFGS(
        [unknowns],
        max_iter=steps,
        max_eval=4 * steps,
        tolerance_grad=tolerance,
        tolerance_change=0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return float(value.detach())

    optimiser.step(closure)
    closure()
    assert unknowns.grad is not None, "the loss depends on all unknowns"
    return int(optimiser.state[unknowns].get("n_iter", 0)), float(unknowns.grad.abs().max())


def _check_optimum(taken: int, slope: float, steps: int, tolerance: float) -> None:
    # A slope that is no number is refused too.
    if not slope <= tolerance:
        more = "more steps, " if taken >= steps else ""
        raise NumericalError(
            f"the fit of a deep kernel machine ended after {taken} of at most {steps} steps where a derivative is "
            f"{slope:.1e}, more than tolerance = {tolerance:.1e}. Give it {more}a larger nu or noise, which make it easier, "
            "or a larger tolerance if less learning is acceptable."
        )
