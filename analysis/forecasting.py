"""Forecasts of one curve y(x), such as a loss over the tokens seen: `forecast` and its result `Forecast`.

Which law a curve follows is not known beforehand, and a law that fits best need not forecast best (Alabdulmohsin et al.
2022, arXiv 2209.06640). So every law is fitted with several memories to several beginnings of the curve, each predicts
the points that follow, and the forecast is the average of log y over them with shares that fall with those errors
(`analysis.ensembles`). The same errors, growing with the distance in log x, and a share of the predicted change make
the interval. Laws, memories and constants were chosen by back-tests inside the points to be fitted of 20 public curves
(the same paper's language tasks), M1, the shares and FORM at the far ends of public curves of six sources
(`benchmarks.extrapolation --far`): in 270 forecasts of the last point from up to 1/2, 1/3 or 1/10 of its x, the 95%
interval holds it in 97%; in the 55 of training runs cut at 1/3, with one back-test each, in 95%.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
from jaxtyping import Float

from analysis import checks, ensembles, errors, shapes
from analysis import laws as catalogue
from analysis.forms import Law

LAWS = ("m1", "m2", "m3")  # M1 is a limit of both, but a short curve does not say that it has no offset
MEMORIES = (0.5, 1.0, 2.0, np.inf)  # e-folds of x
HORIZON = 2.0
POINTS = 8  # least number of distinct x
NEAR = 0.1  # a back-test's squared error grows as NEAR + log(x / x_end), like a random walk's; fitted to no table
FORM = 0.075  # deviation of a predicted change of log y, as a share of it; `benchmarks.extrapolation --far --choose`
POOR = 0.8  # a forecast that misses back-tests by more than this share of what y changed there is hardly one
FREEDOM = 2.0  # least degrees of freedom of the interval


@dataclasses.dataclass(frozen=True, eq=False)
class Forecast:
    """A curve's forecast: an average of laws, with what each of them was worth on the curve itself.

    `weights` are the members' shares, by law and memory (a fit with memory m counts a point e times less for every m
    e-folds of x before the end). `error` is the root mean squared error of log y of the forecast in its back-tests,
    where the shares come from the other back-tests; `noise` the deviation of log y between neighbouring points (or
    between repeats at one x), a floor under any error. `backtests` has a row an end: the points that were predicted
    from there, the forecast's error, and each member's; `reach` is how many times its end the farthest back-test goes.
    `points` are the measurements.
    """

    x: str
    y: str
    points: pd.DataFrame
    horizon: float
    weights: pd.Series
    error: float
    noise: float
    backtests: pd.DataFrame
    warnings: tuple[str, ...]
    tracks: ensembles.Tracks
    growth: float
    freedom: float
    residual: float
    reach: float

    def predict(self, at: pd.DataFrame | Mapping[str, Any]) -> np.ndarray:
        """y at the column `x` of `at`, in the units of the measurements. Raises ValueError where it is missing."""
        at_x = self._at(at)
        return np.asarray(np.exp(self._centre(at_x.ravel())[0]).reshape(at_x.shape))

    def predict_interval(
        self, at: pd.DataFrame | Mapping[str, Any], level: float = 0.95
    ) -> tuple[np.ndarray, np.ndarray]:
        """Low and high of a measurement of y at `at`.

        log y is taken as Student-t around the forecast, with as many degrees of freedom as there are back-tests (by
        their weights), and the variance max(g (NEAR + h), r²) + s² + (FORM f)²: h = log(x / x_end) at or beyond the
        end, g what back-tests have of squared error per unit of it, r the residual of the fit near the end, s the
        members' own disagreement at x, f how far log y is predicted to move from the end to x. Back-tests say what the
        laws missed within their reach; beyond it none of the laws need hold, and the longer the predicted way, the
        more.
        """
        checks.level(level)
        at_x = self._at(at)
        end, (centre, spread) = self.tracks.ends[:1], self._centre(at_x.ravel())
        ahead = np.maximum(np.log(at_x.ravel() / end), 0.0)
        way = np.where(ahead > 0, centre - self._centre(end)[0], 0.0)
        variance = np.maximum(self.growth * (NEAR + ahead), self.residual**2) + spread + (FORM * way) ** 2
        half = scipy.stats.t.ppf(0.5 + level / 2, self.freedom) * np.sqrt(variance)
        low, high = (np.exp(centre + side * half).reshape(at_x.shape) for side in (-1.0, 1.0))
        return low, high

    def summary(self, at: pd.DataFrame | Mapping[str, Any] | None = None) -> str:
        """First the warnings, with those of predictions at `at`; then what was averaged and why, error beside noise."""
        end, tests, first = float(self.tracks.ends[0]), self.backtests, self.points[self.x].min()
        lines = [
            *(f"warning: {warning}" for warning in (*self.warnings, *(() if at is None else self.doubts(at)))),
            f"{self.y} over {self.x}: {len(self.points)} points, {self.x} from {first:.4g} to {end:.4g}",
            f"{len(tests)} back-tests from {self.x} = {tests['end'].min():.4g} to {tests['end'].max():.4g}, each "
            f"to {self.horizon:g} times as far",
            f"error of the forecast in them {self.error:.2%} (rms of log {self.y}) beside noise of {self.noise:.2%}",
            "law, memory in e-folds: share, error in the back-tests",
        ]
        for name, share in self.weights.sort_values(ascending=False).items():
            column = label(*name)  # type: ignore[misc]
            if column in tests:
                rms = np.sqrt(np.average(tests[column] ** 2, weights=_counts(len(tests))))
                lines.append(f"  {column}: {share:.1%}, {rms:.2%}")
        return "\n".join(lines)

    def doubts(self, at: pd.DataFrame | Mapping[str, Any]) -> tuple[str, ...]:
        """A warning where `at` goes farther beyond the end than any back-test went beyond its own."""
        farthest = float(self._at(at).max() / self.tracks.ends[0])
        if farthest <= self.reach * (1 + 1e-9):
            return ()
        return (
            f"predicted to {farthest:.3g} times the largest {self.x}, back-tests reach {self.reach:.3g} times theirs: "
            "beyond that nothing was tested, and the interval grows by rule",
        )

    def _at(self, at: pd.DataFrame | Mapping[str, Any]) -> Float[np.ndarray, "..."]:
        if self.x not in at:
            raise ValueError(f"the forecast needs {self.x!r}; got {', '.join(map(str, at))}; add it")
        values = np.asarray(at[self.x], dtype=np.float64)
        if (bad := ~(np.isfinite(values) & (values > 0))).any():
            raise ValueError(f"{self.x} = {values[bad].flat[0]:g}: must be positive and finite; fix or drop it")
        return values

    def _centre(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of log y over the members at `x`."""
        share = self.weights.to_numpy()
        used = share > 0
        log_y = self.tracks.log_predictions(x, 0)[used]
        mean = share[used] @ log_y
        return mean, share[used] @ (log_y - mean) ** 2


def label(law: str, memory: float) -> str:
    """A member's column in `Forecast.backtests`."""
    return f"{law}, {memory:g}"


def forecast(
    frame: pd.DataFrame,
    x: str = "seen",
    y: str = "loss",
    *,
    laws: Sequence[str | Law] = LAWS,
    memories: Sequence[float] = MEMORIES,
    horizon: float = HORIZON,
) -> Forecast:
    """The forecast of one curve from its rows: column `y` (positive, falling: a loss, an error rate) over column `x`.

    `laws` are laws of one input, `memories` e-folds of x, `horizon` how many times the largest x the forecast is for:
    back-tests reach as far. Rows with one x and different y are repeated measurements. A curve that is not monotone is
    forecast with a warning that says where it turns. Raises `Refused` where the rows cannot carry a forecast.
    """
    forms = [catalogue.get(law) for law in laws]
    _accept(forms, memories, horizon)
    chosen = checks.runs(frame, cluster="run_id")  # a curve's points are checkpoints of one run
    checks.one_of_each(chosen.frame)
    seen, measured = (
        checks.column(chosen.frame, name, f"the forecast's {axis}") for axis, name in (("x", x), ("y", y))
    )
    order = np.argsort(seen, kind="stable")
    points = pd.DataFrame({x: seen[order], y: measured[order]})
    if points.duplicated().any():
        twice = points[points.duplicated()].iloc[0]
        raise errors.Refused(
            f"{x} = {twice[x]:g}, {y} = {twice[y]:g} is in two rows: a measurement counts once; use drop_duplicates()"
        )
    seen, measured = points[x].to_numpy(), points[y].to_numpy()
    least = max(ensembles.LEAST, 1 + max(len(form.names) for form in forms))
    needed = max(POINTS, least + 3)
    if (distinct := len(np.unique(seen))) < needed:
        raise errors.Refused(
            f"{distinct} different values of {x!r}: a forecast by {', '.join(form.name for form in forms)} needs "
            f"{needed}; add points" + (" or leave out the largest law" if needed > POINTS else "")
        )
    back = ensembles.ends(seen, horizon, least)
    if not len(back):
        raise errors.Refused(
            f"{x!r} runs from {seen.min():g} to {seen.max():g} in {distinct} steps: no back-test of a forecast to "
            f"{horizon:g} times its end fits in; add points, or pass a smaller horizon"
        )
    tracks = ensembles.train(forms, memories, seen, measured, back)
    repeats = tuple(f"left out: {reason}" for reason in checks.left_out(chosen) if checks.REPEATS in reason)
    result = _weighed(points, tracks, horizon, shapes.noise(seen, np.log(measured)))
    return dataclasses.replace(result, warnings=(*repeats, *result.warnings))


def _accept(forms: Sequence[Law], memories: Sequence[float], horizon: float) -> None:
    if not forms or not len(memories):
        raise errors.Refused("no laws or no memories: nothing to forecast with; name at least one of each")
    for form in forms:
        if len(form.inputs) != 1:
            raise errors.Refused(
                f"{form.name!r} takes {', '.join(form.inputs)}: a curve has one input; pass laws such as {LAWS}"
            )
    if names := {form.name for form in forms if sum(form.name == other.name for other in forms) > 1}:
        raise errors.Refused(f"laws names {', '.join(names)} twice; name each once")
    if not all(memory > 0 for memory in memories) or len(set(memories)) < len(memories):
        raise errors.Refused(f"memories = {tuple(memories)}: must be positive and different, in e-folds of x")
    if not 1 < horizon < np.inf:
        raise errors.Refused(f"horizon = {horizon:g}: must be over 1, how many times the largest x to forecast to")


def _counts(tests: int) -> Float[np.ndarray, " tests"]:
    return ensembles.DECAY ** np.arange(tests)


def _weighed(points: pd.DataFrame, tracks: ensembles.Tracks, horizon: float, noise: float) -> Forecast:
    """The forecast from fitted members: shares, its own error with shares from the other back-tests, the interval."""
    x, y = points.columns
    seen, log_y = points[x].to_numpy(), np.log(points[y].to_numpy())
    back = tracks.ends[1:]
    held = ensembles.held_out(seen, back, horizon)
    predicted = tracks.log_predictions(seen)
    missed = np.where(held, log_y - predicted[:, 1:], 0.0)
    each = np.sum(missed**2, axis=2) / held.sum(axis=1)
    sound = np.isfinite(predicted[:, 0]).all(axis=1) & np.isfinite(each).all(axis=1)
    if not sound.any():
        raise errors.Refused(f"no law has finite values all along {x!r}: check its units, or pass other laws")
    missed, each, fitted = missed[sound], each[sound], predicted[sound, 0]
    count = _counts(len(back))
    share = np.zeros(len(sound))
    share[sound] = ensembles.shares(each, count)
    others = ~np.eye(len(back), dtype=bool)
    own = np.stack([ensembles.shares(each[:, rest], count[rest]) @ missed[:, j] for j, rest in enumerate(others)])
    ahead = np.where(held, np.log(seen / back[:, None]), 0.0)
    mean_square, scaled = (
        np.sum(squares * held, axis=1) / held.sum(axis=1) for squares in (own**2, own**2 / (NEAR + ahead))
    )
    near = seen / tracks.ends[0]
    residual = np.sqrt(np.average((log_y - share[sound] @ fitted) ** 2, weights=near))
    index = pd.MultiIndex.from_tuples(tracks.members, names=["law", "memory"])
    table = pd.DataFrame({"end": back, "points": held.sum(axis=1), "forecast": np.sqrt(mean_square)})
    for member, errors_of in zip(np.array(tracks.members, dtype=object)[sound], np.sqrt(each), strict=True):
        table[label(*member)] = errors_of
    shape = seen, points[y].to_numpy(), noise, x, y
    error = float(np.sqrt(np.average(mean_square, weights=count)))
    warnings = [*shapes.turning(*shape), *shapes.rising(*shape)] or _poor(log_y, seen, held, count, error, y)
    if lost := [label(*member) for member, fine in zip(tracks.members, sound, strict=True) if not fine]:
        warnings.append(f"left out, not finite all along {x}: {'; '.join(lost)}")
    if len(back) < 3:
        warnings.append(f"only {len(back)} back-test{'s' * (len(back) > 1)} fit into the curve: the interval is wide")
    return Forecast(
        x=str(x),
        y=str(y),
        points=points,
        horizon=horizon,
        weights=pd.Series(share, index=index, name="share"),
        error=error,
        noise=noise,
        backtests=table,
        warnings=tuple(warnings),
        tracks=tracks,
        growth=float(np.average(scaled, weights=count)),
        freedom=max(FREEDOM, float(count.sum() ** 2 / np.sum(count**2))),
        residual=float(residual),
        reach=float(np.exp(ahead.max())),
    )


def _poor(
    log_y: np.ndarray, seen: np.ndarray, held: np.ndarray, count: np.ndarray, error: float, y_name: str
) -> list[str]:
    """A warning where the back-tests' error is as large as what y changed in them; `held` has a row a back-test."""
    first = held.argmax(axis=1)  # the first point beyond each end; `seen` ascends
    before = np.array([log_y[seen == seen[i - 1]].mean() for i in first])
    square = np.sum(np.where(held, log_y - before[:, None], 0.0) ** 2, axis=1) / held.sum(axis=1)
    change = float(np.sqrt(np.average(square, weights=count)))
    if error <= POOR * change:
        return []
    return [
        f"back-tests miss {y_name} by {error:.2%} (rms), where it changed by {change:.2%}: none of the laws follows "
        "this curve so far; use a broken law, or the points after its last bend"
    ]
