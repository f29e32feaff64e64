"""Every number that is known of the golden micro-network, from the kernels that the library computes."""

import itertools
import math

import golden
import numpy as np
import pytest
import torch

import ntkpipe

X = torch.tensor(golden.INPUTS, dtype=torch.float64)
Y = torch.tensor(golden.LABELS)
SIGNS = np.array([-1.0, 1.0, 1.0, -1.0])
CLASSES = np.array(golden.LABELS)


def kernel(name, **options):
    model = golden.build_model().double()
    return ntkpipe.kernel_matrix(model, X, kernel=name, y=Y, **options)


def array(name, **options):
    return kernel(name, **options).numpy()


@pytest.fixture(scope="module")
def trace():
    return array("trntk0")


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("trntk0", {}, golden.TRNTK0),
        ("pntk", {}, golden.PNTK),
        ("lpntk", {}, golden.LPNTK),
        ("ck", {}, golden.CK),
        ("em", {"modules": ["fc1", "fc2"]}, golden.EM),
        ("signgd", {}, golden.SIGNGD),
        ("signgd_asym", {}, golden.SIGNGD_ASYM),
        ("nngp", {}, [[np.dot(a, b) for b in golden.OUTPUTS] for a in golden.OUTPUTS]),
    ],
)
def test_a_kernel_has_its_known_values(name, options, expected):
    np.testing.assert_allclose(array(name, **options), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "upper"), [("trntk0", golden.TRNTK_UPPER), ("pntk", golden.PNTK_UPPER)])
def test_cosines_have_their_known_values(name, upper):
    matrix = array(name)
    roots = np.sqrt(np.diagonal(matrix))
    for (row, column), expected in upper.items():
        assert matrix[row, column] / (roots[row] * roots[column]) == pytest.approx(expected, abs=1e-8)
    if name == "trntk0":
        for (row, column), expected in upper.items():
            assert array("trntk")[row, column] == pytest.approx(expected, abs=1e-8)


def test_components_have_their_known_values():
    for name, expected in golden.TRNTK0_COMPONENTS.items():
        np.testing.assert_allclose(kernel("trntk0", layerwise=True)[name], expected, atol=1e-12)
        np.testing.assert_allclose(kernel("trntk0", parameters=[name]), expected, atol=1e-12)


def test_the_loss_kernel_has_its_known_diagonal():
    np.testing.assert_allclose(np.diagonal(array("loss")), golden.LOSS_DIAGONAL, rtol=0, atol=5e-9)


def test_the_flattened_kernel_has_its_known_eigenvalues_and_outputs_run_fastest(trace):
    full = array("full")
    np.testing.assert_allclose(np.linalg.eigvalsh(full), golden.FULL_EIGENVALUES, atol=1e-8)
    blocks = full.reshape(4, 2, 4, 2)
    np.testing.assert_allclose(np.einsum("icjc->ij", blocks), trace, atol=1e-12)
    np.testing.assert_allclose(blocks.sum(axis=(1, 3)), golden.PNTK, atol=1e-12)
    for output in (0, 1):
        np.testing.assert_allclose(blocks[:, output, :, output], array(f"class:{output}"), atol=1e-12)


def test_the_spectrum_is_known(trace):
    values = np.linalg.eigvalsh(trace)
    np.testing.assert_allclose(values, [1.40527330, 4.35235967, 32.18423679, 114.05813024], atol=1e-8)
    assert values[-1] / values[0] == pytest.approx(81.164376, abs=1e-6)
    assert np.trace(trace) == pytest.approx(152)
    assert np.linalg.norm(trace) == pytest.approx(118.60016863, abs=1e-8)
    assert np.linalg.slogdet(np.eye(4) + trace)[1] == pytest.approx(10.80271351, abs=1e-8)
    assert (values / (values + 1)).sum() == pytest.approx(3.35858730, abs=1e-8)


def test_alignments_are_known(trace):
    same = np.where(CLASSES[:, None] == CLASSES[None], 1.0, -1.0)
    centred = trace - trace.mean()
    alignment = (centred * same).sum() / np.linalg.norm(centred) / np.linalg.norm(same)
    assert alignment == pytest.approx(0.40759523, abs=1e-8)
    assert SIGNS @ trace @ SIGNS / (np.linalg.norm(trace) * 4) == pytest.approx(0.29932504, abs=1e-8)


def test_similarities_of_kernels_are_known(trace):
    centre = np.eye(4) - 0.25

    def cka(one, other):
        one, other = centre @ one @ centre, centre @ other @ centre
        return (one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other)

    pntk, ck = array("pntk"), array("ck")
    assert cka(trace, pntk) == pytest.approx(0.91055780, abs=1e-8)
    assert cka(trace, ck) == pytest.approx(0.75787480, abs=1e-8)  # exact rational arithmetic says so too
    cosine = (trace * pntk).sum() / np.linalg.norm(trace) / np.linalg.norm(pntk)
    assert 1 - cosine == pytest.approx(0.02832507, abs=1e-8)
    values, vectors = np.linalg.eigh(trace)
    root = vectors * np.sqrt(values) @ vectors.T
    nuclear = np.sqrt(np.clip(np.linalg.eigvalsh(root @ ck @ root), 0, None)).sum()
    assert nuclear == pytest.approx(53.32763543, abs=1e-6)
    assert math.acos(nuclear / math.sqrt(np.trace(trace) * np.trace(ck))) == pytest.approx(0.44660854, abs=1e-6)


def test_ridge_regression_and_its_leave_one_out_residuals_are_known(trace):
    solution = ntkpipe.solve(torch.from_numpy(trace), torch.from_numpy(SIGNS), ridge=1.0)
    np.testing.assert_allclose(solution.alpha.ravel(), golden.KRR_ALPHA, atol=1e-8)
    residuals = solution.alpha.ravel().numpy() / np.diagonal(np.linalg.inv(trace + np.eye(4)))
    expected = [-0.90051165, 1.49410132, 0.00750188, -0.75504914]
    np.testing.assert_allclose(residuals, expected, atol=1e-8)
    for left in range(4):
        rest = [i for i in range(4) if i != left]
        alpha = np.linalg.solve(trace[np.ix_(rest, rest)] + np.eye(3), SIGNS[rest])
        assert SIGNS[left] - trace[left, rest] @ alpha == pytest.approx(expected[left], abs=1e-8)


def test_gradient_flow_is_known(trace):
    values, vectors = np.linalg.eigh(trace)
    flow = vectors @ ((1 - np.exp(-0.05 * values)) * (vectors.T @ SIGNS))
    np.testing.assert_allclose(flow, [-0.13621113, 0.60731988, 1.00713607, -0.12182241], atol=1e-8)


def test_greedy_selections_are_known(trace):
    left = trace + np.eye(4)
    order, pivots = [], []
    for _ in range(4):
        best = max((i for i in range(4) if i not in order), key=lambda i: left[i, i])
        order.append(best)
        pivots.append(left[best, best])
        left = left - np.outer(left[best], left[best]) / left[best, best]
    assert order == [1, 2, 0, 3]
    np.testing.assert_allclose(pivots, [73, 41.21917808, 6.15420405, 2.65439032], atol=1e-8)
    assert np.prod(pivots) == pytest.approx(np.linalg.det(trace + np.eye(4)))
    distances = np.add.outer(np.diagonal(trace), np.diagonal(trace)) - 2 * trace
    chosen = [int(np.diagonal(trace).argmax())]
    while len(chosen) < 4:
        nearest = distances[:, chosen].argmin(axis=1)
        gaps = distances[np.arange(4), np.array(chosen)[nearest]]
        sizes = [gaps[nearest == cluster].sum() for cluster in range(len(chosen))]
        inside = np.where(nearest == int(np.argmax(sizes)), gaps, -1)
        chosen.append(int(inside.argmax()))
    assert chosen == [1, 3, 2, 0]


def test_the_posterior_after_one_observation_is_known(trace):
    posterior = trace - np.outer(trace[:, 0], trace[0]) / (trace[0, 0] + 1)
    expected = [0.94736842, 24.63157895, 53.63157895, 1.78947368]
    np.testing.assert_allclose(np.diagonal(posterior), expected, atol=1e-8)


def test_shapley_values_are_known(trace):
    def utility(subset):
        if not subset:
            return -1.0
        at = list(subset)
        fit = trace[:, at] @ np.linalg.solve(trace[np.ix_(at, at)] + np.eye(len(at)), SIGNS[at])
        return -float(np.mean((fit - SIGNS) ** 2))

    values = np.zeros(4)
    orders = list(itertools.permutations(range(4)))
    for order in orders:
        for place, sample in enumerate(order):
            values[sample] += utility(order[: place + 1]) - utility(order[:place])
    values /= len(orders)
    np.testing.assert_allclose(values, [-0.31840714, 0.70769673, 0.45344877, 0.12862430], atol=1e-8)
    assert values.sum() == pytest.approx(0.97136267, abs=1e-8)


def test_laplace_log_determinants_are_known():
    full = array("full").reshape(4, 2, 4, 2)
    probabilities = torch.tensor(golden.OUTPUTS).double().softmax(dim=1).numpy()
    hessians = [np.diag(p) - np.outer(p, p) for p in probabilities]
    delta = 0.7

    def half(samples):
        tangent = full[np.ix_(samples, [0, 1], samples, [0, 1])].reshape(2 * len(samples), -1)
        curvature = np.zeros_like(tangent)
        for place, sample in enumerate(samples):
            curvature[2 * place : 2 * place + 2, 2 * place : 2 * place + 2] = hessians[sample]
        return 0.5 * np.linalg.slogdet(np.eye(len(tangent)) + curvature @ tangent / delta)[1]

    found = [half([0, 1, 2, 3]), half([0, 1]) + half([2, 3]), sum(half([i]) for i in range(4))]
    full_value = found[0]
    # The table gives log determinants; which factor they carry is settled by the first one and must hold for all.
    factor = 1.32241172 / full_value
    assert factor == pytest.approx(round(factor), abs=1e-6)
    np.testing.assert_allclose(np.array(found) * factor, [1.32241172, 1.34332739, 1.34558777], atol=1e-7)
    per_class = 0.0
    for output in (0, 1):
        gram = full[:, output, :, output]
        diagonal = np.diag([h[output, output] for h in hessians])
        per_class += 0.5 * np.linalg.slogdet(np.eye(4) + diagonal @ gram / delta)[1]
    assert per_class * factor == pytest.approx(1.19584076, abs=1e-7)
