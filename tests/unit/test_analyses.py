import subprocess
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntkpipe.configs.analyses import FidelityAnalysis, HeatmapAnalysis, NeighborsAnalysis, SpectrumAnalysis
from ntkpipe.configs.errors import ConfigError
from ntkpipe.workers.analyses import neighbors as neighbors_module
from ntkpipe.workers.analyses import ranking
from ntkpipe.workers.analyses.base import evenly_spaced
from ntkpipe.workers.analyses.fidelity import class_probabilities, kendall_tau, margins
from ntkpipe.workers.analyses.naming import summary_keys
from ntkpipe.workers.analyses.neighbors import as_images, nearest
from ntkpipe.workers.analyses.plotting import line_style
from ntkpipe.workers.analyses.registry import make_analysis

PNG = b"\x89PNG\r\n\x1a\n"
SECTIONS = (
    FidelityAnalysis(),
    HeatmapAnalysis(kernel="k"),
    SpectrumAnalysis(),
    NeighborsAnalysis(kernel="k", samples=2, neighbors=2),
)


@dataclass
class FakeRun:
    """A run in memory: points in the plane under an RBF kernel, with 4 x 4 images."""

    num: dict = field(default_factory=lambda: {"train": 30, "test": 12})
    labelled: bool = True
    image_shape: tuple = (1, 4, 4)
    solution_names: tuple = ("krr",)
    kernel_names: tuple = ("k",)
    train_split: str = "train"
    matrices: dict = field(default_factory=dict)
    """Replace the kernel between (row split, column split)."""
    outputs: dict = field(default_factory=dict)
    """Replace what the network, under its name, or a solution says on the test split."""
    reads: list = field(default_factory=list)

    def __post_init__(self):
        generator = np.random.default_rng(3)
        self.points = {split: generator.normal(size=(num, 2)) for split, num in self.num.items()}
        self.labels = {split: np.arange(num) * 7 % 3 for split, num in self.num.items()}
        self.scores = {split: generator.normal(size=(num, 3)) for split, num in self.num.items()}
        self.images = {split: generator.random((num, *self.image_shape)) for split, num in self.num.items()}

    def sample_ids(self, split):
        return [f"{split}-{position}" for position in range(self.num[split])]

    def num_samples(self, split):
        return self.num[split]

    def classes(self, split):
        return self.labels[split] if self.labelled else None

    def inputs(self, split, positions):
        return self.images[split][positions]

    def network_outputs(self, split, member=""):
        return self.outputs.get("network", self.scores[split])

    def predictions(self, solution, split):
        return self.outputs.get(solution, self.scores[split][:, ::-1] / 2 + self.scores[split])

    def full(self, row_split, column_split):
        if (row_split, column_split) in self.matrices:
            return self.matrices[row_split, column_split]
        differences = self.points[row_split][:, None] - self.points[column_split][None]
        return np.exp(-np.square(differences).sum(-1))

    def kernel(self, name, row_split, rows, column_split, columns):
        assert name in self.kernel_names
        self.reads.append((len(rows), len(columns)))
        return self.full(row_split, column_split)[np.ix_(rows, columns)]


def compute(section, run):
    return make_analysis(section).compute(run)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.kind)
def test_every_analysis_gives_the_same_picture_and_table_twice(section):
    first, second = compute(section, FakeRun()), compute(section, FakeRun())
    assert first.picture.startswith(PNG)
    assert first == second
    assert len({tuple(row) for row in first.table}) <= 1


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.kind)
def test_pictures_hold_no_date_and_no_version(section):
    picture = compute(section, FakeRun()).picture
    assert b"Software" not in picture
    assert b"Time" not in picture


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.kind)
def test_missing_matplotlib_is_answered_with_the_command_that_installs_it(section, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"pip install 'ntkpipe\[plot\]'"):
        compute(section, FakeRun())


def test_only_fidelity_needs_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(ConfigError, match=r"pip install 'ntkpipe\[plot\]'"):
        compute(SECTIONS[0], FakeRun())
    for section in SECTIONS[1:]:
        compute(section, FakeRun())


def test_importing_the_registry_imports_no_optional_library():
    code = (
        "import sys, ntkpipe.workers.analyses.registry\n"
        "assert not {'matplotlib', 'scipy', 'sklearn', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@given(st.integers(1, 300), st.integers(2, 300))
def test_evenly_spaced_positions_are_distinct_sorted_and_reach_both_ends(num_samples, at_most):
    positions = evenly_spaced(num_samples, at_most)
    assert len(positions) == min(num_samples, at_most)
    assert (np.diff(positions) > 0).all()
    assert (positions[0], positions[-1]) == (0, num_samples - 1)


def test_curves_of_one_picture_look_different():
    assert len({line_style(index) for index in range(24)}) == 24


def test_names_that_a_summary_uses_itself_are_told_apart():
    assert summary_keys("kernel", ["of", "ck"], ["of"]) == {"of": "kernel of", "ck": "ck"}


# Fidelity


def brute_force_tau(first, second):
    """Kendall's tau-b from its definition over all pairs."""
    upper = np.triu_indices(len(first), 1)
    a, b = (np.sign(np.subtract.outer(values, values))[upper] for values in (first, second))
    scale = np.sqrt((a != 0).sum() * (b != 0).sum())
    return (a * b).sum() / scale if scale else None


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12))
def test_tau_is_tau_b_by_definition_with_ties_and_undefined_for_constants(pairs):
    first, second = (np.array([pair[side] for pair in pairs], dtype=float) for side in (0, 1))
    expected = brute_force_tau(first, second)
    found = kendall_tau(first, second)
    assert (found is None) == (expected is None)
    if expected is not None:
        assert found == pytest.approx(expected, abs=1e-12)


def test_margins_and_probabilities_match_their_formulas():
    outputs, classes = np.array([[2.0, 1.0, 0.0], [0.0, 5.0, 7.0]]), np.array([0, 1])
    assert margins(outputs, classes).tolist() == [1.0, -2.0]
    expected = np.exp(outputs)[[0, 1], classes] / np.exp(outputs).sum(1)
    np.testing.assert_allclose(class_probabilities(outputs, classes), expected, rtol=1e-15)
    assert class_probabilities(np.array([[1e4, 0.0]]), np.array([1])).tolist() == [0.0]


def test_fidelity_counts_accuracy_agreement_and_their_difference():
    run = FakeRun(num={"train": 3, "test": 4})
    run.labels["test"] = np.array([0, 1, 2, 0])
    run.outputs = {"network": np.eye(3)[[0, 1, 2, 2]] * 3, "krr": np.eye(3)[[0, 1, 1, 2]]}
    result = compute(FidelityAnalysis(), run)
    assert [row["model"] for row in result.table] == ["network", "krr"]
    assert result.summary["network"]["accuracy"] == 0.75
    assert result.summary["krr"]["accuracy"] == 0.5
    assert result.summary["krr"]["tad"] == -0.25
    assert result.summary["krr"]["agreement"] == 0.75


def test_fidelity_compares_ranks_of_margins_and_of_probability_with_prediction():
    run = FakeRun()
    found = compute(FidelityAnalysis(), run).summary["krr"]
    classes, outputs, predictions = run.labels["test"], run.network_outputs("test"), run.predictions("krr", "test")
    probabilities = np.exp(outputs)[np.arange(12), classes] / np.exp(outputs).sum(1)
    own = predictions[np.arange(12), classes]
    assert found["tau"] == pytest.approx(brute_force_tau(probabilities, own))
    assert found["tau_margin"] == pytest.approx(
        brute_force_tau(margins(outputs, classes), margins(predictions, classes))
    )
    assert found["tau_samples"] == 12


def test_fidelity_leaves_saturated_probabilities_out_of_tau_and_says_how_many_remain():
    run = FakeRun()
    outputs = run.scores["test"].copy()
    outputs[0], outputs[1] = np.eye(3)[run.labels["test"][0]] * 1e4, -np.eye(3)[run.labels["test"][1]] * 1e4
    run.outputs["network"] = outputs
    summary = compute(FidelityAnalysis(), run).summary
    assert [summary[model]["tau_samples"] for model in ("network", "krr")] == [10, 10]
    rest, classes = outputs[2:], run.labels["test"][2:]
    own = run.predictions("krr", "test")[2:][np.arange(10), classes]
    assert summary["krr"]["tau"] == pytest.approx(brute_force_tau(class_probabilities(rest, classes), own))


def test_fidelity_of_constant_predictions_is_undefined_rather_than_nan():
    found = compute(FidelityAnalysis(), FakeRun(outputs={"krr": np.zeros((12, 3))})).summary["krr"]
    assert (found["tau"], found["tau_margin"]) == (None, None)


def test_fidelity_does_not_change_the_outputs_it_reads():
    run = FakeRun()
    before = run.scores["test"].copy()
    compute(FidelityAnalysis(), run)
    assert np.array_equal(run.scores["test"], before)


def test_fidelity_leaves_solutions_of_real_targets_out_and_lists_them_but_refuses_them_by_name():
    run = FakeRun(solution_names=("krr", "values"), outputs={"values": np.zeros((12, 1))})
    result = compute(FidelityAnalysis(), run)
    assert result.summary["left_out"] == ["values"]
    assert [row["model"] for row in result.table] == ["network", "krr"]
    with pytest.raises(ConfigError, match="solution 'values' has 1, but split 'test' has class 2"):
        compute(FidelityAnalysis(solutions=("values",)), run)


def test_fidelity_without_solutions_tells_of_the_network_and_draws_nothing():
    result = compute(FidelityAnalysis(), FakeRun(solution_names=()))
    assert (len(result.table), result.picture) == (1, None)


def test_fidelity_needs_classes_and_an_output_for_each():
    with pytest.raises(ConfigError, match="no integer labels"):
        compute(FidelityAnalysis(), FakeRun(labelled=False))
    with pytest.raises(ConfigError, match="the network has 2"):
        compute(FidelityAnalysis(), FakeRun(outputs={"network": np.zeros((12, 2))}))
    single = FakeRun(outputs={"network": np.zeros((12, 1))})
    single.labels["test"] = np.zeros(12, dtype=np.int64)
    with pytest.raises(ConfigError, match="at least two; the network has 1"):
        compute(FidelityAnalysis(), single)


def test_fidelity_tells_solutions_from_its_own_keys_and_draws_many_of_them():
    names = ("samples", "network", "a", "b")
    result = compute(FidelityAnalysis(), FakeRun(solution_names=names))
    assert result.summary["samples"] == 12
    assert [row["model"] for row in result.table] == ["network", "solution samples", "solution network", "a", "b"]


# Heatmap


def test_heatmap_means_match_loops_over_pairs_without_the_diagonal():
    run = FakeRun()
    summary = compute(HeatmapAnalysis(kernel="k"), run).summary
    matrix, classes = run.full("train", "train"), run.labels["train"]
    pairs = [(i, j) for i in range(30) for j in range(30) if i != j]
    within = [matrix[i, j] for i, j in pairs if classes[i] == classes[j]]
    between = [matrix[i, j] for i, j in pairs if classes[i] != classes[j]]
    assert summary["mean_within_class"] == pytest.approx(np.mean(within), rel=1e-12)
    assert summary["mean_between_classes"] == pytest.approx(np.mean(between), rel=1e-12)


def test_heatmap_reads_no_more_than_it_shows_and_says_so():
    run = FakeRun()
    summary = compute(HeatmapAnalysis(kernel="k", max_samples=10), run).summary
    assert (summary["samples"], summary["of"], run.reads) == (10, 30, [(10, 10)])


def test_heatmap_without_classes_says_that_it_is_not_sorted_and_has_no_means():
    result = compute(HeatmapAnalysis(kernel="k"), FakeRun(labelled=False))
    assert result.summary["sorted_by_class"] is False
    assert "mean_within_class" not in result.summary
    assert result.picture.startswith(PNG)


@pytest.mark.parametrize("num_classes", [1, 30])
def test_heatmap_of_one_class_or_of_single_samples_has_one_mean_only(num_classes):
    run = FakeRun()
    run.labels["train"] = np.arange(30) % num_classes
    summary = compute(HeatmapAnalysis(kernel="k"), run).summary
    assert (summary["mean_within_class"] is None) == (num_classes == 30)
    assert (summary["mean_between_classes"] is None) == (num_classes == 1)


def test_heatmap_draws_a_constant_kernel_and_hundreds_of_classes():
    run = FakeRun(num={"train": 200, "test": 2}, matrices={("train", "train"): np.full((200, 200), 1e6)})
    run.labels["train"] = np.arange(200)
    assert compute(HeatmapAnalysis(kernel="k"), run).picture.startswith(PNG)


# Spectrum


def test_spectrum_of_a_known_matrix_has_its_known_values():
    generator = np.random.default_rng(0)
    vectors = np.linalg.qr(generator.normal(size=(12, 12)))[0]
    values = np.arange(12, 0, -1.0) ** 2
    run = FakeRun(num={"train": 12, "test": 2}, matrices={("train", "train"): (vectors * values) @ vectors.T})
    result = compute(SpectrumAnalysis(), run)
    found = result.summary["k"]
    ridge = 1e-3 * values.sum() / 12
    assert found["largest"] == pytest.approx(144)
    assert found["smallest"] == pytest.approx(1)
    assert found["condition_number"] == pytest.approx(144)
    assert found["trace"] == pytest.approx(values.sum())
    assert found["effective_dimension"] == pytest.approx((values / (values + ridge)).sum())
    assert found["not_positive"] == 0
    np.testing.assert_allclose([row["k"] for row in result.table], values)
    targets = np.eye(3)[run.labels["train"]]
    targets -= targets.mean(0)
    energies = np.square(vectors.T @ targets).sum(1) / np.square(targets).sum()
    for count in (1, 5, 10):
        assert found[f"label_energy_top_{count}"] == pytest.approx(energies[:count].sum())
    assert "label_energy_top_50" not in found


def test_spectrum_symmetrises_counts_non_positive_eigenvalues_and_has_no_condition_number_then():
    matrix = np.diag([4.0, 1.0, 0.0, -1.0])
    matrix[0, 1], matrix[1, 0] = 1e-3, -1e-3
    run = FakeRun(num={"train": 4, "test": 2}, matrices={("train", "train"): matrix}, labelled=False)
    result = compute(SpectrumAnalysis(), run)
    assert result.summary["k"]["not_positive"] == 2
    assert result.summary["k"]["condition_number"] is None
    assert [row["k"] for row in result.table] == [4.0, 1.0, 0.0, -1.0]
    assert not [key for key in result.summary["k"] if key.startswith("label_energy")]


def test_spectrum_of_a_zero_kernel_is_drawn_and_has_no_effective_dimension():
    run = FakeRun(num={"train": 4, "test": 2}, matrices={("train", "train"): np.zeros((4, 4))})
    result = compute(SpectrumAnalysis(), run)
    assert result.summary["k"]["effective_dimension"] is None
    assert result.picture.startswith(PNG)


def test_spectrum_of_one_class_has_no_label_energy():
    run = FakeRun()
    run.labels["train"] = np.full(30, 7)
    assert not [key for key in compute(SpectrumAnalysis(), run).summary["k"] if key.startswith("label_energy")]


def test_spectrum_is_restricted_to_the_samples_it_says_and_tells_kernels_from_its_own_keys():
    run = FakeRun(kernel_names=("of", "k"))
    result = compute(SpectrumAnalysis(max_samples=10), run)
    assert (result.summary["samples"], result.summary["of"], run.reads) == (10, 30, [(10, 10)] * 2)
    assert result.summary["kernel of"] == result.summary["k"]
    assert list(result.table[0]) == ["rank", "of", "k"]


def test_spectrum_of_named_kernels_reads_no_others():
    result = compute(SpectrumAnalysis(kernels=("k",)), FakeRun(kernel_names=("k", "other")))
    assert "other" not in result.summary


# Neighbors


@given(st.integers(1, 7), st.integers(1, 9), st.booleans(), st.integers(0, 99))
def test_streamed_neighbors_equal_a_stable_sort_of_the_whole_rows(batch, num_neighbors, inside, seed):
    split = "train" if inside else "test"
    run = FakeRun(num={"train": 8, "test": 5})
    # Few different values, so that there are ties.
    matrix = np.random.default_rng(seed).integers(0, 3, (run.num[split], 8)).astype(float)
    run.matrices[split, "train"] = matrix
    positions = np.array([4, 0, 2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbors_module, "COLUMN_BATCH", batch)
        patch.setattr(ranking, "HELD_VALUES", 1)
        found, values = nearest(run, "k", split, positions, num_neighbors)
    assert max(columns for _, columns in run.reads) <= batch
    for position, neighbors, row in zip(positions, found, values, strict=True):
        expected = [i for i in np.argsort(-matrix[position], kind="stable") if not (inside and i == position)]
        assert neighbors.tolist() == expected[:num_neighbors]
        assert row.tolist() == matrix[position][neighbors].tolist()


def test_neighbors_shows_half_misclassified_images_then_the_first_correct_ones():
    run = FakeRun()
    wrong = np.array([1, 4, 5, 9])
    said = run.labels["test"].copy()
    said[wrong] = (said[wrong] + 1) % 3
    run.outputs["network"] = np.eye(3)[said]

    def shown(samples):
        result = compute(NeighborsAnalysis(kernel="k", samples=samples, neighbors=1), run)
        assert result.summary["images"] == len(result.table)
        return [row["sample"] for row in result.table], result.summary["misclassified_by_the_network"]

    assert shown(4) == (["test-1", "test-4", "test-0", "test-2"], 2)
    assert shown(10)[0] == [f"test-{i}" for i in (1, 4, 5, 9, 0, 2, 3, 6, 7, 8)]
    assert shown(1)[0] == ["test-0"]
    assert shown(100)[1] == 4
    run.outputs["network"] = np.eye(3)[(run.labels["test"] + 1) % 3]
    assert shown(3) == (["test-0", "test-1", "test-2"], 3)


def test_neighbors_table_tells_ids_classes_ranks_and_kernel_values():
    run = FakeRun()
    result = compute(NeighborsAnalysis(kernel="k", samples=3, neighbors=4), run)
    assert len(result.table) == 12
    matrix, said = run.full("test", "train"), run.scores["test"].argmax(1)
    for row in result.table:
        sample, neighbor = int(row["sample"].removeprefix("test-")), int(row["neighbor"].removeprefix("train-"))
        assert row["kernel"] == matrix[sample, neighbor]
        assert (matrix[sample] > row["kernel"]).sum() == row["rank"] - 1
        assert (row["class"], row["network"]) == (run.labels["test"][sample], said[sample])
        assert row["neighbor_class"] == run.labels["train"][neighbor]
    share = np.mean([row["class"] == row["neighbor_class"] for row in result.table])
    assert result.summary["share_of_neighbors_with_the_same_class"] == share


def test_a_sample_is_not_its_own_neighbor_even_when_it_is_alone():
    run = FakeRun()
    result = compute(NeighborsAnalysis(kernel="k", split="train", samples=5, neighbors=20), run)
    assert all(row["sample"] != row["neighbor"] for row in result.table)
    result = compute(NeighborsAnalysis(kernel="k", split="train"), FakeRun(num={"train": 1, "test": 1}))
    assert (result.table, result.summary["share_of_neighbors_with_the_same_class"]) == ([], None)
    assert result.picture.startswith(PNG)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 6), (5, 4)])
def test_neighbors_draws_grey_colour_and_oblong_images(shape):
    result = compute(NeighborsAnalysis(kernel="k", samples=2, neighbors=2), FakeRun(image_shape=shape))
    assert result.picture.startswith(PNG)


def test_images_keep_their_pixels_and_put_channels_last():
    inputs = np.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    found = as_images(inputs, "neighbors")
    assert found.shape == (2, 4, 5, 3)
    assert np.array_equal(found[1, 2, 3], inputs[1, :, 2, 3])


@pytest.mark.parametrize("shape", [(7,), (2, 4, 4), (1, 2, 4, 4)])
def test_inputs_that_are_no_images_are_refused_before_the_kernel_is_read(shape):
    run = FakeRun(image_shape=shape)
    with pytest.raises(ConfigError, match=r"analysis 'sheet' shows images.*the inputs are"):
        compute(NeighborsAnalysis(kernel="k", name="sheet"), run)
    assert run.reads == []
