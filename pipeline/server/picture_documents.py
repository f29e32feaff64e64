"""The documents that routes of pictures and samples answer with, and what can be asked of them."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ntkpipe.pipeline.server.documents import Number
from ntkpipe.pipeline.server.questions import Layers, MatrixChoice, Question, Transforms, parts


class OrderedAsked(MatrixChoice):
    """Which matrix is meant, and in which order it is drawn."""

    order: str = Field("stored", description="stored, id, class or cluster; of rows and columns.")


class TileAsked(OrderedAsked):
    """How a tile is drawn."""

    low: float | None = Field(None, description="The number that has the first colour.", allow_inf_nan=False)
    high: float | None = Field(None, description="The number that has the last colour.", allow_inf_nan=False)
    palette: str | None = Field(None, description="dusk, balance (zero in its middle) or grey.")
    version: str = Field("", description="Of the overview; only tells caches which pictures belong together.")


class HoverAsked(OrderedAsked):
    """Which pixel is meant."""

    row: int = Field(ge=0, description="Place of an entry in drawn order.")
    column: int = Field(ge=0, description="Place of an entry in drawn order.")
    level: int | None = Field(None, ge=0, description="Whose pixel is meant; by default the entry itself.")


class OrderAsked(MatrixChoice):
    """Whose order is meant."""

    split: str | None = Field(None, description="By default that of the rows.")


class CompareAsked(Question):
    """Which kernels are compared."""

    model_config = ConfigDict(populate_by_name=True)

    one: str = Field(description="A kernel of the run: NAME or NAME@MEMBER.")
    other: str = Field(description="The other kernel.")
    with_run: str | None = Field(None, alias="with", description="The run of the other; the same one by default.")
    layers: Layers = ""
    transforms: Transforms = ""

    @property
    def matrices(self) -> dict[str, Any]:
        """As arguments of the runs' kernels, of both."""
        return {"layers": parts(self.layers), "transforms": parts(self.transforms)}


class BuildingDocument(BaseModel):
    """It is being made; ask again."""

    state: Literal["building"] = "building"
    done: float = Field(ge=0, le=1)


class GroupDocument(BaseModel):
    """Samples that belong together and are drawn side by side."""

    label: str
    start: int
    stop: int


class ScaleDocument(BaseModel):
    """What a pixel of a level is."""

    level: int
    entries: int = Field(description="Rows, and columns, of the square of entries that it shows the mean of.")
    exact: bool = Field(description="Whether all tiles are drawn in full; else some are coarser ones, scaled up.")


class OverviewDocument(BaseModel):
    """How a matrix is drawn."""

    state: Literal["ready"] = "ready"
    order: str
    orders: list[str] = Field(description="Those that are possible.")
    rows: int
    columns: int
    row_split: str
    column_split: str
    levels: int
    tile: int
    low: float
    high: float
    quantiles: dict[str, float] = Field(description="Of the means of the finest level in memory, by share.")
    palette: str
    palettes: dict[str, list[str]] = Field(description="Colours from low to high.")
    groups: list[GroupDocument]
    column_groups: list[GroupDocument]
    exact_from: int | None = Field(description="The level whose pixels are single entries, if it is drawn in full.")
    finest: int = Field(description="The last level of which all tiles are drawn in full.")
    coarsest: int
    scales: list[ScaleDocument]
    missing: int = Field(description="Entries that were not committed.")
    incomplete: bool = Field(description="Not everything was committed; the picture changes.")
    version: str


class PlaceDocument(BaseModel):
    """A sample, or one of its outputs."""

    id: str
    position: int
    label: Any = None
    output: int | None = Field(None, description="Of a kernel of (sample, output) pairs.")


class HoverDocument(BaseModel):
    """What a pixel shows."""

    row: PlaceDocument
    column: PlaceDocument
    value: Number = Field(description="Of the entry, or the mean; null where nothing is committed.")
    error: Number = Field(description="Standard error of the entry; null where it is not known.")
    of: int = Field(description="Entries that the pixel stands for.")


class ComparisonDocument(BaseModel):
    """How alike two kernels are."""

    state: Literal["ready"] = "ready"
    alignment: Number = Field(description="Centred kernel alignment, also known as linear CKA.")
    correlation: Number = Field(description="Pearson's, of all entries.")
    relative_difference: Number = Field(description="|K - L| / |K|.")
    samples: int = Field(description="That were looked at.")
    num_samples: int
    sampled: bool = Field(description="Not all samples were looked at, but evenly spaced blocks of them.")


class SampleDocument(BaseModel):
    """A sample as people look at it."""

    id: str
    position: int
    label: Any = None
    outputs: list[Number] | None = Field(description="Of the network; null without one, or before it has run.")
    member_outputs: dict[str, list[Number]] = Field({}, description="Where the model has several members.")
    predictions: dict[str, list[Number]] = Field(description="By solution.")
    shown_as: Literal["image", "text", "none", "loading"] = Field(description="loading: ask again.")
    text: str | None = None
    why: str | None = Field(None, description="There is nothing to be shown.")
