"""Predicted times: rates by size from results, what is assumed without any, and predictions that stay as made."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaling import config, counting, store
from scaling.config import families, grids
from scaling.planning import plan, timing
from scaling.storage import atomic
from scaling.store import record

Make = Callable[..., config.Run]
ONCE = config.Execution()


def ended(
    results: store.Store, run: config.Run, identity: Any, seconds: float, share: float = 1.0, **changes: Any
) -> None:
    """A result of a run as a worker would have published it, after a share of its steps."""
    kept = record.config_record(run, identity)
    results.add_run(kept["run_id"], kept)
    row = {"run_id": kept["run_id"], "sweep": "s", **record.columns(run, identity), "loss": 2.0, "loss_se": 0.1}
    row |= {"bits_per_byte": 2.0, "seconds": seconds, "device": "cpu", "status": "finished", "reason": None}
    row["flops_spent"] *= share
    row |= changes
    atomic.create(results.folder(kept["run_id"]) / "result.json", atomic.dumps(row))


def work_of(run: config.Run) -> float:
    """Training, and one validation forward."""
    per_token = counting.flops_per_token(run.model, 256, run.context)
    return per_token * (run.tokens + run.data.validation_tokens / 3)


class Fixed(families.Transformer):
    """A transformer that learns its head alone: a step is little more than its forward pass."""

    kind: Any = "fixed"

    def weights(self, vocabulary_size: int, context: int) -> tuple[families.Weight, ...]:
        table = super().weights(vocabulary_size, context)
        return tuple(dataclasses.replace(one, learns=one.role == "output") for one in table)


def test_a_validation_costs_the_forward_pass_of_any_family(make_run: Make) -> None:
    plain = make_run()
    fixed = plain.edit({"model": Fixed(**plain.model.model_dump(exclude={"kind"}))})
    assert counting.flops(fixed.model, 256, 16, 1.0) < counting.flops(plain.model, 256, 16, 1.0)
    forward = counting.flops(plain.model, 256, 16, plain.data.validation_tokens) / 3
    assert timing.work(fixed, ONCE, 0.0) == timing.work(plain, ONCE, 0.0) == pytest.approx(forward)


@pytest.fixture
def results(tmp_path: Path, make_run: Make) -> store.Store:
    made = store.Store(tmp_path / "store")
    made.add_sweep("s", config.Sweep(name="s", base=make_run()).model_dump(mode="json"), [])
    return made


def test_rates_are_interpolated_in_logarithms_and_the_nearest_beyond() -> None:
    points = ((1e6, 1e9), (1e8, 4e9), (1e10, 4e9))
    found = [timing.interpolated(points, at) for at in (1e3, 1e6, 1e7, 1e8, 1e9, 1e12)]
    assert found == pytest.approx([1e9, 1e9, 2e9, 4e9, 4e9, 4e9])
    assert timing.interpolated(((1e6, 3e9),), 5e7) == 3e9


def test_runs_of_one_size_count_together_diverged_ones_too(results: store.Store, make_run: Make, identity: Any) -> None:
    small, other, large = make_run(), make_run(seed=1), make_run(model__width=32)
    ended(results, small, identity, seconds=2.0)
    half = work_of(other) / 2 - counting.flops_per_token(small.model, 256, 16) * 64 / 6  # it never was validated
    ended(results, other, identity, seconds=1.0, share=0.5, status="diverged", loss=None)
    ended(results, large, identity, seconds=4.0)
    ended(results, make_run(seed=2), identity, seconds=1e-9, device="NVIDIA H100")
    ended(results, make_run(seed=3), identity, seconds=0.0)
    found = timing.rates("CPU", results)
    assert found.source == "measured on 3 runs of this store, 2 sizes of step"
    assert found.of(small, ONCE) == pytest.approx((work_of(small) + half) / 3.0)
    assert found.of(large, ONCE) == pytest.approx(work_of(large) / 4.0)
    between = found.of(make_run(model__width=16), ONCE)
    assert (
        min(found.of(small, ONCE), found.of(large, ONCE)) < between < max(found.of(small, ONCE), found.of(large, ONCE))
    )
    assert timing.work(small, ONCE, plan.flops_spent(planned(small, identity))) / found.of(
        small, ONCE
    ) == pytest.approx(3.0 * work_of(small) / (work_of(small) + half))
    assert timing.rates("H100", results).of(small, ONCE) == pytest.approx(work_of(small) * 1e9)


def planned(run: config.Run, identity: Any) -> plan.Planned:
    return plan.Planned(run, {"family": "transformer", "role": "single"}, identity, None)


def test_runs_of_the_same_precision_are_asked_first(results: store.Store, make_run: Make, identity: Any) -> None:
    half = make_run(precision__compute="bfloat16")
    ended(results, make_run(), identity, seconds=1.0)
    ended(results, half, identity, seconds=0.1)
    found = timing.rates("cpu", results)
    assert found.of(half, ONCE) == pytest.approx(10 * found.of(make_run(), ONCE))
    unknown = make_run(precision={"compute": "bfloat16", "parameters": "bfloat16"})
    assert found.of(make_run(), ONCE) < found.of(unknown, ONCE) < found.of(half, ONCE)


def test_what_is_assumed_grows_with_the_step_and_says_so(results: store.Store, make_run: Make) -> None:
    alone = config.Execution(pack=1)
    found = timing.rates("H100", results)
    assert found.source == "assumed, up to 35% of a peak of 989 TFLOP/s and at least 1 ms a step"
    small, large = make_run(), make_run(model__width=4096, model__depth=24, batch_size=512, tokens=512 * 16)
    assert found.of(large, alone) == pytest.approx(0.35 * 989e12, rel=0.05)  # a millisecond in a step of 36
    step = counting.flops_per_token(small.model, 256, 16) * small.batch_tokens
    assert found.of(small, alone) == pytest.approx(step / 1e-3, rel=1e-3)
    assert found.of(small, config.Execution(pack=8)) == pytest.approx(8 * found.of(small, alone), rel=1e-3)
    here = timing.rates("cpu", None)
    assert "a matrix product here" in here.source
    assert here.of(large, alone) == pytest.approx(0.5 / 0.12 * here.of(small, alone))
    with pytest.raises(ValueError, match="no peak rate is known for device 'abacus'; use cpu or one of: H200"):
        timing.rates("abacus", results)


def test_a_prediction_stays_as_first_made(results: store.Store, make_run: Make, identity: Any) -> None:
    sweep = config.Sweep(name="new", base=make_run(), grid=grids.Axis(field="seed", values=(0, 1)))
    made = plan.resolve(sweep, lambda data: identity, results)
    ended(results, make_run(seed=1), identity, seconds=5.0)
    rates = timing.Rates("cpu", "", {"": ((1.0, 1e6),)})
    plan.register("new", sweep, made.runs, results, rates)
    plan.register("new", sweep, made.runs, results, timing.Rates("cpu", "", {"": ((1.0, 1e7),)}))
    plan.register("new", sweep, made.runs, results)
    frame = results.runs("new").set_index("seed")
    assert frame["predicted_seconds"][0] == pytest.approx(work_of(make_run()) / 1e6)
    assert frame["predicted_seconds"].isna()[1]  # it had ended before anything was predicted
