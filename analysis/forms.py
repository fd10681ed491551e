"""What a law is: a plain function with named parameters, their bounds and where to start from.

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

The positional arguments are the inputs, the keyword-only ones the parameters. A function may use `jax.numpy`; it is
differentiated twice, and evaluated in float64. Losses are nats per token, `params` a count of parameters, `tokens` a
count of training tokens, `flops` floating-point operations, unless a law says otherwise.
"""

import dataclasses
import inspect
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

if typing.TYPE_CHECKING:
    from analysis import surfaces

Starts = Callable[[Mapping[str, np.ndarray], np.ndarray], dict[str, np.ndarray]]
Scale = Literal["log", "log1p", "linear"]
UNVALIDATED = "not validated on measurements"
OF_LOSS = "nats per token"  # the unit of a law of the loss
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


class Powers(NamedTuple):
    """L = E + (A/N^α + B/D^β)^γ, A and B as logarithms: of such a law the optimum has a closed form."""

    E: Any
    log_a: Any
    log_b: Any
    alpha: Any
    beta: Any
    gamma: Any


@dataclasses.dataclass(frozen=True)
class Law:
    """An equation with named parameters.

    `linear` names the parameters in which the law is linear and homogeneous (variable projection solves for them);
    `starts` makes the starting points where there are none, from the data and closed forms. `scale` says in what
    residuals are taken: "log" is log y − log f, "log1p" is log(1 + y) − log(1 + f), "linear" is y − f. `real` names
    inputs that may be zero or negative, `varies` the columns that runs of one fit may differ in although losses under
    different ones are not comparable otherwise. `validated` says on which measurements the law was tested here.
    `powers` gives a law of N and D as a sum of powers from its parameters, where it is one.
    """

    name: str
    equation: str
    source: str
    function: Callable[..., Any]
    inputs: tuple[str, ...]
    parameters: tuple[tuple[str, Parameter], ...]
    linear: tuple[str, ...] = ()
    starts: Starts | None = None
    scale: Scale = "log"
    real: tuple[str, ...] = ()
    varies: tuple[str, ...] = ()
    unit: str = OF_LOSS
    validated: str = UNVALIDATED
    powers: Callable[[Mapping[str, Any]], Powers] | None = None

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

    @property
    def allocates(self) -> bool:
        """Whether it is a law of the loss that takes N and D alone, so that a budget can be shared out between them."""
        return set(self.inputs) == {"params", "tokens"} and self.unit == OF_LOSS

    def optimum(
        self, params: Mapping[str, Any], flops: float, rule: "surfaces.FlopRule", inference_tokens: float = 0.0
    ) -> np.ndarray:
        """N*, D* and the loss there for a budget under a rule for the FLOPs: a row a sample of the parameters.

        By `powers` in closed form, otherwise by a search in log N (`analysis.optima`); NaN in rows without an optimum.
        Raises `Refused` (a ValueError) where it is no law of the loss that takes N and D alone, or the first sample has
        no optimum.
        """
        from analysis import surfaces

        surfaces.refuse_other_laws(self)
        samples = {name: np.atleast_1d(np.asarray(params[name], dtype=np.float64)) for name in self.names}
        return surfaces.Surface(self, samples, rule, flops).optimum(flops, inference_tokens)


def law(
    function: Callable[..., Any],
    *,
    equation: str,
    source: str,
    parameters: Mapping[str, Parameter],
    linear: Sequence[str] = (),
    starts: Starts | None = None,
    name: str | None = None,
    scale: Scale = "log",
    real: Sequence[str] = (),
    varies: Sequence[str] = (),
    unit: str = OF_LOSS,
    validated: str = UNVALIDATED,
    powers: Callable[[Mapping[str, Any]], Powers] | None = None,
) -> Law:
    """A law from a plain function whose positional arguments are inputs and keyword-only arguments parameters.

    `starts(inputs, y)` gives arrays of one length, an entry a start, for every parameter that is not linear; linear
    ones that it leaves out are solved for. Without it the starts are the products of each `Parameter.start`.
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
    pairs = tuple((key, parameters[key]) for key in keywords)
    ordered = tuple(key for key in keywords if key in linear)
    form = Law(
        label, equation, source, function, inputs, pairs, ordered, starts, scale, tuple(real), tuple(varies), unit,
        validated, powers,
    )  # fmt: skip
    _agree(form, linear)
    return form


def _agree(form: Law, linear: Sequence[str]) -> None:
    """Raises ValueError where what a law says of its parameters and inputs names others, or no start is given."""
    label = form.name
    if unknown := set(linear) - set(form.names):
        raise ValueError(f"law {label!r}: linear names {sorted(unknown)}, which are no parameters of it; drop them")
    if unknown := set(form.real) - set(form.inputs):
        raise ValueError(f"law {label!r}: real names {sorted(unknown)}, which are no inputs of it; drop them")
    if form.scale not in typing.get_args(Scale):
        raise ValueError(f"law {label!r}: scale = {form.scale!r}; choose one of {', '.join(typing.get_args(Scale))}")
    unstarted = [name for name in form.nonlinear if not form.parameter(name).start]
    if unstarted and form.starts is None:
        raise ValueError(f"law {label!r}: nothing to start {unstarted} from; give Parameter(start=...) or starts=")
