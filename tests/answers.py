"""Everything that can be asked of a run, as arrays that can be compared and stored."""

from collections.abc import Callable
from functools import partial

import numpy as np

from ntkpipe.pipeline.query.run import Run
from ntkpipe.storage.arrays import Array


def questions(run: Run) -> dict[str, Callable[[], Array]]:
    """Return all questions by name; asking one reads what it needs and nothing else."""
    geometry, asked = run.manifest.geometry, {}
    for split, shape in geometry.splits.items():
        asked[f"ids/{split}"] = partial(_texts, run.ids, split)
        if shape.labels != "none":
            asked[f"labels/{split}"] = partial(run.labels, split)
        if geometry.num_outputs:
            for member in geometry.members or ("",):
                asked[f"outputs/{member}/{split}"] = partial(run.outputs, split, *([member] if member else []))
    for reference in geometry.references:
        kernel, _ = geometry.matrix(reference)
        for rows, columns in geometry.pairs:
            for component in (None, *kernel.groups):
                name = f"kernel/{reference}/{rows}-{columns}/{component or ''}"
                asked[name] = partial(_matrix, run, reference, rows, columns, component)
        for split in geometry.splits:
            if kernel.symmetric and kernel.width == 1 and not kernel.cross:
                asked[f"diagonal/{reference}/{split}"] = partial(run.diagonal, reference, split)
            if kernel.feature_dim is not None and not kernel.cross:
                asked[f"features/{reference}/{split}"] = partial(_features, run, reference, split)
    for name in geometry.solutions:
        asked[f"solution/{name}"] = partial(run.solution, name)
        asked[f"residuals/{name}"] = partial(_residuals, run, name)
        for split in geometry.predicted_splits(name):
            asked[f"predictions/{name}/{split}"] = partial(run.predictions, name, split)
    for analysis in run.config.analyses:
        asked[f"analysis/{analysis.name}"] = partial(_bytes, run, analysis.name)
    return asked


def status(run: Run) -> dict[str, object]:
    """Return what a run says of itself."""
    found = run.status()
    return {"state": found.state, "stages": {stage.stage: [stage.done, stage.total] for stage in found.stages}}


def _texts(ask: Callable[[str], list[str]], split: str) -> Array:
    return np.array(ask(split))


def _matrix(run: Run, reference: str, rows: str, columns: str, component: str | None) -> Array:
    return run.kernel(reference, rows, columns, component=component)[:, :]


def _features(run: Run, reference: str, split: str) -> Array:
    return run.features[reference, split][:]


def _residuals(run: Run, name: str) -> Array:
    return np.array(run.solution_record(name).residuals)


def _bytes(run: Run, name: str) -> Array:
    return np.frombuffer(run.analysis(name), np.uint8)
