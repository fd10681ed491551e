"""Which runs train together as one program, and how many of them. No JAX here.

Runs that share a program (`Run.shared`) and their length may be packed: they differ in numbers that are arguments of
the step. Packing pays while one model leaves a device idle; on CPU cores it does not.
"""

from scaling import config, counting, devices

# Packing goes on until a step multiplies as long as this at the device's peak. Measured on an H200 (context 256, batch
# 16): 16 models of 10 M parameters, whose step is 4 ms of the peak, do 2.4 times as many runs an hour together as one
# after another, 64 of 1 M 4.9 times, 128 of 0.1 M 10.2 times, and 256 no more than that.
BUSY_SECONDS = 4e-3
MOST = 128  # members, as measured; the host works for each beside the device (batches, rows of metrics, checkpoints)
SHARE_OF_MEMORY = 0.8


def key(run: config.Run) -> tuple[config.Run, int]:
    """Equal for runs that may be packed."""
    return run.shared, run.tokens


def most(run: config.Run, execution: config.Execution, device: str, memory: float, limit: float | None) -> int:
    """How many runs like this train together on a device of this kind.

    `memory` is what one run needs in bytes, `limit` what the device has, None where that is not known.
    """
    if execution.pack != "auto":
        return execution.pack
    peak = devices.peak_flops(device)
    if peak is None:
        return 1
    step = counting.flops_per_token(run.model, run.vocabulary_size, run.context) * run.batch_tokens
    fitting = MOST if limit is None else int(SHARE_OF_MEMORY * limit / memory)
    return max(1, min(int(BUSY_SECONDS * peak / step), fitting, MOST))
