import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkpipe.workers.philox import philox, stream_key

MASK = 2**32 - 1
WORD = st.integers(0, MASK)


def scalar_philox(counter, key):
    """The generator in Python's own integers, which cannot overflow."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        first, second = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (second >> 32) ^ c1 ^ k0, second & MASK, (first >> 32) ^ c3 ^ k1, first & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def words_of(text):
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, expected):
    words = philox(tuple(torch.tensor(word) for word in words_of(counter)), words_of(key))
    assert tuple(int(word) for word in words) == words_of(expected)
    assert scalar_philox(words_of(counter), words_of(key)) == words_of(expected)


@settings(deadline=None)
@given(st.lists(st.tuples(WORD, WORD, WORD, WORD), min_size=1, max_size=20), st.tuples(WORD, WORD))
def test_philox_on_tensors_equals_philox_on_python_integers(counters, key):
    words = philox(tuple(torch.tensor(column) for column in zip(*counters, strict=True)), key)
    found = list(zip(*(word.tolist() for word in words), strict=True))
    assert found == [scalar_philox(counter, key) for counter in counters]


def test_counters_broadcast_and_stay_as_they_were():
    rows, columns, zero = (
        torch.arange(5).unsqueeze(1),
        torch.arange(7).unsqueeze(0),
        torch.zeros(1, 1, dtype=torch.int64),
    )
    words = philox((rows, zero, columns, zero), (1, 2))
    assert [word.shape for word in words] == [(5, 7)] * 4
    for row, column in itertools.product(range(5), range(7)):
        assert tuple(int(word[row, column]) for word in words) == scalar_philox((row, 0, column, 0), (1, 2))
    assert torch.equal(rows, torch.arange(5).unsqueeze(1))
    assert torch.equal(columns, torch.arange(7).unsqueeze(0))
    assert not zero.any()


def test_every_input_bit_flips_about_half_of_the_output_bits():
    flips = [1 << bit for bit in range(128)]
    values = [0, *flips]
    words = philox(
        tuple(torch.tensor([value >> shift & MASK for value in values]) for shift in (0, 32, 64, 96)), (3, 4)
    )
    outputs = [
        sum(word << (32 * i) for i, word in enumerate(four))
        for four in zip(*(word.tolist() for word in words), strict=True)
    ]
    changed = [(output ^ outputs[0]).bit_count() for output in outputs[1:]]
    assert min(changed) > 64 - 30  # binomial(128, 1/2): 30 is more than five standard deviations
    assert max(changed) < 64 + 30


def test_stream_key_is_pinned_because_stored_features_depend_on_it():
    assert stream_key("rademacher", 1, 0, "layers.0.weight", 0) == (0xC35C5D03, 0x3CA71F70)


def test_stream_keys_of_thousands_of_parameters_outputs_and_seeds_are_distinct():
    names = [f"layers.{layer}.{part}.{kind}" for layer in range(100) for part in "qkvo" for kind in ("weight", "bias")]
    parts = list(itertools.product(("rademacher", "sjlt"), (1, 2), (0, 1, 100_000), names, range(5)))
    assert len(parts) == 48_000
    assert len({stream_key(*part) for part in parts}) == len(parts)


NAME = st.text(alphabet="a1:.str int", max_size=6)
PARTS = st.lists(st.one_of(NAME, st.integers(0, 200)), min_size=1, max_size=4)


@given(PARTS, PARTS)
def test_stream_keys_are_equal_only_for_equal_parts(first, second):
    assert (stream_key(*first) == stream_key(*second)) == (first == second)


@given(st.text(min_size=1, max_size=8), st.data())
def test_stream_keys_do_not_collide_by_concatenation(text, data):
    cut = data.draw(st.integers(0, len(text)))
    other = data.draw(st.integers(0, len(text)).filter(lambda number: number != cut))
    assert stream_key(text[:cut], text[cut:]) != stream_key(text[:other], text[other:])
    assert stream_key(text) != stream_key(text[:cut], text[cut:])


def test_numbers_and_their_digits_are_different_parts():
    assert stream_key("sjlt", 12) != stream_key("sjlt", "12")
    assert stream_key("sjlt", 1, 2) != stream_key("sjlt", 12)
