"""What random maps must be: their documented bits, spelled in Python's own integers, and the exact laws of their estimates.

A map is a function of (stacked row d, column i, feature). A law is the variance of <z, z'> over seeds for the gradients of
two samples, given for a parameter as a pair of stacked D x I matrices.
"""

import hashlib
import math
from functools import lru_cache

import torch

# The documented layout of bits.


@lru_cache(maxsize=2**16)
def scalar_words(parts, counter):
    encoded = b"".join(f"{type(part).__name__}{len(str(part).encode())}:{part}".encode() for part in parts)
    digest = hashlib.blake2b(encoded, digest_size=8).digest()
    keys = [int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")]
    words = list(counter)
    for _ in range(10):
        first, second = 0xD2511F53 * words[0], 0xCD9E8D57 * words[2]
        words = [second >> 32 ^ words[1] ^ keys[0], second % 2**32, first >> 32 ^ words[3] ^ keys[1], first % 2**32]
        keys = [(keys[0] + 0x9E3779B9) % 2**32, (keys[1] + 0xBB67AE85) % 2**32]
    return words


def scalar_sign(parts, column, feature):
    counter = (column % 2**32, column // 2**32, feature // 128, 0)
    return 1.0 if scalar_words(parts, counter)[feature % 128 // 32] >> feature % 32 & 1 else -1.0


def scalar_normal(parts, column, feature):
    words = scalar_words(parts, (column % 2**32, column // 2**32, feature // 4, 0))
    one, other = words[feature % 4 // 2 * 2 :][:2]
    radius, angle = math.sqrt(-2 * math.log((one + 0.5) / 2**32)), 2 * math.pi * other / 2**32
    return radius * (math.sin(angle) if feature % 2 else math.cos(angle))


def scalar_sparse_column(parts, column, dim, nonzeros):
    entries, rows = [0.0] * dim, dim // nonzeros
    for block in range(nonzeros):
        words = scalar_words(parts, (column % 2**32, column // 2**32, block // 2, 0))[block % 2 * 2 :]
        entries[block * rows + (words[0] * rows >> 32)] = 1.0 if words[1] & 1 else -1.0
    return entries


def scalar_srht_half(parts, vector, num, width):
    """The (num, width) half of a map of one output vector."""
    padded = 1 << (num - 1).bit_length()
    whole = width // padded * padded
    rows, counter = list(range(whole)), 0
    while len(rows) < width:
        for word in scalar_words((*parts, "rows"), (counter, vector, 0, 0)):
            if whole + word % padded not in rows and len(rows) < width:
                rows.append(whole + word % padded)
        counter += 1
    first = vector * 2**32
    return [
        [
            scalar_sign((*parts, "features"), first, feature)
            * scalar_sign((*parts, "coordinates"), first + row // padded, coordinate)
            * (-1.0) ** (row % padded & coordinate).bit_count()
            for feature, row in enumerate(rows)
        ]
        for coordinate in range(num)
    ]


def scalar_tensor_sketch_half(parts, stacked, inputs, width):
    """The (stacked * inputs, width) half of a map."""
    found = [[0.0] * width for _ in range(stacked * inputs)]
    for d in range(stacked):
        for i in range(inputs):
            group = (i // width, d // width, 0)
            h, g = (
                [scalar_words((*parts, role), (place, *group)) for place in range(width)]
                for role in ("inputs", "stacked")
            )
            first = i % width if stays_in_place(i, inputs, width) else scalar_order(h)[i % width]
            second = d % width if inputs == 1 else scalar_order(g)[d % width]
            equal = h[i % width][1] & 1 == g[d % width][1] & 1
            found[d * inputs + i][(first + second) % width] = 1.0 if equal else -1.0
    return found


def scalar_order(words):
    """The places in the order of their first words."""
    return sorted(range(len(words)), key=lambda place: words[place][0])


def stays_in_place(i, inputs, width):
    """Whether a tensor sketch leaves an input where it is: in groups of up to half its width."""
    return inputs > 1 and 2 * min(width, inputs - i // width * width) <= width


def scalar_map(kind, dim, seed, name, sizes):
    """The (V R Q, dim) map of a parameter, scaled."""
    vectors, rows, inputs = sizes
    stacked, columns, half = vectors * rows, range(math.prod(sizes)), dim // 2
    match kind["kind"]:
        case "rademacher":
            found = [[scalar_sign(("rademacher", 2, seed, name), p, k) for k in range(dim)] for p in columns]
            scale = dim
        case "gaussian":
            found = [[scalar_normal(("gaussian", 1, seed, name), p, k) for k in range(dim)] for p in columns]
            scale = dim
        case "sjlt":
            scale = 2 * kind["nonzeros"]
            found = [scalar_sparse_column(("sjlt", 2, seed, name), p, dim, scale) for p in columns]
        case "srht":
            halves = [
                [entries for v in range(vectors) for entries in scalar_srht_half(key, v, rows * inputs, half)]
                for key in (("srht", 1, seed, h, name) for h in range(2))
            ]
            found, scale = [one + other for one, other in zip(*halves, strict=True)], dim
        case "tensorsketch":
            keys = [("tensorsketch", 1, seed, h, half, name) for h in range(2)]
            halves = [scalar_tensor_sketch_half(key, stacked, inputs, half) for key in keys]
            found, scale = [one + other for one, other in zip(*halves, strict=True)], 2
        case "khatri-rao":
            keys = [("khatri-rao", 1, seed, name, side) for side in ("stacked", "inputs")]
            scale = dim
            found = [
                [scalar_sign(keys[0], p // inputs, k) * scalar_sign(keys[1], p % inputs, k) for k in range(dim)]
                for p in columns
            ]
        case "kronecker":
            num_inputs, num_stacked = kronecker_shape(dim, inputs)
            used = num_inputs * num_stacked
            found, scale = [[0.0] * dim for _ in columns], 2 * used
            for p in columns:
                for k in range(2 * used):
                    keys = [("kronecker", 1, seed, k // used, name, side) for side in ("stacked", "inputs")]
                    q, r = divmod(k % used, num_inputs)
                    entry = scalar_sign(keys[0], p // inputs, q) * scalar_sign(keys[1], p % inputs, r)
                    found[p][k // used * half + k % used] = entry
    return torch.tensor(found, dtype=torch.float64) / math.sqrt(scale)


def kronecker_shape(dim, inputs):
    """P and Q of each half."""
    num_inputs = math.isqrt(dim // 2)
    num_stacked = dim // 2 // num_inputs
    return (1, num_inputs * num_stacked) if inputs == 1 else (num_inputs, num_stacked)


# Laws.


def signs_law(pair_2DI):
    """K times the variance of dense signs: the sum over pairs of coordinates of (a_x b_y + a_y b_x)^2."""
    return normal_law(pair_2DI) - 2 * float((pair_2DI[0] ** 2 * pair_2DI[1] ** 2).sum())


def normal_law(pair_2DI):
    """K times the variance of dense normal numbers."""
    a, b = pair_2DI.flatten(1)
    return float((a @ a) * (b @ b) + (a @ b) ** 2)


def khatri_rao_law(pair_2DI, dim):
    return _sided_square(pair_2DI, _mixed_signs, dim) / dim - _inner(pair_2DI) ** 2 / dim


def kronecker_law(pair_2DI, dim):
    num_inputs, num_stacked = kronecker_shape(dim, pair_2DI.shape[2])
    if pair_2DI.shape[2] == 1:
        return signs_law(pair_2DI) / (2 * num_stacked)
    square = _sided_square(pair_2DI, _mixed_products, num_stacked, num_inputs)
    return (square - _inner(pair_2DI) ** 2) / 2


def srht_law(pair_2DI, dim):
    padded = 1 << (pair_2DI[0].numel() - 1).bit_length()
    width, left = dim // 2, dim // 2 % padded
    return 0.0 if left == 0 else signs_law(pair_2DI) / 2 / width * (left / width) * (padded - left) / (padded - 1)


def tensor_sketch_law(pair_2DI, dim):
    """Pairs of coordinates times their chance to meet; two pairs that meet together and with one sign add coherently."""
    width = dim // 2
    num_stacked, num_inputs = pair_2DI.shape[1:]
    d = torch.arange(num_stacked).repeat_interleave(num_inputs)
    i = torch.arange(num_inputs).repeat(num_stacked)
    together = (d[:, None] // width == d // width) & (i[:, None] // width == i // width)
    differ = (d[:, None] != d) & (i[:, None] != i)
    chance = torch.where(together, differ / max(1, width - 1), 1 / width).triu(1)
    a, b = pair_2DI.flatten(1)
    products = torch.outer(a, b) + torch.outer(b, a)
    partner = (d[:, None] * num_inputs + i, d * num_inputs + i[:, None])  # (d, i') and (d', i) for (d, i) and (d', i')
    moved = torch.tensor([not stays_in_place(int(one), num_inputs, width) for one in i])
    both = together & differ & moved & (width % 2 == 0)  # meet in pairs where both injections are W / 2 apart
    coherent = torch.where(both, products * products[partner], 0.0).triu(1) / max(1, width - 1) ** 2
    return float((chance * products**2 + coherent).sum()) / 2


def law(kind, dim, pairs):
    """The variance of an estimate over seeds, for pairs of gradients of several parameters, (2, V, R, Q) each."""
    if kind["kind"] == "srht":
        pairs = [pair for vectors in pairs for pair in vectors.unbind(1)]
    else:
        pairs = [pair.flatten(1, 2) for pair in pairs]
    between = sum(signs_law(_joined(one, other)) - signs_law(one) - signs_law(other) for one, other in _couples(pairs))
    num_inputs, num_stacked = kronecker_shape(dim, 2)
    effective = 2 * num_inputs * num_stacked if kind["kind"] == "kronecker" else dim
    within = {
        "rademacher": lambda pair: signs_law(pair) / dim,
        "sjlt": lambda pair: signs_law(pair) / dim,
        "gaussian": lambda pair: normal_law(pair) / dim,
        "srht": lambda pair: srht_law(pair, dim),
        "khatri-rao": lambda pair: khatri_rao_law(pair, dim),
        "kronecker": lambda pair: kronecker_law(pair, dim),
        "tensorsketch": lambda pair: tensor_sketch_law(pair, dim),
    }[kind["kind"]]
    return between / effective + sum(within(pair) for pair in pairs)


def _couples(pairs):
    return [(one, other) for index, one in enumerate(pairs) for other in pairs[:index]]


def _joined(one, other):
    return torch.cat([one.flatten(1), other.flatten(1)], dim=1).unsqueeze(2)


def _inner(pair_2DI):
    return float((pair_2DI[0] * pair_2DI[1]).sum())


def _pairings(num):
    eye = torch.eye(num, dtype=torch.float64)
    return [torch.einsum(f"{pattern}->abcd", eye, eye) for pattern in ("ab,cd", "ac,bd", "ad,bc")]


def _mixed_signs(num, _):
    """E[s_a s_b s_c s_d] of random signs."""
    places = torch.arange(num)
    found = sum(_pairings(num))
    found[places, places, places, places] -= 2
    return found


def _mixed_products(num, features):
    """The mean of E[s_ka s_kb s_lc s_ld] over pairs of features k, l."""
    return _mixed_signs(num, features) / features + (1 - 1 / features) * _pairings(num)[0]


def _sided_square(pair_2DI, mixed, num_stacked, num_inputs=None):
    """Contract two copies of the pair with the fourth moments of both sides."""
    a, b = pair_2DI
    stacked = mixed(a.shape[0], num_stacked)
    inputs = mixed(a.shape[1], num_inputs or num_stacked)
    left = torch.einsum("ai,bj,abcd->ijcd", a, b, stacked)
    return float(torch.einsum("ijcd,ck,dl,ijkl->", left, a, b, inputs))
