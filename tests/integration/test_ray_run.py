"""The golden micro-network on Ray: any number of workers, any cut, the same bits."""

import itertools

import golden
import numpy as np
import pytest
from runs import chunk_hashes

import ntkpipe

# Every other one of all that there are.
CUTS = list(itertools.product((1, 2, 3), repeat=3))[::2]
COVERING = [(1, 2, 2), (2, 1, 3), (3, 3, 1), (2, 2, 1)]


def run_on_ray(tmp_path, workers, shard_rows, block_rows):
    config = golden.config(
        store={"shard_rows": shard_rows, "block_rows": block_rows},
        resources={"executor": "ray", "workers": workers},
    )
    return ntkpipe.run(config, tmp_path / f"run-{workers}-{shard_rows}-{block_rows}")


def everything(run):
    """Return all values of a run, however they are cut."""
    values = {}
    for kernel in run.manifest.geometry.kernels:
        for rows in ("train", "test"):
            values[kernel.name, rows] = run.kernel(kernel.name, rows)[:, :]
            values[kernel.name, rows, "diagonal"] = run.diagonal(kernel.name, rows)
            for group in kernel.groups:
                values[kernel.name, rows, group] = run.kernel(kernel.name, rows, component=group)[:, :]
            if kernel.feature_dim is not None:
                values[kernel.name, rows, "features"] = run.features[kernel.name, rows][:]
    values["outputs"] = run.outputs("test")
    values["krr"] = run.solution("krr")
    return values


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    return ntkpipe.run(golden.config(), tmp_path_factory.mktemp("runs") / "serial")


def assert_same_bits(run, expected):
    found = everything(run)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].tobytes() == values.tobytes(), name


@pytest.mark.parametrize(("workers", "shard_rows", "block_rows"), COVERING)
def test_workers_shards_and_blocks_do_not_change_a_bit(workers, shard_rows, block_rows, local_ray, serial, tmp_path):
    assert_same_bits(run_on_ray(tmp_path, workers, shard_rows, block_rows), everything(serial))


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "shard_rows", "block_rows"), [cut for cut in CUTS if cut not in COVERING])
def test_no_cut_changes_a_bit(workers, shard_rows, block_rows, local_ray, serial, tmp_path):
    assert_same_bits(run_on_ray(tmp_path, workers, shard_rows, block_rows), everything(serial))


def test_equal_cuts_give_equal_files(local_ray, serial, tmp_path):
    from pathlib import Path

    run = run_on_ray(tmp_path, 2, 2, 2)
    assert chunk_hashes(Path(run.url)) == chunk_hashes(Path(serial.url))


def test_an_error_on_a_worker_arrives_with_its_kind_and_message(local_ray, tmp_path):
    from ntkpipe.configs.errors import NumericalError

    config = golden.config(
        model={"target": "golden:build_overflowing_model"},
        kernels=[{"kind": "trntk"}],
        solve=[],
        resources={"executor": "ray", "workers": 2},
    )
    with pytest.raises(NumericalError, match="for sample 'x2'"):
        ntkpipe.run(config, tmp_path / "run")
    status = ntkpipe.open_run(tmp_path / "run").status()
    assert status.state == "interrupted"
    assert "for sample 'x2'" in status.failures[0]


def test_memory_is_refused_for_workers_in_other_processes():
    from ntkpipe.configs.errors import ConfigError

    with pytest.raises(ConfigError, match="exists in this process only"):
        ntkpipe.run(golden.config(resources={"executor": "ray"}), "memory://tests/ray")


def test_a_run_in_memory_equals_one_on_disk(serial):
    run = ntkpipe.run(golden.config(), "memory://tests/serial")
    assert_same_bits(run, everything(serial))
    assert not any(checked.findings for checked in ntkpipe.verify(run.url))
    assert np.array_equal(run.kernel("ck")[:, :], golden.CK)
