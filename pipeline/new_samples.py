"""Runs of new samples: what has to be computed before stored coefficients can be applied to them.

Such a run has the configuration of another one, its training split, one split of new samples, and of its kernels those
that the solutions need. It takes over everything of the training split that the other one has computed.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ntkpipe.configs.canonical import differences
from ntkpipe.configs.errors import ConfigError, RunMismatchError
from ntkpipe.configs.kernels.derived import WITH_STATISTICS, DerivedConfig
from ntkpipe.configs.loading import load_config
from ntkpipe.configs.run import RunConfig
from ntkpipe.pipeline.cost import Cost
from ntkpipe.pipeline.manifests import describe
from ntkpipe.pipeline.plan import Plan
from ntkpipe.pipeline.query.run import Run
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.records import Manifest
from ntkpipe.workers.sources.samples import Samples
from ntkpipe.workers.tasks import DeriveTask, FeaturesTask, KernelTask, Task

Data = str | os.PathLike[str] | Mapping[str, Any] | Samples | npt.ArrayLike
"""New samples: a NumPy file, ``package.module:callable``, a section of a configuration, samples, or only their inputs."""

_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

SPLIT: Final = "new"
"""The split of the new samples, unless the training split is called like this."""

FRESH: Final = ("executor", "address", "workers", "pools", "max_bad_share")
"""Resources of a run that a prediction does not inherit: it is small, computed where it is asked for, and has no holes."""


def new_split(run: Run) -> str:
    """Return the name of the split that new samples get."""
    return SPLIT if run.train_split != SPLIT else f"{SPLIT}_samples"


def new_samples_config(
    run: Run, kernels: Sequence[str], section: Mapping[str, Any], overrides: Sequence[str] = ()
) -> RunConfig:
    """Return the configuration of a run of new samples.

    Rows of kernels are stored where the run stores some, so that predictions are made as those of the run were; else
    they are multiplied out of features, or computed from a formula, and never stored.

    Args:
        run: That has solutions.
        kernels: The kernels that are needed, each a NAME or NAME@MEMBER.
        section: Of the new samples.
        overrides: Assignments to runtime fields, and to the section of the new samples.

    Raises:
        ConfigError: The section is not valid, or something else than resources and samples would change.
    """
    train, name, names = run.train_split, new_split(run), _with_parents(run.config, kernels)
    document = run.config.document()
    sections = [section for kernel, section in zip(run.config.kernels, document["kernels"], strict=True)
                if kernel.label in names]  # fmt: skip
    pairs = [[name, train]] if any(columns == train for _, columns in run.manifest.geometry.pairs) else []
    if any(kernel["kind"] in WITH_STATISTICS for kernel in sections):
        pairs.append([train, train])
    document |= {
        "data": {
            "splits": {train: document["data"]["splits"][train], name: dict(section)},
            "train": train,
            "pairs": pairs,
        },
        "kernels": sections,
        "solve": [],
        "analyses": [],
        "resources": {key: value for key, value in document["resources"].items() if key not in FRESH},
    }
    plain = load_config(document)
    asked = load_config(document, overrides)
    changed = [path for path, _, _ in differences(_fixed(plain, name), _fixed(asked, name))]
    if changed:
        raise ConfigError(
            f"{changed[0]} cannot be set for new samples: coefficients belong to the kernels of their own run. Set resources, "
            f"where files are, or data.splits.{name}."
        )
    return asked


def data_section(data: Data, options: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return the section of a configuration that new samples are read from.

    Args:
        data: Where they are, or what they are.
        options: Of a callable.
        file: To which those in memory are written.

    Raises:
        ConfigError: They are no numbers, or options are given to what is no callable.
    """
    if isinstance(data, Mapping):
        found = dict(data)
    elif isinstance(data, str | os.PathLike):
        text = os.fspath(data)
        if _IMPORT_PATH.fullmatch(text):
            return {"kind": "python", "target": text, "options": dict(options)}
        found = {"kind": "arrays", "inputs": text}
    else:
        given = data if isinstance(data, Samples) else Samples(data)  # type: ignore[arg-type]
        _save(given, file)
        found = {"kind": "arrays", "inputs": str(file)}
    if options:
        raise ConfigError(f"options are for a callable; there is none to which {', '.join(options)} could be given.")
    return found


def _save(samples: Samples, file: Path) -> None:
    parts = {"inputs": samples.inputs, "labels": samples.labels}
    arrays = {name: _numbers(name, values) for name, values in parts.items() if values is not None}
    if samples.ids is not None:
        arrays["ids"] = np.array(samples.ids, dtype=str)
    np.savez(file, **arrays)  # type: ignore[arg-type]


def _numbers(name: str, values: Any) -> npt.NDArray[Any]:
    try:
        found = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        found, reason = np.empty(0, object), str(error)
    else:
        reason = f"found {found.dtype}"
    if found.dtype.kind not in "biuf":
        raise ConfigError(
            f"the {name} of new samples must be numbers, as a NumPy array or a tensor: {reason}. A data set needs an import "
            "path, such as package.module:callable."
        )
    return found


def check_new_samples(run: Run, asked: Manifest) -> None:
    """Refuse to apply the coefficients of a run to kernels that are others today.

    Raises:
        RunMismatchError: Weights, training samples or code have changed; every difference is named.
    """
    one, other = _basis(run.manifest, asked), _basis(asked, asked)
    found = list(differences(one, other))
    if found:
        raise RunMismatchError(
            f"the solutions of {run.url} cannot be applied to new samples: their kernels would be others today. Differences:"
            f"{describe(found)}\nRestore what changed, or run it again."
        )


@dataclass(frozen=True, slots=True)
class StageWork:
    """What a stage of a run of new samples has to do."""

    stage: str
    num_tasks: int
    """That are computed."""
    num_taken: int
    """That are committed in the run and need not be, unless it turns out that they were made from something else."""
    cost: Cost
    """Of those that are computed."""


def work_of(run: Run, plan: Plan, ledger: Ledger) -> list[StageWork]:
    """Return the work of every stage that has any.

    Args:
        run: That has solutions.
        plan: Of the run of new samples.
        ledger: Of ``run``.
    """
    found, name = [], new_split(run)
    for stage in plan.stages:
        committed, tasks = ledger.committed(stage), list(plan.tasks(stage))
        todo = [task for task in tasks if name in _splits(task) or task.id not in committed]
        if tasks:
            cost = sum((plan.price(task) for task in todo), Cost())
            found.append(StageWork(stage, len(todo), len(tasks) - len(todo), cost))
    return found


def _splits(task: Task) -> tuple[str, ...]:
    match task:
        case FeaturesTask(shard=shard):
            return (shard.split,)
        case KernelTask(block=block):
            return (block.rows.split, block.columns.split)
        case DeriveTask(rows=rows):
            return (rows.split,)
    return ()


def _with_parents(config: RunConfig, references: Sequence[str]) -> set[str]:
    """Return the labels of kernels, and of all that they are made of."""
    found, left = set(), [reference.partition("@")[0] for reference in references]
    while left:
        label = left.pop()
        if label not in found:
            found.add(label)
            kernel = config.kernel(label)
            if isinstance(kernel, DerivedConfig):
                left += [reference.partition("@")[0] for reference in kernel.references]
    return found


def _fixed(config: RunConfig, name: str) -> dict[str, Any]:
    """Return what overrides must leave as it is."""
    document = config.semantic()
    return document | {"data": document["data"] | {"splits": dict(_others(document["data"]["splits"], name))}}


def _others(splits: Mapping[str, Any], name: str) -> Iterator[tuple[str, Any]]:
    return ((split, section) for split, section in splits.items() if split != name)


def _basis(manifest: Manifest, asked: Manifest) -> dict[str, Any]:
    """Return what the kernels between training samples and any others rest on, of those kernels that are asked for.

    How gradients are found is left out: it depends on which kernels share a pass, and only rounds differently.
    """
    geometry, train = manifest.geometry, asked.geometry.train_split
    labels = [kernel.name for kernel in asked.geometry.kernels]
    config, wanted = manifest.semantic, asked.fingerprints.keys() - {f"data.{split}" for split in asked.geometry.splits}
    names = [name for name in (*sorted(wanted), f"data.{train}") if not name.startswith("routes")]
    return {
        "numerics_version": manifest.numerics_version,
        "config": {key: config[key] for key in ("model", "projection", "store")}
        | {"data": {"splits": {train: config["data"]["splits"].get(train)}}},
        "fingerprints": {name: manifest.fingerprints.get(name) for name in names},
        "geometry": {
            "train_split": geometry.train_split,
            "num_outputs": geometry.num_outputs,
            "members": list(geometry.members),
            "kernels": {
                kernel.name: kernel.model_dump(mode="json") for kernel in geometry.kernels if kernel.name in labels
            },
        },
    }
