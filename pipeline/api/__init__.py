"""ntkpipe: empirical Neural Tangent Kernels of any PyTorch model, as resumable and verifiable jobs.

The public surface. Names are loaded when they are first used, so that importing ntkpipe imports neither torch nor Ray.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ntkpipe.configs.loading import load_config as load_config
    from ntkpipe.configs.projection import Projection as Projection
    from ntkpipe.configs.run import RunConfig as RunConfig
    from ntkpipe.pipeline.client.connecting import connect as connect
    from ntkpipe.pipeline.predictions import Predictions as Predictions
    from ntkpipe.pipeline.predictions import predict as predict
    from ntkpipe.pipeline.query.run import Run as Run
    from ntkpipe.pipeline.query.run import open_run as open_run
    from ntkpipe.pipeline.run import extend as extend
    from ntkpipe.pipeline.run import fork as fork
    from ntkpipe.pipeline.run import plan as plan
    from ntkpipe.pipeline.run import resume as resume
    from ntkpipe.pipeline.run import run as run
    from ntkpipe.pipeline.submission import submit as submit
    from ntkpipe.pipeline.upkeep import gc as gc
    from ntkpipe.pipeline.upkeep import verify as verify
    from ntkpipe.workers.estimators.classifier import KernelClassifier as KernelClassifier
    from ntkpipe.workers.estimators.regressor import KernelRegressor as KernelRegressor
    from ntkpipe.workers.kernels.formulas import closed_form as closed_form
    from ntkpipe.workers.kernels.formulas import closed_form_operator as closed_form_operator
    from ntkpipe.workers.kernels.formulas import random_features as random_features
    from ntkpipe.workers.kernels.library import features as features
    from ntkpipe.workers.kernels.library import kernel_matrix as kernel_matrix
    from ntkpipe.workers.kernels.library import second_moments as second_moments
    from ntkpipe.workers.kernels.scale_mixture import scale_mixture_posterior as scale_mixture_posterior
    from ntkpipe.workers.solvers.centres.fit import fit_centres as fit_centres
    from ntkpipe.workers.solvers.solution import Solution as Solution
    from ntkpipe.workers.solvers.solve import solve as solve
    from ntkpipe.workers.solvers.validation import Validation as Validation
    from ntkpipe.workers.sources.samples import Samples as Samples
    from ntkpipe.workers.spectra.eigenpairs import eigenpairs as eigenpairs
    from ntkpipe.workers.spectra.posterior import posterior as posterior
    from ntkpipe.workers.spectra.traces import log_determinant as log_determinant
    from ntkpipe.workers.spectra.traces import trace_of as trace_of

_HOMES = {
    "KernelClassifier": "ntkpipe.workers.estimators.classifier",
    "KernelRegressor": "ntkpipe.workers.estimators.regressor",
    "Predictions": "ntkpipe.pipeline.predictions",
    "Projection": "ntkpipe.configs.projection",
    "Run": "ntkpipe.pipeline.query.run",
    "RunConfig": "ntkpipe.configs.run",
    "Samples": "ntkpipe.workers.sources.samples",
    "Solution": "ntkpipe.workers.solvers.solution",
    "Validation": "ntkpipe.workers.solvers.validation",
    "closed_form": "ntkpipe.workers.kernels.formulas",
    "closed_form_operator": "ntkpipe.workers.kernels.formulas",
    "connect": "ntkpipe.pipeline.client.connecting",
    "eigenpairs": "ntkpipe.workers.spectra.eigenpairs",
    "extend": "ntkpipe.pipeline.run",
    "features": "ntkpipe.workers.kernels.library",
    "fit_centres": "ntkpipe.workers.solvers.centres.fit",
    "fork": "ntkpipe.pipeline.run",
    "gc": "ntkpipe.pipeline.upkeep",
    "kernel_matrix": "ntkpipe.workers.kernels.library",
    "load_config": "ntkpipe.configs.loading",
    "log_determinant": "ntkpipe.workers.spectra.traces",
    "open_run": "ntkpipe.pipeline.query.run",
    "plan": "ntkpipe.pipeline.run",
    "posterior": "ntkpipe.workers.spectra.posterior",
    "predict": "ntkpipe.pipeline.predictions",
    "random_features": "ntkpipe.workers.kernels.formulas",
    "resume": "ntkpipe.pipeline.run",
    "run": "ntkpipe.pipeline.run",
    "scale_mixture_posterior": "ntkpipe.workers.kernels.scale_mixture",
    "second_moments": "ntkpipe.workers.kernels.library",
    "solve": "ntkpipe.workers.solvers.solve",
    "submit": "ntkpipe.pipeline.submission",
    "trace_of": "ntkpipe.workers.spectra.traces",
    "verify": "ntkpipe.pipeline.upkeep",
}

__version__ = "0.1.0"
__all__ = sorted([*_HOMES, "__version__"])  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ntkpipe' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
