"""Preconditioned gradient steps on batches of some rows, all of whose effects on each other are known in advance.

While a solver descends on the rows of a window, coefficients change in two places only: at those rows, and along the
flattened directions. Predictions at the rows are therefore what they were before, plus K_MM times the former, plus the
directions' features times the latter; the rest of a row of K is read once per window, however many batches it is cut
into. In exact arithmetic these are the steps that would be taken if every batch read its rows anew.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from ntkpipe.workers.solvers.descent.momentum import Motion

POWER_ITERATIONS = 8

RELAXATION = 1.5
"""Step times largest eigenvalue of the batch; from 2 an update could grow the error."""


@final
@dataclass(frozen=True, slots=True)
class Window:
    """Some rows of K, and what is predicted at them before the first step. All tensors have one dtype."""

    kernel_MM: torch.Tensor
    """Between the rows, with a nugget on its diagonal if there is one."""
    features_MQ: torch.Tensor
    """Eigenfunctions e_i^T K_sM at the rows."""
    responses_MQ: torch.Tensor
    """What a step along a direction adds to what is predicted: the features, and a nugget where Nystrom points are."""
    fitted_MT: torch.Tensor
    targets_MT: torch.Tensor
    damping_Q1: torch.Tensor
    """How much of each direction is held back, see :func:`~ntkpipe.workers.solvers.descent.flattening.damping`."""
    decay: float = 0.0
    """The share of ridge |f|^2 that belongs to one row, ridge / N; 0 where the ridge is a nugget."""
    products_QT: torch.Tensor | None = None
    """e_i^T K_s times the coefficients before the first step, in terms of the Nystrom points; needed for a decay."""
    eigenvalues_Q1: torch.Tensor | None = None
    """Of K_s; needed for a decay."""


@final
@dataclass(frozen=True, slots=True)
class Descent:
    """What the steps on a window amount to."""

    kept: float
    """All former coefficients are multiplied by this; 1.0 without a decay."""
    changes_MT: torch.Tensor
    """Added to the coefficients of the rows."""
    back_QT: torch.Tensor
    """Added along the directions."""
    gradients_MT: torch.Tensor
    """Residuals as they were met; zero at rows that are in no batch."""
    top: float
    """The largest eigenvalues of the batches' preconditioned matrices, added up."""
    width: float
    """Their mean diagonal entries, added up."""


def descend(
    window: Window,
    batches: Iterable[torch.Tensor],
    step_scale: float,
    random: np.random.Generator,
    motion: Motion | None = None,
) -> Descent:
    """Take one step per batch of rows, given as int64 positions in the window.

    Steps are as long as the largest eigenvalue of the batch's own preconditioned matrix allows. Stored rows are often
    sorted by class, and for a batch of similar rows no bound for random batches holds.

    Args:
        window: The rows; without a decay if there is a motion.
        batches: Positions of the rows of a batch each.
        step_scale: By which steps are longer than usual.
        random: Starts the power iterations.
        motion: The velocity, which is updated; its way through the former coefficients is not part of the result.
    """
    assert motion is None or not window.decay
    kept, top_sum, width_sum = 1.0, 0.0, 0.0
    changes_MT = torch.zeros_like(window.targets_MT)
    gradients_MT = torch.zeros_like(window.targets_MT)
    back_QT = window.targets_MT.new_zeros(len(window.damping_Q1), window.targets_MT.shape[1])
    for batch_B in batches:
        kernel_BM, features_BQ = window.kernel_MM[batch_B], window.features_MQ[batch_B]
        gradient_BT = kept * window.fitted_MT[batch_B] - window.targets_MT[batch_B]
        gradient_BT += kernel_BM @ changes_MT + window.responses_MQ[batch_B] @ back_QT
        if motion is not None:
            gradient_BT += motion.fitted(batch_B)
        gradients_MT[batch_B] = gradient_BT
        vector_B1 = torch.from_numpy(random.standard_normal((len(batch_B), 1))).to(gradient_BT.dtype)
        top, width = _extent(kernel_BM[:, batch_B], features_BQ, window.damping_Q1, vector_B1)
        shrinks = window.decay * len(batch_B)
        top_sum, width_sum = top_sum + top + shrinks, width_sum + width + window.decay
        if not top + shrinks > 0:
            continue
        rate = step_scale * RELAXATION / (top + shrinks)
        if shrinks:
            kept, changes_MT, back_QT = _decayed(window, kept, changes_MT, back_QT, rate * shrinks)
        pull_QT = window.damping_Q1 * (features_BQ.T @ gradient_BT)
        if motion is not None:
            motion.push(rate, batch_B, gradient_BT, pull_QT)
            changes_MT += motion.changes_MT
            back_QT += motion.back_QT
        changes_MT[batch_B] -= rate * gradient_BT
        back_QT += rate * pull_QT
    return Descent(kept, changes_MT, back_QT, gradients_MT, top_sum, width_sum)


def critical_batch(batch_rows: int, tops: float, widths: float, largest: int) -> int:
    """Return the m at which the top eigenvalue, width + (m - 1) slope, is twice the width that it has for m = 1.

    Smaller batches make no more progress per row, larger ones make less.

    Args:
        batch_rows: The batch size for which the other two were measured.
        tops: Top eigenvalues, added up over batches.
        widths: Mean diagonal entries, added up over batches.
        largest: The most rows a batch may have.
    """
    if not (tops > 0 and widths > 0):
        return batch_rows
    growth = (tops / widths - 1) / max(batch_rows - 1, 1)
    return min(largest, int(1 / growth) + 1) if growth * largest > 1 else largest


def _extent(
    matrix_BB: torch.Tensor, features_BQ: torch.Tensor, damping_Q1: torch.Tensor, vector_B1: torch.Tensor
) -> tuple[float, float]:
    """Return the largest eigenvalue and the mean diagonal entry of a batch's preconditioned matrix.

    The eigenvalue is found by power iteration from a random vector, which never overestimates it. The diagonal is
    that of the preconditioned kernel itself: taking one minus the leverage for it would assume that k(x, x) = 1.
    """
    width = float((matrix_BB.diagonal() - features_BQ.square() @ damping_Q1.squeeze(1)).mean())
    damped_BQ, top = features_BQ * damping_Q1.T, 0.0
    for _ in range(POWER_ITERATIONS):
        vector_B1 = vector_B1 / torch.linalg.vector_norm(vector_B1)
        vector_B1 = matrix_BB @ vector_B1 - damped_BQ @ (features_BQ.T @ vector_B1)
        top = float(torch.linalg.vector_norm(vector_B1))
        if not top > 0:
            break
    return top, width


def _decayed(
    window: Window, kept: float, changes_MT: torch.Tensor, back_QT: torch.Tensor, share: float
) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Take a preconditioned step towards zero: everything shrinks, flattened directions by less."""
    assert window.products_QT is not None
    assert window.eigenvalues_Q1 is not None
    products_QT = kept * window.products_QT + window.features_MQ.T @ changes_MT + window.eigenvalues_Q1 * back_QT
    back_QT = (1 - share) * back_QT + share * window.damping_Q1 * products_QT
    return (1 - share) * kept, (1 - share) * changes_MT, back_QT
