"""Solves that workers share, as plans and simulations see them."""

from dataclasses import replace

import golden
import pytest
import torch

from ntkpipe.configs.described import load_cluster
from ntkpipe.configs.solve.centres import FalkonSolve
from ntkpipe.configs.solve.direct import CholeskySolve, GramSolve
from ntkpipe.configs.solve.krylov import PCGSolve
from ntkpipe.pipeline.prediction.forecast import forecast
from ntkpipe.pipeline.prediction.workload import Workload
from ntkpipe.pipeline.run import plan
from ntkpipe.pipeline.simulation.chance import EVEN, Chance
from ntkpipe.pipeline.simulation.simulate import scene_of, simulate
from ntkpipe.storage.solutions import SOLVE_STAGE
from ntkpipe.workers.kernels.formulas import closed_form_operator
from ntkpipe.workers.operators.features import FeatureOperator
from ntkpipe.workers.operators.rectangle import DenseRectangle
from ntkpipe.workers.solvers.prediction import Machine, Problem, predict
from ntkpipe.workers.solvers.registry import make_solver
from ntkpipe.workers.solvers.sharing import rounds, shared_cost

TOLERANCE = 0.1
"""Between a formula, which knows nothing of the order of tasks, and a simulation without chance."""

NAMES = {"name": "a", "kernel": "k"}
SOLVES = {
    "pcg": {"kind": "pcg", "kernel": "gaussian", "rank": 200},
    "falkon": {"kind": "falkon", "kernel": "gaussian", "centres": 4, "iterations": 200},
    "gram": {"kind": "gram", "kernel": "pntk", "ridges": [0.1, 1.0], "select": "loo"},
}


def job(*kinds, **options):
    """Return a job of so many samples that its solves take minutes."""
    found = plan(
        golden.config(
            data=golden.config()["data"] | {"pairs": []},
            kernels=[
                {"kind": "gaussian", "bandwidth": 1.0},
                {"kind": "pntk", "projection": {"kind": "rademacher", "dim": 2048}},
            ],
            solve=[SOLVES[kind] | {"name": kind, "ridge": 1e-3} for kind in kinds],
            analyses=[],
            store={"shard_rows": 512, "block_rows": 1024},
            **options,
        )
    )
    scaled = Workload.of(found[1]).scaled({"train": 100_000, "test": 1000})
    # What was looked at has four samples, so that it may have no more centres.
    solve = tuple(
        section.model_copy(update={"centres": 5000}) if section.kind == "falkon" else section
        for section in scaled.config.solve
    )
    return replace(scaled, config=scaled.config.model_copy(update={"solve": solve}))


def solving(one, spec):
    """Return what the solve stage takes by formula and in a simulation."""
    cluster = load_cluster(spec)
    predicted = next(stage for stage in forecast(one, cluster).stages if stage.stage == SOLVE_STAGE)
    simulated = simulate(scene_of(one, cluster, None, EVEN, 0))
    assert simulated.failure == ""
    return predicted, simulated


@pytest.mark.parametrize("kind", SOLVES)
@pytest.mark.parametrize("spec", ["1xcpu2", "4xcpu2", "5xcpu", "8xcpu2,8xcpu2", "1000xcpu@s3"])
def test_plan_and_simulation_agree_on_what_a_shared_solve_takes(kind, spec):
    predicted, simulated = solving(job(kind), f"{spec}@local-disk" if "@" not in spec else spec)
    assert simulated.stages[SOLVE_STAGE].seconds == pytest.approx(predicted.seconds, rel=TOLERANCE)
    assert simulated.num_tasks == sum(simulated.stages[stage].num_tasks for stage in simulated.stages), (
        "parts of a solve have no receipts"
    )
    # A Gram matrix is soon made: the features that it is made of take longer.
    assert simulated.main_stage == SOLVE_STAGE or kind == "gram"


@pytest.mark.parametrize("kind", SOLVES)
def test_a_solve_has_no_use_for_more_workers_than_parts(kind):
    wide = {"total_read": 1e15, "total_write": 1e15, "total_requests": 1e12}
    clusters = [load_cluster(f"{nodes}xcpu2@local-disk") for nodes in (1, 8, 32, 4000)]
    few, some, many, all_of_them = (
        forecast(job(kind), replace(cluster, storage=cluster.storage.model_copy(update=wide))).stages[-1].worker_seconds
        for cluster in clusters
    )
    assert few > some >= many
    assert all_of_them == many
    # What one worker does alone, and the best that 32 can do of the rest.
    assert many > few / 33


@pytest.mark.parametrize("kind", SOLVES)
def test_workers_of_all_groups_share_a_solve(kind):
    one = job(kind)
    together, apart = (solving(one, f"{spec}@local-disk")[0] for spec in ("16xcpu2", "8xcpu2,8xcpu2"))
    assert apart.worker_seconds == pytest.approx(together.worker_seconds)


def test_a_solve_that_is_not_to_be_shared_is_one_task():
    one = job("pcg", resources={"share_solves": False})
    predicted, simulated = solving(one, "4xcpu2@local-disk")
    alone, _ = solving(job("pcg"), "1xcpu2@local-disk")
    assert predicted.worker_seconds == pytest.approx(alone.worker_seconds)
    assert simulated.stages[SOLVE_STAGE].seconds == pytest.approx(predicted.seconds, rel=TOLERANCE)


def test_shared_solves_come_one_after_the_other_and_their_certificates_side_by_side():
    predicted, simulated = solving(job("pcg", "falkon", "gram"), "16xcpu2@local-disk")
    alone = [solving(job(kind), "16xcpu2@local-disk")[0] for kind in SOLVES]
    rounds_of = [each.worker_seconds - each.total_seconds for each in alone]
    assert predicted.worker_seconds == pytest.approx(sum(rounds_of) + max(each.total_seconds for each in alone))
    assert simulated.stages[SOLVE_STAGE].seconds == pytest.approx(predicted.seconds, rel=TOLERANCE)


def test_a_worker_that_is_lost_while_a_solve_is_shared_costs_its_part_only():
    one, cluster = job("pcg", resources={"max_attempts": 100}), load_cluster("4xcpu2@local-disk")
    groups = (replace(cluster.groups[0], hours_between_failures=0.1, start_seconds=5.0),)
    chance = Chance(task_spread=0.0)
    found = simulate(scene_of(one, replace(cluster, groups=groups), None, chance, 3))
    whole = simulate(scene_of(one, cluster, None, EVEN, 0))
    assert found.failure == ""
    assert found.num_nodes_lost > 2
    assert whole.seconds < found.seconds < 3 * whole.seconds


@pytest.mark.parametrize(("size", "block_rows"), [(7, 3), (40, 1), (100, 1), (100, 7), (300, 7), (12, 6)])
def test_a_solve_is_predicted_to_have_the_parts_that_it_has(size, block_rows):
    x, y = torch.randn(size, 5), 3
    formula = closed_form_operator("gaussian", x, block_rows=block_rows, bandwidth=1.0)
    features = DenseRectangle(x)
    features.block_rows = block_rows
    of_features = FeatureOperator(features)
    entries, columns = Problem(size, y, entry_flops=20.0), Problem(size, y, num_features=5)
    for section, operator, problem in (
        (PCGSolve(**NAMES), formula, entries),
        (FalkonSolve(centres=4, **NAMES), formula, entries),
        (PCGSolve(**NAMES), of_features, columns),
        (FalkonSolve(centres=4, **NAMES), of_features, columns),
        (GramSolve(**NAMES), of_features, columns),
    ):
        found = rounds(section, problem, block_rows)
        parts = make_solver(section).num_parts(operator)
        assert (1 if found is None else found.num_parts) == parts, section.kind


def test_what_is_shared_is_a_part_of_what_is_predicted():
    machine = Machine(memory_bytes=1e12)
    entries, columns = Problem(50_000, 3, entry_bytes=4.0, tiles=True), Problem(50_000, 3, num_features=900)
    for section, problem in (
        (PCGSolve(**NAMES), entries),
        (FalkonSolve(**NAMES), entries),
        (GramSolve(**NAMES), columns),
        (GramSolve(leave_one_out=True, **NAMES), columns),
    ):
        whole, shared = predict(section, problem, machine), shared_cost(section, problem, machine)
        assert 0 < shared.seconds < whole.seconds
        assert 0 < shared.flops < whole.flops
        assert shared.passes < whole.passes
    assert rounds(CholeskySolve(**NAMES), entries, 1000) is None
