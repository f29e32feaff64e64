"""A run behind a service: what `ntkpipe serve` gives over HTTP, asked like a run on a disk."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, final
from urllib.parse import quote
from weakref import finalize

import numpy as np

from ntkpipe.configs.errors import NotFoundError, StorageError
from ntkpipe.pipeline.client.pieces import Pieces, TooLarge
from ntkpipe.pipeline.client.received import nearest_of, pairs_of
from ntkpipe.pipeline.query.names import Doubles, MatrixName, Missing, Nearest, Positions, Spectrum
from ntkpipe.pipeline.query.reader import AbstractRunReader
from ntkpipe.pipeline.status import RunStatus, StageStatus
from ntkpipe.storage import layout
from ntkpipe.storage.arrays import Array
from ntkpipe.storage.objects import read_npy
from ntkpipe.storage.records import Manifest
from ntkpipe.storage.solutions import SolutionRecord

if TYPE_CHECKING:
    from ntkpipe.pipeline.client.connection import Connection

NPY: Final = "application/x-npy"

NUM_IDS: Final = 20_000
"""That are asked for at once."""


@final
class RemoteRunReader(AbstractRunReader):
    """A run that a service reads. Holds what it was last asked for up to the connection's ``cache_bytes``; thread safe."""

    def __init__(self, url: str, path: str, connection: "Connection") -> None:
        """Ask what the run is.

        Args:
            url: Of the run.
            path: Of the run, below the connection's address.
            connection: To its service; it is closed with this reader, or when nobody uses it any more.
        """
        self.url = url
        self._path = path
        self._connection = connection
        self._pieces = Pieces()
        self.manifest = self._manifest()
        connection.pin(self.manifest.run_id)
        self._closed = finalize(self, connection.close)

    def close(self) -> None:
        """Close all connections; what was read stays usable."""
        self._closed()

    def status(self) -> RunStatus:
        """Ask for it."""
        document = self._document("/status")
        try:
            stages = tuple(StageStatus(**_fields(StageStatus, stage)) for stage in document["stages"])
            failures = tuple(str(failure) for failure in document["failures"])
            return RunStatus(
                **{**_fields(RunStatus, document), "url": self.url, "stages": stages, "failures": failures}
            )
        except (TypeError, KeyError, AttributeError):
            raise self._unexpected("/status", "is not the status of a run") from None

    def ids(self, split: str) -> list[str]:
        """Ask for them, many at once."""
        path, num = f"/splits/{_part(split)}/ids", self.manifest.geometry.splits[split].num_samples
        names: list[str] = []
        while len(names) < num:
            stop = min(num, len(names) + NUM_IDS)
            found = self._document(path, {"start": len(names), "stop": stop}).get("ids")
            if not isinstance(found, list) or not 0 < len(found) <= num - len(names):
                raise self._unexpected(path, f"does not hold the ids {len(names)} to {stop}")
            names += map(str, found)
        return names

    def labels(self, split: str) -> Array | None:
        """Ask for them, if there are any."""
        if self.manifest.geometry.splits[split].labels == "none":
            return None
        return self._whole(f"/splits/{_part(split)}/labels")

    def outputs(self, split: str, member: str | None, rows: Positions) -> Array:
        """Ask for rows."""
        return self._rows(f"/splits/{_part(split)}/outputs", rows, {} if member is None else {"member": member})

    def entries(self, name: MatrixName, rows: Positions, columns: Positions, missing: Missing) -> Array:
        """Ask for the samples that the entries belong to."""
        kernel, _ = self.manifest.geometry.matrix(name.kernel)
        path, parameters = f"/kernels/{_part(name.kernel)}", {**_sides(name), **_changes(name), "missing": missing}
        if kernel.width == 1:
            return self._matrix(path, parameters, rows, columns)
        (row_samples, row_at), (column_samples, column_at) = (
            _samples(entries, kernel.width) for entries in (rows, columns)
        )
        values = self._matrix(path, parameters, row_samples, column_samples, kernel.width)
        return np.asarray(values[np.ix_(row_at, column_at)])

    def errors(self, name: MatrixName, rows: Positions, columns: Positions) -> Doubles:
        """Ask for them."""
        path = f"/kernels/{_part(name.kernel)}/errors"
        return self._matrix(path, {**_sides(name), **_changes(name)}, rows, columns).astype(np.float64, copy=False)

    def features(self, kernel: str, split: str, rows: Positions) -> Array:
        """Ask for rows."""
        shape, _ = self.manifest.geometry.matrix(kernel)
        return self._rows(f"/kernels/{_part(kernel)}/features", rows, {"split": split}, axis=1 if shape.groups else 0)

    def diagonal(self, kernel: str, split: str) -> Array:
        """Ask for it."""
        return self._whole(f"/kernels/{_part(kernel)}/diagonal", {"split": split})

    def nearest(
        self, name: MatrixName, rows: Positions, k: int, *, opposed: bool = False, label: int | None = None
    ) -> Nearest:
        """Ask for them; the service sorts."""
        path = f"/kernels/{_part(name.kernel)}/neighbors"
        parameters: dict[str, str | int] = {"split": name.rows, "k": k, "opposed": opposed, **_changes(name)}
        if label is not None:
            parameters["label"] = label
        found = self._connection.try_document(f"{self._path}{path}", parameters | {"rows": _selection(rows)})
        if isinstance(found, TooLarge):
            if len(rows) < 2:
                raise found.error
            halves = [self.nearest(name, half, k, opposed=opposed, label=label) for half in np.array_split(rows, 2)]
            return nearest_of([pairs for half in halves for pairs in pairs_of(half)])
        try:
            lists = [[(one["position"], one["value"]) for one in item["neighbors"]] for item in found["neighbors"]]
            answer = nearest_of(lists)
        except (TypeError, KeyError, ValueError, OverflowError):
            raise self._unexpected(path, "is not a list of neighbors") from None
        if len(answer.positions) != len(rows):
            raise self._unexpected(path, f"tells the neighbors of {len(answer.positions)} samples, not of {len(rows)}")
        return answer

    def spectrum(self, name: MatrixName, max_samples: int) -> Spectrum:
        """Ask for it; the service decomposes."""
        path = f"/kernels/{_part(name.kernel)}/spectrum"
        # The service decomposes no more than so many rows; what is asked for beyond all samples does not count.
        num = min(max_samples, self.manifest.geometry.splits[name.rows].num_samples)
        found = self._document(path, {"max_samples": num, **_changes(name)})
        try:
            energy = found["label_energy"]
            return Spectrum(
                np.array(found["eigenvalues"], dtype=np.float64),
                None if energy is None else np.array(energy, dtype=np.float64),
                int(found["num_samples"]),
            )
        except (TypeError, KeyError, ValueError):
            raise self._unexpected(path, "is not a spectrum") from None

    def solution(self, name: str) -> Array:
        """Ask for all rows."""
        return self._rows(f"/solutions/{_part(name)}/coefficients", self._all(self.manifest.geometry.train_split))

    def solution_record(self, name: str) -> SolutionRecord:
        """Ask for it."""
        path = f"/solutions/{_part(name)}"
        return SolutionRecord.parse(self._connection.content(f"{self._path}{path}"), f"{self.url}{path}")

    def solution_extra(self, name: str, what: str) -> Array:
        """Ask for it."""
        return self._whole(f"/solutions/{_part(name)}/extras/{_part(what)}")

    def predictions(self, name: str, split: str) -> Array:
        """Ask for all rows."""
        return self._rows(f"/solutions/{_part(name)}/predictions", self._all(split), {"split": split})

    def attributions(self, solution: str, split: str, rows: Positions, target: int | None = None) -> Doubles:
        """Ask for rows; the service multiplies."""
        path = f"/solutions/{_part(solution)}/attributions"
        parameters: dict[str, str | int] = {"split": split} if target is None else {"split": split, "target": target}
        return self._rows(path, rows, parameters).astype(np.float64, copy=False)

    def analysis(self, name: str, file: str) -> bytes:
        """Ask for it."""
        return self._connection.content(f"{self._path}/analyses/{_part(name)}/{_part(file)}")

    def analysis_files(self, name: str) -> list[str]:
        """Ask for their keys."""
        path = f"/analyses/{_part(name)}"
        found = self._document(path).get("files")
        if not isinstance(found, list):
            raise self._unexpected(path, "is not a list of files")
        return [layout.analysis(name, str(file)) for file in found]

    def _manifest(self) -> Manifest:
        try:
            document = self._document("")
        except NotFoundError as error:
            raise NotFoundError(f"{self.url}: {error.message}") from None
        try:
            # Its seal is that of what is stored; secrets in it are redacted on the way.
            return Manifest.model_validate(document["manifest"])
        except (ValueError, KeyError) as error:
            raise self._unexpected("", f"is not what a run is ({str(error).splitlines()[0]})") from None

    def _document(self, path: str, parameters: Mapping[str, str | int] | None = None) -> dict[str, Any]:
        return self._connection.document(f"{self._path}{path}", parameters)

    def _whole(self, path: str, parameters: Mapping[str, str | int] | None = None) -> Array:
        found = self._ask(path, parameters or {})
        if isinstance(found, TooLarge):
            raise found.error
        return found

    def _rows(
        self, path: str, rows: Positions, parameters: Mapping[str, str | int] | None = None, *, axis: int = 0
    ) -> Array:
        def ask(some: Positions, _: Positions | None) -> Array | TooLarge:
            found = self._ask(path, {**(parameters or {}), "rows": _selection(some)})
            if not isinstance(found, TooLarge) and (found.ndim <= axis or found.shape[axis] != len(some)):
                raise self._unexpected(path, f"is an array of shape {found.shape} for {len(some)} rows")
            return found

        return self._pieces.read(path, ask, rows, axis=axis)

    def _matrix(
        self, path: str, parameters: Mapping[str, str | int], rows: Positions, columns: Positions, width: int = 1
    ) -> Array:
        def ask(some: Positions, others: Positions | None) -> Array | TooLarge:
            wanted = (len(some) * width, len(columns if others is None else others) * width)
            cols = _selection(columns if others is None else others)
            found = self._ask(path, {**parameters, "rows": _selection(some), "cols": cols})
            if not isinstance(found, TooLarge) and found.shape != wanted:
                raise self._unexpected(path, f"is an array of shape {found.shape}, not {wanted}")
            return found

        return self._pieces.read(path, ask, rows, columns, width=width)

    def _ask(self, path: str, parameters: Mapping[str, str | int]) -> Array | TooLarge:
        content = self._connection.request(f"{self._path}{path}", parameters, NPY)
        if isinstance(content, TooLarge):
            return content
        try:
            return read_npy(content)
        except ValueError:
            raise self._unexpected(path, "is not an array") from None

    def _all(self, split: str) -> Positions:
        return np.arange(self.manifest.geometry.splits[split].num_samples)

    def _unexpected(self, path: str, what: str) -> StorageError:
        return self._connection.unexpected(f"{self._path}{path}", what)


def _part(name: str) -> str:
    """Return a name as one part of a path."""
    return quote(name, safe="")


def _fields(kind: type[RunStatus] | type[StageStatus], document: dict[str, Any]) -> dict[str, Any]:
    """Return what a document says of the fields that this version knows."""
    return {name: document[name] for name in kind.__dataclass_fields__ if name in document}


def _sides(name: MatrixName) -> dict[str, str]:
    return {"row_split": name.rows, "column_split": name.columns}


def _changes(name: MatrixName) -> dict[str, str]:
    """Return which layers are summed, and how that is transformed."""
    found = {"layers": ",".join(name.layers), "transforms": ",".join(name.transforms)}
    return {what: text for what, text in found.items() if text}


def _samples(entries: Positions, width: int) -> tuple[Positions, Positions]:
    """Return the samples that rows of a matrix of pairs belong to, and where the rows are in the rows of those."""
    samples, at = np.unique(entries // width, return_inverse=True)
    return samples, at.reshape(-1) * width + entries % width


def _selection(positions: Positions) -> str:
    """Return positions as the text that stands for them, which is short where it can be."""
    if len(positions) == 0:
        return "0:0"
    first, last = int(positions[0]), int(positions[-1])
    if last - first + 1 == len(positions) and bool((np.diff(positions) == 1).all()):
        return f"{first}:{last + 1}"
    return ",".join(map(str, positions.tolist()))
