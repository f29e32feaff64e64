"""Whether labels and numbers of samples fit what the solutions of a run ask for."""

from collections.abc import Mapping

import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.run import RunConfig
from ntkpipe.configs.solve.centres import CentreSolve
from ntkpipe.configs.solve.logistic import LogisticSolve
from ntkpipe.configs.solve.union import SolveConfig
from ntkpipe.storage.records import Geometry
from ntkpipe.workers.solvers.glm.losses import LOSSES
from ntkpipe.workers.solvers.solve import targets_of
from ntkpipe.workers.sources.data import SplitSource


def check_solves(config: RunConfig, geometry: Geometry, splits: Mapping[str, SplitSource]) -> None:
    """Refuse solutions that would fail once their kernels have been computed.

    Raises:
        ConfigError: Labels, or the number of samples, do not fit a solver.
    """
    train = splits[geometry.train_split]
    for solve, num_targets in zip(config.solve, geometry.solution_targets, strict=True):
        kernel, _ = geometry.matrix(solve.kernel)
        size = len(train) * kernel.width
        if isinstance(solve, CentreSolve) and solve.centres > size:
            raise ConfigError(
                f"solution {solve.name!r}: centres = {solve.centres} exceeds the {size} samples; ask for at most {size}."
            )
        if isinstance(solve, LogisticSolve):
            assert train.labels is not None, "the geometry refuses solutions without labels"
            targets_NT = targets_of(solve, train.labels, num_targets)
            _check_logistic(solve, targets_NT if kernel.width == 1 else targets_NT.reshape(size, 1))
        early_stopping = getattr(solve, "early_stopping", None)
        if early_stopping is not None:
            _check_early_stopping(solve, geometry, early_stopping.split, num_targets)


def _check_logistic(solve: LogisticSolve, targets_NT: torch.Tensor) -> None:
    if not solve.ridge > 0:
        raise ConfigError(f"solution {solve.name!r}: logistic regression needs a ridge above 0, found 0.")
    try:
        LOSSES[solve.loss].check(targets_NT)
    except ConfigError as error:
        raise ConfigError(f"solution {solve.name!r}: {error.message}") from None


def _check_early_stopping(solve: SolveConfig, geometry: Geometry, split: str, num_targets: int) -> None:
    shape = geometry.splits[split]
    if shape.width(solve.targets) != num_targets:
        found = {"none": "no labels", "classes": "classes", "values": f"{shape.num_targets} real targets"}[shape.labels]
        raise ConfigError(
            f"solution {solve.name!r} is to be stopped early on split {split!r}, whose labels have to be like those of "
            f"split {geometry.train_split!r}; found {found}."
        )
    if solve.targets == "one-hot" and num_targets == 1:
        raise ConfigError(
            f"solution {solve.name!r} cannot be stopped early by its share of wrong classes: there is one class only."
        )
