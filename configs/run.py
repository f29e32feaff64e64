"""The whole configuration of a run."""

from typing import Any, ClassVar

from pydantic import Field, model_validator

from ntkpipe.configs.analyses import AnalysisConfig, FidelityAnalysis
from ntkpipe.configs.base import Section, unknown_name
from ntkpipe.configs.canonical import digest
from ntkpipe.configs.kernels import NAME_PATTERN, KernelConfig
from ntkpipe.configs.projection import Projection
from ntkpipe.configs.resources import ResourcesConfig
from ntkpipe.configs.solve import SolveConfig
from ntkpipe.configs.sources import DataConfig, PythonModel
from ntkpipe.configs.store import StoreConfig


class RunConfig(Section):
    """Everything a run computes, and what it may use to do so."""

    runtime_fields: ClassVar[frozenset[str]] = frozenset({"name", "resources"})

    name: str = Field(pattern=NAME_PATTERN)
    """What the user calls the run; not part of its identity."""
    model: PythonModel
    data: DataConfig
    kernels: tuple[KernelConfig, ...] = Field(min_length=1)
    projection: Projection = Projection(kind="none")
    """The projection of all kernels that do not name their own; by default kernels are exact."""
    solve: tuple[SolveConfig, ...] = ()
    analyses: tuple[AnalysisConfig, ...] = ()
    store: StoreConfig = StoreConfig()
    resources: ResourcesConfig = ResourcesConfig()

    @model_validator(mode="after")
    def _names_are_unique_and_known(self) -> "RunConfig":
        kernels = [kernel.label for kernel in self.kernels]
        solutions = [solve.name for solve in self.solve]
        analyses = [analysis.name for analysis in self.analyses]
        for what, names in (("kernels", kernels), ("solve", solutions), ("analyses", analyses)):
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"{what}: the name {name!r} is used more than once; give each a `name`")
        train = self.data.train_split
        if self.solve and (train, train) not in self.data.resolved_pairs:
            raise ValueError(f"solve needs the pair [{train}, {train}] among data.pairs")
        for solve in self.solve:
            _check_known("kernel", solve.kernel, kernels)
        for analysis in self.analyses:
            for name in getattr(analysis, "solutions", ()):
                _check_known("solution", name, solutions)
            for name in getattr(analysis, "kernels", ()):
                _check_known("kernel", name, kernels)
            if (kernel := getattr(analysis, "kernel", None)) is not None:
                _check_known("kernel", kernel, kernels)
            if isinstance(analysis, FidelityAnalysis):
                _check_comparable(analysis, self.solve)
            if (split := getattr(analysis, "split", None)) is not None:
                _check_known("split", split, self.data.splits)
                if (split, train) not in self.data.resolved_pairs:
                    raise ValueError(f"analysis {analysis.name!r} needs the pair [{split}, {train}] among data.pairs")
        return self

    def projection_of(self, kernel: KernelConfig) -> Projection:
        """Return the projection that is applied to ``kernel``; of kind ``none`` for kernels that are exact."""
        if kernel.kind == "ck":
            return Projection(kind="none")
        return kernel.projection or self.projection

    def kernel(self, name: str) -> KernelConfig:
        """Return the kernel stored under ``name``, which must exist."""
        return next(kernel for kernel in self.kernels if kernel.label == name)

    def document(self) -> dict[str, Any]:
        """Return the whole configuration as plain JSON values."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """Return the SHA-256 of the semantic fields: equal digests ask for the same numbers."""
        return digest(self.semantic())


def _check_comparable(analysis: FidelityAnalysis, solve: tuple[SolveConfig, ...]) -> None:
    one_hot = [item.name for item in solve if item.targets == "one-hot"]
    for name in analysis.solutions:
        if name not in one_hot:
            raise ValueError(f"analysis {analysis.name!r} compares classes, but solution {name!r} has real targets")
    if not one_hot:
        raise ValueError(f"analysis {analysis.name!r} needs a solution with one-hot targets among solve")


def _check_known(what: str, name: str, valid: Any) -> None:
    if name not in valid:
        raise ValueError(unknown_name(what, name, valid))
