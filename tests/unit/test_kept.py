"""What a worker keeps between tasks."""

import pytest
import torch

from ntkpipe.workers.kept import KeptTensors


class Shelf:
    """Makes tensors of so many bytes, and counts how often."""

    def __init__(self, max_bytes):
        self.kept = KeptTensors(max_bytes)
        self.made = []

    def get(self, key, num_bytes=10):
        def make():
            self.made.append(key)
            return torch.full((num_bytes,), len(self.made), dtype=torch.uint8)

        return self.kept.get(key, make)


def test_what_is_kept_is_not_made_again():
    shelf = Shelf(20)
    first = shelf.get("a")
    assert shelf.get("a") is first
    assert shelf.made == ["a"]


def test_what_was_not_used_for_the_longest_time_goes_first():
    shelf = Shelf(20)
    for key in ("a", "b", "a", "c", "a", "b"):
        shelf.get(key)
    assert shelf.made == ["a", "b", "c", "b"]


def test_no_more_than_so_many_bytes_are_kept():
    shelf = Shelf(25)
    for number in range(20):
        shelf.get(number, 1 + 3 * number % 11)
        assert shelf.kept.num_bytes <= 25
    assert shelf.kept.num_bytes > 0


def test_what_is_too_large_is_given_and_drives_nothing_out():
    shelf = Shelf(20)
    shelf.get("a")
    assert len(shelf.get("large", 21)) == 21
    shelf.get("a")
    shelf.get("large", 21)
    assert shelf.made == ["a", "large", "large"]


def test_nothing_is_kept_where_there_is_no_room_for_anything():
    shelf = Shelf(0)
    shelf.get("a")
    shelf.get("a")
    assert shelf.made == ["a", "a"]
    assert shelf.kept.num_bytes == 0


def test_what_could_not_be_made_leaves_nothing_behind():
    kept = KeptTensors(20)

    def fail():
        raise MemoryError

    with pytest.raises(MemoryError):
        kept.get("a", fail)
    assert kept.get("a", lambda: torch.ones(3)).tolist() == [1.0, 1.0, 1.0]


def test_a_lower_limit_lets_the_oldest_go_at_once():
    shelf = Shelf(30)
    for key in "abc":
        shelf.get(key)
    shelf.kept.limit(20)
    assert shelf.kept.num_bytes == 20
    shelf.get("c")
    shelf.get("b")
    assert shelf.made == ["a", "b", "c"]
    shelf.kept.limit(30)
    shelf.get("a")
    assert shelf.kept.num_bytes == 30


def test_after_clearing_there_is_room_again():
    shelf = Shelf(20)
    shelf.get("a")
    shelf.get("b")
    shelf.kept.clear()
    assert shelf.kept.num_bytes == 0
    shelf.get("a")
    shelf.get("a")
    assert shelf.made == ["a", "b", "a"]
