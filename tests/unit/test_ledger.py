"""Receipts commit tasks once, alone or in segments, and whatever is cut or damaged, none is lost or doubled unseen."""

import threading
from collections import Counter
from contextlib import suppress

import numpy as np
import pytest

from ntkpipe.configs.errors import ChunkNotReadyError, CorruptChunkError, NotFoundError, StorageError
from ntkpipe.storage import layout, sums
from ntkpipe.storage.arrays import ChunkStore
from ntkpipe.storage.committed import read_committed
from ntkpipe.storage.ledger import MANY_RECEIPTS, STALE_HITS, Ledger
from ntkpipe.storage.metadata import ArraySpec
from ntkpipe.storage.records import ChunkRecord, Receipt
from ntkpipe.storage.stores.registry import open_store

NAMES = [f"train/{index:08d}" for index in range(7)]


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "run")


@pytest.fixture
def calls(store, monkeypatch):
    """How often each method of the store is called."""
    counted = Counter()
    for name in ("exists", "sizes", "get", "put", "put_new", "delete"):
        method = getattr(type(store), name)

        def counting(self, *arguments, method=method, name=name, **options):
            counted[name, arguments[0] if name == "sizes" else ""] += 1
            return method(self, *arguments, **options)

        monkeypatch.setattr(type(store), name, counting)
    return counted


def receipt(task=NAMES[0], worker="w", stage="features", epoch=0):
    chunk = ChunkRecord(array="features/a/train", position=(0, 0), crc32c="00000000", nbytes=8)
    return Receipt(stage=stage, task=task, chunks=(chunk,), seconds=0.1, worker=worker, epoch=epoch)


def accept():
    """The driver still holds the run."""


def compacted(store, names=NAMES, per_segment=3, beyond=2):
    """Return a ledger over receipts of which all but the last are in segments."""
    ledger = Ledger(store)
    for name in names:
        ledger.commit(receipt(name))
    assert ledger.compact(1, accept, beyond=beyond, per_segment=per_segment) == len(names) // per_segment * per_segment
    return ledger


def tasks(store, stage="features"):
    """Return what a fresh ledger streams; every task once."""
    found = [found.task for found in Ledger(store).receipts(stage)]
    assert len(found) == len(set(found))
    return set(found)


def segments(store):
    return store.names(layout.SEGMENTS)


def own_receipts(store):
    return {key.removeprefix("receipts/features/").removesuffix(".json") for key in store.names(layout.RECEIPTS)}


def test_several_tasks_are_committed_side_by_side(store, monkeypatch):
    """Each commit waits until another one is under way."""
    both, commit = threading.Barrier(2, timeout=20), Ledger.commit

    def meeting(self, one):
        both.wait()
        return commit(self, one)

    monkeypatch.setattr(Ledger, "commit", meeting)
    Ledger(store).commit_at_once([receipt(name) for name in NAMES[:4]])
    assert tasks(store) == set(NAMES[:4])


def test_a_commit_that_fails_beside_others_is_heard_of(store, monkeypatch):
    commit = Ledger.commit

    def failing(self, one):
        if one.task == NAMES[1]:
            raise StorageError("the store is full")
        return commit(self, one)

    monkeypatch.setattr(Ledger, "commit", failing)
    with pytest.raises(StorageError, match="full"):
        Ledger(store).commit_at_once([receipt(name) for name in NAMES[:4]])
    assert NAMES[1] not in tasks(store)


def test_a_task_is_committed_once(store):
    ledger = Ledger(store)
    assert not ledger.is_committed("features", NAMES[0])
    assert ledger.commit(receipt())
    assert not ledger.commit(receipt(worker="other"))
    assert ledger.receipt("features", NAMES[0]).worker == "w"
    assert Ledger(store).committed("features") == {NAMES[0]}


def test_commits_of_others_are_seen(store):
    reader = Ledger(store)
    with pytest.raises(ChunkNotReadyError, match="features task train/00000000 is not committed"):
        reader.require("features", NAMES[0])
    Ledger(store).commit(receipt())
    reader.require("features", NAMES[0])


def test_a_revoked_task_counts_as_not_done(store):
    ledger = Ledger(store)
    ledger.commit(receipt())
    ledger.revoke([("features", NAMES[0])])
    assert not ledger.is_committed("features", NAMES[0])
    assert ledger.commit(receipt())


def test_a_receipt_of_another_version_is_refused(store):
    data = receipt("x").encode().replace(b'"schema_version": 2', b'"schema_version": 9')
    store.put(layout.receipt("features", "x"), data)
    with pytest.raises(StorageError, match="written by another version"):
        Ledger(store).receipt("features", "x")


def test_a_receipt_that_does_not_exist_is_named(store):
    with pytest.raises(NotFoundError, match=r"has no receipts/features/x\.json"):
        Ledger(store).receipt("features", "x")


def test_all_stages_are_listed_at_once(store, calls):
    for stage in ("features", "kernel", "solve"):
        Ledger(store).commit(receipt("a", stage=stage))
    ledger = Ledger(store)
    calls.clear()
    assert [ledger.committed(stage) for stage in ("features", "kernel", "solve", "analyze")] == [{"a"}] * 3 + [set()]
    assert calls["sizes", layout.RECEIPTS] == 1
    Ledger(store).commit(receipt("b"))
    assert ledger.committed("features") == {"a"}
    ledger.refresh()
    assert ledger.committed("features") == {"a", "b"}
    assert ledger.stages() == ("features", "kernel", "solve")


def test_asking_for_missing_tasks_lists_no_receipts(store, calls):
    ledger = Ledger(store)
    assert not any(ledger.is_committed("features", f"{index}") for index in range(50))
    assert calls["get", ""] == 50
    assert calls["sizes", layout.RECEIPTS] == 0


def test_finding_many_tasks_of_others_lists_a_few_times(store, calls):
    reader, writer = Ledger(store), Ledger(store)
    for index in range(20 * STALE_HITS):
        writer.commit(receipt(f"{index}"))
        assert reader.is_committed("features", f"{index}")
    assert 0 < calls["sizes", layout.RECEIPTS] < 20


@pytest.mark.parametrize("bit", range(8))
def test_every_flipped_bit_of_a_receipt_is_noticed_when_it_is_read(store, bit):
    """Where a flip changes no more than the letters in which a number is written, the receipt says what it said."""
    Ledger(store).commit(receipt())
    key, expected = layout.receipt("features", NAMES[0]), Ledger(store).receipt("features", NAMES[0])
    whole = store.read(key)
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << bit
        store.put(key, bytes(damaged))
        with suppress(StorageError):
            assert Ledger(store).receipt("features", NAMES[0]) == expected


def test_a_receipt_of_another_task_is_not_taken_for_its_own(store):
    ledger = Ledger(store)
    for name in NAMES[:2]:
        ledger.commit(receipt(name))
    store.put(layout.receipt("features", NAMES[0]), store.read(layout.receipt("features", NAMES[1])))
    with pytest.raises(StorageError, match=r"is not the receipt of features task train/00000000 but of"):
        Ledger(store).receipt("features", NAMES[0])


def test_receipts_of_the_first_version_need_no_seal(store):
    data = receipt().model_copy(update={"schema_version": 1}).model_dump_json(exclude={"seal"}).encode()
    store.put(layout.receipt("features", NAMES[0]), data)
    assert Ledger(store).receipt("features", NAMES[0]).seal == ""
    store.put(layout.receipt("features", NAMES[0]), data.replace(b'"schema_version":1', b'"schema_version":2'))
    with pytest.raises(StorageError, match="its seal is ''"):
        Ledger(store).receipt("features", NAMES[0])


def test_an_empty_receipt_does_not_count_and_is_replaced(store):
    """A power failure leaves one where the store was not asked for more."""
    store.put(layout.receipt("features", NAMES[0]), b"")
    ledger = Ledger(store)
    assert not ledger.is_committed("features", NAMES[0])
    assert ledger.committed("features") == set()
    assert [entry.problem is None for entry in ledger.entries("features")] == [False]
    assert ledger.commit(receipt())
    assert tasks(store) == {NAMES[0]}


def test_a_receipt_that_cannot_be_read_is_replaced_by_whoever_commits_the_task(store):
    store.put(layout.receipt("features", NAMES[0]), receipt().encode()[:60])
    assert Ledger(store).commit(receipt(worker="again"))
    assert Ledger(store).receipt("features", NAMES[0]).worker == "again"


def test_segments_take_the_place_of_receipts(store):
    ledger = compacted(store)
    assert own_receipts(store) == {NAMES[6]}
    assert segments(store) == ["segments/000001-000001.jsonl", "segments/000001-000002.jsonl"]
    for one in (ledger, Ledger(store)):
        assert one.committed("features") == set(NAMES)
        assert one.receipt("features", NAMES[4]) == Ledger(store).receipt("features", NAMES[4])
        assert one.receipt("features", NAMES[4]).task == NAMES[4]
        assert all(one.is_committed("features", name) for name in NAMES)
    assert tasks(store) == set(NAMES)
    assert tasks(store, "kernel") == set()


def test_nothing_is_moved_below_the_threshold(store, calls):
    ledger = Ledger(store)
    for name in NAMES:
        ledger.commit(receipt(name))
    ledger.committed("features")
    calls.clear()
    assert ledger.compact(1, accept) == 0
    assert not calls
    assert not segments(store)


def test_a_second_driver_moves_what_has_come_since(store):
    compacted(store)
    ledger = Ledger(store)
    for name in ("a", "b", "c"):
        ledger.commit(receipt(name, stage="kernel"))
    assert ledger.compact(2, accept, beyond=2, per_segment=4) == 4
    assert segments(store)[-1] == "segments/000002-000001.jsonl"
    assert tasks(store) == set(NAMES)
    assert tasks(store, "kernel") == {"a", "b", "c"}


def test_damaged_receipts_stay_where_they_are_when_others_are_moved(store):
    for name in NAMES:
        Ledger(store).commit(receipt(name))
    store.put(layout.receipt("features", NAMES[1]), b"{")
    assert Ledger(store).compact(1, accept, beyond=2, per_segment=3) == 5
    assert own_receipts(store) == {NAMES[1], NAMES[6]}
    with pytest.raises(StorageError, match=f"{NAMES[1]}.json cannot be read"):
        tasks(store)


class Cut(BaseException):
    """The end of a process."""


@pytest.mark.parametrize("work", ["compact", "revoke", "commit_many"])
def test_a_kill_at_any_moment_loses_nothing_and_doubles_nothing(work, tmp_path, monkeypatch):
    cut_at, finished = 0, False
    while not finished:
        store = open_store(tmp_path / f"{cut_at}")
        ledger = Ledger(store)
        for name in NAMES:
            ledger.commit(receipt(name))
        if work == "revoke":
            ledger.compact(1, accept, beyond=0, per_segment=3)
        with monkeypatch.context() as patch:
            left = [cut_at]
            for method in ("put", "put_new", "delete"):
                original = getattr(type(store), method)

                def cutting(self, *arguments, original=original, left=left, **options):
                    if not left[0]:
                        raise Cut
                    left[0] -= 1
                    return original(self, *arguments, **options)

                patch.setattr(type(store), method, cutting)
            patch.setattr(type(store), "delete_many", lambda self, keys: [self.delete(key) for key in keys])
            try:
                if work == "compact":
                    ledger.compact(1, accept, beyond=2, per_segment=3)
                elif work == "revoke":
                    ledger.revoke([("features", NAMES[1]), ("features", NAMES[4]), ("features", NAMES[6])])
                else:
                    ledger.commit_many(receipt(f"{index}", epoch=3) for index in range(MANY_RECEIPTS))
                finished = True
            except Cut:
                pass
        kept = set(NAMES) - ({NAMES[1], NAMES[4], NAMES[6]} if work == "revoke" else set())
        assert kept <= tasks(store) == Ledger(store).committed("features")
        if work == "compact":
            assert tasks(store) == set(NAMES)
            Ledger(store).compact(2, accept, beyond=2, per_segment=3)
            assert tasks(store) == set(NAMES)
        elif work == "revoke":
            Ledger(store).revoke([("features", NAMES[1]), ("features", NAMES[4]), ("features", NAMES[6])])
            assert tasks(store) == Ledger(store).committed("features") == kept
        cut_at += 1
    assert cut_at > {"compact": 8, "revoke": 6, "commit_many": 1}[work]


def test_readers_that_list_during_a_compaction_miss_nothing(store, monkeypatch):
    """A reader looks before, between and after all steps of a compaction, with what it has seen before."""
    ledger = Ledger(store)
    for name in NAMES:
        ledger.commit(receipt(name))
    early, looked = Ledger(store), []
    early.committed("features")

    def look(self, *arguments, original, **options):
        for reader in (early, Ledger(self)):
            assert all(reader.is_committed("features", name) for name in NAMES)
            assert {reader.receipt("features", name).task for name in NAMES} == set(NAMES)
        assert {found.task for found in early.receipts("features")} == tasks(self) == set(NAMES)
        looked.append(arguments[0])
        return original(self, *arguments, **options)

    with monkeypatch.context() as patch:
        for method in ("put_new", "delete"):
            original = getattr(type(store), method)
            patch.setattr(
                type(store), method, lambda self, *a, original=original, **o: look(self, *a, original=original, **o)
            )
        patch.setattr(type(store), "delete_many", lambda self, keys: [self.delete(key) for key in keys])
        ledger.compact(1, accept, beyond=2, per_segment=3)
    assert len(looked) == 8


def test_a_listing_that_is_overtaken_by_a_compaction_misses_nothing(store, monkeypatch):
    """The objects are listed, then everything is moved and the objects are gone, then the segments are listed."""
    ledger = Ledger(store)
    for name in NAMES:
        ledger.commit(receipt(name))
    sizes = type(store).sizes

    def overtaken(self, prefix):
        found = sizes(self, prefix)
        if prefix == layout.RECEIPTS:
            ledger.compact(1, accept, beyond=2, per_segment=3)
        return found

    ledger.committed("features")
    monkeypatch.setattr(type(store), "sizes", overtaken)
    assert tasks(store) == set(NAMES)


def test_a_reader_follows_a_segment_that_is_replaced_while_it_reads(store):
    compacted(store)
    reader = Ledger(store)
    stream = reader.receipts("features")
    first = next(stream).task
    Ledger(store).revoke([("features", NAMES[1]), ("features", NAMES[4])])
    assert {first, *(found.task for found in stream)} == set(NAMES) - {NAMES[1], NAMES[4]}


def test_a_driver_that_lost_the_run_moves_nothing(store):
    ledger = Ledger(store)
    for name in NAMES:
        ledger.commit(receipt(name))

    def refuse():
        raise Cut

    with pytest.raises(Cut):
        ledger.compact(1, refuse, beyond=2, per_segment=3)
    assert own_receipts(store) == set(NAMES)
    assert not segments(store)


def test_a_receipt_of_its_own_wins_over_that_of_a_segment(store):
    compacted(store)
    store.put(layout.receipt("features", NAMES[2]), receipt(NAMES[2], worker="own").encode())
    assert Ledger(store).receipt("features", NAMES[2]).worker == "own"
    workers = {found.task: found.worker for found in Ledger(store).receipts("features")}
    assert workers == dict.fromkeys(NAMES, "w") | {NAMES[2]: "own"}


def test_revoking_takes_a_task_out_of_its_segment_and_keeps_the_others(store):
    ledger = compacted(store)
    ledger.revoke([("features", NAMES[1])])
    for one in (ledger, Ledger(store)):
        assert not one.is_committed("features", NAMES[1])
        assert one.committed("features") == set(NAMES) - {NAMES[1]}
    assert ledger.commit(receipt(NAMES[1], worker="again"))
    assert tasks(store) == set(NAMES)


def test_a_name_that_is_used_for_a_second_segment_is_read_again(store):
    writer = Ledger(store)
    for name in NAMES[:3]:
        writer.commit(receipt(name))
    writer.compact(1, accept, beyond=0, per_segment=3)
    reader = Ledger(store)
    assert reader.committed("features") == set(NAMES[:3])
    writer.revoke(("features", name) for name in NAMES[:3])
    assert not segments(store)
    writer = Ledger(store)
    for name in ("other", "tasks"):
        writer.commit(receipt(name))
    writer.compact(1, accept, beyond=0, per_segment=2)
    assert segments(store) == ["segments/000001-000001.jsonl"]
    assert reader.receipt("features", "tasks").task == "tasks"
    assert reader.committed("features") == {"other", "tasks"}


def test_thousands_of_tasks_are_committed_with_few_objects(store, calls):
    ledger = Ledger(store)
    ledger.commit_many(receipt(f"{index}", epoch=4) for index in range(3))
    assert not segments(store)
    calls.clear()
    ledger.commit_many(receipt(f"x{index}", epoch=4) for index in range(MANY_RECEIPTS))
    assert calls["put_new", ""] == 1
    assert segments(store) == ["segments/000004-000001.jsonl"]
    assert len(tasks(store)) == MANY_RECEIPTS + 3


@pytest.mark.parametrize("where", ["header", "body", "end"])
def test_a_damaged_segment_is_an_error_that_names_it(store, where):
    compacted(store)
    key = segments(store)[0]
    data = store.read(key)
    position = {"header": 30, "body": data.index(b"\n") + 50, "end": None}[where]
    damaged = data[:-20] if position is None else data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :]
    store.put(key, damaged)
    message = rf"{key}, which says which tasks are finished, is damaged"
    ledger = Ledger(store)
    with pytest.raises(StorageError, match=message):
        ledger.committed("features")
    with pytest.raises(StorageError, match=message):
        tasks(store)
    assert ledger.is_committed("features", NAMES[6]), "known from its own receipt"
    assert ledger.is_committed("features", NAMES[4]), "known from a whole segment"
    with pytest.raises(StorageError, match=message):
        ledger.is_committed("features", NAMES[0])
    with pytest.raises(StorageError, match=message):
        ledger.receipt("features", NAMES[0])


def test_a_segment_that_turns_out_to_be_damaged_when_a_receipt_is_taken_out_is_kept(store):
    ledger = compacted(store)
    other, key = segments(store)
    whole = store.read(key)
    damaged = bytes([*whole[:-9], whole[-9] ^ 4, *whole[-8:]])
    ledger.receipt("features", NAMES[0])  # another one is open now
    store.put(key, damaged)
    with pytest.raises(StorageError, match=f"{key}, which says which tasks are finished, is damaged"):
        ledger.revoke([("features", NAMES[3])])
    assert store.read(key) == damaged
    assert store.names(layout.SEGMENTS) == [other, key]


def test_what_is_whole_of_a_damaged_segment_is_kept(store):
    compacted(store)
    key = segments(store)[0]
    data = bytearray(store.read(key))
    data[data.index(b"00000001", data.index(b"\n"))] ^= 1
    store.put(key, bytes(data))
    ledger = Ledger(store)
    (found,) = ledger.damaged_segments().items()
    assert found[0] == key
    assert found[1][1] == {("features", NAMES[1])}
    ledger.mend_segment(key)
    assert not Ledger(store).damaged_segments()
    assert tasks(store) == ledger.committed("features") == set(NAMES) - {NAMES[1]}


def test_a_segment_of_which_nothing_is_left_is_taken_away(store):
    compacted(store)
    key = segments(store)[0]
    store.put(key, b"")
    ledger = Ledger(store)
    assert ledger.damaged_segments()[key][1] == frozenset()
    ledger.mend_segment(key)
    assert segments(store) == ["segments/000001-000002.jsonl"]
    assert tasks(store) == set(NAMES[3:])


def test_everything_holds_in_an_object_store_too():
    store = open_store("memory://ledger/run")
    ledger = compacted(store)
    ledger.revoke([("features", NAMES[1])])
    assert tasks(store) == set(NAMES) - {NAMES[1]}
    assert Ledger(store).committed("features") == set(NAMES) - {NAMES[1]}


def written(store, value=1.0, task=NAMES[0], index=0):
    """Write a chunk and commit it; return the arrays."""
    spec = ArraySpec("features/a/train", (14, 3), (2, 3), "float32", ("train", "feature"))
    chunks = ChunkStore(store, specs=[spec])
    record = chunks.write("features/a/train", (index, 0), np.full((2, 3), value, np.float32))
    data = receipt(task).model_copy(update={"chunks": (record,)}).encode()
    store.put(layout.receipt("features", task), data)
    return chunks


def read(chunks, ledger, task=NAMES[0], index=0):
    return read_committed(chunks, ledger, "features", task, "features/a/train", (index, 0))


def test_only_the_chunk_that_was_committed_is_read(store):
    ledger = Ledger(store)
    chunks = written(store)
    assert read(chunks, ledger).tolist() == [[1.0] * 3] * 2
    chunks.write("features/a/train", (0, 0), np.full((2, 3), 2.0, np.float32))
    for one in (ledger, Ledger(store)):
        with pytest.raises(CorruptChunkError, match=r"features/a/train, chunk \[0, 0\]: another chunk was committed"):
            read(chunks, one)


def test_a_chunk_without_a_receipt_is_not_read(store):
    chunks = written(store)
    with pytest.raises(ChunkNotReadyError, match="features task train/00000001 is not committed"):
        read(chunks, Ledger(store), NAMES[1], 1)


def test_a_chunk_that_its_receipt_does_not_name_is_not_read(store):
    chunks = written(store)
    chunks.write("features/a/train", (1, 0), np.ones((2, 3), np.float32))
    with pytest.raises(CorruptChunkError, match=r"its receipt names no chunk \[1, 0\] of features/a/train"):
        read(chunks, Ledger(store), NAMES[0], 1)


def test_a_damaged_receipt_keeps_its_chunks_from_being_read(store):
    chunks = written(store)
    store.put(layout.receipt("features", NAMES[0]), b"{")
    with pytest.raises(StorageError, match="cannot be read"):
        read(chunks, Ledger(store))


def test_a_reader_follows_a_task_that_was_committed_again(store):
    ledger = Ledger(store)
    read(written(store), ledger)
    assert read(written(store, 2.0), ledger)[0, 0] == 2.0


def test_a_late_receipt_gives_way_to_that_of_the_driver_whose_chunks_are_there(store):
    """A driver was stopped between its look for a successor and the receipt; another machine rounds differently."""
    chunks = written(store, 1.0)
    late = Ledger(store).receipt("features", NAMES[0]).model_copy(update={"epoch": 1})
    written(store, 1.5)
    new = Ledger(store).receipt("features", NAMES[0]).model_copy(update={"epoch": 2})
    store.put(layout.receipt("features", NAMES[0]), late.encode())
    assert Ledger(store).commit(new)
    assert read(chunks, Ledger(store))[0, 0] == 1.5
    assert not Ledger(store).commit(late), "it comes even later"
    assert not Ledger(store).commit(new.model_copy(update={"epoch": 3})), "equal bytes need no other receipt"
    assert Ledger(store).receipt("features", NAMES[0]).epoch == 2


def test_each_receipt_is_read_once(store, calls):
    ledger = Ledger(store)
    chunks = [written(store, index, NAMES[index], index) for index in range(3)]
    calls.clear()
    for _ in range(3):
        for index in range(3):
            assert read(chunks[0], ledger, NAMES[index], index)[0, 0] == index
    assert calls["get", ""] == 3
    assert calls["exists", ""] == calls["sizes", layout.RECEIPTS] == 0


def test_checksums_are_forgotten_before_they_fill_the_memory(store, calls, monkeypatch):
    monkeypatch.setattr(sums, "MAX_CHUNKS", 2)
    ledger = Ledger(store)
    chunks = [written(store, index, NAMES[index], index) for index in range(3)]
    calls.clear()
    for index in (0, 1, 2, 2, 1, 0):
        assert read(chunks[0], ledger, NAMES[index], index)[0, 0] == index
    assert calls["get", ""] == 4
