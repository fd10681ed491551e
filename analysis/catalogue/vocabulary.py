"""The law of vocabulary size: Tao et al."""

from typing import Any

from analysis.forms import Parameter, law


def _tao(
    params_non_vocab: Any, params_vocab: Any, tokens: Any, *, E: Any, A1: Any, A2: Any, B: Any, alpha2: Any,
    beta: Any,
) -> Any:  # fmt: skip
    """Loss less that of a unigram model, in nats per token: negative, and comparable between vocabularies.

    L_u = −E + A1 / N_nv^β + A2 / N_v^α2 + B / D^β: N_v = vocabulary size times width the parameters of one vocabulary
    matrix, N_nv all others, D training tokens; the exponent of N_nv is held equal to that of D, as the authors do.
    Their constants (with N in millions and D in billions E = 5.5328, A1 = 1.8314, A2 = 0.19584, B = 2.1241,
    β = 0.44661, α2 = 0.67074) belong to the D of their code, which turns characters into tokens by a fit in the
    vocabulary size and hands it the size in thousands: with the tokens seen their R² is 0.04 instead of 0.972.
    """
    return -E + A1 / params_non_vocab**beta + A2 / params_vocab**alpha2 + B / tokens**beta


def _tao_free(
    params_non_vocab: Any, params_vocab: Any, tokens: Any, *, E: Any, A1: Any, A2: Any, B: Any, alpha1: Any,
    alpha2: Any, beta: Any,
) -> Any:  # fmt: skip
    """The law of `tao` with an exponent of its own for N_nv: L_u = −E + A1 / N_nv^α1 + A2 / N_v^α2 + B / D^β.

    Not validated on measurements: on the authors' rows α1 goes to its bound, six sizes do not tell it.
    """
    return -E + A1 / params_non_vocab**alpha1 + A2 / params_vocab**alpha2 + B / tokens**beta


_positive = Parameter(0.0, log=True)
_exponent = Parameter(0.02, 3.0, start=(0.05, 0.1, 0.2, 0.3, 0.42, 0.58, 0.75, 1.0))

_TAO = "Tao et al. 2024, arXiv 2407.13623, approach 3"
_scales = {"E": Parameter(0.0), "A1": _positive, "A2": _positive, "B": _positive}
_VARIES = ("vocabulary_size", "tokenizer_id")
_UNIT = "nats per token, relative to a unigram model"

tao = law(
    _tao,
    name="tao",
    equation="L_u = −E + A1 / N_nv^β + A2 / N_v^α2 + B / D^β",
    source=_TAO,
    parameters={**_scales, "alpha2": _exponent, "beta": _exponent},
    linear=("E", "A1", "A2", "B"),
    scale="linear",
    varies=_VARIES,
    unit=_UNIT,
    validated="tao2024_vocabulary: a lower objective than the published constants on their 1,054 rows and their D",
)
tao_free = law(
    _tao_free,
    name="tao_free",
    equation="L_u = −E + A1 / N_nv^α1 + A2 / N_v^α2 + B / D^β",
    source=_TAO,
    parameters={**_scales, "alpha1": _exponent, "alpha2": _exponent, "beta": _exponent},
    linear=("E", "A1", "A2", "B"),
    scale="linear",
    varies=_VARIES,
    unit=_UNIT,
)
