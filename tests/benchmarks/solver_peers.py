"""Solvers of other packages on the same systems, with the settings that make them solve the same thing.

Those that cannot be given a kernel matrix compute it themselves, and their time holds that too.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from benchmarks.solver_jobs import Arrays, Found, SolverJob
from benchmarks.solver_problems import Problem

COMPONENTS = 1000
"""Of scikit-learn's Nystroem."""


def kernel_ridge(arrays: Arrays, problem: Problem) -> Found:
    """scikit-learn's KernelRidge on the matrix."""
    from sklearn.kernel_ridge import KernelRidge

    with _warned() as heard:
        model = KernelRidge(kernel="precomputed", alpha=problem.ridge)
        model.fit(arrays.kernel.numpy(), arrays.targets_NT.float().numpy())
    return Found(alpha_NT=torch.from_numpy(model.dual_coef_), note=_said(heard))


def nystroem_ridge(arrays: Arrays, problem: Problem) -> Found:
    """scikit-learn's Nystroem and Ridge, with the Gaussian kernel of the same bandwidth."""
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import Ridge

    num = min(COMPONENTS, len(arrays.inputs_ND))
    gamma = 1 / (2 * problem.bandwidth**2)
    with _warned() as heard:
        features = Nystroem(kernel="rbf", gamma=gamma, n_components=num, random_state=0)
        ridge = Ridge(alpha=problem.ridge)
        ridge.fit(features.fit_transform(arrays.inputs_ND.numpy()), arrays.targets_NT.float().numpy())

    def predict(inputs_MD: torch.Tensor) -> torch.Tensor:
        predicted = torch.from_numpy(ridge.predict(features.transform(inputs_MD.numpy())))
        return predicted.reshape(len(inputs_MD), -1)

    return Found(predict=predict, note="; ".join(filter(None, ("Gaussian kernel, computed", _said(heard)))))


def gpytorch_solve(arrays: Arrays, problem: Problem, *, tolerance: float | None) -> Found:
    """The solve behind GPyTorch's predictions, with its default settings or a tolerance."""
    import gpytorch
    from linear_operator import to_linear_operator

    targets_NT = arrays.targets_NT.float()
    settings: list[Any] = [] if tolerance is None else [gpytorch.settings.cg_tolerance(tolerance)]
    with _warned() as heard, torch.no_grad():
        for setting in settings:
            setting.__enter__()
        alpha_NT = to_linear_operator(arrays.kernel).add_jitter(problem.ridge).solve(targets_NT)
        for setting in settings:
            setting.__exit__(None, None, None)
    return Found(alpha_NT=alpha_NT, note=_said(heard))


def xrfm_solve(arrays: Arrays, problem: Problem) -> Found:
    """XRFM's kernel machine without any iteration of feature learning: its direct solve."""
    from xrfm.rfm_src import RFM
    from xrfm.rfm_src.kernels import LaplaceKernel

    kernel = LaplaceKernel(bandwidth=problem.bandwidth, exponent=1.0)
    model = RFM(kernel, iters=0, bandwidth=problem.bandwidth, device="cpu", verbose=False)
    targets_NT = arrays.targets_NT.float()
    held_out = (arrays.inputs_ND[:100], targets_NT[:100])  # it wants some
    with _warned() as heard:
        model.fit((arrays.inputs_ND, targets_NT), held_out, iters=0, method="lstsq", reg=problem.ridge, verbose=False)
    return Found(alpha_NT=model.weights.float(), note="; ".join(filter(None, ("kernel computed", _said(heard)))))


def ridge_cholesky(arrays: Arrays, problem: Problem) -> Found:
    """scikit-learn's Ridge, one ridge."""
    from sklearn.linear_model import Ridge

    with _warned() as heard:
        model = Ridge(alpha=problem.ridge, fit_intercept=False, solver="cholesky")
        model.fit(arrays.inputs_ND.numpy(), arrays.targets_NT.float().numpy())
    return Found(weights_KT=torch.from_numpy(model.coef_.T.copy()), note=_said(heard))


def ridge_path(arrays: Arrays, problem: Problem) -> Found:
    """scikit-learn's RidgeCV: a path with exact leave-one-out errors."""
    from sklearn.linear_model import RidgeCV

    with _warned() as heard:
        model = RidgeCV(alphas=list(problem.ridges), fit_intercept=False)
        model.fit(arrays.inputs_ND.numpy(), arrays.targets_NT.float().numpy())
    weights_KT = torch.from_numpy(model.coef_.T.copy())
    return Found(weights_KT=weights_KT, ridge=float(model.alpha_), note=_said(heard))


@contextmanager
def _warned() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        yield heard


def _said(heard: list[warnings.WarningMessage]) -> str:
    """Return the first warning that was given, shortened."""
    if not heard:
        return ""
    more = f" and {len(heard) - 1} more" if len(heard) > 1 else ""
    return f"warned: {' '.join(str(heard[0].message).split())[:100]}{more}"


OF_KERNELS = (
    SolverJob("scikit-learn KernelRidge", kernel_ridge, ("sklearn",)),
    SolverJob(f"scikit-learn Nystroem {COMPONENTS}, Ridge", nystroem_ridge, ("sklearn",)),
    SolverJob("gpytorch, defaults", partial(gpytorch_solve, tolerance=None), ("gpytorch", "linear_operator")),
    SolverJob("gpytorch, cg_tolerance 1e-4", partial(gpytorch_solve, tolerance=1e-4), ("gpytorch", "linear_operator")),
    SolverJob("xrfm, 0 iterations", xrfm_solve, ("xrfm",)),
)
OF_FEATURES = (
    SolverJob("scikit-learn Ridge", ridge_cholesky, ("sklearn",)),
    SolverJob("scikit-learn RidgeCV, path, LOO", ridge_path, ("sklearn",)),
)
