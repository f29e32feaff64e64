"""A parameterised quantum circuit is an ordinary module: its gradients are those of the parameter-shift rule.

For a gate exp(-i t P / 2) with P^2 = 1, the derivative of an expectation is exactly (f(t + pi/2) - f(t - pi/2)) / 2
(Mitarai et al. 2018; Schuld et al. 2019), which involves no automatic differentiation.
"""

import math

import pytest
import torch
from torch import nn

import ntkpipe
from ntkpipe.configs.errors import CoverageError
from ntkpipe.workers.jacobians.coverage import plan_routes

PAULIS = {"X": [[0, 1], [1, 0]], "Y": [[0, -1j], [1j, 0]], "Z": [[1, 0], [0, -1]]}


def rotation(axis, angles):
    """Return exp(-i angle P / 2), (..., 2, 2), for angles of any shape."""
    pauli = torch.tensor(PAULIS[axis], dtype=torch.complex128).to(torch.complex(angles, angles).dtype)
    half = angles[..., None, None] / 2
    return half.cos() * torch.eye(2).to(pauli) - 1j * half.sin() * pauli


class Circuit(nn.Module):
    """Rotations by the data, then layers of trainable RX, RY, RZ on every qubit and a ring of CNOTs; measures every Z.

    The state is a vector of 2^n amplitudes for every sample.
    """

    def __init__(self, num_qubits, num_layers):
        super().__init__()
        self.num_qubits = num_qubits
        shape = (num_layers, num_qubits)
        self.x_angles, self.y_angles, self.z_angles = (nn.Parameter(3 * torch.randn(shape)) for _ in range(3))

    def forward(self, data):
        num, size = len(data), 2**self.num_qubits
        real = torch.nn.functional.pad(data.new_ones(num, 1), (0, size - 1))
        state = torch.complex(real, torch.zeros_like(real))
        for qubit in range(self.num_qubits):
            state = self.rotated(state, rotation("X", data[:, qubit]), qubit)
        for layer in range(len(self.x_angles)):
            for qubit in range(self.num_qubits):
                for axis, angles in (("X", self.x_angles), ("Y", self.y_angles), ("Z", self.z_angles)):
                    state = self.rotated(state, rotation(axis, angles[layer, qubit]), qubit)
            for qubit in range(self.num_qubits - 1):
                state = self.flipped(state, qubit, qubit + 1)
        chances = state.real.square() + state.imag.square()
        bits = torch.arange(size).unsqueeze(0) >> torch.arange(self.num_qubits).unsqueeze(1) & 1
        return chances @ (1.0 - 2.0 * bits.T).to(chances)

    def rotated(self, state, gate, qubit):
        pairs = state.reshape(len(state), -1, 2, 2**qubit)
        return torch.einsum("...ij,bajc->baic" if gate.dim() == 2 else "bij,bajc->baic", gate, pairs).flatten(1)

    def flipped(self, state, control, target):
        index = torch.arange(state.shape[1])
        return state[:, torch.where((index >> control & 1).bool(), index ^ (1 << target), index)]


class Pole(nn.Module):
    """One qubit, RY(theta) on |0>, Z measured: f = cos(theta). The data are not looked at, as theta is all there is."""

    def __init__(self, theta):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([theta], dtype=torch.float64))

    def forward(self, data):
        state = rotation("Y", self.theta)[:, :, 0].expand(len(data), 2)
        return (state[:, :1].abs().square() - state[:, 1:].abs().square()) + 0 * data[:, :1]


def circuit(seed=0):
    torch.manual_seed(seed)
    return Circuit(num_qubits=3, num_layers=2).double()


def data(num=6):
    x = torch.randn(num, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[-1] = x[0]
    return x


def shifted_jacobian(model, x):
    """Return {name: (N, C, P)} by the parameter-shift rule."""
    found = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            columns = []
            for entry in range(parameter.numel()):
                values = []
                for shift in (math.pi / 2, -math.pi / 2):
                    parameter.view(-1)[entry] += shift
                    values.append(model(x))
                    parameter.view(-1)[entry] -= shift
                columns.append((values[0] - values[1]) / 2)
            found[name] = torch.stack(columns, dim=2)
    return found


def flat(jacobian):
    return torch.cat(list(jacobian.values()), dim=2)


def close(found, expected, share=1e-9):
    torch.testing.assert_close(found, expected, rtol=0, atol=share * max(1.0, float(expected.abs().max())))


def test_the_state_is_normalised_and_the_data_are_encoded():
    model, x = circuit(), data()
    with torch.no_grad():
        for angles in model.parameters():
            angles.zero_()
    # Two layers of CNOTs from qubit 0 to 1 and from 1 to 2 take (z0, z1, z2) to (z0, z0 z1, z0 z1 z2), then (z0, z1, z0 z2).
    cosines = torch.cos(x)
    expected = torch.stack([cosines[:, 0], cosines[:, 1], cosines[:, 0] * cosines[:, 2]], dim=1)
    close(model(x).detach(), expected)


def test_gradients_are_those_of_the_parameter_shift_rule():
    model, x = circuit(), data()
    jacobian = shifted_jacobian(model, x)
    parts = ntkpipe.kernel_matrix(model, x, kernel="full", layerwise=True)
    assert list(parts) == ["x_angles", "y_angles", "z_angles"]
    for name, rows in jacobian.items():
        close(parts[name], rows.flatten(0, 1) @ rows.flatten(0, 1).T)


def test_no_operation_of_a_circuit_is_captured_and_every_sample_is_vectorised():
    routes = plan_routes(circuit(), ["x_angles", "y_angles", "z_angles"], data()[:4])
    assert {route.description for route in routes} == {"vmap"}


@pytest.mark.parametrize("kind", ["trntk0", "trntk", "pntk", "class:2", "loss", "margin", "signgd", "signgd_asym"])
def test_kernels_are_those_of_shifted_jacobians(kind):
    model, x = circuit(), data()
    y = torch.tensor([0, 1, 2, 2, 1, 0])
    rows, outputs = flat(shifted_jacobian(model, x)), model(x).detach()
    hot = torch.eye(3, dtype=torch.float64)[y]
    vectors = {
        "pntk": torch.ones_like(outputs),
        "signgd": torch.ones_like(outputs),
        "signgd_asym": torch.ones_like(outputs),
        "class:2": torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand(6, 3),
        "loss": outputs.softmax(dim=1) - hot,
        "margin": hot - (outputs.exp() * (1 - hot)) / (outputs.exp() * (1 - hot)).sum(dim=1, keepdim=True),
    }
    gradients = rows if kind.startswith("trntk") else torch.einsum("nc,ncp->np", vectors[kind], rows).unsqueeze(1)
    left = gradients.sign() if kind.startswith("signgd") else gradients
    right = gradients.sign() if kind == "signgd" else gradients
    expected = torch.einsum("ncp,mcp->nm", left, right)
    if kind == "trntk":
        expected = expected / expected.diagonal().sqrt().outer(expected.diagonal().sqrt())
    options = {"parameters": ["[xy]_angles"]} if kind.startswith("signgd") else {}
    if options:
        kept = slice(0, 12)
        expected = torch.einsum("ncp,mcp->nm", left[..., kept], right[..., kept])
    close(ntkpipe.kernel_matrix(model, x, kernel=kind, y=y, **options), expected)


@pytest.mark.parametrize("theta", [0.0, 0.3, math.pi / 2, 2.0, math.pi])
def test_one_qubit_has_its_golden_kernel(theta):
    x = torch.tensor([[0.5], [-1.0]], dtype=torch.float64)
    model = Pole(theta)
    assert abs(float(model(x)[0].detach()) - math.cos(theta)) < 1e-12
    found = ntkpipe.kernel_matrix(model, x, kernel="trntk0", pseudo_gradient="allow")
    close(found, torch.full((2, 2), math.sin(theta) ** 2, dtype=torch.float64), share=1e-12)


def test_at_the_poles_the_kernel_is_zero_and_the_cosine_is_defined():
    x = torch.tensor([[0.5], [-1.0]], dtype=torch.float64)
    for kind in ("trntk0", "trntk", "signgd"):
        assert not ntkpipe.kernel_matrix(Pole(0.0), x, kernel=kind, pseudo_gradient="allow").any()
    close(ntkpipe.kernel_matrix(Pole(1.0), x, kernel="trntk"), torch.ones(2, 2, dtype=torch.float64))


def test_a_circuit_at_a_pole_is_not_refused():
    ntkpipe.kernel_matrix(Pole(0.0), torch.tensor([[0.5], [-1.0]], dtype=torch.float64), kernel="trntk0")


@pytest.mark.parametrize("projection", ["tensorsketch", "sjlt", "rademacher", "gaussian", "srht"])
def test_projections_approach_the_kernel_of_a_circuit(projection):
    model, x = circuit(), data()
    rows = flat(shifted_jacobian(model, x)).flatten(1)
    exact = rows @ rows.T
    found = ntkpipe.kernel_matrix(
        model, x, kernel="trntk0", projection=ntkpipe.Projection(kind=projection, dim=4096, seed=3)
    )
    norms = exact.diagonal().sqrt()
    assert float(((found - exact) / torch.outer(norms, norms)).abs().max()) < 5 * math.sqrt(2 / 4096)
    mapped = ntkpipe.features(
        model, x, kernel="trntk0", projection=ntkpipe.Projection(kind=projection, dim=4096, seed=3)
    )
    close(mapped @ mapped.T, found)


def test_the_kernel_drifts_by_what_the_formula_says():
    one, other, x = circuit(), circuit(), data()
    with torch.no_grad():
        other.y_angles[0, 0] += 0.2
    rows, moved = (flat(shifted_jacobian(model, x)).flatten(1) for model in (one, other))
    kernels = [ntkpipe.kernel_matrix(model, x, kernel="trntk0") for model in (one, other)]
    drift = float(torch.linalg.norm(kernels[1] - kernels[0]) / torch.linalg.norm(kernels[0]))
    expected = float(torch.linalg.norm(moved @ moved.T - rows @ rows.T) / torch.linalg.norm(rows @ rows.T))
    assert 0.01 < drift < 1
    assert abs(drift - expected) < 1e-9
    close(ntkpipe.kernel_matrix(one, x, model2=other, kernel="trntk0"), rows @ moved.T)
    # |g' - g|^2 = K'(x, x) - 2 K_cross(x, x) + K(x, x): how far each gradient has moved.
    cross = ntkpipe.kernel_matrix(one, x, model2=other, kernel="trntk0").diagonal()
    distances = kernels[1].diagonal() - 2 * cross + kernels[0].diagonal()
    close(distances, (moved - rows).square().sum(dim=1))


def test_single_precision_is_enough_for_a_circuit():
    model, x = circuit(), data()
    exact = ntkpipe.kernel_matrix(model, x, kernel="trntk0")
    found = ntkpipe.kernel_matrix(circuit().float(), x.float(), kernel="trntk0")
    assert found.dtype == torch.float32
    close(found.double(), exact, share=1e-5)


class Amplitudes(Circuit):
    """A circuit that returns its complex amplitudes by mistake."""

    def forward(self, inputs):
        return torch.complex(super().forward(inputs), super().forward(inputs))


def test_complex_outputs_are_refused():
    model = Amplitudes(num_qubits=3, num_layers=1).double()
    with pytest.raises(CoverageError, match="expected one real tensor"):
        ntkpipe.kernel_matrix(model, data(), kernel="trntk0")
