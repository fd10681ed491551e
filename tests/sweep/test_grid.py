"""The algebra of sweeps: product, zip and chain, ladders, budgets reached by exact count."""

import math
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from scaling import config, counting
from scaling.config import families, grids, optimizers

Make = Callable[..., config.Run]

AXES = st.sampled_from(
    [
        grids.Axis(field="seed", values=(1, 2, 3)),
        grids.Axis(field="clip", values=(1.0, None)),
        grids.Axis(field="z_loss", values=(0.5,)),
        grids.Axis(field="optimizer.learning_rate", values=(0.1, 0.2)),
    ]
)


def start(run: config.Run) -> grids.Point:
    return grids.Point(run, {"role": "single"})


def runs(of: grids.Grid, run: config.Run) -> list[config.Run]:
    return [point.run for point in of.expand(start(run))]


def sizes(*widths: int) -> grids.Ladder:
    return grids.Ladder(sizes=tuple(grids.Size(width=width, depth=1, heads=2) for width in widths))


def exact(run: config.Run) -> float:
    return counting.flops(run.model, run.vocabulary_size, run.context, run.tokens)


@hypothesis.given(a=AXES, b=AXES, c=AXES)
@hypothesis.settings(max_examples=40, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_product_and_chain_obey_their_algebra(make_run: Make, a: grids.Axis, b: grids.Axis, c: grids.Axis) -> None:
    run = make_run()
    product, chain = (lambda *p: grids.Product(parts=p)), (lambda *p: grids.Chain(parts=p))
    assert len(runs(product(a, b), run)) == len(a.values) * len(b.values)
    assert len(runs(chain(a, b), run)) == len(a.values) + len(b.values)
    assert runs(product(a, grids.Single()), run) == runs(product(grids.Single(), a), run) == runs(a, run)
    assert runs(product(product(a, b), c), run) == runs(product(a, product(b, c)), run) == runs(product(a, b, c), run)
    assert runs(chain(chain(a, b), c), run) == runs(chain(a, chain(b, c)), run)
    assert runs(product(chain(a, b), c), run) == runs(chain(product(a, c), product(b, c)), run)


def test_the_first_part_of_a_product_is_the_slowest(make_run: Make) -> None:
    parts = (grids.Axis(field="seed", values=(1, 2)), grids.Axis(field="clip", values=(1.0, 2.0)))
    made = runs(grids.Product(parts=parts), make_run())
    assert [(run.seed, run.clip) for run in made] == [(1, 1.0), (1, 2.0), (2, 1.0), (2, 2.0)]


def test_a_later_part_sees_what_the_earlier_made(make_run: Make) -> None:
    bigger = grids.Axis(field="batch_size", values=(4,))
    budget = grids.IsoToken(tokens=(1000,), sizes=sizes(8))
    (run,) = runs(grids.Product(parts=(bigger, budget)), make_run())
    assert run.tokens == round(1000 / 64) * 64


def test_zipped_fields_change_together(make_run: Make) -> None:
    fields = {"model.width": (15, 20), "model.heads": (3, 5), "model.position": ("none", "none")}
    both = grids.Zip(parts=tuple(grids.Axis(field=field, values=values) for field, values in fields.items()))
    made = [run.model.model_dump() for run in runs(both, make_run())]
    assert [(model["width"], model["heads"]) for model in made] == [(15, 3), (20, 5)]
    with pytest.raises(ValueError, match=r"equally long, not \{'seed': 2, 'clip': 1\}"):
        grids.Zip(parts=(grids.Axis(field="seed", values=(1, 2)), grids.Axis(field="clip", values=(1.0,))))


@pytest.mark.parametrize("empty", [{"kind": "axis", "field": "seed", "values": []}, {"kind": "chain", "parts": []},
                                   {"kind": "ladder", "sizes": []}])  # fmt: skip
def test_an_empty_grid_is_refused(empty: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least 1 item"):
        grids.Grid.model_validate(empty)


def test_an_axis_over_a_field_that_is_not_there_is_refused(make_run: Make) -> None:
    with pytest.raises(ValueError, match="did you mean 'seed'"):
        runs(grids.Axis(field="sed", values=(1,)), make_run())


def test_a_ladder_follows_its_rule() -> None:
    made = grids.ladder([16, 64, 96, 160], aspect=32, head_size=16)
    assert [(s.width, s.depth, s.heads) for s in made.sizes] == [(16, 1, 1), (64, 2, 4), (96, 3, 6), (160, 5, 10)]
    assert [s.heads for s in grids.ladder([16, 64], aspect=32).sizes] == [None, None]
    with pytest.raises(ValueError, match="head size 16 does not divide width 40; use width 32 or another head size"):
        grids.ladder([40], aspect=32, head_size=16)


def test_a_ladder_resizes_the_model_and_nothing_else(make_run: Make) -> None:
    run = make_run(model=families.Transformer.modern(width=48, depth=2, heads=4).model_dump(), seed=5)
    made = runs(grids.Ladder(sizes=(grids.Size(width=96, depth=3, heads=6), grids.Size(width=24, depth=1))), run)
    assert [each.model for each in made] == [
        families.Transformer.modern(width=96, depth=3, heads=6),
        families.Transformer.modern(width=24, depth=1, heads=4),
    ]
    assert all(each.edit({"model": run.model}) == run for each in made)


@hypothesis.given(
    budgets=st.lists(st.floats(3e7, 1e13), min_size=1, max_size=3),
    widths=st.lists(st.sampled_from([8, 16, 24, 32, 64]), min_size=1, max_size=4, unique=True),
)
@hypothesis.settings(max_examples=30, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_a_budget_is_reached_to_half_a_batch_by_exact_count(
    make_run: Make, budgets: list[float], widths: list[int]
) -> None:
    points = grids.IsoFlop(budgets=tuple(budgets), sizes=sizes(*widths)).expand(start(make_run()))
    assert len(points) == len(budgets) * len(widths)
    for point in points:
        batch = exact(point.run) / point.run.steps
        assert abs(exact(point.run) - float(point.labels["flops_budget"])) <= batch / 2 * (1 + 1e-9)
        assert point.labels["role"] == "single"


def test_a_budget_that_buys_no_batch_is_refused(make_run: Make) -> None:
    with pytest.raises(ValueError, match="buy less than one batch of 32 tokens"):
        grids.IsoFlop(budgets=(1e3,), sizes=sizes(8)).expand(start(make_run()))


def test_each_budget_takes_the_sizes_around_its_expected_minimum(make_run: Make) -> None:
    widths, ratio = (8, 16, 24, 32, 48, 64, 96), 20.0
    centred = grids.IsoFlop(budgets=(1e9, 1e11), sizes=sizes(*widths), per_budget=3, tokens_per_param=ratio)
    every = grids.IsoFlop(budgets=(1e9, 1e11), sizes=sizes(*widths))

    def far(point: grids.Point) -> float:
        run = point.run
        params = counting.params_non_embedding(run.model, run.vocabulary_size, run.context)
        return abs(math.log(run.tokens / params / ratio))

    chosen, candidates = centred.expand(start(make_run())), every.expand(start(make_run()))
    for budget in (1e9, 1e11):
        mine = [point for point in chosen if point.labels["flops_budget"] == budget]
        others = [p for p in candidates if p.labels["flops_budget"] == budget and p not in mine]
        assert len(mine) == 3
        assert max(map(far, mine)) <= min(map(far, others))
        assert [p.run.model.width for p in mine] == sorted(p.run.model.width for p in mine)
    assert max(p.run.model.width for p in chosen[:3]) < max(p.run.model.width for p in chosen[3:])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"per_budget": 2}, "go together"),
        ({"tokens_per_param": 20.0}, "go together"),
        ({"per_budget": 3, "tokens_per_param": 20.0}, "per_budget is 3 but the ladder has 2 sizes"),
        ({"budgets": ()}, "at least 1 item"),
        ({"budgets": (-1.0,)}, "greater than 0"),
    ],
)
def test_an_isoflop_grid_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grids.IsoFlop(**{"budgets": (1e9,), "sizes": sizes(8, 16), **fields})


def test_an_isotoken_grid_trains_each_size_on_each_number_of_whole_batches(make_run: Make) -> None:
    made = runs(grids.IsoToken(tokens=(330, 1000), sizes=sizes(8, 16)), make_run())
    assert [(run.model.width, run.tokens) for run in made] == [(8, 320), (16, 320), (8, 992), (16, 992)]
    with pytest.raises(ValueError, match="31 tokens are fewer than a batch of 32"):
        runs(grids.IsoToken(tokens=(31,), sizes=sizes(8)), make_run())


def test_labels_are_added_and_change_no_run(make_run: Make) -> None:
    point = start(make_run()).edit({"seed": 2}, {"flops_budget": 1.0})
    assert point.labels == {"role": "single", "flops_budget": 1.0}
    assert point.run == make_run(seed=2)


def test_a_grid_survives_json(make_run: Make) -> None:
    whole = grids.Product(
        parts=(
            grids.Chain(
                parts=(
                    grids.IsoFlop(budgets=(1e9,), sizes=sizes(8, 16)),
                    grids.IsoToken(tokens=(640,), sizes=sizes(24)),
                )
            ),
            grids.Zip(parts=(grids.Axis(field="optimizer", values=(optimizers.Lion(learning_rate=1e-3),)),)),
        )
    )
    again = grids.Grid.from_json(whole.to_json())
    assert runs(again, make_run()) == runs(whole, make_run())
    assert len(runs(whole, make_run())) == 3
