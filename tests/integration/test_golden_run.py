"""The golden micro-network through the whole service, in this process."""

import warnings

import golden
import numpy as np
import pytest
import xarray
import zarr

import ntkpipe


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return ntkpipe.run(golden.config(), tmp_path_factory.mktemp("runs") / "golden")


def test_every_kernel_has_its_golden_values(run):
    assert run.kernel("trntk0")[:, :].tolist() == golden.TRNTK0
    assert run.kernel("pntk")[:, :].tolist() == golden.PNTK
    assert run.kernel("ck")[:, :].tolist() == golden.CK
    cosine = run.kernel("trntk")[:, :]
    assert cosine.diagonal().tolist() == [1, 1, 1, 1]
    for (row, column), value in golden.TRNTK_UPPER.items():
        assert cosine[row, column] == pytest.approx(value, abs=6e-8)
        assert cosine[column, row] == cosine[row, column]


def test_every_component_has_its_golden_values_and_components_sum_to_the_kernel(run):
    for name, values in golden.TRNTK0_COMPONENTS.items():
        assert run.kernel("trntk0", component=name)[:, :].tolist() == values
    for kernel in ("trntk0", "trntk", "pntk", "trntk0-signs"):
        for rows in ("train", "test"):
            parts = [run.kernel(kernel, rows, component=name)[:, :] for name in golden.TRNTK0_COMPONENTS]
            np.testing.assert_allclose(sum(parts), run.kernel(kernel, rows)[:, :], rtol=1e-6)


def test_the_rectangle_of_test_samples_equals_the_triangle_for_equal_samples(run):
    for kernel in ("trntk0", "trntk", "pntk", "ck", "pntk-sjlt", "trntk0-signs"):
        assert np.array_equal(run.kernel(kernel, "test")[:, :], run.kernel(kernel)[:, :])


def test_projected_kernels_are_inner_products_of_stored_features(run):
    features = run.features["pntk-sjlt"][:].astype(np.float64)
    assert features.shape == (4, 16)
    np.testing.assert_allclose(features @ features.T, run.kernel("pntk-sjlt")[:, :], rtol=1e-6)
    by_group = run.features["trntk0-signs", "test"][1:3]
    assert by_group.shape == (4, 2, 64)


def test_the_diagonal_is_exact_even_for_projected_kernels(run):
    assert run.diagonal("trntk").tolist() == [18, 72, 60, 2]
    assert run.diagonal("trntk0-signs", "test").tolist() == [18, 72, 60, 2]
    assert run.diagonal("pntk-sjlt").tolist() == [10, 48, 20, 2]


def test_solutions_solve_their_systems(run):
    targets = np.eye(2)[golden.LABELS]
    for name, kernel in (("krr", "trntk0"), ("sgd", "trntk")):
        alpha, matrix = run.solution(name), run.kernel(kernel)[:, :].astype(np.float64)
        record = run.solution_record(name)
        assert record.status == "converged"
        residual = np.linalg.norm(matrix @ alpha + alpha - targets, axis=0) / np.linalg.norm(targets, axis=0)
        np.testing.assert_allclose(residual, record.residuals, atol=1e-12)
        np.testing.assert_allclose(run.predictions(name, "test"), matrix @ alpha, atol=1e-12)


def test_solutions_have_their_golden_values(run):
    # One-hot targets are (1 -+ y) / 2 with y = (-1, 1, 1, -1), so the difference of the columns solves for y.
    alpha = run.solution("krr")
    np.testing.assert_allclose(alpha[:, 1] - alpha[:, 0], golden.KRR_ALPHA, atol=1e-8)


def test_network_outputs_labels_and_ids_are_stored(run):
    assert run.outputs("test").tolist() == golden.OUTPUTS
    assert run.labels("train").tolist() == golden.LABELS
    assert run.sample_ids == list(golden.IDS)


def test_plain_zarr_reads_the_run(run):
    group = zarr.open_group(f"{run.url}/data.zarr", mode="r")
    stored = group["kernel/trntk0/train-train"]
    assert stored[2:4, 0:2].tolist() == [[11, 38], [2, 2]]
    assert np.isnan(stored[0:2, 2:4]).all()


def test_plain_xarray_reads_the_run(run):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kernels = xarray.open_zarr(f"{run.url}/data.zarr", group="kernel/trntk0", consolidated=False)
        components = xarray.open_zarr(f"{run.url}/data.zarr", group="component/trntk0", consolidated=False)
    assert kernels["test-train"].dims == ("test_row", "train_column")
    assert components["test-train"].dims == ("group", "test_row", "train_column")
    assert components["test-train"].attrs["groups"] == list(golden.TRNTK0_COMPONENTS)
    np.testing.assert_array_equal(components["test-train"].sum("group"), kernels["test-train"])


def test_indices_may_be_positions_ids_slices_lists_and_masks(run):
    kernel = run.kernel("trntk0")
    assert kernel[1, 2] == 38
    assert kernel["x1", "x2"] == 38
    assert kernel[-1, 0] == 2
    assert kernel[["x2", "x0"], 1:3].tolist() == [[38, 60], [30, 11]]
    assert kernel[np.array([True, False, False, True]), 0].tolist() == [18, 2]
    assert kernel[3::-2, :].tolist() == [golden.TRNTK0[3], golden.TRNTK0[1]]


def test_neighbors_leave_the_sample_itself_out_and_are_sorted(run):
    assert [(n.sample_id, n.value) for n in run.neighbors("x1", 2, kernel="trntk0")] == [("x2", 38.0), ("x0", 30.0)]
    found = run.neighbors("x1", 9, kernel="trntk0", split="test")
    assert [n.sample_id for n in found] == ["x1", "x2", "x0", "x3"]


def test_what_does_not_exist_is_refused_with_the_nearest_name(run):
    with pytest.raises(ntkpipe_error("not-found"), match="did you mean 'trntk0'"):
        run.kernel("trntk00")
    with pytest.raises(ntkpipe_error("not-found"), match=r"no sample 'x9'.*from 'x0' to 'x3'"):
        run.kernel("trntk0")["x9", 0]
    with pytest.raises(ntkpipe_error("not-found"), match="position 4 is outside"):
        run.kernel("trntk0")[4, 0]
    with pytest.raises(ntkpipe_error("not-found"), match="train x train, test x train"):
        run.kernel("trntk0", "test", "test")
    with pytest.raises(ntkpipe_error("not-found"), match="no stored features"):
        run.features["trntk0"][:]


def ntkpipe_error(kind):
    from ntkpipe.configs.errors import error_of_kind

    return type(error_of_kind(kind, ""))


def test_a_map_style_data_set_gives_the_same_run(run, tmp_path):
    config = golden.config()
    config["data"]["splits"]["train"] = {"kind": "python", "target": "golden:Items"}
    found = ntkpipe.run(config, tmp_path / "run")
    assert found.sample_ids == ["0", "1", "2", "3"]
    assert found.labels("train").tolist() == golden.LABELS
    assert np.array_equal(found.kernel("trntk")[:, :], run.kernel("trntk")[:, :])


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"model": {"target": "golden:build_unseeded_model"}}, "builds other weights in this process"),
        ({"data": {"splits": {"train": {"kind": "python", "target": "golden:load_random"}}}}, "differ from those"),
        ({"data": {"splits": {"train": {"kind": "python", "target": "golden:Augmented"}}}}, "differ from those"),
        (
            {"data": {"splits": {"train": {"kind": "python", "target": "golden:load_relabelled"}}}},
            "ids or labels differ",
        ),
    ],
)
def test_a_worker_that_loads_something_else_than_was_planned_refuses_to_work(section, words, tmp_path):
    with pytest.raises(ntkpipe_error("run-mismatch"), match=words):
        ntkpipe.run(golden.config(**section), tmp_path / "run")


def test_a_run_without_any_kernel_matrix_ends_well(tmp_path):
    splits = golden.config()["data"]["splits"]
    found = ntkpipe.run(golden.config(data={"splits": splits, "pairs": []}, solve=[]), tmp_path / "run")
    assert found.features["pntk-sjlt"][:].shape == (4, 16)
