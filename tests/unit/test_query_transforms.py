"""Sums of components, cosines and centred kernels, made when they are read, against float64 definitions."""

import dataclasses
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import stored
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkpipe.configs.errors import ChunkNotReadyError, ConfigError, NotFoundError, NumericalError, TooLargeError
from ntkpipe.configs.kernels.derived import CentredConfig, NormalisedConfig, ScaledConfig, SumConfig
from ntkpipe.pipeline.query.limits import Limits
from ntkpipe.pipeline.query.run import Run
from ntkpipe.pipeline.query.stored import StoredRunReader
from ntkpipe.pipeline.query.transforms import checked_transforms
from ntkpipe.storage.stores.registry import open_store

SIZES = {"train": 29, "test": 11}
LAYERS = ("body.0.weight", "body.0.bias", "head[0].weight")
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}

RNG = np.random.default_rng(1)
FACTORS = {layer: {split: RNG.standard_normal((size, 9)) for split, size in SIZES.items()} for layer in LAYERS}
for layer in LAYERS:  # a sample whose gradient is zero
    FACTORS[layer]["train"][7] = 0.0
TRUTH = {split: RNG.standard_normal((size, 4)) for split, size in SIZES.items()}
SKETCH = {split: values + 0.3 * RNG.standard_normal(values.shape) for split, values in TRUTH.items()}
SIGNS = np.array([1.0, 1.0, 1.0, -1.0])

KERNELS = [
    stored.kernel("layered", groups=LAYERS),
    stored.kernel("sketch", feature_dim=4, sketched=True),
    stored.kernel("indefinite"),
    stored.kernel("one-way", symmetric=False),
    stored.kernel("cosine", derived=NormalisedConfig(of="layered"), parents=("layered",)),
    stored.kernel("means", derived=CentredConfig(of="layered"), parents=("layered",), statistic_dim=1, level=1),
]


def dense(name, row_split, column_split, layers=()):
    """Return a matrix in float64."""
    if name == "sketch":
        return SKETCH[row_split] @ SKETCH[column_split].T
    if name == "indefinite":
        return (TRUTH[row_split] * SIGNS) @ TRUTH[column_split].T
    if name == "one-way":
        return TRUTH[row_split] @ SKETCH[column_split].T
    return sum(FACTORS[one][row_split] @ FACTORS[one][column_split].T for one in layers or LAYERS)


def variances(name, split, layers=()):
    """Return K(x, x) before any projection."""
    exact = TRUTH[split] @ TRUTH[split].T if name == "sketch" else dense(name, split, split, layers)
    return exact.diagonal().copy()


def inverse_root(values):
    return np.divide(1, np.sqrt(values), out=np.zeros_like(values), where=values > 0)


def transformed(name, row_split, column_split, transforms, layers=()):
    """Return the definition: whole matrices between both splits and the training split, transformed one after the other."""
    splits = dict.fromkeys(("train", row_split, column_split))
    size = {split: SIZES[split] for split in splits}
    at, start = {}, 0
    for split in splits:
        at[split], start = slice(start, start + size[split]), start + size[split]
    whole = np.block([[dense(name, one, other, layers) for other in splits] for one in splits])
    exact = None if layers else np.concatenate([variances(name, split) for split in splits])
    for transform in transforms:
        if transform == "cosine":
            diagonal = whole.diagonal() if exact is None else exact
            whole = whole * np.outer(inverse_root(diagonal), inverse_root(diagonal))
            exact = None if exact is None else (exact > 0).astype(float)
        else:
            means = whole[:, at["train"]].mean(axis=1)
            whole = whole - means[:, None] - means[None, :] + means[at["train"]].mean()
            exact = None
    return whole[at[row_split], at[column_split]]


def contents(**changes):
    means = {split: dense("layered", split, "train").mean(axis=1) for split in SIZES}
    return stored.Stored(
        entries=lambda name, layer, row_split, rows, column_split, columns: dense(
            name, row_split, column_split, () if layer is None else (layer,)
        )[rows, columns],
        diagonals=lambda name, layer, split, rows: variances(name, split)[rows],
        features=lambda name, layer, split, rows: SKETCH[split][rows],
        statistics=lambda name, layer, split, rows: means[split][rows, None],
        **changes,
    )


def geometry(pairs=(("train", "train"), ("test", "train"), ("test", "test")), dtype="float64"):
    return stored.geometry(SIZES, KERNELS, block_rows=4, shard_rows=5, pairs=pairs, dtype=dtype)


def opened(folder):
    return Run(StoredRunReader(open_store(folder)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("runs") / "run"
    stored.store_run(found, geometry(), contents())
    return found


@pytest.fixture
def run(folder):
    return opened(folder)


TRANSFORMS = [("cosine",), ("centred",), ("cosine", "centred"), ("centred", "cosine"), ("centred", "cosine", "centred")]
PAIRS = [("train", "train"), ("test", "train"), ("train", "test"), ("test", "test")]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("transforms", TRANSFORMS)
@pytest.mark.parametrize("name", ["layered", "sketch"])
def test_transforms_are_those_of_the_dense_matrix(run, name, transforms, pair):
    found = run.kernel(name, *pair, transforms=transforms)[:, :]
    np.testing.assert_allclose(found, transformed(name, *pair, transforms), **TOLERANCE)


@pytest.mark.parametrize("transforms", TRANSFORMS)
@pytest.mark.parametrize("layers", [("*.weight",), ("head[0].weight",), ("body.?.bias", "head*"), ("*",)])
def test_sums_of_components_are_transformed_too(run, layers, transforms):
    chosen = run.kernel("layered", layers=layers).name.layers
    found = run.kernel("layered", "test", layers=layers, transforms=transforms)[:, :]
    np.testing.assert_allclose(found, transformed("layered", "test", "train", transforms, chosen), **TOLERANCE)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(TRANSFORMS), st.lists(st.integers(0, 28), min_size=1, max_size=9), st.integers(0, 20))
def test_some_entries_are_to_the_last_bit_those_of_all(folder, transforms, rows, start):
    query = opened(folder).kernel("layered", transforms=transforms)
    assert np.array_equal(query[rows, start:], query[:, :][np.ix_(rows, range(start, SIZES["train"]))])


def test_the_cosine_of_an_exact_kernel_has_ones_on_its_diagonal_and_zeros_where_a_gradient_is_zero(run):
    found = run.kernel("layered").cosine()[:, :]
    np.testing.assert_allclose(np.delete(found.diagonal(), 7), 1, **TOLERANCE)
    assert not found[7].any()
    assert np.abs(found).max() <= 1 + 1e-12
    assert np.array_equal(found, found.T)


def test_the_cosine_of_a_projected_kernel_divides_by_the_exact_diagonal(run):
    found = run.kernel("sketch").cosine()[:, :].diagonal()
    np.testing.assert_allclose(found, dense("sketch", "train", "train").diagonal() / variances("sketch", "train"))
    assert np.abs(found - 1).max() > 0.01


def test_the_cosine_of_a_centred_projected_kernel_has_ones_on_its_diagonal(run):
    np.testing.assert_allclose(run.kernel("sketch").centred().cosine()[:, :].diagonal(), 1, **TOLERANCE)


@pytest.mark.parametrize("transforms", [("centred",), ("cosine", "centred")])
def test_rows_and_columns_of_a_centred_kernel_sum_to_zero(run, transforms):
    found = run.kernel("layered", transforms=transforms)[:, :]
    scale = np.abs(found).max() * len(found)
    assert np.abs(found.sum(axis=0)).max() < 1e-13 * scale
    assert np.abs(found.sum(axis=1)).max() < 1e-13 * scale
    # Other samples are centred by the means of the training split.
    assert np.abs(run.kernel("layered", "test", transforms=transforms)[:, :].sum(axis=1)).max() < 1e-12 * scale


def test_the_order_of_transforms_matters(run):
    one, other = (run.kernel("layered", transforms=order)[:, :] for order in (TRANSFORMS[2], TRANSFORMS[3]))
    assert np.abs(one - other).max() > 0.1


@pytest.mark.parametrize("pair", PAIRS)
def test_transforms_are_defined_as_derived_kernels_are(run, pair):
    # A derived kernel that is stored takes means which a worker has summed in another order.
    assert np.array_equal(run.kernel("cosine", *pair)[:, :], run.kernel("layered", *pair).cosine()[:, :])
    np.testing.assert_allclose(
        run.kernel("means", *pair)[:, :], run.kernel("layered", *pair).centred()[:, :], **TOLERANCE
    )


def test_derived_kernels_are_transformed_too(run):
    twice = run.kernel("cosine").centred()[:, :]
    np.testing.assert_allclose(twice, transformed("layered", "train", "train", ("cosine", "centred")), **TOLERANCE)
    cosine = run.kernel("means").cosine()[:, :]
    np.testing.assert_allclose(cosine, transformed("layered", "train", "train", ("centred", "cosine")), **TOLERANCE)


def test_single_precision_is_rounded_once(tmp_path):
    stored.store_run(tmp_path / "run", geometry(dtype="float32"), contents())
    query = opened(tmp_path / "run").kernel("layered")
    found = query.cosine().centred()[:, :]
    assert found.dtype == np.float32
    entries, exact = query[:, :].astype(np.float64), variances("layered", "train")
    cosine = entries * np.outer(inverse_root(exact), inverse_root(exact))
    means = cosine.mean(axis=1)
    expected = cosine - means[:, None] - means[None, :] + means.mean()
    np.testing.assert_allclose(found, expected, rtol=6e-8, atol=1e-12)


def test_layers_are_named_in_the_order_of_the_kernel_and_once(run):
    query = run.kernel("layered", layers=("head[0].weight", "*.weight", "body.0.weight"))
    assert query.name.layers == ("body.0.weight", "head[0].weight")
    component = run.kernel("layered", component="head[0].weight")
    assert component.name == run.kernel("layered", layers=["head[0].weight"]).name
    np.testing.assert_allclose(
        component[:, :], FACTORS[LAYERS[2]]["train"] @ FACTORS[LAYERS[2]]["train"].T, **TOLERANCE
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": ["tail.*"]}, NotFoundError, "tail"),
        ({"layers": "head"}, ConfigError, "must be a list"),
        ({"transforms": ["normalised"]}, ConfigError, "normalised"),
        ({"transforms": "cosine"}, ConfigError, "must be a list"),
        ({"transforms": ["cosine"] * 5}, ConfigError, "at most 4"),
    ],
)
def test_what_is_not_known_is_refused(run, options, error, message):
    with pytest.raises(error, match=message):
        run.kernel("layered", **options)


def test_only_layerwise_kernels_have_layers(run):
    with pytest.raises(NotFoundError, match="stores no components"):
        run.kernel("sketch", layers=["*"])


def test_kernels_that_are_not_symmetric_or_not_of_samples_are_not_transformed(run):
    with pytest.raises(ConfigError, match="'one-way' is not symmetric"):
        run.kernel("one-way").cosine()
    with pytest.raises(ConfigError, match=r"'full' is of \(sample, output\) pairs, so it cannot be centred"):
        checked_transforms(stored.kernel("full", width=2), ["centred"])


def test_a_negative_variance_is_refused(run):
    with pytest.raises(NumericalError, match=r"K\(x, x\) is -.* of split 'train'"):
        run.kernel("indefinite").cosine()[0, 0]


def test_a_kernel_that_is_not_finished_cannot_be_centred(tmp_path):
    stored.store_run(tmp_path / "run", geometry(), contents(left_out=["train-train/000005-000002"]))
    query = opened(tmp_path / "run").kernel("layered")
    assert np.isfinite(query.cosine()[0:3, 0:3]).all()
    for missing in ("raise", "nan"):
        with pytest.raises(ChunkNotReadyError, match="000005-000002"):
            query.centred().read(slice(0, 3), slice(0, 3), missing=missing)
    assert np.isnan(query.cosine().read(slice(20, 24), slice(8, 12), missing="nan")).all()


def test_what_a_transform_needs_and_the_run_does_not_store_is_named(tmp_path):
    stored.store_run(tmp_path / "few", geometry(pairs=(("train", "train"), ("test", "train"))), contents())
    query = opened(tmp_path / "few").kernel("layered", "test", layers=["head*"])
    with pytest.raises(NotFoundError, match="no kernel between 'test' and itself"):
        query.cosine()[0, 0]
    assert np.isfinite(opened(tmp_path / "few").kernel("layered", "test").cosine()[:, :]).all()
    stored.store_run(tmp_path / "fewer", geometry(pairs=(("train", "train"), ("test", "test"))), contents())
    with pytest.raises(NotFoundError, match="none between 'test' and 'train'"):
        opened(tmp_path / "fewer").kernel("layered", "test", "test").centred()[0, 0]


def test_means_are_taken_in_one_pass_however_many_threads_ask(run):
    chunks = run.reader._chunks._chunks
    run.ids("train")
    before = chunks.reads.num_chunks
    with ThreadPoolExecutor(8) as threads:
        ask = partial(run.kernel("layered").centred().__getitem__, (0, 0))
        values = [future.result(60) for future in [threads.submit(ask) for _ in range(8)]]
    assert len(set(map(float, values))) == 1
    num_tiles = 8 * 9 // 2
    # Each of the pass, and the one that is asked for, which is read past the cache before it is held.
    assert chunks.reads.num_chunks - before <= num_tiles + 3
    run.kernel("layered").centred().cosine()[0, 0]
    assert chunks.reads.num_chunks - before < 2 * num_tiles


def test_the_version_of_a_derived_kernel_is_that_of_the_means_that_it_holds(tmp_path):
    shape, given = geometry(), contents()
    place = tmp_path / "run"
    stored.store_run(place, shape, given)
    run, at = opened(place), np.arange(SIZES["train"])
    name = run.kernel("means").name

    def seen(asked):
        return asked.reader.version(name, at, at), asked.kernel("means")[:, :].tobytes()

    before = seen(run)
    # The means are computed again, as by a repair, and come out otherwise; so do their receipts.
    for folder in ("data.zarr", "receipts"):
        shutil.rmtree(place / folder)
    again = dataclasses.replace(given, statistics=lambda *what: given.statistics(*what) + 1)
    stored.store_run(tmp_path / "again", shape, again)
    for folder in ("data.zarr", "receipts"):
        shutil.copytree(tmp_path / "again" / folder, place / folder)
    for split in SIZES:
        for block in range(3):
            run.reader._ledger.sums.forget("derive-1", f"means/{split}/{block:08d}")
    others = [seen(run), seen(opened(place))]
    for version, values in others:
        assert (version == before[0]) == (values == before[1])
    assert others[1][0] != before[0]


SUM = SumConfig(terms=[{"of": "layered"}, {"of": "layered", "component": LAYERS[0]}, {"of": "sketch"}])
SCALED = stored.kernel("scaled", derived=ScaledConfig(of="layered"), parents=("layered",), level=1)
OF_OTHERS = [
    *KERNELS[:2],
    stored.kernel("sum", derived=SUM, parents=("layered", "layered", "sketch"), level=1),
    SCALED,
    stored.kernel("twice", derived=ScaledConfig(of="sum", factor=2.0), parents=("sum",), level=2),
]


def test_everything_that_derived_entries_are_made_of_counts_for_the_limit_of_what_is_read(tmp_path):
    tile_bytes = 8 * 4**2
    shape = stored.geometry(SIZES, OF_OTHERS, block_rows=4, shard_rows=5, dtype="float64")
    stored.store_run(tmp_path / "run", shape, contents())
    run = Run(StoredRunReader(open_store(tmp_path / "run"), limits=Limits(max_bytes=2 * tile_bytes)))
    assert run.kernel("layered")[0, 0] + run.kernel("scaled")[0, 0] > 0
    for name in ("sum", "twice"):
        with pytest.raises(TooLargeError, match="would have to be read") as caught:
            run.kernel(name)[0, 0]
        assert caught.value.asked == 3 * tile_bytes


def test_a_diagonal_that_is_divided_by_a_mean_of_the_training_split_has_another_version_with_it(tmp_path):
    shape, given = stored.geometry(SIZES, OF_OTHERS, block_rows=4, shard_rows=5, dtype="float64"), contents()

    def in_training_larger(name, layer, split, rows):
        return given.diagonals(name, layer, split, rows) * (2 if split == "train" else 1)

    stored.store_run(tmp_path / "one", shape, given)
    stored.store_run(tmp_path / "other", shape, dataclasses.replace(given, diagonals=in_training_larger))
    one, other = opened(tmp_path / "one"), opened(tmp_path / "other")
    for name, same in (("scaled", False), ("layered", True)):
        assert np.array_equal(one.diagonal(name, "test"), other.diagonal(name, "test")) == same
        versions = [run.reader.diagonal_version(name, "test") for run in (one, other)]
        assert (versions[0] == versions[1]) == same


def test_patterns_are_few_and_a_long_one_is_a_name(run):
    with pytest.raises(ConfigError, match="10,001 layers were given"):
        run.kernel("layered", layers=["*"] * 10_001)
    # As a pattern, it would take many seconds.
    with pytest.raises(NotFoundError, match="unknown component") as found:
        run.kernel("layered", layers=["[a-" * 10_000])
    assert len(found.value.message) < 1000
