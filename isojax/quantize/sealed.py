"""Folders with checksums of their files, so that truncated or altered files are refused."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MANIFEST = "quantized.json"
FORMAT = "isojax.quantized"
VERSION = 3
"""Version of the layout of the folder, and of the classes in its structure."""


def seal(folder: Path, files: Iterable[str]) -> None:
    """Write the manifest: format, version, and the size and SHA-256 of each file."""
    found = {name: _print_of(folder / name) for name in sorted(files)}
    partial = folder / f"{MANIFEST}.partial"
    about = {"format": FORMAT, "version": VERSION, "files": found}
    partial.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / MANIFEST)


def unseal(folder: Path) -> None:
    """Delete the manifest, before files are changed."""
    (folder / MANIFEST).unlink(missing_ok=True)


def check_sealed(folder: Path, needed: Iterable[str]) -> None:
    """Raise `ValueError` unless all files match their checksums.

    Raises:
        ValueError: there is no manifest or one of another version, or a file is missing, truncated
            or altered; the message names the file.
    """
    path = folder / MANIFEST
    try:
        about: Any = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(
            f"{path}: must exist in a packed quantized model, got no file; a checkpoint is "
            "read by isojax.models.load_model."
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: must be JSON, got {str(error).splitlines()[0]}.") from None
    about = about if isinstance(about, dict) else {}
    if about.get("format") != FORMAT:
        raise ValueError(f"{path}: format must be {FORMAT}, got {str(about.get('format'))[:40]!r}.")
    if about.get("version") != VERSION:
        raise ValueError(
            f"{path}: version must be {VERSION}, got {str(about.get('version'))[:40]}: save the "
            "model again with this version of isojax."
        )
    files = about.get("files")
    if not isinstance(files, dict) or not set(needed) <= set(files):
        raise ValueError(f"{path}: files must name {', '.join(needed)}; got {str(files)[:80]}.")
    for name, want in files.items():
        if Path(name).name != name or "\\" in name:
            raise ValueError(f"{path}: files must be of this folder, got {name[:80]!r}.")
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name}: must exist, as in {MANIFEST}, got no file.")
        got = _print_of(folder / name)
        if got != want:
            raise ValueError(
                f"{folder / name}: must be as in {MANIFEST}, {_short(want)}; got {_short(got)}: "
                "the file was cut or altered."
            )


def _print_of(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _short(print_: Any) -> str:
    about = print_ if isinstance(print_, dict) else {}
    return f"{about.get('bytes')} bytes with SHA-256 {str(about.get('sha256'))[:12]}"
