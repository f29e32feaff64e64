"""What nobody may do: run code from data, leave a run's folder, or write to the terminal of whoever looks at a run."""

import ast
import io
import os
import re
import subprocess
import sys
import zipfile

import golden
import numpy as np
import pytest
import torch
from commands import TESTS

import ntkpipe
from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.loading import load_config
from ntkpipe.configs.yaml_text import MAX_VALUES, parse_yaml
from ntkpipe.pipeline.cli.terminal import printable
from ntkpipe.storage.assets import memory_bytes, read_asset

ROOT = TESTS.parent
LAYERS = ("configs", "storage", "workers", "pipeline")

FORBIDDEN_MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "jsonpickle"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}

RESTRICTED_PICKLE = "workers/examples/mnist.py"
"""The one place that reads a pickle: a file of known SHA-256, by an unpickler that refuses all but plain arrays."""

DYNAMIC_IMPORTS = {
    "workers/sources/imports.py": "code that a configuration names, which its user trusts",
    "pipeline/api/__init__.py": "modules of a table in the same file",
}


def parsed():
    return [
        (path.relative_to(ROOT).as_posix(), ast.parse(path.read_text("utf-8")))
        for layer in LAYERS
        for path in sorted((ROOT / layer).rglob("*.py"))
    ]


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(tree):
    """Yield (name as it is written, node) of every call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def argument(call, name):
    return next((ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == name), None)


def findings(name, tree):
    """Yield what a module does that no module may do."""
    for module in imported(tree):
        if set(module.split(".")) & FORBIDDEN_MODULES and name != RESTRICTED_PICKLE:
            yield f"imports {module}"
    for called, node in calls(tree):
        last = called.rpartition(".")[2]
        if called in FORBIDDEN_CALLS or called == "builtins.eval":
            yield f"calls {called}"
        if last == "import_module" and name not in DYNAMIC_IMPORTS:
            first = node.args[0] if node.args else None
            if first is None or not re.match(r"f?'ntkpipe\.|f'\{__package__\}\.", ast.unparse(first)):
                yield "imports a module that may be anybody's"
        if called.startswith("yaml.") and last not in {"safe_load", "safe_dump", "YAMLError"}:
            yield f"calls {called}"
        if re.fullmatch(r"(np|numpy)\.(load|save)", called) and argument(node, "allow_pickle") != "False":
            yield f"calls {called} without allow_pickle=False"
        if called in {"torch.load", "torch.serialization.load"} and argument(node, "weights_only") != "True":
            yield "calls torch.load without weights_only=True"
        if called in {"torch.save", "torch.jit.load", "torch.package.PackageImporter", "torch.hub.load"}:
            yield f"calls {called}"
        if argument(node, "shell") not in (None, "False") or called in {
            "os.system",
            "os.popen",
            "subprocess.getoutput",
        }:
            yield f"starts a shell: {called}"
        if called in {"tempfile.mktemp", "mktemp", "os.tempnam"}:
            yield f"calls {called}"
        if called.rpartition(".")[2] in {"to_pickle", "read_pickle"}:
            yield f"calls {called}"


def test_no_module_runs_code_from_data():
    found = [f"{name} {finding}" for name, tree in parsed() for finding in findings(name, tree)]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from ray import cloudpickle",
        "import ray.cloudpickle as p",
        "eval('1')",
        "exec(text)",
        "compile(text, '', 'exec')",
        "yaml.load(text)",
        "yaml.unsafe_load(text)",
        "np.load(file)",
        "np.load(file, allow_pickle=True)",
        "np.load(file, allow_pickle=flag)",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "tempfile.mktemp()",
        "importlib.import_module(name)",
    ],
)
def test_the_search_for_code_from_data_finds_it(text):
    assert list(findings("some.py", ast.parse(text)))


@pytest.mark.slow
def test_assertions_guard_nothing_that_comes_from_outside():
    """With ``python -O`` nothing else changes: hostile names and files are refused by errors."""
    program = (
        "from ntkpipe.configs.loading import load_config\n"
        "from ntkpipe.configs.errors import NtkPipeError\n"
        "from ntkpipe.storage.stores.registry import open_store\n"
        "import golden\n"
        "refused = 0\n"
        "for change in ({'name': '../x'}, {'kernels': [{'kind': 'ck', 'name': '../x'}]}):\n"
        "    try: load_config(golden.config(**change))\n"
        "    except NtkPipeError: refused += 1\n"
        "try: open_store('s3://')\n"
        "except NtkPipeError: refused += 1\n"
        "print(refused, __debug__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-O", "-c", program], cwd=TESTS, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout == "3 False\n", done.stderr


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


@pytest.fixture
def bomb(tmp_path):
    target = tmp_path / "exploded"
    yield Bomb(target)
    assert not target.exists()


def refused(match, **changes):
    with pytest.raises(ConfigError, match=match) as caught:
        ntkpipe.plan(golden.config(**changes))
    return caught.value.message


@pytest.mark.parametrize("form", ["state", "whole", "pickle", "renamed"])
def test_weights_that_would_run_code_are_refused(bomb, tmp_path, form):
    path = tmp_path / ("weights.safetensors" if form == "renamed" else "weights.pt")
    if form == "pickle":
        import pickle

        path.write_bytes(pickle.dumps(bomb))
    else:
        torch.save(bomb if form == "whole" else {"fc1.weight": bomb}, path)
    model = {"target": "golden:build_model", "weights": str(path)}
    message = refused("never built" if form != "renamed" else "safetensors", model=model)
    assert "weights_only" not in message
    assert "False" not in message


@pytest.mark.parametrize("form", ["npy", "npz", "pickle", "labels", "raw member"])
def test_arrays_that_would_run_code_are_refused(bomb, tmp_path, form):
    path, objects = tmp_path / "x", np.array([bomb], dtype=object)
    section = {"kind": "arrays", "inputs": str(path)}
    with path.open("wb") as file:
        if form in ("npy", "labels"):
            np.save(file, objects, allow_pickle=True)
        elif form == "npz":
            np.savez(file, inputs=objects)
        elif form == "raw member":
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("inputs", b"no array")
        else:
            import pickle

            pickle.dump(bomb, file)
    if form == "labels":
        np.save(tmp_path / "inputs.npy", np.ones((1, 2)))
        section = {"kind": "arrays", "inputs": str(tmp_path / "inputs.npy"), "labels": str(path)}
    refused("plain numbers|no array", data={"splits": {"train": section}})


def declare_size(path, size):
    """Write an archive whose directory says that its only file unpacks to ``size`` bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, allowZip64=True) as archive:
        archive.writestr("inputs.npy", bytes(1000))
        archive.filelist[0].file_size = size


@pytest.mark.parametrize("use", ["data", "weights", "kernel"])
def test_archives_that_unpack_to_more_than_the_memory_are_refused(tmp_path, use):
    path = tmp_path / ("weights.pt" if use == "weights" else "x.npz")
    declare_size(path, 2**46)
    assert path.stat().st_size < 1000
    assert 2**28 < memory_bytes() < 2**46
    if use == "data":
        refused("would unpack to", data={"splits": {"train": {"kind": "arrays", "inputs": str(path)}}})
    elif use == "weights":
        refused("would unpack to", model={"target": "golden:build_model", "weights": str(path)})
    else:
        from ntkpipe.workers.kernels.closed_form.files import read_arrays

        with pytest.raises(ConfigError, match="would unpack to"):
            read_arrays(str(path), "inputs")


def damaged_arrays(tmp_path):
    good = io.BytesIO()
    np.savez_compressed(good, inputs=np.arange(3000.0).reshape(-1, 2))
    data = good.getvalue()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**15,)})
    return {
        "claims a petabyte": header.getvalue(),
        "flipped": data[:400] + bytes([data[400] ^ 255]) + data[401:],
        "truncated": data[:-40],
        "empty": b"",
        "header is code": b"\x93NUMPY\x01\x00\x20\x00" + b"__import__('os').mkdir('x')     ",
        "nested header": b"\x93NUMPY\x01\x00\xff\xff" + b"[" * 65535,
    }


@pytest.mark.parametrize("kind", damaged_arrays(None))
def test_damaged_and_boastful_arrays_are_refused(tmp_path, kind):
    path = tmp_path / "x.npz"
    path.write_bytes(damaged_arrays(tmp_path)[kind])
    refused("plain numbers", data={"splits": {"train": {"kind": "arrays", "inputs": str(path)}}})


@pytest.mark.parametrize(
    "url", ["package://os//etc/passwd", "package://ntkpipe.workers.examples/../x", "package:///x", "package://os/./x"]
)
def test_files_of_packages_are_inside_of_them(url):
    with pytest.raises(ConfigError, match="package://package"):
        read_asset(url)


YAML_BOMBS = {
    "python object": "a: !!python/object/apply:os.mkdir [exploded]",
    "python name": "a: !!python/name:os.system",
    "python module": "a: !!python/module:os",
    "own tag": "a: !thing {}",
    "laughs": "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)),
    "deep laughs": "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 300)),
    "laughs of keys": "a0: &a0 {x: 1, y: 2}\n"
    + "".join(f"a{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}}}\n" for i in range(1, 60)),
    "itself": "a: &a [*a]",
    "deep": "[" * 5000 + "]" * 5000,
    "number": f"a: {'9' * 5000}",
    "date": "a: 2024-13-45",
    "bool": "a: !!bool maybe",
    "float": "a: !!float ''",
    "int": "a: !!int ''",
    "binary": "a: !!binary 'x'",
    "control": "a: \x1b[2J",
}


@pytest.mark.parametrize("kind", YAML_BOMBS)
def test_yaml_that_is_no_plain_and_bounded_data_is_refused(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "job.yaml"
    path.write_text(YAML_BOMBS[kind])
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert "job.yaml" in caught.value.message
    assert "valid configuration" not in caught.value.message
    assert len(caught.value.message) < 2000
    assert not (tmp_path / "exploded").exists()


def test_files_that_are_too_large_or_no_text_are_refused(tmp_path):
    path = tmp_path / "job.yaml"
    with path.open("wb") as file:
        file.truncate(2**34)
    with pytest.raises(ConfigError, match="bytes; a configuration has at most"):
        load_config(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_config(path)
    with pytest.raises(ConfigError, match="characters long"):
        load_config(golden.config(), [f"model.options.x={'y' * 2**25}"])


def test_ordinary_aliases_and_sizes_are_accepted():
    assert parse_yaml("a: &a [1, 2]\nb: [*a, *a]", "text") == {"a": [1, 2], "b": [[1, 2], [1, 2]]}
    assert len(parse_yaml(f"[{'1,' * 10_000}]", "text")) == 10_000
    assert MAX_VALUES >= 100_000


PATHS = ["../x", "a/b", "/etc/passwd", "..", ".", "a\x00b", "a\nb", "a b", "~", "C:\\x", "x/../../y", "", "a\u2028"]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("place", ["run", "kernel", "solution", "split", "member", "analysis"])
def test_names_that_would_become_paths_are_refused(name, place):
    split = {"kind": "python", "target": "golden:load"}
    changes = {
        "run": {"name": name},
        "kernel": {"kernels": [{"kind": "ck", "name": name}], "solve": []},
        "solution": {"solve": [{"kind": "cholesky", "name": name, "kernel": "ck"}]},
        "split": {"data": {"splits": {"train": split, name: split}}},
        "member": {"model": {"target": "golden:build_model", "members": {name: {}}}},
        "analysis": {"analyses": [{"kind": "heatmap", "name": name, "kernel": "ck"}]},
    }
    if (name, place) == ("", "kernel"):
        return  # then it has the name of its kind
    with pytest.raises(ConfigError):
        load_config(golden.config(**changes[place]))


@pytest.mark.parametrize("location", ["", "a\x00b", "a\nb", "s3://b/\x1b[2J", "\x7f"])
def test_locations_are_printable(location):
    with pytest.raises(ConfigError, match="control characters"):
        load_config(golden.config(data={"splits": {"train": {"kind": "arrays", "inputs": location}}}))


@pytest.mark.parametrize("name", ["zarr.json", "krr.json", "Zarr.JSON"])
def test_names_that_files_of_a_run_have_are_refused(name):
    """A group of zarr named like its metadata, or a solution like another one's record, would take their place."""
    for changes in (
        {"kernels": [{"kind": "ck", "name": name}], "solve": []},
        {"solve": [{"kind": "cholesky", "name": name, "kernel": "ck"}]},
        {"analyses": [{"kind": "heatmap", "name": name, "kernel": "ck"}]},
    ):
        with pytest.raises(ConfigError, match="ends like a file"):
            load_config(golden.config(**changes))


@pytest.mark.parametrize("target", ["os.system", "../x:y", "a/b:c", "a:b.c", "a:b()", ":x", "a:", "a b:c"])
def test_import_paths_name_a_module_and_a_callable_only(target):
    with pytest.raises(ConfigError):
        load_config(golden.config(model={"target": target}))


HOSTILE = "\x1b]0;owned\x07\x1b[2J[red]x[/blue]\u202egnp.exe\r\b"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain [red] text", "plain [red] text"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\rb\bc\x00\x7f\x9b", r"a\rb\x08c\x00\x7f\x9b"),
        ("\u202egnp", r"\u202egnp"),
        ("a\u2028b\u200bc", r"a\u2028b\u200bc"),
        ("two\nlines\tand Größe 数 \U0001f600\u00a0x", "two\nlines\tand Größe 数 \U0001f600\u00a0x"),
    ],
)
def test_control_characters_are_shown_and_not_obeyed(text, shown):
    assert printable(text) == shown
