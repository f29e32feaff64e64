"""The benchmark harness on tiny networks and systems, so that it cannot rot; times are never asserted."""

import json
import warnings

import pytest
import torch
from benchmarks import (
    jacobians,
    solver_disk,
    solver_jobs,
    solver_list,
    solver_problems,
    solver_process,
    solver_report,
    solvers,
    storage,
    storage_report,
    workloads,
)
from benchmarks.contraction import METHODS, contract
from benchmarks.floors import DataOnlyFloor, sum_vectors, trace_vectors
from benchmarks.jobs import kernel_error
from benchmarks.measure import Timing
from solving import points
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


def toy_problem(kind="kernel", **changes):
    def load(num):
        train, test = points(num, 0), points(20, 1)
        one_hot = [nn.functional.one_hot(split.labels, 3).double() for split in (train, test)]
        inputs = [split.inputs.float() for split in (train, test)]
        if kind == "features":
            maps = 0.7 * torch.randn(6, 60, generator=torch.Generator().manual_seed(2))
            inputs = [torch.cos(x @ maps[:5] + 9 * maps[5]) for x in inputs]
        return solver_problems.Data(inputs[0], one_hot[0], inputs[1], one_hot[1])

    settings = {"kind": kind, "num_samples": 120, "load": load, "error": "classes", "ridge": 0.1, "bandwidth": 3.0}
    settings |= {"target": "solving:points", "options": {"seed": 0}, "tile_rows": 32, "ridges": (1e-2, 0.1, 1.0)}
    return solver_problems.Problem("A", "toy", **settings | changes)


def judged(problem, found, inputs, targets, kernel):
    test = problem.load(len(inputs))
    arrays = solver_jobs.Arrays(inputs, targets, kernel)
    return solver_jobs.judge(found, arrays, problem, test.test_inputs_MD, test.truth_MT)


def solver_cases():
    for kind in ("kernel", "features"):
        for job in solver_list.solver_jobs(toy_problem(kind), with_peers=True):
            absent = solver_list.missing(job)
            mark = [pytest.mark.skip(f"{', '.join(absent)} not installed")] if absent else []
            yield pytest.param(kind, job.name, id=f"{kind}: {job.name}", marks=mark)


ROUGH = {"eigenpro2, 5 epochs": 0.5, "askotch, 10 epochs": 0.5, "gpytorch, defaults": 1e-3}


@pytest.mark.parametrize(("kind", "name"), list(solver_cases()))
def test_every_solver_of_the_benchmark_solves_its_system(kind, name, tmp_path):
    solver_problems.prepare(toy_problem(kind), 120, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other packages
        measured = solver_process.measure(tmp_path, name)
    assert measured.seconds > 0
    assert 0 <= measured.error < 0.4
    if "Nystroem" not in name:
        assert measured.residual < ROUGH.get(name, 1e-3)


def test_the_benchmark_judges_by_its_own_residual():
    problem = toy_problem()
    data = problem.load(60)
    kernel = ntkpipe.closed_form("laplace", data.inputs_ND, bandwidth=3.0)
    alpha = torch.linalg.solve(kernel.double() + 0.1 * torch.eye(60, dtype=torch.float64), data.targets_NT)
    right = judged(problem, solver_jobs.Found(alpha_NT=alpha), data.inputs_ND, data.targets_NT, kernel)
    assert right.residual < 1e-12
    # All of one target wrong, the others right: the worst one counts.
    alpha[:, 1] = 0
    wrong = judged(
        problem, solver_jobs.Found(alpha_NT=alpha, status="converged"), data.inputs_ND, data.targets_NT, kernel
    )
    assert wrong.residual == pytest.approx(1)
    zero = solver_jobs.Found(weights_KT=torch.zeros(5, 3))
    assert judged(problem, zero, data.inputs_ND, data.targets_NT, None).residual == pytest.approx(1)


def test_the_benchmark_reads_a_kernel_from_disk_in_limited_memory(tmp_path):
    problem = toy_problem("disk")
    solver_problems.prepare(problem, 120, tmp_path)
    (job,) = solver_list.solver_jobs(problem, with_peers=True)
    measured = solver_process.measure(tmp_path, job.name)
    disk = measured.disk
    assert measured.residual < 1e-4
    entries = sum(min(32, 120 - 32 * row) * min(32, 120 - 32 * column) for row in range(4) for column in range(row + 1))
    assert disk.stored_bytes >= 4 * entries
    assert disk.bytes_read >= 2 * disk.stored_bytes  # a column sketch, a product at the least
    assert disk.tiles_per_second > 0
    assert solver_report.predicted_seconds(measured) == measured.passes * disk.stored_bytes / disk.tiles_per_second


def test_the_cap_on_memory_bites_and_is_lifted():
    with solver_disk.capped_memory(64 * 2**20):
        torch.ones(2**20)
        with pytest.raises(RuntimeError, match="allocate"):
            torch.ones(128 * 2**20 // 4)
    assert len(torch.ones(128 * 2**20 // 4))


def test_the_solver_script_reports_what_failed_and_what_is_missing(monkeypatch, tmp_path, capsys):
    def jobs(problem, with_peers):
        found = solver_list.solver_jobs(problem, with_peers=False)[:2]
        broken = solver_jobs.SolverJob("nobody", found[0].call)
        absent = solver_jobs.SolverJob("absent", found[0].call, ("no_such_package",))
        return (*found, broken, absent)

    monkeypatch.setitem(solver_problems.PROBLEMS, "A", toy_problem())
    monkeypatch.setattr("benchmarks.solver_suite.solver_jobs", jobs)
    arguments = ["--jobs", "A", "--samples", "120", "--repeats", "1", "--threads", "1", "--markdown"]
    assert solvers.main([*arguments, "--json", str(tmp_path / "all.json")]) == 0
    printed = capsys.readouterr().out
    assert "| float32 Cholesky |" in printed
    assert "not installed: no_such_package" in printed
    (problem,) = json.loads((tmp_path / "all.json").read_text())["problems"]
    floor, ours, broken, absent = problem["results"]
    assert floor["ratio"] == 1
    assert len(ours["rounds"]) == 1
    assert ours["rounds"][0]["residual"] < 1e-6
    assert broken["failure"].startswith("failed: ")
    assert not broken["rounds"]
    assert not absent["rounds"]


def test_a_job_of_the_solver_script_that_has_no_data_is_left_out(monkeypatch, capsys):
    def load(num):
        raise workloads.WorkloadUnavailable("needs what is not here")

    monkeypatch.setitem(solver_problems.PROBLEMS, "A", toy_problem(load=load))
    assert solvers.main(["--jobs", "A", "--samples", "120"]) == 1
    assert "A is left out: it needs what is not here" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--jobs", "D"], ["--samples", "A=1"], ["--repeats", "0"], ["--threads", "0"]])
def test_the_solver_script_refuses_what_it_cannot_measure(arguments, capsys):
    with pytest.raises(SystemExit):
        solvers.main(arguments)
    assert "error" in capsys.readouterr().err


def test_the_storage_benchmark_measures_every_row_and_keeps_every_repeat(tmp_path, capsys):
    sizes = ["--mebibytes", "1", "--commits", "3", "--receipts", "20", "--repeats", "2"]
    folders = ["--folder", str(tmp_path), "--memory-folder", str(tmp_path)]
    assert storage.main([*sizes, *folders, "--json", str(tmp_path / "found.json"), "--markdown"]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    rows = [row for row in found["rows"] if row["section"] == "local disk"]
    words = [row["what"].split(",")[0] for row in rows]
    assert words == [
        "write blocks of features",
        "read blocks of features",
        "write kernel tiles",
        "read kernel tiles",
        "write kernel tiles with fsync",
        "verify kernel tiles",
        "commit",
        "commit with fsync",
        "look for a successor",
        "list receipts",
        "plan a resume",
        "move receipts into segments",
        "plan a resume from segments",
    ]
    assert len(found["rows"]) == 2 * len(rows)
    for row in rows:
        assert all(seconds > 0 for seconds in row["ours"]["seconds"])
        assert len(row["ours"]["seconds"]) == (1 if row["bare"] is None else 2)
    printed = capsys.readouterr().out
    assert "**memory**" in printed
    assert sorted(file.name for file in tmp_path.iterdir()) == ["found.json"]


def test_a_row_is_judged_by_what_it_aims_for():
    fast, slow = Timing((0.5,)), Timing((1.0,))
    row = storage_report.Row("s", "w", "bytes", 2**20, slow, fast, "zarr", least_ratio=0.8)
    assert (row.ratio, row.met) == (0.5, False)
    assert storage_report.Row("s", "w", "bytes", 2**20, fast, slow, "zarr", least_ratio=0.8).met is True
    each = storage_report.Row("s", "w", "each", 1000, slow, None, "", most_seconds=1e-3)
    assert (each.seconds, each.ratio, each.met) == (1e-3, None, True)
    assert storage_report.Row("s", "w", "whole", 1000, slow, None, "", most_seconds=0.9).met is False
    assert storage_report.Row("s", "w", "whole", 1000, slow, fast, "x").met is None
    (grid,) = storage_report.storage_grids([row])
    assert grid.rows == (("w", "1 MiB", "1 MB/s", "zarr", "2 MB/s", "0.50", "ratio 0.8: MISSED"),)


@pytest.mark.slow
def test_the_storage_benchmark_measures_an_object_store(tmp_path, short_folder):
    sizes = ["--mebibytes", "1", "--commits", "2", "--receipts", "3", "--repeats", "1", "--objects", "3", "--peers"]
    arguments = [
        *sizes,
        "--folder",
        str(short_folder),
        "--memory-folder",
        "none",
        "--json",
        str(tmp_path / "found.json"),
    ]
    assert storage.main(arguments) == 0
    sections = {row["section"] for row in json.loads((tmp_path / "found.json").read_text())["rows"]}
    assert sections == {"local disk", "weed, s3fs", "weed, obstore"}
