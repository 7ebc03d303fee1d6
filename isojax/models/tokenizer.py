"""Tokenizers: text to token ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer

from isojax.models.added_tokens import add_named_tokens
from isojax.models.tokenizer_json import read_tokenizer, refuses_panic

_SLOW = ("tokenizer_config.json", "vocab.json", "merges.txt", "tokenizer.model", "vocab.txt")

# raised by transformers on files that it does not check, or for missing packages
_UNCHECKED = (OSError, ImportError, LookupError, TypeError, AttributeError, RuntimeError)


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Read the tokenizer of a checkpoint; no code from the folder is executed.

    Tokens that only `tokenizer_config.json`, `added_tokens.json` or `special_tokens_map.json`
    name are added, as transformers adds them.

    Args:
        folder: holds `tokenizer.json`, or files that transformers converts to it.

    Raises:
        FileNotFoundError: the folder holds no tokenizer.
        ValueError: its files are damaged; the message names them.
    """
    folder = Path(folder)
    path = folder / "tokenizer.json"
    if path.is_file():
        tokenizer = read_tokenizer(path)
        add_named_tokens(tokenizer, folder)
    elif any((folder / name).is_file() for name in _SLOW):
        tokenizer = _convert(folder)
    else:
        raise FileNotFoundError(f"{folder}: holds no tokenizer ({path.name} or vocabulary files).")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> Int[np.ndarray, " t"]:
    """Token ids of a text as int32, without special tokens.

    Raises:
        ValueError: the tokenizer fails on this text.
    """
    with refuses_panic(f"a text of {len(text)} characters cannot be encoded"):
        return np.asarray(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)


def _convert(folder: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    message = f"{folder}: no tokenizer.json, and transformers reads no tokenizer"
    with refuses_panic(message, *_UNCHECKED):
        slow = AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
        return slow.backend_tokenizer
