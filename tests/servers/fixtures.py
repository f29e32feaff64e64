"""Fixtures: servers that live as long as the session, and environments in which clients find them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar
from unittest import mock

import pytest

from servers.fault_proxy import FaultProxy, fault_proxy
from servers.gcs import GcsService, gcs_server
from servers.s3 import S3Service, moto_server, weed_server

Service = TypeVar("Service", S3Service, GcsService)


@contextmanager
def reached(service: Service) -> Iterator[Service]:
    """Let all clients of this process, and of those that it starts, find a service."""
    from fsspec.spec import AbstractFileSystem

    with mock.patch.dict(os.environ, service.environment()):
        # Clients read the environment when they are made, and are kept.
        _forget_clients(AbstractFileSystem)
        yield service
        _forget_clients(AbstractFileSystem)


def _forget_clients(base: type) -> None:
    for cls in base.__subclasses__():
        cls.clear_instance_cache()  # type: ignore[attr-defined]
        _forget_clients(cls)


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Service]:
    """A real S3 server."""
    with weed_server(tmp_path_factory.mktemp("weed")) as service:
        yield service


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Service]:
    """Another implementation of S3."""
    with moto_server(tmp_path_factory.mktemp("moto")) as service:
        yield service


@pytest.fixture
def s3(weed: S3Service) -> Iterator[S3Service]:
    """The real server, found by all clients; ``s3.new_url()`` is a place for a run."""
    with reached(weed) as service:
        yield service


@pytest.fixture
def faulty_s3(weed: S3Service) -> Iterator[tuple[S3Service, FaultProxy]]:
    """The real server behind a proxy that does no harm until it is told to, found by all clients."""
    with fault_proxy(weed.endpoint) as proxy, reached(weed.behind(proxy.endpoint)) as service:
        yield service, proxy


@pytest.fixture(scope="session")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsService]:
    """An emulator of Google Cloud Storage."""
    with gcs_server(tmp_path_factory.mktemp("gcs")) as service:
        yield service


@pytest.fixture
def careless_s3(moto: S3Service) -> Iterator[tuple[S3Service, FaultProxy]]:
    """A service that ignores "only if it does not exist": the proxy takes the header away, and moto checks no signatures."""
    with fault_proxy(moto.endpoint) as proxy, reached(moto.behind(proxy.endpoint)) as service:
        proxy.ignore_conditions = True
        yield service, proxy
