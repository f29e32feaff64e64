"""A Ray cluster that somebody else has started, joined by its address."""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import golden
import pytest
import yaml
from commands import COMMAND, TESTS
from runs import chunk_hashes

import ntkpipe

pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def cluster():
    """A head node of two CPUs that asks for a token; yields its address and the environment of its users."""
    port = free_port()
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with tempfile.TemporaryDirectory(prefix="ntkpipe-head-", ignore_cleanup_errors=True) as folder:
        head = subprocess.Popen(
            [
                str(Path(sys.executable).parent / "ray"),
                "start",
                "--head",
                "--block",
                "--num-cpus=2",
                f"--port={port}",
                "--include-dashboard=false",
                "--disable-usage-stats",
                f"--temp-dir={folder}",
            ],
            env=environment | {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        yield f"127.0.0.1:{port}", environment
        head.terminate()
        head.wait(60)


def start(config, out, environment):
    return subprocess.run(
        [*COMMAND, "run", str(config), "--out", str(out)],
        cwd=TESTS,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def test_a_run_on_a_cluster_equals_one_in_this_process(cluster, tmp_path):
    address, environment = cluster
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(golden.config(resources={"executor": "ray", "address": address, "workers": 2})))
    for _ in range(30):
        found = start(config, tmp_path / "run", environment)
        if "cannot be reached" not in found.stderr:
            break
    assert found.returncode == 0, found.stderr
    serial = ntkpipe.run(golden.config(), tmp_path / "serial")
    assert chunk_hashes(tmp_path / "run") == chunk_hashes(Path(serial.url))


def test_an_address_where_nobody_answers_is_named(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(golden.config(resources={"executor": "ray", "address": address})))
    found = start(config, tmp_path / "run", dict(os.environ))
    assert found.returncode == 2
    assert f"Ray at '{address}' cannot be reached" in found.stderr
    assert "Traceback" not in found.stderr
