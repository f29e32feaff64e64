"""Kernel ridge regression as an estimator of scikit-learn."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self, final

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from ntkpipe.workers.estimators.fitting import method_for, settings_of
from ntkpipe.workers.estimators.kernels import PRECOMPUTED, Array, Kernel
from ntkpipe.workers.solvers.solve import RidgeScale


@final
class KernelRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc] # scikit-learn is not annotated
    """Kernel ridge regression: predictions are K(x, samples) alpha with (K + ridge I) alpha = y.

    There is no intercept: centre targets whose mean matters. Several targets share the work. A solution that did not
    converge raises a ``ConvergenceWarning``.

    Args:
        kernel: The kind of a closed form, such as ``gaussian``, ``laplace`` or ``ntk``; ``precomputed`` for kernel matrices
            in place of samples; or a function (x, x2, **kernel_options) -> (N, M) of two tensors.
        kernel_options: Of the kernel, such as ``{"bandwidth": 2.0}``.
        ridge: The lambda, at least 0.
        ridge_scale: ``mean-diagonal`` multiplies it by the mean of the kernel's diagonal.
        method: Of :func:`ntkpipe.solve`.
        solver_options: Of the method, such as ``{"tolerance": 1e-6}``.
        random_state: Seed of the method, where it takes one, or what draws it.

    Attributes:
        solution_: Coefficients with their evidence, see :class:`ntkpipe.Solution`.
        X_fit_: The samples; None for a precomputed kernel.
        n_features_in_: How many features a sample has.
    """

    def __init__(
        self,
        kernel: Kernel = "gaussian",
        *,
        kernel_options: Mapping[str, Any] | None = None,
        ridge: float = 1e-3,
        ridge_scale: RidgeScale = "absolute",
        method: str = "auto",
        solver_options: Mapping[str, Any] | None = None,
        random_state: Any = 0,
    ) -> None:
        self.kernel = kernel
        self.kernel_options = kernel_options
        self.ridge = ridge
        self.ridge_scale = ridge_scale
        self.method = method
        self.solver_options = solver_options
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Solve for the coefficients.

        Args:
            X: (N, ...) samples, or an (N, N) kernel matrix.
            y: (N,) or (N, T) targets.
            sample_weight: (N,) weights of the squared errors.

        Raises:
            ConfigError: A parameter is not valid.
            NumericalError: The kernel matrix is not symmetric, or not finite.
        """
        settings = replace(settings_of(self), method=method_for("squared", self.method))
        X, y = validate_data(
            self,
            X,
            y,
            dtype=[np.float64, np.float32],
            allow_nd=not settings.precomputed,
            multi_output=True,
            y_numeric=True,
        )
        weights = None if sample_weight is None else _check_sample_weight(sample_weight, X, dtype=np.float64)
        self.solution_ = settings.solution(X, y, weights)
        self.X_fit_ = None if settings.precomputed else X
        self._single_target = y.ndim == 1
        return self

    def predict(self, X: Any) -> Array:
        """Return (M,) or (M, T) predictions.

        Args:
            X: (M, ...) samples, or an (M, N) kernel matrix between them and those of the fit.
        """
        check_is_fitted(self)
        settings = settings_of(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], allow_nd=not settings.precomputed, reset=False)
        found = settings.predictions(X, self.X_fit_, self.solution_.alpha)
        return found[:, 0] if self._single_target else found

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.input_tags.pairwise = isinstance(self.kernel, str) and self.kernel == PRECOMPUTED
        return tags
