"""What a fit minimises: a sum of robust or squared losses of residuals on a stated scale."""

import dataclasses
import typing
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from analysis import forms

Kind = Literal["huber", "squared", "log_cosh"]
DELTA = 1e-3  # Huber's δ on log L: Hoffmann et al. 2022, arXiv 2203.15556, section 3.3
TINY = 1e-300


def namespace(values: Any) -> Any:
    """jax.numpy for what JAX holds or traces, NumPy for the rest."""
    return jnp if isinstance(values, jax.Array) else np


@dataclasses.dataclass(frozen=True)
class Criterion:
    """What is minimised: Σ_i w_i ρ(r_i), r the residual on `scale`.

    huber: ρ = r²/2 up to |r| = δ, δ(|r| − δ/2) beyond (Huber 1964). squared: ρ = r²/2. log_cosh: ρ = δ² log cosh(r/δ).
    """

    kind: Kind = "huber"
    delta: float = DELTA
    scale: forms.Scale = "log"

    def __post_init__(self) -> None:
        if self.kind not in typing.get_args(Kind):
            raise ValueError(f"objective {self.kind!r} is unknown; choose one of {', '.join(typing.get_args(Kind))}")
        if self.scale not in typing.get_args(forms.Scale):
            raise ValueError(
                f"scale {self.scale!r} is unknown; choose one of {', '.join(typing.get_args(forms.Scale))}"
            )
        if not 0 < self.delta < np.inf:
            raise ValueError(f"delta = {self.delta}: must be positive and finite; {DELTA:g} is usual on log L")

    def __str__(self) -> str:
        residual = {"log": "log L − log f", "log1p": "log(1 + y) − log(1 + f)", "linear": "y − f"}[self.scale]
        if self.kind == "squared":
            return f"sum of half squares of {residual}"
        return f"sum of {'Huber' if self.kind == 'huber' else 'log-cosh'}({residual}), δ = {self.delta:g}"

    def transform(self, y: Any) -> Any:
        """What residuals are differences of."""
        xp = namespace(y)
        if self.scale == "linear":
            return y
        return xp.log(xp.maximum(y, TINY)) if self.scale == "log" else xp.log1p(xp.maximum(y, TINY - 1))

    def invert(self, z: Any) -> Any:
        """y of its transform."""
        return z if self.scale == "linear" else np.exp(z) if self.scale == "log" else np.expm1(z)

    def rho(self, r: Any) -> Any:
        if self.kind == "squared":
            return 0.5 * r * r
        if self.kind == "huber":
            near = r.clip(-self.delta, self.delta)
            return near * (r - 0.5 * near)
        xp = namespace(r)
        size = abs(r) / self.delta
        return self.delta**2 * (size + xp.log1p(xp.exp(-2 * size)) - np.log(2))

    def psi(self, r: Any) -> Any:
        """ρ′."""
        if self.kind == "squared":
            return r
        return (
            r.clip(-self.delta, self.delta) if self.kind == "huber" else self.delta * namespace(r).tanh(r / self.delta)
        )

    def curvature(self, r: Any) -> Any:
        """ρ″."""
        if self.kind == "squared":
            return 1.0 + 0.0 * r
        return 1.0 * (abs(r) <= self.delta) if self.kind == "huber" else 1 - namespace(r).tanh(r / self.delta) ** 2

    def robust(self, r: Any) -> Any:
        """ρ′(r)/r, the weight that makes a least-squares problem of it."""
        if self.kind == "squared":
            return 1.0 + 0.0 * r
        size = abs(r) + 1e-12
        return abs(self.psi(size)) / size
