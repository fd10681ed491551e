"""Trackers: Weights & Biases without a network, and a tracker that fails."""

import json
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scaling import config
from scaling.training import tracking

BLOCK = 32 * 1024
TRAIN = {"kind": "train", "step": 1, "tokens": 32, "flops": 1e3, "loss": 5.0}
VALIDATION = {"kind": "validation", "step": 2, "tokens": 64, "flops": 2e3, "loss": 4.5, "loss_se": 0.1}


def test_disabled_tracks_nothing_and_imports_nothing() -> None:
    program = """
import sys, pathlib
from scaling import config, tracking
tracker = tracking.build(config.Tracking(), print)
tracker.start("0" * 16, "name", "group", {}, pathlib.Path("."))
tracker.log([])
tracker.finish({"status": "finished"})
print("wandb" in sys.modules)
"""
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


def test_wandb_offline_keeps_config_metrics_and_result_beside_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_DIR", "WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    told: list[str] = []
    tracker = tracking.build(config.Tracking(wandb="offline", project="laws"), told.append)
    for run_id in ("0123456789abcdef", "fedcba9876543210"):
        folder = tmp_path / run_id
        folder.mkdir()
        tracker.start(run_id, "transformer-64k", "demo", {"params": 64_000, "run": {"seed": 1}}, folder)
        tracker.log([TRAIN])
        tracker.log([VALIDATION])
        tracker.finish({"status": "finished", "reason": None, "loss": 4.5})
        assert told == []
        records = complete(next(folder.glob("wandb/offline-run-*/run-*.wandb")))
        run = next(each.run for each in records if each.WhichOneof("record_type") == "run")
        assert (run.run_id, run.run_group, run.project, run.display_name) == (run_id, "demo", "laws", "transformer-64k")
        kept = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert kept["params"] == 64_000
        rows = [each.history for each in records if each.WhichOneof("record_type") == "history"]
        logged = [
            {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row.item} for row in rows
        ]
        assert logged[0]["step"] == 1
        assert logged[0]["train/loss"] == 5.0
        assert logged[1]["validation/loss"] == 4.5
        summary = {
            item.key or item.nested_key[0]: json.loads(item.value_json)
            for each in records
            if each.WhichOneof("record_type") == "summary"
            for item in each.summary.update
        }
        assert summary["loss"] == 4.5
        assert summary["status"] == "finished"


def complete(path: Path) -> list[Any]:
    """The records of a run, once their own process has written the last one."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        records = list(read(path))
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        time.sleep(0.05)
    raise AssertionError(f"{path} has no end")


def read(path: Path) -> Iterator[Any]:
    """The records in a file of theirs: a header of 7 bytes, then LevelDB's log format (blocks of 32 KiB)."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 < len(data):
        if BLOCK - at % BLOCK < 7:  # no room for a record's header: the rest of the block is padding
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def test_a_tracker_that_fails_is_told_once_and_never_called_again(tmp_path: Path) -> None:
    calls: list[str] = []

    class Broken(tracking.Nothing):
        def start(self, *_: Any) -> None:
            calls.append("start")
            raise TimeoutError("the server does not answer")

        def log(self, *_: Any) -> None:
            calls.append("log")

    told: list[str] = []
    tracker = tracking.Guarded(Broken(), told.append)
    for _ in range(3):
        tracker.start("0" * 16, "name", "group", {}, tmp_path)
        tracker.log([TRAIN])
        tracker.finish({"status": "finished"})
    assert calls == ["start"]
    assert len(told) == 1
    assert "Broken failed (start: TimeoutError: the server does not answer); training goes on" in told[0]
