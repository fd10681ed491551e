"""What each experiment trains: within its bounds of compute, on the demo's grid where it says so."""

import pytest

import experiments
from configs import demo
from experiments import hoffmann2022, kaplan2020
from scaling import config, counting

LARGEST = 2.5e13  # exact training FLOPs: under 12 minutes on two quiet cores at 5e10 FLOP/s, with room for validation


def trained(sweeps: list[config.Sweep]) -> dict[config.Run, float]:
    """Every run of the sweeps once, tune stages too, with its exact FLOPs."""
    runs = {}
    for sweep in sweeps:
        points = sweep.points()
        for point in [*points, *sweep.learning_rate.tuning_points(points)]:
            run = point.run
            runs[run] = counting.flops(run.model, run.vocabulary_size, run.context, run.tokens)
    return runs


@pytest.mark.parametrize("name", ["kaplan2020", "hoffmann2022"])
def test_cpu_scale_trains_within_its_bound(name: str) -> None:
    runs = trained(experiments.find(name).sweeps("cpu"))
    total = sum(runs.values())
    assert 1e13 < total <= LARGEST
    # two workers: the longest run must not outlast the others by much
    assert max(runs.values()) < total / 4


@pytest.mark.parametrize("name", ["kaplan2020", "hoffmann2022"])
def test_test_scale_is_small(name: str) -> None:
    assert sum(trained(experiments.find(name).sweeps("test")).values()) < 5e10


@pytest.mark.parametrize("name", ["kaplan2020", "hoffmann2022"])
def test_seed_noise_can_be_measured(name: str) -> None:
    runs = trained(experiments.find(name).sweeps("cpu"))
    seeds = [run.edit({"seed": 0}) for run in runs if run.seed != 0]
    assert len(seeds) >= 2
    assert all(run in runs for run in seeds)


def test_hoffmann_trains_the_grid_of_the_demo_with_its_own_schedule() -> None:
    theirs = {(point.run.model, point.run.tokens, point.run.seed) for point in demo.sweep().points()}
    (sweep,) = hoffmann2022.sweeps("cpu")
    assert {(point.run.model, point.run.tokens, point.run.seed) for point in sweep.points()} == theirs
    assert sweep.learning_rate == demo.sweep().learning_rate


def test_hoffmann_matches_the_cosine_to_the_run_and_labels_its_budgets() -> None:
    (sweep,) = hoffmann2022.sweeps("cpu")
    budgets = {point.labels["flops_budget"] for point in sweep.points()}
    assert len(budgets) >= 4
    assert all(point.run.schedule.kind == "cosine" for point in sweep.points())


def test_kaplan_holds_length_warm_up_and_batch_fixed() -> None:
    main, lstm, *limited = kaplan2020.sweeps("cpu")
    runs = [point.run for sweep in (main, lstm) for point in sweep.points()]
    assert {run.model.kind for run in runs} == {"transformer", "lstm"}
    assert len({(run.tokens, run.batch_tokens, run.schedule) for run in runs}) == 1
    assert runs[0].schedule.floor == 0.0
    assert len(limited) >= 3


def test_kaplan_compares_families_over_the_same_sizes() -> None:
    main, lstm, *_ = kaplan2020.sweeps("cpu")
    sizes = []
    for sweep in (main, lstm):
        runs = [point.run for point in sweep.points()]
        sizes.append([counting.params_non_embedding(run.model, 256, run.context) for run in runs])
    assert min(sizes[0]) < min(sizes[1])
    assert max(sizes[1]) < max(sizes[0])


def test_kaplan_limits_data_to_a_part_of_what_is_trained_on() -> None:
    _, _, *limited = kaplan2020.sweeps("cpu")
    for sweep in limited:
        run = sweep.base
        assert run.data.train_tokens is not None
        assert run.data.train_tokens * 2 <= run.tokens
        assert run.data.train_tokens >= run.batch_tokens
