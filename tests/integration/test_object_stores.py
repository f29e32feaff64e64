"""Object stores keep the contract of stores, and hold whole runs: real S3 servers and an emulator of GCS."""

import json
import os
from pathlib import Path

import golden
import numpy as np
import pytest
import zarr
from commands import ntkpipe_command
from contracts.stores import *
from faults.table import compare_runs
from interruptions import Killed, interrupt_after
from racing import race_of_processes
from runs import chunk_hashes, stored_hashes
from servers.fixtures import reached

import ntkpipe
from ntkpipe.configs.errors import StorageError
from ntkpipe.storage.arrays import ChunkStore
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.metadata import ArraySpec
from ntkpipe.storage.stores.registry import open_store

pytestmark = pytest.mark.slow

CLIENTS = [("weed", "s3"), ("weed", "s3+obstore"), ("moto", "s3"), ("moto", "s3+obstore"), ("gcs", "gs")]
S3_CLIENTS = [("weed", "s3"), ("weed", "s3+obstore")]


@pytest.fixture
def service(request):
    """A service found by all clients, by the name that the test's parameter begins with."""
    name, client = request.param
    with reached(request.getfixturevalue(name)) as found:
        yield found, client


@pytest.fixture(params=CLIENTS, ids="/".join, scope="module")
def sibling(request):
    name, client = request.param
    with reached(request.getfixturevalue(name)) as found:
        yield lambda: open_store(found.new_url(client))


@pytest.fixture
def store(sibling):
    return sibling()


@pytest.fixture
def racers(store, request):
    # SeaweedFS lets those that lose wait for seconds if there are more than two.
    return 2 if "weed" in request.node.callspec.id else 8


def test_whole_chunks_come_back_and_plain_zarr_reads_them(store):
    chunks = ChunkStore(store)
    chunks.create([ArraySpec("a/b", (5, 300), (3, 200), "float32", ("x", "y"))], {"schema_version": 2})
    values = np.arange(1500, dtype=np.float32).reshape(5, 300)
    for row in range(2):
        for column in range(2):
            part = values[3 * row : 3 * row + 3, 200 * column : 200 * column + 200]
            record = chunks.write("a/b", (row, column), part)
            assert chunks.matches(record) is None
            assert np.array_equal(chunks.read("a/b", (row, column)), part)
    if not store.url.startswith("s3+"):
        assert np.array_equal(zarr.open_group(f"{store.url}/data.zarr", mode="r")["a/b"][:], values)


@pytest.mark.parametrize("service", S3_CLIENTS, ids="/".join, indirect=True)
def test_of_many_racing_processes_exactly_one_creates(service):
    s3, client = service
    url = s3.new_url(client)
    winners = race_of_processes(url, rounds=50, racers=2)
    assert all(len(won) == 1 for won in winners)
    store = open_store(url)
    assert [store.get(f"epoch/{attempt}") for attempt in range(50)] == [str(won[0]).encode() * 1000 for won in winners]


def test_both_clients_of_s3_see_the_same_objects(s3):
    url = s3.new_url().removesuffix("/run") + "/a b%20c~+ü"
    first, second = open_store(url), open_store(url.replace("s3://", "s3+obstore://"))
    for number, key in enumerate(ODD_KEYS):
        (first, second)[number % 2].put(f"x/{key}", key.encode())
    assert first.names("") == second.names("") == sorted(f"x/{key}" for key in ODD_KEYS)
    for key in ODD_KEYS:
        assert first.get(f"x/{key}") == second.get(f"x/{key}") == key.encode()
        assert first.modified(f"x/{key}") == second.modified(f"x/{key}")


def test_a_large_object_is_written_and_read_by_one_request_each(faulty_s3):
    service, proxy = faulty_s3
    content = os.urandom(12_000_000)
    for client in ("s3", "s3+obstore"):
        store = open_store(service.new_url(client))
        proxy.requests.clear()
        store.put("a", content)
        assert store.put_new("b", content)
        assert dict(proxy.requests) == {"PUT": 2}
        assert store.get("a") == store.get_writable("b") == content
        assert dict(proxy.requests) == {"PUT": 2, "GET": 2}
        assert store.exists("a")
        assert store.modified("a")
        assert not store.exists("c")
        assert dict(proxy.requests) == {"PUT": 2, "GET": 2, "HEAD": 3}
        store.copy(store, "a", "c")
        assert dict(proxy.requests) in ({"PUT": 3, "GET": 2, "HEAD": 3}, {"PUT": 3, "GET": 2, "HEAD": 4})


@pytest.mark.parametrize(
    "service", [("moto", "s3"), ("moto", "s3+obstore"), ("gcs", "gs")], ids="/".join, indirect=True
)
def test_a_bucket_that_does_not_exist_is_named(service):
    _, client = service
    with pytest.raises(StorageError, match=r"no-such-bucket-of-ours.*there is no such bucket"):
        ntkpipe.run(golden.config(), f"{client}://no-such-bucket-of-ours/run")


@pytest.mark.parametrize("client", ["s3", "s3+obstore"])
def test_wrong_credentials_are_said_to_be_wrong_and_not_shown(client, weed, monkeypatch):
    with reached(weed) as service:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "an-entirely-wrong-one")
        with pytest.raises(StorageError, match=r"credentials|denied|signature") as caught:
            open_store(service.new_url(client)).put("a", b"")
    assert "an-entirely-wrong-one" not in str(caught.value)


# Whole runs.


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return Path(ntkpipe.run(golden.config(), tmp_path_factory.mktemp("runs") / "local").url)


def receipts(url):
    """Return what every receipt says about bytes, by stage and task."""
    store, found = open_store(url), {}
    ledger = Ledger(store)
    for stage in ("prepare", "features", "kernel", "solve", "analyze"):
        for receipt in ledger.receipts(stage):
            found[stage, receipt.task] = (receipt.chunks, [record.key for record in receipt.objects])
    return found


@pytest.mark.parametrize("service", [*S3_CLIENTS, *CLIENTS[3:]], ids="/".join, indirect=True)
def test_a_run_is_the_same_bytes_wherever_it_is_stored(service, local):
    _, client = service
    run = ntkpipe.run(golden.config(), service[0].new_url(client))
    assert run.status().state == "finished"
    assert stored_hashes(run.url) == chunk_hashes(local)
    assert receipts(run.url) == receipts(local)
    assert not any(checked.findings for checked in ntkpipe.verify(run.url))
    assert open_store(run.url).debris() == {}


@pytest.mark.parametrize("service", S3_CLIENTS, ids="/".join, indirect=True)
def test_an_interrupted_run_is_resumed_where_it_is_stored(service, local, monkeypatch):
    s3, client = service
    url = s3.new_url(client)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5)
        with pytest.raises(Killed):
            ntkpipe.run(golden.config(), url)
    status = ntkpipe.open_run(url).status()
    assert (status.state, sum(stage.done for stage in status.stages)) == ("interrupted", 5)
    assert ntkpipe.resume(url).status().epoch == 2
    assert stored_hashes(url) == chunk_hashes(local)
    assert receipts(url) == receipts(local)
    assert not any(checked.findings for checked in ntkpipe.verify(url))


@pytest.mark.parametrize("service", S3_CLIENTS, ids="/".join, indirect=True)
def test_workers_of_ray_write_the_same_bytes_to_an_object_store(service, local, tmp_path):
    s3, client = service
    url, job = s3.new_url(client), tmp_path / "job.yaml"
    job.write_text(json.dumps(golden.config(resources={"executor": "ray", "workers": 2})))
    done = ntkpipe_command("run", job, "--out", url)
    assert done.returncode == 0, done.stderr
    assert stored_hashes(url) == chunk_hashes(local)
    assert receipts(url) == receipts(local)
    assert not any(checked.findings for checked in ntkpipe.verify(url))


@pytest.mark.parametrize("client", ["s3", "s3+obstore"])
def test_a_store_that_ignores_conditions_is_refused_unless_there_is_one_writer(client, careless_s3, local, fault_table):
    service, _ = careless_s3
    url = service.new_url(client)
    with pytest.raises(StorageError, match=r"ignores the condition.*--single-writer \(store\.single_writer=true\)"):
        ntkpipe.run(golden.config(), url)
    assert open_store(url).names("") == []
    run = ntkpipe.run(golden.config(), url, overrides=["store.single_writer=true"])
    assert stored_hashes(run.url) == chunk_hashes(local)
    with pytest.raises(StorageError, match="ignores the condition"):
        ntkpipe.resume(url, overrides=["store.single_writer=false"])
    assert ntkpipe.resume(url).status().state == "finished"
    fault_table.add("store that ignores conditions", 1, 1, *compare_runs(url, local))
