"""Model families as data: fields, the table of their weights, and the work of a token. No JAX here.

The table of weights is the one declaration of shapes and roles: `scaling.models` builds its parameters from it,
`scaling.counting` counts it, `scaling.parametrization` scales it and the mesh shards it.
"""

from scaling import registry
from scaling.config.families.lstm import Lstm
from scaling.config.families.transformer import Transformer
from scaling.tables import Family, Role, Weight

__all__ = ["Family", "Lstm", "Role", "Transformer", "Weight"]

registry.import_members(__name__)  # a family is found by its file
