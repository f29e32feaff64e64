"""The benchmark of the scheduler on tiny jobs, so that it cannot rot; times are never asserted."""

import sys
from pathlib import Path

import pytest
from benchmarks import scheduling

from ntkpipe.configs.loading import load_config


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Jobs name what they need as they find it in the folder of the benchmarks."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(scheduling.__file__).parent)])


@pytest.mark.parametrize("name", ["tiny", "blocks", "mlp", "cnn"])
def test_every_job_is_valid(name):
    document = scheduling.job(name, 0.01)
    for variant in scheduling.VARIANTS:
        config = load_config(document | {"resources": document["resources"] | variant.resources})
        assert config.resources.num_workers == variant.num_workers


def test_figures_are_those_of_the_steady_state(tmp_path):
    found = scheduling.carry_out(scheduling.job("tiny", 0.04), scheduling.SERIAL_1, tmp_path)
    assert found["features"].num_tasks == 24 - 4
    assert found["kernel"].num_tasks == 3 - 1
    assert found["kernel"].num_reads == 24 < scheduling.planned(scheduling.job("tiny", 0.04), 1)
    assert 0 < found["features"].busy < found["features"].span


def test_the_report_tells_what_was_measured(monkeypatch):
    monkeypatch.setattr(scheduling, "planned", lambda document, num_workers: 77)
    seconds = (0.2, 0.125, 0.1, 0.19)
    found = {
        variant.name: {
            stage: [scheduling.Figures(10, 10 * each, 9 * each * variant.num_workers, 55, variant.num_workers)]
            for stage in scheduling.STAGES
        }
        for variant, each in zip(scheduling.VARIANTS, seconds, strict=True)
    }
    text = scheduling.report("tiny", found, 1.0)
    assert "| kernel | 2 workers, 1 thread each | 10 | 125.0 | 225.0 | 12.5 | 55 | 77 |" in text
    assert "| features | 0.80 | 1.25 |" in text
