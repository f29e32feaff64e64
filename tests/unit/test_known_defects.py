"""Defects of other systems for gradient features, each as a test that it is not one of this system.

The letters are those of the defects' list: features that depend on the machine (a, e), half precision and sizes that fail
without a word (b), random streams that coincide (c, d), arbitrary scales (f), and maps that belong to a batch (g).
"""

import math
import subprocess
import sys
from pathlib import Path
from typing import get_args

import golden
import pytest
import torch
from torch import nn

import ntkpipe
from ntkpipe.configs.errors import NumericalError
from ntkpipe.configs.projection import ResolvedKind

KINDS = [kind for kind in get_args(ResolvedKind) if kind != "none"]
all_kinds = pytest.mark.parametrize("kind", KINDS)


def relative_error(found, expected):
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-300))


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def network(factor=1.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4), Scale(factor))


def samples(num=9):
    return torch.randn(num, 6, generator=torch.Generator().manual_seed(1))


def features_of(model, x, kind, *, dim=64, seed=0, **options):
    return ntkpipe.features(model, x, projection=ntkpipe.Projection(kind=kind, dim=dim, seed=seed), **options)


# (a) A map that depends on the number of multiprocessors. (e) Generators that do.


@all_kinds
def test_defect_a_features_depend_on_the_number_of_processors(kind):
    model, x = network(), samples()
    one = features_of(model, x, kind)
    torch.set_num_threads(2)
    try:
        two = features_of(model, x, kind)
    finally:
        torch.set_num_threads(1)
    assert relative_error(two, one) < 1e-6


def test_defect_a_features_of_two_processes_cannot_be_compared():
    script = (
        "import sys, torch, ntkpipe; sys.path.insert(0, sys.argv[1]); import golden; torch.manual_seed(7); torch.rand(3)\n"
        "for kind in sys.argv[2:]:\n"
        "    map = ntkpipe.Projection(kind=kind, dim=16, seed=3)\n"
        "    x = torch.tensor(golden.INPUTS)\n"
        "    found = ntkpipe.features(golden.build_model(), x, projection=map, dtype=torch.float64)\n"
        "    print(*found.flatten().tolist())"
    )
    command = [sys.executable, "-c", script, str(Path(golden.__file__).parent), *KINDS]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout.splitlines()
    x = torch.tensor(golden.INPUTS)
    for kind, line in zip(KINDS, lines, strict=True):
        there = torch.tensor([float(number) for number in line.split()], dtype=torch.float64)
        here = features_of(golden.build_model(), x, kind, dim=16, seed=3, dtype=torch.float64)
        assert relative_error(there, here.flatten()) < 1e-13


@all_kinds
def test_defect_e_features_depend_on_the_state_of_a_generator(kind):
    model, x = network(), samples()
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(features_of(model, x, kind))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*found)


# (b) Half precision without scaling, sizes that are no multiple of 512, launches that fail without a word.


@pytest.mark.parametrize("factor", [2.0**20, 2.0**-27])
@all_kinds
def test_defect_b_features_overflow_or_vanish_in_half_precision(kind, factor):
    """Gradients above 65504, or below 6e-8."""
    model, x = network(), samples()
    plain = features_of(model, x, kind)
    scaled = features_of(network(factor), x, kind)
    assert torch.isfinite(scaled).all()
    # A power of two changes no digit.
    assert relative_error(scaled / factor, plain) < 1e-6


@pytest.mark.parametrize("dim", [2, 10, 62, 514, 1026])
@all_kinds
def test_defect_b_the_number_of_features_must_be_a_multiple_of_512(kind, dim):
    model, x = network(), samples()
    found = features_of(model, x, kind, dim=dim)
    assert found.shape == (9, dim)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("dim", [64, 1000, 4096])
@all_kinds
def test_defect_b_all_features_are_zero(kind, dim):
    model, x = network(), samples()
    found = features_of(model, x, kind, dim=dim)
    exact = ntkpipe.kernel_matrix(model, x, kernel="trntk0").diagonal()
    assert bool((found.square().sum(dim=1) > exact / 10).all())
    halves = found.unflatten(1, (2, -1)).square().sum(dim=2)
    assert bool((halves > exact[:, None] / 40).all())


def test_defect_b_a_sample_whose_gradient_overflows_is_reported():
    model = golden.build_overflowing_model()
    with pytest.raises(NumericalError, match="sample 2"):
        ntkpipe.features(model, torch.tensor(golden.INPUTS))


# (c) Seeds of blocks and of checkpoints that coincide. (d) Seeds of parameters that are drawn from 500.


class Repeated(nn.Module):
    """Many parameters with one gradient: if two of them share a map, their features add up as if they were parallel."""

    def __init__(self, num, width=4):
        super().__init__()
        self.parts = nn.ParameterList([torch.zeros(width) for _ in range(num)])

    def forward(self, x):
        return sum(x @ part for part in self.parts).unsqueeze(1)


@pytest.mark.parametrize("kind", ["rademacher", "sjlt", "tensorsketch", "gaussian"])
def test_defect_d_two_parameters_share_a_map(kind):
    num, dim = 53, 8192
    x = torch.tensor([[1.0, -2.0, 0.5, 1.5]])
    found = features_of(Repeated(num), x, kind, dim=dim)
    exact = num * float(x.square().sum())
    # One pair that coincides adds 2 / 53, and there are 2.7 of them if seeds are drawn from 500; chance adds sqrt(2 / K).
    assert abs(float(found.square().sum()) / exact - 1) < 1.7 / 53
    estimates = [float(features_of(Repeated(num), x, kind, dim=dim, seed=s).square().sum()) / exact for s in range(4)]
    assert abs(sum(estimates) / 4 - 1) < 4 * math.sqrt(2 / dim / 4)


@pytest.mark.parametrize("kind", ["rademacher", "sjlt", "tensorsketch", "gaussian"])
def test_defect_c_blocks_of_features_repeat(kind):
    """In a map of many features none repeats another, nor those of other seeds, as if blocks of rows shared streams."""
    model, x = network(), samples(3)
    maps = [features_of(model, x, kind, dim=20_480, seed=seed) for seed in range(5)]
    columns = torch.cat(maps, dim=1)
    columns = columns[:, columns.abs().amax(dim=0) > 0]
    # Up to the sign. Equal columns by chance would agree in all three samples, to the last digit.
    signs = torch.sign(columns[0]).masked_fill(columns[0] == 0, 1.0)
    assert columns.shape[1] > 1000
    if kind in ("rademacher", "gaussian"):
        assert torch.unique(columns * signs, dim=1).shape[1] == columns.shape[1] == 5 * 20_480
    blocks = torch.stack([part.flatten() for found in maps for part in found.split(128, dim=1)])
    blocks = blocks[blocks.any(dim=1)]
    assert len(blocks) > 100
    assert torch.unique(blocks, dim=0).shape[0] == len(blocks)


@all_kinds
def test_defect_c_seeds_that_are_close_share_parts_of_their_maps(kind):
    """Estimates from different seeds are independent: their mean is as much better as their number says."""
    model, x = network(), samples(6)
    exact = ntkpipe.kernel_matrix(model, x, kernel="trntk0", dtype=torch.float64)
    norms = exact.diagonal().sqrt()
    errors = []
    for seed in (0, 1, 2, 3, 100, 101, 1000, 1001, 100_000, 100_001, 100_100, 200_000, 2**31, 2**32, 2**62, 2**62 + 1):
        map_ = ntkpipe.Projection(kind=kind, dim=128, seed=seed)
        found = ntkpipe.kernel_matrix(model, x, kernel="trntk0", projection=map_, dtype=torch.float64)
        errors.append((found - exact) / torch.outer(norms, norms))
    errors = torch.stack(errors).flatten(1)
    assert len(torch.unique(errors, dim=0)) == len(errors)
    alone, together = float(errors.square().mean().sqrt()), float(errors.mean(dim=0).square().mean().sqrt())
    assert together < 2 * alone / math.sqrt(len(errors))
    correlations = torch.corrcoef(errors) - torch.eye(len(errors), dtype=torch.float64)
    assert float(correlations.abs().max()) < 0.97


# (f) Features whose scale is arbitrary: unscaled masks, a factor of sqrt(P) or of P / K.


class Wide(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, width))

    def forward(self, x):
        return nn.functional.linear(x, self.weight)


@pytest.mark.parametrize("width", [4, 200])
@all_kinds
def test_defect_f_the_scale_of_features_depends_on_sizes(kind, width):
    x = torch.randn(4, width, generator=torch.Generator().manual_seed(2))
    exact = ntkpipe.kernel_matrix(Wide(width), x, kernel="trntk0")
    for dim in (64, 256):
        # The mean of the norm over seeds; Kronecker maps have by far the largest variance.
        ratios = torch.stack(
            [
                features_of(Wide(width), x, kind, dim=dim, seed=seed).square().sum(dim=1) / exact.diagonal()
                for seed in range(20)
            ]
        ).mean(dim=1)
        assert abs(float(ratios.mean()) - 1) < 5 * float(ratios.std()) / math.sqrt(20) + 1e-6
        assert abs(float(ratios.mean()) - 1) < 0.5


# (g) A map that is drawn anew for every batch.


@all_kinds
def test_defect_g_features_depend_on_the_batch(kind):
    model, x = network(), samples()
    whole = features_of(model, x, kind, batch_size=9)
    for batch_size in (1, 2, 5):
        assert relative_error(features_of(model, x, kind, batch_size=batch_size), whole) < 1e-6
    order = torch.tensor([8, 3, 0, 5, 1, 7, 2, 6, 4])
    assert relative_error(features_of(model, x[order], kind, batch_size=4), whole[order]) < 1e-6


@all_kinds
def test_defect_g_features_of_rows_and_of_columns_belong_to_different_maps(kind):
    model, x = network(), samples()
    map_ = ntkpipe.Projection(kind=kind, dim=64)
    whole = ntkpipe.kernel_matrix(model, x, kernel="trntk0", projection=map_)
    block = ntkpipe.kernel_matrix(model, x[:3], x[3:], kernel="trntk0", projection=map_, batch_size=2)
    assert relative_error(block, whole[:3, 3:]) < 1e-5
