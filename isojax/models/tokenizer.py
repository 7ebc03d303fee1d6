"""Tokenizers: text to token numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer

_SLOW = ("tokenizer_config.json", "vocab.json", "merges.txt", "tokenizer.model", "vocab.txt")


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Read the tokenizer of a checkpoint; runs no code that lies there.

    Args:
        folder: holds `tokenizer.json`, or files that transformers makes the same of.

    Raises:
        FileNotFoundError: the folder holds no tokenizer.
        ValueError: its files are damaged; names them.
    """
    folder = Path(folder)
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise ValueError(f"{path}: not a readable tokenizer ({error}).") from None
    elif any((folder / name).is_file() for name in _SLOW):
        tokenizer = _convert(folder)
    else:
        raise FileNotFoundError(f"{folder}: holds no tokenizer ({path.name} or vocabulary files).")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> Int[np.ndarray, " t"]:
    """Token numbers of a text as int32, no special tokens added."""
    return np.asarray(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)


def _convert(folder: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        slow = AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
        return slow.backend_tokenizer
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"{folder}: no tokenizer.json, and transformers reads no tokenizer ({reason})."
        ) from None
