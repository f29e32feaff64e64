"""How well calibrated a kernel's predictions are when its scale is inferred from the data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
import numpy.typing as npt

from ntkpipe.configs.analyses import StudentTAnalysis
from ntkpipe.configs.errors import ConfigError
from ntkpipe.workers.analyses.base import AbstractAnalysis, AnalysisResult, RunView, Scalar, evenly_spaced
from ntkpipe.workers.analyses.naming import summary_keys
from ntkpipe.workers.analyses.plotting import GREY, count_of_samples, line_style, new_figure, png

if TYPE_CHECKING:
    from ntkpipe.workers.kernels.scale_mixture import ScaleMixturePosterior

Array = npt.NDArray[Any]

LEVELS = np.linspace(0.02, 0.98, 49)
"""Probabilities of the intervals whose coverage is drawn."""


@dataclass(frozen=True, slots=True)
class _Targets:
    train_NT: Array
    test_MT: Array | None
    """None when the split is not labelled."""
    classes_M: Array | None
    """Of the split, None for real targets."""


@dataclass(frozen=True, slots=True)
class _Fit:
    """What a kernel says of the split."""

    degrees: float
    mean_MT: Array
    scale_MT: Array
    log_evidence_T: Array


@final
class StudentT(AbstractAnalysis):
    """The Student-t process posterior of every kernel, fitted to the training split and judged on another one.

    See :func:`ntkpipe.workers.kernels.scale_mixture.scale_mixture_posterior` for the formulas. Matrices are
    divided by the mean of the training diagonal first, so that the prior means the same for every kernel. Each target
    (one-hot class or column of real targets) has a scale of its own. Told are, over the split's targets y:

    * ``log_evidence`` of the training targets, in nats, in total and for each target;
    * ``coverage``, the share of y inside the central interval of the configured probability, and ``mean_width`` of it;
    * ``log_density``, the mean logarithm of the predictive density at y, in nats;
    * ``rmse`` of the means, and for classes the ``accuracy`` of their argmax.

    Distributions are of noisy targets. One-hot targets are no Gaussian variables: their coverage says how far a
    regression on them can be trusted, not that class probabilities were calibrated.
    """

    def __init__(self, config: StudentTAnalysis) -> None:
        self._config = config

    def compute(self, run: RunView) -> AnalysisResult:
        """Fit every kernel on the same training samples; O(N^3) time and O(N (N + M)) memory.

        Raises:
            ConfigError: The training split has no labels, a kernel is zero, or SciPy is not installed.
            NumericalError: A kernel matrix with the configured noise is not positive definite.
        """
        config = self._config
        num_train = run.num_samples(run.train_split)
        positions = evenly_spaced(num_train, config.max_samples)
        targets = self._targets(run, positions)
        fits = {name: self._fit(run, name, positions, targets) for name in config.kernels or run.kernel_names}
        keys = summary_keys("kernel", fits, ("split", "samples", "training_samples", "of", "interval"))
        summary: dict[str, Scalar | list[Scalar] | dict[str, Scalar]] = {
            "split": config.split,
            "samples": run.num_samples(config.split),
            "training_samples": len(positions),
            "of": num_train,
            "interval": config.interval,
        }
        summary |= {keys[name]: _summarise(fit, targets, config.interval) for name, fit in fits.items()}
        table = [row for name, fit in fits.items() for row in _rows(name, fit, targets, run.sample_ids(config.split))]
        picture = None if targets.test_MT is None else self._draw(fits, targets.test_MT, len(positions), num_train)
        return AnalysisResult(summary, table, picture)

    def _targets(self, run: RunView, positions: npt.NDArray[np.int64]) -> _Targets:
        split = self._config.split
        classes = run.classes(run.train_split)
        if classes is None:
            values = run.values(run.train_split)
            if values is None:
                raise ConfigError(
                    f"analysis {self._config.name!r} fits kernels to labels, but split {run.train_split!r} has none; "
                    "give the split labels."
                )
            return _Targets(values[positions], run.values(split), None)
        test_classes = run.classes(split)
        num_classes = 1 + max(int(found.max(initial=0)) for found in (classes, test_classes) if found is not None)
        one_hot = np.eye(num_classes)
        test_MT = None if test_classes is None else one_hot[test_classes]
        return _Targets(one_hot[classes[positions]], test_MT, test_classes)

    def _fit(self, run: RunView, name: str, positions: npt.NDArray[np.int64], targets: _Targets) -> _Fit:
        train, split, all_rows = run.train_split, self._config.split, np.arange(run.num_samples(self._config.split))
        kernel_NN = run.kernel(name, train, positions, train, positions)
        unit = float(np.diagonal(kernel_NN).mean())
        if not unit > 0:
            raise ConfigError(
                f"analysis {self._config.name!r} divides by the mean variance of kernel {name!r}, which is {unit}; "
                "leave the kernel out."
            )
        found = self._posterior(
            kernel_NN / unit,
            run.kernel(name, split, all_rows, train, positions) / unit,
            run.diagonal(name, split) / unit + self._config.noise,
            targets.train_NT,
        )
        return _Fit(found.degrees, found.mean.numpy(), found.scale.numpy(), found.log_evidence.numpy())

    def _posterior(self, kernel: Array, test_kernel: Array, test_diagonal: Array, y: Array) -> "ScaleMixturePosterior":
        # Listing the analyses of a run must not cost the import of torch.
        import torch

        from ntkpipe.workers.kernels.scale_mixture import scale_mixture_posterior

        config = self._config
        return scale_mixture_posterior(
            torch.from_numpy(kernel),
            torch.from_numpy(test_kernel),
            torch.from_numpy(test_diagonal),
            torch.from_numpy(y),
            shape=config.shape,
            rate=config.rate,
            jitter=config.noise,
        )

    def _draw(self, fits: Mapping[str, _Fit], test_MT: Array, num_train: int, of: int) -> bytes:
        """Draw how many targets lie inside central intervals, against how many should."""
        figure = new_figure(5.4, 5.0)
        axis = figure.subplots()
        axis.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
        for index, (name, fit) in enumerate(fits.items()):
            color, dashes = line_style(index)
            inside = np.sort(_central_probability(fit, test_MT).ravel())
            observed = np.searchsorted(inside, LEVELS, side="right") / max(1, inside.size)
            axis.plot(LEVELS, observed, color=color, linestyle=dashes, label=name, linewidth=1.6)
        axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axis.set_xlabel("probability of the interval")
        axis.set_ylabel(f"share of the targets of {self._config.split!r} inside")
        axis.grid(alpha=0.25)
        axis.legend(fontsize=9)
        figure.suptitle(
            f"Calibration of Student-t posteriors, fitted to {count_of_samples(num_train, of)}", fontsize=11
        )
        return png(figure)


def _student() -> Any:
    try:
        from scipy.stats import t
    except ImportError:
        raise ConfigError("Student-t quantiles need SciPy: pip install 'ntkpipe[plot]'") from None
    return t


def _central_probability(fit: _Fit, test_MT: Array) -> Array:
    """Return the (M, T) probabilities of the smallest central intervals that hold the targets."""
    return np.asarray(1 - 2 * _student().sf(np.abs(test_MT - fit.mean_MT) / fit.scale_MT, fit.degrees))


def _summarise(fit: _Fit, targets: _Targets, interval: float) -> dict[str, Scalar]:
    found: dict[str, Scalar] = {"degrees": fit.degrees, "log_evidence": float(fit.log_evidence_T.sum())}
    found["mean_width"] = float(2 * _student().ppf((1 + interval) / 2, fit.degrees) * fit.scale_MT.mean())
    if targets.test_MT is not None:
        error_MT = targets.test_MT - fit.mean_MT
        found["coverage"] = float((_central_probability(fit, targets.test_MT) <= interval).mean())
        density_MT = _student().logpdf(error_MT / fit.scale_MT, fit.degrees) - np.log(fit.scale_MT)
        found["log_density"] = float(density_MT.mean())
        found["rmse"] = float(np.sqrt(np.square(error_MT).mean()))
    if targets.classes_M is not None:
        found["accuracy"] = float((fit.mean_MT.argmax(1) == targets.classes_M).mean())
    return found | {f"log_evidence_{target}": float(value) for target, value in enumerate(fit.log_evidence_T)}


def _rows(name: str, fit: _Fit, targets: _Targets, ids: list[str]) -> list[dict[str, Scalar]]:
    return [
        {
            "kernel": name,
            "sample": sample_id,
            "target": target,
            "value": None if targets.test_MT is None else float(targets.test_MT[row, target]),
            "mean": float(fit.mean_MT[row, target]),
            "scale": float(fit.scale_MT[row, target]),
            "degrees": fit.degrees,
        }
        for row, sample_id in enumerate(ids)
        for target in range(fit.mean_MT.shape[1])
    ]
