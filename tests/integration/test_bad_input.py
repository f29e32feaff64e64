"""What users get wrong, as they meet it: one message, an exit code, no traceback, nothing lost."""

import shutil

import golden
import numpy as np
import pytest
import yaml
from commands import TESTS, ntkpipe_command

import ntkpipe
from ntkpipe.configs.errors import NtkPipeError
from ntkpipe.configs.resources import ResourcesConfig
from ntkpipe.pipeline.executors.registry import make_executor


def refused(code, *words, config=None, arguments=(), tmp_path):
    """Check that a run is refused with a message that holds the words."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config or golden.config()))
    found = ntkpipe_command("run", path, "--out", tmp_path / "run", *arguments)
    assert found.returncode == code, found.stderr
    assert "Traceback" not in found.stderr
    for word in words:
        assert word in found.stderr
    return found


def test_an_unknown_key_is_answered_with_the_nearest_one(tmp_path):
    refused(2, "unknown key 'kernls'; did you mean 'kernels'?", config=golden.config(kernls=[]), tmp_path=tmp_path)


def test_a_wrong_type_is_answered_with_what_was_found_and_expected(tmp_path):
    refused(2, "store.block_rows", "integer", "'many'", arguments=["--set", "store.block_rows=many"], tmp_path=tmp_path)


def test_a_missing_config_file_is_named():
    found = ntkpipe_command("run", "missing.yaml")
    assert found.returncode == 2
    assert "missing.yaml does not exist" in found.stderr
    found = ntkpipe_command("run", "digit")
    assert found.returncode == 2
    assert "did you mean 'digits'" in found.stderr


@pytest.mark.parametrize("command", ["run", "plan", "simulate"])
def test_a_mistake_is_told_without_waiting_for_pytorch(command):
    without = "import sys\nsys.modules['torch'] = None\n"
    found = ntkpipe_command(command, "digits", "--set", "kernls=[]", before=without)
    assert found.returncode == 2, found.stderr
    assert "did you mean 'kernels'" in found.stderr


def test_a_file_that_is_not_yaml_is_named(tmp_path):
    (tmp_path / "bad.yaml").write_text("name: [")
    found = ntkpipe_command("run", tmp_path / "bad.yaml")
    assert (found.returncode, "Traceback" in found.stderr) == (2, False)
    assert "is not valid YAML" in found.stderr


def test_a_missing_weights_file_is_named(tmp_path):
    model = {"target": "golden:build_model", "weights": "missing.safetensors"}
    refused(2, "missing.safetensors does not exist", config=golden.config(model=model), tmp_path=tmp_path)


def test_a_pickle_is_not_unpickled(tmp_path):
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    model = {"target": "golden:build_model", "weights": str(weights)}
    refused(2, "not a safetensors file or a plain state dict", config=golden.config(model=model), tmp_path=tmp_path)
    assert not (TESTS / "hacked").exists()


def test_a_bad_url_scheme_is_answered_with_the_known_ones():
    found = ntkpipe_command("run", "digits", "--out", "s4://bucket/run")
    assert found.returncode == 2
    assert "unknown URL scheme 's4'" in found.stderr
    assert "did you mean 's3'" in found.stderr


def test_a_shape_mismatch_names_the_split_and_the_shape(tmp_path):
    np.savez(tmp_path / "data.npz", inputs=np.ones((5, 3)))
    data = {"splits": {"train": {"kind": "arrays", "inputs": str(tmp_path / "data.npz")}}}
    config = golden.config(data=data, solve=[])
    refused(2, "cannot process samples of shape (3,)", "'train'", config=config, tmp_path=tmp_path)


def test_a_nan_input_names_its_sample(tmp_path):
    config = golden.config()
    config["data"]["splits"]["train"] = {"kind": "python", "target": "golden:load", "options": {"nan_at": 2}}
    refused(2, "sample 'x2' (position 2 of split 'train')", "NaN", config=config, tmp_path=tmp_path)


def test_repeated_ids_are_named(tmp_path):
    config = golden.config()
    options = {"ids": ["a", "b", "a", "c"]}
    config["data"]["splits"]["train"] = {"kind": "python", "target": "golden:load", "options": options}
    refused(2, "the id 'a' is used 2 times", config=config, tmp_path=tmp_path)


def test_a_kernel_larger_than_the_disk_is_refused_before_anything_is_written(tmp_path):
    np.save(tmp_path / "inputs.npy", np.zeros((3_000_000, 2), np.float32))
    data = {"splits": {"train": {"kind": "arrays", "inputs": str(tmp_path / "inputs.npy")}}}
    config = golden.config(data=data, solve=[], kernels=[{"kind": "trntk"}], store={"block_rows": 4096})
    refused(2, "of storage and", " are free", config=config, tmp_path=tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(golden.config()))
    found = ntkpipe_command("run", path, "--out", tmp_path / "file" / "run")
    assert found.returncode in (1, 2)
    assert "Traceback" not in found.stderr
    assert "not a folder" in found.stderr


def test_a_wrong_sample_id_is_answered_with_the_range_of_ids(tmp_path):
    ntkpipe.run(golden.config(), tmp_path / "run")
    found = ntkpipe_command("query", tmp_path / "run", "kernel/trntk0", "--rows", "id:x7")
    assert found.returncode == 2
    assert "no sample 'x7'" in found.stderr
    found = ntkpipe_command("query", tmp_path / "run", "kernl/trntk0")
    assert found.returncode == 2
    assert "nothing that can be asked for" in found.stderr


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("nowhere:build_model", "module 'nowhere' cannot be imported"),
        ("golden:build_nothing", r"golden:build_nothing raised ZeroDivisionError: .* \(.*golden.py, line \d+\)"),
        ("golden:missing", "has no callable 'missing'"),
        ("golden:load", "returned a Samples; expected a torch.nn.Module"),
    ],
)
def test_a_wrong_model_source_is_named(model, words):
    with pytest.raises(NtkPipeError, match=words) as caught:
        ntkpipe.plan(golden.config(model={"target": model}))
    assert caught.value.exit_code == 2


def test_a_solution_without_labels_is_refused(tmp_path):
    np.save(tmp_path / "inputs.npy", np.ones((5, 2), np.float32))
    data = {"splits": {"train": {"kind": "arrays", "inputs": str(tmp_path / "inputs.npy")}}}
    with pytest.raises(NtkPipeError, match="split 'train' has no labels"):
        ntkpipe.plan(golden.config(data=data))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("pair", "expected ntkpipe.Samples.* found tuple"),
        ("dict", "found dict"),
        ("text labels", "labels must be numbers"),
        ("text ids", "ids must be a sequence of names"),
        ("list of texts", "collated to list|cannot be put into one batch|must be numbers"),
        ("ragged", "cannot be put into one batch"),
    ],
)
def test_what_a_data_callable_must_not_return_is_named(what, words):
    config = golden.config()
    options = {"what": what}
    config["data"]["splits"]["train"] = {"kind": "python", "target": "golden:load_anything", "options": options}
    with pytest.raises(NtkPipeError, match=words) as caught:
        ntkpipe.plan(config)
    assert caught.value.exit_code == 2


def test_a_sample_that_cannot_be_read_is_named_with_the_place():
    config = golden.config()
    options = {"broken_at": 2}
    config["data"]["splits"]["train"] = {"kind": "python", "target": "golden:Items", "options": options}
    with pytest.raises(
        NtkPipeError, match=r"sample 2 cannot be read: OSError: img_2.png is missing \(.*golden.py, line"
    ):
        ntkpipe.plan(config)


def test_splits_of_different_shapes_are_refused(tmp_path):
    np.save(tmp_path / "inputs.npy", np.ones((5, 3), np.float32))
    config = golden.config()
    config["data"]["splits"]["test"] = {"kind": "arrays", "inputs": str(tmp_path / "inputs.npy")}
    with pytest.raises(
        NtkPipeError, match=r"split 'test' has samples of shape \(3,\).* but split 'train' of shape \(2,\)"
    ):
        ntkpipe.plan(config)


def test_a_device_that_is_not_there_is_named(tmp_path):
    for device in ("cuda", "nowhere"):
        refused(
            2,
            f"resources.device = '{device}' cannot be used here",
            arguments=["--set", f"resources.device={device}"],
            tmp_path=tmp_path,
        )
        (tmp_path / "config.yaml").unlink()
        shutil.rmtree(tmp_path / "run", ignore_errors=True)


@pytest.mark.parametrize("device", ["cuda", "nowhere"])
def test_a_device_that_no_ray_worker_could_have_is_refused_instead_of_waited_for(device):
    for settings in ({"device": device}, {"pools": ({"device": "cpu"}, {"device": device})}):
        with pytest.raises(NtkPipeError, match=f"resources.device = '{device}' cannot be used here"):
            make_executor(ResourcesConfig(executor="ray", **settings), spec=None)


def test_analyses_that_could_only_fail_are_refused_before_anything_is_computed():
    with pytest.raises(NtkPipeError, match="shows images"):
        ntkpipe.plan(golden.config(analyses=[{"kind": "neighbors", "kernel": "ck"}]))


def test_what_a_run_without_its_manifest_has_left_is_not_taken_for_anothers(tmp_path):
    ntkpipe.run(golden.config(), tmp_path / "run")
    (tmp_path / "run/run.json").rename(tmp_path / "run.json")
    model = {"target": "golden:build_member", "options": {"shift": 0.5}}
    refused(2, "(receipts), but not its run.json", config=golden.config(model=model), tmp_path=tmp_path)
    (tmp_path / "run.json").rename(tmp_path / "run/run.json")
    assert ntkpipe.open_run(tmp_path / "run").status().state == "finished"


def test_an_empty_place_is_refused():
    with pytest.raises(NtkPipeError, match="is empty"):
        ntkpipe.run(golden.config(), "")
