"""What docs/extending.md shows: its Python files by name, and its commands by section. Tests read them from there."""

import functools
import re
import sys
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text("utf-8")
FILES: dict[str, str] = dict(re.findall(r"^`(\w+\.py)`\n\n```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
COMMANDS: dict[str, str] = {
    section.partition("\n")[0]: "".join(re.findall(r"^```bash\n(.*?)^```", section, re.DOTALL | re.MULTILINE))
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
}


@functools.cache
def module(name: str) -> Any:
    """One of the files as a module of this process."""
    made = types.ModuleType(f"shown_{name.removesuffix('.py')}")
    sys.modules[made.__name__] = made  # where pydantic looks names up
    exec(compile(FILES[name], f"{name} of docs/extending.md", "exec"), made.__dict__)
    return made
