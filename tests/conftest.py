"""Fixtures and settings for all tests."""

import os
import secrets

import pytest

pytest_plugins = ["faults.table", "servers.fixtures"]

# Ray reads these when it is first imported; tests never join a Ray that somebody else has started.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.pop("RAY_ADDRESS", None)
# Ray's monitor counts the memory of all processes of the machine, and would end workers for what others take.
os.environ["RAY_memory_monitor_refresh_ms"] = "0"  # noqa: SIM112 - Ray writes it like this


def pytest_ignore_collect(collection_path, config):
    """Leave files out that have no slow tests when those alone are wanted: every process spends ten seconds on them."""
    is_test = collection_path.name.startswith("test_") and collection_path.suffix == ".py"
    if config.option.markexpr == "slow" and is_test and "mark.slow" not in collection_path.read_text():
        return True
    return None


@pytest.fixture(scope="session")
def local_ray(tmp_path_factory):
    """A private Ray of three CPUs that executors borrow; starting one takes seconds."""
    import tempfile

    import ray

    # Sockets live below this folder and their paths must be short.
    with tempfile.TemporaryDirectory(prefix="ntkpipe-tests-", ignore_cleanup_errors=True) as folder:
        ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
        yield ray
        ray.shutdown()


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Small products on two busy cores take several times longer with two threads than with one."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def short_folder():
    """A temporary folder below which there is room for the names of sockets."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory(prefix="nt", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
