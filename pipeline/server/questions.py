"""What can be asked in a query string or in the body of a POST: the same, but that bodies hold lists."""

from typing import Annotated, Any, Final, Literal

from fastapi import Path, Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, StrictStr, model_validator

from ntkpipe.pipeline.query.names import Missing
from ntkpipe.pipeline.query.spectra import DEFAULT_SAMPLES, MAX_SAMPLES

ALL: Final = ":"

RunName = Annotated[str, Path(description="Of the run, below the root.")]
SplitName = Annotated[str, Path(description="Of a split.")]
KernelName = Annotated[str, Path(description="NAME, or NAME@MEMBER where the model has several members.")]
SolutionName = Annotated[str, Path(description="Of a solution.")]

MAX_FIELDS: Final = 50
"""Of a question; none knows as many."""

Text = Annotated[str, Field(description="0:10, 3, 1,5,7, id:NAME or id:NAME,id:OTHER; all by default.")]


def _of_one_kind(selection: Any) -> Any:
    """Refuse a list as a whole: to tell of each of a million wrong items would take most of a minute."""
    if isinstance(selection, list) and not {*map(type, selection)} <= {int} and not {*map(type, selection)} <= {str}:
        raise ValueError("Input should be a list of positions, or a list of sample ids")
    return selection


Selection = Annotated[
    StrictStr | list[StrictInt] | list[StrictStr],
    BeforeValidator(_of_one_kind),
    Field(description="A text as in a query string, positions, or sample ids as they are."),
]

ArrayFormat = Literal["npy", "arrow", "json"]
Wanted = Annotated[ArrayFormat | None, Field(description="By default what the Accept header asks for, else json.")]
Split = Annotated[str | None, Field(description="The training split by default.")]
Layers = Annotated[
    str, Field(description="Components of a layerwise kernel that are summed: names or patterns, separated by commas.")
]
Transforms = Annotated[str, Field(description="cosine, centred, or both, in the order in which they are applied.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="How many at most.")]


def parts(text: str) -> tuple[str, ...]:
    """Return the names in a text that separates them by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


class Question(BaseModel):
    """A question; what is not known is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, data: Any) -> Any:
        if isinstance(data, dict) and len(data) > MAX_FIELDS:
            raise ValueError(f"{len(data):,} fields were given; no question has more than {MAX_FIELDS}")
        return data


STRICT: Final = ConfigDict(strict=True)
"""JSON has numbers and truth values of its own: one is not taken for the other, as it is in a query string."""


class ArrayQuestion(Question):
    """Asks for an array."""

    format: Wanted = None


class MatrixChoice(Question):
    """Which matrix is meant."""

    row_split: Split = None
    column_split: Split = None
    layers: Layers = ""
    transforms: Transforms = ""

    @property
    def matrix(self) -> dict[str, Any]:
        """As arguments of a run's kernel."""
        return {
            "rows": self.row_split,
            "columns": self.column_split,
            "layers": parts(self.layers),
            "transforms": parts(self.transforms),
        }


class MatrixOptions(MatrixChoice):
    """Which matrix, and what is done with it."""

    format: Wanted = None
    missing: Missing = Field("raise", description="`nan` gives NaN for entries that are not committed yet.")


class MatrixQuestion(MatrixOptions):
    """Asks for entries of a matrix."""

    rows: Text = ALL
    cols: Text = ALL


class MatrixForm(MatrixOptions):
    """Asks for entries of a matrix."""

    model_config = STRICT

    rows: Selection = ALL
    cols: Selection = ALL


class RowsQuestion(ArrayQuestion):
    """Asks for what belongs to some samples."""

    split: Split = None
    rows: Text = ALL


class RowsForm(ArrayQuestion):
    """Asks for what belongs to some samples."""

    model_config = STRICT

    split: Split = None
    rows: Selection = ALL


class CoefficientsQuestion(ArrayQuestion):
    """Asks for coefficients of training samples."""

    rows: Text = ALL


class CoefficientsForm(ArrayQuestion):
    """Asks for coefficients of training samples."""

    model_config = STRICT

    rows: Selection = ALL


class OutputsOptions(ArrayQuestion):
    """Which network's outputs."""

    member: str | None = Field(None, description="Of a model with several.")


class OutputsQuestion(OutputsOptions):
    """Asks for the network's outputs."""

    rows: Text = ALL


class OutputsForm(OutputsOptions):
    """Asks for the network's outputs."""

    model_config = STRICT

    rows: Selection = ALL


Target = Annotated[int | None, Field(ge=0, description="A column of the prediction.")]


class AttributionsQuestion(RowsQuestion):
    """Asks for what training samples contribute to predictions."""

    target: Target = None


class AttributionsForm(RowsForm):
    """Asks for what training samples contribute to predictions."""

    model_config = STRICT

    target: Target = None


class SummaryQuestion(Question):
    """Asks where a prediction comes from."""

    split: Split = None
    sample: str = Field(description="A position, or id:NAME.")
    target: Target = None
    k: int = Field(10, ge=1, le=1000, description="How many helpful and harmful samples.")


class NeighborOptions(Question):
    """Which neighbours."""

    split: Split = None
    k: int = Field(5, ge=1, description="How many; no more than there are.")
    opposed: bool = Field(False, description="The smallest values are wanted.")
    label: int | None = Field(None, description="Only training samples of this class.")
    layers: Layers = ""
    transforms: Transforms = ""


class NeighborQuestion(NeighborOptions):
    """Asks for neighbours of some samples."""

    rows: Text


class NeighborForm(NeighborOptions):
    """Asks for neighbours of some samples."""

    model_config = STRICT

    rows: Selection


class SpectrumQuestion(Question):
    """Asks for eigenvalues."""

    max_samples: int = Field(
        DEFAULT_SAMPLES, ge=1, le=MAX_SAMPLES, description="Evenly spaced samples of larger splits."
    )
    layers: Layers = ""
    transforms: Transforms = ""


class SpectrumForm(SpectrumQuestion):
    """Asks for eigenvalues."""

    model_config = STRICT


class DiagonalQuestion(ArrayQuestion):
    """Asks for a diagonal."""

    split: Split = None


class IdsQuestion(Question):
    """Asks for ids."""

    start: int = Field(0, ge=0)
    stop: int | None = Field(None, ge=0)
