"""The benchmark harness on tiny networks, so that it cannot rot; times are never asserted."""

import json

import pytest
import torch
from benchmarks import jacobians, workloads
from benchmarks.contraction import METHODS, contract
from benchmarks.floors import DataOnlyFloor, sum_vectors, trace_vectors
from benchmarks.jobs import kernel_error
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import ntkpipe


def tiny(num_samples=12, peers=True):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    return workloads.Workload("mlp", "tiny", model, torch.randn(num_samples, 6), num_baseline_samples=3, peers=peers)


class Bag(nn.Module):
    """Tokens in, so that nothing the model is given can require gradients."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, ids):
        return self.head(torch.tanh(self.embed(ids)).sum(1))


@pytest.mark.parametrize("vectors", [trace_vectors, sum_vectors])
def test_the_floor_computes_data_gradients_and_nothing_else(vectors):
    workload = tiny()
    floor = DataOnlyFloor(workload.model, vectors(3, workload.inputs))
    with FlopCounterMode(display=False) as counter:
        floor.run(workload.inputs, batch_size=4)
    forward, backward = 6 * 5 + 5 * 4 + 4 * 3, 5 * 4 + 4 * 3  # the first layer has no backward
    assert counter.get_total_flops() == 2 * 12 * (forward + len(vectors(3, workload.inputs)) * backward)
    assert all(parameter.requires_grad for parameter in workload.model.parameters())


@pytest.mark.parametrize(("model", "inputs"), [(tiny().model, torch.randn(4, 6)), (Bag(), torch.arange(4)[:, None])])
def test_the_floor_yields_the_gradients_of_layer_outputs(model, inputs):
    outputs = model(inputs)
    # The gradient of a bias is the sum of the gradients of its layer's outputs.
    biases = [module.bias for module in model.modules() if isinstance(module, nn.Linear)]
    floor = DataOnlyFloor(model, trace_vectors(outputs.shape[1], outputs))
    for output, found in zip(outputs.sum(0), floor.layer_gradients(inputs), strict=True):
        expected = torch.autograd.grad(output, biases, retain_graph=True)
        for bias_gradient, layer_gradient in zip(reversed(expected), reversed(found), strict=False):
            torch.testing.assert_close(layer_gradient.sum(0), bias_gradient)


@pytest.mark.parametrize("method", METHODS)
def test_contracted_jacobians_are_the_kernel(method):
    workload = tiny()
    found = contract(METHODS[method](workload.model, workload.inputs))
    torch.testing.assert_close(found, ntkpipe.kernel_matrix(workload.model, workload.inputs, kernel="trntk0"))


def test_the_error_of_exact_features_is_zero():
    features = torch.randn(5, 8, dtype=torch.float64)
    error = kernel_error(features, features @ features.T)
    assert max(error.off_diagonal.largest, error.diagonal.largest) < 1e-12
    assert error.diagonal.predicted_rms == pytest.approx((2 / 8) ** 0.5)


def test_the_script_measures_and_reports(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(workloads.WORKLOADS, "mlp", (tiny, 12))
    monkeypatch.setattr("benchmarks.suite.PEERS", ())
    arguments = ["--workload", "mlp", "--dim", "64", "--repeats", "2", "--peers", "--json", str(tmp_path / "all.json")]
    assert jacobians.main(arguments) == 0
    assert "proj-trNTK, K = 64" in capsys.readouterr().out
    (workload,) = json.loads((tmp_path / "all.json").read_text())["workloads"]
    assert [job["name"] for job in workload["jobs"]] == ["exact trNTK", "proj-trNTK, K = 64", "proj-pNTK, K = 64"]
    assert all(len(job["floor"]["seconds"]) == 2 and job["ratio"] > 0 for job in workload["jobs"])
    assert len(workload["alternatives"]) == len(METHODS)
    assert all(other["seconds"] > 0 for other in workload["alternatives"])
    assert jacobians.main([*arguments, "--samples", "mlp=4", "--markdown"]) == 0
    assert "| exact trNTK |" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--workload", "lenet"], ["--samples", "mlp=1"], ["--repeats", "0"]])
def test_the_script_refuses_what_it_cannot_measure(arguments, capsys):
    with pytest.raises(SystemExit):
        jacobians.main(arguments)
    assert "error" in capsys.readouterr().err
