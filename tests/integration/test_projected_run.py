"""Runs with estimated and labelled kernels: standard errors, passes, marks and refusals."""

import golden
import numpy as np
import pytest
import torch
from commands import ntkpipe_command
from runs import edit_manifest
from torch import nn

import ntkpipe
from ntkpipe.configs.errors import ConfigError, CoverageError, NotFoundError, PlanError, RunMismatchError
from ntkpipe.workers.sources.samples import Samples


def build_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 24), nn.GELU(), nn.Linear(24, 16), nn.GELU(), nn.Linear(16, 3))


def build_rounded():
    class Rounded(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.body = nn.Linear(6, 3)

        def forward(self, x):
            y = self.body(x)
            return y + (torch.round(y) - y).detach()

    return Rounded()


def load(num=60, labels="classes"):
    generator = torch.Generator().manual_seed(num)
    x = torch.randn(num, 6, generator=generator)
    given = {"classes": torch.arange(num) % 3, "values": torch.randn(num, 3, generator=generator), "none": None}
    return Samples(x, given[labels])


def config(**changes):
    split = {"kind": "python", "target": "test_projected_run:load"}
    return {
        "name": "projected",
        "model": {"target": "test_projected_run:build_network"},
        "data": {"splits": {"train": split, "test": split | {"options": {"num": 20}}}},
        "projection": {"kind": "auto", "dim": 64},
        "kernels": [{"kind": "trntk"}, {"kind": "trntk0", "layerwise": True}, {"kind": "pntk"}, {"kind": "ck"}],
        "store": {"shard_rows": 16, "block_rows": 32, "dtype": "float64"},
    } | changes


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    import sys
    from pathlib import Path

    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parent)])


def exact_kernel(kind, **options):
    model = build_network()
    return ntkpipe.kernel_matrix(model, load(20).inputs, load(60).inputs, kernel=kind, dtype=torch.float64, **options)


@pytest.mark.parametrize("kind", ["trntk", "pntk"])
def test_standard_errors_are_as_large_as_the_errors(kind):
    expected, differences = exact_kernel(kind), []
    for seed in range(60):
        projection = ntkpipe.Projection(dim=32, seed=seed)
        rows, columns = (
            ntkpipe.features(build_network(), load(num).inputs, kernel=kind, projection=projection, dtype=torch.float64)
            for num in (20, 60)
        )
        said = rows[:, :16] @ columns[:, :16].T - rows[:, 16:] @ columns[:, 16:].T
        error = rows @ columns.T - expected
        differences.append(float(error.square().mean() - said.square().mean()))
    assert abs(np.mean(differences)) < 4 * np.std(differences) / np.sqrt(len(differences))
    assert np.std(differences) > 0


def test_standard_errors_of_a_run_are_half_the_difference_of_both_halves(tmp_path):
    run = ntkpipe.run(config(kernels=[{"kind": "trntk"}]), tmp_path / "run")
    projection = ntkpipe.Projection(dim=64)
    rows, columns = (
        ntkpipe.features(build_network(), load(num).inputs, kernel="trntk", projection=projection) for num in (20, 60)
    )
    expected = (rows[:, :32] @ columns[:, :32].T - rows[:, 32:] @ columns[:, 32:].T).abs()
    assert np.allclose(run.standard_errors("trntk", "test")[:, :], expected.numpy(), atol=1e-5)


def test_standard_errors_are_asked_for_like_kernels(tmp_path):
    run = ntkpipe.run(config(), tmp_path / "run")
    errors = run.standard_errors("trntk", "test")
    block = errors[2:5, ["0", "7"]]
    assert block.shape == (3, 2)
    assert np.isclose(block[1, 1], errors[3, 7], rtol=1e-5)
    assert (run.standard_errors("ck")[:, :] == 0).all()
    layered = run.standard_errors("trntk0")[:, :]
    assert layered.shape == (60, 60)
    assert np.allclose(layered, layered.T)
    first, second = (run.features["trntk0"][:][..., half].astype(float) for half in (slice(32), slice(32, None)))
    expected = np.abs(np.einsum("gnk,gmk->nm", first, first) - np.einsum("gnk,gmk->nm", second, second))
    assert np.allclose(layered, expected)
    with pytest.raises(NotFoundError, match="unknown kernel 'ntk'"):
        run.standard_errors("ntk")


def test_standard_errors_from_the_command_line(tmp_path):
    ntkpipe.run(config(), tmp_path / "run")
    found = ntkpipe_command("query", tmp_path / "run", "error/trntk/test-train", "--rows", "0:2", "--cols", "id:3,id:5")
    assert found.returncode == 0, found.stderr
    lines = found.stdout.strip().splitlines()
    assert lines[0] == "sample,3,5"
    assert len(lines) == 3
    assert all(0 <= float(value) < 1 for line in lines[1:] for value in line.split(",")[1:])


def test_features_of_an_earlier_version_do_not_tell_their_error(tmp_path):
    ntkpipe.run(config(), tmp_path / "run")
    edit_manifest(tmp_path / "run", lambda manifest: manifest.update(numerics_version=2))
    run = ntkpipe.open_run(tmp_path / "run")
    with pytest.raises(NotFoundError, match="two independent halves"):
        run.standard_errors("trntk")
    assert run.kernel("trntk")[0, 0] == pytest.approx(1.0, abs=0.6)


LABELLED = [{"kind": kind} for kind in ("lpntk", "true_class", "class:2", "loss", "margin", "probe:2")]


def test_labelled_kernels_equal_those_of_the_library(tmp_path):
    kernels = [
        *LABELLED,
        *({**kernel, "name": f"s{i}", "projection": {"dim": 64}} for i, kernel in enumerate(LABELLED)),
    ]
    run = ntkpipe.run(config(kernels=kernels, projection={"kind": "none"}), tmp_path / "run")
    rows, columns = load(20), load(60)
    for index, kernel in enumerate(LABELLED):
        options = {"kernel": kernel["kind"], "y": rows.labels, "y2": columns.labels}
        for name, projection in ((kernel["kind"].replace(":", "-"), None), (f"s{index}", ntkpipe.Projection(dim=64))):
            expected = ntkpipe.kernel_matrix(
                build_network(), rows.inputs, columns.inputs, projection=projection, **options
            )
            assert np.allclose(run.kernel(name, "test")[:, :], expected.numpy(), rtol=1e-4, atol=1e-5), name


def test_the_loss_of_real_targets_is_the_squared_error(tmp_path):
    split = {"kind": "python", "target": "test_projected_run:load", "options": {"labels": "values"}}
    run = ntkpipe.run(
        config(data={"splits": {"train": split}}, kernels=[{"kind": "loss"}], projection={"kind": "none"}),
        tmp_path / "run",
    )
    samples = load(labels="values")
    expected = ntkpipe.kernel_matrix(build_network(), samples.inputs, kernel="loss", y=samples.labels)
    assert np.allclose(run.kernel("loss")[:, :], expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        ("none", "lpntk", "kernel 'lpntk' on split 'train': .* needs labels, and there are none"),
        ("values", "margin", r"needs labels of shape \(60\), found \(60, 3\)"),
        ("classes", "class:3", "there is no class 3; the model has 3 outputs"),
    ],
)
def test_kernels_whose_labels_do_not_fit_are_refused_before_anything_is_computed(labels, kind, message, tmp_path):
    split = {"kind": "python", "target": "test_projected_run:load", "options": {"labels": labels}}
    with pytest.raises(ConfigError, match=message):
        ntkpipe.run(config(data={"splits": {"train": split}}, kernels=[{"kind": kind}]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_pseudo_gradients_are_refused_or_marked(tmp_path):
    model = {"target": "test_projected_run:build_rounded"}
    kernels = [{"kind": "pntk"}]
    with pytest.raises(CoverageError, match=r"model\.pseudo_gradient=allow"):
        ntkpipe.run(config(model=model, kernels=kernels), tmp_path / "run")
    run = ntkpipe.run(config(model=model | {"pseudo_gradient": "allow"}, kernels=kernels), tmp_path / "run")
    assert run.manifest.fingerprints["gradient"] == "pseudo"
    true = ntkpipe.run(config(kernels=kernels), tmp_path / "true")
    assert "gradient" not in true.manifest.fingerprints


def test_a_worker_that_cannot_hold_one_sample_is_refused(tmp_path):
    with pytest.raises(PlanError, match=r"needs at least [\d.]+ [MG]B[\s\S]*max_worker_bytes is 104\.9 MB"):
        ntkpipe.run(config(resources={"max_worker_bytes": "100MiB"}), tmp_path / "run")


def test_memory_and_batches_may_change_when_a_run_is_resumed(tmp_path):
    run = ntkpipe.run(config(), tmp_path / "run")
    before = run.kernel("trntk")[:, :]
    again = ntkpipe.resume(tmp_path / "run", overrides=["resources.max_worker_bytes=2GiB", "resources.batch_size=3"])
    assert np.array_equal(again.kernel("trntk")[:, :], before)


def test_another_route_is_another_run(tmp_path):
    ntkpipe.run(config(), tmp_path / "run")
    edit_manifest(tmp_path / "run", lambda manifest: manifest["fingerprints"].update(routes="0" * 64))
    with pytest.raises(RunMismatchError, match=r"fingerprints\.routes"):
        ntkpipe.resume(tmp_path / "run")


def test_plan_says_what_is_picked_and_why(tmp_path):
    import yaml

    path = tmp_path / "config.yaml"
    document = golden.config(projection={"target_error": 0.05}, kernels=[{"kind": "trntk"}, {"kind": "pntk"}], solve=[])
    path.write_text(yaml.safe_dump(document))
    found = ntkpipe_command("plan", path, "--explain")
    assert found.returncode == 0, found.stderr
    for text in (
        "tensorsketch, K = 802, error of a cosine at most 0.05",
        "chosen by auto",
        "predicted",
        "memory of a worker",
        "Ways of kernel trntk",
        "instead of",
    ):
        assert text in found.stdout, text
