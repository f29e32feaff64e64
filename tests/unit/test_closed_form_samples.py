"""What all kernels without a model make of samples: their shapes, types and devices, whatever the formula."""

import io

import numpy as np
import pytest
import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.kernels.names import CLOSED_FORMS, RANDOM_FEATURES
from ntkpipe.configs.loading import load_kernel
from ntkpipe.workers.kernels.closed_form.files import read_array, read_arrays
from ntkpipe.workers.kernels.closed_form.registry import make_closed_form
from ntkpipe.workers.kernels.closed_form.samples import as_doubles, as_vectors, node_indices
from ntkpipe.workers.kernels.closed_form.tiling import mirrored, tiles
from ntkpipe.workers.kernels.random_features.base import signed_gram
from ntkpipe.workers.kernels.random_features.registry import make_random_features

VECTORS = {
    "gaussian": {},
    "laplace": {"norm": "l1"},
    "matern": {"nu": 2.5},
    "dispersal": {},
    "polynomial": {},
    "cosine": {},
    "arc_cosine": {"order": 2},
    "zonal": {"eigenvalues": (0.5, 0.25)},
    "kerple": {},
    "ntk": {"depth": 2, "activation": "gelu"},
    "nngp_limit": {"activation": "tanh", "normalise": True},
    "deep_kernel_machine": {"inducing": "inducing.npy", "labels": "labels.npy"},
    "fourier_features": {"dim": 8},
    "positive_features": {"dim": 8, "coupling": "simplex_plus"},
    "spectral_mixture_features": {"dim": 8, "weights": (1,), "means": ((0,) * 12,), "scales": ((1,) * 12,)},
    "universal_features": {"dim": 8, "function": "erf"},
    "multilayer_features": {"dim": 8, "depth": 2},
}
STRUCTURED = {
    "cntk": {"depth": 2},
    "gntk": {},
    "gntk_node": {"graph": "graph.npz"},
    "signature": {},
    "neural_signature": {},
    "graph_walk_features": {"graph": "graph.npz"},
}
VARIANTS = {
    "fourier_features fastfood": {"dim": 8, "frequencies": "fastfood", "of": "matern", "nu": 1.2},
    "fourier_features l1": {"dim": 8, "of": "laplace", "norm": "l1"},
    "fourier_features orthogonal": {"dim": 8, "coupling": "orthogonal"},
    "spectral_mixture_features fastfood": VECTORS["spectral_mixture_features"] | {"frequencies": "fastfood"},
    "cntk gap": {"head": "gap"},
    "signature rbf": {"static": "rbf"},
    "signature scheme": {"dyadic_order": 1},
    "neural_signature erf": {"activation": "erf", "static": "rbf"},
    "neural_signature gelu": {"activation": "gelu"},
    "ntk relu": {"bias_variance": 0.1, "parameterisation": "standard", "width": 7},
    "ntk erf": {"activation": "erf"},
    "ntk sine": {"activation": "sine"},
    "laplace l2": {},
}
ALL = VECTORS | STRUCTURED | VARIANTS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the files that sections of this test name."""
    path, generator = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    edges = np.triu(generator.random((5, 5)) < 0.6).astype(float)
    np.savez(path / "graph.npz", adjacency=edges + edges.T, features=generator.normal(size=(5, 2)))
    np.save(path / "inducing.npy", generator.normal(size=(6, 12)))
    np.save(path / "labels.npy", np.arange(6) % 2)
    return path


@pytest.fixture(autouse=True)
def work_in(folder, monkeypatch):
    monkeypatch.chdir(folder)


def block_of(name, x, x2=None):
    """The kernel of a case, or the inner products of its features."""
    kind = name.split()[0]
    section = load_kernel(kind, ALL[name])
    if kind in CLOSED_FORMS:
        return make_closed_form(section).block(x, x2)
    mapped = make_random_features(section)
    return signed_gram(mapped.features(x), mapped.features(x if x2 is None else x2), mapped.num_negative)


def samples_of(name):
    """Four samples that are small whole numbers, of the shape that a case takes."""
    generator = torch.Generator().manual_seed(1)

    def numbers(*shape, high=4):
        return torch.randint(0, high, shape, generator=generator)

    match name.split()[0]:
        case "cntk":
            return numbers(4, 2, 3, 3)
        case "gntk":
            return torch.cat([torch.ones(4, 3, 3, dtype=torch.int64), numbers(4, 3, 2)], dim=2)
        case "gntk_node" | "graph_walk_features":
            return torch.tensor([3, 0, 1, 3])
        case "signature" | "neural_signature":
            return numbers(4, 4, 2, high=2)
        case "universal_features":
            return numbers(4, 12, high=2)
    return 1 + numbers(4, 12)


def test_every_kind_has_a_case_here():
    assert {*VECTORS, *STRUCTURED} == {*CLOSED_FORMS, *RANDOM_FEATURES}


@pytest.mark.parametrize("name", [name for name in VECTORS if name != "deep_kernel_machine"])
def test_images_and_sequences_are_taken_as_vectors_by_all_kernels_of_vectors(name):
    x = samples_of(name).double()
    expected = block_of(name, x)
    assert torch.equal(block_of(name, x.reshape(4, 1, 3, 4)), expected)
    assert torch.equal(block_of(name, x.reshape(4, 4, 3), x.reshape(4, 2, 6)), block_of(name, x, x))


def test_images_are_taken_as_vectors_by_machines_with_inducing_images(tmp_path, monkeypatch):
    x = samples_of("gaussian").double()
    expected = block_of("deep_kernel_machine", x)
    np.save(tmp_path / "inducing.npy", np.load("inducing.npy").reshape(6, 1, 3, 4))
    np.save(tmp_path / "labels.npy", np.load("labels.npy"))
    monkeypatch.chdir(tmp_path)
    assert torch.equal(block_of("deep_kernel_machine", x.reshape(4, 1, 3, 4)), expected)


@pytest.mark.parametrize("name", [name for name in VECTORS if name not in ("zonal", "deep_kernel_machine")])
def test_numbers_are_vectors_of_one_coordinate(name):
    x = torch.tensor([0.5, -0.25, 1.0], dtype=torch.float64)
    if name == "spectral_mixture_features":
        with pytest.raises(ConfigError, match="1 coordinates, but means and scales have 12"):
            block_of(name, x)
    else:
        assert torch.equal(block_of(name, x), block_of(name, x.unsqueeze(1)))


@pytest.mark.parametrize("name", ALL)
def test_samples_of_any_type_give_what_their_numbers_give_in_double_precision(name):
    x = samples_of(name)
    expected = block_of(name, x.double())
    for dtype in (torch.uint8, torch.int64, torch.float32):
        found = block_of(name, x.to(dtype))
        assert found.dtype == torch.float64
        assert torch.equal(found, expected)
    crossed = block_of(name, x[:2].to(torch.uint8), x[2:].double())
    assert crossed.dtype == torch.float64
    torch.testing.assert_close(crossed, expected[:2, 2:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in ALL if name.split()[0] in CLOSED_FORMS])
def test_the_diagonal_of_integers_is_that_of_doubles(name):
    kernel, x = make_closed_form(load_kernel(name.split()[0], ALL[name])), samples_of(name)
    found = kernel.diagonal(x.to(torch.uint8))
    assert found.dtype == torch.float64
    assert torch.equal(found, kernel.diagonal(x.double()))


def test_bright_pixels_of_eight_bits_do_not_overflow():
    x = torch.full((2, 1, 4, 4), 255, dtype=torch.uint8)
    assert float(block_of("cntk", x)[0, 1]) == pytest.approx(float(block_of("cntk", x / 255)[0, 1]) * 255**2)


@pytest.mark.parametrize("name", ALL)
def test_a_single_sample_is_a_matrix_of_one_entry(name):
    x = samples_of(name)
    whole = block_of(name, x)
    torch.testing.assert_close(block_of(name, x[2:3]), whole[2:3, 2:3], rtol=1e-12, atol=1e-12)
    assert block_of(name, x[2:3], x[1:2]).shape == (1, 1)


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_made_on_another_device_than_that_of_the_samples(name):
    # Whatever is made without naming a device is now of no use: tensors of two devices cannot be combined.
    x = samples_of(name).to("cpu")
    expected = block_of(name, x)
    with torch.device("meta"):
        found = block_of(name, x), block_of(name, x, x.clone())
    assert torch.equal(found[0], expected)
    torch.testing.assert_close(found[1], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in ALL if "node" not in name and "walk" not in name])
def test_samples_that_are_not_finite_or_complex_are_refused(name):
    x = samples_of(name).double()
    x[1].flatten()[-1] = float("nan")
    with pytest.raises(ConfigError, match="sample 1 has coordinates that are not finite"):
        block_of(name, x)
    with pytest.raises(ConfigError, match=r"real numbers, found torch\.complex128"):
        block_of(name, x.nan_to_num().to(torch.complex128))


@pytest.mark.parametrize("name", ALL)
def test_one_number_alone_is_refused(name):
    with pytest.raises(ConfigError):
        block_of(name, torch.tensor(1.0, dtype=torch.float64))


def test_doubles_and_vectors_are_not_copied_without_need():
    x = torch.zeros(3, 2, 2, dtype=torch.float64)
    assert as_doubles(x).data_ptr() == as_vectors(x).data_ptr() == x.data_ptr()


@pytest.mark.parametrize("value", [2.0**63, 1e300, -1e300, float("inf"), float("-inf")])
def test_floats_beyond_all_integers_are_no_nodes(value):
    with pytest.raises(ConfigError, match="the graph has nodes 0 to 6"):
        node_indices(torch.tensor([1.0, value], dtype=torch.float64), 7)


@pytest.mark.parametrize("rows", [1, 5, 12])
@pytest.mark.parametrize("columns", [None, 1, 7])
@pytest.mark.parametrize("num_pairs", [1, 4, 6, 1000])
def test_tiles_cover_every_pair_once_and_are_no_larger_than_asked_for(rows, columns, num_pairs):
    counts = torch.zeros(rows, columns or rows)
    for tile in tiles(rows, columns, num_pairs):
        counts[tile] += 1
        assert 0 < counts[tile].numel() <= num_pairs
    assert torch.equal(counts if columns else mirrored(counts), torch.ones(rows, columns or rows))


def test_arrays_in_files_are_numbers_or_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("numbers.npz", whole=np.arange(3), real=np.ones((2, 2), dtype=np.float32), text=np.array(["a"]))
    whole, real = read_arrays("numbers.npz", "whole", "real")
    assert (whole.dtype, real.dtype) == (torch.float64, torch.float64)
    assert whole.tolist() == [0, 1, 2]
    with pytest.raises(ConfigError, match=r"'text' in numbers\.npz has entries that are not finite numbers"):
        read_arrays("numbers.npz", "text")
    with pytest.raises(ConfigError, match=r"numbers\.npz is not an npz file with 'whole' and 'none'"):
        read_arrays("numbers.npz", "whole", "none")
    with pytest.raises(ConfigError, match="must hold one array of finite numbers"):
        read_array("numbers.npz")
    for content in (b"", b"no array", b"PK\x03\x04 no archive"):
        (tmp_path / "damaged").write_bytes(content)
        with pytest.raises(ConfigError, match="damaged is not an npy file"):
            read_array("damaged")
        with pytest.raises(ConfigError, match="damaged is not an npz file with 'a'"):
            read_arrays("damaged", "a")
    stream = io.BytesIO()
    np.save(stream, np.array([None]), allow_pickle=True)
    (tmp_path / "damaged").write_bytes(stream.getvalue())
    with pytest.raises(ConfigError, match="not an npy file"):
        read_array("damaged")
