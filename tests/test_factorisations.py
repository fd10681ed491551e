"""That no factorisation of the devices changes a loss, and that no device holds or is sent more than its share.

Devices are forced host devices, each number of them in a process of its own.
"""

import functools
import itertools
import socket
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
    2: [("grouped", {"fsdp": 2}, {"microbatch": 4}), ("lstm", {"tensor": 2}, {})],
    4: [("bfloat16", {"fsdp": 2, "tensor": 2}, {"remat": "dots"}), ("lstm", {"data": 2, "fsdp": 2}, {})],
    8: [("grouped", {"data": 2, "fsdp": 2, "tensor": 2}, {}), ("bfloat16", {"tensor": 8}, {"layers": "unroll"})],
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


@pytest.mark.parametrize("devices", [2, 4, 8])
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


def test_two_processes_train_and_validate_as_one(tiny: Make) -> None:
    """Over loopback, each with a device and its half of every batch; up to the order of float32 sums."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    case = {"run": tiny().model_dump(mode="json"), "execution": {"evaluations": 2, "mesh": {"fsdp": 2}}, "loop": True}
    both = [on_devices.start([case], 1, address, "2", str(number)) for number in (0, 1)]
    first, second = (on_devices.results(process)[0] for process in both)
    alone = on_devices.trained_by_the_loop({**case, "execution": {"evaluations": 2}})
    assert first["devices"] == 2
    assert alone["devices"] == 1
    assert first == second
    assert first["status"] == "finished"
    np.testing.assert_allclose(first["loss"], alone["loss"], rtol=1e-4)
    np.testing.assert_allclose(first["validation"], alone["validation"], rtol=1e-4)
