"""Philox4x32-10, a counter-based random generator, in integer tensor arithmetic.

Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). A counter and a key give 128 random
bits; there is no state. PyTorch's own CUDA generators depend on the number of multiprocessors, so they cannot be used
where two machines must agree. Words of 32 bits are held in int64, whose products wrap exactly modulo 2^64.
"""

import hashlib

import torch

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF
ROUNDS = 10

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
        counter: Four int64 tensors of one shape, or broadcastable ones, with values below 2^32.
        key: Two words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _multiply(word: torch.Tensor, multiplier: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the high and low words of a product of two words.

    The product of two unsigned words needs 64 bits, int64 wraps but keeps all of them; only the arithmetic shift must
    be masked.
    """
    product = word * multiplier
    return (product >> 32) & _MASK, product & _MASK
