"""What a worker keeps in memory for the next task, up to a number of bytes."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import final

import torch


@final
class KeptTensors:
    """Tensors by what they are of; the one that was not used for the longest time goes first.

    Args:
        max_bytes: Of all of them; one that is larger than that is not kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._tensors: OrderedDict[Hashable, torch.Tensor] = OrderedDict()

    @property
    def num_bytes(self) -> int:
        """Of all that are kept."""
        return self._num_bytes

    def get(self, key: Hashable, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return a tensor, made anew if it is not kept. It is shared: whoever gets it must not write to it."""
        if key in self._tensors:
            self._tensors.move_to_end(key)
            return self._tensors[key]
        made = make()
        if made.nbytes <= self._max_bytes:
            self._make_room(self._max_bytes - made.nbytes)
            self._tensors[key] = made
            self._num_bytes += made.nbytes
        return made

    def limit(self, max_bytes: int) -> None:
        """Keep no more than so many bytes from now on."""
        self._max_bytes = max_bytes
        self._make_room(max_bytes)

    def clear(self) -> None:
        """Keep nothing of what there is."""
        self._make_room(0)

    def _make_room(self, max_bytes: int) -> None:
        """Let go of tensors until there are no more than so many bytes."""
        while self._tensors and self._num_bytes > max_bytes:
            self._num_bytes -= self._tensors.popitem(last=False)[1].nbytes
