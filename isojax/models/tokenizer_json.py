"""`tokenizer.json`, checked for contents on which the tokenizers package aborts the process."""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from isojax.models.fields import short
from isojax.models.json_file import read_json

_PROBE = "The 3 caf\u00e9s' \u4e2d\n\t x=12345, $a_b() \U0001f600"


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`, without truncation, padding and dropout.

    A file can hold a regular expression that does not terminate on some text; this cannot be
    detected here, nor stopped in this process.

    Raises:
        ValueError: the file is damaged, or a field of it makes the tokenizers package panic; the
            message names the file.
    """
    fields = read_json(path) | {"truncation": None, "padding": None}
    model = fields.get("model")
    if isinstance(model, dict) and "dropout" in model:
        model["dropout"] = None  # dropout of merges would change the perplexity at every run
    for part in ("normalizer", "pre_tokenizer"):
        for node in _nodes(fields.get(part)):
            _check_node(node, f"{path}: {part}")
    with refuses_panic(f"{path}: not a readable tokenizer"):
        tokenizer = Tokenizer.from_str(json.dumps(fields))
        tokenizer.encode(_PROBE)
        tokenizer.encode(_PROBE, add_special_tokens=False)
    added = fields.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        number = tokenizer.token_to_id(token["content"])
        if number != token["id"]:
            raise ValueError(
                f"{path}: added_tokens: {short(token['content'])} must have the number {number}, "
                f"the next in the vocabulary, got {token['id']}."
            )
    return tokenizer


@contextlib.contextmanager
def refuses_panic(message: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn errors of the tokenizers package, and of other `kinds`, into `ValueError`.

    The package raises bare `Exception`, and for a panic a `BaseException` that it does not export.
    """
    try:
        yield
    except BaseException as error:
        kind = type(error)
        own = kind is Exception or kind.__name__ == "PanicException"
        if not own and not isinstance(error, (ValueError, *kinds)):
            raise
        raise ValueError(f"{message} ({_line(error)}).") from None


def _line(error: BaseException) -> str:
    return short(" ".join(str(error).split()), 200).strip("'\"")


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    """A normalizer or pre-tokenizer and all of its components."""
    todo = [node]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            yield node
            todo += list(node.values())
        elif isinstance(node, list):
            todo += node


def _check_node(node: dict[str, Any], where: str) -> None:
    if node.get("type") == "FixedLength" and node.get("length") == 0:
        raise ValueError(f"{where}: length of FixedLength must be at least 1, got 0.")
    if node.get("type") == "Replace" and node.get("pattern") in ({"String": ""}, {"Regex": ""}):
        raise ValueError(f"{where}: pattern of Replace must not be empty.")
    if node.get("type") == "Precompiled":
        _check_charsmap(node.get("precompiled_charsmap"), where)


def _check_charsmap(value: Any, where: str) -> None:
    """Check the size at its start: the package allocates this much memory before its own checks."""
    name = f"{where}: precompiled_charsmap of Precompiled"
    try:
        blob = base64.b64decode(value, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise ValueError(f"{name} must be in base64, got {short(value)}.") from None
    size = int.from_bytes(blob[:4], "little")
    if len(blob) < 4 or size % 4 or not 1024 <= size <= len(blob) - 4:
        raise ValueError(
            f"{name} must hold a trie of 1024 bytes or more after its size, got {len(blob)} bytes "
            f"that say {size}."
        )
