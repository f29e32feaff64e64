import hashlib
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.projection import Projection
from ntkpipe.workers.projections import rademacher, sjlt
from ntkpipe.workers.projections.registry import make_projection

KINDS = [
    {"kind": "rademacher"},
    {"kind": "sjlt", "nonzeros": 1},
    {"kind": "sjlt", "nonzeros": 4},
]
SPARSE = KINDS[1:]
all_kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
sparse_kinds = pytest.mark.parametrize("kind", SPARSE, ids=lambda kind: "-".join(map(str, kind.values())))


def projection_of(kind, dim=24, seed=0):
    return make_projection(Projection(dim=dim, seed=seed, **kind))


def gaussian(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def integers(*shape, dtype=torch.float32):
    """Small integers: their sums are exact in any order."""
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def project(projection, gradients_BP, *, parameter="weight", output=0, offset=0, cuts=()):
    features_BK = gradients_BP.new_zeros(gradients_BP.shape[0], projection.dim)
    for start, stop in itertools.pairwise((0, *cuts, gradients_BP.shape[1])):
        projection.accumulate(
            features_BK, gradients_BP[:, start:stop], parameter=parameter, output=output, offset=offset + start
        )
    return features_BK


# The documented layout of bits, spelled in Python's own integers.


def scalar_words(parts, column, group):
    encoded = b"".join(f"{type(part).__name__}{len(str(part).encode())}:{part}".encode() for part in parts)
    digest = hashlib.blake2b(encoded, digest_size=8).digest()
    keys = [int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")]
    words = [column % 2**32, column // 2**32, group, 0]
    for _ in range(10):
        first, second = 0xD2511F53 * words[0], 0xCD9E8D57 * words[2]
        words = [second >> 32 ^ words[1] ^ keys[0], second % 2**32, first >> 32 ^ words[3] ^ keys[1], first % 2**32]
        keys = [(keys[0] + 0x9E3779B9) % 2**32, (keys[1] + 0xBB67AE85) % 2**32]
    return words


def scalar_column(kind, dim, parts, column):
    entries = [0.0] * dim
    if kind["kind"] == "rademacher":
        for feature in range(dim):
            word = scalar_words(("rademacher", 1, *parts), column, feature // 128)[feature % 128 // 32]
            entries[feature] = 1.0 if word >> feature % 32 & 1 else -1.0
        return entries
    rows = dim // kind["nonzeros"]
    for block in range(kind["nonzeros"]):
        words = scalar_words(("sjlt", 1, *parts), column, block // 2)[block % 2 * 2 :]
        entries[block * rows + (words[0] * rows >> 32)] = 1.0 if words[1] & 1 else -1.0
    return entries


@all_kinds
@pytest.mark.parametrize("start", [0, 2**32 - 3])
def test_the_map_is_the_documented_function_of_its_coordinates(kind, start):
    dim = 132 if kind["kind"] == "rademacher" else 24
    map_PK = projection_of(kind, dim, seed=7).matrix(parameter="köln.weight", output=3, start=start, stop=start + 6)
    expected = [scalar_column(kind, dim, (7, "köln.weight", 3), column) for column in range(start, start + 6)]
    assert map_PK.dtype == torch.float64
    assert map_PK.tolist() == expected


@all_kinds
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_slice_of_the_map_has_the_bits_of_the_whole(kind, data):
    start = data.draw(st.integers(0, 200))
    stop = data.draw(st.integers(start, 200))
    projection = projection_of(kind, 200)
    whole_PK = projection.matrix(parameter="w", output=1, start=0, stop=200)
    assert torch.equal(projection.matrix(parameter="w", output=1, start=start, stop=stop), whole_PK[start:stop])


def test_the_first_features_of_a_larger_dense_map_are_those_of_a_smaller_one():
    large, small = projection_of(KINDS[0], 300), projection_of(KINDS[0], 70)
    where = {"parameter": "w", "output": 0, "start": 5, "stop": 25}
    assert torch.equal(large.matrix(**where)[:, :70], small.matrix(**where))


@all_kinds
@pytest.mark.parametrize("entries", [2**20, 2**8], ids=["one-slice", "many-slices"])
def test_accumulate_adds_the_product_with_the_matrix(kind, entries, monkeypatch):
    monkeypatch.setattr(rademacher, "SLICE_ENTRIES", entries)
    monkeypatch.setattr(sjlt, "SLICE_ENTRIES", entries)
    projection = projection_of(kind, 136)
    gradients_BP, features_BK = gaussian(5, 301), gaussian(5, 136, seed=1)
    before_BK = features_BK.clone()
    projection.accumulate(features_BK, gradients_BP, parameter="w", output=2, offset=17)
    map_PK = projection.matrix(parameter="w", output=2, start=17, stop=318)
    torch.testing.assert_close(features_BK, before_BK + gradients_BP @ map_PK, rtol=1e-13, atol=1e-12)


@all_kinds
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_exact_sums_do_not_depend_on_slices_or_batches(kind, data):
    cuts = sorted(data.draw(st.sets(st.integers(1, 299), max_size=4)))
    first = data.draw(st.integers(0, 8))
    stop = data.draw(st.integers(first + 1, 9))
    projection = projection_of(kind, 40)
    gradients_BP = integers(9, 300)
    whole_BK = project(projection, gradients_BP)
    assert torch.equal(project(projection, gradients_BP[first:stop], cuts=cuts), whole_BK[first:stop])


@sparse_kinds
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_sparse_features_have_the_same_bits_for_any_slices_batch_and_layout(kind, data):
    num_samples, numel = 64, 20_000
    assert num_samples * numel > sjlt.SLICE_ENTRIES  # the whole batch is cut inside accumulate, one sample is not
    cuts = sorted(data.draw(st.sets(st.integers(1, numel - 1), max_size=4)))
    first = data.draw(st.integers(0, num_samples - 1))
    stop = data.draw(st.sampled_from(sorted({first + 1, min(first + 7, num_samples), num_samples})))
    projection = projection_of(kind, 40)
    gradients_BP = gaussian(num_samples, numel, dtype=torch.float32)
    part_BP = gradients_BP[first:stop]
    if data.draw(st.booleans()):
        part_BP = part_BP.T.contiguous().T
    assert torch.equal(project(projection, part_BP, cuts=cuts), project(projection, gradients_BP)[first:stop])


@all_kinds
def test_coordinates_beyond_32_bits_are_coordinates_of_their_own(kind):
    projection = projection_of(kind)
    gradients_BP = gaussian(3, 50)
    far_BK = project(projection, gradients_BP, offset=2**32 + 5)
    map_PK = projection.matrix(parameter="weight", output=0, start=2**32 + 5, stop=2**32 + 55)
    torch.testing.assert_close(far_BK, gradients_BP @ map_PK, rtol=1e-13, atol=1e-12)
    assert not torch.equal(far_BK, project(projection, gradients_BP, offset=5))


@all_kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_dtype_of_the_gradients_is_kept(kind, dtype):
    projection = projection_of(kind)
    gradients_BP = integers(2, 9, dtype=dtype)
    features_BK = project(projection, gradients_BP)
    assert features_BK.dtype == dtype
    assert torch.equal(features_BK.double(), project(projection, gradients_BP.double()))


@all_kinds
def test_no_coordinates_add_nothing(kind):
    assert not project(projection_of(kind), torch.zeros(3, 0)).any()


@all_kinds
@pytest.mark.parametrize("magnitude", [1e6, 1e-7, 2.0**100, 2.0**-100])
def test_large_and_small_gradients_survive_in_float32(kind, magnitude):
    projection = projection_of(kind)
    gradients_BP = gaussian(4, 500, dtype=torch.float32) * magnitude
    expected_BK = gradients_BP.double() @ projection.matrix(parameter="weight", output=0, start=0, stop=500)
    difference = (project(projection, gradients_BP).double() - expected_BK).norm()
    assert difference < 1e-6 * expected_BK.norm()


# Laws. Vectors with a few dominant coordinates tell signs from Gaussians: the term -2 sum a^2 b^2 is then large.

NUM_SEEDS = 600
PIECES = [("layers.0.weight", 0), ("layers.0.weight", 1), ("layers.1.weight", 0)]


def heavy_pair():
    pair_2P = gaussian(2, 30)
    pair_2P[1] += 0.5 * pair_2P[0]
    pair_2P[:, 4] = torch.tensor([12.0, 15.0])
    return pair_2P


def estimates(kind, dim, vectors_2P):
    """Estimates of <a, b>, one per seed, with the coordinates spread over parameters and outputs."""
    found = []
    for seed in range(NUM_SEEDS):
        projection = projection_of(kind, dim, seed)
        features_2K = torch.zeros(2, dim, dtype=torch.float64)
        for (parameter, output), part_2P in zip(PIECES, vectors_2P.chunk(len(PIECES), dim=1), strict=True):
            projection.accumulate(features_2K, part_2P, parameter=parameter, output=output)
        first_K, second_K = features_2K * projection.scale
        found.append(first_K @ second_K)
    return torch.stack(found)


def z_score(samples, expected):
    return float((samples.mean() - expected) / (samples.std() / math.sqrt(len(samples))))


@pytest.mark.parametrize(
    ("kind", "dim"),
    [(KINDS[0], 16), (KINDS[1], 16), (KINDS[2], 16), ({"kind": "sjlt", "nonzeros": 16}, 16), (KINDS[1], 13)],
    ids=["rademacher", "sjlt-1", "sjlt-4", "sjlt-16", "sjlt-odd-dim"],
)
def test_estimates_follow_the_law_of_mean_and_variance(kind, dim):
    a_P, b_P = vectors_2P = heavy_pair()
    inner = a_P @ b_P
    gaussian_law = (a_P @ a_P * (b_P @ b_P) + inner**2) / dim
    law = gaussian_law - 2 * (a_P**2 @ b_P**2) / dim
    found = estimates(kind, dim, vectors_2P)
    squares = (found - inner) ** 2
    assert abs(z_score(found, inner)) < 4
    assert abs(z_score(squares, law)) < 4
    assert z_score(squares, gaussian_law) < -4


def test_estimates_of_one_vector_with_itself_keep_its_scale():
    vectors_2P = gaussian(1, 30).expand(2, 30)
    for kind in KINDS:
        assert abs(z_score(estimates(kind, 16, vectors_2P), vectors_2P[0] @ vectors_2P[0])) < 4


# The statistics of the bits.


def chi_square_z(counts):
    """The chi-square statistic of uniform cells, in standard deviations from its mean."""
    expected = counts.sum() / counts.numel()
    degrees = counts.numel() - 1
    return float((((counts - expected) ** 2 / expected).sum() - degrees) / math.sqrt(2 * degrees))


@sparse_kinds
@pytest.mark.parametrize("dim", [96, 64])
def test_rows_and_signs_of_a_sparse_map_are_jointly_uniform(kind, dim):
    map_PK = projection_of(kind, dim, seed=11).matrix(parameter="w", output=0, start=0, stop=40_000)
    cells = torch.stack([(map_PK == 1).sum(dim=0), (map_PK == -1).sum(dim=0)]).double()
    assert abs(chi_square_z(cells)) < 4


def test_rows_of_different_blocks_are_independent():
    map_PK = projection_of(SPARSE[1], 24, seed=11).matrix(parameter="w", output=0, start=0, stop=40_000)
    blocks_SPR = map_PK.unflatten(1, (4, 6)).transpose(0, 1)
    for first_PR, second_PR in itertools.combinations(blocks_SPR, 2):
        assert abs(chi_square_z(first_PR.abs().T @ second_PR.abs())) < 4
        assert abs(float((first_PR.sum(dim=1) * second_PR.sum(dim=1)).sum())) < 4 * math.sqrt(40_000)


@sparse_kinds
def test_each_coordinate_has_one_sign_in_each_block_of_rows(kind):
    map_PK = projection_of(kind).matrix(parameter="w", output=0, start=0, stop=500)
    blocks_PSR = map_PK.unflatten(1, (kind["nonzeros"], -1))
    assert (blocks_PSR.abs().sum(dim=2) == 1).all()
    assert set(map_PK.unique().tolist()) == {-1.0, 0.0, 1.0}


def test_signs_of_a_dense_map_are_balanced_and_uncorrelated():
    num, dim = 20_000, 160
    map_PK = projection_of(KINDS[0], dim, seed=11).matrix(parameter="w", output=0, start=0, stop=num)
    assert set(map_PK.unique().tolist()) == {-1.0, 1.0}
    sums_K = map_PK.sum(dim=0) / math.sqrt(num)
    correlations = (map_PK.T @ map_PK / math.sqrt(num))[tuple(torch.triu_indices(dim, dim, 1))]
    for scores in (sums_K, correlations):
        assert scores.abs().max() < 5
        assert abs(float((scores.square().sum() - len(scores)) / math.sqrt(2 * len(scores)))) < 4


# Defects of other systems: draws that repeat.


@all_kinds
def test_seeds_parameters_outputs_and_slices_have_maps_of_their_own(kind):
    maps = []
    for seed in range(4):
        projection = projection_of(kind, 128, seed)
        for parameter, output in itertools.product((f"layers.{i}.weight" for i in range(12)), range(4)):
            map_PK = projection.matrix(parameter=parameter, output=output, start=0, stop=60)
            maps += [part_PK.numpy().tobytes() for part_PK in map_PK.split(20)]
    assert len(set(maps)) == len(maps) == 4 * 12 * 4 * 3


def test_features_beyond_the_ten_thousandth_repeat_neither_in_a_map_nor_across_seeds():
    blocks = []
    for seed in (0, 1000, 2000, 100_000, 200_000):
        map_PK = projection_of(KINDS[0], 20_480, seed).matrix(parameter="w", output=0, start=0, stop=8)
        blocks += [block_PK.numpy().tobytes() for block_PK in map_PK.split(128, dim=1)]
    assert len(set(blocks)) == len(blocks) == 5 * 160


def counting_draws(monkeypatch):
    draws = []
    draw = sjlt.SparseProjection._draw

    def counted(self, *args):
        draws.append(args[:3])
        return draw(self, *args)

    monkeypatch.setattr(sjlt.SparseProjection, "_draw", counted)
    return draws


@pytest.mark.parametrize(("budget", "redrawn"), [(2**20, []), (1000, [50, 100]), (0, [0, 50, 100])])
def test_a_sparse_map_is_drawn_once_for_all_batches_as_far_as_it_fits_the_budget(budget, redrawn, monkeypatch):
    monkeypatch.setattr(sjlt, "CACHE_BYTES", budget)
    draws = counting_draws(monkeypatch)
    projection = projection_of(SPARSE[1])
    gradients_BP = gaussian(3, 150)
    first_BK = project(projection, gradients_BP, cuts=(50, 100))
    assert draws == [("weight", 0, offset) for offset in (0, 50, 100)]
    draws.clear()
    assert torch.equal(project(projection, gradients_BP, cuts=(50, 100)), first_BK)
    assert draws == [("weight", 0, offset) for offset in redrawn]


# The route for GPUs, also on a CPU.


@sparse_kinds
def test_one_sum_per_feature_gives_the_features_with_the_same_bits_for_any_batch(kind):
    projection = projection_of(kind)
    gradients_BP, features_BK = gaussian(9, 700), torch.zeros(9, 24, dtype=torch.float64)
    entries_SP = projection._entries("weight", 0, 0, 700, torch.device("cpu"))
    sjlt._gather(features_BK, gradients_BP, entries_SP)
    torch.testing.assert_close(features_BK, project(projection, gradients_BP), rtol=1e-13, atol=1e-12)
    single_1K = torch.zeros(1, 24, dtype=torch.float64)
    sjlt._gather(single_1K, gradients_BP[4:5], entries_SP)
    assert torch.equal(single_1K, features_BK[4:5])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@all_kinds
def test_a_gpu_draws_the_same_map_and_repeats_its_own_bits(kind):
    projection = projection_of(kind)
    exact_BP, real_BP = integers(9, 700), gaussian(9, 700, dtype=torch.float32).cuda()
    assert torch.equal(project(projection, exact_BP.cuda()).cpu(), project(projection, exact_BP))
    assert torch.equal(project(projection, real_BP), project(projection, real_BP))


# From the configuration.


def test_auto_is_the_sparse_map():
    assert projection_of({"kind": "auto"}).fingerprint() == projection_of({"kind": "sjlt"}).fingerprint()


def test_kind_none_is_refused_because_it_maps_nothing():
    with pytest.raises(ConfigError, match="'none' maps nothing"):
        make_projection(Projection(kind="none"))


def test_a_sparse_map_with_rows_beyond_its_entries_is_refused():
    with pytest.raises(ConfigError, match=r"2147483648.*Lower dim"):
        make_projection(Projection(kind="sjlt", dim=2**31))


def test_fingerprints_are_equal_exactly_for_equal_maps():
    settings = [(kind, dim, seed) for kind in KINDS for dim in (24, 48) for seed in (0, 1)]
    fingerprints = [projection_of(*setting).fingerprint() for setting in settings]
    assert len(set(fingerprints)) == len(settings)
    assert fingerprints == [projection_of(*setting).fingerprint() for setting in settings]


@all_kinds
def test_the_features_and_their_scale_are_those_of_the_configuration(kind):
    projection = projection_of(kind, 24)
    assert projection.dim == 24
    assert projection.scale == 1 / math.sqrt(kind.get("nonzeros", 24))
