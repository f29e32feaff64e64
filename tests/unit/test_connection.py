"""What a client does with what it is told: tokens, redirections, retries, kept answers, and services that are none of ours."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import golden
import numpy as np
import pytest

import ntkpipe
from ntkpipe.configs.errors import (
    ChunkNotReadyError,
    ConfigError,
    CorruptChunkError,
    NotFoundError,
    NumericalError,
    StorageError,
    TooLargeError,
)
from ntkpipe.pipeline.client.address import RunAddress
from ntkpipe.pipeline.client.connection import ATTEMPTS, MAX_MESSAGE_LENGTH, Connection
from ntkpipe.pipeline.client.kept import KeptAnswer, KeptAnswers
from ntkpipe.pipeline.client.pieces import Pieces, TooLarge
from ntkpipe.storage.objects import npy_bytes

TOKEN = "a-token-of-the-tests"

OBJECTS = npy_bytes(np.zeros(2)).replace(b"'<f8'", b"'|O8'")
GIANT = npy_bytes(np.zeros(9)).replace(b"(9,), }         ", b"(99999999999,), }")[:-1]


class Server:
    """Answers over real sockets as a test says: each request gets the next answer, the last one again and again."""

    def __init__(self):
        self.requests, self.answers, seen = [], [], self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                seen.requests.append(
                    (self.command, self.path, {name.lower(): value for name, value in self.headers.items()}, body)
                )
                answer = seen.answers.pop(0) if len(seen.answers) > 1 else seen.answers[0]
                if answer is None:
                    self.close_connection = True
                    return
                status, headers, content = answer
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_GET

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def document(status=200, headers=None, **content):
    return status, {"content-type": "application/json", **(headers or {})}, json.dumps(content).encode()


def problem(status, kind, detail="because", headers=None, **more):
    return document(
        status, {"content-type": "application/problem+json", **(headers or {})}, kind=kind, detail=detail, **more
    )


@pytest.fixture
def server():
    made = Server()
    yield made
    made.close()


@pytest.fixture
def connection(server):
    made = Connection(RunAddress.parse(server.url), TOKEN, timeout_seconds=20, cache_bytes=1000)
    yield made
    made.close()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    run = ntkpipe.run(golden.config(kernels=[{"kind": "pntk"}], solve=[]), tmp_path_factory.mktemp("run") / "run")
    return run.manifest.model_dump(mode="json")


@pytest.mark.parametrize(
    ("url", "service", "run"),
    [
        ("http://127.0.0.1:8765/v1/runs/digits", "http://127.0.0.1:8765", "digits"),
        ("https://host/v1/runs/a%20run%2C%2050%25/", "https://host", "a run, 50%"),
        ("https://host/behind/a/proxy/v1/runs/x", "https://host/behind/a/proxy", "x"),
        ("http://[::1]:80/v1/runs/x", "http://[::1]:80", "x"),
        ("http://localhost:1", "http://localhost:1", ""),
        ("http://localhost:1/v1/runs/", "http://localhost:1", ""),
        ("http://localhost:1/v1", "http://localhost:1", ""),
    ],
)
def test_a_url_names_a_service_and_a_run(url, service, run):
    found = RunAddress.parse(url)
    assert (found.service, found.run) == (service, run)
    assert RunAddress.parse(found.url_of("a/b?#")).run == "a/b?#"


@pytest.mark.parametrize(
    "url",
    [
        "runs/digits",
        "s3://bucket/run",
        "http://",
        "http://host:99999/v1/runs/x",
        "http://u:secret-word@host/v1/runs/x",
        "http://host/v1/runs/x?token=secret-word",
        "http://host/v1/runs/x#secret",
        "http://[::1/v1/runs/x",
        "",
    ],
)
def test_what_is_no_url_of_a_run_is_refused_without_repeating_passwords(url):
    with pytest.raises(ConfigError) as caught:
        ntkpipe.connect(url)
    assert "secret-word" not in caught.value.message


@pytest.mark.parametrize(
    ("url", "private", "local"),
    [
        ("http://127.8.8.8/v1/runs/x", True, True),
        ("http://[::1]/v1/runs/x", True, True),
        ("http://localhost/v1/runs/x", True, True),
        ("https://10.0.0.1/v1/runs/x", True, False),
        ("http://10.0.0.1/v1/runs/x", False, False),
        ("http://localhost.example.com/v1/runs/x", False, False),
        ("http://127.0.0.1.example.com/v1/runs/x", False, False),
    ],
)
def test_only_loopback_and_encryption_are_private(url, private, local):
    found = RunAddress.parse(url)
    assert (found.is_private, found.is_local) == (private, local)
    if not private:
        with pytest.raises(ConfigError, match="without encryption"):
            ntkpipe.connect(url, TOKEN)


def test_the_token_comes_from_the_argument_or_the_environment_and_goes_in_a_header(server, manifest, monkeypatch):
    server.answers = [document(run="x", manifest=manifest)]
    monkeypatch.setenv("NTKPIPE_TOKEN", "one-of-the-environment")
    ntkpipe.connect(f"{server.url}/v1/runs/x")
    ntkpipe.connect(f"{server.url}/v1/runs/x", TOKEN)
    ntkpipe.connect(f"{server.url}/v1/runs/x", "")
    sent = [headers.get("authorization") for _, _, headers, _ in server.requests]
    assert sent == ["Bearer one-of-the-environment", f"Bearer {TOKEN}", None]
    assert not [path for _, path, _, _ in server.requests if "token" in path]
    with pytest.raises(ConfigError, match="printable"):
        ntkpipe.connect(f"{server.url}/v1/runs/x", "two\nlines")


def test_a_proxy_of_the_environment_never_sees_what_stays_on_this_machine(server, manifest, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    server.answers = [document(run="x", manifest=manifest)]
    assert ntkpipe.connect(f"{server.url}/v1/runs/x", TOKEN).manifest.name == "golden"


def test_a_redirection_is_not_followed(server, connection):
    other = Server()
    try:
        other.answers = [document(stolen=True)]
        server.answers = [(302, {"location": f"{other.url}/v1/runs/x"}, b"")]
        with pytest.raises(StorageError, match="redirection"):
            connection.document("/v1/runs/x")
        assert not other.requests
    finally:
        other.close()


def test_a_wrong_token_is_told_apart_from_a_missing_run(server):
    server.answers = [problem(401, "unauthorized")]
    with pytest.raises(ConfigError, match="NTKPIPE_TOKEN") as caught:
        ntkpipe.connect(f"{server.url}/v1/runs/x", TOKEN)
    assert TOKEN not in caught.value.message
    server.answers = [problem(404, "not-found", "there is no run 'x' here.")]
    with pytest.raises(NotFoundError, match="no run 'x'"):
        ntkpipe.connect(f"{server.url}/v1/runs/x", TOKEN)


def test_a_url_without_a_run_is_answered_with_those_there_are(server):
    server.answers = [document(runs=[{"run": "a b"}, {"run": "c"}], next=None)]
    with pytest.raises(ConfigError, match=r"It has a b, c\. Connect to http://127\.0\.0\.1:\d+/v1/runs/a%20b,"):
        ntkpipe.connect(server.url)
    server.answers = [document(runs=[], next=None)]
    with pytest.raises(ConfigError, match="has none"):
        ntkpipe.connect(f"{server.url}/v1/runs")
    server.answers = [problem(404, "not-found")]
    with pytest.raises(ConfigError, match="expected http"):
        ntkpipe.connect(f"{server.url}/some/page")


@pytest.mark.parametrize(
    ("kind", "status", "error"),
    [
        ("not-found", 404, NotFoundError),
        ("chunk-not-ready", 409, ChunkNotReadyError),
        ("config", 422, ConfigError),
        ("numerical", 422, NumericalError),
        ("corrupt-chunk", 500, CorruptChunkError),
        ("storage", 503, StorageError),
        ("error", 500, StorageError),
        ("of-a-later-version", 500, StorageError),
    ],
)
def test_errors_come_back_as_what_they_were(server, connection, kind, status, error):
    server.answers = [problem(status, kind, "what and why")]
    with pytest.raises(error, match="what and why") as caught:
        connection.document("/v1/runs")
    assert type(caught.value) is error
    assert len(server.requests) == 1


def test_numbers_and_names_of_errors_come_back(server, connection):
    server.answers = [problem(413, "too-large", limit=10, asked=25)]
    with pytest.raises(TooLargeError) as caught:
        connection.document("/v1/runs")
    assert (caught.value.limit, caught.value.asked) == (10, 25)
    assert connection.request("/v1/runs", {}, "*/*").ratio == 2.5
    server.answers = [problem(409, "chunk-not-ready", blocks=["a", "b"])]
    with pytest.raises(ChunkNotReadyError) as caught:
        connection.document("/v1/runs")
    assert caught.value.tasks == ("a", "b")


@pytest.mark.parametrize(
    "answer",
    [
        (200, {"content-type": "text/html"}, b"<html>"),
        (200, {}, b"[1, 2]"),
        (200, {}, b"\xff\xfe"),
        (502, {"content-type": "text/html"}, b"<html>"),
        (404, {}, b""),
        (500, {}, b'{"kind": 3, "detail": []}'),
        (500, {}, b"null"),
        (204, {}, b""),
    ],
)
def test_what_no_service_of_ours_answers_is_told(server, connection, answer):
    server.answers = [answer]
    with pytest.raises(StorageError, match=r"http://127\.0\.0\.1:\d+/v1/runs .*Is it a service of ntkpipe"):
        connection.document("/v1/runs")


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY", npy_bytes(np.zeros(9))[:-8], b"PK\x03\x04", b"\x80\x04}.", OBJECTS, GIANT]
)
def test_what_is_no_array_is_told_and_never_unpickled(server, manifest, content):
    server.answers = [document(run="x", manifest=manifest), (200, {}, content)]
    run = ntkpipe.connect(f"{server.url}/v1/runs/x")
    with pytest.raises(StorageError, match="is not an array"):
        run.labels("train")


def test_an_array_of_another_shape_is_told(server, manifest):
    ids = document(ids=list(golden.IDS), num_samples=4)
    server.answers = [document(run="x", manifest=manifest), ids, (200, {}, npy_bytes(np.zeros((2, 2))))]
    kernel = ntkpipe.connect(f"{server.url}/v1/runs/x").kernel("pntk")
    with pytest.raises(StorageError, match=r"shape \(2, 2\), not \(4, 4\)"):
        _ = kernel[:, :]


@pytest.mark.parametrize("change", [{"manifest": {}}, {"manifest": 3}, {}])
def test_a_manifest_that_is_none_is_told(server, change):
    server.answers = [document(run="x", **change)]
    with pytest.raises(StorageError, match="is not what a run is"):
        ntkpipe.connect(f"{server.url}/v1/runs/x")


def test_ids_that_never_end_are_not_waited_for(server, manifest):
    server.answers = [document(run="x", manifest=manifest), document(ids=[], num_samples=4)]
    with pytest.raises(StorageError, match="does not hold the ids 0 to 4"):
        _ = ntkpipe.connect(f"{server.url}/v1/runs/x").sample_ids


def test_a_busy_service_is_asked_again_after_what_it_says(server, connection):
    busy = problem(503, "busy", headers={"retry-after": "0"})
    server.answers = [busy, problem(429, "busy", headers={"retry-after": "0.2"}), document(ok=True)]
    start = time.monotonic()
    assert connection.document("/v1/runs") == {"ok": True}
    assert time.monotonic() - start >= 0.2
    server.answers, before = [busy], len(server.requests)
    with pytest.raises(StorageError, match="because"):
        connection.document("/v1/runs")
    assert len(server.requests) == before + ATTEMPTS


def test_only_who_says_when_is_asked_again(server, connection):
    server.answers = [problem(503, "storage", headers={"retry-after": "nan"})]
    with pytest.raises(StorageError):
        connection.document("/v1/runs")
    assert len(server.requests) == 1


def test_a_lost_connection_is_made_again(server, connection):
    server.answers = [None, document(ok=True)]
    assert connection.document("/v1/runs") == {"ok": True}
    server.answers, before = [None], len(server.requests)
    with pytest.raises(StorageError, match="cannot be reached"):
        connection.document("/v1/runs")
    assert len(server.requests) == before + ATTEMPTS


def test_a_service_that_is_not_there_is_told(server):
    gone = Server()
    gone.close()
    with pytest.raises(StorageError, match=r"cannot be reached .*ntkpipe serve"):
        ntkpipe.connect(f"{gone.url}/v1/runs/x")


def test_silence_is_not_waited_for_longer_than_was_said(server):
    hold = threading.Event()
    server.answers = [document(ok=True)]
    server.server.RequestHandlerClass.do_GET = lambda _: hold.wait(20)
    connection = Connection(RunAddress.parse(server.url), None, timeout_seconds=0.2, cache_bytes=0)
    try:
        with pytest.raises(StorageError, match=r"not answered in time .*timeout_seconds"):
            connection.document("/v1/runs")
    finally:
        hold.set()
        connection.close()


def test_an_answer_is_kept_until_it_changes(server, connection):
    server.answers = [
        (200, {"etag": '"one"'}, b'{"at": 1}'),
        (304, {"etag": '"one"'}, b""),
        (200, {"etag": '"two"'}, b'{"at": 2}'),
        (200, {}, b'{"other": 0}'),
        (304, {}, b""),
    ]
    assert [connection.document("/v1/a")["at"] for _ in range(3)] == [1, 1, 2]
    assert connection.document("/v1/a", {"b": "c"}) == {"other": 0}
    assert connection.document("/v1/a")["at"] == 2
    sent = [headers.get("if-none-match") for _, _, headers, _ in server.requests]
    assert sent == [None, '"one"', '"one"', None, '"two"']


def test_answers_are_kept_by_bytes_the_last_used_ones():
    kept = KeptAnswers(100)
    for name in "abc":
        kept.put((name, ()), KeptAnswer('"1"', b"x" * 40))
        assert kept.get(("a", ()))
    assert kept.get(("b", ())) is None
    assert kept.num_bytes == 82
    kept.put(("a", ()), KeptAnswer('"2"', b"x" * 10))
    kept.put(("large", ()), KeptAnswer('"1"', b"x" * 101))
    assert (kept.num_bytes, kept.get(("large", ()))) == (52, None)
    assert kept.get(("a", ())).etag == '"2"'
    # Which samples were asked for is a text that may be longer than the answer.
    kept.put(("a", (("rows", "1," * 50),)), KeptAnswer('"1"', b"x"))
    assert kept.num_bytes == 52


def test_long_selections_go_into_the_body(server, connection):
    server.answers = [document(ok=True)]
    connection.document("/v1/a", {"rows": ",".join(map(str, range(0, 2000, 2)))})
    connection.document("/v1/a", {"rows": "1,ü&=#"})
    (one, path, headers, body), (other, short, _, _) = server.requests
    assert (one, path, headers["content-type"]) == ("POST", "/v1/a", "application/json")
    assert json.loads(body)["rows"].startswith("0,2,4,")
    assert (other, short) == ("GET", "/v1/a?rows=1%2C%C3%BC%26%3D%23")


def test_long_messages_are_cut(server, connection):
    server.answers = [problem(404, "not-found", "x" * 100_000)]
    with pytest.raises(NotFoundError) as caught:
        connection.document("/v1/a")
    assert len(caught.value.message) < MAX_MESSAGE_LENGTH + 10


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 12, 35, 1000])
@pytest.mark.parametrize("width", [1, 2])
def test_what_is_too_large_is_asked_for_in_pieces(limit, width):
    values = np.arange(35 * width * width).reshape(5 * width, 7 * width)
    asked = []

    def ask(rows, columns):
        asked.append(len(rows) * len(columns))
        if asked[-1] > limit:
            error = TooLargeError("too much", limit=limit * width**2, asked=asked[-1] * width**2)
            return TooLarge(asked[-1] / limit, error)
        at = [(one[:, None] * width + np.arange(width)).ravel() for one in (rows, columns)]
        return values[np.ix_(*at)]

    pieces = Pieces()
    rows, columns = np.array([4, 0, 3, 3, 1]), np.arange(7)[::-1]
    at = [(one[:, None] * width + np.arange(width)).ravel() for one in (rows, columns)]
    for _ in range(2):
        assert np.array_equal(pieces.read("a", ask, rows, columns, width=width), values[np.ix_(*at)])
    first = len(asked)
    assert pieces.read("a", ask, rows, columns, width=width).shape == (5 * width, 7 * width)
    # What was learned is remembered: only the columns of single rows are found to be too much again.
    assert sum(size > limit for size in asked[first:]) <= (5 if limit < 7 else 0)


def test_a_limit_of_what_has_to_be_read_is_not_taken_for_one_of_the_answer():
    values, asked = np.arange(64 * 64).reshape(64, 64), []

    def ask(rows, columns):
        asked.append(len(rows) * len(columns))
        num_bytes = len(np.unique(rows // 8)) * len(np.unique(columns // 8)) * 512
        if num_bytes > 8 * 512:
            return TooLarge(num_bytes / (8 * 512), TooLargeError("apart", limit=8 * 512, asked=num_bytes))
        return values[np.ix_(rows, columns)]

    pieces = Pieces()
    apart, together = np.arange(0, 64, 8), np.arange(8)
    assert np.array_equal(pieces.read("a", ask, apart, apart), values[np.ix_(apart, apart)])
    asked.clear()
    assert np.array_equal(pieces.read("a", ask, together, np.arange(64)), values[:8])
    assert asked == [8 * 64]


def test_rows_of_arrays_with_more_axes_are_asked_for_in_pieces():
    values = np.arange(3 * 5 * 2).reshape(3, 5, 2)

    def ask(rows, columns):
        assert columns is None
        return values[:, rows] if len(rows) <= 2 else TooLarge(len(rows) / 2, TooLargeError("too much"))

    assert np.array_equal(Pieces().read("a", ask, np.array([4, 1, 0, 2]), axis=1), values[:, [4, 1, 0, 2]])


def test_a_single_entry_that_is_too_large_ends_it():
    pieces = Pieces()
    with pytest.raises(TooLargeError, match="too much"):
        pieces.read("a", lambda *_: TooLarge(2.0, TooLargeError("too much")), np.arange(3), np.arange(3))
    with pytest.raises(TooLargeError, match="too much"):
        pieces.read("b", lambda *_: TooLarge(2.0, TooLargeError("too much")), np.arange(3))
