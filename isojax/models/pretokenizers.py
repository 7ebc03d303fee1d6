"""Rules that split text before byte-level BPE, by their names in GGUF files."""

from __future__ import annotations

from typing import NamedTuple

from tokenizers import Regex, pre_tokenizers

_CONTRACTED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_QWEN2 = rf"{_CONTRACTED}|{_WORDS}|\p{{N}}|{_SIGNS}|{_SPACES}"
_LLAMA3 = rf"{_CONTRACTED}|{_WORDS}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"
# words that distinguish upper case from lower; letters without case count as both
_UPPER, _LOWER = r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"


class Cut(NamedTuple):
    """The splitting rule of one kind of tokenizer.

    Attributes:
        patterns: each splits the pieces of the ones before, at its matches and between them.
        ignore_merges: whether a piece that is a token is kept even if no merges lead to it.
        nfc: whether accents are composed first.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    nfc: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """The rule as an object of the tokenizers package."""
        return pre_tokenizers.Sequence([
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])  # fmt: skip


DEFAULT = "default"  # for files without a name
# the table of llama.cpp (src/llama-vocab.cpp), of the families that are loaded here
_KINDS: dict[tuple[str, ...], Cut] = {
    (DEFAULT,): Cut((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    ("gpt-2", "phi-2", "mpt", "olmo", "jais", "gigachat", "a.x-4.0", "mellum", "exaone4",
     "trillion"): Cut((_GPT2,)),
    ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"):
        Cut((r"\p{N}", _GPT2)),
    ("qwen2", "deepseek-r1-qwen"): Cut((_QWEN2,), nfc=True),
    ("stablelm2", "hunyuan", "megrez", "kormo", "f2llmv2", "solar-open"): Cut((_QWEN2,)),
    ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0", "lfm2"):
        Cut((_LLAMA3,), ignore_merges=True),
    ("dbrx", "smaug-bpe"): Cut((_LLAMA3,)),
    ("falcon",): Cut((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    ("tekken",): Cut((rf"{_CASED % ('', '')}|\p{{N}}|{_SLASHED}|{_SPACES}",), ignore_merges=True),
    ("gpt-4o", "llama4", "kanana2"): Cut((
        rf"{_CASED % (_CONTRACTED + '?', _CONTRACTED + '?')}|\p{{N}}{{1,3}}|{_SLASHED}|{_SPACES}",
    )),
    ("seed-coder",): Cut((
        rf"{_CONTRACTED}|{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",
    )),
    ("deepseek-coder",): Cut((
        r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
        r"\p{N}",
    )),
    ("deepseek-v3",): Cut((
        r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
        r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
    )),
}  # fmt: skip
CUTS = {name: cut for names, cut in _KINDS.items() for name in names}
