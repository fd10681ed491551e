"""Flax NNX modules of the families: one file a family, shared parts in `layers`, `stacking` and `language`.

`create` builds any family from its config; operations of devices are in `ops`, the parameters in `builder` and
`initialisation`, and what is refused before training in `checks`. The package knows nothing of data,
losses or optimizers. The heavy imports happen inside `create`.
"""

from typing import TYPE_CHECKING, Any

from scaling import parametrization as parametrizations
from scaling import tables

if TYPE_CHECKING:
    import jax.typing

    from scaling.models import builder, stacking
    from scaling.models.ops import kernels


def create(
    model: tables.Family,
    *,
    vocabulary_size: int,
    context: int,
    parametrization: parametrizations.Parametrization,
    compute_dtype: "jax.typing.DTypeLike",
    parameter_dtype: "jax.typing.DTypeLike",
    layers: "stacking.Layers",
    remat: "stacking.Remat",
    seed: "int | jax.Array",
    attend: "kernels.Attend | None" = None,
    place: "builder.Place | None" = None,
) -> Any:
    """The Flax module of a family, initialised from `seed` (an integer or a PRNG key).

    Pure, so `jax.jit` and `nnx.eval_shape` may wrap it. Equal seeds give equal parameters whatever `layers`, `remat`
    and `compute_dtype` are. `attend` is the implementation of attention, None the reference; `place` says where arrays
    lie on a mesh, None leaves it to the compiler. Raises ValueError where the parameters of the module are not those of
    the table of weights.
    """
    from scaling.models import builder as builders
    from scaling.models import checks

    builder = builders.Builder(
        model,
        vocabulary_size=vocabulary_size,
        context=context,
        parametrization=parametrization,
        compute_dtype=compute_dtype,
        parameter_dtype=parameter_dtype,
        layers=layers,
        remat=remat,
        seed=seed,
        attend=attend,
        place=place,
    )
    module = model.build(builder)
    checks.check_parameters(module, model, builder.table.values())
    return module
