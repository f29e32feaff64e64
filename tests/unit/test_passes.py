"""How batches are cut to fit a worker: always within the budget, never smaller than need be."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ntkpipe
from ntkpipe.workers.jacobians.coverage import plan_routes, select_parameters
from ntkpipe.workers.jacobians.engine import JacobianEngine, portions
from ntkpipe.workers.jacobians.functionals import Functional
from ntkpipe.workers.kernels import computation
from ntkpipe.workers.memory import measure_footprint
from ntkpipe.workers.passes import Footprint, PassPlan, plan_passes

footprints = st.builds(
    Footprint,
    graph_bytes=st.integers(0, 10**8),
    input_bytes=st.integers(0, 10**8),
    new_input_bytes=st.integers(0, 10**7),
    vector_bytes=st.integers(1, 10**7),
    output_bytes=st.integers(0, 10**7),
    call_bytes=st.integers(0, 10**7),
    output_vector_bytes=st.integers(0, 10**5),
    unfolded_bytes=st.integers(0, 10**7),
)


@given(footprints, st.integers(1, 1000), st.integers(10**6, 10**11), st.none() | st.integers(1, 300), st.booleans())
def test_a_pass_and_the_rows_that_are_kept_stay_within_the_budget(footprint, vectors, budget, limit, keep_rows):
    plan = plan_passes(footprint, vectors, budget, limit, keep_rows=keep_rows)
    share = budget // 4 if keep_rows else budget
    assert 1 <= plan.batch_size <= (limit or 256)
    assert 1 <= plan.max_vectors <= vectors
    smallest = plan.batch_size == 1 and plan.max_vectors == 1
    if not smallest:
        assert plan.batch_size * footprint.sample_bytes(plan.max_vectors) <= share
    if plan.gram_samples > 1:
        assert plan.gram_samples * footprint.gram_bytes(plan.max_vectors) <= share
    if plan.row_samples > plan.gram_samples:
        assert plan.row_samples * footprint.factor_bytes(plan.max_vectors) <= budget // 2


@given(footprints, st.integers(1, 1000), st.integers(10**6, 10**11))
def test_vectors_are_split_over_passes_only_where_batches_would_get_small(footprint, vectors, budget):
    plan = plan_passes(footprint, vectors, budget, 256)
    if plan.max_vectors < vectors:
        assert 8 * footprint.sample_bytes(vectors) > budget // 4


def test_passes_cover_every_output_vector_once():
    trace, total, probes = Functional("trace"), Functional("sum"), Functional("probes", index=4)
    assert [p.vectors for p in portions({trace, total}, 10, 11)] == [None]
    found = portions({trace, total, probes}, 10, 3)
    by_functional = {f: [p.vectors for p in found if p.functionals == {f}] for f in (trace, total, probes)}
    assert by_functional[trace] == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert by_functional[total] == [(0, 1)]
    assert by_functional[probes] == [(0, 3), (3, 4)]


def network(num_outputs=7):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, num_outputs)).eval()


@pytest.mark.parametrize("kernel", ["trntk", "trntk0", "probe:5"])
@pytest.mark.parametrize("projection", [None, "tensorsketch", "sjlt", "rademacher", "khatri-rao", "srht"])
def test_passes_over_output_vectors_add_up(kernel, projection, monkeypatch):
    model, x = network(), torch.randn(5, 2, 6, 6)
    options = {"kernel": kernel, "dtype": torch.float64}
    if projection is not None:
        options["projection"] = ntkpipe.Projection(kind=projection, dim=32)
    whole = ntkpipe.kernel_matrix(model, x, **options)
    monkeypatch.setattr(computation, "plan_passes", lambda *_, **__: PassPlan(2, 3, 4, 2))
    torch.testing.assert_close(ntkpipe.kernel_matrix(model, x, **options), whole, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ntkpipe.kernel_matrix(model, x, x[:2], **options), whole[:, :2], rtol=1e-10, atol=1e-12)


def test_a_footprint_counts_shared_memory_once_and_does_not_grow_with_the_samples_it_is_measured_on():
    model = network()
    x = torch.randn(4, 2, 6, 6)
    engine = JacobianEngine(model, plan_routes(model, select_parameters(model), x))
    one, two = (measure_footprint(engine, x[:num]) for num in (1, 2))
    assert one == two
    # What the layers saw is in the graph anyway; the gradient of the Linear bias is that at its output.
    assert one.new_input_bytes == 0
    assert one.input_bytes == 4 * (72 + 48)
    assert one.vector_bytes == 4 * (48 + 3 + 7)
