"""Texts: from a file or a data set to windows of token numbers.

Perplexity is taken over consecutive windows that do not overlap, from the start of a text, so
that two runs with the same tokenizer always see the same tokens.
"""

from isojax.data.text import load_text as load_text
from isojax.data.text import windows as windows
