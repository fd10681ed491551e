"""Copy a folder of a bucket to a worker, whole or not at all: `python -m scaling.launch.fetch gs://B/FOLDER text`."""

import os
import shutil
import sys
from pathlib import Path

import fsspec


def fetch(url: str, folder: Path) -> None:
    """Copy what lies below a URL to a folder, unless that is there. Raises ValueError where nothing does."""
    if folder.exists():
        return
    fs, path = fsspec.core.url_to_fs(url)
    beside = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)  # of a copy that was interrupted
    for source in fs.find(path):
        target = beside / os.path.relpath(source, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        fs.get_file(source, str(target))
    if not beside.exists():
        raise ValueError(f"there is nothing in {url}; put the text there, or name the folder where it is")
    beside.replace(folder)


if __name__ == "__main__":
    fetch(sys.argv[1], Path(sys.argv[2]))
