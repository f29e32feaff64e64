"""Starting a private Ray, or joining the one of an address."""

import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any, Final, final

import ray

from ntkpipe.configs.errors import PlanError
from ntkpipe.pipeline.executors.processes import deferring_signals, keeping_handler, remove_stale_folders

CONNECT_SECONDS: Final = 10.0

OBJECT_STORE_BYTES: Final = 128 * 2**20
"""Of a private Ray; no data of a run goes through it."""

TEMPORARY_PREFIX: Final = "ntkpipe-ray-"


@final
class Connection:
    """To Ray, as long as it is entered. A Ray that is already running in this process is borrowed and left running.

    Args:
        address: Of the cluster; ``local`` starts a private one.
        num_cpus: Of a private one.
    """

    def __init__(self, address: str, num_cpus: int) -> None:
        self._address = address
        self._num_cpus = num_cpus
        self._owns_ray = False
        self._temporary: Path | None = None

    def __enter__(self) -> "Connection":
        """Start or join Ray.

        Raises:
            PlanError: The address cannot be reached.
        """
        if ray.is_initialized():
            return self
        options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "include_dashboard": False}
        if self._address == "local":
            remove_stale_folders(TEMPORARY_PREFIX)
            self._temporary = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY_PREFIX}{os.getpid()}-"))
            options |= {
                "num_cpus": self._num_cpus,
                "object_store_memory": OBJECT_STORE_BYTES,
                "_temp_dir": str(self._temporary),
            }
        else:
            _check_reachable(self._address)
        try:
            with keeping_handler():
                ray.init(address=self._address, **options)
        except (OSError, RuntimeError, ValueError) as error:
            raise PlanError(
                f"Ray at {self._address!r} cannot be reached or started: {error}. Check resources.address, and "
                "RAY_AUTH_TOKEN for a cluster with authentication."
            ) from None
        self._owns_ray = True
        return self

    def __exit__(self, *_: object) -> None:
        """End Ray, or leave it, if it was started or joined here."""
        if self._owns_ray:
            # Ray takes every handler of SIGTERM away as it ends, below what Python knows of.
            with deferring_signals():
                ray.shutdown()
            self._owns_ray = False
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)


def _check_reachable(address: str) -> None:
    """Refuse an address where nobody listens; Ray would end the whole process after a long wait.

    Raises:
        PlanError: Names the address.
    """
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise PlanError(
            f"Ray at {address!r} cannot be reached: {error}. Check resources.address, and that the head node is running."
        ) from None
