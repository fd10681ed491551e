"""How long runs take: exact FLOPs over a rate that depends on the size of a step. No JAX here.

Small models reach far less of a device than large ones, since a step has costs that do not shrink with it. Where a
store has runs of the device their rates are interpolated, log rate in log FLOPs of a step, the nearest beyond; where it
has none, those of a table of shares of the peak. Seconds are those of training without compiling, of one worker, and of
a run's share where it trains in a pack.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

from scaling import config, counting, devices, store
from scaling.planning import packing
from scaling.store import record

Points = tuple[tuple[float, float], ...]

# Share of a core's matrix product (NumPy, float32) by the FLOPs of a step: below 1e9 the 120 runs of `benchmarks.sweep
# --steps 600` by two workers of a core each, above it `benchmarks.train_step` on two cores of the same machine.
CPU_SHARES: Points = ((3e7, 0.12), (1e8, 0.2), (4e8, 0.34), (1e9, 0.37), (2e11, 0.5))
# Accelerators: guesses. A large step reaches a third of the peak; a step is hundreds of kernels of microseconds each.
ACCELERATOR_SHARE = 0.35
ACCELERATOR_SECONDS = 1e-3
READ_RUNS = 1000  # as many as are read to say how fast runs of a store are


@dataclasses.dataclass(frozen=True)
class Rates:
    """FLOP/s of training on a device by the FLOPs of a step, and where they are from.

    `points` ascend; they are kept by precision of the runs, and under "" for all of them. `alone` says that they are
    those of runs that are not packed.
    """

    device: str
    source: str
    points: Mapping[str, Points]
    alone: bool = False

    def of(self, run: config.Run, execution: config.Execution) -> float:
        """FLOP/s to expect of a run: in a pack the rate of the pack."""
        step = counting.flops_per_token(run.model, run.vocabulary_size, run.context) * run.batch_tokens
        if self.alone:
            step *= packing.most(run, execution, self.device, memory=0.0, limit=None)
        return interpolated(self.points.get(record.precision(run.precision), self.points[""]), step)


def interpolated(points: Sequence[tuple[float, float]], at: float) -> float:
    """The line through the logarithms of points with ascending first coordinates; the nearest point's value beyond."""
    if at <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if at <= x1:
            return y0 * (y1 / y0) ** (math.log(at / x0) / math.log(x1 / x0))
    return points[-1][1]


def rates(device: str, results: store.Store | None) -> Rates:
    """The rates of a named device: "cpu", or a part of an accelerator's name.

    Raises ValueError for a device without runs in the store that the table of peaks does not know.
    """
    device_rates = rates_if_known(device, results)
    if device_rates is None:
        known = ", ".join(name for name, _ in devices.PEAK_FLOPS)
        raise ValueError(f"no peak rate is known for device {device!r}; use cpu or one of: {known}")
    return device_rates


def rates_if_known(device: str, results: store.Store | None) -> Rates | None:
    """The rates of a named device, None where nothing is known of it."""
    points, count = measured(device, results) if results is not None else ({}, 0)
    if points:
        sizes = len(points[""])
        return Rates(device, f"measured on {count} runs of this store, {sizes} sizes of step", points)
    if device == "cpu":
        peak = devices.measured_cpu_flops() / len(devices.cores())
        source = f"tabulated, up to {CPU_SHARES[-1][1]:.0%} of {peak / 1e9:.0f} GFLOP/s a core, a matrix product here"
        return Rates(device, source, {"": tuple((step, share * peak) for step, share in CPU_SHARES)}, alone=True)
    known = devices.peak_flops(device)
    if known is None:
        return None
    source = (
        f"assumed, up to {ACCELERATOR_SHARE:.0%} of a peak of {known / 1e12:.0f} TFLOP/s and at least "
        f"{ACCELERATOR_SECONDS * 1e3:.0f} ms a step"
    )
    steps = [10.0**exponent for exponent in range(5, 19)]
    rates = ((step, step / (step / (ACCELERATOR_SHARE * known) + ACCELERATOR_SECONDS)) for step in steps)
    return Rates(device, source, {"": tuple(rates)}, alone=True)


def measured(device: str, results: store.Store) -> tuple[dict[str, Points], int]:
    """The points of `Rates` from results on devices named like `device`, and how many results there were.

    Runs whose steps are of one size make one point: their work over their seconds. Diverged runs and trunks count.
    """
    sums: dict[str, dict[float, list[float]]] = collections.defaultdict(lambda: collections.defaultdict(lambda: [0, 0]))
    evaluations: dict[str, int] = {}
    sweeps, count = results.sweeps(), 0
    for run_id in results.run_ids()[:READ_RUNS]:
        try:
            row = results.result(run_id)
            if row is None or not row["device"] or device.lower() not in row["device"].lower() or not row["seconds"]:
                continue
            name = row["sweep"]
            if name not in evaluations:
                evaluations[name] = results.sweep(name)["config"]["execution"]["evaluations"] if name in sweeps else 1
            run, _ = record.read(results.config(run_id))
        except ValueError:  # a damaged run of any sweep: those who read it say so, an estimate does without
            continue
        times = validations(evaluations[name], row["flops_spent"] / row["flops"], row["status"] == "finished")
        forward = counting.passes(run.model, run.vocabulary_size, run.context).forward
        work = row["flops_spent"] + times * run.data.validation_positions(run.context) * forward
        if not work:
            continue
        count += 1
        for key in (row["precision"], ""):
            place = sums[key][row["flops"] / row["tokens"] * row["batch_tokens"]]
            place[0] += work
            place[1] += row["seconds"]
    points = {key: tuple((step, w / s) for step, (w, s) in sorted(sizes.items())) for key, sizes in sums.items()}
    return points, count


def work(run: config.Run, execution: config.Execution, flops_spent: float) -> float:
    """FLOPs of training a run, of which `flops_spent` are its own steps', with those of its validations."""
    passes = counting.passes(run.model, run.vocabulary_size, run.context)
    times = validations(execution.evaluations, flops_spent / (passes.total * run.tokens), True)
    return flops_spent + times * run.data.validation_positions(run.context) * passes.forward


def validations(evaluations: int, share: float, finished: bool) -> int:
    """How many of a run's equally spaced validations fall into a share of its steps; a finished run had its last."""
    return max(1, round(evaluations * share)) if finished else int(evaluations * share)
