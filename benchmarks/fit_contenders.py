"""One measured fit or bootstrap in a process of its own: python fit_contenders.py CONTENDER TABLE.csv SETTINGS.json.

Run by `benchmarks.fit_speed`. Peers import nothing of ours, so that this file runs in any Python that has them; what a
contender needs is imported inside it, since the imports are measured. Prints one JSON object with CPU seconds of the
process and its children: `imports` from the start of the interpreter, `work` as a list, and what was found.

Objective: Σ Huber_δ(log L_i − log f_i), δ = 1e-3, f = E + A/N^α + B/D^β, over x = (a, b, e, α, β), (A, B, E) = exp of
the first three (Hoffmann et al. 2022, arXiv 2203.15556, eq. 10 and section D.2).
"""

import itertools
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

DELTA = 1e-3
# Hoffmann et al., section D.2: α, β ∈ {0, 0.5, …, 2}, e ∈ {−1, −0.5, …, 1}, a, b ∈ {0, 5, …, 25}
EXPONENTS, OFFSETS, SCALES = [0, 0.5, 1, 1.5, 2], [-1, -0.5, 0, 0.5, 1], [0, 5, 10, 15, 20, 25]
# Every resample of Besiroglu et al. (arXiv 2404.10102, data_analysis.ipynb) starts from Hoffmann et al.'s law.
PUBLISHED = [6.0073404, 6.0179186, 0.5267228, 0.33917084, 0.2849083]


def cpu() -> float:
    """CPU seconds of this process and of its children that have ended, user and system."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call, and its result."""
    before = cpu()
    result = work()
    return cpu() - before, result


def objective(log_N: Any, log_D: Any, log_L: Any, weights: Any = None) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The objective of x, and the objective together with its analytic gradient, in few array operations."""
    import numpy as np

    def value(x: Any) -> float:
        a, b, e, alpha, beta = x
        size = np.abs(np.log(np.exp(a - alpha * log_N) + np.exp(b - beta * log_D) + np.exp(e)) - log_L)
        near = np.minimum(size, DELTA)
        losses = near * (size - 0.5 * near)
        return losses.sum() if weights is None else weights @ losses

    def both(x: Any) -> tuple[float, Any]:
        a, b, e, alpha, beta = x
        of_a, of_b, of_e = np.exp(a - alpha * log_N), np.exp(b - beta * log_D), np.exp(e)
        total = of_a + of_b + of_e
        residual = np.log(total) - log_L
        near = np.maximum(np.minimum(residual, DELTA), -DELTA)
        losses = near * (residual - 0.5 * near)
        pull = (near if weights is None else weights * near) / total
        of_a, of_b = pull * of_a, pull * of_b
        gradient = np.array([of_a.sum(), of_b.sum(), of_e * pull.sum(), -of_a @ log_N, -of_b @ log_D])
        return losses.sum() if weights is None else weights @ losses, gradient

    return value, both


def minimised(x: Any, settings: dict[str, Any], functions: tuple[Callable[..., Any], ...], method: str) -> Any:
    """scipy's minimum from x, by finite differences or by the analytic gradient."""
    from scipy import optimize

    value, both = functions
    if settings["gradient"]:
        return optimize.minimize(both, x, jac=True, method=method)
    return optimize.minimize(value, x, method=method)


def logs(path: str) -> tuple[Any, ...]:
    """log N, log D and log L of the table."""
    import numpy as np
    import pandas as pd

    return tuple(np.log(pd.read_csv(path)[name].to_numpy()) for name in ("params", "tokens", "loss"))


def recipe(path: str, settings: dict[str, Any]) -> dict[str, Any]:
    """L-BFGS-B from every start of the grid in the slice that `settings` names."""
    import numpy as np
    import pandas  # noqa: F401  the table's reader belongs to the imports
    from scipy import optimize  # noqa: F401

    imports = cpu()
    functions = objective(*logs(path))
    grid = itertools.product(SCALES, SCALES, OFFSETS, EXPONENTS, EXPONENTS)
    starts = np.array(list(grid), dtype=float)[settings["first"] :: settings["every"]]

    def work() -> tuple[float, list[float]]:
        with np.errstate(all="ignore"):
            minima = [minimised(x, settings, functions, "L-BFGS-B") for x in starts]
        best = min((result for result in minima if np.isfinite(result.fun)), key=lambda result: result.fun)
        return best.fun, best.x.tolist()

    seconds, (_, x) = timed(work)
    return {"imports": imports, "work": [seconds], "x": [x], "count": len(starts)}


def resampled(path: str, settings: dict[str, Any]) -> dict[str, Any]:
    """BFGS on every resample of the slice: `settings["draws"]` holds how often each run is drawn in each."""
    import numpy as np
    import pandas  # noqa: F401
    from scipy import optimize  # noqa: F401

    imports = cpu()
    table = logs(path)
    draws = np.load(settings["draws"])[settings["first"] : settings["stop"]]

    def work() -> list[list[float]]:
        with np.errstate(all="ignore"):
            return [
                minimised(np.array(PUBLISHED), settings, objective(*table, weights=row), "BFGS").x.tolist()
                for row in draws
            ]

    seconds, x = timed(work)
    return {"imports": imports, "work": [seconds], "x": x, "count": len(draws)}


def package(path: str, settings: dict[str, Any]) -> dict[str, Any]:
    """`chinchilla` (kyo-takano/chinchilla): its BFGS in a pool of processes, with the recipe's loss and grid."""
    import numpy as np
    import pandas as pd
    from chinchilla import Chinchilla

    imports = cpu()
    thin = settings["thin"]
    grid = {"e": OFFSETS[::thin], "a": SCALES[::thin], "b": SCALES[::thin], "alpha": EXPONENTS, "beta": EXPONENTS}

    def huber(measured: Any, predicted: Any) -> Any:
        residual = np.log(measured) - np.log(predicted)
        size = np.abs(residual)
        return np.where(size <= DELTA, 0.5 * residual**2, DELTA * (size - 0.5 * DELTA))

    with tempfile.TemporaryDirectory() as folder:
        frame = pd.read_csv(path).rename(columns={"params": "N", "tokens": "D"})
        frame.assign(C=6 * frame["N"] * frame["D"])[["C", "N", "D", "loss"]].to_csv(f"{folder}/df.csv", index=False)
        fitted = Chinchilla(folder, param_grid=grid, loss_fn=huber, log_level=60)
        seconds, _ = timed(fitted.fit)
    params = {name: float(value) for name, value in fitted.params.items()}
    x = [*(float(np.log(params[name])) for name in "ABE"), params["alpha"], params["beta"]]
    return {"imports": imports, "work": [seconds], "x": [x], "count": int(np.prod([len(v) for v in grid.values()]))}


def ours(path: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The first fit of a process, `repeats` more, and bootstraps."""
    import numpy as np
    import pandas as pd

    import analysis

    fit = analysis.fit  # imports what a fit needs
    imports = cpu()
    frame = pd.read_csv(path)
    first, fitted = timed(lambda: fit("hoffmann", frame))
    warm = [timed(lambda: fit("hoffmann", frame))[0] for _ in range(settings["repeats"])]
    answer = {"imports": imports, "work": [first], "warm": warm, "fits": fitted.starts.count}
    samples = pd.DataFrame([fitted.params])
    if settings["resamples"]:
        answer["bootstrap"], boot = timed(lambda: fitted.bootstrap(settings["resamples"], seed=settings["seed"]))
        answer["converged"] = boot.converged
        samples = pd.concat([samples, boot.samples])
    answer["x"] = np.column_stack([np.log(samples[["A", "B", "E"]]), samples[["alpha", "beta"]]]).tolist()
    return answer


CONTENDERS = {"recipe": recipe, "resampled": resampled, "package": package, "ours": ours}

if __name__ == "__main__":
    name, table, settings = sys.argv[1:]
    sys.path[0] = os.getcwd()  # `analysis` of the checkout, not the neighbours of this file
    began = time.perf_counter()
    result = CONTENDERS[name](table, json.loads(settings))
    print(json.dumps({**result, "wall": time.perf_counter() - began}))
