"""The union of all kernel sections, told apart by their kind."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Tag

from ntkpipe.configs.kernels.derived import (
    CentredConfig,
    EnsembleConfig,
    NormalisedConfig,
    PosteriorConfig,
    PowerConfig,
    ProductConfig,
    ScaledConfig,
    SumConfig,
)
from ntkpipe.configs.kernels.distances import (
    DispersalConfig,
    GaussianConfig,
    KerpleConfig,
    LaplaceConfig,
    MaternConfig,
)
from ntkpipe.configs.kernels.dot_products import ArcCosineConfig, CosineConfig, PolynomialConfig, ZonalConfig
from ntkpipe.configs.kernels.empirical import EmpiricalKernel
from ntkpipe.configs.kernels.infinite_width import NngpLimitConfig, NtkConfig
from ntkpipe.configs.kernels.names import CLOSED_FORMS, DERIVED, RANDOM_FEATURES
from ntkpipe.configs.kernels.random_features import (
    FourierFeaturesConfig,
    GraphWalkFeaturesConfig,
    MultilayerFeaturesConfig,
    PositiveFeaturesConfig,
    SpectralMixtureFeaturesConfig,
    UniversalFeaturesConfig,
)
from ntkpipe.configs.kernels.structured import (
    ConvolutionalConfig,
    DeepKernelMachineConfig,
    GraphConfig,
    GraphNodeConfig,
    NeuralSignatureConfig,
    SignatureConfig,
)

_MODEL = "model"


def _tag(value: Any) -> str:
    """Return which section a value is of: that of its kind, a kernel of a model where no other has it."""
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    return kind if isinstance(kind, str) and kind in (*CLOSED_FORMS, *RANDOM_FEATURES, *DERIVED) else _MODEL


def _family(value: Any) -> str:
    tag = _tag(value)
    return "formula" if tag in CLOSED_FORMS else "features" if tag in RANDOM_FEATURES else tag


ClosedFormConfig = Annotated[
    Annotated[GaussianConfig, Tag("gaussian")]
    | Annotated[LaplaceConfig, Tag("laplace")]
    | Annotated[MaternConfig, Tag("matern")]
    | Annotated[DispersalConfig, Tag("dispersal")]
    | Annotated[PolynomialConfig, Tag("polynomial")]
    | Annotated[CosineConfig, Tag("cosine")]
    | Annotated[ArcCosineConfig, Tag("arc_cosine")]
    | Annotated[ZonalConfig, Tag("zonal")]
    | Annotated[KerpleConfig, Tag("kerple")]
    | Annotated[NtkConfig, Tag("ntk")]
    | Annotated[NngpLimitConfig, Tag("nngp_limit")]
    | Annotated[ConvolutionalConfig, Tag("cntk")]
    | Annotated[GraphConfig, Tag("gntk")]
    | Annotated[GraphNodeConfig, Tag("gntk_node")]
    | Annotated[SignatureConfig, Tag("signature")]
    | Annotated[NeuralSignatureConfig, Tag("neural_signature")]
    | Annotated[DeepKernelMachineConfig, Tag("deep_kernel_machine")],
    Discriminator(_tag),
]
"""Formulas of two samples."""

RandomFeaturesConfig = Annotated[
    Annotated[FourierFeaturesConfig, Tag("fourier_features")]
    | Annotated[PositiveFeaturesConfig, Tag("positive_features")]
    | Annotated[SpectralMixtureFeaturesConfig, Tag("spectral_mixture_features")]
    | Annotated[UniversalFeaturesConfig, Tag("universal_features")]
    | Annotated[GraphWalkFeaturesConfig, Tag("graph_walk_features")]
    | Annotated[MultilayerFeaturesConfig, Tag("multilayer_features")],
    Discriminator(_tag),
]
"""Random maps of single samples."""

KernelConfig = Annotated[
    Annotated[EmpiricalKernel, Tag(_MODEL)]
    | Annotated[ClosedFormConfig, Tag("formula")]
    | Annotated[RandomFeaturesConfig, Tag("features")]
    | Annotated[SumConfig, Tag("sum")]
    | Annotated[ProductConfig, Tag("product")]
    | Annotated[PowerConfig, Tag("power")]
    | Annotated[ScaledConfig, Tag("scaled")]
    | Annotated[NormalisedConfig, Tag("normalised")]
    | Annotated[CentredConfig, Tag("centred")]
    | Annotated[PosteriorConfig, Tag("posterior")]
    | Annotated[EnsembleConfig, Tag("ensemble")],
    Discriminator(_family),
]
