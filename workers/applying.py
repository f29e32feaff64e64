"""Applying the coefficients of solutions to samples that no solve has seen."""

from collections.abc import Sequence

import numpy as np
import torch

from ntkpipe.storage.arrays import Array
from ntkpipe.storage.solutions import SolutionRecord
from ntkpipe.workers.context import WorkerContext
from ntkpipe.workers.solvers.validation import prediction_loss


def predicted(context: WorkerContext, kernel: str, split: str, coefficients: Sequence[Array]) -> list[Array]:
    """Return K(split, train) alpha for several solutions of one kernel, (M, T) each, float64; one pass over its rows.

    As the solve stage predicts: from stored tiles, or from features or a formula where none are stored. Memory is that
    of a strip of tiles, (block, N), or of a block of features; of a formula both splits.

    Args:
        context: Of a run that holds the samples, and has computed what the kernel needs.
        kernel: Its reference.
        split: Of the samples.
        coefficients: (N, T) of each solution.
    """
    product = context.operators.between(kernel, split, context.spec.geometry.train_split)
    columns = [torch.from_numpy(np.array(alpha_NT)).reshape(product.shape[1], -1) for alpha_NT in coefficients]
    joined = product.matmat(torch.cat(columns, dim=1))
    found = torch.split(joined, [part.shape[1] for part in columns], dim=1)
    # A kernel of (sample, output) pairs has a row for every output.
    return [
        part.reshape(-1, alpha_NT.shape[1]).contiguous().numpy()
        for part, alpha_NT in zip(found, coefficients, strict=True)
    ]


def loss(record: SolutionRecord, predictions_MT: Array, labels: torch.Tensor | None) -> float | None:
    """Return the share of wrong classes, or the mean square error; None where the labels are missing or of another kind.

    A class that the solution has no column for is always predicted wrongly.
    """
    if labels is None or (record.classes and labels.dim() != 1):
        return None
    if record.classes:
        return float((predictions_MT.argmax(axis=1) != labels.numpy()).mean())
    targets_MT = labels.double().reshape(len(labels), -1)
    if targets_MT.shape[1] != predictions_MT.shape[1]:
        return None
    return prediction_loss(torch.from_numpy(predictions_MT), targets_MT, classes=False)
