"""What ships, what importing costs, and which layer may know which library."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("configs", "storage", "workers", "pipeline")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

HOMES = {
    "torch": ("workers/",),
    "safetensors": ("workers/sources/model.py", "workers/examples/"),
    "zarr": ("storage/",),
    "fsspec": ("storage/",),
    "obstore": ("storage/stores/obstore_store.py",),
    "google_crc32c": ("storage/",),
    "httpx": ("pipeline/client/connection.py",),
    "ray": ("pipeline/executors/", "pipeline/jobserver.py", "pipeline/server/rayserve.py"),
    "pydantic": (
        "configs/",
        "storage/documents.py",
        "storage/jobs.py",
        "storage/live.py",
        "storage/records.py",
        "storage/solutions.py",
        "workers/solvers/solve.py",
        "pipeline/server/",
    ),
    "pydantic_core": ("configs/base.py",),
    "yaml": ("configs/yaml_text.py",),
    "anyio": ("pipeline/server/app.py",),
    "fastapi": ("pipeline/server/",),
    "prometheus_client": ("pipeline/server/metrics.py",),
    "starlette": ("pipeline/server/",),
    "uvicorn": ("pipeline/server/connections.py", "pipeline/server/serving.py"),
    "typer": ("pipeline/cli/",),
    "rich": ("pipeline/cli/",),
    "matplotlib": ("workers/analyses/",),
    "PIL": ("pipeline/pictures/",),
    "scipy": ("pipeline/pictures/", "workers/analyses/"),
    "sklearn": ("workers/examples/digits.py", "workers/estimators/"),
    "dask": ("pipeline/query/",),
    "pandas": ("pipeline/query/",),
    "pyarrow": ("pipeline/query/",),
    "xarray": ("pipeline/query/",),
    "numpy": ("storage/", "workers/", "pipeline/"),
}
"""Every library outside the standard one, and where it may be imported."""


def modules():
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module.partition(".")[0]


def test_every_library_has_one_home():
    own = {*sys.stdlib_module_names, "ntkpipe"}
    for path in modules():
        name = path.relative_to(ROOT).as_posix()
        for library in set(imports(path)) - own:
            assert library in HOMES, f"{name} imports {library}, which has no home"
            assert any(name.startswith(home) for home in HOMES[library]), f"{library} does not belong in {name}"


def test_times_and_sizes_are_put_into_words_in_one_place():
    for path in modules():
        if path.name != "units.py":
            text = path.read_text()
            assert "rich.filesize" not in text, path
            assert not re.search(r"\{[^}]*/ ?(2 ?\*\* ?30|3600|60)(\.0)?:[^}]*\}", text), path


def test_every_package_is_listed():
    found = {
        "ntkpipe" if p.parent.name == "api" else f"ntkpipe.{'.'.join(p.parent.relative_to(ROOT).parts)}"
        for folder in FOLDERS
        for p in (ROOT / folder).rglob("__init__.py")
    }
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


def test_data_files_are_installed():
    from importlib import resources

    assert (resources.files("ntkpipe.configs") / "presets" / "digits.yaml").is_file()
    assert (resources.files("ntkpipe.workers.examples") / "digits_cnn.safetensors").is_file()


def test_the_layers_are_not_importable_under_bare_names():
    import ntkpipe.pipeline.run

    assert not {"pipeline", "workers", "storage", "configs"} & set(sys.modules)
    assert ntkpipe.pipeline.run


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import ntkpipe", {"torch", "ray", "zarr", "numpy", "pydantic"}),
        ("import ntkpipe.configs.loading", {"torch", "ray", "zarr"}),
        ("import ntkpipe.pipeline.cli", {"torch", "ray"}),
        ("from ntkpipe import open_run", {"torch", "ray"}),
        ("from ntkpipe import connect", {"torch", "ray", "httpx"}),
        ("from ntkpipe import kernel_matrix", {"ray"}),
    ],
)
def test_imports_stay_light(statement, absent):
    program = f"{statement}\nimport sys\nprint(*({absent!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_the_public_surface_is_as_documented():
    import ntkpipe

    assert ntkpipe.__all__ == [
        "KernelClassifier",
        "KernelRegressor",
        "Predictions",
        "Projection",
        "Run",
        "RunConfig",
        "Samples",
        "Solution",
        "Validation",
        "__version__",
        "closed_form",
        "closed_form_operator",
        "connect",
        "eigenpairs",
        "extend",
        "features",
        "fit_centres",
        "fork",
        "gc",
        "kernel_matrix",
        "load_config",
        "log_determinant",
        "open_run",
        "plan",
        "posterior",
        "predict",
        "random_features",
        "resume",
        "run",
        "scale_mixture_posterior",
        "second_moments",
        "solve",
        "submit",
        "trace_of",
        "verify",
    ]
    for name in ntkpipe.__all__:
        assert getattr(ntkpipe, name)
    assert ntkpipe.__version__ == PROJECT["project"]["version"]
    with pytest.raises(AttributeError, match="no attribute 'kernel'"):
        _ = ntkpipe.kernel


def test_the_commands_are_as_documented():
    from ntkpipe.pipeline.cli import app

    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    assert sorted(names) == [
        "doctor",
        "extend",
        "gc",
        "list",
        "logs",
        "plan",
        "predict",
        "query",
        "report",
        "resume",
        "run",
        "schema",
        "serve",
        "simulate",
        "status",
        "stop",
        "submit",
        "verify",
    ]
    readme = (ROOT / "README.md").read_text()
    for name in names:
        assert f"ntkpipe {name}" in readme, f"README does not show `ntkpipe {name}`"


def test_seams_their_configurations_and_their_registries_agree():
    from typing import get_args

    from ntkpipe.configs.analyses import AnalysisConfig
    from ntkpipe.configs.kernels.empirical import NUMBERED, KernelName
    from ntkpipe.configs.projection import Projection, ResolvedKind
    from ntkpipe.configs.solve.union import SECTIONS, SolveConfig
    from ntkpipe.workers.analyses.registry import make_analysis
    from ntkpipe.workers.kernels.definitions import kernel_definition
    from ntkpipe.workers.projections.registry import make_projection
    from ntkpipe.workers.solvers.base import AbstractPartitionedSolver
    from ntkpipe.workers.solvers.prediction import Machine, Problem, predict
    from ntkpipe.workers.solvers.registry import make_solver

    names = get_args(KernelName)
    meanings = [kernel_definition(f"{name}:1" if name in NUMBERED else name) for name in names]
    assert len(set(meanings)) == len(names)
    for kind in {*get_args(ResolvedKind), "auto"}:
        if kind != "none":
            assert make_projection(Projection(kind=kind)).fingerprint()
    sections = get_args(get_args(SolveConfig)[0])
    assert {section.model_fields["kind"].default: section for section in sections} == SECTIONS
    for kind, section in SECTIONS.items():
        if kind != "auto" and section.needs != "tiles":
            solver = make_solver(section(name="a", kernel="b"))
            assert solver.method == kind
            assert section.in_parts == isinstance(solver, AbstractPartitionedSolver)
    for kind in set(SECTIONS) - {"auto"}:
        assert predict(SECTIONS[kind](name="a", kernel="b"), Problem(100, 3), Machine(1e9)).kind == kind
    for section in get_args(get_args(AnalysisConfig)[0]):
        assert make_analysis(section.model_validate({"kernel": "k"} if "kernel" in section.model_fields else {}))


def test_kernels_without_a_model_have_a_section_a_name_and_a_home_each():
    import importlib
    from typing import get_args

    from ntkpipe.configs.kernels import names
    from ntkpipe.configs.kernels.union import ClosedFormConfig, KernelConfig, RandomFeaturesConfig
    from ntkpipe.workers.kernels.closed_form import registry as closed_forms
    from ntkpipe.workers.kernels.closed_form.base import AbstractClosedForm
    from ntkpipe.workers.kernels.random_features import registry as random_features
    from ntkpipe.workers.kernels.random_features.base import AbstractRandomFeatures

    def sections(union):
        return [get_args(variant)[0] for variant in get_args(get_args(union)[0])]

    def kinds(union):
        return tuple(section.model_fields["kind"].default for section in sections(union))

    assert kinds(ClosedFormConfig) == names.CLOSED_FORMS
    assert kinds(RandomFeaturesConfig) == names.RANDOM_FEATURES
    derived = [s for s in sections(KernelConfig) if hasattr(s, "model_fields") and s.model_fields["kind"].default]
    assert tuple(
        s.model_fields["kind"].default for s in derived if isinstance(s.model_fields["kind"].default, str)
    ) == (names.DERIVED)
    for registry, base, expected in (
        (closed_forms, AbstractClosedForm, names.CLOSED_FORMS),
        (random_features, AbstractRandomFeatures, names.RANDOM_FEATURES),
    ):
        assert tuple(registry._HOMES) == expected
        for home in registry._HOMES.values():
            module, _, name = home.partition(":")
            assert issubclass(getattr(importlib.import_module(f"{registry.__package__}.{module}"), name), base)
