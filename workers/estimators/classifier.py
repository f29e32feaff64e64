"""Kernel classification as an estimator of scikit-learn."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self, final

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from ntkpipe.configs.errors import ConfigError
from ntkpipe.workers.estimators.fitting import Loss, method_for, settings_of
from ntkpipe.workers.estimators.kernels import PRECOMPUTED, Array, Kernel
from ntkpipe.workers.solvers.solve import RidgeScale, one_hot_targets


def _is_logistic(estimator: Any) -> bool:
    return bool(estimator.loss == "logistic")


@final
class KernelClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc] # scikit-learn is not annotated
    """Classes by the largest of predictions K(x, samples) alpha, fitted to squared or logistic losses.

    ``squared`` solves (K + ridge I) alpha = y for one-hot targets; two classes are one column of -1 and 1, which predicts
    the same. ``logistic`` is multinomial logistic regression with the penalty ridge / 2 tr(alpha^T K alpha), or binary one
    for two classes, and has probabilities. There is no intercept. A solution that did not converge raises a
    ``ConvergenceWarning``.

    Args:
        kernel: The kind of a closed form, such as ``gaussian``, ``laplace`` or ``ntk``; ``precomputed`` for kernel matrices
            in place of samples; or a function (x, x2, **kernel_options) -> (N, M) of two tensors.
        kernel_options: Of the kernel, such as ``{"bandwidth": 2.0}``.
        ridge: The lambda; positive for ``logistic``.
        ridge_scale: ``mean-diagonal`` multiplies it by the mean of the kernel's diagonal.
        loss: ``squared`` or ``logistic``.
        method: Of :func:`ntkpipe.solve`.
        solver_options: Of the method, such as ``{"penalty": "coefficients"}`` for ``logistic``.
        random_state: Seed of the method, where it takes one, or what draws it.

    Attributes:
        classes_: The classes in the order of columns.
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
        loss: Loss = "squared",
        method: str = "auto",
        solver_options: Mapping[str, Any] | None = None,
        random_state: Any = 0,
    ) -> None:
        self.kernel = kernel
        self.kernel_options = kernel_options
        self.ridge = ridge
        self.ridge_scale = ridge_scale
        self.loss = loss
        self.method = method
        self.solver_options = solver_options
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Solve for the coefficients.

        Args:
            X: (N, ...) samples, or an (N, N) kernel matrix.
            y: (N,) classes, of any type.
            sample_weight: (N,) weights of the losses; a class whose samples all have weight 0 is no class.

        Raises:
            ConfigError: A parameter is not valid, or there is only one class.
            NumericalError: The kernel matrix is not symmetric, or not finite.
        """
        settings = replace(settings_of(self), method=method_for(self.loss, self.method))
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], allow_nd=not settings.precomputed)
        check_classification_targets(y)
        weights = None if sample_weight is None else _check_sample_weight(sample_weight, X, dtype=np.float64)
        self.classes_ = np.unique(y if weights is None else y[weights != 0])
        if len(self.classes_) < 2:
            raise ConfigError(
                f"a classifier needs samples of at least two classes, found {len(self.classes_)} class(es) among samples "
                f"that have a weight: {self.classes_.tolist()}."
            )
        # What classes samples of weight 0 are of makes no difference, as long as it is one of those.
        labels = np.minimum(np.searchsorted(self.classes_, y), len(self.classes_) - 1)
        options = {"loss": "sigmoid" if len(self.classes_) == 2 else "softmax"} if _is_logistic(self) else {}
        self.solution_ = settings.solution(X, self._targets(labels), weights, **options)
        self.X_fit_ = None if settings.precomputed else X
        return self

    def decision_function(self, X: Any) -> Array:
        """Return (M,) numbers that are positive for the second of two classes, or (M, C) for more classes.

        They are logits for the logistic loss.

        Args:
            X: (M, ...) samples, or an (M, N) kernel matrix between them and those of the fit.
        """
        check_is_fitted(self)
        settings = settings_of(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], allow_nd=not settings.precomputed, reset=False)
        found = settings.predictions(X, self.X_fit_, self.solution_.alpha)
        return found[:, 0] if len(self.classes_) == 2 else found

    def predict(self, X: Any) -> Array:
        """Return the (M,) most likely classes.

        Args:
            X: As for :meth:`decision_function`.
        """
        found = self.decision_function(X)
        classes: Array = self.classes_[(found > 0).astype(int) if found.ndim == 1 else found.argmax(axis=1)]
        return classes

    @available_if(_is_logistic)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> Array:
        """Return (M, C) probabilities of the classes; only for the logistic loss.

        Args:
            X: As for :meth:`decision_function`.
        """
        logits = torch.from_numpy(self.decision_function(X))
        if logits.dim() == 1:
            found: Array = torch.stack([torch.sigmoid(-logits), torch.sigmoid(logits)], dim=1).numpy()
            return found
        found = torch.softmax(logits, dim=1).numpy()
        return found

    def _targets(self, labels: Array) -> Array:
        """Return targets of the loss for classes as numbers."""
        if len(self.classes_) == 2:
            return labels if _is_logistic(self) else 2 * labels - 1
        found: Array = one_hot_targets(torch.from_numpy(labels), len(self.classes_)).numpy()
        return found

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = isinstance(self.kernel, str) and self.kernel == PRECOMPUTED
        return tags
