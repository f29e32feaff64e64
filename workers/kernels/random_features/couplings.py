"""Normal vectors that depend on each other within blocks, such that sums over a block are less random.

Vectors come in blocks of D, their dimension. Each vector alone is standard normal: a uniform direction and an
independent chi-distributed length. Sources: Yu et al. 2016 (orthogonal), Reid et al. 2023 (simplex).
"""

import math

import torch

from ntkpipe.configs.kernels.random_features import Coupling
from ntkpipe.workers.kernels.random_features.streams import Stream

BLOCK_ENTRIES = 2**22
"""Blocks are made for at most this many entries at a time (32 MiB), beside the result; more if a block is larger."""

MAX_SWEEPS = 100
"""Of the directions of a block; most blocks are balanced after a few."""

BALANCED = 1e-12
"""How much longer than the shortest possible one a sum of frequencies may be, relative to the longest of them."""


def coupled_normals(coupling: Coupling, seed: int, part: int, num: int, width: int) -> torch.Tensor:
    """Return ``num`` standard normal vectors, (num, width) in float64, coupled in blocks of ``width``.

    Args:
        coupling: How the directions of a block depend on each other.
        seed: Of the feature map.
        part: Parts with different numbers are independent.
        num: Of vectors. The first vectors of a longer list are those of a shorter one.
        width: D, the dimension of the vectors.
    """
    stream = Stream(seed, ("normals", part))
    if coupling == "iid":
        return stream.normals(num, width)
    # The first rows of an orthogonal block need not know the others; those of a simplex have to.
    side = min(num, width) if coupling == "orthogonal" else width
    num_blocks = -(-num // side)
    lengths_BR = Stream(seed, ("lengths", part)).chis(num_blocks * side, width).view(num_blocks, side)
    step = max(1, BLOCK_ENTRIES // (side * width))
    found = []
    for first in range(0, num_blocks, step):
        part_BR = lengths_BR[first : first + step]
        normals_MD = stream.normals(part_BR.numel(), width, first * side)
        found.append(_blocks(coupling, normals_MD.view(-1, side, width), part_BR))
    return torch.cat(found)[:num]


def haar_rows(normals_BRD: torch.Tensor) -> torch.Tensor:
    """Return R <= D orthonormal rows in each block, the first ones of a uniform orthogonal matrix, from normal numbers.

    The factor Q of a QR decomposition is uniform if the diagonal of R is made positive (Mezzadri 2007).
    """
    columns_BDR, upper_BRR = torch.linalg.qr(normals_BRD.mT)
    signs_BR = upper_BRR.diagonal(dim1=1, dim2=2).sign()
    rows_BRD: torch.Tensor = (columns_BDR * torch.where(signs_BR == 0, 1.0, signs_BR).unsqueeze(1)).mT
    return rows_BRD


def simplex_rows(rows_BDD: torch.Tensor) -> torch.Tensor:
    """Return unit rows whose sum is zero and whose cosines are -1 / (D - 1), from orthonormal ones.

    Differences to the mean of D orthonormal vectors are the corners of a regular simplex. One dimension has none, and
    its direction is kept.
    """
    width = rows_BDD.shape[1]
    if width == 1:
        return rows_BDD
    return (rows_BDD - rows_BDD.mean(dim=1, keepdim=True)) * math.sqrt(width / (width - 1))


def balanced_rows(vectors_BDD: torch.Tensor) -> torch.Tensor:
    """Turn the vectors of each block, keeping their lengths, until their sum is as short as possible.

    For small |x + x'| the error of positive features grows with the mean of |w_i + w_j|^2 over pairs of a block, hence,
    lengths given, with the length of the sum (Reid et al. 2023). Vectors are turned one after the other against the sum
    of the others, which never lengthens it. It ends at zero, or on a line if one vector is longer than all others
    together. Turning commutes with rotations, so that every direction stays uniform.
    """
    vectors_BDD = vectors_BDD.clone()
    lengths_BD = vectors_BDD.norm(dim=2)
    longest_B = lengths_BD.amax(dim=1)
    enough_B = (2 * longest_B - lengths_BD.sum(dim=1)).clamp_min(0) + BALANCED * longest_B
    for _ in range(MAX_SWEEPS):
        sums_BD = vectors_BDD.sum(dim=1)
        if bool((sums_BD.norm(dim=1) <= enough_B).all()):
            break
        for row in range(vectors_BDD.shape[1]):
            others_BD = sums_BD - vectors_BDD[:, row]
            norms_B1 = others_BD.norm(dim=1, keepdim=True)
            turned_BD = -others_BD / norms_B1.clamp_min(1e-300) * lengths_BD[:, row, None]
            turned_BD = torch.where(norms_B1 > BALANCED * lengths_BD[:, row, None], turned_BD, vectors_BDD[:, row])
            vectors_BDD[:, row] = turned_BD
            sums_BD = others_BD + turned_BD
    return vectors_BDD


def _blocks(coupling: Coupling, normals_BRD: torch.Tensor, lengths_BR: torch.Tensor) -> torch.Tensor:
    """Return the vectors of whole blocks, one below the other."""
    rows_BRD = haar_rows(normals_BRD)
    if coupling != "orthogonal":
        rows_BRD = simplex_rows(rows_BRD)
    vectors_BRD = rows_BRD * lengths_BR.unsqueeze(2)
    if coupling == "simplex_plus":
        vectors_BRD = balanced_rows(vectors_BRD)
    return vectors_BRD.flatten(0, 1)
