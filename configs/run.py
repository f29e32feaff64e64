"""The whole configuration of a run."""

from typing import Any, ClassVar

from pydantic import Field, model_validator

from ntkpipe.configs.analyses import (
    AnalysisConfig,
    FidelityAnalysis,
    NeighborsAnalysis,
    SpectrumAnalysis,
    StudentTAnalysis,
)
from ntkpipe.configs.base import Section, unknown_name
from ntkpipe.configs.canonical import digest
from ntkpipe.configs.kernels.base import NAME_PATTERN
from ntkpipe.configs.kernels.derived import WITH_STATISTICS
from ntkpipe.configs.kernels.empirical import OWN_FEATURES, EmpiricalKernel
from ntkpipe.configs.kernels.matrices import MatrixTraits, matrix_traits
from ntkpipe.configs.kernels.names import CLOSED_FORMS, RANDOM_FEATURES
from ntkpipe.configs.kernels.union import KernelConfig
from ntkpipe.configs.projection import Projection
from ntkpipe.configs.resources import ResourcesConfig
from ntkpipe.configs.solve.union import SolveConfig
from ntkpipe.configs.sources import DataConfig, PythonModel
from ntkpipe.configs.store import StoreConfig


class RunConfig(Section):
    """Everything a run computes, and what it may use to do so."""

    runtime_fields: ClassVar[frozenset[str]] = frozenset({"name", "resources"})

    name: str = Field(pattern=NAME_PATTERN)
    """What the user calls the run; not part of its identity."""
    model: PythonModel | None = None
    """Needed by kernels of a model, and by comparisons with it."""
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
                if name.lower().endswith(".json"):
                    raise ValueError(f"{what}: the name {name!r} ends like a file of the run; leave .json out")
        if self.model is None and self.model_kernels:
            raise ValueError(f"model is missing: kernel {self.model_kernels[0].label!r} is one of a model")
        matrices = self.matrices
        for solve in self.solve:
            self._check_solve(solve, matrices)
        for analysis in self.analyses:
            self._check_analysis(analysis, matrices, solutions)
        self._check_derived()
        return self

    def _check_solve(self, solve: SolveConfig, matrices: dict[str, MatrixTraits]) -> None:
        train = self.data.train_split
        _check_known("kernel", solve.kernel, matrices)
        if not matrices[solve.kernel].symmetric:
            raise ValueError(f"solution {solve.name!r}: kernel {solve.kernel!r} is not symmetric and cannot be solved")
        kernel = self.kernel(solve.kernel.partition("@")[0])
        stored = (train, train) in self.data.resolved_pairs
        if solve.needs == "features" and not self.has_features(kernel):
            raise ValueError(
                f"solution {solve.name!r} is found from features, and kernel {solve.kernel!r} has none; project it, or use "
                "another kind of solver"
            )
        if solve.needs == "tiles" and not stored:
            raise ValueError(f"solution {solve.name!r} works on stored tiles: it needs the pair [{train}, {train}]")
        if not stored and not self.has_features(kernel) and kernel.kind not in CLOSED_FORMS:
            raise ValueError(
                f"solution {solve.name!r} needs the pair [{train}, {train}] among data.pairs: kernel {solve.kernel!r} has "
                "neither features nor a formula from which it could be computed"
            )
        early_stopping = getattr(solve, "early_stopping", None)
        if early_stopping is not None:
            _check_known("split", early_stopping.split, self.data.splits)
            if early_stopping.split == train:
                raise ValueError(f"solution {solve.name!r} cannot be stopped early on the split that it is fitted to")
            if early_stopping.split not in self.predicted_splits(solve.kernel):
                raise ValueError(
                    f"solution {solve.name!r} needs the pair [{early_stopping.split}, {train}] among data.pairs"
                )

    def has_features(self, kernel: KernelConfig) -> bool:
        """Whether a kernel is a Gram matrix of features that the run stores."""
        if isinstance(kernel, EmpiricalKernel):
            return kernel.kind in OWN_FEATURES or self.projection_of(kernel).resolved_kind != "none"
        return kernel.kind in RANDOM_FEATURES

    def predicted_splits(self, reference: str) -> tuple[str, ...]:
        """Return the splits whose kernel with the training split is stored, or can be computed without being stored."""
        kernel, train = self.kernel(reference.partition("@")[0]), self.data.train_split
        if self.has_features(kernel) or kernel.kind in CLOSED_FORMS:
            return tuple(self.data.splits)
        return tuple(rows for rows, columns in self.data.resolved_pairs if columns == train)

    def _check_analysis(
        self, analysis: AnalysisConfig, matrices: dict[str, MatrixTraits], solutions: list[str]
    ) -> None:
        train = self.data.train_split
        for name in getattr(analysis, "solutions", ()):
            _check_known("solution", name, solutions)
        named = [*getattr(analysis, "kernels", ()), *([analysis.kernel] if hasattr(analysis, "kernel") else [])]
        for name in named:
            _check_known("kernel", name, matrices)
            if matrices[name].per_output:
                raise ValueError(
                    f"analysis {analysis.name!r} is of samples; kernel {name!r} is of (sample, output) pairs"
                )
            if isinstance(analysis, SpectrumAnalysis) and not matrices[name].symmetric:
                raise ValueError(f"analysis {analysis.name!r}: kernel {name!r} is not symmetric")
        if isinstance(analysis, SpectrumAnalysis | StudentTAnalysis):
            self._check_matrices(analysis, matrices)
        if isinstance(analysis, FidelityAnalysis | NeighborsAnalysis):
            if self.model is None:
                raise ValueError(f"analysis {analysis.name!r} compares with a network, but there is no model")
            if self.model.members:
                _check_known("member", analysis.member, self.model.members)
            elif analysis.member:
                raise ValueError(f"analysis {analysis.name!r}: the model has no members")
        if isinstance(analysis, FidelityAnalysis):
            _check_comparable(analysis, self.solve)
        if (split := getattr(analysis, "split", None)) is not None:
            _check_known("split", split, self.data.splits)
            predicted = isinstance(analysis, FidelityAnalysis) and all(
                split in self.predicted_splits(solve.kernel)
                for solve in self.solve
                if solve.name in (analysis.solutions or solutions)
            )
            if not predicted and (split, train) not in self.data.resolved_pairs:
                raise ValueError(f"analysis {analysis.name!r} needs the pair [{split}, {train}] among data.pairs")

    def _check_matrices(self, analysis: SpectrumAnalysis | StudentTAnalysis, matrices: dict[str, MatrixTraits]) -> None:
        """Refuse an analysis of all kernels where there is none that it can look at, or whose variances are not known."""
        suitable = [name for name, traits in matrices.items() if traits.symmetric and not traits.per_output]
        names = analysis.kernels or suitable
        if not names:
            raise ValueError(f"analysis {analysis.name!r} finds no symmetric kernel of samples")
        if isinstance(analysis, StudentTAnalysis) and (analysis.split, analysis.split) not in self.data.resolved_pairs:
            for name in names:
                if matrices[name].symmetric and not matrices[name].diagonal:
                    raise ValueError(
                        f"analysis {analysis.name!r} needs the pair [{analysis.split}, {analysis.split}] among data.pairs, "
                        f"because kernel {name!r} is made of components"
                    )

    def _check_derived(self) -> None:
        """Refuse derived kernels whose means or solves need pairs of splits that are not computed."""
        train, pairs = self.data.train_split, self.data.resolved_pairs
        for kernel in self.kernels:
            if kernel.kind not in WITH_STATISTICS:
                continue
            for split in {split for pair in pairs for split in pair} | {train}:
                if (split, train) not in pairs:
                    raise ValueError(f"kernel {kernel.label!r} needs the pair [{split}, {train}] among data.pairs")

    @property
    def model_kernels(self) -> tuple[EmpiricalKernel, ...]:
        """The kernels of the model."""
        return tuple(kernel for kernel in self.kernels if isinstance(kernel, EmpiricalKernel))

    @property
    def matrices(self) -> dict[str, MatrixTraits]:
        """Every kernel matrix of the run, by the reference that names it."""
        return matrix_traits(self.kernels, tuple(self.model.members) if self.model else ())

    def projection_of(self, kernel: KernelConfig) -> Projection:
        """Return the projection that is applied to ``kernel``; of kind ``none`` for kernels that are exact."""
        if not isinstance(kernel, EmpiricalKernel) or kernel.always_exact:
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
