"""That no factorisation of the devices changes a loss, and that no device holds or is sent more than its share.

Devices are forced host devices, each number of them in a process of its own.
"""

import functools
import itertools
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from scaling import config
from tests import on_devices

Make = Callable[..., config.Run]

GROUPED = {"model.width": 32, "model.heads": 4, "model.kv_heads": 2, "model.depth": 2, "batch_size": 8, "clip": 1.0}
BFLOAT16 = {**GROUPED, "precision.compute": "bfloat16"}
LSTM = {"model": {"kind": "lstm", "width": 16, "depth": 1}, "batch_size": 8, "clip": 1.0}
KINDS = {"grouped": GROUPED, "bfloat16": BFLOAT16, "lstm": LSTM}

# By number of devices: what is trained, on which mesh, with what else; the first of each kind is the reference.
SPREAD: dict[int, list[tuple[str, dict[str, int], dict[str, Any]]]] = {
    1: [("grouped", {}, {}), ("bfloat16", {}, {}), ("lstm", {}, {})],
    4: [("grouped", {"fsdp": 2, "tensor": 2}, {"microbatch": 4}), ("lstm", {"data": 2, "tensor": 2}, {})],
    8: [("bfloat16", {"data": 2, "fsdp": 2, "tensor": 2}, {"remat": "dots"})],
}
PACK = {"grouped": 2}


def cases(tiny: Make, plan: list[tuple[str, dict[str, int], dict[str, Any]]]) -> list[dict[str, Any]]:
    return [
        {
            "run": config.Run.edit(tiny(), KINDS[kind]).model_dump(mode="json"),
            "execution": {"mesh": mesh, "layers": "scan", **more},
            "members": PACK.get(kind, 1),
            "resident": kind != "lstm",
        }
        for kind, mesh, more in plan
    ]


@functools.lru_cache(maxsize=1)
def reference(tiny: Make) -> dict[str, dict[str, Any]]:
    found = on_devices.results(on_devices.start(cases(tiny, SPREAD[1]), 1))
    return {kind: one for (kind, _, _), one in zip(SPREAD[1], found, strict=True)}


def compare(tiny: Make, devices: int, plan: list[tuple[str, dict[str, int], dict[str, Any]]]) -> None:
    found = on_devices.results(on_devices.start(cases(tiny, plan), devices))
    for (kind, mesh, more), one in zip(plan, found, strict=True):
        expected, what = reference(tiny)[kind], f"{kind} on {mesh} with {more}"
        assert one["devices"] == devices
        # Only the order of sums differs. In float32 that is 1e-7 of a sum, which three steps of Adam magnify where a
        # gradient is near zero; in bfloat16 a sum now and then rounds to the next number, a part in 256 away.
        loss, norm = (2e-3, 2e-2) if kind == "bfloat16" else (1e-5, 1e-4)
        np.testing.assert_allclose(one["loss"], expected["loss"], rtol=loss, err_msg=what)
        np.testing.assert_allclose(one["validation"], expected["validation"], rtol=loss, err_msg=what)
        np.testing.assert_allclose(one["norm"], expected["norm"], rtol=norm, err_msg=what)
        # the weights are really split, not copied
        parts = mesh.get("fsdp", 1) * mesh.get("tensor", 1)
        assert one["parts"]["embedding"] == parts, what
        assert one["parts"]["layers.input" if kind == "lstm" else "layers.attention.key"] == parts, what
        assert one["consumed"], what


@pytest.mark.parametrize("devices", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_no_split_over_devices_changes_the_losses(tiny: Make, devices: int) -> None:
    compare(tiny, devices, SPREAD[devices])


def test_losses_of_a_pack_differ_by_member(tiny: Make) -> None:
    first, second = reference(tiny)["grouped"]["loss"]
    assert np.abs(np.subtract(first, second)).min() > 1e-3


def factorisations(devices: int) -> list[dict[str, int]]:
    sizes = [size for size in (1, 2, 4, 8) if devices % size == 0]
    return [
        {"data": data, "fsdp": fsdp, "tensor": tensor}
        for data, fsdp, tensor in itertools.product(sizes, repeat=3)
        if data * fsdp * tensor == devices
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("devices", [2, 4, 8])
def test_no_factorisation_changes_the_losses(tiny: Make, devices: int, kind: str) -> None:
    compare(tiny, devices, [(kind, mesh, {}) for mesh in factorisations(devices)])


# What the compiled program holds

WEIGHTS = {"model.width": 64, "model.depth": 8, "model.heads": 4, "context": 4, "data.validation_tokens": 512}
ACTIVATIONS = {"context": 32, "batch_size": 16, "data.validation_tokens": 512, "model.mlp_width": 64}
HEADS = {"context": 32, "batch_size": 8, "model.heads": 4, "model.mlp_width": 256}


@pytest.fixture(scope="module")
def programs(tiny: Make) -> dict[str, dict[str, Any]]:
    asked = {
        "weights": (WEIGHTS, {"mesh": {"fsdp": 4}, "layers": "scan"}, False),
        "activations": (ACTIVATIONS, {"mesh": {"data": 2, "fsdp": 2}}, True),
        "tensor": (HEADS, {"mesh": {"tensor": 4}}, True),
    }
    plan = []
    for changes, execution, resident in asked.values():
        run = config.Run.edit(tiny(), {"tokens": 64 * 1024, **changes}).model_dump(mode="json")
        plan.append({"run": run, "execution": execution, "resident": resident})
    found = on_devices.results(on_devices.start(plan, 4))
    return {name: one["compiled"] for name, one in zip(asked, found, strict=True)}


def test_a_device_holds_its_share_of_the_state_and_gives_all_of_it_back(programs: dict[str, dict[str, Any]]) -> None:
    """Vectors divide here too, so that only the optimizer's counter is whole; batch and rates are 1% at most."""
    found = programs["weights"]
    assert found["share"] == pytest.approx(found["state"] / 4, rel=1e-4)
    assert found["share"] <= found["arguments"] < found["share"] + 0.01 * found["state"]
    for one in programs.values():
        assert one["reused"] == one["share"]  # donated: no second copy of it


def test_weights_are_whole_only_one_layer_at_a_time(programs: dict[str, dict[str, Any]]) -> None:
    """The largest arrays are a quarter of a stack of 8 layers: no whole stack is gathered or kept for the gradient."""
    found, layer = programs["weights"], 64 * 256
    assert found["largest"] == 8 * layer // 4
    assert found["sent"]["all-gather"] == layer
    assert found["sent"]["all-reduce"] <= layer


def test_activations_stay_split_by_batch(programs: dict[str, dict[str, Any]]) -> None:
    """The largest array is a device's share of the logits; nothing is sent that is larger than a weight."""
    found, weight = programs["activations"], 256 * 16
    assert found["largest"] == 16 * 32 * 256 // 4
    assert max(found["sent"].values()) <= weight
    assert set(found["sent"]) <= {"all-gather", "all-reduce", "reduce-scatter", "all-to-all"}


def test_heads_hidden_units_and_logits_split_by_tensor(programs: dict[str, dict[str, Any]]) -> None:
    """All that is sent is as large as the features; what is 16 times as wide is not, nor is it whole anywhere."""
    found, features = programs["tensor"], 8 * 32 * 16
    assert found["largest"] == 8 * 32 * 256 // 4
    assert max(found["sent"].values()) <= features


# Several processes

TOGETHER = {"evaluations": 2, "steps_per_dispatch": 2, "keep_last_checkpoint": True, "checkpoint_seconds": 0.01}


@pytest.fixture(scope="module")
def trained(tiny: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """A run of 20 steps, whole and in two parts, by one, two and four processes over loopback, of a device each.

    The second part goes on from the checkpoint of the first, which other processes saved.
    """
    root, run = tmp_path_factory.mktemp("checkpoints"), tiny().model_dump(mode="json")

    def case(folder: str, attempts: int = 1, mesh: dict[str, int] | None = None, **more: Any) -> dict[str, Any]:
        folders = [str(root / folder / f"{attempt:06d}") for attempt in range(1, attempts + 1)]
        return {"run": run, "execution": {**TOGETHER, "mesh": mesh or {}}, "loop": True, "folders": folders, **more}

    def several(count: int, cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        each = [on_devices.results(process) for process in on_devices.start_several(list(cases.values()), count)]
        assert all(one == each[0] for one in each)  # all processes know all losses
        return dict(zip(cases, each[0], strict=True))

    def alone(cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return {name: on_devices.trained_by_the_loop(case) for name, case in cases.items()}

    found = alone({"1": case("1"), "1 →": case("1 to 2", stop_at=4)})
    halves = {"fsdp": 2}
    found |= several(4, {"4": case("4", mesh=halves), "4 →": case("4 to 2", mesh=halves, stop_at=6)})
    shutil.copytree(root / "4 to 2", root / "damaged")
    (attempt,) = (root / "damaged").iterdir()
    older, newest = sorted(attempt.iterdir(), key=lambda path: int(path.name))
    (part,) = newest.glob("state/ocdbt.process_1")
    shutil.rmtree(part)  # not all processes need it
    found["older"] = {"step": int(older.name)}
    found |= several(
        2,
        {
            "2": case("2", mesh=halves),
            "2 →": case("2 to 1", mesh=halves, stop_at=4),
            "1 → 2": case("1 to 2", 2, halves),
            "4 → 2": case("4 to 2", 2, halves),
            "damaged": case("damaged", 2, halves),
        },
    )
    return found | alone({"2 → 1": case("2 to 1", 2)})


@pytest.mark.engines
@pytest.mark.parametrize("processes", ["2", "4"])
def test_several_processes_train_and_validate_as_one(trained: dict[str, dict[str, Any]], processes: str) -> None:
    """Up to the order of float32 sums; each process reads its part of every batch and holds half of the weights."""
    one, some = trained["1"], trained[processes]
    assert (one["devices"], some["devices"]) == (1, int(processes))
    assert (one["status"], some["status"], len(some["loss"])) == ("finished", "finished", 20)
    print(f"{processes} processes: losses differ by {np.max(np.abs(np.divide(some['loss'], one['loss']) - 1)):.1e}")
    np.testing.assert_allclose(some["loss"], one["loss"], rtol=1e-6)
    np.testing.assert_allclose(some["validation"], one["validation"], rtol=1e-6)


@pytest.mark.engines
@pytest.mark.parametrize("change", ["4 → 2", "2 → 1", "1 → 2"])
def test_a_run_goes_on_with_other_processes_than_those_that_saved_it(
    trained: dict[str, dict[str, Any]], change: str
) -> None:
    """The position in the data is a number of steps, and a checkpoint that of no device."""
    one, first, second = trained["1"], trained[change[:3]], trained[change]
    assert (first["status"], second["status"]) == ("stopped", "finished")
    assert 4 <= first["step"] <= 14
    assert len(second["loss"]) == 20 - first["step"]
    np.testing.assert_allclose(second["loss"], one["loss"][first["step"] :], rtol=1e-6)
    np.testing.assert_allclose(second["validation"], one["validation"], rtol=1e-6)


@pytest.mark.engines
def test_a_checkpoint_that_one_process_cannot_read_gives_way_to_the_one_before_in_all(
    trained: dict[str, dict[str, Any]],
) -> None:
    one, second, step = trained["1"], trained["damaged"], trained["older"]["step"]
    assert 0 < step < trained["4 →"]["step"]
    np.testing.assert_allclose(second["loss"], one["loss"][step:], rtol=1e-6)
