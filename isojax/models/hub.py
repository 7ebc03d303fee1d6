"""Files of the Hugging Face hub, fetched to its standard cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors


def fetch(
    name: str, files: Sequence[str], revision: str | None = None, kind: str = "model"
) -> Path:
    """The folder with the files of a repository that match patterns; one request to the hub.

    Args:
        name: `owner/name`.
        files: patterns.
        revision: branch, tag or commit.
        kind: `model` or `dataset`.

    Raises:
        OSError: they cannot be fetched; the message gives the reason in one line.
    """
    # its own errors are of many kinds with no base in common
    own = (e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception))
    try:
        folder = huggingface_hub.snapshot_download(
            name, repo_type=kind, revision=revision, allow_patterns=[*files]
        )
    except (OSError, ValueError, RuntimeError, *own) as error:
        raise OSError(one_line(error)) from None
    return Path(folder)


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks."""
    return " ".join(str(error).split())
