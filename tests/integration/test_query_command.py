"""`ntkpipe query` and `ntkpipe list`: formats, transforms, masks, explanations, and runs behind a service."""

import io
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from serving import serving
from solving import run_config
from typer.testing import CliRunner

import ntkpipe
from ntkpipe.configs.errors import ChunkNotReadyError, ConfigError, StorageError
from ntkpipe.pipeline.cli import app

TOKEN = "a-token-of-at-least-16-characters"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    document = run_config([{"kind": "cholesky", "name": "a"}], num=40)
    return ntkpipe.run(document, tmp_path_factory.mktemp("runs") / "stored")


def command(*arguments):
    """Run a command in this process; errors come out as they are."""
    found = CliRunner().invoke(app, [str(one) for one in arguments])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.output
    return found.stdout


def test_answers_are_written_as_parquet_and_arrow(run, tmp_path):
    dense, ids = run.kernel("laplace", "test")[:3, :], run.ids("train")
    for ending in ("parquet", "arrow"):
        out = tmp_path / f"k.{ending}"
        assert command("query", run.url, "kernel/laplace/test-train", "--rows", "0:3", "--out", out) == f"wrote {out}\n"
    tables = (
        pyarrow.parquet.read_table(tmp_path / "k.parquet"),
        pyarrow.ipc.open_stream(tmp_path / "k.arrow").read_all(),
    )
    for table in tables:
        assert table["sample"].to_pylist() == run.ids("test")[:3]
        assert np.array_equal(np.column_stack([table[name].to_numpy() for name in ids]), dense)
    with pytest.raises(ConfigError, match=r"known are \.npy"):
        command("query", run.url, "kernel/laplace", "--out", tmp_path / "k.xls")


def test_kernels_are_transformed_and_selected_by_masks(run, tmp_path):
    mask = np.zeros(40, bool)
    mask[[3, 30]] = True
    np.save(tmp_path / "mask.npy", mask)
    text = command(
        "query", run.url, "kernel/fourier_features", "--rows", f"@{tmp_path / 'mask.npy'}", "--cols", "0:2",
        "--transforms", "cosine,centred",
    )  # fmt: skip
    values = np.loadtxt(io.StringIO(text), delimiter=",", skiprows=1, usecols=(1, 2))
    assert np.array_equal(values, run.kernel("fourier_features").cosine().centred()[mask, :2])
    with pytest.raises(ConfigError, match="unknown transform 'cosin'; did you mean 'cosine'"):
        command("query", run.url, "kernel/laplace", "--transforms", "cosin")


def test_explanations_and_spectra_are_tables(run):
    lines = command("query", run.url, "neighbors/laplace/test", "--rows", "2", "--k", "1", "--opposed").splitlines()
    one = run.neighbors(2, 1, split="test", opposed=True)[0]
    assert lines == ["sample,neighbor,kernel", f"{run.ids('test')[2]},{one.sample_id},{one.value}"]
    lines = command("query", run.url, "neighbors/laplace/test", "--rows", "2", "--label", "1", "--k", "2").splitlines()
    assert [line.split(",")[1] for line in lines[1:]] == [
        found.sample_id for found in run.neighbors(2, 2, split="test", label=1)
    ]
    text = command("query", run.url, "attribution/a/test", "--rows", "2", "--cols", "5", "--target", "1")
    assert float(text.splitlines()[1].split(",")[1]) == run.attributions("a", 2, "test", target=1)[5]
    text = command("query", run.url, "spectrum/laplace", "--max-samples", "4")
    assert text.splitlines()[0] == "rank,eigenvalue,label_energy"
    assert float(text.splitlines()[1].split(",")[1]) == run.spectrum("laplace", max_samples=4).eigenvalues[0]
    with pytest.raises(ConfigError, match="has 3 axes, which csv cannot show"):
        command("query", run.url, "attribution/a", "--rows", "0:2")


def test_entries_that_are_missing_are_nan_where_that_is_asked_for(run, tmp_path):
    ntkpipe.run(run_config([], num=40), tmp_path / "run")
    for receipt in (tmp_path / "run" / "receipts" / "kernel").rglob("*"):
        if receipt.is_file():
            receipt.unlink()
    ask = ("query", tmp_path / "run", "kernel/laplace", "--rows", "0", "--cols", "0")
    with pytest.raises(ChunkNotReadyError):
        command(*ask)
    assert command(*ask, "--missing", "nan").splitlines()[1].endswith(",nan")
    with pytest.raises(ConfigError, match="missing belongs to kernel, component"):
        command("query", tmp_path / "run", "neighbors/laplace", "--missing", "nan")


def test_a_token_is_for_services_and_has_to_be_readable(run, tmp_path):
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for place in (run.url, tmp_path):
        verb = ("query", place, "ids/train") if place == run.url else ("list", place)
        with pytest.raises(ConfigError, match="--token-file belongs to services"):
            command(*verb, "--token-file", tmp_path / "empty")
    with pytest.raises(ConfigError, match="is empty; expected a token"):
        command("query", "http://127.0.0.1:1/v1/runs/a", "ids/train", "--token-file", tmp_path / "empty")
    with pytest.raises(ConfigError, match="holds no text"):
        command("list", "http://127.0.0.1:1", "--token-file", tmp_path / "bytes")
    with pytest.raises(StorageError, match="cannot be read"):
        command("list", "http://127.0.0.1:1", "--token-file", tmp_path / "nothing")
    with pytest.raises(ConfigError, match="--address is of a cluster"):
        command("list", "http://127.0.0.1:1", "--address", "http://127.0.0.1:2")


@pytest.mark.slow
def test_a_service_is_asked_like_a_store(run, tmp_path):
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    with serving(run.url.rpartition("/")[0], token=TOKEN) as service:
        token = ("--token-file", tmp_path / "token")
        rows = command("list", service.url, *token).splitlines()
        assert any("stored" in row and "finished" in row for row in rows)
        for question in (
            ("kernel/laplace/test-train", "--rows", "0:2", "--transforms", "cosine"),
            ("kernel/laplace/test-train", "--rows", f"id:{run.ids('test')[4]}"),
            ("neighbors/fourier_features", "--rows", "0:3", "--opposed", "--label", "1"),
            ("attribution/a/test", "--rows", "0:2", "--target", "1"),
            ("spectrum/laplace", "--max-samples", "9"),
            ("features/fourier_features", "--rows", "7"),
            ("ids/test",),
        ):
            place = f"{service.url}/v1/runs/stored"
            assert command("query", place, *question, *token) == command("query", run.url, *question), question
        out = tmp_path / "a.json"
        command("query", f"{service.url}/v1/runs/stored", "attribution/a/test", "--rows", "1", "--out", out, *token)
        assert np.array_equal(json.loads(out.read_text())["values"], run.attributions("a", [1], "test"))
        with pytest.raises(ConfigError, match="wants a token"):
            command("list", service.url)
