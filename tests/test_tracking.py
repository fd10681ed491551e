"""Trackers: Weights & Biases without a network, TensorBoard's files, a tracker of one's own, and those that fail."""

import json
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydantic
import pytest

from scaling import config
from scaling.training import trackers

BLOCK = 32 * 1024
TRAIN = {"kind": "train", "step": 1, "tokens": 32, "flops": 1e3, "loss": 5.0}
VALIDATION = {
    "kind": "validation", "step": 2, "tokens": 64, "flops": 2e3, "loss": 4.5, "loss_se": 0.1, "metric/accuracy": 0.25,
}  # fmt: skip
RESULT = {"status": "finished", "reason": None, "loss": 4.5, "metric/accuracy": 0.25}
SETTINGS = {"params": 64_000, "run": {"seed": 1}}
RUN_IDS = ("0123456789abcdef", "fedcba9876543210")


def refuse(line: str) -> None:
    raise AssertionError(line)


def follow(settings: config.Tracker, folder: Path, warn: Callable[[str], None] = refuse) -> None:
    """Two runs, one after the other, each in a folder of its own."""
    recorder = trackers.Trackers([settings], warn).recorder(0)
    for run_id in RUN_IDS:
        (folder / run_id).mkdir()
        recorder.start(run_id, "transformer-64k", "demo", SETTINGS, folder / run_id)
        recorder.log([TRAIN])
        recorder.log([VALIDATION])
        recorder.finish(RESULT)


def test_no_tracker_imports_nothing_and_a_tracker_only_when_a_run_starts() -> None:
    program = """
import sys, pathlib
from scaling import config
from scaling.training import trackers
none = trackers.Trackers((), print).recorder(0)
none.start("0" * 16, "name", "group", {}, pathlib.Path("."))
none.log([])
none.finish({"status": "finished"})
for settings in (config.Wandb(), config.TensorBoard()):
    settings.build()
print([name for name in ("wandb", "tensorboardX", "jax") if name in sys.modules])
"""
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


def test_wandb_offline_keeps_config_metrics_and_result_beside_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_DIR", "WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    follow(config.Wandb(mode="offline", project="laws"), tmp_path)
    for run_id in RUN_IDS:
        records = complete(next((tmp_path / run_id).glob("wandb/offline-run-*/run-*.wandb")))
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
        assert logged[1]["validation/metric/accuracy"] == 0.25
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


@pytest.mark.parametrize("named", [False, True])
def test_tensorboard_has_scalars_by_step_and_config_and_result_as_texts(tmp_path: Path, named: bool) -> None:
    follow(config.TensorBoard(folder=tmp_path / "mine" if named else None), tmp_path)
    for run_id in RUN_IDS:
        folder = tmp_path / "mine" / "demo" / run_id if named else tmp_path / run_id / "tensorboard"
        (file,) = folder.iterdir()
        scalars, texts = events(file)
        assert scalars == {
            ("train/tokens", 1): 32.0, ("train/flops", 1): 1e3, ("train/loss", 1): 5.0,
            ("validation/tokens", 2): 64.0, ("validation/flops", 2): 2e3, ("validation/loss", 2): 4.5,
            ("validation/loss_se", 2): pytest.approx(0.1), ("validation/metric/accuracy", 2): 0.25,
            ("result/loss", 2): 4.5, ("result/metric/accuracy", 2): 0.25,
        }  # fmt: skip
        assert json.loads(texts["config/text_summary"].strip("`\n")) == {"name": "transformer-64k", **SETTINGS}
        assert json.loads(texts["result/text_summary"].strip("`\n")) == RESULT


def events(path: Path) -> tuple[dict[tuple[str, int], float], dict[str, str]]:
    """The scalars of an event file by name and step, and its texts by name.

    Records are TFRecords: a length of 8 bytes, its CRC, as many bytes of an `Event`, and their CRC.
    """
    from tensorboardX.proto import event_pb2

    data, scalars, texts = path.read_bytes(), {}, {}
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = event_pb2.Event()
        event.ParseFromString(data[12 : 12 + length])
        data = data[16 + length :]
        for value in event.summary.value:
            if value.HasField("tensor"):
                texts[value.tag] = value.tensor.string_val[0].decode()
            else:
                scalars[value.tag, event.step] = value.simple_value
    return scalars, texts


class Own(config.Tracker):
    """A tracker as a user writes it: one class, with a state of its own for each run that is followed."""

    kind: str = "own"
    place: Path
    _rows: list[str] = pydantic.PrivateAttr(default_factory=list)

    def log(self, rows: Any) -> None:
        self._rows += [f"{row['kind']} {row['step']}" for row in rows]

    def finish(self, row: Any) -> None:
        (self.place / f"{len(list(self.place.iterdir()))}.txt").write_text(f"{self._rows} {row['status']}")


def test_a_tracker_of_ones_own_is_one_class_and_each_member_of_a_pack_has_its_own(tmp_path: Path) -> None:
    settings: Any = [{"kind": "own", "place": str(tmp_path)}]
    both = trackers.Trackers([config.Tracker.model_validate(each) for each in settings], refuse)
    for place, row in enumerate((TRAIN, VALIDATION)):
        both.recorder(place).start(RUN_IDS[place], "name", "group", {}, tmp_path)
        both.recorder(place).log([row])
    for place in (0, 1):
        both.recorder(place).finish(RESULT)
    assert (tmp_path / "0.txt").read_text() == "['train 1'] finished"
    assert (tmp_path / "1.txt").read_text() == "['validation 2'] finished"


def test_a_tracker_that_fails_is_told_once_and_the_others_go_on(tmp_path: Path) -> None:
    calls: list[str] = []

    class Broken(config.Tracker):
        kind: str = "broken"

        def start(self, *_: Any) -> None:
            calls.append("start")
            raise TimeoutError("the server does not answer")

        def log(self, *_: Any) -> None:
            calls.append("log")

    told: list[str] = []
    (tmp_path / "own").mkdir()
    several = trackers.Trackers([Broken(), Own(place=tmp_path / "own")], told.append)
    for place in (0, 1, 0):
        several.recorder(place).start("0" * 16, "name", "group", {}, tmp_path)
        several.recorder(place).log([TRAIN])
        several.recorder(place).finish(RESULT)
    assert calls == ["start"]
    assert len(told) == 1
    assert "broken failed (start: TimeoutError: the server does not answer); training goes on" in told[0]
    assert len(list((tmp_path / "own").iterdir())) == 3


@pytest.mark.parametrize(
    ("tracking", "expected"),
    [
        ({"wandb": "disabled", "project": "p", "entity": None}, ()),
        ({"wandb": "offline", "project": "p", "entity": "e"}, (config.Wandb(mode="offline", project="p", entity="e"),)),
        ({"wandb": "online", "project": "scaling", "entity": None}, (config.Wandb(),)),
    ],
)
def test_a_sweep_that_was_stored_with_one_tracker_is_read_as_it_was(tiny: Any, tracking: Any, expected: Any) -> None:
    stored = json.loads(config.Sweep(name="s", base=tiny()).to_json())
    assert stored.pop("trackers") == []
    sweep = config.Sweep.from_json(json.dumps({**stored, "tracking": tracking}))
    assert sweep.trackers == expected
    assert config.Sweep.from_json(sweep.to_json()) == sweep
    with pytest.raises(ValueError, match="Sweep has no field 'tracking'; did you mean 'trackers'"):
        config.Sweep.model_validate({**stored, "tracking": tracking, "trackers": []})
