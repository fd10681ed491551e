"""Kaplan et al. 2020, arXiv 2001.08361: loss as a power law in parameters, data and compute, by their recipe.

GPT-2 style transformers, every run of one length with a fixed warm-up and a cosine to zero; compute-optimal sizes are
read off the learning curves, as in their section 3.3: Hoffmann et al. 2203.15556 explain what that does to N*.
"""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import axes as mpl_axes
from matplotlib import figure

import analysis
from analysis import axes, errors, fitting, frontiers, uncertainty
from experiments import panels, papers
from scaling import config, parametrization
from scaling.config import families, grids, optimizers, rates, schedules, sources, tokenizers

NAME = "kaplan2020"
KAPLAN = "arXiv 2001.08361"
BUDGETS = 9  # iso-compute slices through the learning curves
EXACT = 1e-9  # residuals of log loss below this are rounding
FEWEST_SIZES = 4  # in a slice: a parabola has three parameters


@dataclasses.dataclass(frozen=True)
class GridScale:
    """How large the experiment is: sizes as (width, depth), tokens of every run, and what is repeated or limited."""

    source: sources.Source
    validation_tokens: int
    context: int
    batch_size: int
    tokens: int
    warmup_tokens: int
    evaluations: int
    head_size: int
    sizes: tuple[tuple[int, int], ...]
    twice: tuple[tuple[int, int], ...]  # sizes with a second seed
    lstm_widths: tuple[int, ...]
    limited: tuple[int, ...]  # unique tokens of the runs that are limited by data
    middle: tuple[int, int]  # the size of the runs that data limits, and of tuning
    limited_tokens: int
    limited_evaluations: int
    tune_tokens: int | None  # None: learning rates as given


SCALES = {
    "cpu": GridScale(
        source=sources.PythonSource(), validation_tokens=65_536, context=128, batch_size=4, tokens=512 * 5_120,
        warmup_tokens=512 * 128, evaluations=20, head_size=16,
        sizes=((16, 2), (16, 4), (16, 8), (32, 2), (32, 4), (48, 2), (64, 2), (80, 3)), twice=((32, 2), (48, 2)),
        lstm_widths=(40, 56, 80), limited=(32_768, 65_536, 131_072, 262_144), middle=(48, 2),
        limited_tokens=512 * 1_536, limited_evaluations=12, tune_tokens=512 * 1_024,
    ),
    "test": GridScale(
        source=sources.Synthetic(alphabet=16, exponent=1.2, seed=0, train_symbols=40_000, validation_symbols=3_000),
        validation_tokens=2_048, context=32, batch_size=8, tokens=256 * 40, warmup_tokens=256 * 2, evaluations=10,
        head_size=8, sizes=((8, 1), (16, 1), (24, 1), (32, 1), (32, 2)), twice=((16, 1),), lstm_widths=(16,),
        limited=(512, 1_024), middle=(16, 1), limited_tokens=256 * 20, limited_evaluations=4, tune_tokens=None,
    ),
}  # fmt: skip


def sweeps(scale: str) -> list[config.Sweep]:
    """L(N) and the learning curves; LSTMs on the same text; one sweep for each amount of data that limits a model."""
    s = SCALES[scale]
    name = NAME if scale == "cpu" else f"{NAME}-{scale}"
    base = _base(s)
    execution = config.Execution(evaluations=s.evaluations, keep_last_checkpoint=False)
    main = grids.Chain(parts=(_ladder(s, s.sizes), grids.Product(parts=(_seeds(1), _ladder(s, s.twice)))))
    lstm = base.edit(
        {"model": families.Lstm(width=s.lstm_widths[0], depth=1, tied=True), "parametrization.base_depth": 1}
    )
    lstm_grid = grids.Ladder(sizes=tuple(grids.Size(width=width, depth=1) for width in s.lstm_widths))
    lstm_tuned_at = grids.Ladder(sizes=lstm_grid.sizes[-2:-1] or lstm_grid.sizes)
    result = [
        config.Sweep(name=name, base=base, grid=main, learning_rate=_rule(s, _ladder(s, (s.middle,))),
                     execution=execution),
        config.Sweep(name=f"{name}.lstm", base=lstm, grid=lstm_grid, execution=execution,
                     learning_rate=_rule(s, lstm_tuned_at, middle=2.4e-2)),
    ]  # fmt: skip
    fewer = config.Execution(evaluations=s.limited_evaluations, keep_last_checkpoint=False)
    for unique in s.limited:
        limited = base.edit({"data.train_tokens": unique, "tokens": s.limited_tokens})
        runs = grids.Product(parts=(_seeds(0, 1), _ladder(s, (s.middle,))))
        result.append(config.Sweep(name=f"{name}.data{unique}", base=limited, grid=runs, execution=fewer))
    return result


def _base(s: GridScale) -> config.Run:
    width, depth = s.sizes[0]
    return config.Run(
        model=families.Transformer.gpt2(width=width, depth=depth, heads=width // s.head_size),
        parametrization=parametrization.MuP(base_width=64, base_depth=2, base_head_size=s.head_size),
        data=config.Text(source=s.source, tokenizer=tokenizers.Bytes(), validation_tokens=s.validation_tokens),
        context=s.context,
        batch_size=s.batch_size,
        tokens=s.tokens,
        optimizer=optimizers.AdamW(learning_rate=6e-3, weight_decay=0.0),
        # 3,000 steps of 2.5e5, then a cosine to zero, the same for all (Kaplan et al. 2001.08361, section 2.2)
        schedule=schedules.Cosine(warmup=schedules.WarmupTokens(tokens=s.warmup_tokens), floor=0.0),
        precision=config.Precision(compute="float32"),
        clip=1.0,
    )


def _ladder(s: GridScale, sizes: tuple[tuple[int, int], ...]) -> grids.Ladder:
    return grids.Ladder(sizes=tuple(grids.Size(width=w, depth=d, heads=w // s.head_size) for w, d in sizes))


def _seeds(*seeds: int) -> grids.Axis:
    return grids.Axis(field="seed", values=seeds)


def _rule(s: GridScale, at: grids.Ladder, middle: float = 6e-3) -> rates.Rule:
    """Five learning rates, each twice the one before, about `middle`."""
    if s.tune_tokens is None:
        return rates.AsGiven()
    around = tuple(middle * factor for factor in (0.25, 0.5, 1.0, 2.0, 4.0))
    return rates.Tuned(learning_rates=around, tokens=s.tune_tokens, at=at)


@dataclasses.dataclass(frozen=True)
class KaplanRuns:
    """The runs by what they are for, with one column `size` that tells models apart."""

    ladder: pd.DataFrame  # transformers that see each token once
    lstm: pd.DataFrame
    limited: pd.DataFrame  # transformers on few unique tokens: their best validation loss, and `unique_tokens`
    curves: pd.DataFrame  # validation losses of the ladder's runs while they train


def parts(frames: papers.Frames) -> KaplanRuns:
    """Split results by family and by whether data was limited; the early-stopped loss of those where it was."""
    runs = frames.finished.assign(size=lambda f: f["width"].astype(str) + "×" + f["depth"].astype(str))
    fresh = runs["unique_tokens"] == runs["unique_tokens"].max()
    transformer = runs["family"] == "transformer"
    limited = runs[transformer & ~fresh]
    best = frames.curves.groupby("run_id")["loss"].min()
    limited = limited.assign(loss=limited["run_id"].map(best).fillna(limited["loss"])).drop(columns="epochs")
    ladder = runs[transformer & fresh]
    curves = frames.curves[frames.curves["run_id"].isin(ladder["run_id"])]
    return KaplanRuns(ladder, runs[~transformer], limited, curves)


def slices(p: KaplanRuns, flops: str) -> pd.DataFrame:
    """Iso-compute slices through the learning curves: a row a curve and budget, log loss interpolated in log C.

    `flops` names the column that counts compute. Raises `Refused` where no budget is reached by enough sizes.
    """
    cost, rows = _curves(p, flops)
    points = []
    for budget in _budgets(cost, {run_id: row["size"] for run_id, row in rows.items()}):
        for run_id, (c, loss) in cost.items():
            if c[0] <= budget <= c[-1]:
                at = float(np.exp(np.interp(np.log(budget), np.log(c), np.log(loss))))
                tokens = budget * rows[run_id]["tokens"] / rows[run_id][flops]
                kept = {k: rows[run_id][k] for k in ("size", "seed", "params", "params_non_embedding")}
                points.append({**kept, "tokens": tokens, "flops": budget, "flops_budget": budget, "loss": at})
    return pd.DataFrame(points)


Curves = dict[str, tuple[np.ndarray, np.ndarray]]  # the compute and the loss of every evaluation, by run


def _curves(p: KaplanRuns, flops: str) -> tuple[Curves, dict[str, dict[Any, Any]]]:
    """The learning curves of the ladder over compute, and the rows of their runs; `Refused` where there are none."""
    cost: Curves = {}
    rows: dict[str, dict[Any, Any]] = {}
    for run in p.ladder.to_dict("records"):
        curve = p.curves[p.curves["run_id"] == run["run_id"]].sort_values("tokens")
        curve = curve[curve["loss"].notna()]
        if len(curve) > 1:
            cost[run["run_id"]] = curve["tokens"].to_numpy() * run[flops] / run["tokens"], curve["loss"].to_numpy()
            rows[run["run_id"]] = run
    if not cost:
        raise errors.Refused("there are no learning curves: the runs were validated at their end only; use a new store")
    return cost, rows


def _budgets(cost: Curves, size: dict[str, int]) -> np.ndarray:
    """Budgets over the range that the curves of enough sizes reach; `Refused` where there is none."""
    wide = np.geomspace(min(c[0] for c, _ in cost.values()), max(c[-1] for c, _ in cost.values()), 400)
    sizes = [len({size[i] for i, (c, _) in cost.items() if c[0] <= at <= c[-1]}) for at in wide]
    covered = wide[np.array(sizes) >= FEWEST_SIZES]
    if not len(covered):
        raise errors.Refused(f"no budget is reached by {FEWEST_SIZES} sizes; train longer, or sizes nearer together")
    return np.geomspace(covered[0], covered[-1], BUDGETS)


def frontier(sliced: pd.DataFrame, params: str = "params_non_embedding") -> frontiers.Frontier:
    """The minima of the slices and the power laws through them; its own intervals are too narrow and are not used."""
    return frontiers.frontier(sliced, 2, params=params, resamples=100)


def _loss_exponent(sliced: pd.DataFrame) -> float:
    return analysis.fit("kaplan_c", frontier(sliced).minima).params["alpha_C"]


def _size_exponent(p: KaplanRuns, params: str, flops: str) -> uncertainty.Estimate:
    return papers.jackknife(slices(p, flops), "size", lambda f: frontier(f, params).exponent_params.value)


def _parameter(law: str, frame: pd.DataFrame, name: str, **columns: Any) -> uncertainty.Estimate:
    fit = analysis.fit(law, frame, loss="loss", **columns)
    fitting.refuse_unconverged(fit)
    return uncertainty.Estimate(fit.params[name], fit.bootstrap(papers.RESAMPLES).interval(name), papers.LEVEL)


def _gap(p: KaplanRuns) -> uncertainty.Estimate:
    if not len(p.lstm):
        raise errors.Refused("no LSTM has finished")
    boot = analysis.fit("kaplan_n", p.ladder, params="params_non_embedding").bootstrap(papers.RESAMPLES)
    value = float((p.lstm["loss"] - boot.fit.predict(p.lstm)).mean())
    return uncertainty.estimate(value, p.lstm["loss"].mean() - boot.predictions(p.lstm).mean(axis=1), papers.LEVEL)


def scatter(frame: pd.DataFrame) -> float:
    """Rms residual of log loss about L(N), N with embeddings, over that without."""
    fits = [analysis.fit("kaplan_n", frame, params=name) for name in ("params", "params_non_embedding")]
    rms = [float(np.sqrt(np.mean(fit.residuals**2))) for fit in fits]
    if min(rms) < EXACT:
        raise errors.Refused("the losses lie on a power law exactly: there is no scatter to compare")
    return rms[0] / rms[1]


def analyse(frames: papers.Frames) -> papers.Findings:
    """The exponents of L(N), L(D) and L(C), N*(C) under two conventions, LSTMs, and embeddings in or out."""
    p = parts(frames)
    n = "params_non_embedding"
    rows = (
        papers.compare(
            "α_N of L(N) = (N_c/N)^α_N",
            papers.value(0.076, f"{KAPLAN}, eq. 1.1"),
            lambda: _parameter("kaplan_n", p.ladder, "alpha_N", params=n),
            "one number of tokens for all sizes leaves the largest further from convergence than theirs, which lowers "
            "ours; models 1e3 to 1e4 times smaller, far above the entropy of the text, raise it",
        ),
        papers.compare(
            "α_D of L(D) = (D_c/D)^α_D",
            papers.value(0.095, f"{KAPLAN}, eq. 1.2"),
            lambda: _parameter("kaplan_d", p.limited, "alpha_D", tokens="unique_tokens"),
            "the best validation loss of one small model on 3e4 to 3e5 unique bytes of code, without their 10% dropout "
            "(section 4.2); its size, too, limits the loss where there is more data, which lowers ours",
        ),
        papers.compare(
            "α_C of L(C) = (C_c/C)^α_C, C = 6ND, one batch size",
            papers.value(0.057, f"{KAPLAN}, table 5 (0.050 at the best batch size, eq. 1.3)"),
            lambda: papers.jackknife(slices(p, "flops_6nd"), "size", _loss_exponent),
            "little compute: losses far above the entropy of the text fall faster; a fixed warm-up takes more of the "
            "short learning curves",
        ),
        papers.compare(
            "N* ∝ C^a, non-embedding N, C = 6ND, from learning curves",
            papers.value(0.73, f"{KAPLAN}, section 6.1 and table 6"),
            lambda: _size_exponent(p, n, "flops_6nd"),
            "read, as theirs, off curves whose cosine has not ended (Hoffmann et al. 2203.15556, section 2), without "
            "the head's work (Porian et al. 2406.19146); over about a factor of ten in compute, at one batch size",
        ),
        papers.compare(
            "the same curves, counting embeddings and head",
            papers.PaperClaim("0.50; 0.53 on code", "Hoffmann et al. 2203.15556, tables 2 and A2", 0.50, 0.53),
            lambda: _size_exponent(p, "params", "flops"),
            "the distance to the row above is what the convention alone does at this scale; the schedule is still the "
            "fixed one",
        ),
        papers.compare(
            "loss of LSTM minus transformer at equal N (nats a token)",
            papers.PaperClaim("> 0", f"{KAPLAN}, figure 7 and section 3.2.1", 0.0, float("inf")),
            lambda: _gap(p),
            "the paper finds LSTMs as good early in the context and worse later in it: 128 bytes are some 30 of its "
            "tokens; the transformer's loss is read off our L(N), whose uncertainty alone is in the interval",
        ),
        papers.compare(
            "scatter about L(N): N with embeddings over N without",
            papers.PaperClaim("> 1", f"{KAPLAN}, figure 6 and section 3.2", 1.0, float("inf")),
            lambda: papers.jackknife(p.ladder, "size", scatter),
            "256 bytes make a small embedding: it is an eighth to a half of our models, but its share depends "
            "mostly on width, so the two counts differ less than theirs",
        ),
    )
    fresh = p.ladder["tokens"] / p.ladder["params_non_embedding"] if len(p.ladder) else pd.Series([np.nan])
    notes = (
        analysis.seed_noise(frames.finished[frames.finished["run_id"].isin(p.ladder["run_id"])]).message,
        f"L(N): every size saw {fresh.min():.3g} to {fresh.max():.3g} tokens a non-embedding parameter.",
        "Intervals: resampled runs for L(N), L(D) and the LSTMs; the jackknife over sizes for what is read off "
        "learning curves, whose points are no independent runs.",
        "Runs limited by data have the learning rate as given, the middle of the grid that was tuned over.",
    )
    return papers.Findings(rows, tuple(_drawings(p, rows)), notes)


def _drawings(p: KaplanRuns, rows: tuple[papers.PaperComparison, ...]) -> list[papers.Drawing]:
    captions = {
        "power_laws": "After figure 1 of the paper: validation loss against compute (learning curves by size, minima "
        "of iso-compute slices as rings), against unique data, and against parameters at the end of training.",
        "optimum": "After figures 14 and 7: the size that is best at a budget, and LSTMs beside transformers.",
        "embeddings": "After figure 6: the same losses over parameters with embeddings (left) and without (right).",
    }
    figures = {"power_laws": _power_laws(p), "optimum": _optimum(p, rows), "embeddings": _embeddings(p)}
    return [papers.Drawing(name, captions[name], drawn) for name, drawn in figures.items()]


def _law(panel: mpl_axes.Axes, law: str, frame: pd.DataFrame, column: str, equation: str, label: str = "") -> None:
    """The law through the points of a panel, with its exponent, or why there is none."""
    try:
        named: dict[str, Any] = {analysis.LAWS[law].inputs[0]: column}
        fit = analysis.fit(law, frame, loss="loss", **named)
    except errors.Refused:
        panels.power_law(panel, frame[column].to_numpy(dtype=float), None, "not enough runs for a law")
        return
    exponent = next(value for name, value in fit.params.items() if name.startswith("alpha"))
    x = frame[column].to_numpy(dtype=float)
    panels.power_law(panel, x, lambda at: fit.predict({column: at}), equation.format(exponent), label)


def _power_laws(p: KaplanRuns) -> figure.Figure:
    with axes.style():
        fig, (left, middle, right) = axes.new(3, 4.6, 4.0)
        shade = axes.shades(p.ladder["params_non_embedding"].to_numpy(dtype=float))
        panels.learning_curves(left, p.ladder, p.curves, "params_non_embedding", "flops_6nd", shade)
        axes.colorbar(fig, left, shade, "non-embedding parameters")
        left.set_xlabel("compute 6ND, non-embedding (FLOPs)")
        try:
            minima = frontier(slices(p, "flops_6nd")).minima
            left.scatter(minima["flops"], minima["loss"], s=50, facecolor="none", edgecolor=axes.ACCENT, zorder=4)
            _law(left, "kaplan_c", minima, "flops", r"$L \propto C^{{-{:.3f}}}$")
        except errors.Refused:
            pass  # the table says why
        if len(p.limited):
            d, loss = (p.limited[name].to_numpy(dtype=float) for name in ("unique_tokens", "loss"))
            panels.losses(middle, d, loss, "unique tokens")
            middle.set_ylabel("best validation loss (nats per token)")
            _law(middle, "kaplan_d", p.limited, "unique_tokens", r"$L \propto D^{{-{:.3f}}}$")
        n, loss = (p.ladder[name].to_numpy(dtype=float) for name in ("params_non_embedding", "loss"))
        panels.losses(right, n, loss, "non-embedding parameters")
        _law(right, "kaplan_n", p.ladder, "params_non_embedding", r"$L \propto N^{{-{:.3f}}}$")
        return fig


def _optimum(p: KaplanRuns, rows: tuple[papers.PaperComparison, ...]) -> figure.Figure:
    exponent = next(row.ours for row in rows if row.quantity.startswith("N*"))
    with axes.style():
        fig, drawn = axes.new(1 if exponent is None else 2, 5.0, 4.0)
        if exponent is not None:
            fitted = frontier(slices(p, "flops_6nd"))
            panels.optimum(
                drawn[0], fitted, "params", exponent, paper=0.73, band=False, name="best size, non-embedding parameters"
            )  # Kaplan et al. 2001.08361, eq. 1.7
            drawn[0].set_xlabel("compute 6ND, non-embedding (FLOPs)")
        right, n = drawn[-1], "params_non_embedding"
        both = pd.concat([p.ladder, p.lstm])
        panels.losses(right, both[n].to_numpy(dtype=float), both["loss"].to_numpy(dtype=float), "", color="none")
        right.scatter(p.ladder[n], p.ladder["loss"], s=30, color=axes.INK, zorder=3, label="transformer")
        right.scatter(p.lstm[n], p.lstm["loss"], s=36, color=axes.ACCENT, marker="s", zorder=3, label="LSTM")
        _law(right, "kaplan_n", p.ladder, n, "", "L(N) of transformers")
        right.set_xlabel("non-embedding parameters")
        right.legend(loc="upper right")
        return fig


def _embeddings(p: KaplanRuns) -> figure.Figure:
    with axes.style():
        fig, drawn = axes.new(2, 5.0, 4.0)
        depths = sorted(p.ladder["depth"].unique())
        colors = axes.PALETTE(np.linspace(0, 1, len(depths)))
        named = ("params", "parameters with embeddings"), ("params_non_embedding", "non-embedding parameters")
        for panel, (column, xlabel) in zip(drawn, named, strict=True):
            loss = p.ladder["loss"].to_numpy(dtype=float)
            panels.losses(panel, p.ladder[column].to_numpy(dtype=float), loss, xlabel, color="none")
            for depth, color in zip(depths, colors, strict=True):
                rows = p.ladder[p.ladder["depth"] == depth].sort_values(column)
                panel.plot(rows[column], rows["loss"], "o-", ms=5, lw=1, color=color, label=f"{depth} layers")
            _law(panel, "kaplan_n", p.ladder, column, "")
            panel.legend(loc="upper right")
        return fig


PAPER = papers.Paper(
    title="Scaling Laws for Neural Language Models, at the scale of a laptop",
    source="Kaplan et al. 2020, arXiv 2001.08361",
    scales=tuple(SCALES),
    sweeps=sweeps,
    analyse=analyse,
    differs=(
        "Scale: 6e3 to 2.3e5 non-embedding parameters and 2.6e6 tokens a run here; 768 to 1.5e9 parameters and 1.3e11 "
        "tokens there (Kaplan et al. 2001.08361, sections 3 and 2.2: 2.5e5 steps of 512 × 1,024 tokens).",
        "Text: bytes of the Python standard library's source, context 128; subwords of WebText2, context 1,024 there. "
        "A byte carries fewer nats, so losses and the scales N_c, D_c, C_c are not comparable; exponents have no unit.",
        "Recipe as theirs: GPT-2 style transformer, Adam, every run of one length, one batch size, a fixed warm-up and "
        "a cosine to zero (section 2.2). Ours: warm-up 2.5% of the run (theirs 1.2%), batch 512 tokens, the learning "
        "rate tuned at one size and carried over by µP, where theirs follows a rule in N (appendix D.6).",
        "N*(C) and L(C) are read off learning curves and not corrected to the critical batch size (their section 5).",
    ),
)
