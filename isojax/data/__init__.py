"""Texts: from a file or a data set to windows of token ids.

Perplexity is taken over consecutive windows that do not overlap, from the start of a text, so
that two runs with the same tokenizer always see the same tokens. Recall is probed with synthetic
windows: lines to retrieve a number from, and sequences seen twice.
"""

from isojax.data.recall import (
    Needles,
    induction_tokens,
    needle_accuracy,
    needle_found,
    needle_prompts,
    second_half,
)
from isojax.data.text import load_text, windows

__all__ = [
    "Needles",
    "induction_tokens",
    "load_text",
    "needle_accuracy",
    "needle_found",
    "needle_prompts",
    "second_half",
    "windows",
]
