"""What a calibration predicts of a job, beside real runs of it: the features and the kernel stage.

A calibration and a run take turns, so that both meet the same machine; every pair of them is a line. Seconds are those of
all tasks on their workers, as the receipts of the run tell them. The first task of each worker, which loads model and data,
counts as the median one.

    python tests/benchmarks/calibration.py digits --executor serial ray --rounds 3
"""

import argparse
import os
import statistics
import tempfile
from dataclasses import dataclass

from ntkpipe.configs.calibration import Calibration
from ntkpipe.configs.loading import load_config
from ntkpipe.configs.run import RunConfig
from ntkpipe.pipeline.prediction.calibrating import calibrate
from ntkpipe.pipeline.prediction.described import this_machine
from ntkpipe.pipeline.prediction.forecast import forecast
from ntkpipe.pipeline.prediction.workload import Workload
from ntkpipe.pipeline.run import plan, run
from ntkpipe.storage.features import FEATURES_STAGE
from ntkpipe.storage.kernel import KERNEL_STAGE
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.records import Receipt
from ntkpipe.storage.stores.registry import open_store

STAGES = (FEATURES_STAGE, KERNEL_STAGE)


@dataclass(frozen=True, slots=True)
class Row:
    """A stage."""

    stage: str
    predicted: float
    measured: float

    @property
    def ratio(self) -> float:
        """Of the prediction over what was measured."""
        return self.predicted / self.measured


def compare(config: RunConfig, calibration: Calibration) -> list[Row]:
    """Predict a job, run it, and compare the two stages."""
    cluster = this_machine(calibration, config.resources)
    found = {stage.stage: stage for stage in forecast(Workload.of(plan(config)[1]), cluster, calibration).stages}
    with tempfile.TemporaryDirectory() as folder:
        run(config, f"{folder}/run")
        ledger, rows = Ledger(open_store(f"{folder}/run")), []
        for stage in STAGES:
            receipts = list(ledger.receipts(stage))
            if receipts:
                rows.append(Row(stage, found[stage].total_seconds, _usual_seconds(receipts)))
    return rows


def _usual_seconds(receipts: list[Receipt]) -> float:
    """Return what all tasks took, if each worker's first one had been like the others."""
    usual = statistics.median(receipt.seconds for receipt in receipts)
    seen: set[str] = set()
    total = 0.0
    for receipt in sorted(receipts, key=lambda receipt: receipt.committed_at):
        total += receipt.seconds if receipt.worker in seen else min(usual, receipt.seconds)
        seen.add(receipt.worker)
    return total


def main() -> None:
    """Print a line for each stage of each round."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("config")
    parser.add_argument("--executor", nargs="+", default=["serial", "ray"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    options = parser.parse_args()
    for number in range(options.rounds):
        for executor in options.executor:
            settings = [f"resources.executor={executor}", "resources.threads_per_worker=1", "solve=[]", "analyses=[]"]
            config = load_config(options.config, [*settings, *options.overrides])
            for row in compare(config, calibrate(config=config)):
                print(
                    f"round {number + 1} {executor:6} {row.stage:8} predicted {row.predicted:8.2f} s, measured "
                    f"{row.measured:8.2f} s, ratio {row.ratio:.2f}, load {os.getloadavg()[0]:.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
