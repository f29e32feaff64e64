"""How faithfully kernel solutions imitate the network they were made from."""

import math
from typing import Any, final

import numpy as np
import numpy.typing as npt

from ntkpipe.configs.analyses import FidelityAnalysis
from ntkpipe.configs.errors import ConfigError
from ntkpipe.workers.analyses.base import AbstractAnalysis, AnalysisResult, RunView, Scalar, require_classes
from ntkpipe.workers.analyses.plotting import BLUE, GREY, RED, new_figure, png

Array = npt.NDArray[Any]


@final
class Fidelity(AbstractAnalysis):
    """Accuracy, agreement and rank correlation on a test split.

    For a network with outputs f and a solution with predictions g, over test samples of class y:

    * accuracy of both by argmax, and their difference TAD = accuracy(g) - accuracy(f);
    * agreement, the share of samples with the same argmax;
    * Kendall's tau-b between the margins f_y - max_{c != y} f_c and g_y - max_{c != y} g_c. Margins are free of the
      scale of the outputs, which for a ridge regression on one-hot targets are no log-probabilities;
    * Kendall's tau-b between the softmax probability of the class under f and the prediction g_y, leaving out samples
      whose probability is exactly 0 or 1. This is the protocol of the NTK surrogate literature.
    """

    def __init__(self, config: FidelityAnalysis) -> None:
        self._config = config

    def compute(self, run: RunView) -> AnalysisResult:
        """Compare every solution with the network; O(N C) memory."""
        split, names = self._config.split, self._config.solutions or run.solution_names
        classes = require_classes(run, split, self._config.name)
        outputs_NC = run.network_outputs(split)
        if outputs_NC.shape[1] <= int(classes.max()):
            raise ConfigError(
                f"analysis {self._config.name!r}: the network has {outputs_NC.shape[1]} outputs, but split {split!r} "
                f"has class {int(classes.max())}."
            )
        accuracy = float((outputs_NC.argmax(1) == classes).mean())
        rows: list[dict[str, Scalar]] = [
            {"model": "network", "accuracy": accuracy, "tad": 0.0, "agreement": 1.0, "tau_margin": 1.0, "tau": 1.0}
        ]
        scores = {}
        for name in names:
            predictions_NT = run.predictions(name, split)
            rows.append(_compare(name, outputs_NC, predictions_NT, classes, accuracy))
            scores[name] = margins(predictions_NT, classes)
        summary: dict[str, Scalar | list[Scalar] | dict[str, Scalar]] = {"split": split, "samples": len(classes)}
        summary |= {str(row["model"]): {key: row[key] for key in list(row)[1:]} for row in rows}
        picture = _draw(margins(outputs_NC, classes), scores, {str(row["model"]): row for row in rows}, split)
        return AnalysisResult(summary, rows, picture)


def margins(outputs_NC: Array, classes: Array) -> Array:
    """Return (N,) margins f_y - max_{c != y} f_c: positive where the argmax is right."""
    at = np.arange(len(classes))
    others = outputs_NC.astype(np.float64)
    own = others[at, classes]
    others[at, classes] = -np.inf
    return np.asarray(own - others.max(axis=1))


def class_probabilities(outputs_NC: Array, classes: Array) -> Array:
    """Return the (N,) softmax probabilities of the true classes."""
    shifted = outputs_NC - outputs_NC.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    return np.asarray(exponentials[np.arange(len(classes)), classes] / exponentials.sum(axis=1))


def kendall_tau(first: Array, second: Array) -> float | None:
    """Return tau-b, None where it is undefined because one side is constant.

    Raises:
        ConfigError: SciPy is not installed.
    """
    try:
        from scipy.stats import kendalltau
    except ImportError:
        raise ConfigError("rank correlations need SciPy: pip install 'ntkpipe[plot]'") from None
    if len(first) < 2:
        return None
    tau = float(kendalltau(first, second).statistic)
    return None if math.isnan(tau) else tau


def _compare(name: str, outputs_NC: Array, predictions_NT: Array, classes: Array, accuracy: float) -> dict[str, Scalar]:
    found = predictions_NT.argmax(1)
    probabilities = class_probabilities(outputs_NC, classes)
    inside = (probabilities > 0) & (probabilities < 1)
    own = predictions_NT[np.arange(len(classes)), classes]
    surrogate_accuracy = float((found == classes).mean())
    return {
        "model": name,
        "accuracy": surrogate_accuracy,
        "tad": surrogate_accuracy - accuracy,
        "agreement": float((found == outputs_NC.argmax(1)).mean()),
        "tau_margin": kendall_tau(margins(outputs_NC, classes), margins(predictions_NT, classes)),
        "tau": kendall_tau(probabilities[inside], own[inside]),
    }


def _draw(network: Array, scores: dict[str, Array], rows: dict[str, dict[str, Scalar]], split: str) -> bytes:
    figure = new_figure(max(4.2, 3.6 * len(scores)), 4.0)
    axes = figure.subplots(1, max(1, len(scores)), squeeze=False, sharex=True)[0]
    for axis, (name, values) in zip(axes, scores.items(), strict=False):
        agree = (values > 0) == (network > 0)
        axis.scatter(
            network[agree], values[agree], s=9, color=BLUE, alpha=0.6, linewidths=0, label="both right or wrong"
        )
        axis.scatter(network[~agree], values[~agree], s=16, color=RED, marker="x", label="one is wrong")
        axis.axhline(0, color=GREY, linewidth=0.7)
        axis.axvline(0, color=GREY, linewidth=0.7)
        row = rows[name]
        axis.set_title(f"{name}\naccuracy {_percent(row['accuracy'])}, tau {_number(row['tau_margin'])}", fontsize=10)
        axis.set_xlabel("margin of the network")
    axes[0].set_ylabel("margin of the kernel solution")
    if scores:
        axes[0].legend(fontsize=8, loc="lower right")
    figure.suptitle(
        f"Kernel solutions against the network (accuracy {_percent(rows['network']['accuracy'])}) on {split!r}",
        fontsize=11,
    )
    return png(figure)


def _percent(value: Scalar) -> str:
    return f"{100 * float(value or 0):.1f} %"


def _number(value: Scalar) -> str:
    return "undefined" if value is None else f"{float(value):.2f}"
