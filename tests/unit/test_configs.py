"""Configurations: what is accepted, what is refused and how, and what belongs to a run's identity."""

import golden
import pytest
import yaml

from ntkpipe.configs.canonical import canonical_json, differences, digest
from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.kernels import names
from ntkpipe.configs.loading import load_config, load_kernel, preset_names
from ntkpipe.configs.resources import ResourcesConfig
from ntkpipe.configs.run import RunConfig


def refused(match, **changes):
    with pytest.raises(ConfigError, match=match):
        load_config(golden.config(**changes))


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_valid(name):
    assert load_config(name).name == name


def test_unknown_keys_are_refused_at_every_depth_with_the_nearest_name():
    refused("unknown key 'kernls'; did you mean 'kernels'", kernls=[])
    refused("store: unknown key 'shard_row'; did you mean 'shard_rows'", store={"shard_row": 1})
    refused("unknown key 'projecton'; did you mean 'projection'", kernels=[{"kind": "trntk", "projecton": {}}])
    refused("unknown key 'rigde'; did you mean 'ridge'", solve=[{"kind": "cholesky", "name": "a", "rigde": 1}])


def test_only_the_inner_error_of_a_list_is_reported():
    with pytest.raises(ConfigError) as caught:
        load_config(golden.config(kernels=[{"kind": "tntk"}]))
    assert caught.value.message.count("\n") == 1
    assert "unknown kernel 'tntk'; did you mean 'trntk'?" in caught.value.message


def test_names_must_be_unique_and_known():
    refused("the name 'trntk' is used more than once", kernels=[{"kind": "trntk"}, {"kind": "trntk"}], solve=[])
    refused("unknown kernel 'trntk00'", solve=[{"kind": "cholesky", "name": "a", "kernel": "trntk00"}])
    refused("unknown split 'val'", analyses=[{"kind": "fidelity", "split": "val"}])
    refused("unknown solution", analyses=[{"kind": "fidelity", "solutions": ["kr"]}])


def test_an_analysis_of_classes_needs_a_solution_with_classes():
    values = {"kind": "cholesky", "name": "a", "kernel": "trntk", "targets": "values"}
    refused("needs a solution with one-hot targets", analyses=[{"kind": "fidelity"}], solve=[values])
    refused("solution 'a' has real targets", analyses=[{"kind": "fidelity", "solutions": ["a"]}], solve=[values])


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a b", "-x", "a--b"])
def test_names_that_are_not_safe_in_a_path_are_refused(name):
    refused("name", name=name)


def test_the_training_split_does_not_depend_on_the_order_of_keys():
    splits = golden.config()["data"]["splits"]
    for order in (["train", "test"], ["test", "train"]):
        config = load_config(golden.config(data={"splits": {name: splits[name] for name in order}}))
        assert config.data.train_split == "train"
        assert config.data.resolved_pairs == (("train", "train"), ("test", "train"))


def test_an_unnamed_training_split_among_several_is_refused():
    split = golden.config()["data"]["splits"]["train"]
    refused("say which split is the training set", data={"splits": {"a": split, "b": split}})
    config = load_config(golden.config(data={"splits": {"a": split, "b": split}, "train": "b"}))
    assert config.data.resolved_pairs == (("b", "b"), ("a", "b"))


def test_pairs_must_name_splits_and_include_what_is_solved():
    splits = golden.config()["data"]["splits"]
    refused("names split 'val'", data={"splits": splits, "pairs": [["val", "train"]]})
    refused("needs the pair .train, train.", data={"splits": splits, "pairs": [["test", "train"]]})


def test_overrides_reach_sections_and_list_items():
    config = load_config(
        golden.config(solve=[]), ["store.block_rows=7", "kernels.1.kind=trntk0", "kernels.1.name=other"]
    )
    assert config.store.block_rows == 7
    assert config.kernels[1].label == "other"


@pytest.mark.parametrize(
    ("override", "match"),
    [("store.block_rows", "key=value"), ("kernels.9.kind=ck", "not a position"), ("name.x=1", "not a section")],
)
def test_bad_overrides_are_refused(override, match):
    with pytest.raises(ConfigError, match=match):
        load_config(golden.config(), [override])


def test_yaml_tags_are_not_executed(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("name: !!python/object/apply:os.system ['touch hacked']")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(path)


def test_the_digest_covers_what_determines_the_numbers_and_nothing_else():
    base = load_config(golden.config())
    same = load_config(
        golden.config(), ["name=other", "resources.workers=9", "resources.executor=ray", "store.lease_seconds=5"]
    )
    assert same.digest() == base.digest()
    for override in ("store.block_rows=9", "projection.seed=1", "model.dtype=float64", "solve.0.ridge=2"):
        assert load_config(golden.config(), [override]).digest() != base.digest()


def test_where_files_are_is_not_part_of_the_identity(tmp_path, monkeypatch):
    def config(folder):
        data = {"splits": {"train": {"kind": "arrays", "inputs": f"{folder}x.npz"}}}
        model = {"target": "golden:build_model", "weights": f"{folder}w.safetensors"}
        return load_config(golden.config(data=data, model=model))

    monkeypatch.chdir(tmp_path)
    assert config("").model.weights == str(tmp_path / "w.safetensors")
    assert config("s3://bucket/").data.splits["train"].inputs == "s3://bucket/x.npz"
    assert config("").digest() == config("s3://bucket/").digest()


def test_a_configuration_survives_its_document():
    config = load_config(golden.config())
    assert RunConfig.model_validate(yaml.safe_load(yaml.safe_dump(config.document()))) == config


def test_canonical_json_does_not_depend_on_key_order():
    assert canonical_json({"b": 1, "a": [1.5, None]}) == '{"a":[1.5,null],"b":1}'
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


def test_differences_name_every_leaf():
    stored, asked = {"a": {"b": [1, 2]}, "c": 1}, {"a": {"b": [1, 3]}, "d": 2}
    assert list(differences(stored, asked)) == [("a.b[1]", 2, 3), ("c", 1, None), ("d", None, 2)]


MINIMAL = {
    "gaussian": {"bandwidth": 2.0},
    "laplace": {"bandwidth": 2.0},
    "matern": {"bandwidth": 2.0, "nu": 2.5},
    "dispersal": {"bandwidth": 2.0, "exponent": 0.5},
    "kerple": {"variant": "power"},
    "fourier_features": {"of": "laplace"},
    "spectral_mixture_features": {"weights": [1.0], "means": [[0.0]], "scales": [[1.0]]},
    "zonal": {"eigenvalues": [1.0, 0.5]},
    "gntk_node": {"graph": "graph.npz"},
    "graph_walk_features": {"graph": "graph.npz"},
    "deep_kernel_machine": {"inducing": "x.npy", "labels": "y.npy"},
    "sum": {"terms": [{"of": "a"}]},
    "product": {"of": ["a", "b"]},
    "power": {"of": "a", "exponent": 2},
    "posterior": {"of": "a", "noise": 1.0},
}


@pytest.mark.parametrize("kind", [*names.CLOSED_FORMS, *names.RANDOM_FEATURES, *names.DERIVED, "trntk", "class:3"])
def test_a_kernel_section_survives_being_stored(kind):
    options = MINIMAL.get(kind, {"of": "a"} if kind in names.DERIVED else {})
    section = load_kernel(kind, options)
    assert load_kernel(kind, section.model_dump(mode="json", exclude={"kind"})) == section


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("resources.gpus_per_worker=1.5", "neither a part of a GPU nor a whole number"),
        ("resources.cpus_per_worker=0.00001", "too small a part"),
        ("resources.pools=[{gpus: 2.5}]", "neither a part of a GPU"),
        ("resources.pools=[{custom: {spot: -1}}]", "greater than or equal to 0"),
        ("resources.pools=[{custom: {GPU: 1}}]", "use cpus and gpus"),
    ],
)
def test_amounts_that_ray_would_not_take_are_refused_before_it_is_started(override, expected):
    with pytest.raises(ConfigError, match=expected):
        load_config(golden.config(), ["resources.executor=ray", override])


def test_the_workers_that_are_wanted_are_said_in_words():
    assert ResourcesConfig().wanted == "1 on cpu, in this process"
    assert ResourcesConfig(executor="ray", device="cuda").wanted == "2 on cuda, each with 1 CPU and 1 GPU"
    pools = ({"workers": 8, "device": "cuda", "gpus": 0.5, "accelerator": "T4"}, {"cpus": 0, "custom": {"spot": 1}})
    assert ResourcesConfig(executor="ray", pools=pools).wanted == (
        "8 on cuda (T4), each with 1 CPU and 0.5 GPU; 1 on cpu, each with 1 spot"
    )
