"""Texts for calibration and evaluation, and windows of them."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

import numpy as np
from jaxtyping import Int

from isojax._core.checks import check_choice, check_positive

_SPLITS = ("test", "validation", "train")


def load_text(source: str) -> str:
    """Read a text.

    Args:
        source: a UTF-8 file, read without its byte order mark; `wikitext-2`, the test split, or
            another one as `wikitext-2:validation` (Merity et al. 2016, the raw form, rows joined by
            blank lines as is usual for perplexity; fetched from the hub); or `tiny`, the held-out
            text of the model that ships with isojax.

    Raises:
        FileNotFoundError: there is no such text, or it cannot be fetched.
        ValueError: the file is not UTF-8, or WikiText-2 has no such split.
    """
    name, _, split = source.partition(":")
    if name == "wikitext-2":
        return _wikitext(check_choice("the split of wikitext-2", split or "test", _SPLITS))
    if source == "tiny":
        file = importlib.resources.files("isojax") / "models" / "tiny" / "heldout.txt"
        if not file.is_file():
            raise FileNotFoundError("text tiny: this installation of isojax does not include it.")
    else:
        file = Path(source).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"text {source}: no such file, and not wikitext-2 or tiny.")
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"text {source}: not UTF-8 ({error.reason} at byte {error.start})."
        ) from None


def windows(
    tokens: Int[np.ndarray, " n"], count: int, length: int
) -> Int[np.ndarray, "count length"]:
    """The first `count` windows of `length` tokens; they follow each other and do not overlap.

    Raises:
        ValueError: the text is too short; says how many windows fit.
    """
    check_positive("windows", count)
    check_positive("length", length)
    if len(tokens) < count * length:
        raise ValueError(
            f"windows must be at most {len(tokens) // length}: a text of {len(tokens)} tokens "
            f"does not hold {count} windows of {length} tokens."
        )
    return tokens[: count * length].reshape(count, length)


def _wikitext(split: str) -> str:
    from datasets import Dataset
    from datasets.exceptions import DatasetsError

    from isojax.models.hub import fetch, one_line

    files = f"wikitext-2-raw-v1/{split}-*.parquet"
    try:  # one request, where `load_dataset` makes five
        (file,) = fetch("Salesforce/wikitext", [files], kind="dataset").glob(files)
        rows = Dataset.from_parquet(str(file))["text"]
    except (OSError, ValueError, LookupError, DatasetsError) as error:
        raise FileNotFoundError(
            f"text wikitext-2: cannot be fetched ({one_line(error)}); give a UTF-8 file instead."
        ) from None
    return "\n\n".join(rows)
