import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from projection_oracles import (
    khatri_rao_law,
    law,
    normal_law,
    scalar_map,
    scalar_normal,
    scalar_sign,
    scalar_sparse_column,
    signs_law,
    tensor_sketch_law,
)
from pydantic import ValidationError

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.projection import Projection
from ntkpipe.workers.hadamard import hadamard
from ntkpipe.workers.jacobians.factors import base
from ntkpipe.workers.jacobians.factors.dense import DenseFactor
from ntkpipe.workers.jacobians.factors.outer import OuterFactor
from ntkpipe.workers.jacobians.factors.rows import RowFactor
from ntkpipe.workers.jacobians.factors.sum import SumFactor
from ntkpipe.workers.projections import gaussian, rademacher, sides, sjlt, srht, tensor_sketch
from ntkpipe.workers.projections.dense import random_normals
from ntkpipe.workers.projections.registry import make_projection


def each(name, kinds):
    return pytest.mark.parametrize(name, kinds, ids=lambda kind: "-".join(map(str, kind.values())))


SPARSE = [{"kind": "sjlt", "nonzeros": 1}, {"kind": "sjlt", "nonzeros": 2}]
SIDED = [{"kind": "khatri-rao"}, {"kind": "kronecker"}]
ENTRYWISE = [{"kind": "rademacher"}, {"kind": "gaussian"}, *SPARSE]  # a function of the stacked coordinate alone
STRUCTURED = [*SIDED, {"kind": "tensorsketch"}]  # a function of row and column, with two ways to apply it
KINDS = [*ENTRYWISE, {"kind": "srht"}, *STRUCTURED]
all_kinds, sparse_kinds, entrywise_kinds, sided_kinds = (
    each("kind", kinds) for kinds in (KINDS, SPARSE, ENTRYWISE, SIDED)
)


def projection_of(kind, dim=24, seed=0):
    return make_projection(Projection(dim=dim, seed=seed, **kind))


def normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def integers(*shape, dtype=torch.float32):
    """Small integers: their sums are exact in any order."""
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def dense_of(gradients_BVRQ, *, transposed=False):
    factor = DenseFactor(gradients_BVRQ.flatten(2), gradients_BVRQ.shape[2:])
    factor.transposed = transposed
    return factor


def map_of(projection, name="weight", sizes=(2, 3, 5), device="cpu"):
    """The map of a parameter, one row for each stacked coordinate: the features of unit gradients."""
    num = math.prod(sizes)
    unit_PP = torch.eye(num, dtype=torch.float64, device=device)
    return projection.project({name: dense_of(unit_PP.view(num, *sizes))}).cpu()


def assert_close(found, expected, tolerance=1e-10):
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)


# The documented function.


@all_kinds
@pytest.mark.parametrize("dim", [8, 24, 132])
def test_the_map_is_the_documented_function_of_its_coordinates(kind, dim):
    found_PK = map_of(projection_of(kind, dim, seed=7), "köln.weight")
    assert_close(found_PK, scalar_map(kind, dim, 7, "köln.weight", (2, 3, 5)), 1e-14)


@entrywise_kinds
@pytest.mark.parametrize("start", [0, 2**32 - 3])
def test_coordinates_beyond_32_bits_are_coordinates_of_their_own(kind, start):
    name, dim = kind["kind"], 24
    found_PK = projection_of(kind, dim, seed=7).matrix("w", start, start + 6)
    assert found_PK.dtype == torch.float64
    columns = range(start, start + 6)
    if name == "sjlt":
        expected = [scalar_sparse_column((name, 2, 7, "w"), column, dim, 2 * kind["nonzeros"]) for column in columns]
    else:
        entry, version = (scalar_sign, 2) if name == "rademacher" else (scalar_normal, 1)
        expected = [[entry((name, version, 7, "w"), column, k) for k in range(dim)] for column in columns]
    torch.testing.assert_close(found_PK, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=1e-14)


@entrywise_kinds
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_slice_of_the_map_has_the_bits_of_the_whole(kind, data):
    start = data.draw(st.integers(0, 200))
    stop = data.draw(st.integers(start, 200))
    projection = projection_of(kind, 200)
    assert torch.equal(projection.matrix("w", start, stop), projection.matrix("w", 0, 200)[start:stop])


@each("kind", ENTRYWISE[:2])
def test_the_first_features_of_a_larger_dense_map_are_those_of_a_smaller_one(kind):
    large, small = projection_of(kind, 300), projection_of(kind, 70)
    assert torch.equal(large.matrix("w", 5, 25)[:, :70], small.matrix("w", 5, 25))


def hadamard_entry(row, column):
    return (-1.0) ** (row & column).bit_count()


@pytest.mark.parametrize("length", [1, 2, 32, 64, 128, 8192])
def test_the_hadamard_transform_is_that_of_sylvester(length):
    columns = [place % length for place in (0, 1, length // 2 + 1, length - 1, 1000)]
    units = torch.zeros(len(columns), length, dtype=torch.float64)
    units[range(len(columns)), columns] = 1
    expected = [[hadamard_entry(row, column) for row in range(length)] for column in columns]
    assert hadamard(units).tolist() == expected


# One contract for all kinds: a linear map of gradients, whatever their form, their batch and the cuts of the work.


@all_kinds
def test_features_are_linear_and_add_up_over_parameters(kind):
    projection = projection_of(kind)
    first, second = normal(2, 3, 2, 4, 5)
    vector = normal(3, 2, 7, 1)
    mixed = projection.project({"w": dense_of(2 * first - 3 * second), "b": dense_of(vector)})
    parts = [projection.project({name: dense_of(g)}) for name, g in (("w", first), ("w", second), ("b", vector))]
    assert_close(mixed, 2 * parts[0] - 3 * parts[1] + parts[2])


def outer(batch, vectors, positions, rows, columns, *, transposed=False, dtype=torch.float64):
    out, inputs = (columns, rows) if transposed else (rows, columns)
    deltas = normal(batch, vectors, positions, out, dtype=dtype, seed=1)
    return OuterFactor(normal(batch, positions, inputs, dtype=dtype), deltas, transposed=transposed)


def looked_up(batch, vectors, positions, rows, columns, dtype=torch.float64):
    ids_BT = torch.randint(0, rows, (batch, positions), generator=torch.Generator().manual_seed(2))
    ids_BT[:, -1] = ids_BT[:, 0]
    return RowFactor(ids_BT, normal(batch, vectors, positions, columns, dtype=dtype, seed=3), rows)


def forms(vectors, rows=9, columns=10, batch=4, dtype=torch.float64):
    sizes = {"rows": rows, "columns": columns, "dtype": dtype}
    table = looked_up(batch, vectors, 5, **sizes)
    return {
        "outer": outer(batch, vectors, 1, **sizes),
        "outer-positions": outer(batch, vectors, 5, **sizes),
        "transposed": outer(batch, vectors, 1, transposed=True, **sizes),
        "transposed-positions": outer(batch, vectors, 5, transposed=True, **sizes),
        "rows": table,
        "sum": SumFactor(table, outer(batch, vectors, 3, **sizes)),
        "one-column": outer(batch, vectors, 2, rows, 1, dtype=dtype),
        "one-row": outer(batch, vectors, 2, 1, columns, dtype=dtype),
    }


def force(monkeypatch, route):
    """Make projections that have a choice take one way to apply their map."""
    seconds = {"apart": (0.0, 1.0), "materialised": (1.0, 0.0)}[route]
    monkeypatch.setattr(tensor_sketch.TensorSketchProjection, "transform_seconds", lambda *_: seconds)
    monkeypatch.setattr(sides.SignedSides, "ways", lambda *_: dict(zip(("sides", "gradients"), seconds, strict=True)))


all_routes = pytest.mark.parametrize(
    ("kind", "route"),
    [(kind, route) for kind in KINDS for route in ("apart", "materialised")[kind not in STRUCTURED :]],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)


@all_routes
@pytest.mark.parametrize(("dim", "vectors"), [(4, 3), (16, 1), (16, 3), (80, 3)])
def test_every_form_of_the_same_gradients_has_the_same_features(kind, dim, vectors, route, monkeypatch):
    force(monkeypatch, route)
    projection = projection_of(kind, dim)
    for factor in forms(vectors).values():
        gradients_BVRQ = factor.dense().unflatten(2, (factor.num_rows, factor.num_columns))
        found_BK = projection.project({"w": factor})
        assert_close(found_BK, projection.project({"w": dense_of(gradients_BVRQ, transposed=factor.transposed)}))
        if factor.transposed and kind in STRUCTURED:  # the layer's other side is stacked
            assert_close(found_BK, projection_of(kind, dim).project({"w^T": dense_of(gradients_BVRQ.mT)}))
        else:
            assert_close(found_BK, projection.project({"w": dense_of(gradients_BVRQ)}))


def of_vectors(factor, first, last):
    """The factor of some of the output vectors, as a pass over them computes it."""
    match factor:
        case OuterFactor():
            inputs_BTI = factor.inputs(0, factor.num_samples)
            part = OuterFactor(inputs_BTI, factor.like[:, first:last], transposed=factor.transposed)
        case RowFactor():
            part = RowFactor(factor.ids_BT, factor.like[:, first:last], factor.num_rows)
        case SumFactor():
            part = SumFactor(*(of_vectors(one, first, last) for one in factor.parts()))
        case _:
            part = dense_of(factor.gradients_BVP[:, first:last].unflatten(2, (factor.num_rows, factor.num_columns)))
    part.first_vector = first
    return part


@all_routes
@pytest.mark.parametrize("dim", [8, 24])
def test_passes_over_some_of_the_output_vectors_add_up_to_all(kind, dim, route, monkeypatch):
    force(monkeypatch, route)
    projection = projection_of(kind, dim)
    everything = forms(5, rows=4, columns=5)
    everything["dense"] = dense_of(everything["rows"].dense().unflatten(2, (4, 5)))
    everything["vector"] = dense_of(normal(4, 5, 3, 1))
    for factor in everything.values():
        passes = [projection.project({"w": of_vectors(factor, *part)}) for part in ((0, 2), (2, 3), (3, 5))]
        assert_close(sum(passes), projection.project({"w": factor}))


@all_kinds
def test_ways_are_predicted_for_every_form(kind):
    projection = projection_of(kind)
    for name, factor in forms(3).items():
        for part in factor.parts():
            ways = projection.ways(part)
            assert all(seconds > 0 for seconds in ways.values())
            assert len(ways) == (2 if kind in STRUCTURED and isinstance(part, OuterFactor) else 1), name


@sided_kinds
def test_layers_of_many_positions_are_materialised_and_others_are_not(kind):
    projection = projection_of(kind, 512)
    for positions, cheapest in ((1, "sides"), (400, "gradients")):
        ways = projection.ways(outer(2, 1, positions, 12, 30))
        assert min(ways, key=ways.get) == cheapest


def cut_finely(monkeypatch):
    monkeypatch.setattr(base, "SLICE_BYTES", 4 * 64 * 7)
    for module, name in (
        *((module, "SLICE_ENTRIES") for module in (rademacher, gaussian, sides)),
        *((module, "BLOCK_NUMBERS") for module in (sides, tensor_sketch)),
    ):
        monkeypatch.setattr(module, name, 130)
    monkeypatch.setattr(sjlt, "SLICE_ENTRIES", 16)


@all_routes
def test_features_do_not_depend_on_how_the_work_is_cut(kind, route, monkeypatch):
    force(monkeypatch, route)
    factors = forms(2, batch=7)
    whole = {name: projection_of(kind, 40).project({"w": factor}) for name, factor in factors.items()}
    cut_finely(monkeypatch)
    for name, factor in factors.items():
        assert_close(projection_of(kind, 40).project({"w": factor}), whole[name])


@all_routes
def test_features_of_a_batch_are_those_of_its_samples_alone(kind, route, monkeypatch):
    force(monkeypatch, route)
    projection = projection_of(kind)
    for factor in forms(2, batch=64).values():
        features_BK = projection.project({"w": factor})
        for start, stop in ((0, 1), (63, 64), (17, 40)):
            alone_BK = projection.project({"w": factor.samples(start, stop)})
            assert_close(alone_BK, features_BK[start:stop])


@all_kinds
def test_the_bits_of_the_map_do_not_depend_on_the_batch(kind):
    projection = projection_of(kind)
    units_PVRQ = torch.eye(30, dtype=torch.float64).view(30, 2, 3, 5)
    alone = [projection.project({"weight": dense_of(unit_1VRQ)}) for unit_1VRQ in units_PVRQ.split(1)]
    assert torch.equal(torch.cat(alone), map_of(projection))


@each("kind", [kind for kind in KINDS if kind["kind"] != "gaussian"])
def test_exact_sums_have_the_same_bits_for_any_batch_and_cut(kind, monkeypatch):
    gradients_BVRQ = integers(9, 2, 6, 25)
    whole_BK = projection_of(kind, 40).project({"w": dense_of(gradients_BVRQ)})
    cut_finely(monkeypatch)
    projection = projection_of(kind, 40)
    for first, stop in ((0, 9), (3, 4), (2, 8)):
        assert torch.equal(projection.project({"w": dense_of(gradients_BVRQ[first:stop])}), whole_BK[first:stop])


@all_routes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_dtype_of_the_gradients_is_kept(kind, dtype, route, monkeypatch):
    force(monkeypatch, route)
    for factor in forms(2, dtype=dtype).values():
        assert projection_of(kind).project({"w": factor}).dtype == dtype


@all_kinds
def test_no_coordinates_add_nothing(kind):
    assert not projection_of(kind).project({"w": DenseFactor(torch.zeros(3, 2, 0), (0,))}).any()


@all_routes
@pytest.mark.parametrize("magnitude", [1e6, 1e-7, 2.0**100, 2.0**-100])
def test_large_and_small_gradients_survive_in_float32(kind, magnitude, route, monkeypatch):
    force(monkeypatch, route)
    projection = projection_of(kind)
    inputs_BTI, deltas_BVTO = normal(4, 3, 20, dtype=torch.float32), normal(4, 2, 3, 15, dtype=torch.float32)
    each_side = math.sqrt(magnitude)
    factors = [OuterFactor(inputs_BTI * each_side, deltas_BVTO * each_side)]
    factors.append(DenseFactor(factors[0].dense(), (15, 20)))
    for factor in factors:
        expected_BK = projection.project({"w": DenseFactor(factor.dense().double(), (15, 20))})
        difference = (projection.project({"w": factor}).double() - expected_BK).norm()
        assert difference < 2e-6 * expected_BK.norm()


@all_kinds
def test_seeds_parameters_and_halves_have_maps_of_their_own(kind):
    maps = []
    for seed in (0, 1, 1000, 100_000):
        projection = projection_of(kind, 128, seed)
        for name in (*(f"layers.{index}.weight" for index in range(8)), "layers.0.weight^", "layers.0"):
            map_PK = map_of(projection, name, sizes=(1, 5, 8))
            maps += [half_PW.contiguous().numpy().tobytes() for half_PW in map_PK.split(64, dim=1)]
    assert len(set(maps)) == len(maps) == 4 * 10 * 2


def test_kinds_have_maps_and_fingerprints_of_their_own():
    maps = [map_of(projection_of(kind)).numpy().tobytes() for kind in KINDS]
    assert len(set(maps)) == len(KINDS)
    settings = [(kind, dim, seed) for kind in KINDS for dim in (24, 48) for seed in (0, 1)]
    fingerprints = [projection_of(*setting).fingerprint() for setting in settings]
    assert len(set(fingerprints)) == len(settings)
    assert fingerprints == [projection_of(*setting).fingerprint() for setting in settings]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@all_routes
def test_a_gpu_draws_the_same_map_and_repeats_its_own_bits(kind, route, monkeypatch):
    force(monkeypatch, route)
    projection = projection_of(kind)
    assert_close(map_of(projection, device="cuda"), map_of(projection), 1e-14)
    table, layer = looked_up(9, 2, 5, 11, 7), outer(9, 2, 3, 11, 7)
    on_gpu = [
        RowFactor(table.ids_BT.cuda(), table.deltas_BVTQ.cuda(), 11),
        OuterFactor(layer.inputs(0, 9).cuda(), layer.like.cuda()),
        DenseFactor(layer.dense().cuda(), (11, 7)),
    ]
    for one, other in zip((table, layer, layer), on_gpu, strict=True):
        features_BK = projection.project({"w": other})
        assert_close(features_BK.cpu(), projection.project({"w": one}))
        if kind["kind"] != "tensorsketch" and not isinstance(other, RowFactor):  # these add by atomic operations
            assert torch.equal(projection.project({"w": other}), features_BK)


# Laws. A few dominant coordinates tell signs from normal numbers, rank one tells sides that are random apart.

NUM_SEEDS = 300
SIZES = {"w": (2, 3, 4), "bias": (2, 3, 1), "scale": (2, 1, 1)}


def law_cases():
    """Pairs of gradients, for each parameter (2, V, R, Q)."""
    mixed = {name: normal(2, *size, seed=index) for index, (name, size) in enumerate(SIZES.items())}
    for pair in mixed.values():
        pair[1] += 0.5 * pair[0]
    heavy = {name: pair.clone() for name, pair in mixed.items()}
    heavy["w"][:, 1, 2, 3] = torch.tensor([7.0, 9.0])
    rank_one = {name: torch.zeros_like(pair) for name, pair in mixed.items()}
    rank_one["w"] += torch.einsum("nd,ni->ndi", normal(2, 6, seed=5), normal(2, 4, seed=6).abs()).view(2, 2, 3, 4)
    itself = {name: pair[:1].expand_as(pair) for name, pair in rank_one.items()}
    vector = {**{name: torch.zeros_like(pair) for name, pair in mixed.items()}, "bias": mixed["bias"]}
    return {"mixed": mixed, "heavy": heavy, "rank-one": rank_one, "itself": itself, "vector": vector}


def estimates(kind, dim, cases):
    """Estimates by the first and by the last features, (2, cases, seeds)."""
    factors = {name: dense_of(torch.cat([case[name] for case in cases])) for name in SIZES}
    found = []
    for seed in range(NUM_SEEDS):
        features_NHW = projection_of(kind, dim, seed).project(factors).unflatten(1, (2, -1))
        found.append(2 * (features_NHW[0::2] * features_NHW[1::2]).sum(dim=2))
    return torch.stack(found).permute(2, 1, 0)


def z_score(samples, expected):
    deviation, bias = float(samples.std()), float(samples.mean()) - expected
    return bias / (deviation / math.sqrt(len(samples))) if deviation > 1e-9 * (1 + abs(expected)) else 1e6 * bias


LAWS = [(kind, dim) for kind in KINDS for dim in (6, 16) if dim // 2 % kind.get("nonzeros", 1) == 0]
LAWS.append(({"kind": "kronecker"}, 14))  # some features are left over


@pytest.mark.parametrize(
    ("kind", "dim"), LAWS, ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None
)
def test_estimates_follow_the_law_of_mean_and_variance(kind, dim):
    cases = law_cases()
    halves_2CS = estimates(kind, dim, list(cases.values()))
    for case, halves_2S in zip(cases.values(), halves_2CS.transpose(0, 1), strict=True):
        inner = sum(float((pair[0] * pair[1]).sum()) for pair in case.values())
        variance = law(kind, dim, list(case.values()))
        errors_2S = halves_2S - inner
        assert abs(z_score(errors_2S[0], 0)) < 4
        assert abs(z_score(errors_2S[1], 0)) < 4
        assert abs(z_score(errors_2S[0] * errors_2S[1], 0)) < 4, "halves are correlated"
        assert abs(z_score(errors_2S.mean(dim=0) ** 2, variance)) < 4
        assert abs(z_score(errors_2S.flatten() ** 2, 2 * variance)) < 4


@pytest.mark.parametrize(
    ("kind", "case", "other"),
    [
        ({"kind": "rademacher"}, "heavy", normal_law),
        ({"kind": "sjlt", "nonzeros": 1}, "heavy", normal_law),
        ({"kind": "gaussian"}, "heavy", signs_law),
        ({"kind": "srht"}, "vector", signs_law),
        ({"kind": "khatri-rao"}, "itself", signs_law),
        ({"kind": "kronecker"}, "itself", signs_law),
    ],
    ids=lambda value: value.get("kind") if isinstance(value, dict) else None,
)
def test_estimates_are_precise_enough_to_reject_another_law(kind, case, other):
    chosen = law_cases()[case]
    joined = torch.cat([pair.flatten(1) for pair in chosen.values()], dim=1)
    halves_2S = estimates(kind, 16, [chosen])[:, 0]
    squares = (halves_2S.mean(dim=0) - joined[0] @ joined[1]) ** 2
    assert abs(z_score(squares, other(joined.unsqueeze(2)) / 16)) > 4


@pytest.mark.parametrize("width", [3, 4, 5, 8, 9])
@pytest.mark.parametrize(("num_stacked", "num_inputs"), [(2, 2), (3, 9), (10, 4), (7, 8), (1, 6), (6, 1)])
def test_a_tensor_sketch_is_never_worse_than_dense_signs_whatever_the_rank(width, num_stacked, num_inputs):
    full_2DI = normal(2, num_stacked, num_inputs)
    left_2D, right_2I = normal(2, num_stacked, seed=1).abs(), normal(2, num_inputs, seed=2).abs()
    flat_2DI = torch.ones(2, num_stacked, num_inputs, dtype=torch.float64)
    for pair_2DI in (full_2DI, torch.einsum("nd,ni->ndi", left_2D, right_2I), flat_2DI):
        for chosen_2DI in (pair_2DI, pair_2DI[:1].expand_as(pair_2DI)):
            bound = signs_law(chosen_2DI) / (width - 1) / 2
            if width % 2 == 0 and chosen_2DI is pair_2DI:
                bound *= 1 + 1 / width
            assert tensor_sketch_law(chosen_2DI, 2 * width) <= bound * (1 + 1e-9)


def test_sides_that_are_random_apart_lose_on_rank_one_and_a_tensor_sketch_does_not():
    """A textbook tensor sketch, whose sides are hashed apart, has the law of Khatri-Rao products to first order."""
    pair_2DI = torch.einsum("d,i->di", normal(12).abs(), normal(10, seed=1).abs()).expand(2, -1, -1)
    dense = signs_law(pair_2DI) / 32
    assert khatri_rao_law(pair_2DI, 32) > 2.5 * dense
    assert tensor_sketch_law(pair_2DI, 32) < dense


# The statistics of the bits.


def chi_square_z(counts):
    """The chi-square statistic of uniform cells, in standard deviations from its mean."""
    expected = counts.sum() / counts.numel()
    degrees = counts.numel() - 1
    return float((((counts - expected) ** 2 / expected).sum() - degrees) / math.sqrt(2 * degrees))


@sparse_kinds
@pytest.mark.parametrize("dim", [96, 64])
def test_rows_and_signs_of_a_sparse_map_are_jointly_uniform(kind, dim):
    map_PK = projection_of(kind, dim, seed=11).matrix("w", 0, 40_000)
    cells = torch.stack([(map_PK == 1).sum(dim=0), (map_PK == -1).sum(dim=0)]).double()
    assert abs(chi_square_z(cells)) < 4


def test_rows_of_different_blocks_are_independent():
    map_PK = projection_of(SPARSE[1], 24, seed=11).matrix("w", 0, 40_000)
    blocks_SPR = map_PK.unflatten(1, (4, 6)).transpose(0, 1)
    for first_PR, second_PR in itertools.combinations(blocks_SPR, 2):
        assert abs(chi_square_z(first_PR.abs().T @ second_PR.abs())) < 4
        assert abs(float((first_PR.sum(dim=1) * second_PR.sum(dim=1)).sum())) < 4 * math.sqrt(40_000)


@sparse_kinds
def test_each_coordinate_has_one_sign_in_each_block_of_rows(kind):
    map_PK = projection_of(kind).matrix("w", 0, 500)
    blocks_PSR = map_PK.unflatten(1, (2 * kind["nonzeros"], -1))
    assert (blocks_PSR.abs().sum(dim=2) == 1).all()
    assert set(map_PK.unique().tolist()) == {-1.0, 0.0, 1.0}


@each("kind", ENTRYWISE[:2])
def test_entries_of_a_dense_map_are_balanced_and_uncorrelated(kind):
    num, dim = 20_000, 160
    map_PK = projection_of(kind, dim, seed=11).matrix("w", 0, num)
    sums_K = map_PK.sum(dim=0) / math.sqrt(num)
    correlations = (map_PK.T @ map_PK / math.sqrt(num))[tuple(torch.triu_indices(dim, dim, 1))]
    for scores in (sums_K, correlations):
        assert scores.abs().max() < 5
        assert abs(float((scores.square().sum() - len(scores)) / math.sqrt(2 * len(scores)))) < 4


def test_signs_of_a_dense_map_are_one_and_minus_one():
    assert set(projection_of(KINDS[0], 160).matrix("w", 0, 500).unique().tolist()) == {-1.0, 1.0}


def test_normal_numbers_follow_the_normal_distribution():
    values = random_normals((1, 2), torch.arange(5000), 42, torch.float64).flatten().sort().values
    count = len(values)
    distances = torch.special.ndtr(values) - (torch.arange(count) + 0.5) / count
    assert distances.abs().max() * math.sqrt(count) < 1.95, "Kolmogorov-Smirnov, one in a thousand"
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((values**power).mean()) - moment) < 4 * math.sqrt(spread / count)


def test_the_rows_of_a_hadamard_transform_are_drawn_without_replacement_and_uniformly():
    vectors_V1 = torch.arange(4800).unsqueeze(1)
    orders_VR = srht._distinct_rows((3, 1), vectors_V1, 3, 4)
    counts = torch.stack(
        [(orders_VR == torch.tensor(order)).all(dim=1).sum() for order in itertools.permutations(range(4), 3)]
    )
    assert int(counts.sum()) == 4800
    assert abs(chi_square_z(counts.double())) < 4
    for size in (64, 4096):
        rows_VR = srht._distinct_rows((3, 1), vectors_V1[:5], 60, size)
        assert all(len(set(rows_R.tolist())) == 60 for rows_R in rows_VR)
        assert 0 <= int(rows_VR.min()) <= int(rows_VR.max()) < size
        assert torch.equal(srht._distinct_rows((3, 1), vectors_V1[3:4], 20, size), rows_VR[3:4, :20])


# Defects of other systems: draws that repeat.


def test_features_beyond_the_ten_thousandth_repeat_neither_in_a_map_nor_across_seeds():
    blocks = []
    for seed in (0, 1000, 2000, 100_000, 200_000):
        map_PK = projection_of(KINDS[0], 20_480, seed).matrix("w", 0, 8)
        blocks += [block_PK.numpy().tobytes() for block_PK in map_PK.split(128, dim=1)]
    assert len(set(blocks)) == len(blocks) == 5 * 160


# Memory.


def counting_draws(monkeypatch):
    draws = []
    draw = sjlt.SparseProjection._draw

    def counted(self, *args):
        draws.append(args[:2])
        return draw(self, *args)

    monkeypatch.setattr(sjlt.SparseProjection, "_draw", counted)
    return draws


@pytest.mark.parametrize(("budget", "redrawn"), [(2**20, []), (1000, [50, 100]), (0, [0, 50, 100])])
def test_a_sparse_map_is_drawn_once_for_all_batches_as_far_as_it_fits_the_budget(budget, redrawn, monkeypatch):
    monkeypatch.setattr(sjlt, "CACHE_BYTES", budget)
    monkeypatch.setattr(base, "SLICE_BYTES", 4 * 64 * 50)
    draws = counting_draws(monkeypatch)
    projection = projection_of(SPARSE[1])
    factors = {"weight": dense_of(normal(3, 1, 10, 15))}
    first_BK = projection.project(factors)
    assert draws == [("weight", offset) for offset in (0, 50, 100)]
    draws.clear()
    assert torch.equal(projection.project(factors), first_BK)
    assert draws == [("weight", offset) for offset in redrawn]


@sided_kinds
def test_signs_of_sides_are_drawn_once_for_all_batches_as_far_as_they_fit_the_budget(kind, monkeypatch):
    drawn = []
    monkeypatch.setattr(sides, "SLICE_ENTRIES", 128 * 4)
    draw = sides.random_signs
    monkeypatch.setattr(sides, "random_signs", lambda *args: drawn.append(args) or draw(*args))
    factors = {"weight": outer(8, 1, 2, 15, 10)}
    needed, features, redrawn = None, [], []
    for share in (1, 0.5, 0):
        monkeypatch.setattr(sides, "CACHE_BYTES", 2**20 if needed is None else share * needed)
        projection = projection_of(kind, 128)
        features.append(projection.project(factors))
        num_drawn = len(drawn)
        features.append(projection.project(factors))
        redrawn.append(len(drawn) - num_drawn)
        every = [projection._signs] if kind["kind"] == "khatri-rao" else projection._halves
        for signs in every:
            assert sum(table.nbytes for table in signs._cache.values()) == signs._cached_bytes <= sides.CACHE_BYTES
        needed = needed or every[0]._cached_bytes
        drawn.clear()
    assert redrawn[0] == 0 < redrawn[1] < redrawn[2] == num_drawn
    assert all(torch.equal(found, features[0]) for found in features)


@sided_kinds
def test_signs_of_a_table_are_drawn_for_the_rows_that_were_looked_up_only(kind, monkeypatch):
    drawn = []
    draw = sides.random_signs
    monkeypatch.setattr(sides, "random_signs", lambda *args: drawn.append(len(args[1])) or draw(*args))
    table = RowFactor(torch.tensor([[10**9, 3, 10**9]]), normal(1, 2, 3, 5), 2 * 10**9)
    assert projection_of(kind).project({"w": table}).any()
    assert max(drawn) <= 5


# Sparse maps in detail: their bits on a CPU, and the route for GPUs.


def accumulated(projection, gradients_BP, cuts=()):
    features_BK = gradients_BP.new_zeros(gradients_BP.shape[0], projection.dim)
    for start, stop in itertools.pairwise((0, *cuts, gradients_BP.shape[1])):
        projection._accumulate(features_BK, gradients_BP[:, start:stop], "weight", start)
    return features_BK


@sparse_kinds
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_sparse_features_have_the_same_bits_for_any_slices_batch_and_layout(kind, data):
    num_samples, numel = 64, 20_000
    assert num_samples * numel > sjlt.SLICE_ENTRIES  # the whole batch is cut inside accumulate, one sample is not
    cuts = sorted(data.draw(st.sets(st.integers(1, numel - 1), max_size=4)))
    first = data.draw(st.integers(0, num_samples - 1))
    stop = data.draw(st.sampled_from(sorted({first + 1, min(first + 7, num_samples), num_samples})))
    projection = projection_of(kind, 40)
    gradients_BP = normal(num_samples, numel, dtype=torch.float32)
    part_BP = gradients_BP[first:stop]
    if data.draw(st.booleans()):
        part_BP = part_BP.T.contiguous().T
    assert torch.equal(accumulated(projection, part_BP, cuts), accumulated(projection, gradients_BP)[first:stop])


@sparse_kinds
def test_one_sum_per_feature_gives_the_features_with_the_same_bits_for_any_batch(kind):
    projection = projection_of(kind)
    gradients_BP, features_BK = normal(9, 700), torch.zeros(9, 24, dtype=torch.float64)
    entries_SP = projection._entries("weight", 0, 700, torch.device("cpu"))
    sjlt._gather(features_BK, gradients_BP, entries_SP)
    assert_close(features_BK, accumulated(projection, gradients_BP), 1e-13)
    single_1K = torch.zeros(1, 24, dtype=torch.float64)
    sjlt._gather(single_1K, gradients_BP[4:5], entries_SP)
    assert torch.equal(single_1K, features_BK[4:5])


# From the configuration.


@all_kinds
def test_a_configuration_names_its_map(kind):
    projection = projection_of(kind, 24, seed=5)
    assert projection.dim == 24
    assert projection.fingerprint().startswith(f"{kind['kind']}-v")
    assert projection.project({"w": dense_of(normal(2, 1, 3, 4))}).shape == (2, 24)


def test_auto_is_the_tensor_sketch():
    assert projection_of({"kind": "auto"}).fingerprint() == projection_of({"kind": "tensorsketch"}).fingerprint()


def test_kind_none_is_refused_because_it_maps_nothing():
    with pytest.raises(ConfigError, match="'none' maps nothing"):
        make_projection(Projection(kind="none"))


def test_a_target_error_chooses_the_number_of_features():
    assert make_projection(Projection(target_error=0.1)).dim == 202
    assert make_projection(Projection(kind="sjlt", nonzeros=3, target_error=0.1)).dim == 204
    for kind in ("auto", "gaussian", "sjlt"):
        assert Projection(kind=kind, target_error=0.03).predicted_error <= 0.03 + 1e-12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 25}, "must be even"),
        ({"dim": 24, "target_error": 0.1}, "dim or target_error, not both"),
        ({"kind": "khatri-rao", "target_error": 0.1}, "depends on the layers"),
        ({"kind": "kronecker", "target_error": 0.1}, "depends on the layers"),
        ({"kind": "sjlt", "dim": 24, "nonzeros": 5}, "nonzeros = 5 must divide half of dim = 24"),
        ({"dim": 2**31}, "less than"),
    ],
)
def test_settings_that_no_map_can_have_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        Projection(**settings)
