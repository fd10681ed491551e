"""Copy a folder of a bucket to a worker, whole or not at all: `python -m scaling.launch.fetch gs://B/FOLDER text`."""

import sys
from pathlib import Path

from scaling.storage import atomic, backends


def fetch(place: str, folder: Path) -> None:
    """Copy what lies below a URL or path to a folder, unless that is there. Raises ValueError where nothing does."""
    if folder.exists():
        return
    source = backends.open_storage(place)
    keys = source.walk()
    if not keys:
        raise ValueError(f"there is nothing in {place}; put the text there, or name the folder where it is")
    with atomic.writing(folder) as draft:
        for key in keys:
            (draft / key).parent.mkdir(parents=True, exist_ok=True)
            source.download(key, draft / key)


if __name__ == "__main__":
    fetch(sys.argv[1], Path(sys.argv[2]))
