"""Entries of stored kernels: mirrored, in any order, checked to the last byte, each tile read once, none that is not committed."""

import shutil
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import stored
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkpipe.configs.errors import ChunkNotReadyError, CorruptChunkError, NotFoundError, TooLargeError
from ntkpipe.pipeline.query.estimates import work_bytes
from ntkpipe.pipeline.query.limits import Limits
from ntkpipe.pipeline.query.run import Run
from ntkpipe.pipeline.query.stored import StoredRunReader
from ntkpipe.storage.grid import Block, shard_at
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.stores.registry import open_store
from ntkpipe.storage.tile_cache import TileCache

SIZES = {"train": 43, "test": 17}
BLOCK = 8
LAYERS = ("body.0.weight", "body.0.bias", "head[0]")

RNG = np.random.default_rng(0)
FACTORS = {layer: {split: RNG.standard_normal((size, 5)) for split, size in SIZES.items()} for layer in LAYERS}
ONE_WAY = {split: RNG.standard_normal((size, 5)) for split, size in SIZES.items()}
CLASSES = {split: np.arange(size) % 3 for split, size in SIZES.items()}
FEATURES = {split: RNG.standard_normal((size, 6)) for split, size in SIZES.items()}

KERNELS = [
    stored.kernel("layered", groups=LAYERS),
    stored.kernel("one-way", symmetric=False),
    stored.kernel("featured", feature_dim=6),
]


def dense(name, row_split, column_split, layer=None):
    """Return a kernel in float64."""
    if name == "one-way":
        return FACTORS[LAYERS[0]][row_split] @ ONE_WAY[column_split].T
    if name == "featured":
        return FEATURES[row_split] @ FEATURES[column_split].T
    layers = LAYERS if layer is None else (layer,)
    return sum(FACTORS[one][row_split] @ FACTORS[one][column_split].T for one in layers)


def contents(**changes):
    return stored.Stored(
        entries=lambda name, layer, row_split, rows, column_split, columns: dense(name, row_split, column_split, layer)[
            rows, columns
        ],
        diagonals=lambda name, layer, split, rows: dense(name, split, split).diagonal()[rows].copy(),
        features=lambda name, layer, split, rows: FEATURES[split][rows],
        labels=CLASSES,
        **changes,
    )


GEOMETRY = stored.geometry(SIZES, KERNELS, block_rows=BLOCK, shard_rows=5, num_classes=3, dtype="float64")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    stored.store_run(folder, GEOMETRY, contents())
    return folder


@pytest.fixture
def run(finished):
    return opened(finished)


@pytest.fixture
def own(finished, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(finished, tmp_path / "own")


def opened(folder, **options):
    return Run(StoredRunReader(open_store(folder), **options))


def tile_file(folder, row, column, name="layered", pair="train-train"):
    return folder / "data.zarr" / "kernel" / name / pair / "c" / str(row) / str(column)


def reads(run):
    """Return how many chunks have been read so far."""
    return run.reader._chunks._chunks.reads.num_chunks


PAIRS = [("train", "train"), ("test", "train"), ("train", "test")]
POSITIONS = st.lists(st.integers(0, SIZES["test"] - 1), max_size=12)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["layered", "featured"]), st.sampled_from(PAIRS), POSITIONS, POSITIONS, st.booleans())
def test_entries_are_those_of_the_dense_matrix_in_any_order_and_number(finished, name, pair, rows, columns, spread):
    factor = 2 if spread and pair == ("train", "train") else 1
    rows, columns = np.array(rows, dtype=np.int64) * factor, np.array(columns, dtype=np.int64) * factor
    run = opened(finished, cache=TileCache(3 * 8 * BLOCK**2))
    found = run.kernel(name, *pair)[rows, columns]
    np.testing.assert_array_equal(found, dense(name, *pair)[np.ix_(rows, columns)])


@pytest.mark.parametrize("pair", PAIRS[:2])
def test_both_sides_of_a_kernel_that_is_not_symmetric_are_its_own(run, pair):
    rows, columns = np.array([16, 3, 3, 9]), np.array([40, 0, 12])
    expected = dense("one-way", *pair)
    assert np.array_equal(run.kernel("one-way", *pair)[:, :], expected)
    assert np.array_equal(run.kernel("one-way", *pair)[rows, columns], expected[np.ix_(rows, columns)])


def test_a_rectangle_that_is_stored_one_way_is_read_the_other_way_too(run):
    query = run.kernel("layered", "train", "test")
    assert query.shape == (SIZES["train"], SIZES["test"])
    assert np.array_equal(query[:, :], dense("layered", "train", "test"))
    assert np.array_equal(query["train-000041", 3:9], dense("layered", "train", "test")[41, 3:9])


def test_a_rectangle_of_a_kernel_that_is_not_symmetric_is_not_turned_round(run):
    with pytest.raises(NotFoundError, match="no kernel between 'train' and 'test'"):
        run.kernel("one-way", "train", "test")


def test_each_tile_is_read_once_and_then_no_more(run):
    everything = run.kernel("layered")[:, :]
    num_blocks = -(-SIZES["train"] // BLOCK)
    assert reads(run) >= num_blocks * (num_blocks + 1) // 2
    before = reads(run)
    assert np.array_equal(run.kernel("layered")[:, ::-1], everything[:, ::-1])
    assert reads(run) == before


def test_a_tile_of_which_little_is_wanted_is_held_when_it_is_wanted_again(run):
    query, counts = run.kernel("layered"), []
    run.ids("train")
    for row in (9, 10, 11, 9):
        before = reads(run)
        assert np.array_equal(query[row, 0:4], dense("layered", "train", "train")[row, 0:4])
        counts.append(reads(run) - before)
    assert counts == [1, 1, 0, 0]
    assert run.reader._chunks._cache.statistics.num_tiles == 1


def test_a_cache_of_nothing_gives_the_same_values(finished):
    run = opened(finished, cache=TileCache(0))
    for _ in range(2):
        assert np.array_equal(run.kernel("layered")[::-1, 5:20], dense("layered", "train", "train")[::-1, 5:20])


def test_runs_that_share_a_cache_do_not_share_tiles(finished, own, tmp_path):
    other = tmp_path / "other"
    doubled = stored.Stored(
        entries=lambda name, layer, row_split, rows, column_split, columns: (
            2 * dense(name, row_split, column_split, layer)[rows, columns]
        ),
        diagonals=contents().diagonals,
        features=contents().features,
        labels=CLASSES,
    )
    stored.store_run(other, GEOMETRY, doubled)
    cache = TileCache(2**20)
    one, two = (opened(folder, cache=cache).kernel("layered") for folder in (finished, other))
    for _ in range(2):
        assert np.array_equal(2 * one[0:8, 0:8], two[0:8, 0:8])


def test_answers_are_the_callers_own(run):
    found = [
        run.kernel("layered")[0:8, 0:8],
        run.diagonal("layered"),
        run.features["featured"][0:5],
        run.labels("train"),
    ]
    for values in found:
        values[...] = -1
    assert np.array_equal(run.kernel("layered")[0:8, 0:8], dense("layered", "train", "train")[0:8, 0:8])
    assert np.array_equal(run.diagonal("layered"), dense("layered", "train", "train").diagonal())
    assert np.array_equal(run.features["featured"][0:5], FEATURES["train"][0:5])
    assert np.array_equal(run.labels("train"), CLASSES["train"])


def test_features_are_read_from_the_chunks_that_hold_them_only(run):
    before = reads(run)
    rows = [41, 2, 2, 40]
    assert np.array_equal(run.features["featured"][rows], FEATURES["train"][rows])
    # One of them holds the ids of the split.
    assert reads(run) - before <= 3
    assert run.features["featured"][[]].shape == (0, 6)


@pytest.mark.parametrize("index", [(slice(0, 1), slice(0, 1)), (slice(None), slice(None))], ids=["little", "all"])
def test_a_damaged_byte_anywhere_in_a_tile_is_found_whatever_is_wanted_of_it(own, index):
    path = tile_file(own, 0, 0)
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptChunkError, match="damaged"):
        opened(own).kernel("layered")[index]


@pytest.mark.parametrize("content", [b"", b"abc", None], ids=["empty", "short", "gone"])
@pytest.mark.parametrize("size", [1, BLOCK])
def test_a_tile_that_is_not_whole_is_refused(own, content, size):
    path = tile_file(own, 0, 0)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(CorruptChunkError):
        opened(own).kernel("layered")[0:size, 0:size]


@pytest.mark.parametrize("size", [1, BLOCK])
def test_a_tile_that_is_too_long_is_refused(own, size):
    path = tile_file(own, 0, 0)
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(CorruptChunkError, match="damaged"):
        opened(own).kernel("layered")[0:size, 0:size]


@pytest.mark.parametrize("size", [1, BLOCK])
def test_a_whole_tile_at_the_place_of_another_is_refused(own, size):
    shutil.copyfile(tile_file(own, 1, 0), tile_file(own, 0, 0))
    with pytest.raises(CorruptChunkError, match="another chunk was committed"):
        opened(own).kernel("layered")[0:size, 0:size]


LEFT_OUT = ["train-train/000002-000001", "train-train/000005-000000"]


@pytest.fixture
def unfinished(tmp_path):
    stored.store_run(tmp_path / "unfinished", GEOMETRY, contents(left_out=LEFT_OUT))
    return tmp_path / "unfinished"


def test_blocks_that_are_not_committed_are_named_before_anything_is_read(unfinished):
    run = opened(unfinished)
    with pytest.raises(ChunkNotReadyError, match=r"2 of 21 blocks .* kernel train-train/000002-000001") as caught:
        run.kernel("layered")[:, :]
    assert caught.value.tasks == tuple(LEFT_OUT)
    assert reads(run) == 1  # ids


def test_entries_that_are_not_committed_are_nan_where_that_is_wanted(unfinished):
    expected = dense("layered", "train", "train").copy()
    for rows, columns in ((slice(16, 24), slice(8, 16)), (slice(40, 43), slice(0, 8))):
        expected[rows, columns] = expected.T[rows, columns] = np.nan
    order = RNG.permutation(SIZES["train"])
    found = opened(unfinished).kernel("layered").read(order, slice(None), missing="nan")
    assert np.array_equal(found, expected[order], equal_nan=True)


def test_missing_blocks_can_be_asked_for(unfinished, finished):
    run = opened(unfinished)
    name, every = run.kernel("layered").name, np.arange(SIZES["train"])
    assert run.reader.missing_blocks(name, every, every) == LEFT_OUT
    assert run.reader.missing_blocks(name, every[8:16], every[16:20]) == LEFT_OUT[:1]
    assert run.reader.missing_blocks(name, every[0:16], every[0:16]) == []
    centred = run.kernel("layered").centred().name
    assert run.reader.missing_blocks(centred, every[0:3], every[0:3]) == LEFT_OUT
    assert opened(finished).reader.missing_blocks(name, every, every) == []


def test_a_block_that_is_committed_later_is_read_by_a_run_that_was_open(unfinished, finished):
    run = opened(unfinished)
    with pytest.raises(ChunkNotReadyError):
        run.kernel("layered")[:, :]
    for task in LEFT_OUT:
        shutil.copyfile(finished / "receipts/kernel" / f"{task}.json", unfinished / "receipts/kernel" / f"{task}.json")
    assert np.array_equal(run.kernel("layered")[:, :], dense("layered", "train", "train"))


def test_a_listing_finds_many_missing_blocks_at_once(tmp_path):
    every = [Block(*(shard_at("train", at, SIZES["train"], BLOCK) for at in pair)).task for pair in np.ndindex(6, 6)]
    stored.store_run(tmp_path / "run", GEOMETRY, contents(left_out=every))
    run, counts = opened(tmp_path / "run"), []
    store = run.reader._store
    listing, getting = store.sizes, store.get
    store.sizes = lambda prefix: counts.append("list") or listing(prefix)
    store.get = lambda key: counts.append("get") or getting(key)
    with pytest.raises(ChunkNotReadyError, match="21 of 21"):
        run.kernel("layered")[:, :]
    # Of receipts, and of segments; and the receipt of the ids.
    assert counts.count("list") == 2
    assert counts.count("get") <= 3


def test_a_repaired_tile_is_read_by_a_run_that_was_open(own):
    run = opened(own)
    before = run.kernel("layered")[0:8, 0:8]
    name, at = run.kernel("layered").name, np.arange(8)
    version = run.reader.version(name, at, at)
    stored.store_run(
        own.parent / "again",
        GEOMETRY,
        stored.Stored(
            entries=lambda *what: contents().entries(*what) + 1, diagonals=contents().diagonals,
            features=contents().features, labels=CLASSES,
        ),
    )  # fmt: skip
    for place in ("data.zarr", "receipts"):
        shutil.rmtree(own / place)
        shutil.copytree(own.parent / "again" / place, own / place)
    run.reader._chunks._cache._tiles.clear()
    run.reader._chunks._cache._num_bytes = 0
    assert np.array_equal(run.kernel("layered")[0:8, 0:8], before + 1)
    assert run.reader.version(name, at, at) != version


def test_versions_are_those_of_what_is_read(finished, unfinished, own):
    at, every = np.arange(4), np.arange(SIZES["train"])
    run, again, half = opened(finished), opened(own), opened(unfinished)
    name = run.kernel("layered").name
    for rows in (at, every):
        assert run.reader.version(name, rows, every) == again.reader.version(name, rows, every)
    names = [
        run.kernel("layered", layers=["head*"]).name,
        run.kernel("layered").cosine().name,
        run.kernel("layered").centred().name,
        run.kernel("featured").name,
        run.kernel("layered", "test").name,
        name,
    ]
    assert len({run.reader.version(one, at, at) for one in names}) == len(names)
    # Blocks that are missing are part of it.
    assert half.reader.version(name, at, at) == half.reader.version(name, at[::-1], at)
    before = half.reader.version(name, every, every)
    shutil.copyfile(
        finished / "receipts/kernel" / f"{LEFT_OUT[0]}.json", unfinished / "receipts/kernel" / f"{LEFT_OUT[0]}.json"
    )
    assert half.reader.version(name, every, every) != before


def test_versions_of_what_is_stored_per_sample_change_with_its_chunks(run, own):
    other = opened(own)
    at = np.array([0, 1])
    questions = [
        lambda reader: reader.features_version("featured", "train", at),
        lambda reader: reader.diagonal_version("layered", "train"),
        lambda reader: reader.outputs_version("train", at),
        lambda reader: reader.errors_version(run.kernel("featured").name, at, at),
    ]
    assert all(ask(run.reader) == ask(other.reader) for ask in questions)
    assert run.reader.samples_version("train") == other.reader.samples_version("train")
    assert run.reader.samples_version("train") != run.reader.samples_version("test")
    ledger = Ledger(open_store(own))
    receipt = ledger.receipt("features", "train/00000000")
    chunks = tuple(record.model_copy(update={"crc32c": "00000000"}) for record in receipt.chunks)
    open_store(own).put("receipts/features/train/00000000.json", receipt.model_copy(update={"chunks": chunks}).encode())
    assert all(ask(run.reader) != ask(opened(own).reader) for ask in questions)


def test_what_is_too_much_is_refused_before_anything_is_read(finished):
    run = opened(finished, limits=Limits(max_cells=100, max_bytes=2 * 8 * BLOCK**2))
    with pytest.raises(TooLargeError, match="110 numbers; ask for at most 100") as caught:
        run.kernel("layered")[0:11, 0:10]
    assert (caught.value.limit, caught.value.asked) == (100, 110)
    with pytest.raises(TooLargeError, match="would have to be read") as caught:
        run.kernel("layered")[[0, 9, 17], 0]
    assert (caught.value.limit, caught.value.asked) == (2 * 8 * BLOCK**2, 3 * 8 * BLOCK**2)
    with pytest.raises(TooLargeError):
        run.kernel("layered").centred()[0, 0]
    with pytest.raises(TooLargeError):
        run.features["featured"][0:20]
    assert reads(run) == 1  # ids
    assert run.kernel("layered")[0:10, 0:5].shape == (10, 5)


def test_standard_errors_of_many_layers_take_the_memory_that_is_told(tmp_path):
    layers = tuple(f"layer{number}" for number in range(40))
    num, factors = (
        300,
        {layer: np.random.default_rng([7, at]).standard_normal((300, 4)) for at, layer in enumerate(layers)},
    )
    kernels = [stored.kernel("layers", groups=layers, feature_dim=4, sketched=True)]
    shape = stored.geometry({"train": num}, kernels, block_rows=num, shard_rows=num, dtype="float64")
    given = stored.Stored(
        entries=lambda name, layer, row_split, rows, column_split, columns: np.zeros((num, num)),
        diagonals=lambda name, layer, split, rows: np.ones(num),
        features=lambda name, layer, split, rows: factors[layer],
    )
    stored.store_run(tmp_path / "run", shape, given)
    query = opened(tmp_path / "run").standard_errors("layers")
    expected = np.abs(sum(one[:, :2] @ one[:, :2].T - one[:, 2:] @ one[:, 2:].T for one in factors.values()))
    tracemalloc.start()
    try:
        np.testing.assert_allclose(query[:, :], expected, atol=1e-10)
        tracemalloc.reset_peak()
        found = query[:, :]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 1.1 * (found.nbytes + work_bytes(shape, "layers", num, num)) + expected.nbytes
    assert work_bytes(shape, "layers", num, num) < 6 * found.nbytes


def test_many_threads_ask_one_run_with_a_small_cache(finished):
    run = opened(finished, cache=TileCache(4 * 8 * BLOCK**2))
    expected = {
        ("layered", pair): dense("layered", *pair) for pair in PAIRS
    } | {("featured", pair): dense("featured", *pair) for pair in PAIRS}  # fmt: skip

    def ask(seed):
        rng = np.random.default_rng(seed)
        for _ in range(40):
            (name, pair), values = list(expected.items())[rng.integers(len(expected))]
            rows, columns = (rng.integers(0, size, rng.integers(1, 20)) for size in values.shape)
            if not np.array_equal(run.kernel(name, *pair)[rows, columns], values[np.ix_(rows, columns)]):
                return False
            at = rng.integers(0, SIZES["train"], 3)
            if not np.array_equal(run.features["featured"][at], FEATURES["train"][at]):
                return False
            if not np.array_equal(run.diagonal(name), dense(name, "train", "train").diagonal()):
                return False
            centred = run.kernel("layered").centred()[at, at]
            if not np.allclose(centred, CENTRED[np.ix_(at, at)], atol=1e-9):
                return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(ask, range(8)))


HALF = np.eye(SIZES["train"]) - 1 / SIZES["train"]
CENTRED = HALF @ dense("layered", "train", "train") @ HALF


def test_many_threads_share_a_ledger_while_another_commits(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    receipts = sorted((tmp_path / "run/receipts/kernel").rglob("*.json"))
    contents = {path: path.read_bytes() for path in receipts}
    for path in receipts:
        path.unlink()
    ledger = Ledger(open_store(tmp_path / "run"))
    tasks = [f"{path.parent.name}/{path.stem}" for path in receipts]

    def look(_):
        while missing := ledger.fetch("kernel", tasks):
            ledger.committed("kernel")
            ledger.refresh()
            if not set(missing) <= set(tasks):
                return False
        return all(ledger.sums.holds("kernel", task) for task in tasks)

    def commit():
        for path, data in contents.items():
            path.write_bytes(data)

    with ThreadPoolExecutor(5) as threads:
        found = [threads.submit(look, number) for number in range(4)]
        threads.submit(commit).result(60)
        assert all(future.result(60) for future in found)
    assert ledger.committed("kernel") == frozenset(tasks)
