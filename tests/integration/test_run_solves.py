"""Solutions of runs: from stored tiles, features and formulas, by every solver, interrupted and shared between workers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from interruptions import Killed
from runs import chunk_hashes
from solving import LAPLACE, MAPPED, points
from solving import run_config as config

import ntkpipe
from ntkpipe.configs.errors import ConfigError
from ntkpipe.pipeline.executors.serial import SerialExecutor
from ntkpipe.storage.solver_state import SolverStates
from ntkpipe.workers.tasks import SolveTask


def oracle(kernel, ridge):
    train, test = points(90, 0), points(30, 1)
    targets_NT = torch.nn.functional.one_hot(train.labels, 3).double()
    options = {name: value for name, value in kernel.items() if name != "kind"}
    if kernel["kind"] == "laplace":
        matrix_NN = ntkpipe.closed_form("laplace", train.inputs, **options)
        cross_MN = ntkpipe.closed_form("laplace", test.inputs, train.inputs, **options)
    else:
        left, right = (ntkpipe.random_features(kernel["kind"], x.inputs, **options) for x in (train, test))
        matrix_NN, cross_MN = left @ left.T, right @ left.T
    alpha_NT = torch.linalg.solve(matrix_NN + ridge * torch.eye(90, dtype=torch.float64), targets_NT)
    return alpha_NT.numpy(), (cross_MN @ alpha_NT).numpy()


def assert_solved(run, name, kernel, ridge, tolerance):
    alpha, predictions = oracle(kernel, ridge)
    assert np.linalg.norm(run.solution(name) - alpha) <= tolerance * np.linalg.norm(alpha)
    assert np.linalg.norm(run.predictions(name, "test") - predictions) <= tolerance * np.linalg.norm(predictions)
    record = run.solution_record(name)
    assert record.status == "converged"
    assert max(record.residuals) <= tolerance


SOLVERS = {
    "cholesky": {},
    "tile-cholesky": {"tile_rows": 64},
    "pcg": {"tolerance": 1e-10},
    "eigenpro2": {"tolerance": 1e-9, "epochs": 500},
    "gauss-seidel": {"tolerance": 1e-9, "epochs": 500},
    "auto": {},
}


@pytest.mark.parametrize("kind", SOLVERS)
def test_a_kernel_that_is_stored_is_solved(kind, tmp_path):
    run = ntkpipe.run(config([{"kind": kind, "name": "a", **SOLVERS[kind]}]), tmp_path / "run")
    assert_solved(run, "a", LAPLACE, 0.1, 1e-7)


@pytest.mark.parametrize("kind", [kind for kind in SOLVERS if kind != "tile-cholesky"])
@pytest.mark.parametrize("kernel", [LAPLACE, MAPPED], ids=["formula", "features"])
def test_a_kernel_that_is_not_stored_is_solved_all_the_same(kind, kernel, tmp_path):
    section = {"kind": kind, "name": "a", "kernel": kernel["kind"], **SOLVERS[kind]}
    run = ntkpipe.run(config([section], data={"pairs": []}), tmp_path / "run")
    assert not (tmp_path / "run" / "data.zarr" / "kernel").exists()
    assert_solved(run, "a", kernel, 0.1, 1e-7)


def test_features_are_solved_in_one_pass_with_a_ridge_path(tmp_path):
    section = {"kind": "gram", "name": "a", "kernel": "fourier_features", "ridges": [0.01, 0.1, 1.0], "select": "loo"}
    run = ntkpipe.run(config([section], data={"pairs": []}), tmp_path / "run")
    record = run.solution_record("a")
    assert record.ridge in (0.01, 0.1, 1.0)
    assert_solved(run, "a", MAPPED, record.ridge, 1e-7)
    errors = run.solution_extra("a", "path_loo")
    assert record.ridge == run.solution_extra("a", "path_ridges")[errors.argmin()]


def test_single_precision_runs_of_a_formula_reach_single_precision(tmp_path):
    section = {"kind": "pcg", "name": "a", "tolerance": 1e-6}
    run = ntkpipe.run(config([section], data={"pairs": []}, store={"dtype": "float32"}), tmp_path / "run")
    assert_solved(run, "a", LAPLACE, 0.1, 1e-5)


def test_the_record_tells_how_many_are_wrong_on_every_split(tmp_path):
    run = ntkpipe.run(config([{"kind": "cholesky", "name": "a"}]), tmp_path / "run")
    wrong = (run.predictions("a", "test").argmax(axis=1) != points(30, 1).labels.numpy()).mean()
    assert run.solution_record("a").losses["test"] == pytest.approx(wrong)


@pytest.mark.parametrize("kind", ["cholesky", "pcg", "gram"])
def test_balanced_classes_count_alike(kind, tmp_path):
    section = {"kind": kind, "name": "a", "kernel": "fourier_features", "class_weight": "balanced"}
    run = ntkpipe.run(config([section]), tmp_path / "run")
    samples = points(90, 0)
    targets_NT = torch.nn.functional.one_hot(samples.labels, 3).double()
    weights_N = (90 / (3 * targets_NT.sum(dim=0)))[samples.labels]
    options = {name: value for name, value in MAPPED.items() if name != "kind"}
    features = ntkpipe.random_features("fourier_features", samples.inputs, **options)
    system = features @ features.T + torch.diag(0.1 / weights_N)
    alpha = torch.linalg.solve(system, targets_NT).numpy()
    assert np.linalg.norm(run.solution("a") - alpha) <= 1e-5 * np.linalg.norm(alpha)


def test_a_solve_is_stopped_early_on_another_split(tmp_path):
    sections = [
        {"kind": "eigenpro2", "name": name, "tolerance": 1e-9, "epochs": 60, **more}
        for name, more in {"whole": {}, "short": {"early_stopping": {"split": "test", "patience": 1}}}.items()
    ]
    run = ntkpipe.run(config(sections), tmp_path / "run")
    short, whole = (run.solution_record(name) for name in ("short", "whole"))
    assert short.status == "stopped-early"
    assert short.losses["test"] <= whole.losses["test"]
    assert short.stats["steps"] < whole.stats["steps"]


def interrupted(monkeypatch, document, url, num_states):
    """Kill the solve when its solver has stored some states, then resume."""
    save, saved = SolverStates.save, []

    def counting(self, *arguments):
        save(self, *arguments)
        saved.append(1)
        if len(saved) == num_states:
            raise Killed

    monkeypatch.setattr(SolverStates, "save", counting)
    try:
        ntkpipe.run(document, url)
        return len(saved)
    except Killed:
        monkeypatch.setattr(SolverStates, "save", save)
        ntkpipe.resume(url)
        return None


@pytest.mark.parametrize("kind", ["pcg", "eigenpro2", "gauss-seidel"])
def test_a_killed_solve_goes_on_where_it_was_and_leaves_the_same_bytes(kind, tmp_path, monkeypatch):
    document = config([{"kind": kind, "name": "a", **SOLVERS[kind]}], resources={"checkpoint_seconds": 0.0})
    ntkpipe.run(document, tmp_path / "whole")
    expected, num_states = chunk_hashes(tmp_path / "whole"), 1
    while True:
        url = tmp_path / f"run-{num_states}"
        total = interrupted(monkeypatch, document, url, num_states)
        assert chunk_hashes(url) == expected
        assert not [file for file in (url / "solver").rglob("*") if file.is_file()]
        if total is not None:
            break
        num_states *= 3
    assert num_states > 1


def test_a_stored_state_that_is_damaged_is_not_used(tmp_path, monkeypatch):
    document = config([{"kind": "pcg", "name": "a", **SOLVERS["pcg"]}], resources={"checkpoint_seconds": 0.0})
    ntkpipe.run(document, tmp_path / "whole")
    monkeypatch.setattr(SolverStates, "report", lambda self, progress: None)
    save = SolverStates.save

    def damaging(self, *arguments):
        save(self, *arguments)
        for file in (tmp_path / "run" / "solver").rglob("states/*"):
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 1
            file.write_bytes(bytes(data))
        raise Killed

    monkeypatch.setattr(SolverStates, "save", damaging)
    with pytest.raises(Killed):
        ntkpipe.run(document, tmp_path / "run")
    monkeypatch.setattr(SolverStates, "save", save)
    ntkpipe.resume(tmp_path / "run")
    assert chunk_hashes(tmp_path / "run") == chunk_hashes(tmp_path / "whole")


def test_status_tells_how_far_an_unfinished_solver_is(tmp_path, monkeypatch):
    document = config([{"kind": "pcg", "name": "a", **SOLVERS["pcg"]}], resources={"checkpoint_seconds": 0.0})
    monkeypatch.setattr("ntkpipe.workers.solvers.watcher.REPORT_SECONDS", 0.0)
    save, saved = SolverStates.save, []

    def counting(self, *arguments):
        save(self, *arguments)
        saved.append(1)
        if len(saved) == 4:
            raise Killed

    monkeypatch.setattr(SolverStates, "save", counting)
    with pytest.raises(Killed):
        ntkpipe.run(document, tmp_path / "run")
    status = ntkpipe.open_run(tmp_path / "run").status()
    assert "step 1" in status.solves["a"]
    assert "not yet certified" in status.solves["a"]


SHARED = [
    {"kind": "pcg", "name": "pcg", **SOLVERS["pcg"]},
    {"kind": "gram", "name": "gram", "kernel": "fourier_features"},
    {"kind": "falkon", "name": "falkon", "centres": 20},
    {"kind": "tile-cholesky", "name": "tiles", "tile_rows": 32},
    {"kind": "pcg", "name": "early", "tolerance": 1e-12, "early_stopping": {"split": "test"}},
]


def test_workers_that_share_a_solve_leave_the_bytes_of_one_that_does_it_alone(local_ray, tmp_path):
    ntkpipe.run(config(SHARED), tmp_path / "alone")
    ntkpipe.run(config(SHARED, resources={"executor": "ray", "workers": 2}), tmp_path / "shared")
    assert chunk_hashes(tmp_path / "shared") == chunk_hashes(tmp_path / "alone")
    assert not [file for file in (tmp_path / "shared" / "solver").rglob("*") if file.is_file()]


def test_a_shared_solve_survives_lost_and_damaged_parts(tmp_path, monkeypatch):
    """Rounds on the serial executor: parts vanish and rot between the tasks that wrote them and the step."""
    from ntkpipe.pipeline import execution as run_module
    from ntkpipe.pipeline import rounds

    document = config(SHARED[:1])
    ntkpipe.run(document, tmp_path / "alone")
    monkeypatch.setattr(run_module, "shared_solutions", lambda config: ("pcg",))
    submit, seen = SerialExecutor.submit, []

    def sabotaging(self, worker, task, halvings=0):
        parts = sorted(file for file in (tmp_path / "run" / "solver").rglob("parts/*") if file.is_file())
        if not isinstance(task, SolveTask) and parts and len(seen) < 2 and parts[0].name not in seen:
            seen.append(parts[0].name)
            if len(seen) == 1:
                parts[0].unlink()
            else:
                parts[0].write_bytes(parts[0].read_bytes()[:-5] + b"wrong")
        submit(self, worker, task, halvings)

    monkeypatch.setattr(SerialExecutor, "submit", sabotaging)
    ntkpipe.run(document, tmp_path / "run")
    assert len(seen) == 2
    assert rounds.MAX_IDLE_ROUNDS >= 1
    assert chunk_hashes(tmp_path / "run") == chunk_hashes(tmp_path / "alone")


def test_a_matrix_that_is_not_positive_ends_a_tiled_factorisation_with_a_status(tmp_path):
    document = config(
        [{"kind": "tile-cholesky", "name": "a", "kernel": "minus", "ridge": 0.0, "tile_rows": 32}],
        kernels=[LAPLACE, {"kind": "scaled", "name": "minus", "of": "laplace", "factor": -1.0}],
    )
    run = ntkpipe.run(document, tmp_path / "run")
    record = run.solution_record("a")
    assert record.status == "indefinite"
    assert "indefinite" in record.flags
    assert (run.solution("a") == 0).all()
    assert json.loads(next((tmp_path / "run" / "factors").glob("a.json")).read_text())["row"] == 0


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ({"kind": "gram"}, {}, "has none; project it"),
        ({"kind": "tile-cholesky"}, {"data": {"pairs": []}}, "works on stored tiles"),
        ({"kind": "pcg", "early_stopping": {"split": "val"}}, {}, "unknown split 'val'"),
        ({"kind": "pcg", "early_stopping": {"split": "train"}}, {}, "cannot be stopped early on the split"),
        ({"kind": "falcon"}, {}, "falkon"),
        ({"kind": "tile-cholesky", "class_weight": "balanced"}, {}, "factor of another matrix"),
        ({"kind": "pcg", "class_weight": "balanced", "targets": "values"}, {}, "needs one-hot"),
    ],
)
def test_solves_that_cannot_work_are_refused(section, changes, message):
    with pytest.raises(ConfigError, match=message):
        ntkpipe.load_config(config([{"name": "a", **section}], **changes))


def test_features_that_count_negatively_are_not_solved_from_features(tmp_path):
    kernel = {"kind": "universal_features", "dim": 16, "function": "cosine"}
    document = config([{"kind": "gram", "name": "a", "kernel": "universal_features"}], kernels=[kernel])
    with pytest.raises(ConfigError, match="not an inner product of one set of features"):
        ntkpipe.run(document, tmp_path / "run")
    assert not Path(tmp_path / "run").exists()
