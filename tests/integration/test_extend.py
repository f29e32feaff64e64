"""Runs with more samples than the one that they go on from."""

from pathlib import Path

import golden
import growing
import pytest
import yaml
from counting import computed, is_clean
from runs import chunk_hashes
from typer.testing import CliRunner

import ntkpipe
from ntkpipe.configs.errors import RunMismatchError
from ntkpipe.pipeline.cli import app

MORE = ["data.splits.train.options.num=9", "data.splits.test.options.num=4"]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Five training samples in shards of two, the last one alone; three test samples."""
    return Path(ntkpipe.run(growing.config(), tmp_path_factory.mktemp("runs") / "original").url)


def test_only_new_shards_and_blocks_are_computed(original, tmp_path):
    run = ntkpipe.extend(original, tmp_path / "more", overrides=MORE)
    fresh = ntkpipe.run(growing.config(9, 4), tmp_path / "fresh")
    assert chunk_hashes(tmp_path / "more") == chunk_hashes(tmp_path / "fresh")
    assert is_clean(run.url)
    # Two whole training shards of the old run and one of the test split, and the blocks between them.
    assert computed(run.url)[1] == {"features": 3, "kernel": 5}
    total = {stage.stage: stage.total for stage in fresh.status().stages}
    assert computed(run.url)[0] == {"features": 7 - 3, "kernel": total["kernel"] - 5, "solve": 2, "analyze": 1}


def test_whole_shards_are_all_taken_over(tmp_path):
    ntkpipe.run(growing.config(4, 2), tmp_path / "run")
    run = ntkpipe.extend(tmp_path / "run", tmp_path / "more", overrides=["data.splits.train.options.num=6"])
    assert computed(run.url)[1] == {"features": 3, "kernel": 5}
    assert computed(run.url)[0] == {"features": 1, "kernel": 4, "solve": 2, "analyze": 1}


def test_an_extended_run_can_be_extended(original, tmp_path):
    ntkpipe.extend(original, tmp_path / "more", overrides=["data.splits.train.options.num=6"])
    ntkpipe.extend(tmp_path / "more", tmp_path / "most", overrides=["data.splits.train.options.num=8"])
    ntkpipe.run(growing.config(8), tmp_path / "fresh")
    assert chunk_hashes(tmp_path / "most") == chunk_hashes(tmp_path / "fresh")
    assert ntkpipe.open_run(tmp_path / "most").manifest.origin == str(tmp_path / "more")


def test_splits_and_their_pairs_can_be_added(original, tmp_path):
    late = "data.splits.late={kind: python, target: 'growing:load', options: {num: 2, first: 50}}"
    run = ntkpipe.extend(original, tmp_path / "late", overrides=[late])
    assert computed(run.url)[1] == {"features": 5, "kernel": 12, "analyze": 1}
    document = growing.config()
    document["data"]["pairs"] = [["train", "train"], ["test", "train"]]
    ntkpipe.run(document, tmp_path / "paired")
    pairs = "data.pairs=[[train, train], [test, train], [late, train]]"
    assert ntkpipe.extend(tmp_path / "paired", tmp_path / "more", overrides=[late, pairs]).status().state == "finished"
    with pytest.raises(RunMismatchError, match=r"config\.data\.pairs"):
        ntkpipe.extend(tmp_path / "paired", tmp_path / "less", overrides=[late, "data.pairs=[[train, train]]"])


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["data.splits.train.options.num=4"], "split 'train' does not begin .* it had 5 samples and has 4 now"),
        ([*MORE, "data.splits.train.options.renamed=1"], "the id at position 1 was 'n1' and is 'n1-new' now"),
        (
            [*MORE, "data.splits.test.options.flipped=2"],
            r"the label of sample 'n1002' \(position 2\) was 0 and is 1 now",
        ),
        ([*MORE, "data.splits.train.options.moved=3"], "the inputs of samples 'n2' to 'n3' .* are others now"),
        ([*MORE, "data.splits.train.options.moved=4"], "the inputs of samples 'n4' to 'n4' .* are others now"),
        ([*MORE, "data.splits.train.options.labelled=false", "solve=[]"], r"config\.solve"),
        ([*MORE, "solve.0.ridge=2"], r"config\.solve\[0\]\.ridge: stored 1\.0, now 2"),
        ([*MORE, "kernels.2.bandwidth=2"], r"config\.kernels\[2\]\.bandwidth"),
        ([*MORE, "store.dtype=float64"], r"config\.store\.dtype"),
    ],
)
def test_what_is_no_extension_is_refused_with_the_first_difference(overrides, named, original, tmp_path):
    with pytest.raises(RunMismatchError, match=f"cannot be extended: (.|\n)*{named}"):
        ntkpipe.extend(original, tmp_path / "more", overrides=overrides)
    assert not (tmp_path / "more").exists()


def test_a_removed_split_and_other_weights_are_refused(original, tmp_path, monkeypatch):
    document = growing.config()
    del document["data"]["splits"]["test"]
    with pytest.raises(RunMismatchError, match=r"config\.data\.splits\.test: stored .* now None"):
        ntkpipe.extend(original, tmp_path / "less", config=document)
    build = golden.build_model

    def other():
        model = build()
        model.fc1.weight.data[0, 0] += 1
        return model

    monkeypatch.setattr(golden, "build_model", other)
    with pytest.raises(RunMismatchError, match=r"fingerprints\.weights: .*the weights of the model"):
        ntkpipe.extend(original, tmp_path / "more", overrides=MORE)


def test_lost_labels_are_refused(tmp_path):
    document = growing.config(model=None, kernels=[{"kind": "gaussian"}], solve=[], analyses=[])
    ntkpipe.run(document, tmp_path / "run")
    with pytest.raises(RunMismatchError, match="it has gained or lost its labels"):
        ntkpipe.extend(tmp_path / "run", tmp_path / "more", overrides=["data.splits.train.options.labelled=false"])


def test_a_new_class_is_no_hindrance(tmp_path):
    document = growing.config(model=None, kernels=[{"kind": "gaussian"}], analyses=[])
    document["solve"] = [{"kind": "cholesky", "name": "formula", "kernel": "gaussian", "ridge": 0.5}]
    ntkpipe.run(document, tmp_path / "run")
    overrides = ["data.splits.train.options.num=7", "data.splits.train.options.extra_class=true"]
    run = ntkpipe.extend(tmp_path / "run", tmp_path / "more", overrides=overrides)
    assert run.manifest.geometry.solution_targets == (3,)
    ntkpipe.run(document, tmp_path / "fresh", overrides=overrides)
    assert chunk_hashes(tmp_path / "more") == chunk_hashes(tmp_path / "fresh")


def test_the_command_extends_by_settings_and_by_file(original, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(growing.config(9), sort_keys=False))
    arguments = ["extend", original, "--out", tmp_path / "more", "--config", tmp_path / "config.yaml"]
    found = CliRunner().invoke(app, list(map(str, arguments)))
    assert (found.exception, found.exit_code) == (None, 0)
    assert "features 4/7 reused" in found.output
    arguments = ["extend", original, "--out", tmp_path / "other", "--set", "data.splits.train.options.num=9"]
    found = CliRunner().invoke(app, list(map(str, arguments)))
    assert (found.exception, found.exit_code) == (None, 0)
    assert chunk_hashes(tmp_path / "other") == chunk_hashes(tmp_path / "more")
