"""Kernels as objects of dask, xarray, pandas and Arrow: the same numbers, under the right names."""

import pickle
import sys
import threading

import dask
import golden
import numpy as np
import pytest
from solving import run_config

import ntkpipe
from ntkpipe.configs.errors import ChunkNotReadyError, ConfigError
from ntkpipe.pipeline.query import views


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    section = {"kind": "cholesky", "name": "a"}
    return ntkpipe.run(run_config([section]), tmp_path_factory.mktemp("runs") / "stored")


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
@pytest.mark.parametrize("transforms", [(), ("cosine",)])
def test_a_dask_array_is_the_matrix_with_a_chunk_for_every_tile(run, scheduler, transforms):
    query = run.kernel("fourier_features", "test", transforms=transforms)
    lazy, dense = query.to_dask(), query[:, :]
    assert (lazy.shape, lazy.dtype, lazy.chunks) == (dense.shape, dense.dtype, ((30,), (32, 32, 26)))
    with dask.config.set(scheduler=scheduler, num_workers=2):
        assert np.array_equal(lazy.compute(), dense)
        for index in (
            np.s_[5, :],
            np.s_[2:20:3, 40],
            np.s_[-1, -1],
            np.s_[::-1, 60:10:-7],
            np.s_[[3, 1, 3], :],
            np.s_[:, [70, 2]],
            np.s_[4:4, :],
        ):
            assert np.array_equal(lazy[index].compute(), dense[index]), index
        assert (lazy @ lazy.T).compute() == pytest.approx(dense @ dense.T)


def test_nothing_is_read_before_it_is_computed_and_then_only_its_tiles(run, monkeypatch):
    asked, read = [], type(run.reader).entries

    def counted(self, name, rows, columns, missing):
        asked.append((int(rows[0] // 32), int(columns[0] // 32)))
        return read(self, name, rows, columns, missing)

    monkeypatch.setattr(type(run.reader), "entries", counted)
    lazy = run.kernel("laplace").to_xarray()
    part = lazy[40:50, :32]
    assert asked == []
    assert part.compute().shape == (10, 32)
    assert asked == [(1, 0)]


def test_equal_matrices_have_equal_names_and_others_have_others(run):
    names = [
        run.kernel(*arguments, transforms=transforms).to_dask().name
        for arguments, transforms in (
            (("laplace",), ()),
            (("laplace", "train", "train"), ()),
            (("laplace", "test"), ()),
            (("fourier_features",), ()),
            (("laplace",), ("cosine",)),
        )
    ]
    assert names[0] == names[1]
    assert len(set(names)) == 4


def test_a_dask_array_can_be_sent_to_another_process_which_opens_the_run_again(run):
    lazy = run.kernel("laplace", "test").to_dask()
    dense, sent = lazy.compute(), pickle.dumps(lazy)
    assert len(sent) < 20_000
    views._open.cache_clear()
    assert np.array_equal(pickle.loads(sent).compute(scheduler="synchronous"), dense)
    assert views._open.cache_info().currsize == 1


def test_a_run_that_was_replaced_meanwhile_is_refused(run, tmp_path):
    ntkpipe.run(run_config([]), tmp_path / "run")
    sent = pickle.dumps(
        views.LazyMatrix(ntkpipe.open_run(tmp_path / "run"), run.kernel("laplace").name, (90, 90), "raise")
    )
    manifest = (tmp_path / "run" / "run.json").read_bytes()
    old, new = (found.manifest.run_id.encode() for found in (ntkpipe.open_run(tmp_path / "run"), run))
    assert old in sent
    assert old in manifest
    with pytest.raises(ConfigError, match="is another run than it was"):
        pickle.loads(sent.replace(old, new))


def test_an_xarray_knows_splits_ids_and_what_it_is_of(run):
    found = run.kernel("fourier_features", "test", transforms=["cosine", "centred"]).to_xarray()
    assert found.dims == ("test", "train")
    assert found.coords["train"].values.tolist() == run.ids("train")
    assert found.name == "fourier_features"
    assert found.attrs["transforms"] == "cosine,centred"
    assert found.attrs["run_id"] == run.manifest.run_id
    row = found.sel(test=run.ids("test")[3], train=run.ids("train")[7])
    assert row.values == run.kernel("fourier_features", "test", transforms=["cosine", "centred"])[3, 7]
    square = run.kernel("laplace").to_xarray()
    assert square.dims == ("train", "train_columns")
    assert np.array_equal(square.values, run.kernel("laplace")[:, :])


def test_threads_share_a_run(run):
    query, dense, wrong = run.kernel("laplace"), run.kernel("laplace")[:, :], []

    def ask(seed):
        generator = np.random.default_rng(seed)
        for _ in range(20):
            rows, columns = (generator.integers(0, 90, 5) for _ in range(2))
            if not np.array_equal(
                query.to_dask().vindex[rows, columns].compute(scheduler="synchronous"), dense[rows, columns]
            ):
                wrong.append(seed)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_tables_have_ids_for_rows_and_columns(run):
    query, rows, columns = run.kernel("laplace", "test"), [4, 2], slice(80, 90)
    dense, ids = query[rows, columns], (run.ids("test"), run.ids("train"))
    frame = query.to_dataframe(rows, columns)
    assert frame.index.tolist() == [ids[0][4], ids[0][2]]
    assert frame.columns.tolist() == ids[1][80:90]
    assert np.array_equal(frame.to_numpy(), dense)
    table = query.to_arrow(rows, columns)
    assert table.column_names == ["sample", *ids[1][80:90]]
    assert table["sample"].to_pylist() == frame.index.tolist()
    assert np.array_equal(np.column_stack([table[name].to_numpy() for name in ids[1][80:90]]), dense)
    assert query.answer(4).values.shape == (1, 90)


def test_rows_of_a_kernel_of_pairs_are_named_by_sample_and_output(tmp_path):
    run = ntkpipe.run(golden.config(kernels=[{"kind": "full"}], solve=[]), tmp_path / "run")
    query = run.kernel("full")
    frame = query.to_dataframe([1], [0, 3])
    assert frame.index.tolist() == ["x1/0", "x1/1"]
    assert frame.columns.tolist() == ["x0/0", "x0/1", "x3/0", "x3/1"]
    assert np.array_equal(frame.to_numpy(), query[[1], [0, 3]])
    found = query.to_xarray()
    assert found.data.chunks == ((4, 4), (4, 4))
    assert np.array_equal(found.values, query[:, :])
    assert found.sel(train="x2/1", train_columns="x0/0").values == query[2, 0][1, 0]


def test_blocks_that_are_missing_are_told_or_nan_as_asked(tmp_path):
    ntkpipe.run(run_config([]), tmp_path / "run")
    receipts = sorted((tmp_path / "run" / "receipts" / "kernel").rglob("*"))
    for receipt in receipts:
        if receipt.is_file():
            receipt.unlink()
    run = ntkpipe.open_run(tmp_path / "run")
    with pytest.raises(ChunkNotReadyError):
        run.kernel("laplace").to_dask().compute(scheduler="synchronous")
    lazy = run.kernel("laplace").to_dask(missing="nan")
    assert np.isnan(lazy.compute(scheduler="synchronous")).any()
    assert lazy.name != run.kernel("laplace").to_dask(missing="nan").name


@pytest.mark.parametrize(
    ("package", "ask"),
    [
        ("dask.array", lambda query: query.to_dask()),
        ("xarray", lambda query: query.to_xarray()),
        ("pandas", lambda query: query.to_dataframe()),
        ("pyarrow.parquet", lambda query: query.to_arrow()),
    ],
)
def test_a_package_that_is_missing_is_named_with_the_extra_that_brings_it(run, monkeypatch, package, ask):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"pip install 'ntkpipe\[tables\]'"):
        ask(run.kernel("laplace"))
