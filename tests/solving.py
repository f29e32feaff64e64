"""Systems to solve, and solvers by name."""

import torch

import ntkpipe
from ntkpipe.configs.loading import load_solve
from ntkpipe.workers.solvers.loop import AbstractCheckpoint, Position
from ntkpipe.workers.solvers.registry import make_solver
from ntkpipe.workers.solvers.snapshot import join_state, split_state


def solver_of(method, **options):
    return make_solver(load_solve(method, options))


def rbf(size, *, seed=0, dtype=torch.float64):
    """A smooth kernel: eigenvalues fall quickly."""
    points = torch.randn(size, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    matrix = torch.exp(-torch.cdist(points, points).square() / 4)
    return ((matrix + matrix.T) / 2).to(dtype)


def laplace(size, *, seed=0, clusters=None, dtype=torch.float64):
    """A rough kernel: eigenvalues fall slowly. Clusters come one after the other, like classes that are sorted."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(size, 5, generator=generator, dtype=torch.float64)
    if clusters is not None:
        centres = 3 * torch.randn(clusters, 5, generator=generator, dtype=torch.float64)
        points = 0.3 * points + centres[torch.arange(size) * clusters // size]
    matrix = torch.exp(-torch.cdist(points, points) / 3)
    return ((matrix + matrix.T) / 2).to(dtype)


def targets(size, *, columns=3, seed=5):
    return torch.randn(size, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(matrix, y, ridge):
    return torch.linalg.solve(matrix.double() + ridge * torch.eye(len(matrix), dtype=torch.float64), y)


class Killed(Exception):
    """What a process that is killed cannot say."""


class MemoryCheckpoint(AbstractCheckpoint):
    """Keeps every position as the plain arrays and values that would be stored; dies after some of them."""

    def __init__(self, dies_after=None):
        self.saved = 0
        self.dies_after = dies_after
        self._kept = None

    def save(self, position):
        constants, changing, values = split_state(position.state)
        self._kept = constants | changing, values, position
        self.saved += 1
        if self.saved == self.dies_after:
            raise Killed

    def load(self, state_type):
        if self._kept is None:
            return None
        arrays, values, position = self._kept
        arrays = {name: array.copy() for name, array in arrays.items()}
        loop = {name: getattr(position, name) for name in Position.__slots__ if name != "state"}
        return Position(join_state(state_type, arrays, dict(values)), **loop)


LAPLACE = {"kind": "laplace", "bandwidth": 3.0}
MAPPED = {"kind": "fourier_features", "dim": 40, "bandwidth": 2.0}


def points(num, seed, labels="classes", columns=2):
    """A split of a run: three classes of points, real targets, or no labels."""
    inputs = torch.randn(num, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = {
        "classes": (inputs[:, 0] > 0).long() + (inputs[:, 1].abs() > 1).long(),
        "values": torch.sin(inputs[:, :columns]),
        "none": None,
    }
    return ntkpipe.Samples(inputs=inputs, labels=found[labels])


def run_config(solve, num=90, train=None, test=None, **changes):
    """Return the configuration of a run that solves with kernels of points; sections can be extended or replaced."""
    document = {
        "name": "solves",
        "data": {
            "splits": {
                name: {"kind": "python", "target": "solving:points", "options": {"num": size, "seed": seed} | options}
                for name, size, seed, options in (("train", num, 0, train or {}), ("test", 30, 1, test or {}))
            }
        },
        "kernels": [LAPLACE, MAPPED],
        "solve": [{"kernel": "laplace", "ridge": 0.1} | section for section in solve],
        "store": {"shard_rows": 32, "block_rows": 32, "dtype": "float64"},
        "resources": {"executor": "serial"},
    }
    for key, value in changes.items():
        document[key] = document.get(key, {}) | value if isinstance(value, dict) else value
    return document
