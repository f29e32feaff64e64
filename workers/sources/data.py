"""The samples of a split: inputs by position, labels, ids, and a fingerprint of all of it."""

import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, final

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.sources import ArrayData, SplitData
from ntkpipe.storage.assets import read_asset
from ntkpipe.workers.sources.imports import call
from ntkpipe.workers.sources.samples import Samples

FINGERPRINT_ROWS = 1024


@final
class SplitSource:
    """One split, ready to be read by position.

    Attributes:
        name: Of the split.
        ids: (N,) unique sample ids.
        labels: (N,) int64 classes, (N, T) float64 targets, or None.
    """

    def __init__(self, name: str, config: SplitData) -> None:
        loaded = _load_arrays(config) if isinstance(config, ArrayData) else call(config.target, config.options)
        origin = f"split {name!r}"
        if isinstance(loaded, Samples):
            self._inputs: torch.Tensor | Dataset[Any] = loaded.inputs
            ids, labels = loaded.ids, loaded.labels
        elif isinstance(loaded, Dataset) or (hasattr(loaded, "__getitem__") and hasattr(loaded, "__len__")):
            self._inputs, ids, labels = loaded, None, _dataset_labels(loaded)
        else:
            raise ConfigError(
                f"{origin}: expected a Samples object or a map-style data set, found {type(loaded).__name__}."
            )
        self.name = name
        num = len(self._inputs)  # type: ignore[arg-type]
        if num == 0:
            raise ConfigError(f"{origin} has no samples.")
        self.ids = _check_ids(origin, ids if ids is not None else tuple(str(position) for position in range(num)), num)
        self.labels = _check_labels(origin, labels, num, self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def label_kind(self) -> Literal["none", "classes", "values"]:
        """What the labels are."""
        if self.labels is None:
            return "none"
        return "classes" if self.labels.dim() == 1 else "values"

    def inputs(self, positions: Sequence[int], dtype: torch.dtype, device: str) -> torch.Tensor:
        """Return the inputs at some positions, (B, ...); real ones in the given precision.

        Raises:
            ConfigError: An input holds NaN or infinity; the sample is named.
        """
        if isinstance(self._inputs, torch.Tensor):
            inputs = self._inputs[torch.as_tensor(positions)]
        else:
            inputs = default_collate([_input_of(self._inputs[position]) for position in positions])
        if not isinstance(inputs, torch.Tensor):
            raise ConfigError(
                f"the samples of split {self.name!r} are collated to {type(inputs).__name__}; expected one tensor each. "
                "Wrap data set and model so that a sample is a tensor."
            )
        if not inputs.is_floating_point():
            return inputs.to(device)
        finite = torch.isfinite(inputs).flatten(1).all(1)
        if not finite.all():
            position = positions[int((~finite).nonzero()[0, 0])]
            raise ConfigError(
                f"sample {self.ids[position]!r} (position {position} of split {self.name!r}) has a NaN or infinite "
                "input. Remove it or repair the data."
            )
        return inputs.to(device=device, dtype=dtype)

    def fingerprint(self) -> str:
        """Return the SHA-256 of ids, labels and every input."""
        state = hashlib.sha256()
        for text in self.ids:
            state.update(text.encode() + b"\0")
        if self.labels is not None:
            state.update(self.labels.numpy().tobytes())
        for start in range(0, len(self), FINGERPRINT_ROWS):
            positions = range(start, min(start + FINGERPRINT_ROWS, len(self)))
            rows = self.inputs(positions, torch.float64, "cpu").contiguous()
            state.update(f"|{rows.dtype}|{tuple(rows.shape)}|".encode())
            state.update(rows.numpy().tobytes())
        return state.hexdigest()


def _load_arrays(config: ArrayData) -> Samples:
    labels, ids = None, None
    loaded = _load_numpy(config.inputs)
    if isinstance(loaded, dict):
        if "inputs" not in loaded:
            raise ConfigError(f"{config.inputs} has no array 'inputs'; found: {', '.join(sorted(loaded))}")
        inputs, labels, ids = loaded["inputs"], loaded.get("labels"), loaded.get("ids")
    else:
        inputs = loaded
    if config.labels is not None:
        labels = _load_numpy(config.labels)
        if isinstance(labels, dict):
            raise ConfigError(f"{config.labels}: expected one .npy array, found an .npz archive.")
    if config.ids is not None:
        ids = np.array(read_asset(config.ids).decode("utf-8").splitlines())
    return Samples(
        inputs=torch.from_numpy(inputs),
        labels=None if labels is None else torch.from_numpy(labels),
        ids=None if ids is None else tuple(str(text) for text in ids),
    )


def _load_numpy(url: str) -> Any:
    try:
        loaded = np.load(io.BytesIO(read_asset(url)), allow_pickle=False)
        return dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else loaded
    except (ValueError, EOFError, OSError) as error:
        raise ConfigError(f"{url} is not a readable .npy or .npz file of plain numbers: {error}") from None


def _input_of(item: Any) -> Any:
    return item[0] if isinstance(item, tuple | list) else item


def _dataset_labels(dataset: Any) -> torch.Tensor | None:
    if len(dataset) == 0 or not isinstance(dataset[0], tuple | list) or len(dataset[0]) < 2:
        return None
    return torch.stack([torch.as_tensor(dataset[position][1]) for position in range(len(dataset))])


def _check_ids(origin: str, ids: tuple[str, ...], num: int) -> tuple[str, ...]:
    if len(ids) != num:
        raise ConfigError(f"{origin} has {num} samples but {len(ids)} ids.")
    if not all(ids):
        raise ConfigError(f"{origin}: the id at position {ids.index('')} is empty.")
    repeated, count = Counter(ids).most_common(1)[0]
    if count > 1:
        raise ConfigError(f"{origin}: the id {repeated!r} is used {count} times; ids must be unique.")
    return ids


def _check_labels(origin: str, labels: torch.Tensor | None, num: int, ids: tuple[str, ...]) -> torch.Tensor | None:
    if labels is None:
        return None
    if len(labels) != num:
        raise ConfigError(f"{origin} has {num} samples but {len(labels)} labels.")
    if labels.is_floating_point():
        values = labels.to(torch.float64).reshape(num, -1)
        bad = (~torch.isfinite(values).all(1)).nonzero()
        if len(bad):
            raise ConfigError(f"{origin}: the label of sample {ids[int(bad[0, 0])]!r} is NaN or infinite.")
        return values.contiguous()
    if labels.dim() != 1:
        raise ConfigError(f"{origin}: integer labels must have shape (N,), found {tuple(labels.shape)}.")
    if int(labels.min()) < 0:
        raise ConfigError(f"{origin}: class {int(labels.min())} is negative; classes count from 0.")
    return labels.to(torch.int64)
