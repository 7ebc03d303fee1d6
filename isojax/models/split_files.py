"""Models split into several .gguf files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.I)


def parts(path: Path) -> list[Path]:
    """All files of the split model that `path` belongs to; `[path]` if its name is not of a part.

    Raises:
        FileNotFoundError: one of them is missing.
    """
    match = _PART.fullmatch(path.name)
    if match is None or not 1 <= int(match["number"]) <= int(match["count"]):
        return [path]
    count = int(match["count"])
    found = []
    for number in range(1, count + 1):
        name = f"{match['stem']}-{number:05d}-of-{count:05d}{match['suffix']}"
        if not (path.parent / name).is_file():
            raise FileNotFoundError(f"{path}: one of {count} parts, of which {name} is not there.")
        found.append(path.parent / name)
    return found


def one_model(files: Sequence[Path]) -> Path:
    """The file to load from a folder with one model, whole or split.

    Raises:
        ValueError: the folder holds several models; the message names them.
    """
    models = {}
    for file in files:
        match = _PART.fullmatch(file.name)
        models.setdefault(file.name if match is None else (match["stem"], match["count"]), file)
    if len(models) > 1:
        names = ", ".join(file.name for file in list(models.values())[:4])
        raise ValueError(
            f"{files[0].parent}: holds {len(models)} models ({names}{', ...' * (len(models) > 4)});"
            " give the file of one."
        )
    return next(iter(models.values()))
