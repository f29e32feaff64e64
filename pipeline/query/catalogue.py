"""What there is in a run by name, so that whatever is asked for is known before a reader is asked."""

from collections.abc import Iterable, Sequence
from threading import Lock
from typing import final

from ntkpipe.configs.base import unknown_name
from ntkpipe.configs.errors import NotFoundError
from ntkpipe.configs.kernels.names import RANDOM_FEATURES
from ntkpipe.pipeline.query.names import MatrixName
from ntkpipe.pipeline.query.reader import AbstractRunReader
from ntkpipe.pipeline.query.selection import Ids
from ntkpipe.pipeline.query.transforms import checked_transforms, chosen_layers, is_mirrored
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
        pairs = self._geometry.pairs
        # A symmetric kernel is read as its transpose, too.
        splits = dict.fromkeys(
            [rows for rows, columns in pairs if columns == train]
            + [columns for rows, columns in pairs if rows == train]
        )
        for one in splits:
            if self.ids(one).find(sample) is not None:
                return one
        raise NotFoundError(f"no sample {sample!r} in the splits {', '.join(splits)}.")

    def check_outputs(self, member: str | None) -> None:
        """Check that there are outputs of a member, or of the only network.

        Raises:
            NotFoundError: There are none.
        """
        if not self._geometry.num_outputs:
            raise NotFoundError(f"{self._reader.url} was computed without a model, so there are no outputs.")
        if member is not None or self._geometry.members:
            self.check("member", member or "", self._geometry.members)

    def check_diagonal(self, reference: str, split: str) -> None:
        """Check that the diagonal of a kernel is stored for a split.

        Raises:
            NotFoundError: It is not.
        """
        shape, _ = self.kernel(reference, of_samples=True)
        self.check_split(split)
        if shape.derived is not None and (not shape.symmetric or shape.width > 1):
            raise NotFoundError(
                f"{self._reader.url}: the diagonal of kernel {reference!r} is not stored; read it from its matrix."
            )

    def matrix(
        self,
        reference: str,
        rows: str | None,
        columns: str | None,
        component: str | None,
        layers: Sequence[str],
        transforms: Sequence[str],
    ) -> MatrixName:
        """Return the matrix that is meant; arguments, and what is raised, as of :meth:`Run.kernel`."""
        shape, _ = self.kernel(reference)
        geometry, pair = self._geometry, self._pair(rows, columns)
        if pair not in geometry.pairs and not is_mirrored(geometry, shape, pair):
            stored = ", ".join(f"{one} x {other}" for one, other in geometry.pairs)
            raise NotFoundError(
                f"{self._reader.url} has no kernel between {pair[0]!r} and {pair[1]!r}. Stored: {stored}"
            )
        if component is not None:
            self.check("component", component, shape.groups)
        chosen = chosen_layers(shape, layers) if component is None else (component,)
        return MatrixName(reference, *pair, chosen, checked_transforms(shape, transforms))

    def errors(self, reference: str, rows: str | None, columns: str | None) -> MatrixName:
        """Return the matrix whose standard errors are meant; what is raised as of :meth:`Run.standard_errors`."""
        url, (shape, _) = self._reader.url, self.kernel(reference)
        if shape.derived is not None or shape.kind in RANDOM_FEATURES:
            raise NotFoundError(
                f"{url}: the error of kernel {reference!r} is not known. Ask for that of a projected kernel."
            )
        if shape.feature_dim is not None and self._reader.manifest.numerics_version < 3:
            raise NotFoundError(
                f"{url} was written by an earlier version, which does not record whether features come in two "
                "independent halves. Run it again to get standard errors."
            )
        pair = self._pair(rows, columns)
        for split in pair:
            self.check_split(split)
        return MatrixName(reference, *pair)

    def _pair(self, rows: str | None, columns: str | None) -> tuple[str, str]:
        return rows or self._geometry.train_split, columns or self._geometry.train_split

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
