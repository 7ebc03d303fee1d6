"""Texts given as strings, token ids or columns of a data set, in one form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any

import jax
import numpy as np

from isojax._core.checks import check_positive
from isojax.data import windows
from isojax.models import encode

LENGTH = 2048
"""Tokens per window, for texts that are not windows."""


def token_windows(tokenizer: Any, texts: Any, length: int = LENGTH) -> Any:
    """Texts as windows of token ids.

    Args:
        tokenizer: of the model, or None where texts are token ids.
        texts: an array of token ids [n, t], or a list of rows of one length, used unchanged. Or one
            or several strings (a list, a generator, a column of a `datasets` data set), joined by
            blank lines as is usual for perplexity; or rows of token ids of several lengths,
            concatenated. Joined texts are cut into consecutive windows of `length` tokens, without
            the rest; a text shorter than one window becomes a shorter window.
        length: tokens per window.

    Returns:
        Token ids [n, t].

    Raises:
        ValueError: there are no texts, they are of another kind (a mapping, as tokenizers of
            transformers return, or a set), or they are strings and there is no tokenizer.
    """
    if isinstance(texts, jax.Array | np.ndarray):
        return texts
    every = _listed(texts, "texts")
    rows = _rows(tokenizer, every, "texts")
    if not isinstance(every[0], str) and len({len(row) for row in rows}) == 1:
        return np.stack(rows)
    ids = np.concatenate(rows)
    count = len(ids) // check_positive("length", length)
    return windows(ids, count, length) if count else ids[None]


def token_prompts(tokenizer: Any, prompts: Any) -> list[np.ndarray]:
    """Prompts as separate arrays of token ids: from an array [n, t], strings or rows.

    Raises:
        ValueError: there are no prompts, or they are strings and there is no tokenizer.
    """
    if isinstance(prompts, jax.Array | np.ndarray):
        return list(np.asarray(prompts))
    every = _listed(prompts, "prompts")
    return [row for text in every for row in _rows(tokenizer, [text], "prompts")]


def _listed(texts: Any, name: str) -> list[Any]:
    """The texts one by one; a string is one."""
    if isinstance(texts, str):
        return [texts]
    if not isinstance(texts, Iterable) or isinstance(texts, Mapping | Set):
        raise ValueError(
            f"{name} must be strings or token ids, as a list or an array, got "
            f"{type(texts).__name__}."
        )
    return list(texts)


def _rows(tokenizer: Any, every: list[Any], name: str) -> list[np.ndarray]:
    """Token ids of each row; strings are joined into one row."""
    if not every:
        raise ValueError(f"{name} must hold at least one, got none.")
    strings = [isinstance(text, str) for text in every]
    if all(strings):
        return [_encoded(tokenizer, "\n\n".join(every))]
    if any(strings):
        raise ValueError(f"{name} must be all strings or all token ids, got both.")
    for row in every:
        if isinstance(row, Mapping):
            raise ValueError(
                f"{name} must be rows of token ids, got a {type(row).__name__}: give the column "
                "of a data set that holds them."
            )
    rows = [np.asarray(row) for row in every]
    if any(row.ndim != 1 for row in rows):
        raise ValueError(
            f"{name} must be rows of token ids, got rows of shape {[r.shape for r in rows][:4]}."
        )
    return rows


def _encoded(tokenizer: Any, text: str) -> np.ndarray:
    if tokenizer is None:
        raise ValueError("texts must be token ids for a model without a tokenizer, got strings.")
    return encode(tokenizer, text)
