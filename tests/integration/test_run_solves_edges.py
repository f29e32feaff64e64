"""Solutions of runs where something is unusual: killed at odd moments, damaged, resumed otherwise, or hardly any samples."""

import golden
import numpy as np
import pytest
from interruptions import Killed, interrupt_after
from runs import chunk_hashes, edit_manifest, edit_object
from solving import run_config

import ntkpipe
from ntkpipe.configs.errors import ConfigError, TaskFailedError
from ntkpipe.pipeline import execution as run_module
from ntkpipe.pipeline.executors.base import Outcome, TaskError
from ntkpipe.pipeline.executors.serial import SerialExecutor
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.solver_state import SolverStates
from ntkpipe.workers.probing import solvers
from ntkpipe.workers.solvers.krylov.pcg import PCGSolver
from ntkpipe.workers.solvers.prediction import Machine
from ntkpipe.workers.stages import shared_solve

PCG = {"kind": "pcg", "name": "a", "tolerance": 1e-10}
ALWAYS = {"checkpoint_seconds": 0.0}


def solver_files(url):
    return [file for file in (url / "solver").rglob("*") if file.is_file()]


def share(monkeypatch, *names):
    """Share solves in rounds, but on the serial executor."""
    monkeypatch.setattr(run_module, "shared_solutions", lambda config: names)


def interrupted(document, url, monkeypatch, *, at):
    """Kill a run when a solver has stored some state."""
    with monkeypatch.context() as patch:
        save = SolverStates.save

        def saving(self, position, *arguments):
            save(self, position, *arguments)
            if at(position):
                raise Killed

        patch.setattr(SolverStates, "save", saving)
        with pytest.raises(Killed):
            ntkpipe.run(document, url)


# Killed at odd moments.


def test_a_solve_whose_driver_dies_before_the_commit_is_not_computed_again(tmp_path, monkeypatch):
    document = run_config([PCG], resources=ALWAYS)
    ntkpipe.run(document, tmp_path / "whole")
    with monkeypatch.context() as patch:
        commit = Ledger.commit

        def dying(self, receipt):
            if receipt.stage == "solve":
                raise Killed
            return commit(self, receipt)

        patch.setattr(Ledger, "commit", dying)
        with pytest.raises(Killed):
            ntkpipe.run(document, tmp_path / "run")
    assert solver_files(tmp_path / "run")
    monkeypatch.setattr(PCGSolver, "init", lambda self, system: pytest.fail("the solver was set up again"))
    ntkpipe.resume(tmp_path / "run")
    assert chunk_hashes(tmp_path / "run") == chunk_hashes(tmp_path / "whole")
    assert not solver_files(tmp_path / "run")


def test_what_a_committed_solve_has_left_is_deleted_by_the_next_driver(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "clear_solver", lambda store, name: None)
        ntkpipe.run(run_config([PCG], resources=ALWAYS), tmp_path / "run")
    assert solver_files(tmp_path / "run")
    ntkpipe.resume(tmp_path / "run")
    assert not solver_files(tmp_path / "run")


def test_a_solve_that_was_stored_within_a_step_is_shared_from_there(tmp_path, monkeypatch):
    document = run_config([PCG], resources=ALWAYS)
    ntkpipe.run(document, tmp_path / "whole")
    interrupted(document, tmp_path / "run", monkeypatch, at=lambda position: position % 10_000 == 1)
    share(monkeypatch, "a")
    ntkpipe.resume(tmp_path / "run")
    assert chunk_hashes(tmp_path / "run") == chunk_hashes(tmp_path / "whole")


def test_a_shared_solve_is_finished_alone(tmp_path, monkeypatch):
    document = run_config([PCG])
    ntkpipe.run(document, tmp_path / "whole")
    with monkeypatch.context() as patch:
        share(patch, "a")
        interrupted(document, tmp_path / "run", monkeypatch, at=lambda position: position >= 30_000)
    ntkpipe.resume(tmp_path / "run")
    assert chunk_hashes(tmp_path / "run") == chunk_hashes(tmp_path / "whole")
    assert not solver_files(tmp_path / "run")


def test_failures_of_one_step_are_not_held_against_another(tmp_path, monkeypatch):
    share(monkeypatch, "a")
    take_step, calls = shared_solve.take_step, []

    def failing(context, task):
        calls.append(task)
        if len(calls) % 2:
            raise RuntimeError("now and then")
        return take_step(context, task)

    monkeypatch.setattr(shared_solve, "take_step", failing)
    run = ntkpipe.run(run_config([PCG], resources={"max_attempts": 2}), tmp_path / "run")
    assert len(calls) > 10
    assert run.solution_record("a").status == "converged"


def test_failures_of_shared_steps_are_forgotten_once_the_solution_is_there(tmp_path, monkeypatch):
    share(monkeypatch, "a")
    with monkeypatch.context() as patch:
        patch.setattr(shared_solve, "take_step", None)
        with pytest.raises(TaskFailedError):
            ntkpipe.run(run_config([PCG]), tmp_path / "run")
        assert "a/step" in ntkpipe.open_run(tmp_path / "run").status().failures[0]
    status = ntkpipe.resume(tmp_path / "run").status()
    assert (status.state, status.failures) == ("finished", ())


def test_a_damaged_report_is_no_obstacle(tmp_path, monkeypatch):
    document = run_config([PCG], resources=ALWAYS)
    interrupted(document, tmp_path / "run", monkeypatch, at=lambda position: position >= 20_000)
    (tmp_path / "run" / "solver" / "a" / "progress.json").write_text("{")
    assert ntkpipe.open_run(tmp_path / "run").status().solves == {}
    share(monkeypatch, "a")
    assert ntkpipe.resume(tmp_path / "run").solution_record("a").status == "converged"


# Resumed with other resources.


def test_what_auto_has_chosen_stays_when_the_memory_changes(tmp_path, monkeypatch):
    document = run_config([{"kind": "auto", "name": "a"}], num=300)
    whole = ntkpipe.run(document, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(Killed):
            ntkpipe.run(document, tmp_path / "run")
    # As if resources.max_worker_bytes, which cannot be that small, were a thousandth of what it was.
    monkeypatch.setattr(solvers, "Machine", lambda memory_bytes: Machine(memory_bytes / 4000))
    assert ntkpipe.plan(document)[1].solvers["a"].section.kind != whole.solution_record("a").method
    assert ntkpipe.resume(tmp_path / "run").solution_record("a").chosen == whole.solution_record("a").chosen
    assert chunk_hashes(tmp_path / "run") == chunk_hashes(tmp_path / "whole")


# Damaged.


def test_damaged_tiles_of_a_factor_and_extras_of_a_solution_are_computed_again(tmp_path):
    url = tmp_path / "run"
    sections = [
        {"kind": "tile-cholesky", "name": "tiles", "tile_rows": 32},
        {"kind": "gram", "name": "gram", "kernel": "fourier_features", "ridges": [0.1, 1.0]},
    ]
    ntkpipe.run(run_config(sections), url)
    before = chunk_hashes(url)
    for file in (url / "data.zarr/factor/tiles/c/1/0", url / "solutions/gram/path_dof.npy"):
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (url / "data.zarr/factor/tiles/c/2/2").unlink()
    findings = [finding for checked in ntkpipe.verify(url, repair=True) for finding in checked.findings]
    assert len(findings) == 3
    ntkpipe.resume(url)
    assert not any(checked.findings for checked in ntkpipe.verify(url))
    assert chunk_hashes(url) == before


def test_a_damaged_note_of_a_negative_pivot_is_written_again(tmp_path):
    url = tmp_path / "run"
    kernels = [{"kind": "laplace"}, {"kind": "scaled", "name": "minus", "of": "laplace", "factor": -1.0}]
    section = {"kind": "tile-cholesky", "name": "a", "kernel": "minus", "ridge": 0.0, "tile_rows": 32}
    ntkpipe.run(run_config([section], kernels=kernels), url)
    note = url / "factors" / "a.json"
    content = note.read_bytes()
    note.write_bytes(b"{")
    assert sum(len(checked.findings) for checked in ntkpipe.verify(url, repair=True)) == 1
    run = ntkpipe.resume(url)
    assert note.read_bytes() == content
    assert run.solution_record("a").status == "indefinite"
    assert not any(checked.findings for checked in ntkpipe.verify(url))


# What cannot work is refused before anything is computed.


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ({"kind": "falkon"}, {}, "centres = 1000 exceeds the 90 samples"),
        ({"kind": "logistic", "ridge": 0.0}, {}, "needs a ridge above 0"),
        ({"kind": "logistic", "targets": "values"}, {"train": {"labels": "values"}}, "needs a column per class"),
        ({"kind": "pcg", "early_stopping": {"split": "test"}}, {"test": {"labels": "none"}}, "found no labels"),
        ({"kind": "auto", "early_stopping": {"split": "test"}}, {"test": {"labels": "values"}}, "found 2 real targets"),
        (
            {"kind": "pcg", "targets": "values", "early_stopping": {"split": "test"}},
            {"train": {"labels": "values"}, "test": {"labels": "values", "columns": 3}},
            "like those of split 'train'; found 3 real targets",
        ),
    ],
)
def test_solves_that_would_fail_after_their_kernels_are_refused(section, changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        ntkpipe.run(run_config([{"name": "a", **section}], **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_logistic_losses_of_output_pairs_have_one_column(tmp_path):
    section = {"kind": "logistic", "name": "a", "kernel": "full"}
    with pytest.raises(ConfigError, match="loss='sigmoid'"):
        ntkpipe.run(golden.config(kernels=[{"kind": "full"}], solve=[section]), tmp_path / "run")


# Labels.


@pytest.mark.parametrize(
    ("targets", "train", "test"),
    [
        ("values", {"labels": "values"}, {"labels": "values", "columns": 3}),
        ("one-hot", {}, {"labels": "values"}),
        ("one-hot", {}, {"labels": "none"}),
    ],
)
def test_splits_whose_labels_are_others_are_predicted_without_a_loss(targets, train, test, tmp_path):
    section = {"kind": "cholesky", "name": "a", "targets": targets}
    run = ntkpipe.run(run_config([section], train=train, test=test), tmp_path / "run")
    assert set(run.solution_record("a").losses) == {"train"}
    assert len(run.predictions("a", "test")) == 30


def test_real_targets_are_stopped_early_by_their_errors(tmp_path):
    early = {"early_stopping": {"split": "test", "patience": 1}}
    sections = [
        {"kind": "eigenpro2", "name": name, "targets": "values", "tolerance": 1e-9, "epochs": 60, "top": 2, **more}
        for name, more in {"whole": {}, "short": early}.items()
    ]
    run = ntkpipe.run(run_config(sections, train={"labels": "values"}, test={"labels": "values"}), tmp_path / "run")
    short, whole = (run.solution_record(name) for name in ("short", "whole"))
    assert short.status == "stopped-early"
    assert short.stats["steps"] < whole.stats["steps"]


# Kernels.


def test_features_that_count_negatively_count_so_in_predictions(tmp_path):
    kernels = [{"kind": "universal_features", "dim": 16, "function": "cosine"}]
    section = {"kind": "cholesky", "name": "a", "kernel": "universal_features", "ridge": 1e6}
    stored = ntkpipe.run(run_config([section], kernels=kernels), tmp_path / "stored")
    pairs = {"pairs": [["train", "train"]]}
    computed = ntkpipe.run(run_config([section], kernels=kernels, data=pairs), tmp_path / "computed")
    assert computed.solution_record("a").status == "converged"
    np.testing.assert_allclose(computed.predictions("a", "test"), stored.predictions("a", "test"), rtol=1e-9, atol=0)


@pytest.mark.parametrize("pairs", [[], [["test", "train"]], [["train", "train"]]])
def test_cosines_of_members_and_layers_are_those_that_would_be_stored(pairs, tmp_path):
    signs = {"kind": "rademacher", "dim": 32}
    model = {
        "target": "golden:build_member",
        "members": {"early": {}, "late": {"options": {"shift": 0.25}}},
    }
    kernels = [
        {"kind": "trntk", "layerwise": True, "projection": signs},
        {"kind": "trntk0", "parameters": {"fc1.*": 2.0, "*": 0.5}, "projection": signs},
    ]
    names = [("trntk@late", kind) for kind in ("cholesky", "pcg", "gram")] + [("trntk0@early", "gram")]
    solve = [{"name": f"{kernel.partition('@')[0]}-{kind}", "kernel": kernel, "kind": kind} for kernel, kind in names]
    document = golden.config(model=model, kernels=kernels, solve=[{"ridge": 0.5} | section for section in solve])
    stored = ntkpipe.run(document, tmp_path / "stored")
    data = document["data"] | {"pairs": pairs}
    run = ntkpipe.run(document | {"data": data}, tmp_path / "run")
    for section in solve:
        name = section["name"]
        np.testing.assert_allclose(run.predictions(name, "test"), stored.predictions(name, "test"), atol=2e-5)
    for kind in ("pcg", "gram"):
        np.testing.assert_allclose(run.solution(f"trntk-{kind}"), run.solution("trntk-cholesky"), atol=2e-5)


PAIRS = {
    "cholesky": {},
    "tile-cholesky": {"tile_rows": 2},
    "pcg": {},
    "gauss-seidel": {"epochs": 2000},
    "eigenpro2": {"epochs": 200},
    "askotch": {"epochs": 200},
    "filter": {},
    "falkon": {"centres": 8},
    "auto": {},
}


def test_kernels_of_output_pairs_are_solved_by_every_solver(tmp_path):
    solve = [{"kind": kind, "name": kind, "kernel": "full", "ridge": 0.5, **more} for kind, more in PAIRS.items()]
    early = {"kind": "pcg", "name": "early", "kernel": "full", "ridge": 0.5, "early_stopping": {"split": "test"}}
    store = {"shard_rows": 3, "block_rows": 3, "dtype": "float64"}
    run = ntkpipe.run(golden.config(kernels=[{"kind": "full"}], solve=[*solve, early], store=store), tmp_path / "run")
    for kind in PAIRS:
        assert run.solution_record(kind).status == "converged", kind
        found, expected = run.predictions(kind, "test"), run.predictions("cholesky", "test")
        assert np.linalg.norm(found - expected) <= 1e-3 * np.linalg.norm(expected), kind
    assert run.solution_record("early").losses["test"] == 0


# Sizes.


@pytest.mark.parametrize("num", [1, 2])
def test_hardly_any_samples_are_solved_by_every_solver(num, tmp_path):
    sections = [
        {"kind": kind, "name": kind, **more, **({"centres": 1} if kind == "falkon" else {})}
        for kind, more in (PAIRS | {"logistic": {}}).items()
    ]
    sections += [{"kind": "gram", "name": "gram", "kernel": "fourier_features"}]
    sections += [{"kind": kind, "name": kind, "centres": 1, "epochs": 30} for kind in ("eigenpro3", "eigenpro4")]
    run = ntkpipe.run(run_config(sections, num=num), tmp_path / "run")
    for section in sections:
        assert run.solution_record(section["name"]).status in ("converged", "budget", "stagnated")
        assert np.isfinite(run.predictions(section["name"], "test")).all()


@pytest.mark.parametrize("tile_rows", [1, 40, 5000])
def test_tiles_of_any_size_factorise(tile_rows, tmp_path):
    sections = [{"kind": "tile-cholesky", "name": "a", "tile_rows": tile_rows}, {"kind": "cholesky", "name": "b"}]
    run = ntkpipe.run(run_config(sections), tmp_path / "run")
    np.testing.assert_allclose(run.solution("a"), run.solution("b"), rtol=1e-8, atol=1e-10)


# Stores and old runs.


def test_solves_leave_nothing_unfinished_in_a_store_of_objects():
    run = ntkpipe.run(run_config([PCG], resources=ALWAYS), "memory://edges/run")
    assert run.solution_record("a").status == "converged"
    assert not any(checked.findings for checked in ntkpipe.verify("memory://edges/run"))
    assert not run.reader._store.names("solver")


def test_runs_of_before_there_were_more_solvers_can_be_asked(tmp_path):
    section = {"kind": "cholesky", "name": "a", "kernel": "laplace", "ridge": 0.1}
    run = ntkpipe.run(run_config([section]), tmp_path / "run")
    expected = run.predictions("a", "test")

    def forget_more_solvers(manifest):
        manifest["numerics_version"] = 3
        del manifest["solvers"], manifest["geometry"]["factors"], manifest["geometry"]["solution_splits"]

    def forget_what_is_new(record):
        for name in ("equation", "backward_errors", "flags", "chosen", "classes", "losses", "extras"):
            del record[name]

    edit_manifest(tmp_path / "run", forget_more_solvers)
    edit_object(tmp_path / "run", "solve", "a", "solutions/a.json", forget_what_is_new)
    old_run = ntkpipe.open_run(tmp_path / "run")
    assert old_run.status().state == "finished"
    assert old_run.solution_record("a").status == "converged"
    assert (old_run.predictions("a", "test") == expected).all()


def test_a_solve_that_needs_more_time_than_a_task_has_is_not_given_up(tmp_path, monkeypatch):
    """Every attempt is cut short after one more state; more of them are needed than attempts are allowed."""
    document = run_config(
        [{"kind": "pcg", "name": "a", "tolerance": 1e-10, "rank": 2}],
        resources={"checkpoint_seconds": 0.0, "max_attempts": 2, "share_solves": False},
    )
    ntkpipe.run(document, tmp_path / "whole")
    save, wait = SolverStates.save, SerialExecutor.wait

    def cut_short(self, *arguments):
        save(self, *arguments)
        raise TimeoutError

    def with_deadline(self, timeout_seconds):
        outcomes = wait(self, timeout_seconds)
        late = TaskError("deadline", "took longer than resources.task_seconds")
        cut = [outcome for outcome in outcomes if outcome.error and "TimeoutError" in outcome.error.message]
        cuts.extend(cut)
        return [Outcome(outcome.task, error=late) if outcome in cut else outcome for outcome in outcomes]

    cuts: list[Outcome] = []
    monkeypatch.setattr(SolverStates, "save", cut_short)
    monkeypatch.setattr(SerialExecutor, "wait", with_deadline)
    ntkpipe.run(document, tmp_path / "run")
    assert len(cuts) > 3
    assert chunk_hashes(tmp_path / "run") == chunk_hashes(tmp_path / "whole")
