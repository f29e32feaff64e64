"""How faithfully kernel solutions imitate the network they were made from."""

import math
from typing import Any, final

import numpy as np
import numpy.typing as npt

from ntkpipe.configs.analyses import FidelityAnalysis
from ntkpipe.configs.errors import ConfigError
from ntkpipe.workers.analyses.base import AbstractAnalysis, AnalysisResult, RunView, Scalar, require_classes
from ntkpipe.workers.analyses.naming import summary_keys
from ntkpipe.workers.analyses.plotting import BLUE, GREY, RED, new_figure, png

Array = npt.NDArray[Any]

NETWORK = "network"
PANELS_PER_ROW = 3


@final
class Fidelity(AbstractAnalysis):
    """Accuracy, agreement and rank correlation on a test split.

    For a network with outputs f and a solution with predictions g, over test samples of class y:

    * accuracy of both by argmax, and their difference TAD = accuracy(g) - accuracy(f);
    * agreement, the share of samples with the same argmax;
    * ``tau_margin``, Kendall's tau-b between the margins f_y - max_{c != y} f_c and g_y - max_{c != y} g_c. Both say
      how clearly a model prefers the class, and ranks do not depend on their scales. No probability saturates;
    * ``tau``, Kendall's tau-b between the softmax probability p_y of the class under f and the prediction g_y. A
      solution regresses on one-hot targets, so that g_y is itself a least-squares estimate of the probability of y: no
      softmax is applied to it. Samples with p_y exactly 0 or 1 in float64 are left out, as in the protocol of
      arXiv:2305.14585 (which fits a logistic model on kernel rows and takes its softmax in place of g_y);
      ``tau_samples`` counts those that remain.
    """

    def __init__(self, config: FidelityAnalysis) -> None:
        self._config = config

    def compute(self, run: RunView) -> AnalysisResult:
        """Compare every solution with the network; O(N C) memory.

        When the configuration names no solutions, those without one column per class (real targets) are listed under
        ``left_out``. Without any solution there is no picture.

        Raises:
            ConfigError: The split has no classes, or a model has no output for one of them.
        """
        split = self._config.split
        classes = require_classes(run, split, self._config.name)
        outputs_NC = run.network_outputs(split, self._config.member)
        self._check_columns("the network", outputs_NC, classes)
        predictions, left_out = self._predictions(run, classes)
        reserved = ("split", "samples", "left_out", NETWORK)
        keys = summary_keys("solution", predictions, reserved)
        accuracy = float((outputs_NC.argmax(1) == classes).mean())
        inside = _inside(class_probabilities(outputs_NC, classes))
        # The network agrees with itself by definition; its row is what solutions are compared with.
        own: dict[str, Scalar] = {"model": NETWORK, "accuracy": accuracy, "tad": 0.0, "agreement": 1.0}
        own |= {"tau_margin": 1.0, "tau": 1.0, "tau_samples": int(inside.sum())}
        rows = [own]
        rows += [_compare(keys[name], outputs_NC, found, classes, accuracy) for name, found in predictions.items()]
        summary: dict[str, Scalar | list[Scalar] | dict[str, Scalar]] = {"split": split, "samples": len(classes)}
        if left_out:
            summary["left_out"] = left_out
        by_model = {str(row["model"]): {key: row[key] for key in row if key != "model"} for row in rows}
        summary |= by_model
        scores = {keys[name]: margins(found, classes) for name, found in predictions.items()}
        picture = _draw(margins(outputs_NC, classes), scores, by_model, split) if scores else None
        return AnalysisResult(summary, rows, picture)

    def _predictions(self, run: RunView, classes: Array) -> tuple[dict[str, Array], list[Scalar]]:
        """Return the (N, T) predictions by solution, and the names of solutions that cannot be compared."""
        found: dict[str, Array] = {}
        left_out: list[Scalar] = []
        for name in self._config.solutions or run.solution_names:
            predictions_NT = run.predictions(name, self._config.split)
            if not self._config.solutions and not _has_columns(predictions_NT, classes):
                left_out.append(name)
                continue
            self._check_columns(f"solution {name!r}", predictions_NT, classes)
            found[name] = predictions_NT
        return found, left_out

    def _check_columns(self, what: str, outputs_NC: Array, classes: Array) -> None:
        if not _has_columns(outputs_NC, classes):
            raise ConfigError(
                f"analysis {self._config.name!r} compares one output per class, at least two; {what} has "
                f"{outputs_NC.shape[1]}, but split {self._config.split!r} has class {int(classes.max())}."
            )


def margins(outputs_NC: Array, classes: Array) -> Array:
    """Return (N,) margins f_y - max_{c != y} f_c: positive where the argmax is right, for C of at least 2."""
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


def _has_columns(outputs_NC: Array, classes: Array) -> bool:
    return bool(outputs_NC.shape[1] > max(1, int(classes.max())))


def _inside(probabilities: Array) -> Array:
    return np.asarray((probabilities > 0) & (probabilities < 1))


def _compare(key: str, outputs_NC: Array, predictions_NT: Array, classes: Array, accuracy: float) -> dict[str, Scalar]:
    found = predictions_NT.argmax(1)
    probabilities = class_probabilities(outputs_NC, classes)
    inside = _inside(probabilities)
    own = predictions_NT[np.arange(len(classes)), classes]
    surrogate_accuracy = float((found == classes).mean())
    return {
        "model": key,
        "accuracy": surrogate_accuracy,
        "tad": surrogate_accuracy - accuracy,
        "agreement": float((found == outputs_NC.argmax(1)).mean()),
        "tau_margin": kendall_tau(margins(outputs_NC, classes), margins(predictions_NT, classes)),
        "tau": kendall_tau(probabilities[inside], own[inside]),
        "tau_samples": int(inside.sum()),
    }


def _draw(network: Array, scores: dict[str, Array], rows: dict[str, dict[str, Scalar]], split: str) -> bytes:
    """Scatter margins: probabilities of a trained network crowd at 1, where nothing could be seen."""
    num_columns = min(len(scores), PANELS_PER_ROW)
    num_rows = math.ceil(len(scores) / num_columns)
    figure = new_figure(max(5.4, 3.6 * num_columns), 3.5 * num_rows + 1.0)
    axes = figure.subplots(num_rows, num_columns, squeeze=False, sharex=True, sharey=True)
    for axis, (key, values) in zip(axes.flat, scores.items(), strict=False):
        agree = (values > 0) == (network > 0)
        axis.scatter(network[agree], values[agree], s=9, color=BLUE, alpha=0.6, linewidths=0)
        axis.scatter(network[~agree], values[~agree], s=18, color=RED, marker="x")
        axis.axhline(0, color=GREY, linewidth=0.7)
        axis.axvline(0, color=GREY, linewidth=0.7)
        row = rows[key]
        axis.set_title(
            f"{key}\naccuracy {_percent(row['accuracy'])}, tau of margins {_number(row['tau_margin'])}", fontsize=10
        )
    for axis in axes[:, 0]:
        axis.set_ylabel("margin of the solution")
    for axis in axes.flat[len(scores) :]:
        axis.set_visible(False)
    # Also under the panels above an empty place.
    for axis in axes.flat[max(0, len(scores) - num_columns) : len(scores)]:
        axis.set_xlabel("margin of the network")
        axis.tick_params(labelbottom=True)
    markers = axes.flat[0].collections[:2]
    figure.legend(
        markers, ["both right or both wrong", "one is wrong"], loc="outside lower center", ncols=2, fontsize=9
    )
    figure.suptitle(
        f"Kernel solutions against the network\n"
        f"(accuracy {_percent(rows[NETWORK]['accuracy'])}, {len(network):,} samples of {split!r})",
        fontsize=11,
    )
    return png(figure)


def _percent(value: Scalar) -> str:
    return f"{100 * float(value or 0):.1f} %"


def _number(value: Scalar) -> str:
    return "undefined" if value is None else f"{float(value):.2f}"
