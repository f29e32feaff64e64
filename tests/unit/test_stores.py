"""Local folders and memory keep the contract of stores, and which URLs can hold a run."""

import json
import os
import time
import uuid
from pathlib import Path

import pytest
from contracts.stores import *
from fsspec.asyn import get_loop
from racing import race_of_processes

from ntkpipe.configs.errors import ConfigError, StorageError
from ntkpipe.configs.store import StoreConfig
from ntkpipe.storage.stores import files, persistence
from ntkpipe.storage.stores.fsspec_store import FsspecRunStore
from ntkpipe.storage.stores.local import LocalRunStore
from ntkpipe.storage.stores.obstore_store import ObstoreRunStore
from ntkpipe.storage.stores.persistence import TRIES, persist, settled
from ntkpipe.storage.stores.registry import open_store
from ntkpipe.storage.stores.single_writer import SingleWriterStore
from ntkpipe.storage.stores.writable import open_for_writing


@pytest.fixture(params=["local", "local with fsync", "memory"])
def sibling(request, tmp_path):
    def make():
        name = uuid.uuid4().hex
        if request.param == "memory":
            return open_store(f"memory://{name}/run")
        return open_store(tmp_path / name / "run", fsync=request.param == "local with fsync")

    return make


@pytest.fixture
def store(sibling):
    return sibling()


@pytest.fixture
def racers():
    return 8


def test_of_many_racing_processes_exactly_one_creates(tmp_path):
    winners = race_of_processes(tmp_path, rounds=50, racers=3)
    assert all(len(won) == 1 for won in winners)
    store = open_store(tmp_path)
    assert [store.get(f"epoch/{attempt}") for attempt in range(50)] == [str(won[0]).encode() * 1000 for won in winners]


def test_a_lost_connection_is_told_by_the_error_of_the_request_alone(caplog):
    FsspecRunStore("s3", "bucket/run")
    get_loop().call_exception_handler({"message": "never retrieved", "exception": ConnectionResetError("closing")})
    assert not caplog.records
    get_loop().call_exception_handler({"message": "never retrieved", "exception": ValueError("a defect")})
    assert "never retrieved" in caplog.text


def test_local_files_being_written_are_not_listed_and_not_left_behind(tmp_path):
    store = LocalRunStore(tmp_path)
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "a.123.partial").write_bytes(b"half")
    store.put_new("r/a", b"")
    store.put_new("r/a", b"")
    assert store.names("r") == ["r/a"]
    assert sorted(os.listdir(tmp_path / "r")) == ["a", "a.123.partial"]
    assert store.debris() == {"r/a.123.partial": 4}
    store.delete("r/a.123.partial")
    assert store.debris() == {}


def test_a_link_that_a_network_file_system_reports_twice_counts_as_won(tmp_path, monkeypatch):
    link = os.link

    def answered_too_late(source, target):
        link(source, target)
        raise FileExistsError

    store = LocalRunStore(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "link", answered_too_late)
        assert store.put_new("a", b"1")
    assert not store.put_new("a", b"1")


def test_local_copies_share_their_bytes_and_not_their_future(tmp_path):
    first, second = LocalRunStore(tmp_path / "1"), LocalRunStore(tmp_path / "2")
    first.put("a", b"1")
    second.copy(first, "a", "b")
    assert os.path.samefile(tmp_path / "1/a", tmp_path / "2/b")
    second.put("b", b"2")
    assert first.get("a") == b"1"


def test_local_copies_work_where_links_do_not(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError

    first, second = LocalRunStore(tmp_path / "1"), LocalRunStore(tmp_path / "2")
    first.put("a", b"1")
    monkeypatch.setattr(files.os, "link", refused)
    second.copy(first, "a", "b")
    assert second.get("b") == b"1"
    assert not os.path.samefile(tmp_path / "1/a", tmp_path / "2/b")
    assert second.debris() == {}


# What a local disk keeps.


@pytest.fixture
def synced(monkeypatch):
    """Names of what was made to stay, in order, with the bytes that a file had then."""
    calls, fsync = [], os.fsync

    def recording(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        calls.append((path.name, path.stat().st_size if path.is_file() else None))
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", recording)
    return calls


@pytest.mark.parametrize("method", ["put", "put_new"])
def test_with_fsync_content_is_kept_before_its_name(method, synced, tmp_path):
    store = open_store(tmp_path / "run", fsync=True)
    getattr(store, method)("a/b", b"123")
    assert [name for name, size in synced if size is None][-3:] == [tmp_path.name, "run", "a"]
    (position,) = [index for index, (name, size) in enumerate(synced) if size is not None]
    assert synced[position][0].startswith("b.")
    assert synced[position][1] == 3
    assert synced[position + 1 :] == [("a", None)]
    synced.clear()
    getattr(store, method)("a/c", b"4")
    assert [name.partition(".")[0] for name, _ in synced] == ["c", "a"]


def test_with_fsync_copies_keep_their_names_and_what_others_have_not_kept(synced, tmp_path):
    store, other = open_store(tmp_path / "run", fsync=True), open_store(tmp_path / "other")
    store.put("a", b"1")
    other.put("a", b"123")
    synced.clear()
    store.copy(other, "a", "b/c")
    assert [(name.partition(".")[0], size) for name, size in synced] == [("run", None), ("c", 3), ("b", None)]


def test_without_fsync_nothing_waits_for_the_disk(synced, tmp_path):
    store = open_store(tmp_path / "run")
    store.put("a", b"1")
    store.put_new("b", b"1")
    assert synced == []


# Symbolic links.


@pytest.fixture
def linked(tmp_path):
    """A run with links out of it, and the folder that they lead to."""
    outside, run = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    run.mkdir()
    (outside / "secret").write_text("secret")
    (run / "folder").symlink_to(outside)
    (run / "file").symlink_to(outside / "secret")
    (run / "deep").mkdir()
    (run / "deep" / "up").symlink_to("../..")
    (run / "nowhere").symlink_to(tmp_path / "missing")
    return LocalRunStore(run), outside


@pytest.mark.parametrize("key", ["folder/secret", "folder/new", "file", "deep/up/outside/secret", "nowhere"])
def test_links_out_of_a_run_are_neither_read_nor_written(linked, key):
    store, outside = linked
    store.put("mine", b"1")
    for call in (
        lambda: store.get(key),
        lambda: store.get_writable(key),
        lambda: store.exists(key),
        lambda: store.modified(key),
        lambda: store.put(key, b"x"),
        lambda: store.put_new(key, b"x"),
        lambda: store.delete(key),
        lambda: store.copy(store, key, "copy"),
        lambda: store.copy(store, "mine", key),
        lambda: store.sizes(key),
    ):
        with pytest.raises(StorageError, match="symbolic link to something outside the run"):
            call()
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_text() == "secret"
    assert not (outside.parent / "missing").exists()
    assert not (store.root / "copy").exists()


def test_links_inside_a_run_and_links_to_a_run_are_followed(tmp_path):
    store = LocalRunStore(tmp_path / "run")
    store.put("a/b", b"1")
    (tmp_path / "run" / "c").symlink_to("a")
    (tmp_path / "link").symlink_to("run")
    assert store.get("c/b") == b"1"
    assert LocalRunStore(tmp_path / "link").get("a/b") == LocalRunStore(tmp_path / "link").get("c/b") == b"1"


# URLs.


def test_urls_map_to_stores(tmp_path):
    assert isinstance(open_store(f"file://{tmp_path}"), LocalRunStore)
    assert open_store(f"file://{tmp_path}").url == open_store(f"file://localhost{tmp_path}").url == str(tmp_path)
    memory = open_store("memory://a/b/")
    assert isinstance(memory, FsspecRunStore)
    assert memory.url == "memory://a/b"
    assert not memory.shared
    assert open_store(tmp_path).shared


@pytest.mark.parametrize(
    ("url", "kind"),
    [("s3://b/r", FsspecRunStore), ("s3+obstore://b/r/", ObstoreRunStore), ("gs+obstore://b", ObstoreRunStore)],
)
def test_urls_of_services_map_to_clients_without_a_request(url, kind, monkeypatch):
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    store = open_store(url)
    assert isinstance(store, kind)
    assert store.url == url.rstrip("/")
    assert store.shared


def test_obstore_speaks_plain_http_on_this_machine_and_elsewhere_only_if_allowed(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert open_store("s3+obstore://b/r")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.example")
    with pytest.raises(ConfigError, match=r"begins with http://.*AWS_ALLOW_HTTP=true"):
        open_store("s3+obstore://b/r")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    assert open_store("s3+obstore://b/r")


def test_a_leading_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_store("~/runs/1").url == f"{tmp_path}/runs/1"
    assert open_store("./~/runs").url == "~/runs"
    with pytest.raises(ConfigError, match=r"Write \./~nobody-of-that-name/x for a folder"):
        open_store("~nobody-of-that-name/x")


@pytest.mark.parametrize("path", ["a b/run", "a%20b", "a#b?c", "ü", "../here"])
def test_local_paths_are_taken_as_they_are(path, tmp_path, monkeypatch):
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    open_store(path).put("a", b"1")
    assert Path(path, "a").read_bytes() == b"1"
    if "#" not in path and ".." not in path:
        assert open_store(f"file://{tmp_path}/below/{path}").get("a") == b"1"


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("", "is empty"),
        ("http://x/y", "unknown URL scheme 'http'"),
        ("S3://x/y", "unknown URL scheme 'S3'; did you mean 's3'"),
        ("://x", "does not begin with a scheme"),
        ("s3://", "names no folder or bucket"),
        ("s3:///", "names no folder or bucket"),
        ("s3:/bucket/run", r"looks like a URL but is not one; expected s3://"),
        ("s3://bucket//run", "has the part ''"),
        ("s3://bucket/../other", r"has the part '\.\.'"),
        ("s3://./run", r"has the part '\.'"),
        ("memory://a\\b", "has a backslash"),
        ("gs://a\0b", "control characters"),
        ("s3://bucket/run::file:///etc", "chains file systems"),
        ("simplecache::s3://bucket/run", "does not begin with a scheme"),
        ("a\0b", "has a NUL character"),
        ("file://relative/run", "holds an absolute path"),
        ("file://host.example/run", "holds an absolute path"),
        ("file:///", "names no folder"),
    ],
)
def test_urls_that_cannot_hold_a_run_are_refused(url, match):
    with pytest.raises(ConfigError, match=match):
        open_store(url)


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAEXAMPLE:hunter2@bucket/run",
        "s3://hunter2@bucket/run",
        "s3://AKIAEXAMPLE:hunter2/with/slashes@bucket/run",
        "https://user:hunter2@host/run",
        "s3+obstore://a:hunter2@bucket/run",
        "gs://bucket/run?token=hunter2",
        "s3://bucket/run?X-Amz-Signature=hunter2&x=1",
        "s3://bucket/run#hunter2",
        "file:///run?hunter2",
        "file://user:hunter2@host/run",
    ],
)
def test_urls_with_credentials_are_refused_without_repeating_them(url):
    with pytest.raises(ConfigError, match="come from the environment") as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.fixture
def unwritable(tmp_path):
    """A folder in which this process may not write; root, who may write everywhere, gives its rights up for a while."""
    tmp_path.chmod(0o500)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield tmp_path
    os.seteuid(user)
    tmp_path.chmod(0o700)


def test_a_folder_without_permission_is_named(unwritable):
    with pytest.raises(StorageError, match="permission denied"):
        open_store(unwritable / "run").put("a", b"")
    with pytest.raises(StorageError, match="permission denied"):
        open_for_writing(unwritable / "run", StoreConfig())


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(StorageError, match="a part of the path is a file"):
        open_store(tmp_path / "run").put("a/b", b"")


def test_a_folder_in_the_way_is_named(tmp_path):
    (tmp_path / "run/a/b").mkdir(parents=True)
    with pytest.raises(StorageError, match=f"{tmp_path}/run/a/b is a folder, .* Remove it"):
        open_store(tmp_path / "run").put("a/b", b"")


# Conditions, and trying again.


def test_a_single_writer_looks_before_it_writes(tmp_path):
    inner = LocalRunStore(tmp_path)
    store = SingleWriterStore(inner)
    assert store.put_new("a", b"1")
    assert not store.put_new("a", b"2")
    assert inner.get("a") == store.get("a") == b"1"
    assert (store.url, store.shared, store.names(""), store.folders()) == (str(tmp_path), True, ["a"], [])


def test_what_may_pass_is_tried_again_and_what_cannot_is_not(monkeypatch):
    monkeypatch.setattr(persistence, "FIRST_PAUSE_SECONDS", 1e-4)
    tries = []

    def operation(error, passes_after):
        tries.append(time.monotonic())
        if len(tries) <= passes_after:
            raise error
        return len(tries)

    assert persist(lambda: operation(ConnectionResetError(), 2)) == 3
    for final in (PermissionError(), FileNotFoundError(), ConfigError(""), OSError(22, "PreconditionFailed")):
        tries.clear()
        with pytest.raises(type(final)):
            persist(lambda final=final: operation(final, 9))
        assert len(tries) == 1
    tries.clear()
    with pytest.raises(TimeoutError):
        persist(lambda: operation(TimeoutError(), 99))
    assert len(tries) == TRIES
    tries.clear()
    monkeypatch.setattr(persistence, "PATIENCE_SECONDS", 0)
    with pytest.raises(TimeoutError):
        persist(lambda: operation(TimeoutError(), 99))
    assert len(tries) == 1


def test_an_object_that_exists_and_does_not_is_tried_again(monkeypatch):
    monkeypatch.setattr(persistence, "FIRST_PAUSE_SECONDS", 1e-4)
    found = iter([None, None, b"mine"])
    assert persist(lambda: settled(next(found), b"mine"))
    assert not settled(b"theirs", b"mine")


def test_messages_of_clients_are_cut_to_their_first_line(tmp_path):
    from ntkpipe.storage.stores.errors import storage_errors

    with pytest.raises(StorageError) as caught, storage_errors("s3://b/r"):
        raise RuntimeError("the first line.\nDebug source: everything\n" + json.dumps({"a": 1}))
    assert "RuntimeError: the first line)" in caught.value.message
    assert "Debug" not in caught.value.message
    assert "ntkpipe resume" in caught.value.message


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("Error performing PUT http://169.254.169.254/latest/api/token: error", "no credentials in the environment"),
        (
            "Error performing GET http://127.0.0.1:1/b?list-type=2 - code: 404 Not Found: <?xml",
            "Create the bucket first",
        ),
    ],
)
def test_errors_that_clients_do_not_tell_apart_are_told_apart(text, advice):
    from ntkpipe.storage.stores.errors import storage_errors

    with pytest.raises(StorageError, match=advice), storage_errors("s3+obstore://b/r"):
        raise RuntimeError(text)
