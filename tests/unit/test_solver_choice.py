"""Which solver `auto` takes, and what it says of the others."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from solving import rbf, targets

import ntkpipe
from ntkpipe.configs.errors import PlanError
from ntkpipe.configs.solve.auto import AutoSolve
from ntkpipe.configs.solve.krylov import PCGSolve
from ntkpipe.configs.solve.union import SECTIONS
from ntkpipe.workers.solvers.choice import choose
from ntkpipe.workers.solvers.prediction import Machine, Problem, predict

GIB = 2.0**30


def chosen(problem, memory=16 * GIB, **options):
    return choose(AutoSolve(name="a", kernel="k", **options), problem, Machine(memory_bytes=memory))


def test_what_the_user_names_is_taken():
    section = PCGSolve(name="a", kernel="k")
    found = choose(section, Problem(100, 1), Machine(memory_bytes=1.0))
    assert (found.section, found.why, found.candidates) == (section, "", ())


def test_a_small_kernel_is_factorised():
    assert chosen(Problem(10_000, 10)).section.kind == "cholesky"


def test_a_kernel_that_fits_no_memory_is_multiplied():
    found = chosen(Problem(60_000, 10, entry_flops=1583.0), memory=4 * GIB)
    assert found.section.kind == "pcg"
    assert found.why.startswith("pcg: the quickest that fits")


def test_features_are_factorised_on_their_smaller_side():
    found = chosen(Problem(60_000, 10, num_features=3072, entry_bytes=4.0))
    assert found.section.kind == "gram"
    assert next(item for item in found.candidates if item.kind == "gram").passes == 2


def test_too_many_features_are_not_factorised():
    assert chosen(Problem(10**6, 10, num_features=10**5, entry_bytes=4.0)).section.kind != "gram"


def test_a_short_budget_takes_what_stops_short_and_says_so():
    problem = Problem(200_000, 10, entry_flops=1583.0)
    found = chosen(problem, budget_seconds=600.0)
    assert found.section.kind in ("gauss-seidel", "eigenpro2", "falkon")
    assert "stops short" in found.why
    seconds = {item.kind: item.seconds for item in found.candidates}
    assert seconds[found.section.kind] < seconds["pcg"]


def test_a_budget_takes_what_solves_the_system_in_time_before_what_stops_short():
    problem = Problem(20_000, 1)
    seconds = {item.kind: item.seconds for item in chosen(problem, budget_seconds=1e-9).candidates}
    assert seconds["pcg"] < seconds["cholesky"]
    assert chosen(problem, budget_seconds=(seconds["pcg"] + seconds["cholesky"]) / 2).section.kind == "pcg"


def test_a_budget_that_nothing_keeps_takes_the_quickest_of_all():
    for problem in (Problem(100, 10), Problem(20_000, 1), Problem(200_000, 10, entry_flops=1583.0)):
        found = chosen(problem, budget_seconds=1e-9)
        assert min(found.candidates, key=lambda item: item.seconds).kind == found.section.kind


def test_early_stopping_takes_a_solver_that_takes_steps():
    found = chosen(Problem(1000, 10, num_features=50), early_stopping={"split": "test"})
    assert found.section.kind in ("pcg", "eigenpro2")
    assert found.section.early_stopping is not None


def test_no_solver_that_fits_is_an_error_that_says_what_would():
    with pytest.raises(PlanError, match="the smallest one needs"):
        chosen(Problem(10**6, 10), memory=2**20)


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 10**7),
    num_targets=st.integers(1, 1000),
    num_features=st.none() | st.integers(1, 10**5),
    entry_bytes=st.sampled_from([0.0, 4.0, 8.0]),
)
def test_predictions_are_finite_and_grow_with_the_samples(size, num_targets, num_features, entry_bytes):
    machine = Machine(memory_bytes=16 * GIB)
    for kind in set(SECTIONS) - {"auto"}:
        small, large = (
            predict(
                SECTIONS[kind](name="a", kernel="k"),
                Problem(num, num_targets, num_features=num_features, entry_bytes=entry_bytes),
                machine,
            )
            for num in (size, 2 * size)
        )
        assert 0 < small.seconds < large.seconds < float("inf")
        assert 0 < small.flops < large.flops
        assert small.memory_bytes <= large.memory_bytes


def test_the_library_tells_what_it_chose_and_how_far_it_is(monkeypatch):
    monkeypatch.setattr("ntkpipe.workers.solvers.choice.FACTORISE_UP_TO", 50)
    monkeypatch.setattr("ntkpipe.workers.solvers.watcher.REPORT_SECONDS", 0.0)
    said: list[str] = []
    solution = ntkpipe.solve(rbf(120), targets(120), ridge=0.01, tolerance=1e-8, report=said.append)
    assert solution.method != "cholesky" or "cholesky" in said[0]
    assert said[0].startswith(f"{solution.method}: ")
    said.clear()
    ntkpipe.solve(rbf(120), targets(120), ridge=0.01, method="pcg", tolerance=1e-10, rank=5, report=said.append)
    assert any("of about" in line for line in said)


def test_auto_takes_features_for_what_they_are():
    features = torch.randn(200, 20, generator=torch.Generator().manual_seed(0))
    assert ntkpipe.solve(features, targets(200), ridge=0.1).method in ("gram", "cholesky")
    assert ntkpipe.solve(features.repeat(30, 1), targets(6000), ridge=0.1).method == "gram"
