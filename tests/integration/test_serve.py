"""A real `ntkpipe serve`: its start, its end, slow clients, and several of them side by side."""

import io
import json
import os
import signal
import socket
import ssl
import time
from contextlib import suppress

import golden
import httpx
import numpy as np
import pictured
import pytest
import trustme
from commands import ntkpipe_command
from processes import wait_for
from serving import serving

import ntkpipe
from ntkpipe.configs.errors import StorageError

pytestmark = pytest.mark.slow

TOKEN = "correct-horse-battery-staple"
ENTRIES = "/v1/runs/one/kernels/pntk"
SECONDS = 60.0
"""What a busy machine gets for an answer, and a service for its end."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    solve = [{"kind": "cholesky", "name": "krr", "kernel": "pntk", "ridge": 1.0}]
    ntkpipe.run(golden.config(kernels=[{"kind": "pntk"}, {"kind": "ck"}], solve=solve), folder / "one")
    return folder


@pytest.fixture(scope="module")
def service(root):
    with serving(root, "--threads", 4) as found:
        yield found


@pytest.fixture(scope="module")
def impatient(root):
    """A service that gives its clients a second for whatever they do."""
    with serving(root, "--read-seconds", 1, "--write-seconds", 1) as found:
        yield found


@pytest.fixture(scope="module")
def client():
    """Asks on a new connection every time: a service may be closing an idle one as the next question is sent."""
    with httpx.Client(timeout=SECONDS, limits=httpx.Limits(max_keepalive_connections=0)) as found:
        yield found


def connect(service):
    return socket.create_connection(("127.0.0.1", service.port), timeout=SECONDS)


def received(connection):
    """Return all that comes until the other side closes."""
    parts = []
    while True:
        try:
            part = connection.recv(1 << 16)
        except ConnectionResetError:
            return b"".join(parts)
        if not part:
            return b"".join(parts)
        parts.append(part)


def lines(service):
    return [json.loads(line) for line in service.log.read_text().splitlines() if line.startswith("{")]


def test_two_processes_give_the_same_bytes_and_etags_and_write_nothing(root, service, client):
    def state():
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in root.rglob("*")}

    before = state()
    paths = [
        "/v1/runs/one",
        f"{ENTRIES}?format=npy",
        f"{ENTRIES}?format=arrow&transforms=cosine,centred",
        f"{ENTRIES}/neighbors?rows=:",
        "/v1/runs/one/solutions/krr/predictions?split=test",
        "/v1/runs/one/splits/train/ids",
    ]
    with serving(root, token=TOKEN) as other:
        own = {"authorization": f"Bearer {TOKEN}"}
        for path in paths:
            first, second = client.get(service.url + path), client.get(other.url + path, headers=own)
            assert first.status_code == second.status_code == 200, first.text
            assert (first.content, first.headers["etag"]) == (second.content, second.headers["etag"])
            known = own | {"if-none-match": first.headers["etag"]}
            assert client.get(other.url + path, headers=known).status_code == 304
        assert client.get(other.url + paths[0]).status_code == 401
        assert client.get(service.url + "/v1/runs/one/status").json()["state"] == "finished"
        assert TOKEN not in other.log.read_text()
    assert state() == before


def refuses(service):
    """Whether it takes no more connections."""
    try:
        connect(service).close()
    except ConnectionRefusedError:
        return True
    return False


def wait_for_requests(service, client, number):
    """Wait until so many are under way beside the one that asks."""
    said = f"ntkpipe_requests_in_flight {number + 1}.0"
    wait_for(lambda: said in client.get(f"{service.url}/metrics").text)


def test_a_request_under_way_is_finished_before_the_service_ends(root, client):
    body = json.dumps({"rows": [0], "format": "json"}).encode()
    patience = ("--read-seconds", 3600, "--drain-seconds", 3600)
    with serving(root, *patience) as service, connect(service) as connection, connect(service) as idle:
        head = f"POST {ENTRIES} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body[:5])
        wait_for_requests(service, client, 1)
        service.process.send_signal(signal.SIGTERM)
        wait_for(lambda: refuses(service))
        assert service.process.poll() is None
        assert received(idle) == b""
        connection.sendall(body[5:])
        answer = received(connection)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["values"] == [golden.PNTK[0]]
        assert service.process.wait(SECONDS) == 0


def test_requests_that_do_not_end_are_given_up_when_the_service_is_to_end(root, client):
    with serving(root, "--read-seconds", 3600, "--drain-seconds", 0.5) as service, connect(service) as connection:
        connection.sendall(f"POST {ENTRIES} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 10\r\n\r\n".encode())
        wait_for_requests(service, client, 1)
        assert service.end(signal.SIGINT, SECONDS) == 0


def test_a_data_set_that_is_being_loaded_does_not_keep_the_service_from_ending(tmp_path, client, monkeypatch):
    data = {"splits": {"train": {"kind": "python", "target": "pictured:load_and_tell"}}}
    pictured.make_run(tmp_path / "code", data)
    monkeypatch.setenv(pictured.LOADING_SECONDS, "3600")
    with serving(tmp_path, "--trust-code", "--drain-seconds", 1) as service:
        told = client.get(f"{service.url}/v1/runs/code/splits/train/samples/0")
        assert told.json()["shown_as"] == "loading", told.text
        assert service.end(seconds=SECONDS) == 0


def test_a_service_that_cannot_start_says_why_and_ends_with_2(root, service, tmp_path):
    refused = {
        ("--host", "0.0.0.0"): "--token-file",
        ("--port", service.port): "--port 0",
        ("--host", "192.0.2.7", "--token-file", tmp_path / "token"): "cannot listen",
        ("--max-cells", 0): "expected at least",
        ("--picture-read-bytes", 0): "picture-read-bytes is 0",
    }
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    for options, text in refused.items():
        found = ntkpipe_command("serve", root, *options)
        assert found.returncode == 2, found.stderr
        assert text in found.stderr
        assert "Traceback" not in found.stderr
        assert TOKEN not in found.stderr


def is_cut_off(connection, part):
    """Send something; return whether the other side takes no more."""
    try:
        connection.sendall(part)
    except ConnectionError:
        return True
    return False


def test_a_client_that_sends_a_byte_at_a_time_is_cut_off(impatient):
    with connect(impatient) as slow, connect(impatient) as silent:
        parts = iter([b"GET ", b"/v1/runs ", b"HTTP/1.1\r\n", *[b"x"] * 500])
        while not is_cut_off(slow, next(parts)):
            time.sleep(0.2)
        assert received(silent) == b""
    with connect(impatient) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\n")
        assert received(slow).startswith(b"HTTP/1.1 408")
    with connect(impatient) as slow:
        slow.sendall(f"POST {ENTRIES} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 10\r\n\r\n1".encode())
        answer = received(slow)
        assert answer.startswith(b"HTTP/1.1 408")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["kind"] == "too-slow"


def test_a_client_that_takes_nothing_is_cut_off_and_its_answer_forgotten(service, impatient, client):
    body = json.dumps({"rows": [0] * 4000, "cols": [0] * 4000, "format": "npy"}).encode()
    with connect(impatient) as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = f"POST {ENTRIES} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        lazy.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        wait_for(lambda: any(line.get("cut") for line in lines(impatient)))
        assert "ntkpipe_answer_bytes 0.0" in client.get(f"{impatient.url}/metrics").text
    # A client that takes it gets it, from a service that gives a busy machine more than a second for each piece.
    answer = client.post(service.url + ENTRIES, content=body, headers={"content-type": "application/json"})
    assert np.load(io.BytesIO(answer.content)).shape == (4000, 4000)


UPGRADE = b"GET ws://127.0.0.1/ HTTP/1.1\r\nhost: 127.0.0.1\r\nupgrade: websocket\r\nconnection: upgrade, close\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nx: " + b"a" * 600_000, (b"431", b"")),
        (b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nx: " + b"a" * 50_000 + b"\r\n\r\n", (b"431",)),
        (b"\x16\x03\x01\x00\xa5\x01\x00\x00", (b"400",)),
        (b"NONSENSE\r\n\r\n", (b"400",)),
        (b"GET /v1/runs HTTP/1.1\r\nconnection: close\r\n\r\n", (b"421",)),
        (
            b"GET /v1/runs HTTP/1.1\r\nhost: a\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n",
            (b"421", b"400"),
        ),
        (
            b"POST / HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            (b"400",),
        ),
        (b"POST /v1/runs HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 99999999999\r\n\r\n", (b"413",)),
        (b"GET /../../etc/passwd HTTP/1.0\r\nhost: 127.0.0.1\r\n\r\n", (b"404",)),
        (b"GET /static/../../settings.py HTTP/1.0\r\nhost: 127.0.0.1\r\n\r\n", (b"404",)),
        (b"GET /static//etc/passwd HTTP/1.0\r\nhost: 127.0.0.1\r\n\r\n", (b"404",)),
        (b"TRACE / HTTP/1.0\r\nhost: 127.0.0.1\r\n\r\n", (b"405",)),
        (UPGRADE, None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_not_proper_http_does_no_harm(impatient, client, sent, status):
    with connect(impatient) as connection:
        with suppress(OSError):
            connection.sendall(sent)
        answer = received(connection)
    if status is not None:
        assert any(answer.startswith(b"HTTP/1.1 " + code) for code in status if code) or (b"" in status and not answer)
    assert b"root:" not in answer
    assert b"ServerSettings" not in answer
    assert client.get(f"{impatient.url}/healthz").status_code == 200


def test_many_clients_at_once_get_right_answers_and_no_errors(service):
    import concurrent.futures

    def ask(number):
        with httpx.Client(base_url=service.url, timeout=SECONDS) as own:
            row = number % 4
            answers = [own.get(f"{ENTRIES}?rows={row}&format=npy") for _ in range(10)]
        return all(answer.status_code == 200 for answer in answers) and all(
            np.load(io.BytesIO(answer.content)).tolist() == [golden.PNTK[row]] for answer in answers
        )

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        assert all(pool.map(ask, range(64)))


def test_connections_are_encrypted_with_a_certificate_that_clients_must_trust(root, tmp_path, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    authority = trustme.CA()
    issued, (cert, key, trusted) = (
        authority.issue_cert("127.0.0.1"),
        (tmp_path / name for name in ("cert", "key", "ca")),
    )
    for file, blobs in (
        (cert, issued.cert_chain_pems),
        (key, [issued.private_key_pem]),
        (trusted, [authority.cert_pem]),
    ):
        file.write_bytes(b"".join(blob.bytes() for blob in blobs))
        file.chmod(0o600)
    with serving(root, "--tls-cert", cert, "--tls-key", key, token=TOKEN) as service:
        assert service.url.startswith("https://127.0.0.1:")
        with pytest.raises(StorageError, match=r"not trusted here.*SSL_CERT_FILE"):
            ntkpipe.connect(f"{service.url}/v1/runs/one", TOKEN)
        plain = connect(service)
        plain.sendall(b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        assert b"HTTP/1.1 200" not in received(plain)
        plain.close()
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        run = ntkpipe.connect(f"{service.url}/v1/runs/one", TOKEN)
        assert np.array_equal(run.kernel("pntk")[:, :], ntkpipe.open_run(root / "one").kernel("pntk")[:, :])
        monkeypatch.setenv("NTKPIPE_TOKEN", TOKEN)
        found = ntkpipe_command("query", f"{service.url}/v1/runs/one", "labels")
        assert (found.returncode, found.stderr) == (0, "")
        # Who has got an answer, and does not close the connection, does not hold up the end.
        body = b'{"format": "npy"}'
        head = (
            f"POST {ENTRIES} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {TOKEN}\r\ncontent-type: application/json\r\n"
        )
        secured = ssl.create_default_context(cafile=str(trusted)).wrap_socket(
            connect(service), server_hostname="127.0.0.1"
        )
        with secured:
            secured.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode())
            with httpx.Client(
                verify=httpx.create_ssl_context(), headers={"authorization": f"Bearer {TOKEN}"}
            ) as client:
                wait_for_requests(service, client, 1)
            service.process.send_signal(signal.SIGTERM)
            wait_for(lambda: refuses(service))
            secured.sendall(body)
            assert secured.recv(1 << 16).startswith(b"HTTP/1.1 200")
            assert service.process.wait(20) == 0


def test_the_explorer_is_served_and_the_address_is_printed(service, client):
    page = client.get(service.url)
    assert page.headers["content-type"].startswith("text/html")
    assert "<title>ntkpipe" in page.text
    assert os.path.basename(service.url).startswith("127.0.0.1:")
