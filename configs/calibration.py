"""What `ntkpipe doctor --calibrate` found out about a machine, and about a job on it."""

from pathlib import Path
from typing import Final, Literal

from pydantic import Field, ValidationError

from ntkpipe.configs.base import Section
from ntkpipe.configs.cluster import Catalogue, DeviceConfig, StorageConfig
from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.loading import describe_findings, read_text
from ntkpipe.configs.yaml_text import parse_yaml, to_yaml

THIS: Final = "this"
"""What the measured machine and its storage are called in descriptions of clusters."""


class StageCalibration(Section):
    """A stage of a job, measured beside the roofline."""

    seconds: float = Field(gt=0)
    """Of a task, the median of those that were timed."""
    predicted: float = Field(gt=0)
    """By the roofline, for the same tasks."""
    efficiency: float = Field(gt=0)
    """Which share of the roofline's speed was reached, storage aside."""
    first_seconds: float = Field(0.0, ge=0)
    """By how much the first task of a worker took longer: it loads model and data."""
    num_tasks: int = Field(ge=1)


class Calibration(Section):
    """Measurements of one machine."""

    schema_version: Literal[1] = 1
    measured_at: str
    """Date and time."""
    versions: dict[str, str] = Field(default_factory=dict)
    device: DeviceConfig
    """This machine with all of its cores, or its GPU."""
    single: DeviceConfig | None = None
    """With one thread."""
    storage: StorageConfig | None = None
    """The store that was given; None if none was."""
    job: str = ""
    """Name of the configuration whose tasks were timed; empty if none was given."""
    job_digest: str = ""
    """Of what determines its kernels: a prediction for another job says that it was measured on this one."""
    workers: int = Field(1, ge=1)
    """That worked side by side."""
    threads: int | None = None
    """Of each of them."""
    worker_start_seconds: float | None = None
    """Of a worker's process, until it could take a task."""
    stages: dict[str, StageCalibration] = Field(default_factory=dict)
    """By family of stages."""

    @property
    def catalogue(self) -> Catalogue:
        """The machine and its storage under the name ``this``."""
        storages = {THIS: self.storage} if self.storage is not None else {}
        return Catalogue(devices={THIS: self.device}, storages=storages)

    @property
    def efficiency(self) -> dict[str, float]:
        """By family of stages."""
        return {name: stage.efficiency for name, stage in self.stages.items()}

    @property
    def first_seconds(self) -> dict[str, float]:
        """By family of stages."""
        return {name: stage.first_seconds for name, stage in self.stages.items()}

    def text(self) -> str:
        """Return it as a file."""
        return to_yaml(self.model_dump(mode="json", exclude_none=True))


def load_calibration(file: str) -> Calibration:
    """Read what was measured.

    Raises:
        ConfigError: The file cannot be read, or is no calibration.
    """
    document = parse_yaml(read_text(Path(file)), file)
    if not isinstance(document, dict):
        raise ConfigError(f"{file}: expected what `ntkpipe doctor --calibrate --out` writes, found {document!r}.")
    try:
        return Calibration.model_validate(document)
    except ValidationError as error:
        raise ConfigError(describe_findings(file, error, what="calibration")) from None
