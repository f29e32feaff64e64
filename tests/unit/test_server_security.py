"""Who may ask a service and what it takes: tokens, hosts, origins, names of runs, limits."""

import asyncio
import json
import logging
import shutil
import socket
import threading
from pathlib import Path

import golden
import httpx
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from serving import ask

import ntkpipe
from ntkpipe.configs.errors import ConfigError, NotFoundError, StorageError
from ntkpipe.pipeline.server.app import create_app
from ntkpipe.pipeline.server.serving import listening, url_of
from ntkpipe.pipeline.server.settings import ServerSettings, read_token
from ntkpipe.storage.stores.registry import open_store

TOKEN = "correct-horse-battery-staple"
KERNELS = [{"kind": "pntk"}]
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    ntkpipe.run(golden.config(kernels=KERNELS, solve=[]), folder / "inside" / "one")
    ntkpipe.run(golden.config(kernels=KERNELS, solve=[]), folder / "outside")
    return folder / "inside"


def make(root, **settings):
    return create_app(ServerSettings(root=str(root), access_log=False, **settings))


def bearer(token):
    return {"authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("wrong-horse-battery-staple"),
        bearer(TOKEN[:-1]),
        bearer(TOKEN + "x"),
        bearer(""),
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": TOKEN},
        {"x-token": TOKEN},
        {"cookie": f"token={TOKEN}"},
    ],
    ids=str,
)
def test_without_the_token_nothing_that_is_stored_is_told(root, headers):
    app = make(root, token=TOKEN)
    for path in ("/v1/runs", "/v1/runs/one", "/metrics", "/v1/openapi.json", "/v1/nothing"):
        answer = ask(app, path, headers=headers)
        assert (answer.status_code, answer.json()["kind"]) == (401, "unauthorized"), path
        assert answer.headers["www-authenticate"].startswith("Bearer")
    assert ask(app, "/healthz", headers=headers).status_code == 200
    assert ask(app, "/v1/runs", params={"token": TOKEN}).status_code in (401, 422)


def test_the_token_opens_the_service_and_two_of_them_do_not(root):
    app = make(root, token=TOKEN)
    assert ask(app, "/v1/runs", headers=bearer(TOKEN)).status_code == 200
    assert ask(app, "/v1/runs", headers={"authorization": f"bearer  {TOKEN} "}).status_code == 200
    twice = [("authorization", f"Bearer {TOKEN}"), ("authorization", "Bearer x")]
    assert ask(app, "/v1/runs", headers=twice).status_code == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_a_host_beyond_loopback_needs_a_token(root, host):
    with pytest.raises(ConfigError, match="--token-file"):
        ServerSettings(root=str(root), host=host)
    assert ServerSettings(root=str(root), host=host, token=TOKEN).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.9.1"])
def test_loopback_needs_none(root, host):
    assert not ServerSettings(root=str(root), host=host).token


@pytest.mark.parametrize(
    "token", ["short", "with spaces in it, long", "ünïcödé-ünïcödé-ünïcödé", "tab\ttab\ttab\ttab\ttab"]
)
def test_a_token_that_can_be_guessed_or_not_be_sent_is_refused_without_repeating_it(root, token):
    with pytest.raises(ConfigError, match="at least 16") as refused:
        ServerSettings(root=str(root), token=token)
    assert token not in str(refused.value)


def test_a_token_file_is_the_users_own(tmp_path, monkeypatch):
    monkeypatch.setenv("NTKPIPE_TOKEN", "from-the-environment-of-a-user")
    assert read_token(None) == "from-the-environment-of-a-user"
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_token(file)
    for mode in (0o600, 0o640, 0o400):
        file.chmod(mode)
        assert read_token(file) == TOKEN
    file.chmod(0o600)
    file.write_text("")
    with pytest.raises(ConfigError, match="at least 16"):
        read_token(file)
    file.write_bytes(b"\xff\xfe" * 20)
    with pytest.raises(ConfigError, match="no text"):
        read_token(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(tmp_path / "nothing")
    monkeypatch.delenv("NTKPIPE_TOKEN")
    assert read_token(None) == ""


def test_a_certificate_that_nothing_can_be_encrypted_with_is_refused_before_anything_listens(root, tmp_path):
    found, other = (trustme.CA().issue_cert("127.0.0.1") for _ in range(2))
    names = cert, key, another, locked = [
        str(tmp_path / name) for name in ("cert.pem", "key.pem", "other.pem", "locked.pem")
    ]
    found.cert_chain_pems[0].write_to_path(cert)
    found.private_key_pem.write_to_path(key)
    other.private_key_pem.write_to_path(another)
    private = load_pem_private_key(found.private_key_pem.bytes(), None)
    password = BestAvailableEncryption(b"a-password")
    Path(locked).write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, password))
    for name in names:
        Path(name).chmod(0o600)
    assert ServerSettings(root=str(root), tls_cert=cert, tls_key=key).tls_cert
    for files, reason in (
        ((cert, ""), "give --tls-key FILE, too"),
        (("", key), "give --tls-cert FILE, too"),
        ((cert, str(tmp_path / "nothing")), "nothing cannot be read"),
        ((cert, str(tmp_path)), "cannot be read: Is a directory"),
        ((cert, another), "the key that belongs to it"),
        ((key, key), "Expected a certificate in PEM"),
        ((cert, locked), "without a password"),
    ):
        with pytest.raises(ConfigError, match=reason):
            ServerSettings(root=str(root), tls_cert=files[0], tls_key=files[1])
    Path(key).chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        ServerSettings(root=str(root), tls_cert=cert, tls_key=key)


def test_a_page_that_leads_here_under_another_name_reads_nothing(root):
    app = make(root)
    for host in ("evil.example", "evil.example:8765", "127.0.0.1.evil.example", "", "10.0.0.1:8765"):
        answer = ask(app, "/v1/runs", headers={"host": host})
        assert (answer.status_code, answer.json()["kind"]) == (421, "forbidden"), host
    for host in ("127.0.0.1:1", "localhost", "LOCALHOST:8765", "[::1]:8765"):
        assert ask(app, "/v1/runs", headers={"host": host}).status_code == 200, host
    named = make(root, allowed_hosts=("ntk.example",))
    assert ask(named, "/v1/runs", headers={"host": "ntk.example"}).status_code == 200
    # With a token such a page learns nothing, and balancers ask under names of their own.
    secured = make(root, token=TOKEN)
    assert ask(secured, "/v1/runs", headers=bearer(TOKEN) | {"host": "balanced.example"}).status_code == 200
    assert ask(secured, "/healthz", headers={"host": "10.1.2.3:8765"}).status_code == 200


def test_pages_of_other_sites_are_not_heard_and_no_answer_allows_them_to_be(root):
    app = make(root)
    foreign = ({"origin": "https://evil.example"}, {"origin": "null"}, {"origin": "http://127.0.0.1:9999"})
    for headers in (*foreign, {"sec-fetch-site": "cross-site"}, {"origin": "http://[bad"}):
        answer = ask(app, "/v1/runs", headers=headers)
        assert (answer.status_code, answer.json()["kind"]) == (403, "forbidden"), headers
    own = {"origin": "http://127.0.0.1:8765", "sec-fetch-site": "same-origin"}
    assert ask(app, "/v1/runs", headers=own).status_code == 200
    for answer in (
        ask(app, "/v1/runs", headers=own),
        ask(app, "/v1/runs", "OPTIONS", headers=own | {"access-control-request-method": "GET"}),
        ask(app, "/v1/runs", headers=foreign[0]),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", ["/", "/healthz", "/v1/runs", "/v1/runs/one", "/v1/nothing", "/static/nothing.js"])
def test_every_answer_tells_browsers_to_keep_to_themselves(root, path):
    headers = ask(make(root), path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["cache-control"]
    assert "server" not in headers


OUTSIDE = [
    "../outside",
    "%2e%2e/outside",
    "..%2foutside",
    "..%2Foutside",
    "%2e%2e%2foutside",
    "..%5coutside",
    "%2fetc",
    "%2Ftmp%2Fanything",
    "..",
    "%2e%2e",
    ".",
    "%2e",
    "",
    "%00",
    "one%00",
    "one%2f..%2f..%2foutside",
    "one/../../outside",
    "%252e%252e%252foutside",
    "s3:%2f%2fbucket%2frun",
    "file:%2f%2f%2fetc",
    "~root",
    "%c0%ae%c0%ae%c0%afoutside",
    "one%0d%0aset-cookie:%20a=b",
    "x" * 5000,
]


@pytest.mark.parametrize("name", OUTSIDE, ids=lambda name: name[:40] or "empty")
def test_no_name_leads_out_of_the_root(root, name):
    app = make(root)
    assert (root.parent / "outside" / "run.json").exists()
    for path in (f"/v1/runs/{name}", f"/v1/runs/{name}/status", f"/v1/runs/{name}/kernels/pntk"):

        async def asked(path=path):
            # As it is, without what a client makes of dots.
            scope = {"type": "http", "method": "GET", "http_version": "1.1", "query_string": b"", "headers": []}
            import urllib.parse

            scope |= {"raw_path": path.encode(), "path": urllib.parse.unquote(path), "scheme": "http", "root_path": ""}
            scope |= {"headers": [(b"host", b"127.0.0.1")], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8765)}
            sent = []

            async def receive():
                return {"type": "http.request", "body": b""}

            async def send(message):
                sent.append(message)

            await app(scope, receive, send)
            return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])

        status, body = asyncio.run(asked())
        assert status == 404, (path, body[:300])
        assert json.loads(body)["kind"] == "not-found"
        assert b"root:" not in body
        assert str(root.parent).encode() not in body


@pytest.mark.parametrize("path", ["%2e%2e/app.py", "..%2fapp.py", "../settings.py", "%2fetc%2fpasswd", "..%5capp.py"])
def test_no_static_file_is_outside_of_its_folder(root, path):
    assert ask(make(root), httpx.URL(f"http://127.0.0.1:8765/static/{path}")).status_code == 404


def test_names_and_contents_of_others_are_told_as_they_are_and_as_data_only(root, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_SECRET_TOKEN", "hunter2-hunter2-hunter2")
    shutil.copytree(root / "one", tmp_path / HOSTILE)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text("{")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text('{"name": "hunter2-hunter2-hunter2"}')
    (tmp_path / "no run").mkdir()
    app = make(tmp_path)
    listed = ask(app, "/v1/runs")
    found = {item["run"]: item for item in listed.json()["runs"]}
    assert set(found) == {HOSTILE, "damaged", "other"}
    assert found["damaged"]["state"] == "unreadable"
    assert found["damaged"]["problem"].startswith("damaged/run.json cannot be read")
    assert listed.headers["content-type"] == "application/json"
    assert "hunter2" not in listed.text
    assert ask(app, httpx.URL("http://127.0.0.1:8765/v1/runs/").join("damaged")).status_code == 503
    answer = ask(app, "/v1/runs/%3Cimg%20src=x%20onerror=alert(1)%3E/status")
    assert answer.json()["url"] == HOSTILE


def test_a_run_that_was_replaced_or_removed_is_noticed_at_once(root, tmp_path):
    shutil.copytree(root / "one", tmp_path / "one")
    app = make(tmp_path)
    first = ask(app, "/v1/runs/one")
    assert ask(app, "/v1/runs/one/kernels/pntk?rows=0").status_code == 200
    shutil.rmtree(tmp_path / "one")
    assert ask(app, "/v1/runs/one/kernels/pntk?rows=0").status_code == 404
    ntkpipe.run(golden.config(kernels=[{"kind": "ck"}], solve=[]), tmp_path / "one")
    assert ask(app, "/v1/runs/one/kernels/pntk?rows=0").status_code == 404
    assert ask(app, "/v1/runs/one/kernels/ck?rows=1").json()["values"] == [golden.CK[1]]
    assert ask(app, "/v1/runs/one").headers["etag"] != first.headers["etag"]


def test_runs_in_memory_and_other_stores_are_served_too(root):
    source, target = open_store(root / "one"), open_store("memory://served/here")
    for key in source.names(""):
        target.put(key, source.read(key))
    app = make("memory://served")
    assert [item["run"] for item in ask(app, "/v1/runs").json()["runs"]] == ["here"]
    assert ask(app, "/v1/runs/here/kernels/pntk?rows=1").json()["values"] == [golden.PNTK[1]]
    assert ask(app, "/v1/runs/other").status_code == 404
    app.service.runs.open("here")
    with pytest.raises(NotFoundError):
        app.service.runs.open("../served/here")


def test_looking_at_a_run_that_others_work_on_writes_nothing_not_even_to_read_the_clock(root, tmp_path):
    run = shutil.copytree(root / "one", tmp_path / "one")
    next((run / "receipts" / "kernel").rglob("*.json")).unlink()
    for file in (run / "lock").iterdir():
        document = json.loads(file.read_text()) | {"host": "another-machine", "released": False}
        file.write_text(json.dumps(document))

    def state():
        return {path: path.stat().st_mtime_ns for path in (run, *run.rglob("*"))}

    before, app = state(), make(tmp_path)
    found = ask(app, "/v1/runs/one/status").json()
    assert found["state"] == "running"
    assert 0 <= found["silent_seconds"] < 60
    assert ask(app, "/v1/runs").json()["runs"][0]["state"] == found["state"]
    assert state() == before
    store = app.service.open("one").store
    for write in (
        lambda: store.put("a", b""),
        lambda: store.put_new("a", b""),
        lambda: store.delete("run.json"),
        lambda: store.delete_many(["run.json"]),
        lambda: store.copy(store, "run.json", "a"),
    ):
        with pytest.raises(StorageError, match="only read"):
            write()
    assert state() == before


def test_folders_that_are_no_runs_take_no_room_on_a_page(root, tmp_path):
    for number in range(7):
        (tmp_path / f"folder-{number}").mkdir()
    shutil.copytree(root / "one", tmp_path / "folder-9")
    shutil.copytree(root / "one", tmp_path / "last")
    app = make(tmp_path)
    assert app.service.runs.page("", 1) == (["folder-9"], True)
    assert app.service.runs.page("folder-9", 1) == (["last"], False)
    assert app.service.runs.page("", 2) == (["folder-9", "last"], False)
    assert app.service.runs.page("last", 5) == ([], False)


def test_large_heads_and_contents_are_refused(root):
    app = make(root, max_head_bytes=2048, max_body_bytes=1024)
    assert ask(app, "/v1/runs", headers={"x": "a" * 3000}).status_code == 431
    assert ask(app, f"/v1/runs?after={'a' * 3000}").status_code == 431
    path = "/v1/runs/one/kernels/pntk"
    answer = ask(app, path, "POST", json={"rows": [0] * 1000})
    assert answer.status_code == 413
    assert answer.json()["limit"] == 1024

    async def unending():
        for _ in range(50):
            yield b" " * 100

    lying = ask(app, path, "POST", content=unending())
    assert lying.status_code == 413
    assert ask(app, path, "POST", json={"rows": [0]}).status_code == 200
    deep = ask(app, path, "POST", content=b"[" * 1000, headers={"content-type": "application/json"})
    assert deep.status_code == 422


def together(app, *paths):
    """Ask for several paths at once."""

    async def asked():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8765") as client:
            return await asyncio.gather(*map(client.get, paths))

    return asyncio.run(asked())


def test_more_requests_than_may_be_under_way_are_told_to_come_back(root, monkeypatch):
    app = make(root, max_requests=2)
    opening, open_run = threading.Event(), app.service.open

    def slow(name, request):
        opening.wait(10)
        return open_run(name, request)

    monkeypatch.setattr(app.service, "open", slow)
    timer = threading.Timer(0.5, opening.set)
    timer.start()
    answers = together(app, *["/v1/runs/one"] * 5, "/healthz")
    timer.join()
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 503, 503, 503]
    busy = next(answer for answer in answers if answer.status_code == 503)
    assert busy.json()["kind"] == "busy"
    assert busy.headers["retry-after"] == "1"
    assert app.service.admission.num_requests == 0
    assert ask(app, "/v1/runs/one").status_code == 200


def test_an_answer_that_takes_too_long_is_given_up_but_counts_until_its_thread_ends(root, monkeypatch):
    app = make(root, answer_seconds=0.2)
    ending, left, open_run = threading.Event(), threading.Event(), app.service.open

    def slow(name, request):
        ending.wait(10)
        left.set()
        return open_run(name, request)

    monkeypatch.setattr(app.service, "open", slow)

    async def asked():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8765") as client:
            answer = await client.get("/v1/runs/one")
            counted = app.service.admission.num_requests
            ending.set()
            while app.service.admission.num_requests:
                await asyncio.sleep(0.01)
            return answer, counted

    answer, counted = asyncio.run(asked())
    assert (answer.status_code, answer.json()["kind"], counted) == (503, "too-slow", 1)
    assert left.is_set()


def test_the_log_has_a_line_for_every_request_and_no_token(root, caplog):
    app = create_app(ServerSettings(root=str(root), token=TOKEN))
    with caplog.at_level(logging.INFO, "ntkpipe.access"):
        ask(app, "/v1/runs/one%0Aforged?after=secret-text", headers=bearer(TOKEN))
        ask(app, "/v1/runs", headers=bearer("wrong-horse-battery-staple"))
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "ntkpipe.access"]
    assert [line["status"] for line in lines] == [404, 401]
    assert all("\n" not in record.getMessage() for record in caplog.records)
    assert TOKEN not in caplog.text
    assert "secret-text" not in caplog.text


def test_an_address_that_cannot_be_had_is_an_error_that_says_what_to_do(root):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="--port 0"):
            listening(ServerSettings(root=str(root), port=taken.getsockname()[1]))
    with pytest.raises(ConfigError, match="expected 0 to 65535"):
        listening(ServerSettings(root=str(root), port=70000))
    settings = ServerSettings(root=str(root), port=0)
    with listening(settings) as listener:
        assert url_of(settings, listener).startswith("http://127.0.0.1:")


@pytest.mark.parametrize("setting", ["max_cells", "threads", "max_requests", "answer_seconds", "max_body_bytes"])
def test_settings_that_make_no_sense_are_refused(root, setting):
    with pytest.raises(ConfigError, match="expected at least"):
        ServerSettings(root=str(root), **{setting: 0})
