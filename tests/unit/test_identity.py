"""What the digests of tasks depend on, one change of a configuration at a time."""

import growing
import numpy as np
import pytest
from growing import rich_config

from ntkpipe.configs.loading import load_config
from ntkpipe.pipeline.execution import make_plan
from ntkpipe.pipeline.identity import INPUTS, TaskIdentities
from ntkpipe.workers.probing.probe import probe_run
from ntkpipe.workers.tasks import SolvePartTask, SolveStepTask

PARENTS = {
    "trntk0": [],
    "signs": [],
    "lpntk": [],
    "ck": [],
    "fisher": [],
    "gaussian": [],
    "fourier": [],
    "mixed": ["trntk0", "lpntk"],
    "scaled": ["gaussian"],
    "centred": ["mixed"],
    "posterior": ["trntk0"],
}
"""The kernels of the configuration, by what they are made of."""

OF_MODEL = {"trntk0", "signs", "lpntk", "ck", "fisher"}
STORED = {name for name, parents in PARENTS.items() if not parents}
SOLVED = {"krr": "trntk0", "tiles": "gaussian", "path": "fourier", "late": "centred"}
ANALYSED = {"spectrum": {"ck", "mixed"}, "heatmap": {"signs"}, "fidelity": set(), "student": {"gaussian"}}


def identities(document, overrides=()):
    """Return {(item, task): digest}; an item is a stage and the kernel, solution or analysis that its tasks serve."""
    probe = probe_run(load_config(document, overrides))
    found, made = TaskIdentities(probe), make_plan(probe)
    items = {}
    for stage in made.stages:
        kind = stage.partition("-")[0]
        for task in made.tasks(stage):
            for key, text in found.of(task).items():
                owner = task.id.partition("/")[0] if kind in ("factor", "solve", "analyze") else key
                items[f"{kind}:{owner}", task.id] = text
    return items


def changed(before, after):
    """Return the items all of whose tasks have other digests; that some of them have is an error."""
    assert before.keys() == after.keys()
    others = {item for (item, task), text in before.items() if after[item, task] != text}
    same = {item for (item, task), text in before.items() if after[item, task] == text}
    assert not others & same
    return others


def with_descendants(kernels):
    found = set(kernels)
    for name, parents in PARENTS.items():  # in the order in which they are made
        if found & set(parents):
            found.add(name)
    return found


def of_kernels(*kernels, features=True):
    """Return everything that depends on what some kernels are."""
    names = with_descendants(kernels)
    found = {f"kernel:{name}" for name in names & STORED}
    if features:
        found |= {f"features:{name}" for name in names & STORED}
    found |= {f"derive:{name}" for name in names & {"centred", "posterior"}}
    solved = {solution for solution, kernel in SOLVED.items() if kernel in names}
    found |= {f"solve:{name}" for name in solved} | ({"factor:tiles"} if "tiles" in solved else set())
    found |= {f"analyze:{name}" for name, read in ANALYSED.items() if read & names}
    return found | ({"analyze:fidelity"} if solved else set())


MODEL = of_kernels(*OF_MODEL) | {"features:", "moments:fisher", "analyze:fidelity"}
EVERYTHING = {
    *(f"{stage}:{name}" for stage in ("features", "kernel") for name in STORED),
    *("features:", "moments:fisher", "derive:centred", "derive:posterior", "factor:tiles"),
    *(f"solve:{name}" for name in SOLVED),
    *(f"analyze:{name}" for name in ANALYSED),
}


@pytest.fixture(scope="module")
def original():
    return identities(rich_config())


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.options.shift=0.5", MODEL),
        ("model.dtype=float64", MODEL),
        ("model.mode=as-built", MODEL),
        ("kernels.0.kind=true_class", of_kernels("trntk0")),
        ("kernels.1.projection={kind: none}", of_kernels("signs")),
        ("kernels.1.projection={kind: rademacher, dim: 8, seed: 3}", of_kernels("signs")),
        ("kernels.1.parameters=['*.bias']", of_kernels("signs")),
        ("kernels.1.layerwise=true", of_kernels("signs")),
        ("kernels.3.kind=nngp", of_kernels("ck")),
        ("kernels.4.projection.seed=1", of_kernels("fisher")),
        ("kernels.4.precondition.eps=0.1", of_kernels("fisher")),
        ("kernels.4.precondition.exponent=-1", of_kernels("fisher")),
        ("kernels.4.precondition.samples=2", of_kernels("fisher") | {"moments:fisher"}),
        ("kernels.5.bandwidth=3", of_kernels("gaussian")),
        ("kernels.6.seed=1", of_kernels("fourier")),
        ("kernels.6.dim=16", of_kernels("fourier")),
        ("kernels.7.terms.1.weight=2", of_kernels("mixed")),
        ("kernels.7.terms.0.component=fc1.bias", of_kernels("mixed")),
        ("kernels.8.factor=2", set()),
        ("kernels.10.noise=2", {"derive:posterior"}),
        ("kernels.10.given=['n1', 'n2']", {"derive:posterior"}),
        ("projection.seed=1", of_kernels("signs")),
        ("projection.dim=10", of_kernels("signs")),
        ("solve.0.ridge=2", {"solve:krr", "analyze:fidelity"}),
        ("solve.0.tolerance=0.001", {"solve:krr", "analyze:fidelity"}),
        ("solve.0.kernel=gaussian", {"solve:krr", "analyze:fidelity"}),
        ("solve.1.ridge=2", {"solve:tiles", "factor:tiles", "analyze:fidelity"}),
        ("solve.1.precision=float32", {"solve:tiles", "factor:tiles", "analyze:fidelity"}),
        ("solve.2.class_weight=balanced", {"solve:path", "analyze:fidelity"}),
        ("analyses.0.max_samples=5", {"analyze:spectrum"}),
        ("analyses.1.kernel=trntk0", {"analyze:heatmap"}),
        ("analyses.2.solutions=[krr]", {"analyze:fidelity"}),
        ("analyses.3.noise=0.5", {"analyze:student"}),
        ("store.dtype=float64", EVERYTHING - {"moments:fisher"}),
    ],
)
def test_a_change_reaches_exactly_the_tasks_that_depend_on_it(override, expected, original):
    assert changed(original, identities(rich_config(), [override])) == expected


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "model.pseudo_gradient=allow",
        "resources.workers=7",
        "resources.executor=ray",
        "resources.batch_size=1",
        "resources.max_worker_bytes=6GiB",
        "resources.max_attempts=9",
        "resources.task_seconds=9",
        "resources.start_seconds=9",
        "resources.checkpoint_seconds=9",
        "resources.share_solves=false",
        "resources.threads_per_worker=2",
        "store.lease_seconds=9",
        "store.fsync=true",
        "store.single_writer=true",
        "kernels.5.name=gaussian",
        "projection.seed=0",
    ],
)
def test_how_a_run_is_carried_out_changes_nothing(override, original):
    assert identities(rich_config(), [override]) == original


def test_what_runs_share_is_equal_whatever_else_they_compute(original):
    fewer = rich_config(solve=[], analyses=[])
    fewer["kernels"] = [kernel for kernel in fewer["kernels"] if kernel["kind"] in ("trntk0", "gaussian", "ck")]
    found = identities(fewer)
    assert len(found) > 30
    assert {key: original[key] for key in found} == found


def test_a_kernel_is_the_same_under_another_name(original):
    document = rich_config(solve=[], analyses=[])
    document["kernels"] = [{"kind": "gaussian", "bandwidth": 4.0, "name": "other"}]
    found = identities(document)
    for kind in ("features", "kernel"):
        renamed = {task: text for (item, task), text in found.items() if item == f"{kind}:other"}
        assert renamed == {task: text for (item, task), text in original.items() if item == f"{kind}:gaussian"}


def with_samples(split, **options):
    document = rich_config()
    document["data"]["splits"][split]["options"] |= options
    return document


def test_the_order_of_splits_reaches_what_names_them_in_order(original):
    document = rich_config()
    document["data"]["splits"] = dict(sorted(document["data"]["splits"].items()))
    assert list(document["data"]["splits"]) == ["test", "train"]
    found = touched(original, identities(document))
    # The others predict on the splits of pairs, whose order does not change.
    assert {item for item, _ in found} == {"solve:tiles", "solve:path", "analyze:fidelity"}


def touched(before, after):
    return {key for key, text in before.items() if after[key] != text}


def test_an_input_reaches_the_shard_and_the_blocks_that_it_is_in(original):
    found = touched(original, identities(with_samples("train", moved=5)))
    # Fisher's second moments are a mean over the whole training split.
    features = {task for item, task in found if item.startswith("features") and item != "features:fisher"}
    assert features == {"train/00000002"}
    assert {item for item, _ in found if item.startswith("features")} >= {f"features:{INPUTS}", "features:"}
    blocks = {task for item, task in found if item == "kernel:gaussian"}
    assert blocks == {
        *("train-train/000002-000000", "train-train/000002-000001", "train-train/000002-000002"),
        *("train-train/000003-000002", "test-train/000000-000002", "test-train/000001-000002"),
    }
    assert {item for item, _ in found if item.startswith(("solve", "analyze", "derive", "factor", "moments"))} == {
        item for item in EVERYTHING if item.startswith(("solve", "analyze", "derive", "factor", "moments"))
    }


def test_an_input_of_another_split_leaves_the_training_split_alone(original):
    found = touched(original, identities(with_samples("test", moved=0)))
    assert {task for item, task in found if item == "kernel:gaussian"} == {
        f"test-train/000000-{column:06d}" for column in range(4)
    }
    assert {task for item, task in found if item.startswith("derive")} == {
        "centred/test/00000000",
        "posterior/test/00000000",
    }
    assert not {item for item, _ in found if item.startswith(("factor", "moments"))}
    # Spectra and heat maps look at the training split only.
    assert {item for item, _ in found if item.startswith("analyze")} == {"analyze:fidelity", "analyze:student"}


def test_a_label_reaches_what_looks_at_labels(original):
    found = touched(original, identities(with_samples("train", flipped=6)))
    assert {item for item, _ in found} == {
        *("features:lpntk", "kernel:lpntk", "moments:fisher", "features:fisher", "kernel:fisher", "derive:centred"),
        *(f"solve:{name}" for name in SOLVED),
        *(f"analyze:{name}" for name in ANALYSED),
    }
    assert {task for item, task in found if item == "features:lpntk"} == {"train/00000003"}


def test_an_id_reaches_what_names_samples(original):
    found = touched(original, identities(with_samples("train", renamed=6)))
    assert {item for item, _ in found} == {f"analyze:{name}" for name in ANALYSED}


def test_more_samples_reach_new_shards_and_blocks_and_what_is_over_whole_splits(original):
    found = identities(with_samples("train", num=9))
    same = {key for key, text in original.items() if found.get(key) == text}
    # Samples 0 to 5 fill three shards, sample 6 was alone in the fourth.
    assert {task for item, task in same if item == "features:gaussian"} == {
        *(f"train/{shard:08d}" for shard in range(3)),
        *(f"test/{shard:08d}" for shard in range(2)),
    }
    assert {task for item, task in same if item == "kernel:gaussian"} == {
        *(f"train-train/{row:06d}-{column:06d}" for row in range(3) for column in range(row + 1)),
        *(f"test-train/{row:06d}-{column:06d}" for row in range(2) for column in range(3)),
    }
    kinds = {item.partition(":")[0] for item, _ in same}
    assert kinds == {"features", "kernel"}
    assert {item for item, _ in same if item.endswith(":fisher")} == set()


def test_a_class_that_only_another_split_has_reaches_solutions_but_no_kernel():
    document = growing.config(model=None, kernels=[{"kind": "gaussian"}], analyses=[])
    document["solve"] = [{"kind": "cholesky", "name": "formula", "kernel": "gaussian", "ridge": 0.5}]
    original = identities(document)
    document["data"]["splits"]["test"]["options"] |= {"extra_class": True}
    assert {item for item, _ in touched(original, identities(document))} == {"solve:formula"}


@pytest.mark.parametrize("override", ["store.shard_rows=3", "store.block_rows=3"])
def test_other_cuts_are_other_tasks(override, original):
    found = identities(rich_config(), [override])
    same = {item for (item, task), text in original.items() if found.get((item, task)) == text}
    allowed = {"moments:fisher", *(item for item in EVERYTHING if item.startswith("features")), f"features:{INPUTS}"}
    assert same == (set() if "shard" in override else allowed)


def test_where_files_are_does_not_matter_but_what_they_hold_does(tmp_path):
    def at(folder, scale=1.0):
        (tmp_path / folder).mkdir(exist_ok=True)
        np.save(tmp_path / folder / "inputs.npy", scale * np.arange(12, dtype=np.float32).reshape(6, 2))
        np.savez(tmp_path / folder / "graph.npz", adjacency=scale * (np.ones((6, 6)) - np.eye(6)), features=np.eye(6))
        nodes = tmp_path / folder / "nodes.npy"
        np.save(nodes, np.arange(6)[:, None])
        split = {"kind": "arrays", "inputs": str(nodes)}
        graph = {"graph": str(tmp_path / folder / "graph.npz")}
        kernels = [{"kind": "gntk_node", **graph}, {"kind": "graph_walk_features", "num_walks": 2, **graph}]
        return growing.config(model=None, data={"splits": {"train": split}}, kernels=kernels, solve=[], analyses=[])

    original = identities(at("one"))
    assert identities(at("two")) == original
    others = identities(at("two", scale=2.0))
    assert changed(original, others) == {item for item, _ in original} - {f"features:{INPUTS}"}


def test_the_members_of_a_model_count_where_a_kernel_looks_at_them():
    members = {
        "one": {"options": {"shift": 0.0}},
        "two": {"options": {"shift": 0.25}},
        "three": {"options": {"shift": 1.0}},
    }
    document = rich_config(
        model={"target": "golden:build_member", "members": members},
        kernels=[{"kind": "pntk"}, {"kind": "pntk", "name": "between", "cross": ["one", "two"]}],
        projection={"kind": "none"},
        solve=[],
        analyses=[],
    )
    original = identities(document)
    found = changed(original, identities(document, ["model.members.three.options.shift=0.5"]))
    assert found == {"features:pntk", "kernel:pntk", "features:"}
    found = changed(original, identities(document, ["model.members.two.options.shift=0.5"]))
    assert found == {"features:pntk", "kernel:pntk", "features:between", "kernel:between", "features:"}


def test_tasks_without_receipts_have_no_digests():
    found = TaskIdentities(probe_run(load_config(growing.config())))
    assert found.of(SolveStepTask("krr")) == {}
    assert found.of(SolvePartTask("krr", 0, 0)) == {}
