"""Student-t posteriors of any kernel matrix, and the analysis that judges their calibration on a run."""

import subprocess
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ntkpipe.configs.analyses import StudentTAnalysis
from ntkpipe.configs.errors import ConfigError, NumericalError
from ntkpipe.workers.analyses.registry import make_analysis
from ntkpipe.workers.kernels.scale_mixture import scale_mixture_posterior

PNG = b"\x89PNG\r\n\x1a\n"


def problem(num=7, num_test=4, num_targets=2, seed=0):
    """A positive definite joint covariance, cut into its blocks, and targets."""
    generator = np.random.default_rng(seed)
    root = generator.normal(size=(num + num_test, num + num_test + 2))
    joint = root @ root.T / len(root) + 0.1 * np.eye(num + num_test)
    return joint, generator.normal(size=(num, num_targets))


def posterior(joint, y, **options):
    num = len(y)
    blocks = (joint[:num, :num], joint[num:, :num], np.diagonal(joint)[num:], y)
    options = {"shape": 1.5, "rate": 0.7, "jitter": 0.0} | options
    return scale_mixture_posterior(*(torch.from_numpy(np.array(block)) for block in blocks), **options)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.2, 20), st.floats(0.1, 10), st.floats(0, 2), st.integers(1, 12), st.integers(0, 99))
def test_the_evidence_is_the_multivariate_t_density_of_scipy(shape, rate, jitter, num, seed):
    joint, y = problem(num, seed=seed)
    found = posterior(joint, y, shape=shape, rate=rate, jitter=jitter)
    covariance = rate / shape * (joint[:num, :num] + jitter * np.eye(num))
    for target in range(2):
        expected = stats.multivariate_t(loc=np.zeros(num), shape=covariance, df=2 * shape).logpdf(y[:, target])
        assert float(found.log_evidence[target]) == pytest.approx(expected, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("test_value", [-2.0, 0.1, 3.0])
def test_the_prediction_is_the_conditional_of_the_joint_t(test_value):
    joint, y = problem(num_test=1, num_targets=1)
    shape, rate = 1.3, 0.6
    found = posterior(joint, y, shape=shape, rate=rate)

    def log_density(values, covariance):
        return stats.multivariate_t(shape=rate / shape * covariance, df=2 * shape).logpdf(values)

    expected = log_density(np.append(y[:, 0], test_value), joint) - log_density(y[:, 0], joint[:7, :7])
    own = stats.t(found.degrees, float(found.mean[0, 0]), float(found.scale[0, 0]))
    assert own.logpdf(test_value) == pytest.approx(expected, abs=1e-10)


def test_chains_of_conditionals_give_the_evidence():
    joint, y = problem(num=5, num_test=0, num_targets=1)
    total = 0.0
    for seen in range(5):
        part = posterior(joint[: seen + 1, : seen + 1], y[:seen])
        total += stats.t(part.degrees, float(part.mean[0, 0]), float(part.scale[0, 0])).logpdf(y[seen, 0])
    assert total == pytest.approx(float(posterior(joint, y).log_evidence[0]), abs=1e-10)


def test_a_known_scale_is_the_gaussian_process():
    joint, y = problem()
    found = posterior(joint, y, shape=1e9, rate=1e9, jitter=0.3)
    train = joint[:7, :7] + 0.3 * np.eye(7)
    mean = joint[7:, :7] @ np.linalg.solve(train, y)
    variance = np.diagonal(joint)[7:] - np.diagonal(joint[7:, :7] @ np.linalg.solve(train, joint[:7, 7:]))
    np.testing.assert_allclose(found.mean, mean, rtol=1e-10)
    np.testing.assert_allclose(found.scale**2, np.repeat(variance[:, None], 2, axis=1), rtol=1e-7)
    for target in range(2):
        expected = stats.multivariate_normal(cov=train).logpdf(y[:, target])
        assert float(found.log_evidence[target]) == pytest.approx(expected, abs=1e-5)


def test_the_scale_follows_the_targets():
    joint, y = problem(num=60)
    small, large = posterior(joint, y), posterior(joint, 100 * y)
    ratio = large.scale / small.scale
    assert (ratio > 50).all()
    assert (ratio < 101).all()
    torch.testing.assert_close(large.mean, 100 * small.mean)


def test_one_column_may_be_given_as_a_vector_and_columns_do_not_depend_on_each_other():
    joint, y = problem()
    both, second = posterior(joint, y), posterior(joint, y[:, 1])
    torch.testing.assert_close(both.mean[:, 1:], second.mean)
    torch.testing.assert_close(both.scale[:, 1:], second.scale)
    torch.testing.assert_close(both.log_evidence[1:], second.log_evidence)


def test_without_training_samples_it_is_the_prior():
    joint, _ = problem()
    found = posterior(joint, np.zeros((0, 2)), shape=2.0, rate=6.0)
    assert found.degrees == 4
    assert found.log_evidence.tolist() == [0, 0]
    assert not found.mean.any()
    np.testing.assert_allclose(found.scale[:, 0] ** 2, 3 * np.diagonal(joint))


def test_a_training_sample_without_noise_is_known_exactly():
    joint, y = problem()
    again = np.concatenate([joint[:7], joint[2:3]])
    again = np.concatenate([again[:, :7], again[:, 2:3]], axis=1)
    found = posterior(again, y)
    np.testing.assert_allclose(found.mean[0], y[2], rtol=1e-9)
    assert float(found.scale.abs().max()) < 1e-6


def test_matrices_that_are_not_positive_definite_and_bad_arguments_are_refused():
    joint, y = problem()
    with pytest.raises(NumericalError, match=r"not positive definite.*larger"):
        posterior(np.ones((8, 8)) - 1e-3 * np.eye(8), y)
    with pytest.raises(ConfigError, match="rate = 0"):
        posterior(joint, y, rate=0.0)
    with pytest.raises(ConfigError, match="jitter = -1"):
        posterior(joint, y, jitter=-1.0)
    with pytest.raises(ConfigError, match=r"7 training targets.*found \(6, 6\)"):
        scale_mixture_posterior(*map(torch.zeros, ((6, 6), (2, 7), (2,), (7, 1))), shape=1.0, rate=1.0, jitter=1.0)


# The analysis


@dataclass
class FakeRun:
    """A run in memory whose real targets, two columns, are drawn from the Student-t process that is fitted."""

    num: dict = field(default_factory=lambda: {"train": 60, "test": 80})
    labels: str = "values"
    unlabelled: tuple = ()
    kernel_names: tuple = ("k",)
    solution_names: tuple = ()
    train_split: str = "train"
    factor: float = 1.0
    """Multiplies the kernel, which the analysis must not notice."""
    reads: list = field(default_factory=list)

    def __post_init__(self):
        generator = np.random.default_rng(7)
        total = self.num["train"] + self.num["test"]
        points = generator.normal(size=(total, 2))
        self.joint = np.exp(-np.square(points[:, None] - points[None]).sum(-1))
        factor = np.linalg.cholesky(self.joint + 1e-3 * np.eye(total))
        values = 10 * factor @ generator.normal(size=(total, 2))
        self.real = {"train": values[: self.num["train"]], "test": values[self.num["train"] :]}
        self.offset = {"train": 0, "test": self.num["train"]}

    def sample_ids(self, split):
        return [f"{split}-{position}" for position in range(self.num[split])]

    def num_samples(self, split):
        return self.num[split]

    def classes(self, split):
        labelled = self.labels == "classes" and split not in self.unlabelled
        return (self.real[split][:, 0] > 0).astype(np.int64) if labelled else None

    def values(self, split):
        return self.real[split] if self.labels == "values" and split not in self.unlabelled else None

    def kernel(self, name, row_split, rows, column_split, columns):
        assert name in self.kernel_names
        self.reads.append((len(rows), len(columns)))
        return self.factor * self.joint[np.ix_(rows + self.offset[row_split], columns + self.offset[column_split])]

    def diagonal(self, name, split):
        assert name in self.kernel_names
        return np.full(self.num[split], self.factor)


def compute(run, **options):
    return make_analysis(StudentTAnalysis(**options)).compute(run)


def test_the_table_and_the_evidence_are_those_of_the_posterior():
    run = FakeRun(factor=5.0)
    result = compute(run, shape=2.0, rate=3.0, noise=0.01)
    blocks = (run.joint[:60, :60], run.joint[60:, :60], np.full(80, 1.01), run.real["train"])
    expected = scale_mixture_posterior(*map(torch.from_numpy, blocks), shape=2.0, rate=3.0, jitter=0.01)
    assert len(result.table) == 160
    for row in result.table:
        at = int(row["sample"].removeprefix("test-")), row["target"]
        assert row["value"] == run.real["test"][at]
        assert row["mean"] == pytest.approx(float(expected.mean[at]), rel=1e-9, abs=1e-9)
        assert row["scale"] == pytest.approx(float(expected.scale[at]), rel=1e-9)
        assert row["degrees"] == 64
    found = result.summary["k"]
    assert found["log_evidence_1"] == pytest.approx(float(expected.log_evidence[1]), rel=1e-9)
    assert found["log_evidence"] == pytest.approx(float(expected.log_evidence.sum()), rel=1e-9)


def test_scores_match_loops_over_the_table():
    result = compute(FakeRun(), interval=0.8)
    found = result.summary["k"]
    rows = [(row, stats.t(row["degrees"], row["mean"], row["scale"])) for row in result.table]
    inside = [bool(law.ppf(0.1) <= row["value"] <= law.ppf(0.9)) for row, law in rows]
    assert found["coverage"] == pytest.approx(np.mean(inside), abs=1e-12)
    assert found["mean_width"] == pytest.approx(np.mean([law.ppf(0.9) - law.ppf(0.1) for _, law in rows]))
    assert found["log_density"] == pytest.approx(np.mean([law.logpdf(row["value"]) for row, law in rows]))
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean([(row["value"] - row["mean"]) ** 2 for row, _ in rows])))
    assert "accuracy" not in found


def test_the_true_process_is_calibrated_although_its_scale_is_ten_times_the_priors():
    coverage = compute(FakeRun(num={"train": 100, "test": 400})).summary["k"]["coverage"]
    # 800 correlated targets: the standard error is at most that of a few dozen independent ones, about 0.05.
    assert 0.8 < coverage < 0.99


def test_classes_are_fitted_one_hot_and_answered_by_argmax():
    run = FakeRun(labels="classes")
    result = compute(run)
    means = np.array([row["mean"] for row in result.table]).reshape(80, 2)
    assert result.summary["k"]["accuracy"] == np.mean(means.argmax(1) == run.classes("test"))
    assert {row["value"] for row in result.table} == {0.0, 1.0}
    assert result.summary["k"]["accuracy"] > 0.7


def test_a_split_without_labels_gets_predictions_but_no_scores_and_no_picture():
    for labels in ("values", "classes"):
        result = compute(FakeRun(labels=labels, unlabelled=("test",)))
        assert "coverage" not in result.summary["k"]
        assert result.table[0]["value"] is None
        assert result.picture is None


def test_a_training_split_without_labels_and_a_kernel_of_zeros_are_refused():
    with pytest.raises(ConfigError, match="split 'train' has none"):
        compute(FakeRun(labels="none"))
    with pytest.raises(ConfigError, match=r"kernel 'k', which is 0\.0"):
        compute(FakeRun(factor=0.0))


def test_large_training_splits_are_thinned_out_and_the_summary_says_so():
    run = FakeRun()
    summary = compute(run, max_samples=20).summary
    assert (summary["training_samples"], summary["of"], summary["samples"]) == (20, 60, 80)
    assert run.reads == [(20, 20), (80, 20)]
    assert summary["k"]["degrees"] == 22


def test_kernels_are_told_apart_from_the_summarys_own_keys():
    result = compute(FakeRun(kernel_names=("of", "k")))
    assert result.summary["kernel of"] == result.summary["k"]
    assert {row["kernel"] for row in result.table} == {"of", "k"}
    assert "k" not in compute(FakeRun(kernel_names=("of", "k")), kernels=("of",)).summary


def test_the_same_run_gives_the_same_picture_twice():
    first, second = compute(FakeRun()), compute(FakeRun())
    assert first == second
    assert first.picture.startswith(PNG)
    assert b"Software" not in first.picture


def test_missing_scipy_is_answered_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(ConfigError, match=r"pip install 'ntkpipe\[plot\]'"):
        compute(FakeRun())


def test_importing_the_analysis_imports_no_torch():
    code = "import sys, ntkpipe.workers.analyses.student_t\nassert not {'torch', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
