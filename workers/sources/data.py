"""The samples of a split: inputs by position, labels, ids, and digests of all of it."""

import hashlib
import traceback
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, final

import torch
from torch.utils.data import default_collate

from ntkpipe.configs.errors import ConfigError, RunMismatchError
from ntkpipe.configs.sources import ArrayData, SplitData
from ntkpipe.storage.grid import Shard, shards
from ntkpipe.workers.sources.arrays import load_arrays, native
from ntkpipe.workers.sources.imports import call
from ntkpipe.workers.sources.samples import Samples


@final
class SplitSource:
    """One split, ready to be read by position.

    Attributes:
        name: Of the split.
        ids: (N,) unique sample ids.
        labels: (N,) int64 classes, (N, T) float64 targets, or None.
        texts: (N,) what people are shown instead of the inputs, or None.

    Raises:
        ConfigError: The source gives no samples, or labels, ids or texts that do not fit them.
    """

    def __init__(self, name: str, config: SplitData) -> None:
        self.name = name
        loaded = load_arrays(config) if isinstance(config, ArrayData) else call(config.target, config.options)
        if isinstance(loaded, Samples):
            self._inputs: Any = _tensor(f"split {name!r}: inputs", loaded.inputs)
            ids, labels, texts = loaded.ids, loaded.labels, loaded.texts
        elif (
            hasattr(loaded, "__getitem__") and hasattr(loaded, "__len__") and not isinstance(loaded, dict | tuple | str)
        ):
            self._inputs, ids, labels, texts = loaded, None, None, None
        else:
            raise ConfigError(
                f"split {name!r}: expected ntkpipe.Samples(inputs, labels) or a map-style data set, found "
                f"{type(loaded).__name__}."
            )
        num = len(self._inputs)
        if num == 0:
            raise ConfigError(f"split {name!r} has no samples.")
        if labels is None and not isinstance(self._inputs, torch.Tensor):
            labels = self._dataset_labels()
        self.ids = _check_ids(f"split {name!r}", ids if ids is not None else range(num), num)
        self.labels = _check_labels(f"split {name!r}", labels, self.ids)
        self.texts = _check_texts(f"split {name!r}", texts, num)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_bytes(self) -> int:
        """Of inputs that are in memory; 0 for a data set that reads them one by one."""
        return self._inputs.nbytes if isinstance(self._inputs, torch.Tensor) else 0

    @property
    def label_kind(self) -> Literal["none", "classes", "values"]:
        """What the labels are."""
        if self.labels is None:
            return "none"
        return "classes" if self.labels.dim() == 1 else "values"

    def raw(self, positions: Sequence[int]) -> torch.Tensor:
        """Return the inputs at some positions as they are stored, (B, ...).

        Raises:
            ConfigError: An input cannot be read, is no tensor, or holds NaN or infinity; the sample is named.
        """
        if isinstance(self._inputs, torch.Tensor):
            inputs = self._inputs[torch.as_tensor(positions)]
        else:
            items = [_input_of(self._item(position)) for position in positions]
            try:
                inputs = default_collate(items)
            except (RuntimeError, TypeError) as error:
                raise ConfigError(
                    f"the samples of split {self.name!r} cannot be put into one batch: {error}"
                ) from error
        if not isinstance(inputs, torch.Tensor):
            raise ConfigError(
                f"the samples of split {self.name!r} are collated to {type(inputs).__name__}; expected one tensor each. "
                "Wrap data set and model so that a sample is a tensor."
            )
        if inputs.is_floating_point():
            finite = torch.isfinite(inputs).reshape(len(inputs), -1).all(1)
            if not finite.all():
                position = positions[int((~finite).nonzero()[0, 0])]
                raise ConfigError(
                    f"sample {self.ids[position]!r} (position {position} of split {self.name!r}) has a NaN or infinite "
                    "input. Remove it or repair the data."
                )
        return inputs

    def shard(self, shard: Shard, expected: str) -> torch.Tensor:
        """Return the inputs of a shard, which must be those that the run was planned for.

        Raises:
            RunMismatchError: They are not: the source gives other samples every time it is asked.
        """
        inputs = self.raw(range(shard.start, shard.stop))
        if input_digest(inputs) != expected:
            raise RunMismatchError(
                f"split {self.name!r}, samples {shard.start} to {shard.stop}: the inputs differ from those the run was "
                "planned for. The source must give the same samples in every process: fix its seed, and leave random "
                "augmentation out."
            )
        return inputs

    def digests(self, shard_rows: int) -> tuple[str, ...]:
        """Return one digest of inputs per shard; reads everything once."""
        return tuple(
            input_digest(self.raw(range(shard.start, shard.stop))) for shard in shards(self.name, len(self), shard_rows)
        )

    def fingerprint(self, digests: Sequence[str], num: int | None = None) -> str:
        """Return the SHA-256 of ids, labels and the digests of all inputs; of the first ``num`` samples if that is given."""
        state = hashlib.sha256()
        for text in (*self.ids[:num], *digests):
            state.update(text.encode() + b"\0")
        if self.labels is not None:
            state.update(self.labels[:num].numpy().tobytes())
        return state.hexdigest()

    def _item(self, position: int) -> Any:
        try:
            return self._inputs[position]
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raise ConfigError(
                f"split {self.name!r}: sample {position} cannot be read: {type(error).__name__}: {error} "
                f"({frame.filename}, line {frame.lineno})"
            ) from error

    def _dataset_labels(self) -> torch.Tensor | None:
        """Return the second parts of a data set's items, None if its items have one part only."""
        first = self._item(0)
        if not isinstance(first, tuple | list) or len(first) < 2 or first[1] is None:
            return None
        labels = [self._item(position)[1] for position in range(len(self._inputs))]
        return torch.stack([_tensor(f"split {self.name!r}: label", label) for label in labels])


def input_digest(inputs: torch.Tensor) -> str:
    """Return a SHA-256 of dtype, shape and bytes, shortened to 128 bits."""
    contents = inputs.contiguous()
    state = hashlib.sha256(f"{contents.dtype}|{tuple(contents.shape)}|".encode())
    state.update(contents.flatten().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()[:32]


def _input_of(item: Any) -> Any:
    return item[0] if isinstance(item, tuple | list) else item


def _tensor(what: str, values: Any) -> torch.Tensor:
    if isinstance(values, torch.Tensor):
        return values.detach().cpu()
    try:
        return torch.as_tensor(native(values))
    except (TypeError, ValueError, RuntimeError):
        raise ConfigError(f"{what} must be numbers, found {type(values).__name__} {str(values)[:40]!r}.") from None


def _check_ids(origin: str, ids: Any, num: int) -> tuple[str, ...]:
    if isinstance(ids, str):
        raise ConfigError(f"{origin}: ids must be a sequence of names, found one text.")
    names = tuple(str(name) for name in ids)
    if len(names) != num:
        raise ConfigError(f"{origin} has {num} samples but {len(names)} ids.")
    if not all(names):
        raise ConfigError(f"{origin}: the id at position {names.index('')} is empty.")
    repeated, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise ConfigError(f"{origin}: the id {repeated!r} is used {count} times; ids must be unique.")
    return names


def _check_texts(origin: str, texts: Any, num: int) -> tuple[str, ...] | None:
    if texts is None:
        return None
    found = (texts,) if isinstance(texts, str) else tuple(texts)
    if len(found) != num or not all(isinstance(text, str) for text in found):
        raise ConfigError(f"{origin} has {num} samples; expected as many texts, found {len(found)} values.")
    return found


def _check_labels(origin: str, labels: Any, ids: tuple[str, ...]) -> torch.Tensor | None:
    if labels is None:
        return None
    found = _tensor(f"{origin}: labels", labels)
    if found.dim() == 0 or len(found) != len(ids):
        num = 1 if found.dim() == 0 else len(found)
        raise ConfigError(f"{origin} has {len(ids)} samples but {num} labels.")
    if found.is_floating_point():
        values = found.to(torch.float64).reshape(len(ids), -1)
        bad = (~torch.isfinite(values).all(1)).nonzero()
        if len(bad):
            raise ConfigError(f"{origin}: the label of sample {ids[int(bad[0, 0])]!r} is NaN or infinite.")
        return values.contiguous()
    if found.dim() != 1:
        raise ConfigError(f"{origin}: integer labels must have shape (N,), found {tuple(found.shape)}.")
    classes = found.to(torch.int64)
    if int(classes.min()) < 0:
        raise ConfigError(f"{origin}: class {int(classes.min())} is negative; classes count from 0.")
    return classes
