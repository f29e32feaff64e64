"""The service against its own description: cases that schemathesis makes of it, on a finished and on an unfinished run.

No answer may be a failure of the service, have a status or a type that is not described, or a body that does not fit its
schema. Texts that select samples, and options that a kernel does not have, are described as texts, so that a valid case may
well be refused: ``positive_data_acceptance`` is not checked.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import golden
import pytest
from fuzzing import NAMES, configuration
from serving import serving

import ntkpipe

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
TOKEN = "correct-horse-battery-staple"
MAX_EXAMPLES = int(os.environ.get("NTKPIPE_FUZZ_EXAMPLES", "6"))
"""For each operation; a search for faults takes more."""

KERNELS = [
    {"kind": "trntk0", "layerwise": True},
    {"kind": "pntk"},
    {"kind": "full"},
    {"kind": "pntk", "name": "sketch", "projection": {"kind": "sjlt", "dim": 16}},
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    solve = [{"kind": "cholesky", "name": "krr", "kernel": "trntk0", "ridge": 1.0}]
    ntkpipe.run(golden.config(kernels=KERNELS, solve=solve, analyses=[{"kind": "fidelity"}]), folder / "whole")
    shutil.copytree(folder / "whole", folder / "half")
    for task in ("kernel/train-train/000001-000000", "kernel/test-train/000000-000001", "features/test/00000001"):
        (folder / "half" / "receipts" / f"{task}.json").unlink()
    shutil.rmtree(folder / "half" / "receipts" / "analyze")
    return folder


@pytest.mark.parametrize("run", NAMES)
def test_no_case_that_the_description_allows_or_forbids_breaks_the_service(root, run, tmp_path):
    names = tmp_path / "schemathesis.toml"
    names.write_text(configuration(run))
    with serving(root, "--read-seconds", 5, token=TOKEN) as service:
        found = subprocess.run(
            [
                *(
                    sys.executable,
                    "-m",
                    "schemathesis.cli",
                    "--config-file",
                    str(names),
                    "run",
                    f"{service.url}/v1/openapi.json",
                ),
                *("--header", f"Authorization: Bearer {TOKEN}", "--checks", "all"),
                *("--exclude-checks", "positive_data_acceptance", "--phases", "examples,coverage,fuzzing"),
                *("--max-examples", str(MAX_EXAMPLES), "--seed", "1", "--workers", "1", "--no-color"),
                *("--generation-database", "none", "--report-dir", str(tmp_path)),
            ],
            cwd=tmp_path,
            env=os.environ | {"SCHEMATHESIS_HOOKS": "fuzzing", "PYTHONPATH": str(TESTS)},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        log = service.log.read_text()
    print(found.stdout[found.stdout.find("Test Phases") :])
    assert found.returncode == 0, found.stdout[-20000:] + found.stderr[-2000:]
    assert "defect" not in log
