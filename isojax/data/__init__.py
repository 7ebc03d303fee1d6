"""Texts: from a file or a data set to windows of token numbers.

Perplexity is taken over consecutive windows that do not overlap, from the start of a text, so
that two runs with the same tokenizer always see the same tokens. Recall is probed with synthetic
windows: lines to retrieve a number from, and sequences seen twice.
"""

from isojax.data.recall import Needles as Needles
from isojax.data.recall import induction_tokens as induction_tokens
from isojax.data.recall import needle_accuracy as needle_accuracy
from isojax.data.recall import needle_found as needle_found
from isojax.data.recall import needle_prompts as needle_prompts
from isojax.data.recall import second_half as second_half
from isojax.data.text import load_text as load_text
from isojax.data.text import windows as windows
