"""Stored solutions applied to new samples: as a run predicts its own test split, for every kind of kernel and solver."""

import tempfile
from functools import partial
from pathlib import Path

import golden
import growing
import numpy as np
import pyarrow.parquet
import pytest
import solving
import torch
from counting import computed, is_clean
from interruptions import Killed, interrupt_after
from runs import chunk_hashes, edit_manifest
from typer.testing import CliRunner

import ntkpipe
from ntkpipe.configs.errors import (
    ChunkNotReadyError,
    ConfigError,
    NotFoundError,
    PlanError,
    RunMismatchError,
    RunStoppedError,
)
from ntkpipe.pipeline.cli import app
from ntkpipe.pipeline.predictions import prediction_work
from ntkpipe.pipeline.stopping import StopRequest
from ntkpipe.storage.features import PREPARE_STAGE
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.stores.local import LocalRunStore
from ntkpipe.storage.stores.registry import open_store

TEST = {"num": 4, "first": 1000}
PRECISE = {"shard_rows": 2, "block_rows": 2, "dtype": "float64"}


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """The folder in which temporary runs are made; nothing may be left in it."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not list(folder.glob("ntkpipe-*"))


def model_config():
    """Exact, projected, preconditioned and layerwise kernels of a model, kernels made of them, and a solution of each."""
    document = growing.rich_config(store=PRECISE, analyses=[])
    document["model"]["dtype"] = "float64"
    document["kernels"] += [
        {"kind": "normalised", "of": "signs"},
        {"kind": "product", "name": "twice", "of": ["gaussian", "ck"]},
        {"kind": "sum", "name": "part", "terms": [{"of": "trntk0", "component": "fc1.weight"}, {"of": "gaussian"}]},
        {"kind": "trntk0", "name": "layers", "layerwise": True},
        {"kind": "trntk", "name": "biases", "parameters": ["*.bias"], "projection": {"kind": "none"}},
        {"kind": "signgd"},
    ]
    taken = ("signs", "lpntk", "ck", "fisher", "mixed", "scaled", "posterior", "normalised", "twice", "part", "layers")
    document["solve"] += [
        {"kind": "cholesky", "name": name, "kernel": name, "ridge": 2.0} for name in (*taken, "biases", "signgd")
    ]
    return document


def members_config():
    return golden.config(
        model={
            "target": "golden:build_member",
            "dtype": "float64",
            "members": {"early": {}, "late": {"options": {"shift": 0.25}}},
        },
        kernels=[
            {"kind": "trntk0"},
            {"kind": "pntk", "projection": {"dim": 32}},
            {"kind": "trntk0", "name": "cross", "cross": ["early", "late"]},
            {"kind": "ensemble", "of": "trntk0"},
        ],
        solve=[
            {"kind": "cholesky", "name": "exact", "kernel": "trntk0@late", "ridge": 1.0},
            {"kind": "cholesky", "name": "sketched", "kernel": "pntk@early", "ridge": 1.0},
            {"kind": "cholesky", "name": "mean", "kernel": "ensemble", "ridge": 1.0},
        ],
        store=PRECISE,
    )


def pairs_config():
    return golden.config(
        model={"target": "golden:build_member", "dtype": "float64"},
        kernels=[{"kind": "full"}],
        solve=[{"kind": "cholesky", "name": "flat", "kernel": "full", "ridge": 0.5}],
        store=PRECISE,
    )


def solvers_config():
    """A formula whose tiles are stored, and solvers of every family."""
    return solving.run_config(
        [
            {"kind": "auto", "name": "chosen"},
            {"kind": "cholesky", "name": "balanced", "class_weight": "balanced"},
            {"kind": "cholesky", "name": "values", "targets": "values"},
            {"kind": "logistic", "name": "logits", "ridge": 0.1},
            {"kind": "falkon", "name": "centres", "centres": 20},
            {"kind": "pcg", "name": "stopped", "early_stopping": {"split": "test"}},
        ]
    )


def unstored_config():
    """Kernels of which no row is stored: predictions come out of features and formulas."""
    document = solving.run_config([{"kind": "pcg", "name": "formula"}])
    document["kernels"].append({"kind": "fourier_features", "name": "mapped", "dim": 64, "bandwidth": 3.0})
    document["solve"].append({"kind": "gram", "name": "mapped", "kernel": "mapped", "ridge": 0.1})
    document["data"]["pairs"] = []
    return document


def test_split(run):
    """Return the section of a run's test split, as new samples."""
    return run.config.document()["data"]["splits"]["test"]


test_split.__test__ = False


@pytest.mark.parametrize("config", [model_config, members_config, pairs_config, solvers_config, unstored_config])
def test_new_samples_are_predicted_as_those_of_the_run_were(config, tmp_path):
    run = ntkpipe.run(config(), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    found = ntkpipe.predict(run, test_split(run), keep=tmp_path / "kept")
    assert list(found.values) == [solve.name for solve in run.config.solve]
    assert found.ids == tuple(run.ids("test"))
    for name, values in found.values.items():
        np.testing.assert_allclose(values, run.predictions(name, "test"), rtol=1e-9, atol=1e-11, err_msg=name)
        assert found.losses[name] == pytest.approx(run.solution_record(name).losses["test"]), name
    # Of the training samples nothing was computed again, and the run was only read.
    ledger = Ledger(open_store(tmp_path / "kept"))
    receipts = [receipt for stage in ledger.stages() if stage != PREPARE_STAGE for receipt in ledger.receipts(stage)]
    own = {f"{receipt.stage}/{receipt.task}" for receipt in receipts if not receipt.origin}
    assert own
    assert all("/new" in task or "new-" in task for task in own), own
    assert len(own) < len(receipts)
    assert is_clean(tmp_path / "kept")
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_predictions_are_rows_of_the_kernel_times_coefficients():
    inputs, new = torch.tensor(golden.INPUTS, dtype=torch.float64), torch.tensor([[0.5, -1.0], [3.0, 2.0], [1.0, 1.0]])
    model = {"target": "golden:build_member", "dtype": "float64"}
    solve = [{"kind": "cholesky", "name": "krr", "kernel": "trntk", "ridge": 0.5}]
    document = golden.config(model=model, kernels=[{"kind": "trntk"}], solve=solve, store=PRECISE)
    run = ntkpipe.run(document, "memory://predict-oracle")
    found = ntkpipe.predict("memory://predict-oracle", new)
    network = golden.build_member().double()
    matrix_NN = ntkpipe.kernel_matrix(network, inputs, kernel="trntk")
    cross_MN = ntkpipe.kernel_matrix(network, new.double(), inputs, kernel="trntk")
    targets_NT = torch.nn.functional.one_hot(torch.tensor(golden.LABELS)).double()
    expected = cross_MN @ torch.linalg.solve(matrix_NN + 0.5 * torch.eye(4, dtype=torch.float64), targets_NT)
    np.testing.assert_allclose(found.values["krr"], expected.numpy(), rtol=1e-9)
    np.testing.assert_array_equal(found.classes("krr"), expected.argmax(dim=1))
    assert (found.ids, found.losses, found.url) == (("0", "1", "2"), {}, run.url)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return ntkpipe.run(growing.config(), tmp_path_factory.mktemp("runs") / "original")


def test_new_samples_come_from_files_callables_and_memory(original, tmp_path):
    samples = growing.load(**TEST)
    inputs, labels = samples.inputs.numpy(), samples.labels.numpy()
    np.save(tmp_path / "inputs.npy", inputs)
    np.savez(tmp_path / "all.npz", inputs=inputs, labels=labels, ids=np.array(samples.ids))
    expected = ntkpipe.predict(original, "growing:load", options=TEST)
    for data in (samples, tmp_path / "all.npz", ntkpipe.Samples(inputs, labels, samples.ids)):
        found = ntkpipe.predict(original.url, data)
        assert (found.ids, found.losses) == (expected.ids, expected.losses)
        np.testing.assert_array_equal(found.values["krr"], expected.values["krr"])
    for data in (inputs, str(tmp_path / "inputs.npy"), {"kind": "arrays", "inputs": str(tmp_path / "inputs.npy")}):
        found = ntkpipe.predict(original, data, ["formula"])
        assert (list(found.values), found.losses) == (["formula"], {})
        np.testing.assert_array_equal(found.values["formula"], expected.values["formula"])


@pytest.mark.parametrize(
    ("data", "options", "named"),
    [
        (np.zeros((2, 3), np.float32), None, r"split 'new' has samples of shape \(3,\)"),
        (np.zeros((2, 2)), None, r"split 'new' .* type torch\.float64, but split 'train'"),
        (np.array([["a", "b"]]), None, "the inputs of new samples must be numbers, .* found <U1"),
        (
            golden.Items(),
            None,
            r"samples must be numbers(.|\n)* A data set needs an import path, such as package\.module:callable",
        ),
        ("missing.npz", None, r"missing\.npz does not exist"),
        ("growing:nothing", None, "has no callable 'nothing'"),
        ("growing:load", {"numb": 3}, "does not accept the options"),
        ("missing.npz", {"num": 3}, "options are for a callable; .* num"),
        (np.zeros((0, 2), np.float32), None, "split 'new' has no samples"),
        (np.full((1, 2), np.nan, np.float32), None, "NaN or infinite input"),
    ],
)
def test_samples_that_cannot_be_predicted_are_refused(data, options, named, original):
    with pytest.raises(ConfigError, match=named):
        ntkpipe.predict(original, data, options=options)


def test_new_samples_without_the_labels_that_a_kernel_needs_are_refused(tmp_path):
    solve = [{"kind": "cholesky", "name": "signed", "kernel": "lpntk", "ridge": 1.0}]
    run = ntkpipe.run(growing.config(kernels=[{"kind": "lpntk"}], solve=solve, analyses=[]), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"kernel 'lpntk' on split 'new': .*labels"):
        ntkpipe.predict(run, "growing:load", options=TEST | {"labelled": False})


def test_a_class_without_a_column_counts_as_wrong_and_labels_of_another_kind_are_left_alone(original):
    known = ntkpipe.predict(original, "growing:load", ["formula"], options=TEST)
    unknown = ntkpipe.predict(original, "growing:load", ["formula"], options=TEST | {"extra_class": True})
    np.testing.assert_array_equal(unknown.values["formula"], known.values["formula"])
    was_right = known.classes("formula")[-1] == growing.load(**TEST).labels[-1]
    assert unknown.losses["formula"] == known.losses["formula"] + was_right / 4
    samples = growing.load(**TEST)
    real = ntkpipe.Samples(samples.inputs, samples.inputs.double(), samples.ids)
    assert ntkpipe.predict(original, real, ["formula"]).losses == {}
    with pytest.raises(NotFoundError, match="no predicted classes of solution 'krr'"):
        known.classes("krr")


def test_the_same_ids_and_a_training_split_that_is_called_new_are_no_hindrance(tmp_path):
    document = growing.config(analyses=[])
    document["data"] = {"splits": {"new": document["data"]["splits"]["train"]}}
    run = ntkpipe.run(document, tmp_path / "run")
    found = ntkpipe.predict(run, "growing:load", options={"num": 5})
    assert found.ids == tuple(run.sample_ids)
    for name, values in found.values.items():
        np.testing.assert_allclose(values, run.predictions(name, "new"), rtol=1e-5)


def other_model():
    model = golden.MicroNetwork()
    model.fc1.weight.data[0, 0] += 1
    return model


def test_other_weights_data_and_code_are_refused_with_every_difference(original, tmp_path, monkeypatch):
    for change, named in (
        ("moved", r"fingerprints\.data\.train: .*the samples, labels or ids of the split"),
        ("flipped", r"fingerprints\.data\.train"),
        ("renamed", r"fingerprints\.data\.train"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(growing, "load", partial(growing.load, **{change: 1}))
            with pytest.raises(RunMismatchError, match=f"cannot be applied (.|\n)*{named}"):
                ntkpipe.predict(original, np.ones((1, 2), np.float32))
    with monkeypatch.context() as patch:
        patch.setattr(golden, "build_model", other_model)
        with pytest.raises(RunMismatchError, match=r"fingerprints\.weights: .* the model"):
            ntkpipe.predict(original, np.ones((1, 2), np.float32))
    ntkpipe.run(growing.config(), tmp_path / "run")
    edit_manifest(tmp_path / "run", lambda document: document.update(numerics_version=3))
    with pytest.raises(RunMismatchError, match="numerics_version: stored 3, now 4"):
        ntkpipe.predict(tmp_path / "run", np.ones((1, 2), np.float32))


def test_settings_may_say_how_and_where_but_not_what(original):
    settings = ["resources.batch_size=1", "resources.max_worker_bytes=1GiB", "data.splits.new.options.num=2"]
    assert len(ntkpipe.predict(original, "growing:load", options=TEST, overrides=settings).ids) == 2
    for setting in ("kernels.0.bandwidth=2.0", "store.block_rows=4", "data.splits.train.options.num=4", "model=null"):
        with pytest.raises(ConfigError):
            ntkpipe.predict(original, "growing:load", ["formula"], options=TEST, overrides=[setting])
    with pytest.raises(ConfigError, match=r"kernels\[0\]\.bandwidth cannot be set for new samples"):
        ntkpipe.predict(original, "growing:load", ["formula"], options=TEST, overrides=["kernels.0.bandwidth=2.0"])


def test_names_that_do_not_exist_and_runs_without_solutions_are_refused(original, tmp_path):
    with pytest.raises(NotFoundError, match="unknown solution 'kr'; did you mean 'krr'"):
        ntkpipe.predict(original, "growing:load", ["kr"], options=TEST)
    with pytest.raises(NotFoundError, match="is not a run"):
        ntkpipe.predict(tmp_path / "nothing", "growing:load", options=TEST)
    run = ntkpipe.run(growing.config(solve=[], analyses=[]), tmp_path / "run")
    with pytest.raises(ConfigError, match="has no solutions"):
        ntkpipe.predict(run, "growing:load", options=TEST)


def test_an_unfinished_run_predicts_with_the_solutions_that_it_has(original, tmp_path, monkeypatch):
    def break_off(num_tasks, run):
        with monkeypatch.context() as patch:
            interrupt_after(patch, num_tasks)
            with pytest.raises(Killed):
                ntkpipe.run(growing.config(), run)

    total = {stage.stage: stage.total for stage in original.status().stages}
    break_off(total["features"] + total["kernel"] + 1, tmp_path / "one")
    run = ntkpipe.open_run(tmp_path / "one")
    assert {stage.stage: stage.done for stage in run.status().stages}["solve"] == 1
    with pytest.raises(ChunkNotReadyError, match=r"not found yet: formula\. Those that are there: krr\. Finish"):
        ntkpipe.predict(run, "growing:load", options=TEST)
    found = ntkpipe.predict(run, "growing:load", ["krr"], options=TEST)
    np.testing.assert_array_equal(
        found.values["krr"], ntkpipe.predict(original, "growing:load", ["krr"], options=TEST).values["krr"]
    )
    break_off(total["features"], tmp_path / "none")
    with pytest.raises(ChunkNotReadyError, match=r"not found yet: krr, formula\. Finish"):
        ntkpipe.predict(tmp_path / "none", "growing:load", options=TEST)


def test_a_kept_prediction_goes_on_and_can_be_queried(original, tmp_path, monkeypatch):
    expected = ntkpipe.predict(original, "growing:load", options=TEST, keep=tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(Killed):
            ntkpipe.predict(original, "growing:load", options=TEST, keep=tmp_path / "kept")
    before = computed(tmp_path / "kept")[0]
    found = ntkpipe.predict(original, "growing:load", options=TEST, keep=tmp_path / "kept")
    assert sum(before.values()) == 2
    assert computed(tmp_path / "kept") == computed(tmp_path / "whole")
    assert chunk_hashes(tmp_path / "kept") == chunk_hashes(tmp_path / "whole")
    np.testing.assert_array_equal(found.values["krr"], expected.values["krr"])
    kept = ntkpipe.open_run(tmp_path / "kept")
    assert kept.status().state == "finished"
    rows = kept.kernel("trntk0", "new")[:, :].astype(np.float64)
    np.testing.assert_allclose(rows @ original.solution("krr"), found.values["krr"], rtol=1e-12)
    # What is kept needs no more tasks, whichever solution of the same kernels is asked.
    again = ntkpipe.predict(original, "growing:load", options=TEST, keep=tmp_path / "kept")
    assert computed(tmp_path / "kept") == computed(tmp_path / "whole")
    np.testing.assert_array_equal(again.values["formula"], expected.values["formula"])


def test_a_place_that_keeps_something_else_is_refused(original, tmp_path):
    ntkpipe.predict(original, "growing:load", options=TEST, keep=tmp_path / "kept")
    with pytest.raises(RunMismatchError, match="num"):
        ntkpipe.predict(original, "growing:load", options={"num": 2}, keep=tmp_path / "kept")
    with pytest.raises(RunMismatchError):
        ntkpipe.predict(original, "growing:load", options=TEST, keep=original.url)
    assert original.status().state == "finished"


@pytest.mark.slow
def test_workers_of_a_cluster_give_the_same(original, local_ray):
    expected = ntkpipe.predict(original, "growing:load", "krr", options=TEST)
    settings = ["resources.executor=ray", "resources.workers=2"]
    found = ntkpipe.predict(original, "growing:load", "krr", options=TEST, overrides=settings)
    np.testing.assert_array_equal(found.values["krr"], expected.values["krr"])


def test_the_work_is_told_before_anything_is_computed(original, scratch):
    plan, work = prediction_work(original, "growing:load", ["krr"], options=TEST)
    assert [kernel.name for kernel in plan.geometry.kernels] == ["trntk0"]
    # Three shards of the training split are there; two new ones, and their blocks with the former, are not.
    assert {stage.stage: (stage.num_tasks, stage.num_taken) for stage in work} == {"features": (2, 3), "kernel": (6, 0)}
    assert all(stage.cost.flops > 0 and stage.cost.bytes_written > 0 for stage in work)
    assert not list(scratch.glob("ntkpipe-*"))


def test_a_prediction_that_ends_too_early_says_what_is_left(original, tmp_path):
    stop = StopRequest()
    stop.request()
    with pytest.raises(RunStoppedError, match=r"nothing is kept of a prediction .* \(--keep\)"):
        ntkpipe.predict(original, "growing:load", options=TEST, stop=stop)
    with pytest.raises(RunStoppedError) as stopped:
        ntkpipe.predict(original, "growing:load", options=TEST, stop=stop, keep=tmp_path / "kept")
    assert "nothing is kept" not in stopped.value.message
    assert list(ntkpipe.predict(original, "growing:load", options=TEST, keep=tmp_path / "kept").values)


def test_rows_that_do_not_fit_the_disk_are_refused_before_anything_is_computed(original, monkeypatch):
    _, work = prediction_work(original, "growing:load", options=TEST)
    needed = sum(stage.cost.bytes_written for stage in work)
    monkeypatch.setattr(LocalRunStore, "free_bytes", lambda self: needed - 1)
    with pytest.raises(PlanError, match=r"needs .* are free\. Predict fewer samples at a time"):
        ntkpipe.predict(original, "growing:load", options=TEST)
    monkeypatch.setattr(LocalRunStore, "free_bytes", lambda self: needed)
    assert len(ntkpipe.predict(original, "growing:load", options=TEST).ids) == 4


def invoke(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_the_command_writes_tables_and_tells_the_error(original, tmp_path):
    call = ("predict", original.url, "--data", "growing:load", "--option", "num=4", "--option", "first=1000")
    expected = ntkpipe.predict(original, "growing:load", options=TEST)
    shown = invoke(*call, "--solution", "krr")
    assert (shown.exception, shown.exit_code) == (None, 0)
    lines = shown.stdout.splitlines()
    assert lines[0] == "sample,class,0,1"
    assert [line.split(",")[0] for line in lines[1:]] == list(expected.ids)
    np.testing.assert_array_equal(
        [[float(text) for text in line.split(",")[2:]] for line in lines[1:]], expected.values["krr"]
    )
    assert "4 new samples against 5" in shown.stderr
    assert f"{100 * expected.losses['krr']:.2f} %" in shown.stderr
    assert "classes that the run does not have" not in shown.stderr
    strange = invoke(*call, "--option", "extra_class=true", "--solution", "formula")
    assert "1 new samples are of classes that the run does not have, the first of them" in strange.stderr
    both = invoke(*call, "--out", tmp_path / "both.csv")
    assert (both.exception, both.exit_code) == (None, 0)
    header = (tmp_path / "both.csv").read_text().splitlines()[0]
    assert header == "sample,krr/class,krr/0,krr/1,formula/class,formula/0,formula/1"
    assert invoke(*call, "--out", tmp_path / "both.parquet").exit_code == 0
    table = pyarrow.parquet.read_table(tmp_path / "both.parquet")
    assert table.column_names == header.split(",")
    np.testing.assert_array_equal(table["formula/class"], expected.classes("formula"))
    assert invoke(*call, "--out", tmp_path / "both.npy").exit_code == 0
    np.testing.assert_array_equal(
        np.load(tmp_path / "both.npy"), np.concatenate([expected.values["krr"], expected.values["formula"]], axis=1)
    )


def test_the_command_plans_keeps_and_refuses_early(original, tmp_path):
    call = ("predict", original.url, "--data", "growing:load", "--option", "num=4", "--option", "first=1000")
    planned = invoke(*call, "--plan", "--keep", tmp_path / "kept")
    assert (planned.exception, planned.exit_code) == (None, 0)
    assert "4 new samples against 5" in planned.stdout
    assert not (tmp_path / "kept").exists()
    kept = invoke(*call, "--keep", tmp_path / "kept")
    assert (kept.exception, kept.exit_code) == (None, 0)
    assert f"kept at {tmp_path / 'kept'}" in kept.stderr
    for arguments, named in (
        (("--out", tmp_path / "answer.txt"), "no known format"),
        (("--out", tmp_path / "nowhere" / "answer.csv"), "folder"),
        (("--option", "num"), "not of the form KEY=VALUE"),
    ):
        refused = invoke(*call, *arguments)
        assert isinstance(refused.exception, ConfigError)
        assert named in refused.exception.message


def test_what_a_run_calls_its_samples_cannot_move_the_cursor(original, tmp_path):
    samples = growing.load(1, 1000)
    np.savez(tmp_path / "new.npz", inputs=samples.inputs.numpy(), ids=np.array(["\x1b[2Jx"]))
    shown = invoke("predict", original.url, "--data", tmp_path / "new.npz", "--solution", "krr")
    assert "\x1b[2J" not in shown.stdout
    assert "\\x1b[2Jx," in shown.stdout


def test_a_service_is_refused_with_what_to_do(original):
    class Distant:
        url = "http://127.0.0.1:1/v1/runs/original"
        manifest = original.manifest

    for run in (ntkpipe.Run(Distant()), Distant.url):
        with pytest.raises(ConfigError, match=r"/original is a service: .* where the run is stored"):
            ntkpipe.predict(run, "growing:load", options=TEST)


def test_predictions_work_from_a_run_that_has_moved(original, tmp_path):
    import shutil

    shutil.copytree(original.url, tmp_path / "moved")
    found = ntkpipe.predict(tmp_path / "moved", "growing:load", options=TEST)
    expected = ntkpipe.predict(original, "growing:load", options=TEST)
    np.testing.assert_array_equal(found.values["krr"], expected.values["krr"])
    assert Path(found.url) == tmp_path / "moved"
