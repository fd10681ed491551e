"""The mesh: what is split over which axis, and that no split changes the losses. Devices are forced host devices."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from scaling import config, mesh
from tests import conftest

Make = Callable[..., config.Run]

TRAIN = """
import json, sys
import jax, numpy as np
from scaling import config, step
run, meshes, found = config.Run.from_json(sys.argv[1]), json.loads(sys.argv[2]), []
random = np.random.default_rng(0)
data = random.integers(1, 9, (3, run.batch_size, run.context + 1), np.int32)
from scaling import mesh as sharding
for settings in meshes:
    how = {"loss_chunk": settings.pop("loss_chunk", None), "layers": "unroll"}
    program = step.program(run, config.Execution(mesh=settings, steps_per_dispatch=3, **how))
    state = program.init(np.uint32(0), np.float32(1.0))
    place = lambda axes, array: sharding.put(program.mesh, array, axes)
    split = {name: len({str(shard.index) for shard in p.addressable_shards}) for name, p in state.params.items()}
    rates = np.full(3, 0.01, np.float32)
    asked = program.put(step.together([step.dispatch(run, data, rates, 0 * rates, 3)]))
    state, metrics = program.train(program.stack([state]), np.empty(0, np.int32), asked)
    nats = program.evaluate(state.params, place(("batch", None), data[0]))
    found.append({"loss": np.asarray(metrics.loss)[0].tolist(), "norm": np.asarray(metrics.gradient_norm)[0].tolist(),
                  "validation": float(np.asarray(nats).mean()), "split": split, "devices": jax.device_count()})
print(json.dumps(found))
"""


def trained(run: config.Run, devices: int, meshes: list[dict[str, int]]) -> list[dict[str, Any]]:
    flags = f"--xla_force_host_platform_device_count={devices} {conftest.FAST_COMPILE}"
    shown = subprocess.run(
        [sys.executable, "-c", TRAIN, run.to_json(), json.dumps(meshes)],
        capture_output=True, text=True, env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    return json.loads(shown.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def alone(tiny: Make) -> dict[str, Any]:
    return trained(tiny(clip=1.0), 1, [{}])[0]


@pytest.mark.parametrize(
    ("devices", "meshes"),
    [
        (2, [{"data": 2}, {"fsdp": 2}, {"tensor": 2}]),
        (4, [{}, {"data": 2, "fsdp": 2}, {"fsdp": 2, "tensor": 2}, {"data": 2, "tensor": 2, "loss_chunk": 24}]),
    ],
)
def test_no_split_over_devices_changes_the_losses(
    tiny: Make, alone: dict[str, Any], devices: int, meshes: list[dict[str, int]]
) -> None:
    """Up to the order of float32 sums."""
    for settings, found in zip(meshes, trained(tiny(clip=1.0), devices, meshes), strict=True):
        assert found["devices"] == devices
        np.testing.assert_allclose(found["loss"], alone["loss"], rtol=1e-5, err_msg=str(settings))
        np.testing.assert_allclose(found["norm"], alone["norm"], rtol=1e-4, err_msg=str(settings))
        np.testing.assert_allclose(found["validation"], alone["validation"], rtol=1e-5, err_msg=str(settings))
        parts = settings.get("fsdp", 1) * settings.get("tensor", 1)
        assert found["split"]["layers.mlp.up"] == parts  # the weights are really split, not copied
        assert found["split"]["embedding"] == parts
    assert set(alone["split"].values()) == {1}


# The table, on a mesh without devices


@pytest.fixture
def abstract() -> jax.sharding.AbstractMesh:
    return jax.sharding.AbstractMesh((2, 2, 2), mesh.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)


def spec(devices: Any, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> tuple[Any, ...]:
    return tuple(mesh.sharding(devices, shape, axes).spec)


def test_each_dimension_is_split_as_the_table_says(abstract: Any) -> None:
    assert spec(abstract, (8, 4, 6), ("embed", "heads", "head")) == ("fsdp", "tensor", None)
    assert spec(abstract, (8, 5), ("batch", None)) == (("data", "fsdp"), None)
    assert spec(abstract, (256, 8), ("vocabulary", "embed")) == ("tensor", "fsdp")


def test_a_dimension_that_does_not_divide_stays_whole(abstract: Any) -> None:
    assert spec(abstract, (257, 8), ("vocabulary", "embed")) == (None, "fsdp")
    assert spec(abstract, (8, 3, 6), ("embed", "heads", "head")) == ("fsdp", None, None)
    assert spec(abstract, (6, 5), ("batch", None)) == (None, None)  # 6 over 2 × 2


def test_layers_are_never_split(abstract: Any, tiny: Make) -> None:
    for weight in tiny(model__depth=4).weights:
        if weight.stack:
            assert mesh.weight_sharding(abstract, weight).spec[0] is None


def test_every_axis_of_every_weight_is_in_the_table_or_meant_to_be_whole(tiny: Make) -> None:
    whole = {"head", "context"}
    for model in ({"kind": "lstm", "width": 16, "depth": 1}, tiny().model, tiny(model__position="learned").model):
        axes = {axis for weight in tiny(model=model).weights for axis in weight.axes}
        assert axes - set(mesh.TABLE) <= whole


@pytest.mark.parametrize("settings", [{"data": 3}, {"fsdp": 3}, {"tensor": 2, "fsdp": 2}])
def test_a_mesh_of_more_devices_than_there_are_is_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"needs \d devices and there are 1; make fsdp × tensor a divisor of that"):
        mesh.make(config.Mesh(**settings))


def test_a_mesh_takes_all_devices() -> None:
    made = mesh.make(config.Mesh())
    assert dict(made.shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    assert mesh.batch_shards(made) == 1


def test_a_batch_that_does_not_split_is_refused(tiny: Make) -> None:
    code = (
        "import sys; from scaling import config, step\n"
        "step.program(config.Run.from_json(sys.argv[1]), config.Execution())"
    )
    flags = "--xla_force_host_platform_device_count=8"
    shown = subprocess.run(
        [sys.executable, "-c", code, tiny().to_json()],
        capture_output=True, text=True, env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert "4 sequences do not split over 8 shards (mesh data × fsdp); choose a multiple" in shown.stderr
