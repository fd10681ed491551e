"""Language models in Flax NNX: one file a family, shared layers in `layers`, attention in `attention`,
its kernels for accelerators in `kernels`.

`create` builds any family from its config. Imports `families` and `parametrization` alone; knows nothing of data,
losses or optimizers. The heavy imports happen inside `create`.
"""

from typing import TYPE_CHECKING

from scaling import parametrization
from scaling.config import families

if TYPE_CHECKING:
    import jax.typing

    from scaling.models import layers as model_layers
    from scaling.models.ops import kernels


def create(
    model: families.Family,
    *,
    vocabulary_size: int,
    context: int,
    parametrization: parametrization.Parametrization,
    compute_dtype: "jax.typing.DTypeLike",
    parameter_dtype: "jax.typing.DTypeLike",
    layers: "model_layers.Layers",
    remat: "model_layers.Remat",
    seed: "int | jax.Array",
    attend: "kernels.Attend | None" = None,
    place: "model_layers.Place | None" = None,
) -> "model_layers.LanguageModel":
    """The Flax module of a family, initialised from `seed` (an integer or a PRNG key).

    Pure, so `jax.jit` and `nnx.eval_shape` may wrap it. Equal seeds give equal parameters whatever `layers`, `remat`
    and `compute_dtype` are. `attend` is the implementation of attention, None the reference; `place` says where arrays
    lie on a mesh, None leaves it to the compiler.
    """
    from scaling.models import layers as model_layers

    builder = model_layers.Builder(
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
    return model.build(builder)
