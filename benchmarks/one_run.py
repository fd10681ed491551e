"""Train one run as a public codebase does, a process of its own: the baseline of `benchmarks.sweep`.

    python -m benchmarks.one_run RUN.json FOLDER

trains the run of the JSON file by our loop, with its checkpoints and validation as usual, and prints one JSON object,
its last line. All cores, and nothing that the sweeper's workers are started with.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from scaling import config
from scaling.data import corpus
from scaling.storage import atomic
from scaling.training import loop


class Record:
    """Keeps metrics as JSON lines in a file, and how long each validation took."""

    def __init__(self, path: Path):
        self.path = path
        self.last = time.perf_counter()
        self.validating = 0.0

    def __call__(self, rows: list[dict[str, Any]]) -> None:
        atomic.append_lines(self.path, rows)
        now = time.perf_counter()
        if rows and rows[0]["kind"] == "validation":  # the metrics of the steps before it were recorded as it began
            self.validating += now - self.last
        self.last = now


def main(run_file: Path, folder: Path) -> None:
    """Train; `training` are the seconds of steps: without imports, compiling, validation and the writing of the end."""
    run = config.Run.from_json(run_file.read_text())
    prepared = corpus.prepare(run.data, lambda line: None)
    record = Record(folder / "metrics.jsonl")
    member = loop.TrainingRun(run, [folder / "checkpoints"], record, stop=lambda: False)
    (outcome,) = loop.train([member], config.Execution(), prepared)
    answer = {
        "run_id": run.run_id(prepared.data_sha256), "status": outcome.status, "loss": outcome.loss,
        "loss_se": outcome.loss_se, "steps": outcome.step, "training": outcome.seconds - record.validating,
    }  # fmt: skip
    print(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
