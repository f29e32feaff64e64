"""What there is in a run by name, so that whatever is asked for is known before a reader is asked."""

from collections.abc import Iterable
from threading import Lock
from typing import final

from ntkpipe.configs.base import unknown_name
from ntkpipe.configs.errors import NotFoundError
from ntkpipe.pipeline.query.reader import AbstractRunReader
from ntkpipe.pipeline.query.selection import Ids
from ntkpipe.storage.records import KernelGeometry


@final
class Catalogue:
    """The names of a run. Holds the ids of every split that was asked for; thread safe."""

    def __init__(self, reader: AbstractRunReader) -> None:
        self._reader = reader
        self._geometry = reader.manifest.geometry
        self._ids: dict[str, Ids] = {}
        self._lock = Lock()

    def check(self, what: str, name: str, valid: Iterable[str]) -> None:
        """Check that a name is one of those that there are.

        Raises:
            NotFoundError: It is not.
        """
        names = list(valid)
        if name not in names:
            raise NotFoundError(f"{self._reader.url}: {unknown_name(what, name, names)}")

    def check_split(self, name: str) -> None:
        """Check the name of a split; raises like :meth:`check`."""
        self.check("split", name, self._geometry.splits)

    def check_solution(self, name: str) -> None:
        """Check the name of a solution; raises like :meth:`check`."""
        self.check("solution", name, self._geometry.solutions)

    def ids(self, split: str) -> Ids:
        """Return the ids of a split; they are read once."""
        with self._lock:
            found = self._ids.get(split)
        if found is None:
            self.check_split(split)
            found = Ids(split, self._reader.ids(split))
            with self._lock:
                found = self._ids.setdefault(split, found)
        return found

    def split_of(self, sample: str | int, split: str | None) -> str:
        """Return the split that is given, else the one with a kernel to the training split that has an id.

        Raises:
            NotFoundError: None of them has it.
        """
        train = self._geometry.train_split
        if split is not None or not isinstance(sample, str):
            return split or train
        splits = [rows for rows, columns in self._geometry.pairs if columns == train]
        for one in splits:
            if self.ids(one).find(sample) is not None:
                return one
        raise NotFoundError(f"no sample {sample!r} in the splits {', '.join(splits)}.")

    def kernel(self, reference: str, *, of_samples: bool = False) -> tuple[KernelGeometry, int | None]:
        """Return the kernel that a reference names, and the position of its member; see :meth:`Run.shape_of`."""
        geometry = self._geometry
        valid = list(geometry.references)
        if of_samples:
            valid = [name for name in valid if not geometry.matrix(name)[0].cross]
            valid += [
                f"{kernel.name}@{member}" for kernel in geometry.kernels if kernel.cross for member in kernel.members
            ]
        self.check("kernel", reference, valid)
        return geometry.matrix(reference)

    def num_features(self, reference: str) -> int:
        """Return how many numbers a kernel stores per sample; see :meth:`Run.num_features`."""
        shape, _ = self.kernel(reference, of_samples=True)
        if shape.feature_dim is None:
            raise NotFoundError(
                f"{self._reader.url}: kernel {reference!r} was computed exactly and has no stored features."
            )
        return shape.feature_dim * max(1, len(shape.groups))

    def num_targets(self, solution: str) -> int:
        """Return T of a solution."""
        self.check_solution(solution)
        return self._geometry.solution_targets[self._geometry.solutions.index(solution)]
