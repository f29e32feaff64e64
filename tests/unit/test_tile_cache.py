"""Decoded tiles in memory: never more than their bytes, each loaded once, none writable."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from processes import wait_for

from ntkpipe.configs.errors import CorruptChunkError
from ntkpipe.storage.tile_cache import REMEMBERED, TileCache, TileKey

TILE = 64
"""Bytes of a tile below."""


def key(number, crc32c="0"):
    return TileKey("run", "kernel/k/train-train", (number, 0), crc32c)


def tile(number):
    return np.full(8, float(number))


def fill(cache, *numbers):
    for number in numbers:
        cache.get(key(number), lambda number=number: tile(number))


def held(cache, *numbers):
    return [number for number in numbers if cache.find(key(number)) is not None]


def test_the_tiles_that_were_used_last_stay():
    cache = TileCache(3 * TILE)
    fill(cache, 0, 1, 2)
    cache.find(key(0))
    fill(cache, 3)
    assert held(cache, 0, 1, 2, 3) == [0, 2, 3]
    assert cache.statistics.evictions == 1


def test_it_never_holds_more_than_its_bytes():
    cache = TileCache(3 * TILE + TILE // 2)
    for number in range(20):
        fill(cache, number)
        assert cache.statistics.num_bytes == min(number + 1, 3) * TILE <= cache.statistics.max_bytes
    assert cache.statistics.num_tiles == 3


@pytest.mark.parametrize("max_bytes", [0, TILE - 1])
def test_a_tile_that_is_larger_than_all_of_it_is_handed_out_and_not_held(max_bytes):
    cache = TileCache(max_bytes)
    np.testing.assert_array_equal(cache.get(key(1), lambda: tile(1)), tile(1))
    assert cache.find(key(1)) is None
    assert cache.statistics.num_bytes == 0


def test_a_tile_of_another_checksum_is_another_tile():
    cache = TileCache(10 * TILE)
    cache.get(key(1, "old"), lambda: tile(1))
    assert cache.get(key(1, "new"), lambda: tile(2))[0] == 2
    assert cache.get(key(1, "old"), lambda: tile(3))[0] == 1


def test_nobody_can_change_a_tile():
    cache = TileCache(10 * TILE)
    for values in (cache.get(key(1), lambda: tile(1)), cache.get(key(1), lambda: tile(1)), cache.find(key(1))):
        for view in (values, values[2:]):
            with pytest.raises(ValueError, match="read-only"):
                view[0] = 5.0
            with pytest.raises(ValueError, match="WRITEABLE"):
                view.flags.writeable = True
    np.testing.assert_array_equal(cache.find(key(1)), tile(1))


def test_whoever_is_alone_with_a_cache_may_have_tiles_that_torch_takes():
    cache = TileCache(10 * TILE, read_only=False)
    assert cache.get(key(1), lambda: tile(1)).flags.writeable


def test_a_tile_is_loaded_once_however_many_threads_ask_at_once():
    cache, hold, loads = TileCache(10 * TILE), threading.Event(), []

    def load():
        loads.append(threading.get_ident())
        assert hold.wait(60)
        return tile(7)

    with ThreadPoolExecutor(8) as threads:
        found = [threads.submit(cache.get, key(7), load) for _ in range(8)]
        wait_for(lambda: len(loads) == 1)
        # Another tile is not waited for.
        assert cache.get(key(1), lambda: tile(1))[0] == 1
        hold.set()
        tiles = [future.result(60) for future in found]
    assert len(loads) == 1
    assert all(values is tiles[0] for values in tiles)
    assert (cache.statistics.misses, cache.statistics.hits) == (2, 7)


def test_all_who_wait_are_told_of_a_failure_and_the_next_one_tries_again():
    cache, hold, loads = TileCache(10 * TILE), threading.Event(), []

    def load():
        loads.append(1)
        assert hold.wait(60)
        raise CorruptChunkError("damaged")

    with ThreadPoolExecutor(4) as threads:
        found = [threads.submit(cache.get, key(7), load) for _ in range(4)]
        wait_for(lambda: loads)
        hold.set()
        errors = [future.exception(60) for future in found]
    assert {str(error) for error in errors} == {"damaged"}
    assert len({id(error) for error in errors}) == len(errors)
    assert cache.get(key(7), lambda: tile(7))[0] == 7


def test_who_waits_for_a_thread_that_was_interrupted_loads_the_tile():
    cache, hold, started = TileCache(10 * TILE), threading.Event(), threading.Event()

    def interrupted():
        started.set()
        assert hold.wait(60)
        raise KeyboardInterrupt

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(cache.get, key(7), interrupted)
        assert started.wait(60)
        second = threads.submit(cache.get, key(7), lambda: tile(7))
        hold.set()
        assert isinstance(first.exception(60), KeyboardInterrupt)
        assert second.result(60)[0] == 7


def test_a_tile_of_which_little_is_wanted_is_worth_its_place_the_second_time():
    cache = TileCache(10 * TILE)
    assert [cache.wanted_again(key(1)) for _ in range(2)] == [False, True]
    # Having been held, it has to be wanted twice again.
    assert not cache.wanted_again(key(1))
    assert cache.statistics.misses == 2


def test_only_so_many_tiles_are_remembered():
    cache = TileCache(10 * TILE)
    for number in range(REMEMBERED + 1):
        cache.wanted_again(key(number))
    assert not cache.wanted_again(key(0))
    assert cache.wanted_again(key(REMEMBERED))


def test_many_threads_share_a_small_cache():
    cache, rng = TileCache(5 * TILE), np.random.default_rng(0)
    wanted = rng.integers(0, 20, (8, 500))

    def ask(numbers):
        for number in numbers:
            values = cache.get(key(number), lambda number=number: tile(number))
            if not (values == number).all() or cache.statistics.num_bytes > 5 * TILE:
                return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(ask, wanted.tolist()))
    found = cache.statistics
    assert found.hits + found.misses == wanted.size
    assert (found.num_tiles, found.num_bytes) == (5, 5 * TILE)
