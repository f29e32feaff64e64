"""Philox4x32-10, a counter-based random generator, in integer tensor arithmetic.

Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). A counter and a key give 128 random
bits; there is no state. PyTorch's own CUDA generators depend on the number of multiprocessors, so they cannot be used
where two machines must agree. Words of 32 bits are held in int64, and no operation overflows it, so that every device
computes the same bits.
"""

import hashlib

import torch

_WORD = 2**32
_MASK = _WORD - 1
# Multipliers above 2^31 are taken minus 2^32: a product with a word then stays within int64.
_SIGNED_MULTIPLIERS = (0xD2511F53 - _WORD, 0xCD9E8D57 - _WORD)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def stream_key(*parts: str | int) -> tuple[int, int]:
    """Return the two key words of a random stream named by ``parts``.

    Each part enters the hash with its type and length, so that different names never spell the same bytes.
    """
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = str(part).encode()
        state.update(f"{type(part).__name__}{len(data)}:".encode() + data)
    value = int.from_bytes(state.digest(), "little")
    return value & _MASK, value >> 32


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Return four random words for each counter.

    Args:
        counter: Four int64 tensors of one shape, or broadcastable ones, with values in [0, 2^32).
        key: Two words.

    Returns:
        Four int64 tensors of the broadcast shape, with values in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _SIGNED_MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _SIGNED_MULTIPLIERS[1])
        c0 = (high1 ^ c1).bitwise_xor_(k0)
        c2 = (high0 ^ c3).bitwise_xor_(k1)
        c1, c3 = low1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _multiply(word: torch.Tensor, signed_multiplier: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return, as new tensors, the high and low words of ``word * (signed_multiplier + 2^32)``.

    The shift rounds down for negative products too, hence floor(word * m / 2^32) + word is exactly the high word.
    """
    product = word * signed_multiplier
    return (product >> 32).add_(word), product.bitwise_and_(_MASK)
