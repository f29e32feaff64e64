"""Chunks: what is written is read; what is damaged, missing or swapped is noticed."""

import numpy as np
import pytest

from ntkpipe.configs.errors import CorruptChunkError, StorageError
from ntkpipe.storage.arrays import ArraySpec, ChunkStore, checksum
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


def test_creating_again_keeps_what_is_stored(chunks):
    chunks.write("kernel/a", (0, 0), np.ones((3, 4), np.float32))
    chunks.create(SPECS, {"schema_version": 1})
    assert chunks.read("kernel/a", (0, 0)).sum() == 12


def test_an_array_that_does_not_exist_is_named(chunks):
    with pytest.raises(StorageError, match="no readable array kernel/z"):
        chunks.read("kernel/z", (0, 0))
