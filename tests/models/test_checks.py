"""A family of one's own: what it may leave out, and what it is refused for before it trains."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling import config, counting
from scaling.config import families
from scaling.models import checks
from scaling.training import programs
from tests import command, extending
from tests.models import small

SEES = ("(self.count - 1, 0)", "(self.count - 2, 1)")  # one position ahead


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Imports the family of one's own from a folder outside the project, with parts of its text replaced."""
    names = []

    def imported(*changes: tuple[str, str]) -> Any:
        text = extending.FILES["convolution.py"]
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "own_family.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location("own_family", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        names.append("own_family")
        sys.modules["own_family"] = module
        spec.loader.exec_module(module)
        return module.Convolution(width=16, depth=2)

    yield imported
    for name in names:
        sys.modules.pop(name)
    families.Family.group.pop("convolution", None)


def test_a_table_and_a_module_are_a_family(load: Callable[..., Any], tiny: Callable[..., config.Run]) -> None:
    family = load()
    size = (family, small.VOCABULARY, small.CONTEXT)
    assert counting.flops_per_token(*size) == 6 * (2 * 16 * 16 + 16 * small.VOCABULARY)
    assert family.resize(32, 3, 4) == family.edit({"width": 32, "depth": 3})
    assert families.Family.model_validate(family.model_dump(mode="json")) == family
    program = programs.program(tiny(model=family), config.Execution(steps_per_dispatch=2))
    state = program.stack([program.init(np.uint32(0), np.float32(1))])
    assert set(state.params) == {weight.name for weight in family.weights(256, 16)}


PARAMETERS: dict[str, tuple[tuple[str, str], str]] = {
    "declared and not used": (
        ('self.mix = builder.param("mix")', "self.mix = None"),
        r"Convolution.weights declares 'layers.mix' and the module does not hold it; .* or take it out of the table",
    ),
    "used and not declared": (
        ('builder.param("mix")', 'builder.param("mixture")'),
        r"'layers.mixture' is not in the table of weights; add it to Convolution.weights",
    ),
    "held under another name": (
        ("self.mix", "self.mixed"),
        r"Convolution.weights declares 'layers.mix' and the module does not hold it",
    ),
    "made by hand": (
        ("self.count = taps", "self.count, self.extra = taps, type(builder.param('mix'))(jnp.ones(3))"),
        r"the module of Convolution holds 'layers.extra', which Convolution.weights does not declare; add a Weight",
    ),
    "of another shape": (
        ('self.taps = builder.param("taps")', 'self.taps = type(builder.param("taps"))(jnp.ones((2, 4)))'),
        r"holds 'layers.taps' in shape \(2, 4\) and Convolution.weights declares \(2, 4, 16\)",
    ),
}


@pytest.mark.parametrize("case", PARAMETERS)
def test_parameters_are_those_of_the_table(load: Callable[..., Any], case: str) -> None:
    change, message = PARAMETERS[case]
    family = load(change)
    with pytest.raises(ValueError, match=message):
        small.create(family)


@small.every_family
def test_the_families_are_causal(family: families.Family) -> None:
    checks.check_causal(family, small.CONTEXT, small.FAST)


class Everywhere(families.Transformer):
    """Attention to the whole sequence, in a family that says it is causal."""

    kind: Any = "everywhere"
    causal = False


@pytest.mark.parametrize("context", [2, 8, 300])
@pytest.mark.parametrize("position", ["learned", "alibi"])
def test_what_attends_to_later_tokens_is_found(position: str, context: int) -> None:
    family = Everywhere(**{**families.Transformer.gpt2(64, 3, 4).model_dump(exclude={"kind"}), "position": position})
    with pytest.raises(ValueError, match=r"Everywhere is not causal.* at position 0 change .* from position 1"):
        checks.check_causal(family, context, small.FAST)


def test_a_leak_through_what_begins_at_zero_is_found(load: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="Convolution is not causal"):
        checks.check_causal(load(SEES, ("fill=1 / self.taps", "fill=0.0")), 16, small.FAST)


def test_a_leak_is_refused_on_the_command_line_and_nothing_trains(tmp_path: Path) -> None:
    path = tmp_path / "own_family.py"
    path.write_text(extending.FILES["convolution.py"].replace(*SEES))
    shown = command.process("train", path, cwd=tmp_path)
    assert shown.code == 2, shown
    message = " ".join(shown.err.split())
    assert "Convolution is not causal: in a sequence of 32 tokens" in message
    assert "mask what mixes over time, or set causal = False" in message
    assert "Traceback" not in message
    assert "loss" not in shown.out
