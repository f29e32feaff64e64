"""Jobs that do not fit a cluster, and whether the settings that are told really fit while the next larger do not."""

import golden
import pytest

from ntkpipe.configs.cluster import ClusterConfig
from ntkpipe.configs.described import load_cluster
from ntkpipe.configs.errors import PlanError
from ntkpipe.pipeline.prediction.fitting import check_fit, largest, misfits
from ntkpipe.pipeline.prediction.workload import Workload
from ntkpipe.pipeline.run import plan

SJLT = {"kind": "sjlt", "dim": 4096}


def job(*overrides, samples=1_000_000, **changes):
    document = golden.config(solve=[], kernels=[{"kind": "pntk"}], projection=SJLT, store={"block_rows": 512}) | changes
    return Workload.of(plan(document, overrides)[1]).scaled({"train": samples})


def cluster(memory="64GiB", workers=1, **storage):
    group = {"nodes": 2, "device": "cpu2", "memory": memory, "workers_per_node": workers}
    shared = load_cluster("1xcpu2@local-disk").storage.model_dump()
    return load_cluster(ClusterConfig.model_validate({"groups": [group], "storage": shared | storage}))


def settings(workload, described):
    return {setting.key: setting for misfit in misfits(workload, described) for setting in misfit.settings}


def raised(setting, by):
    """Return a setting's assignments with its own number so much larger."""
    number, unit = int(setting.value.removesuffix("MiB")) + by, "MiB" if setting.value.endswith("MiB") else ""
    return (f"{setting.key}={number}{unit}", *setting.others)


def test_what_fits_is_let_through():
    assert misfits(job(), cluster()) == []
    check_fit(job(), cluster())


def test_a_worker_with_too_little_memory_is_told_the_largest_budget_that_fits():
    described = cluster(memory="1GiB")
    with pytest.raises(
        PlanError, match=r"group 'cpu2' is predicted to take .* --set resources.max_worker_bytes=\d+MiB"
    ):
        check_fit(job(), described)
    setting = settings(job(), described)["resources.max_worker_bytes"]
    assert misfits(job(*setting.assignments), described) == []
    assert misfits(job(*raised(setting, 1)), described)


def test_fewer_workers_on_a_node_are_told_where_they_fit():
    described = cluster(memory="8GiB", workers=8)
    setting = settings(job(), described)["workers_per_node"]
    assert 1 <= int(setting.value) < 8
    assert misfits(job(), cluster(memory="8GiB", workers=int(setting.value))) == []
    assert misfits(job(), cluster(memory="8GiB", workers=int(setting.value) + 1))


def test_smaller_blocks_are_told_where_not_even_one_sample_fits():
    described = cluster(memory="1GiB")
    large = {"store": {"block_rows": 16384, "shard_rows": 16384}, "resources": {"max_worker_bytes": "64GiB"}}
    setting = settings(job(**large), described)["store.block_rows"]
    assert misfits(job(*setting.assignments, **large), described) == []
    more = int(setting.value) + 1
    with pytest.raises(PlanError, match="needs at least"):
        job(*setting.assignments, f"store.block_rows={more}", f"store.shard_rows={more}", **large)


def test_memory_of_a_gpu_counts_and_not_that_of_its_node():
    group = {"nodes": 1, "device": "t4", "workers_per_node": 16, "memory": "4TiB"}
    described = load_cluster(ClusterConfig.model_validate({"groups": [group]}))
    setting = settings(job(), described)["resources.max_worker_bytes"]
    assert misfits(job(*setting.assignments), described) == []
    assert misfits(job(*raised(setting, 1)), described)


def test_a_storage_that_is_too_small_is_told_the_most_samples():
    workload, described = job(samples=20_000), cluster(capacity="1GB")
    found = settings(workload, described)
    assert set(found) == {"data.pairs", "projection.dim", "samples"}
    split, _, num = found["samples"].value.partition("=")
    assert split == "train"
    assert misfits(job(samples=int(num)), described) == []
    assert misfits(job(samples=int(num) + 1), described)


def test_the_largest_projection_that_fits_is_told():
    changes = {"data": golden.config()["data"] | {"pairs": []}}
    workload, described = job(samples=20_000, **changes), cluster(capacity="200MB")
    setting = settings(workload, described)["projection.dim"]
    assert misfits(job(*setting.assignments, samples=20_000, **changes), described) == []
    assert misfits(job(*raised(setting, 2), samples=20_000, **changes), described)


def test_a_kernel_matrix_beyond_the_storage_is_told_to_be_left_out():
    workload, described = job(samples=100_000), cluster(capacity="10GB")
    setting = settings(workload, described)["data.pairs"]
    assert setting.text == "--set 'data.pairs=[]'"
    assert misfits(job(*setting.assignments, samples=100_000), described) == []
    assert misfits(workload, described)


def test_a_matrix_that_a_solution_needs_is_not_told_to_be_left_out():
    solve = [{"kind": "tile-cholesky", "name": "tiles", "kernel": "pntk"}]
    assert "data.pairs" not in settings(job(samples=100_000, solve=solve), cluster(capacity="10GB"))


def test_single_precision_is_told_where_it_fits():
    changes = {"store": {"dtype": "float64", "block_rows": 512}}
    workload, described = job(samples=10_000, **changes), cluster(capacity="600MB")
    setting = settings(workload, described)["store.dtype"]
    assert misfits(job(*setting.assignments, samples=10_000, **changes), described) == []


def test_a_solver_that_needs_more_memory_than_any_worker_has_is_told_another_one():
    solve = [{"kind": "cholesky", "name": "krr", "kernel": "pntk", "ridge": 0.1}]
    workload, described = job(solve=solve), cluster()
    with pytest.raises(PlanError, match=r"solution 'krr' by cholesky is predicted to take .* one worker"):
        check_fit(workload, described)
    setting = settings(workload, described)["solve.0"]
    other = job(*setting.assignments, solve=solve)
    assert other.config.solve[0].ridge == 0.1
    assert misfits(other, described) == []


def test_a_job_that_nothing_helps_is_told_so():
    with pytest.raises(PlanError, match="No setting of this job helps"):
        check_fit(job(), cluster(memory="100MiB"))


def test_the_largest_number_is_found_between_one_that_is_accepted_and_one_that_is_not():
    for limit in (1, 2, 17, 99):
        assert largest(lambda num, limit=limit: num <= limit, 1, 100) == limit
    assert largest(lambda num: False, 1, 100) is None
    assert largest(lambda num: True, 5, 5) is None
