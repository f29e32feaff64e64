"""A Ray cluster that somebody else has started, joined by its address."""

import os
import subprocess
from pathlib import Path

import golden
import pytest
import yaml
from clusters import LocalCluster
from commands import COMMAND, TESTS
from ports import free_ports
from runs import chunk_hashes

import ntkpipe

pytestmark = pytest.mark.slow


def start(config, out, environment):
    return subprocess.run(
        [*COMMAND, "run", str(config), "--out", str(out)],
        cwd=TESTS,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )


def test_a_run_on_a_cluster_equals_one_in_this_process(tmp_path):
    config = tmp_path / "config.yaml"
    with LocalCluster(2, dashboard=False) as cluster:
        resources = {"executor": "ray", "address": cluster.address, "workers": 2}
        config.write_text(yaml.safe_dump(golden.config(resources=resources)))
        found = start(config, tmp_path / "run", cluster.environment)
    assert found.returncode == 0, found.stderr
    serial = ntkpipe.run(golden.config(), tmp_path / "serial")
    assert chunk_hashes(tmp_path / "run") == chunk_hashes(Path(serial.url))


def test_an_address_where_nobody_answers_is_named(tmp_path):
    address = f"127.0.0.1:{free_ports(1)[0]}"
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(golden.config(resources={"executor": "ray", "address": address})))
    found = start(config, tmp_path / "run", dict(os.environ))
    assert found.returncode == 2
    assert f"Ray at '{address}' cannot be reached" in found.stderr
    assert "Traceback" not in found.stderr
