"""A tensor sketch with injective hashes: as accurate as dense signs, at the price of Fourier transforms.

The gradient of a weight matrix is a sum of outer products of what the layer saw and the gradients at its output. Its
coordinate (d, i), d counting (output vector, row) and i columns, goes with a sign to the bin (g(d) + h(i)) mod W. The
sketch of an outer product is then the circular convolution of the sketches of its two sides, two Fourier transforms of
length W for any number of outputs (Pham, Pagh 2013), and transforms of all positions and parameters are added up before
one inverse transform.

A textbook tensor sketch hashes each side at random. Two coordinates of one side that meet in a bin then do so together
with every coordinate of the other side, which adds up coherently: for gradients of rank one its variance is several
times that of dense signs. Here no two coordinates of a side ever meet: both sides are cut into groups of at most W, g and
h are injections, and every pair of groups has injections and signs of its own. Two coordinates that differ on both sides
meet with chance 1 / (W - 1), two of different groups with chance 1 / W, others never, so that

    Var <Sa, Sb> <= (|a|^2 |b|^2 + <a, b>^2 - 2 sum_p a_p^2 b_p^2) / (W - 1),

the law of dense signs, whatever the rank. One random injection is enough for that, but for two coordinates of the other
side that are W / 2 apart, which would meet in pairs: h leaves coordinates where they are only in groups of up to W / 2.
(Where both are random such pairs are left with chance 1 / W^2.) A vector has one column: its groups are turned by h, and
g leaves them as they are.
"""

from collections.abc import Mapping
from typing import final

import torch
from torch.nn import functional

from ntkpipe.workers.jacobians.factors.base import AbstractFactor, slice_width
from ntkpipe.workers.jacobians.factors.dense import DenseFactor
from ntkpipe.workers.jacobians.factors.outer import OuterFactor
from ntkpipe.workers.jacobians.factors.rows import RowFactor
from ntkpipe.workers.jacobians.rates import rates_of
from ntkpipe.workers.philox import philox, stream_key
from ntkpipe.workers.projections.base import AbstractProjection
from ntkpipe.workers.projections.sides import Sides

VERSION = 1

BLOCK_NUMBERS = 2**18
"""Positions are transformed in blocks of about this many numbers (1 MiB), which stay in the processor's cache."""

CACHE_BYTES = 256 * 2**20
"""Of bins and signs, of sides and of materialised coordinates, which are the same for every batch."""


@final
class TensorSketchProjection(AbstractProjection):
    """Bins of sums of signed coordinates; see the module for the map and its law.

    One map, three ways to apply it, with equal results up to rounding: through Fourier transforms of a layer's factors,
    through materialised gradients, and, for embeddings, through the rows that were looked up. The first two are chosen
    by predicted time.
    """

    def __init__(self, *, dim: int, seed: int) -> None:
        self.dim = dim
        self._seed = seed
        self._width = dim // 2
        self._tables: dict[tuple[object, ...], tuple[torch.Tensor, torch.Tensor]] = {}
        self._cached_bytes = 0

    def project(self, factors: Mapping[str, AbstractFactor]) -> torch.Tensor:
        """Add up the sketches of all parameters."""
        first = next(iter(factors.values()))
        bins_HBW = first.like.new_zeros(2, first.num_samples, self._width)
        spectra_HBF: torch.Tensor | None = None
        for name, factor in factors.items():
            for part in factor.parts():
                shape = Sides.of(name, part)
                if isinstance(part, RowFactor):
                    self._add_rows(bins_HBW, shape, part)
                elif isinstance(part, OuterFactor) and self._by_transforms(part):
                    if spectra_HBF is None:
                        spectra_HBF = _zero_spectra(bins_HBW)
                    self._add_transforms(spectra_HBF, shape, part)
                elif isinstance(part, DenseFactor) and part.num_columns == 1:
                    self._add_vector(bins_HBW, shape, part)
                else:
                    self._add_entries(bins_HBW, shape, part)
        if spectra_HBF is not None:
            bins_HBW += torch.fft.irfft(spectra_HBF, n=self._width)
        return bins_HBW.transpose(0, 1).flatten(1).mul_(0.5**0.5)

    def fingerprint(self) -> str:
        """Name the operator, its version and its settings."""
        return f"tensorsketch-v{VERSION};dim={self.dim};seed={self._seed}"

    def ways(self, factor: AbstractFactor) -> dict[str, float]:
        """Compare Fourier transforms with materialised gradients, which give exact norms on the way, for matrices."""
        if isinstance(factor, OuterFactor):
            transforms, gradients = self.transform_seconds(factor)
            return {"transforms": transforms + min(factor.norm_seconds()), "gradients": gradients}
        held = sum(tensor.numel() for tensor in factor.tensors()[1])
        rates = rates_of(factor.like.device)
        return (
            {"rows": 16 * rates.scatter(held)}
            if isinstance(factor, RowFactor)
            else {"gradients": 2 * rates.scatter(held)}
        )

    def transform_seconds(self, factor: OuterFactor) -> tuple[float, float]:
        """Return the predicted seconds of a batch through Fourier transforms and through materialised gradients."""
        rates, width = rates_of(factor.like.device), self._width
        shape = Sides.of("", factor)
        num_p, num_q = len(_input_groups(shape, width)), len(_stacked_groups(shape, width))
        pairs = num_p * num_q
        positions = float(factor.num_samples * factor.num_positions)
        sides = shape.stacked * num_p + (0 if self._stays(shape, 0) else shape.inputs * num_q)
        transforms = rates.transforms(2 * positions * pairs, width) + rates.scatter(positions * sides)
        passes = rates.passes(3 * positions * pairs * width)
        entries = float(factor.num_samples * factor.num_vectors * factor.numel)
        build = rates.matmul(2 * entries * factor.num_positions) + rates.passes(
            entries + positions * (factor.num_in + factor.num_vectors * factor.num_out)
        )
        calls = 12 * max(1.0, positions * width / BLOCK_NUMBERS) * pairs * rates.launch_seconds
        add = rates.scatter(entries) + rates.passes(entries)
        return 2 * (transforms + passes + calls), build + 2 * add

    def _by_transforms(self, factor: OuterFactor) -> bool:
        ways = self.ways(factor)
        return ways["transforms"] <= ways["gradients"]

    # The map: bins and signs of pairs of groups.

    def _inputs_table(
        self, half: int, shape: Sides, p: int, q: int, like: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the bins h of group p of the inputs, and their signs, for group q of the deltas."""
        key = ("inputs", half, shape.name, p, q, shape.inputs, like.dtype, like.device)
        found = self._tables.get(key)
        if found is None:
            places = torch.arange(self._width, device=like.device)
            words = self._words(half, shape, "inputs", p, q, places)
            num = min(self._width, shape.inputs - p * self._width)
            bins = places if self._stays(shape, p) else words[0].argsort(stable=True)
            found = self._kept(key, (bins[:num].clone(), _signs(words[1][:num], like.dtype)))
        return found

    def _stacked_table(
        self, half: int, shape: Sides, p: int, q: int, like: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return all W bins g of group q of the deltas, and their signs, for group p of the inputs."""
        key = ("stacked", half, shape.name, p, q, shape.inputs == 1, like.dtype, like.device)
        found = self._tables.get(key)
        if found is None:
            places = torch.arange(self._width, device=like.device)
            words = self._words(half, shape, "stacked", p, q, places)
            bins = places if shape.inputs == 1 else words[0].argsort(stable=True)
            found = self._kept(key, (bins, _signs(words[1], like.dtype)))
        return found

    def _kept(
        self, key: tuple[object, ...], tables: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep tables for the next batch as far as the budget goes.

        Batches ask for them in one fixed cycle; dropping the oldest would drop each just before it is asked for again.
        """
        num_bytes = sum(table.nbytes for table in tables)
        if self._cached_bytes + num_bytes <= CACHE_BYTES:
            self._cached_bytes += num_bytes
            self._tables[key] = tables
        return tables

    def _stays(self, shape: Sides, p: int) -> bool:
        """Return whether h leaves the inputs of a group where they are."""
        return shape.inputs > 1 and 2 * min(self._width, shape.inputs - p * self._width) <= self._width

    def _words(
        self, half: int, shape: Sides, role: str, p: int, q: int, coordinates: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        key = stream_key("tensorsketch", VERSION, self._seed, half, self._width, shape.name, role)
        group, other = torch.full_like(coordinates, p), torch.full_like(coordinates, q)
        words = philox((coordinates, group, other, torch.zeros_like(coordinates)), key)
        return words[0], words[1]

    # Ways to apply it.

    def _add_transforms(self, spectra_HBF: torch.Tensor, shape: Sides, factor: OuterFactor) -> None:
        """Add products of both sides' transforms, in blocks of positions that fit the cache."""
        width, positions = self._width, factor.num_positions
        step = max(1, BLOCK_NUMBERS // (width * positions))
        rows = max(1, BLOCK_NUMBERS // width)
        for start in range(0, factor.num_samples, step):
            stop = min(start + step, factor.num_samples)
            inputs_NI = factor.inputs(start, stop).flatten(0, 1)
            deltas_ND = factor.stacked_deltas(start, stop).flatten(0, 1)
            blocks = [slice(None)] if step > 1 else [slice(at, at + rows) for at in range(0, positions, rows)]
            for block in blocks:
                for half, spectrum_BF in enumerate(spectra_HBF[:, start:stop]):
                    self._transform(spectrum_BF, half, shape, inputs_NI[block], deltas_ND[block])

    def _transform(
        self, spectrum_BF: torch.Tensor, half: int, shape: Sides, inputs_NI: torch.Tensor, deltas_ND: torch.Tensor
    ) -> None:
        """Add one half's products; N counts an equal number of positions of each of B samples."""
        width = self._width
        for p in _input_groups(shape, width):
            inputs = inputs_NI[:, p * width : (p + 1) * width]
            for q in _stacked_groups(shape, width):
                h, input_signs = self._inputs_table(half, shape, p, q, inputs_NI)
                g, signs = self._stacked_table(half, shape, p, q, inputs_NI)
                mine, there = _run_of(shape, q, width)
                placed_NW = inputs.new_zeros(len(inputs), width)
                placed_NW.index_add_(1, g[there], deltas_ND[:, mine] * signs[there])
                signed = inputs * input_signs
                if not self._stays(shape, p):
                    signed = inputs.new_zeros(len(inputs), width).index_add_(1, h, signed)
                one_NF, other_NF = torch.fft.rfft(placed_NW), torch.fft.rfft(signed, n=width)
                if len(one_NF) == len(spectrum_BF):
                    spectrum_BF.addcmul_(one_NF, other_NF)
                else:
                    spectrum_BF += (one_NF.mul_(other_NF)).unflatten(0, (len(spectrum_BF), -1)).sum(dim=1)

    def _add_vector(self, bins_HBW: torch.Tensor, shape: Sides, factor: DenseFactor) -> None:
        """Add a vector's groups, each turned by its one bin."""
        width, stacked_BD = self._width, factor.gradients_BVP.flatten(1)
        for q in _stacked_groups(shape, width):
            mine, there = _run_of(shape, q, width)
            for half, bins_BW in enumerate(bins_HBW):
                turn, sign = self._inputs_table(half, shape, 0, q, stacked_BD)
                signed = stacked_BD[:, mine] * (self._stacked_table(half, shape, 0, q, stacked_BD)[1][there] * sign)
                first = (int(turn[0]) + there.start) % width
                kept = min(signed.shape[1], width - first)
                bins_BW[:, first : first + kept] += signed[:, :kept]
                bins_BW[:, : signed.shape[1] - kept] += signed[:, kept:]

    def _add_entries(self, bins_HBW: torch.Tensor, shape: Sides, factor: AbstractFactor) -> None:
        """Add materialised gradients, so many samples and coordinates at a time that they stay in the cache."""
        step, norms = factor.num_samples, []
        if isinstance(factor, OuterFactor):
            step = slice_width(factor.num_positions * factor.num_in)
        for start in range(0, factor.num_samples, step):
            part = factor.samples(start, start + step)
            norms_B = factor.like.new_zeros(part.num_samples)
            for offset, gradients_BP in part.slices(slice_width(min(step, factor.num_samples))):
                norms_B += torch.linalg.vecdot(gradients_BP, gradients_BP)
                for half, bins_BW in enumerate(bins_HBW[:, start : start + step]):
                    bins_P, signs_P = self._entries(half, shape, factor, offset, gradients_BP)
                    bins_BW.index_add_(1, bins_P, gradients_BP * signs_P)
            norms.append(norms_B)
        if isinstance(factor, OuterFactor):
            factor.remember_norms(torch.cat(norms))

    def _entries(
        self, half: int, shape: Sides, factor: AbstractFactor, offset: int, like: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return bins and signs of a run of stacked coordinates, from the cache if they are there."""
        num = like.shape[1]
        key = ("entries", half, shape.name, factor.transposed, shape.first, offset, num, like.dtype, like.device)
        found = self._tables.get(key)
        if found is not None:
            return found
        coordinates = torch.arange(offset, offset + num, device=like.device)
        rows, columns = coordinates // factor.num_columns, coordinates % factor.num_columns
        if factor.transposed:
            vectors, rows = rows // factor.num_rows, rows % factor.num_rows
            stacked, inputs = vectors * factor.num_columns + columns, rows
        else:
            stacked, inputs = rows, columns
        return self._kept(key, self._bins_and_signs(half, shape, shape.first + stacked, inputs, like))

    def _bins_and_signs(
        self, half: int, shape: Sides, stacked: torch.Tensor, inputs: torch.Tensor, like: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the bins and signs of coordinates (d, i), tensors that broadcast to one shape."""
        width, num_p = self._width, len(_input_groups(shape, self._width))
        q, d, p, i = stacked // width, stacked % width, inputs // width, inputs % width
        first, last = int(q.min()), int(q.max())
        pairs = [(p, q) for q in range(first, last + 1) for p in range(num_p)]
        h_GW, input_signs_GW = _padded([self._inputs_table(half, shape, p, q, like) for p, q in pairs], width)
        g_GW, signs_GW = _padded([self._stacked_table(half, shape, p, q, like) for p, q in pairs], width)
        group = ((q - first) * num_p + p) * width
        at_inputs, at_stacked = group + i, group + d
        bins = (h_GW.take(at_inputs) + g_GW.take(at_stacked)) % width
        return bins, input_signs_GW.take(at_inputs) * signs_GW.take(at_stacked)

    def _add_rows(self, bins_HBW: torch.Tensor, shape: Sides, factor: RowFactor) -> None:
        """Add the deltas of rows that were looked up, without ever forming the others."""
        vectors_V11 = torch.arange(factor.num_vectors, device=factor.like.device)[:, None, None]
        columns_Q = torch.arange(factor.num_columns, device=factor.like.device)
        step = slice_width(factor.num_vectors * factor.num_positions * factor.num_columns)
        for start in range(0, factor.num_samples, step):
            part = slice(start, start + step)
            rows_U, places_BT = factor.ids_BT[part].unique(return_inverse=True)
            stacked_VU1 = shape.first + vectors_V11 * factor.num_rows + rows_U[:, None]
            for half, bins_BW in enumerate(bins_HBW[:, part]):
                bins_VUQ, signs_VUQ = self._bins_and_signs(half, shape, stacked_VU1, columns_Q, factor.like)
                bins_BVTQ = bins_VUQ[:, places_BT].transpose(0, 1)
                signed_BVTQ = factor.deltas_BVTQ[part] * signs_VUQ[:, places_BT].transpose(0, 1)
                bins_BW.scatter_add_(1, bins_BVTQ.flatten(1), signed_BVTQ.flatten(1))


def _zero_spectra(bins_HBW: torch.Tensor) -> torch.Tensor:
    """Return the transforms of zeros."""
    *shape, width = bins_HBW.shape
    return torch.zeros(*shape, width // 2 + 1, dtype=bins_HBW.dtype.to_complex(), device=bins_HBW.device)


def _padded(tables: list[tuple[torch.Tensor, torch.Tensor]], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return bins and signs of up to ``width`` coordinates as rows."""
    bins, signs = (
        torch.stack([functional.pad(table, (0, width - len(table))) for table in side])
        for side in zip(*tables, strict=True)
    )
    return bins, signs


def _input_groups(shape: Sides, width: int) -> range:
    return range(-(-shape.inputs // width))


def _stacked_groups(shape: Sides, width: int) -> range:
    """Return the groups of the deltas that a factor has a part in."""
    return range(shape.first // width, -(-(shape.first + shape.stacked) // width))


def _run_of(shape: Sides, group: int, width: int) -> tuple[slice, slice]:
    """Return which of a factor's deltas are in a group, and where in the group they are."""
    start, stop = max(shape.first, group * width), min(shape.first + shape.stacked, (group + 1) * width)
    return slice(start - shape.first, stop - shape.first), slice(start - group * width, stop - group * width)


def _signs(words: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return ((words & 1) * 2 - 1).to(dtype)
