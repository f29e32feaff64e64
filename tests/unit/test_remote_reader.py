"""Runs answer the same from storage and through a service: one contract, kept by both readers."""

import gc
import shutil
from urllib.parse import quote

import golden
import numpy as np
import pytest
from answers import questions
from contracts.readers import *
from serving import serving

import ntkpipe
from ntkpipe.configs.errors import ConfigError, NotFoundError, RunMismatchError, StorageError

TOKEN = "a-token-of-these-tests"
RUNS = (RUN, "half", "members", "plain")
MAX_CELLS = 16
"""Values in one answer of the second service: every matrix but the smallest comes in pieces."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    make_runs(folder)
    return folder


@pytest.fixture(scope="module")
def service(root):
    with serving(root, token=TOKEN) as found:
        yield found


@pytest.fixture(scope="module")
def narrow(root):
    with serving(root, "--max-cells", MAX_CELLS) as found:
        yield found


@pytest.fixture(params=["storage", "service", "narrow"])
def opened(request, root):
    if request.param == "storage":
        return lambda name: ntkpipe.open_run(root / name)
    url, token = request.getfixturevalue(request.param).url, TOKEN if request.param == "service" else None
    return lambda name: ntkpipe.connect(f"{url}/v1/runs/{quote(name)}", token)


@pytest.fixture
def place(root):
    """A folder below the root for a single test."""
    yield root / "place"
    shutil.rmtree(root / "place")


def test_a_run_that_has_taken_the_place_of_the_one_that_was_opened_is_refused(opened, root, place, tmp_path):
    for folder, ids in ((place, IDS), (tmp_path / "other", IDS[::-1])):
        data = {"splits": DATA["splits"] | {"train": SPLIT | {"options": {"ids": ids}}}}
        ntkpipe.run(golden.config(model=MODEL, data=data, kernels=KERNELS[:3], solve=SOLVE[:1], store=STORE), folder)
    run = opened("place")
    near = run.neighbors(IDS[1], 2, kernel="pntk")
    place.rename(tmp_path / "before")
    with pytest.raises(NotFoundError):
        run.predictions("krr", "test")
    (tmp_path / "other").rename(place)
    for ask in (run.status, lambda: run.predictions("krr", "test"), lambda: run.neighbors(IDS[1], 2, kernel="trntk")):
        with pytest.raises(RunMismatchError, match="another run than the one that was opened"):
            ask()
    assert opened("place").neighbors(IDS[2], 2, kernel="pntk") != near
    place.rename(tmp_path / "other")
    (tmp_path / "before").rename(place)
    assert run.predictions("krr", "test").shape == (4, 2)


def test_more_than_there_is_may_be_asked_for(root, service):
    for run in (ntkpipe.open_run(root / RUN), ntkpipe.connect(f"{service.url}/v1/runs/{quote(RUN)}", TOKEN)):
        assert run.neighbors(IDS[0], 10**20, kernel="pntk") == run.neighbors(IDS[0], 3, kernel="pntk")
        assert run.spectrum("pntk", max_samples=10**20).num_samples == len(IDS)
        with pytest.raises(NotFoundError):
            run.neighbors(IDS[0], kernel="pntk", label=-1)


@pytest.mark.parametrize("name", RUNS)
def test_every_question_has_the_same_bytes_for_an_answer(root, service, name):
    stored, remote = ntkpipe.open_run(root / name), ntkpipe.connect(f"{service.url}/v1/runs/{quote(name)}", TOKEN)
    assert remote.manifest.identity() == stored.manifest.identity()
    for what, ask in questions(stored).items():
        try:
            expected = ask()
        except StorageError as error:
            with pytest.raises(type(error)):
                questions(remote)[what]()
            continue
        found = questions(remote)[what]()
        assert (found.dtype, found.shape, found.tobytes()) == (expected.dtype, expected.shape, expected.tobytes()), what


def test_no_question_is_too_long_for_a_service(root, service, monkeypatch):
    monkeypatch.setattr("ntkpipe.pipeline.client.connection.MAX_URL_LENGTH", 25)
    stored, remote = ntkpipe.open_run(root / RUN), ntkpipe.connect(f"{service.url}/v1/runs/{quote(RUN)}", TOKEN)
    asked = questions(stored) | {
        "spectrum": lambda run=stored: run.spectrum("trntk0", layers=["*"]).eigenvalues,
    }
    for what, ask in questions(remote).items():
        assert np.array_equal(ask(), asked[what]()), what
    assert np.array_equal(asked["spectrum"](remote), asked["spectrum"]())


def test_what_a_service_gives_in_pieces_is_the_whole(root, narrow):
    stored, remote = ntkpipe.open_run(root / RUN), ntkpipe.connect(f"{narrow.url}/v1/runs/{quote(RUN)}")
    assert stored.kernel("full").shape == (8, 8)
    assert np.array_equal(remote.kernel("full")[:, :], stored.kernel("full")[:, :])
    assert np.array_equal(remote.features["sketch"][:], stored.features["sketch"][:])
    limits = remote.reader._pieces._most
    assert {path: most for path, most in limits.items() if path.endswith("kernels/full")} == {
        "/kernels/full": MAX_CELLS / 4
    }


def test_an_answer_that_did_not_change_is_not_sent_again(root, service):
    remote = ntkpipe.connect(f"{service.url}/v1/runs/{quote(RUN)}", TOKEN)
    first, kept = remote.kernel("pntk")[:, :], remote.reader._connection._kept
    assert kept.num_bytes > 0
    for question, answer in list(kept._answers.items()):
        # What the service says has not changed is taken from here.
        kept.put(question, type(answer)(answer.etag, answer.content[:-8] + np.float64(-7).tobytes()))
    assert remote.kernel("pntk")[:, :][-1, -1] == -7 != first[-1, -1]


def test_a_wrong_token_opens_nothing_and_is_not_repeated(service):
    for token in ("not-the-token-at-all", None):
        with pytest.raises(ConfigError, match="wants a token") as caught:
            ntkpipe.connect(f"{service.url}/v1/runs/half", token)
        assert "not-the-token" not in caught.value.message


def test_a_run_that_is_not_there_is_told_and_those_that_are_are_named(service):
    with pytest.raises(NotFoundError, match="nothing"):
        ntkpipe.connect(f"{service.url}/v1/runs/nothing", TOKEN)
    with pytest.raises(ConfigError, match=r"It has .*half.*members.*Connect to http://127\.0\.0\.1:\d+/v1/runs/"):
        ntkpipe.connect(service.url, TOKEN)


def test_messages_name_the_service_and_not_the_folder_behind_it(root, service):
    run = ntkpipe.connect(f"{service.url}/v1/runs/half", TOKEN)
    assert run.url == f"{service.url}/v1/runs/half"
    assert run.status().url == run.url
    for question in (lambda: run.kernel("nothing"), lambda: run.solution("krr")):
        with pytest.raises(StorageError) as caught:
            question()
        assert str(root) not in caught.value.message


def test_connections_are_closed_with_their_run(service):
    run = ntkpipe.connect(f"{service.url}/v1/runs/half", TOKEN)
    client = run.reader._connection._client
    assert not client.is_closed
    del run
    gc.collect()
    assert client.is_closed
    run = ntkpipe.connect(f"{service.url}/v1/runs/half", TOKEN)
    run.reader.close()
    run.reader.close()
    assert run.reader._connection._client.is_closed


def test_a_service_that_has_gone_is_told(root):
    with serving(root) as service:
        run = ntkpipe.connect(f"{service.url}/v1/runs/half")
    with pytest.raises(StorageError, match="cannot be reached"):
        run.status()


def test_a_client_needs_neither_torch_nor_ray(service):
    import subprocess
    import sys

    program = (
        f"import ntkpipe, sys\nrun = ntkpipe.connect('{service.url}/v1/runs/half', '{TOKEN}')\n"
        "print(run.kernel('pntk')[0, 0], sorted({'torch', 'ray', 'fastapi'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["10.0", "[]"]
