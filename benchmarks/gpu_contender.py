"""A contender of `benchmarks.gpu`: a process that compiles one GPT-2, ours or PyTorch's, and measures it when asked."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

OURS = "ours"


class OutOfMemoryError(Exception):
    """A contender's batch does not fit the device."""


class Contender:
    """A process that compiles one model and measures it whenever asked."""

    def __init__(self, spec: Mapping[str, Any], torch_python: str, seconds: float):
        here = Path(__file__).parent
        ours = spec["kind"] == OURS
        command = [sys.executable, "-m", "benchmarks.gpt2_scaling"] if ours else [torch_python, here / "gpt2_torch.py"]
        # Each may take half of the GPU, since both are there at once.
        settings = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.48"}
        settings |= {"JAX_PLATFORMS": spec["device"], "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
        if spec["precision"] == "float32":
            settings["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
        self.name = f"{spec['kind']} at width {spec['width']}"
        self.errors: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115  # lives as long as the process
        self.process = subprocess.Popen(
            [*map(str, command), json.dumps(dict(spec))], env={**os.environ, **settings}, cwd=here.parent,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
        )  # fmt: skip
        self.late = threading.Timer(max(1.0, seconds), self.process.kill)
        self.late.start()

    def ask(self, **change: Any) -> dict[str, Any]:
        """Measure with a change of the specification. Raises OutOfMemoryError, or RuntimeError where it ended."""
        self.tell(**change)
        return self.answer()

    def tell(self, **change: Any) -> None:
        """Ask, and do not wait for the answer."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(change) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self._ended()

    def answer(self) -> dict[str, Any]:
        """The last line of an answer, or of all output of a process that measures once."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        self._ended()
        raise AssertionError

    def _ended(self) -> None:
        code = self.process.wait()
        self.errors.seek(0)
        text = self.errors.read()
        if "RESOURCE_EXHAUSTED" in text or "OutOfMemoryError" in text:
            raise OutOfMemoryError(self.name)
        if code == -signal.SIGKILL:
            raise RuntimeError(f"{self.name} was stopped: the time is up, or this machine's memory")
        raise RuntimeError(f"{self.name} ended with {code}:\n" + "\n".join(text.strip().splitlines()[-12:]))

    def close(self) -> None:
        """End the process."""
        self.late.cancel()
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def compiled(contenders: Sequence[Contender]) -> None:
    """Wait until all have compiled, side by side, and have trained for a moment."""
    for contender in contenders:
        contender.tell(seconds=0.0, warm_seconds=0.0)
    for contender in contenders:
        contender.answer()
