"""Laws as plain functions: the inputs are positional, the parameters are keyword-only and have names and bounds.

A new law is one function and one call of `law`; nothing else has to be edited to fit it:

    def saturating(tokens, *, E, B, beta):
        return E + B / tokens**beta

    mine = analysis.law(
        saturating,
        equation="L = E + B / D^β",
        source="this page",
        parameters={"E": Parameter(0.0), "B": Parameter(0.0, log=True), "beta": Parameter(0.0, 3.0, start=(0.2, 0.5))},
        linear=("E", "B"),
    )

The functions use only operators, so they take NumPy arrays, JAX arrays and traced values alike. Losses are nats per
token, `params` a count of parameters, `tokens` a count of training tokens, `flops` floating-point operations.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Starts = Callable[[Mapping[str, np.ndarray], np.ndarray], dict[str, np.ndarray]]

EXPONENTS = tuple(np.geomspace(0.02, 1.6, 24).tolist())


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A fitted parameter: bounds, whether it is searched on a log scale, and the values that starts are made from."""

    lower: float
    upper: float = math.inf
    log: bool = False
    start: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.lower < self.upper:
            raise ValueError(f"bounds ({self.lower}, {self.upper}): lower must be below upper; swap or widen them")
        if self.log and self.lower < 0:
            raise ValueError(f"lower = {self.lower} with log=True: a log scale needs lower >= 0; raise it or drop log")


@dataclasses.dataclass(frozen=True)
class Law:
    """An equation with named parameters.

    `linear` names the parameters in which the law is linear and homogeneous (variable projection solves for them);
    `starts` makes the starting points where there are none, from the data and closed forms.
    """

    name: str
    equation: str
    source: str
    function: Callable[..., Any]
    inputs: tuple[str, ...]
    parameters: tuple[tuple[str, Parameter], ...]
    linear: tuple[str, ...] = ()
    starts: Starts | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.parameters)

    @property
    def nonlinear(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if name not in self.linear)

    def parameter(self, name: str) -> Parameter:
        return dict(self.parameters)[name]

    def __call__(self, inputs: Mapping[str, Any], params: Mapping[str, Any]) -> Any:
        """The law's value at `inputs` (a mapping from input name to array)."""
        return self.function(*(inputs[name] for name in self.inputs), **{name: params[name] for name in self.names})


def law(
    function: Callable[..., Any],
    *,
    equation: str,
    source: str,
    parameters: Mapping[str, Parameter],
    linear: Sequence[str] = (),
    starts: Starts | None = None,
    name: str | None = None,
) -> Law:
    """A law from a plain function whose positional arguments are inputs and keyword-only arguments parameters.

    Raises ValueError where the names disagree, or where nothing says from which values to start.
    """
    arguments = inspect.signature(function).parameters.values()
    inputs = tuple(a.name for a in arguments if a.kind in (a.POSITIONAL_OR_KEYWORD, a.POSITIONAL_ONLY))
    keywords = tuple(a.name for a in arguments if a.kind is a.KEYWORD_ONLY)
    label = name or function.__name__
    if not inputs or not keywords:
        raise ValueError(f"law {label!r} has inputs {inputs} and parameters {keywords}: write f(inputs, *, parameters)")
    if set(keywords) != set(parameters):
        raise ValueError(
            f"law {label!r}: the function takes {sorted(keywords)} but `parameters` describes {sorted(parameters)}; "
            "make the two agree"
        )
    if unknown := set(linear) - set(keywords):
        raise ValueError(f"law {label!r}: linear names {sorted(unknown)}, which are no parameters of it; drop them")
    unstarted = [key for key in keywords if key not in linear and not parameters[key].start]
    if unstarted and starts is None:
        raise ValueError(f"law {label!r}: nothing to start {unstarted} from; give Parameter(start=...) or starts=")
    pairs = tuple((key, parameters[key]) for key in keywords)
    return Law(label, equation, source, function, inputs, pairs, tuple(k for k in keywords if k in linear), starts)


def _power(x: Any, *, a: Any, b: Any) -> Any:
    return a * x**-b


def _power_offset(x: Any, *, E: Any, A: Any, alpha: Any) -> Any:
    return E + A / x**alpha


def _hoffmann(params: Any, tokens: Any, *, E: Any, A: Any, B: Any, alpha: Any, beta: Any) -> Any:
    return E + A / params**alpha + B / tokens**beta


def _kaplan(params: Any, tokens: Any, *, N_c: Any, D_c: Any, alpha_N: Any, alpha_D: Any) -> Any:
    return ((N_c / params) ** (alpha_N / alpha_D) + D_c / tokens) ** alpha_D


def _kaplan_n(params: Any, *, N_c: Any, alpha_N: Any) -> Any:
    return (N_c / params) ** alpha_N


def _kaplan_d(tokens: Any, *, D_c: Any, alpha_D: Any) -> Any:
    return (D_c / tokens) ** alpha_D


def _kaplan_c(flops: Any, *, C_c: Any, alpha_C: Any) -> Any:
    return (C_c / flops) ** alpha_C


def _middle(values: np.ndarray) -> float:
    return float(np.exp(np.mean(np.log(values))))


def _kaplan_starts(inputs: Mapping[str, np.ndarray], loss: np.ndarray) -> dict[str, np.ndarray]:
    """At the middle of the data L^(1/α_D) is the sum of both terms; give the first a share of it."""
    alpha_N, alpha_D, share = (
        grid.ravel() for grid in np.meshgrid(EXPONENTS, EXPONENTS, (0.05, 0.25, 0.5, 0.75, 0.95), indexing="ij")
    )
    total = np.log(_middle(loss)) / alpha_D
    log_N = np.log(_middle(inputs["params"])) + (total + np.log(share)) * alpha_D / alpha_N
    log_D = np.log(_middle(inputs["tokens"])) + total + np.log1p(-share)
    sane = (np.abs(log_N) < 600) & (np.abs(log_D) < 600)
    return {
        "N_c": np.exp(log_N[sane]),
        "D_c": np.exp(log_D[sane]),
        "alpha_N": alpha_N[sane],
        "alpha_D": alpha_D[sane],
    }


def _single_starts(scale: str, exponent: str) -> Starts:
    def starts(inputs: Mapping[str, np.ndarray], loss: np.ndarray) -> dict[str, np.ndarray]:
        (x,) = inputs.values()
        alpha = np.array(EXPONENTS)
        return {scale: np.exp(np.log(_middle(x)) + np.log(_middle(loss)) / alpha), exponent: alpha}

    return starts


_KAPLAN = "Kaplan et al. 2020, arXiv 2001.08361"
_positive = Parameter(0.0, log=True)
_offset = Parameter(0.0)
_exponent = Parameter(0.0, 3.0, start=EXPONENTS)

power = law(
    _power,
    name="power",
    equation="y = a · x^(-b)",
    source="power law",
    parameters={"a": _positive, "b": Parameter(-3.0, 3.0, start=tuple(np.linspace(-2.0, 2.0, 41).tolist()))},
    linear=("a",),
)
power_offset = law(
    _power_offset,
    name="power_offset",
    equation="L = E + A / x^α",
    source="power law with an irreducible loss (Henighan et al. 2020, arXiv 2010.14701, eq. 1.1)",
    parameters={"E": _offset, "A": _positive, "alpha": _exponent},
    linear=("E", "A"),
)
hoffmann = law(
    _hoffmann,
    name="hoffmann",
    equation="L = E + A / N^α + B / D^β",
    source="Hoffmann et al. 2022, arXiv 2203.15556, section 3.3",
    parameters={"E": _offset, "A": _positive, "B": _positive, "alpha": _exponent, "beta": _exponent},
    linear=("E", "A", "B"),
)
kaplan = law(
    _kaplan,
    name="kaplan",
    equation="L = ((N_c / N)^(α_N / α_D) + D_c / D)^α_D",
    source=f"{_KAPLAN}, eq. 1.5",
    parameters={"N_c": _positive, "D_c": _positive, "alpha_N": _exponent, "alpha_D": _exponent},
    starts=_kaplan_starts,
)
kaplan_n = law(
    _kaplan_n,
    name="kaplan_n",
    equation="L = (N_c / N)^α_N",
    source=f"{_KAPLAN}, eq. 1.1",
    parameters={"N_c": _positive, "alpha_N": _exponent},
    starts=_single_starts("N_c", "alpha_N"),
)
kaplan_d = law(
    _kaplan_d,
    name="kaplan_d",
    equation="L = (D_c / D)^α_D",
    source=f"{_KAPLAN}, eq. 1.2",
    parameters={"D_c": _positive, "alpha_D": _exponent},
    starts=_single_starts("D_c", "alpha_D"),
)
kaplan_c = law(
    _kaplan_c,
    name="kaplan_c",
    equation="L = (C_c / C)^α_C",
    source=f"{_KAPLAN}, eq. 1.3",
    parameters={"C_c": _positive, "alpha_C": _exponent},
    starts=_single_starts("C_c", "alpha_C"),
)

LAWS: dict[str, Law] = {
    entry.name: entry for entry in (power, power_offset, hoffmann, kaplan, kaplan_n, kaplan_d, kaplan_c)
}


def get(entry: str | Law) -> Law:
    """The law of that name, or the law itself; ValueError names the laws there are."""
    if isinstance(entry, Law):
        return entry
    if entry not in LAWS:
        raise ValueError(f"law {entry!r} is unknown; name one of {', '.join(LAWS)} or make one with analysis.law(...)")
    return LAWS[entry]
