"""Every config that a person writes: frozen, typed, JSON both ways. No JAX here.

A `Run` holds all that determines a result, and nothing else; `Execution` holds how it is computed, which does not
change a result beyond rounding. A `Sweep` is a base run, a grid over it, a rule for learning rates and an execution.
"""

from scaling.config.data import Data, Text
from scaling.config.execution import Execution, Mesh
from scaling.config.run import DType, Precision, Run
from scaling.config.sweep import Sweep
from scaling.config.tasks import CausalLM, Task
from scaling.config.trackers import TensorBoard, Tracker, Wandb

__all__ = [
    "CausalLM", "DType", "Data", "Execution", "Mesh", "Precision", "Run", "Sweep", "Task", "TensorBoard", "Text",
    "Tracker", "Wandb",
]  # fmt: skip
