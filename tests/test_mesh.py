"""The mesh: what is split over which axis, and what is refused. That no split changes losses: test_factorisations."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import jax
import pytest

from scaling import config
from scaling.config import families
from scaling.training import mesh

Make = Callable[..., config.Run]

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


def stored(devices: Any, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> tuple[Any, ...]:
    return tuple(mesh.stored(devices, shape, axes).spec)


def test_what_does_not_divide_is_stored_split_along_another_dimension(abstract: Any) -> None:
    assert stored(abstract, (8, 4, 6), ("embed", "heads", "head")) == ("fsdp", "tensor", None)
    assert stored(abstract, (257, 8), ("vocabulary", "embed")) == (None, ("fsdp", "tensor"))
    assert stored(abstract, (6, 3, 8), ("embed", "heads", "head")) == ("fsdp", None, "tensor")
    assert stored(abstract, (5, 3, 8), ("embed", "heads", "head")) == (None, None, ("fsdp", "tensor"))
    assert stored(abstract, (7,), ("embed",)) == (None,)


def weight(shape: tuple[int, ...]) -> families.Weight:
    return families.Weight("output", "output", shape, ("embed", "vocabulary"))


def test_a_large_weight_that_nothing_splits_is_refused(abstract: Any) -> None:
    with pytest.raises(
        ValueError, match=r"output \(1025 × 2049\) has no dimension that divides by fsdp 2.*choose a size"
    ):
        mesh.check(abstract, [weight((1025, 2049))])
    with pytest.raises(ValueError, match="no dimension that divides by tensor 2"):
        mesh.check(abstract, [weight((1026, 2049))])  # 1026 splits once, over fsdp
    mesh.check(abstract, [weight((25, 49))])  # small enough to be whole


def test_a_large_weight_that_each_device_uses_whole_is_said(abstract: Any) -> None:
    with pytest.warns(UserWarning, match=r"vocabulary 2049 does not divide by tensor 2, so that every device gathers"):
        mesh.check(abstract, [weight((1024, 2049))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mesh.check(abstract, [weight((1024, 2048))])
        mesh.check(abstract, [families.Weight("g", "hidden", (1024, 4096), ("embed", "gates"))])


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
        "import sys; from scaling import config\nfrom scaling.training import programs\n"
        "programs.program(config.Run.from_json(sys.argv[1]), config.Execution())"
    )
    flags = "--xla_force_host_platform_device_count=8"
    shown = subprocess.run(
        [sys.executable, "-c", code, tiny().to_json()],
        capture_output=True, text=True, env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert "4 sequences do not split over 8 shards (mesh data × fsdp); choose a multiple" in shown.stderr
