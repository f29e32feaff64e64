"""Real S3 services on this machine: SeaweedFS (``weed``) and moto's server."""

import json
import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ports import free_ports

from servers.processes import running

ACCESS_KEY = "ntkpipe-tests"
SECRET_KEY = "not-a-secret-of-anybody"
BUCKET = "runs"

WEED_PORTS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port",
    "s3.port.grpc",
)


@dataclass(frozen=True, slots=True)
class S3Service:
    """A service with one bucket."""

    name: str
    endpoint: str

    def environment(self) -> dict[str, str]:
        """Return what clients of any kind read."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
            # Nothing of the user who runs the tests may be read or asked for.
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }

    def client(self) -> Any:
        """Return a boto3 client, which shares no code with the clients under test."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
        )

    def behind(self, endpoint: str) -> "S3Service":
        """Return the same service as it is reached through a proxy."""
        return S3Service(self.name, endpoint)

    def new_url(self, client: str = "s3") -> str:
        """Return a place for a run that nobody uses, for ``s3`` (s3fs) or ``s3+obstore``."""
        return f"{client}://{BUCKET}/{uuid.uuid4().hex}/run"


@contextmanager
def weed_server(folder: Path) -> Iterator[S3Service]:
    """Run SeaweedFS with data below a folder; seconds to start, and it reports to nobody."""
    config, data = folder / "s3.json", folder / "data"
    data.mkdir()
    credentials = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
    config.write_text(json.dumps({"identities": [{"name": "tests", "credentials": credentials, "actions": ["Admin"]}]}))
    ports = dict(zip(WEED_PORTS, free_ports(len(WEED_PORTS)), strict=True))
    command = [
        str(Path(sys.executable).parent / "weed"),
        "server",
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=0",
        "-filer",
        f"-filer.localSocket={folder}/filer.sock",
        "-s3",
        f"-s3.config={config}",
        f"-s3.localSocket={folder}/s3.sock",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        *(f"-{name}={port}" for name, port in ports.items()),
    ]
    service = S3Service("weed", f"http://127.0.0.1:{ports['s3.port']}")
    with running(command, folder, lambda: _make_bucket(service)):
        yield service


@contextmanager
def moto_server(folder: Path) -> Iterator[S3Service]:
    """Run moto's server, which keeps objects in memory; about a second to start."""
    (port,) = free_ports(1)
    service = S3Service("moto", f"http://127.0.0.1:{port}")
    command = [sys.executable, str(Path(__file__).with_name("moto_in_turns.py")), str(port)]
    with running(command, folder, lambda: _make_bucket(service)):
        yield service


def _make_bucket(service: S3Service) -> None:
    client = service.client()
    try:
        if BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
            client.create_bucket(Bucket=BUCKET)
        client.put_object(Bucket=BUCKET, Key="ready", Body=b"1")
        client.delete_object(Bucket=BUCKET, Key="ready")
    finally:
        client.close()
