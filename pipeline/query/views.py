"""Kernel matrices as objects of other libraries: dask and xarray, which read tile by tile where they are computed."""

import os
from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any, final

import numpy as np

from ntkpipe.configs.errors import ConfigError
from ntkpipe.pipeline.query.names import MatrixName, Missing
from ntkpipe.storage.arrays import Array

if TYPE_CHECKING:
    import dask.array
    import xarray

    from ntkpipe.pipeline.query.matrices import KernelQuery
    from ntkpipe.pipeline.query.run import Run

NUM_REOPENED = 8
"""Runs that a process keeps open for tiles that it was sent."""


def names_of_rows(ids: list[str], width: int) -> list[str]:
    """Return one name per row of a kernel of (sample, output) pairs: ``digits-0000/3``; else the ids of samples."""
    return ids if width == 1 else [f"{name}/{output}" for name in ids for output in range(width)]


@final
class LazyMatrix:
    """What dask reads a matrix from, by slices of rows and columns of the matrix. Thread safe.

    Where it is sent to another process, the run is opened again there by its URL, and that of a service with the token
    in NTKPIPE_TOKEN: a token is never sent along.

    Attributes:
        shape: Of the matrix.
        dtype: Of the entries.
        ndim: 2.
    """

    ndim = 2

    def __init__(self, run: "Run", name: MatrixName, shape: tuple[int, int], missing: Missing) -> None:
        self.shape = shape
        self.dtype = np.dtype(run.manifest.geometry.dtype)
        self._run = run
        self._name = name
        self._missing = missing

    def __getitem__(self, index: tuple[Any, Any]) -> Array:
        """Return entries at all pairs of rows and columns; a single position drops its axis, as in NumPy.

        Raises:
            ChunkNotReadyError: A block that is needed has not been committed yet.
        """
        chosen = [np.arange(size)[part] for size, part in zip(self.shape, index, strict=True)]
        rows, columns = map(np.atleast_1d, chosen)
        values = self._run.reader.entries(self._name, rows, columns, self._missing)
        return np.asarray(values[tuple(slice(None) if np.ndim(one) else 0 for one in chosen)])

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave out all that is open."""
        return _reopened, (self._run.url, self._run.manifest.run_id, self._name, self.shape, self._missing)


def to_dask(query: "KernelQuery", run: "Run", missing: Missing) -> "dask.array.Array":
    """Return a matrix whose chunks are the tiles of the run; see :meth:`KernelQuery.to_dask`."""
    try:
        import dask.array
    except ImportError as error:
        raise _missing_package("dask", error) from None
    tile_rows = run.manifest.geometry.block_rows * query.width
    identity = repr((run.url, run.manifest.run_id, query.name, missing))
    from_array: Callable[..., dask.array.Array] = dask.array.from_array
    return from_array(
        LazyMatrix(run, query.name, query.shape, missing),
        chunks=(tile_rows, tile_rows),
        # The same matrix has the same name, so that no graph reads it twice; blocks that are missing may come later.
        name=f"ntkpipe-{sha256(identity.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"
        if missing == "raise"
        else False,
        asarray=True,
        meta=np.empty((0, 0), run.manifest.geometry.dtype),
    )


def to_xarray(query: "KernelQuery", run: "Run", missing: Missing) -> "xarray.DataArray":
    """Return a matrix with its ids; see :meth:`KernelQuery.to_xarray`."""
    try:
        import xarray
    except ImportError as error:
        raise _missing_package("xarray", error) from None
    name = query.name
    # Two dimensions of one array need two names.
    dims = (name.rows, name.columns if name.columns != name.rows else f"{name.columns}_columns")
    ids = [names_of_rows(run.ids(split), query.width) for split in (name.rows, name.columns)]
    attributes = {
        "kernel": name.kernel,
        "layers": ",".join(name.layers),
        "transforms": ",".join(name.transforms),
        "row_split": name.rows,
        "column_split": name.columns,
        "run": run.manifest.name,
        "run_id": run.manifest.run_id,
    }
    coordinates = dict(zip(dims, ids, strict=True))
    return xarray.DataArray(to_dask(query, run, missing), coordinates, dims, name=name.kernel, attrs=attributes)


def _reopened(url: str, run_id: str, name: MatrixName, shape: tuple[int, int], missing: Missing) -> LazyMatrix:
    run = _open(url, os.getpid())
    if run.manifest.run_id != run_id:
        raise ConfigError(f"{url} is another run than it was: found {run.manifest.run_id}, expected {run_id}.")
    return LazyMatrix(run, name, shape, missing)


@lru_cache(maxsize=NUM_REOPENED)
def _open(url: str, process: int) -> "Run":
    """Open a run once in every process; what a fork has taken along is not used."""
    if url.startswith(("http://", "https://")):
        from ntkpipe.pipeline.client.connecting import connect

        return connect(url)
    from ntkpipe.pipeline.query.run import open_run

    return open_run(url)


def _missing_package(name: str, error: ImportError) -> ConfigError:
    return ConfigError(f"{name} is needed and cannot be loaded ({error}): pip install 'ntkpipe[tables]'")
