"""Whole runs on a real S3 server behind a network that fails: every fault is injected between client and server."""

import json
from pathlib import Path

import golden
import pytest
from commands import ntkpipe_command
from runs import chunk_hashes, stored_hashes

import ntkpipe
from ntkpipe.storage.stores.registry import open_store

pytestmark = pytest.mark.slow

CLIENTS = ("s3", "s3+obstore")

FAULTS = {
    "30 % 503s": {"busy_share": 0.3},
    "30 % connection resets": {"reset_share": 0.3},
    "30 % truncated bodies": {"truncated_share": 0.3},
    "30 % answers lost after the write": {"lost_share": 0.3},
    "50 % conflicts of conditional writes": {"conflict_share": 0.5},
    "answers 50 ms late": {"delay_seconds": 0.05},
}


def job(**changes):
    """The golden run in few requests: clients pause for seconds between tries."""
    return golden.config(
        data={"splits": {"train": {"kind": "python", "target": "golden:load"}}},
        kernels=[{"kind": "trntk0", "projection": {"kind": "rademacher", "dim": 64}}],
        solve=[{"kind": "cholesky", "name": "krr", "kernel": "trntk0", "ridge": 1.0}],
        store={"shard_rows": 4, "block_rows": 4},
        **changes,
    )


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return Path(ntkpipe.run(job(), tmp_path_factory.mktemp("runs") / "local").url)


IMPATIENT = """
from ntkpipe.storage.stores import persistence
persistence.PATIENCE_SECONDS = 1.0
"""


def num_bytes(url):
    return sum(open_store(url).sizes("data.zarr").values())


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_through_a_bad_network_ends_with_the_same_bytes(
    fault, client, faulty_s3, local, monkeypatch, fault_table
):
    service, proxy = faulty_s3
    # Clients that are told to give up early leave more to the store, and pause for less.
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    url = service.new_url(client)
    for name, value in FAULTS[fault].items():
        setattr(proxy, name, value)
    run = ntkpipe.run(job(), url)
    assert run.status().state == "finished"
    assert not run.status().failures
    injected = sum(proxy.injected.values())
    assert injected > 1 or proxy.delay_seconds
    proxy.quiet()
    assert stored_hashes(url) == chunk_hashes(local)
    assert not any(checked.findings for checked in ntkpipe.verify(url))
    fault_table.add(fault=f"{fault}, {client}", tries=1, survived=1, compared_bytes=num_bytes(url))
    print(f"{fault}, {client}: {sum(proxy.requests.values())} requests, {injected} faults")


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("fault", ["lost", "conflict", "reset"])
def test_put_new_is_won_once_whatever_happens_on_the_way(client, fault, faulty_s3):
    service, proxy = faulty_s3
    store = open_store(service.new_url(client))
    setattr(proxy, f"{fault}_share", 0.4)
    for number in range(12):
        assert store.put_new(f"a/{number}", f"mine {number}".encode())
        assert not store.put_new(f"a/{number}", f"theirs {number}".encode())
    assert proxy.injected[fault] > 3
    proxy.quiet()
    assert [store.get(f"a/{number}") for number in range(12)] == [f"mine {number}".encode() for number in range(12)]


@pytest.mark.parametrize("client", CLIENTS)
def test_a_service_that_is_down_ends_the_run_with_one_message_and_loses_nothing(
    client, faulty_s3, local, tmp_path, monkeypatch, fault_table
):
    service, proxy = faulty_s3
    # Else clients try for minutes, and stores for ten seconds each time; what follows is the same.
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    url, path = service.new_url(client), tmp_path / "job.yaml"
    path.write_text(json.dumps(job(resources={"executor": "serial", "max_attempts": 1})))

    def go_down(method, key):
        if method == "PUT" and "/receipts/features/" in key:
            proxy.stop()

    proxy.watch = go_down
    for command in (("run", path, "--out", url), ("resume", url)):
        ended = ntkpipe_command(*command, before=IMPATIENT)
        assert ended.returncode == 1
        assert "the store failed" in ended.stderr
        assert "ntkpipe resume" in ended.stderr
        assert "Traceback" not in ended.stderr
    proxy.watch = None
    proxy.start()
    run = ntkpipe.resume(url, overrides=["resources.max_attempts=3"])
    assert run.status().state == "finished"
    assert run.status().epoch == 2
    assert stored_hashes(url) == chunk_hashes(local)
    fault_table.add(fault=f"service down, {client}", tries=1, survived=1, compared_bytes=num_bytes(url))
