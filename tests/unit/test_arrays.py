"""Chunks: what is written is read; what is damaged, missing or swapped is noticed."""

import json
import re

import google_crc32c
import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec

from ntkpipe.configs.errors import CorruptChunkError, StorageError
from ntkpipe.storage.arrays import ChunkStore, checksum
from ntkpipe.storage.metadata import ArraySpec, documents, problems
from ntkpipe.storage.stores.registry import open_store

SPECS = [
    ArraySpec("kernel/a", (5, 7), (3, 4), "float32", ("row", "column")),
    ArraySpec("kernel/b", (5, 7), (3, 4), "float64", ("row", "column")),
    ArraySpec("label/train", (4,), (4,), "int64", ("train",)),
    ArraySpec("sample_id/train", (3,), (3,), "str", ("train",)),
]


@pytest.fixture
def chunks(tmp_path):
    found = ChunkStore(open_store(tmp_path / "run"))
    found.create(SPECS, {"schema_version": 1})
    return found


def test_what_is_written_is_read_bit_for_bit(chunks):
    for path, dtype in (("kernel/a", np.float32), ("kernel/b", np.float64)):
        values = np.random.default_rng(0).standard_normal((2, 3)).astype(dtype)
        record = chunks.write(path, (1, 1), values)
        assert chunks.read(path, (1, 1)).tobytes() == values.tobytes()
        assert record.nbytes == values.nbytes
        assert record.crc32c == checksum(values)
        assert chunks.matches(record) is None


def test_ids_and_labels_are_kept(chunks):
    record = chunks.write("sample_id/train", (0,), np.array(["ä", "b c", "x" * 500], dtype=object))
    assert list(chunks.read("sample_id/train", (0,))) == ["ä", "b c", "x" * 500]
    assert chunks.matches(record) is None
    record = chunks.write("label/train", (0,), np.array([0, -3, 2**60, 1]))
    assert chunks.read("label/train", (0,)).tolist() == [0, -3, 2**60, 1]
    assert chunks.matches(record) is None


def test_a_chunk_of_zeros_is_there(chunks):
    record = chunks.write("kernel/a", (0, 0), np.zeros((3, 4), np.float32))
    assert chunks.read("kernel/a", (0, 0)).tolist() == np.zeros((3, 4)).tolist()
    assert chunks.matches(record) is None


def test_a_missing_chunk_is_not_read_as_its_fill_value(chunks):
    for path, position in (("kernel/a", (0, 0)), ("label/train", (0,)), ("sample_id/train", (0,))):
        with pytest.raises(CorruptChunkError, match="missing or incomplete"):
            chunks.read(path, position)


def test_values_whose_sum_overflows_are_no_missing_chunk(chunks):
    values = np.array([[3e38, 3e38, -3e38, -3e38]] * 3, np.float32)
    chunks.write("kernel/a", (0, 0), values)
    assert chunks.read("kernel/a", (0, 0)).tolist() == values.tolist()


def test_every_flipped_bit_is_noticed(chunks, tmp_path):
    rng = np.random.default_rng(1)
    record = chunks.write("kernel/a", (0, 0), rng.standard_normal((3, 4)).astype(np.float32))
    path = tmp_path / "run/data.zarr/kernel/a/c/0/0"
    whole = path.read_bytes()
    for bit in rng.choice(8 * len(whole), 60, replace=False):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(bytes(damaged))
        assert chunks.matches(record) is not None
    path.write_bytes(whole)
    assert chunks.matches(record) is None


def test_a_valid_chunk_in_the_wrong_place_is_noticed(chunks, tmp_path):
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    record = chunks.write("kernel/a", (0, 0), values)
    chunks.write("kernel/a", (0, 1), np.ones((3, 3), np.float32))
    folder = tmp_path / "run/data.zarr/kernel/a/c/0"
    (folder / "0").write_bytes((folder / "1").read_bytes())
    assert "crc32c is" in chunks.matches(record) or "missing or incomplete" in chunks.matches(record)


@pytest.mark.parametrize("content", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\xff"])
def test_texts_that_were_written_by_somebody_else_are_damage(content, chunks, tmp_path):
    record = chunks.write("sample_id/train", (0,), np.array(["a", "b", "c"], object))
    path = tmp_path / "run/data.zarr/sample_id/train/c/0"
    whole = path.read_bytes()[:-4]
    changed = whole[:8] + content + whole[9:] if len(content) == 1 else content + whole[4:]
    path.write_bytes(changed + google_crc32c.value(changed).to_bytes(4, "little"))
    assert chunks.matches(record) is not None
    with pytest.raises(CorruptChunkError):
        chunks.read("sample_id/train", (0,), committed=record.crc32c)


def test_creating_again_keeps_what_is_stored(chunks):
    chunks.write("kernel/a", (0, 0), np.ones((3, 4), np.float32))
    chunks.create(SPECS, {"schema_version": 1})
    assert chunks.read("kernel/a", (0, 0)).sum() == 12


def test_an_array_that_does_not_exist_is_named(chunks):
    with pytest.raises(StorageError, match="no readable array kernel/z"):
        chunks.read("kernel/z", (0, 0))


def fill(chunks):
    """Write every chunk of every array; return {(path, position): values}."""
    rng, written = np.random.default_rng(3), {}
    for spec in SPECS:
        for position in np.ndindex(*(-(-size // chunk) for size, chunk in zip(spec.shape, spec.chunks, strict=True))):
            shape = [part.stop - part.start for part in spec.region(position)]
            values = rng.integers(-9, 9, shape)
            values = (
                np.array([f"ä{value}" for value in values], object)
                if spec.dtype == "str"
                else values.astype(spec.dtype)
            )
            chunks.write(spec.path, position, values)
            written[spec.path, position] = values
    return written


def test_every_byte_is_as_zarr_would_have_written_it(chunks, tmp_path):
    written = fill(chunks)
    root = zarr.create_group(tmp_path / "other/data.zarr", attributes={"schema_version": 1})
    for spec in SPECS:
        array = root.create_array(
            spec.path,
            shape=spec.shape,
            chunks=spec.chunks,
            dtype=str if spec.dtype == "str" else spec.dtype,
            fill_value=spec.fill_value,
            filters=None,
            compressors=[Crc32cCodec()],
            dimension_names=spec.dimensions,
            config={"write_empty_chunks": True},
        )
        for (path, position), values in written.items():
            if path == spec.path:
                array[spec.region(position)] = values
    files = {path.relative_to(tmp_path / "other") for path in (tmp_path / "other").rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path / "run") for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for file in files:
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "other" / file).read_bytes(), file


def test_plain_zarr_reads_what_is_written(chunks, tmp_path):
    written = fill(chunks)
    group = zarr.open_group(tmp_path / "run/data.zarr", mode="r")
    for spec in SPECS:
        array = group[spec.path]
        assert array.metadata.dimension_names == spec.dimensions
        for (path, position), values in written.items():
            if path == spec.path:
                assert np.array_equal(array[spec.region(position)], values)


def test_readers_need_no_metadata_where_the_run_tells_the_arrays(chunks, tmp_path):
    written = fill(chunks)
    for file in (tmp_path / "run").rglob("zarr.json"):
        file.unlink()
    told = ChunkStore(open_store(tmp_path / "run"), read_only=True, specs=SPECS)
    for (path, position), values in written.items():
        assert np.array_equal(told.read(path, position), values)
    with pytest.raises(StorageError, match="no readable array kernel/a"):
        ChunkStore(open_store(tmp_path / "run")).read("kernel/a", (0, 0))


def test_what_is_read_is_the_reader_s_own(chunks):
    chunks.write("kernel/a", (0, 0), np.ones((3, 4), np.float32))
    values = chunks.read("kernel/a", (0, 0))
    values[:] = 7
    assert chunks.read("kernel/a", (0, 0)).sum() == 12


def test_nothing_is_written_through_arrays_that_are_open_for_reading(tmp_path):
    with pytest.raises(AssertionError, match="open for reading only"):
        ChunkStore(open_store(tmp_path), read_only=True, specs=SPECS).write("label/train", (0,), np.arange(4))


def test_an_array_of_another_encoding_is_refused(tmp_path):
    root = zarr.create_group(tmp_path / "run/data.zarr")
    root.create_array("kernel/a", shape=(4,), chunks=(2,), dtype="float32")
    with pytest.raises(StorageError, match="which no run is"):
        ChunkStore(open_store(tmp_path / "run")).read("kernel/a", (0,))


def test_a_receipt_is_held_against_the_grid(chunks):
    record = chunks.write("kernel/a", (1, 1), np.ones((2, 3), np.float32))
    assert (record.start, record.shape) == ((3, 4), (2, 3))
    for change, problem in (
        ({"start": (0, 0)}, "from .0, 0. on"),
        ({"shape": (2, 4)}, "committed were .2, 4. values"),
        ({"position": (2, 0)}, "beyond the array's end"),
        ({"position": (0,)}, "has 2 axes"),
    ):
        assert re.search(problem, chunks.matches(record.model_copy(update=change)) or "")
    # Receipts of the first version tell neither.
    assert chunks.matches(record.model_copy(update={"start": (), "shape": ()})) is None


def test_metadata_in_other_words_is_the_same_unless_every_byte_counts(chunks):
    expected = documents(SPECS, {"schema_version": 1})
    assert not list(problems(chunks.store, expected, exactly=True))
    for key, document in expected.items():
        chunks.store.put(key, json.dumps(json.loads(document)).encode())
    assert not list(problems(chunks.store, expected, exactly=False))
    assert {key for key, _ in problems(chunks.store, expected, exactly=True)} == set(expected)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"float32"', '"float64"', "data_type"),
        ("5,", "4,", "shape"),
        ('"crc32c"', '"crc33c"', "no metadata of zarr"),
        ('"row"', '"raw"', "dimension_names"),
        ('"NaN"', "0.0", "fill_value"),
    ],
)
def test_metadata_that_says_something_else_is_damaged_and_written_again(chunks, old, new, problem):
    key = "data.zarr/kernel/a/zarr.json"
    whole = chunks.store.read(key)
    chunks.store.put(key, whole.decode().replace(old, new, 1).encode())
    ((found, text),) = problems(chunks.store, documents(SPECS, {"schema_version": 1}), exactly=False)
    assert found == key
    assert problem in text
    chunks.create(SPECS, {"schema_version": 1})
    assert chunks.store.read(key) == whole
