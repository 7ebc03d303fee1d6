"""The byte-level BPE tokenizer that a GGUF file describes in its metadata."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from isojax._core.checks import check_choice

_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5  # token types of GGUF that are no ordinary text

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(digits: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(_WORDS % digits), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


# how text is cut before merging, by tokenizer.ggml.pre
_CUTS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "qwen2": lambda: _split(""),
    "llama-bpe": lambda: _split("{1,3}"),
    "smollm": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(True), _gpt2()]),
    "gpt-2": _gpt2,
    "default": _gpt2,
}


def build_tokenizer(get: Callable[[str], Any], source: str) -> Tokenizer:
    """Rebuild the tokenizer from `tokenizer.ggml.*`.

    Args:
        get: gives a field of the metadata, None where it is absent.
        source: name of the file, for messages.

    Raises:
        ValueError: a field is missing, malformed or not supported; names it and the file.
    """

    def field(name: str) -> Any:
        value = get(f"tokenizer.ggml.{name}")
        if value is None:
            raise ValueError(f"{source}: tokenizer.ggml.{name} is missing.")
        return value

    def texts(name: str) -> list[str]:
        value = field(name)
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise ValueError(f"{source}: tokenizer.ggml.{name} must be a list of strings.")
        return value

    check_choice(f"{source}: tokenizer.ggml.model", field("model"), ("gpt2",))
    pre = check_choice(f"{source}: tokenizer.ggml.pre", field("pre"), _CUTS)
    tokens = texts("tokens")
    types = get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if not isinstance(types, list) or len(types) != len(tokens):
        raise ValueError(
            f"{source}: tokenizer.ggml.token_type must have one number for each of "
            f"{len(tokens)} tokens."
        )
    vocab = {t: i for i, (t, kind) in enumerate(zip(tokens, types, strict=True)) if kind != _UNUSED}
    merges: list[Any] = [tuple(merge.split(" ")) for merge in texts("merges")]
    if any(len(merge) != 2 for merge in merges):
        raise ValueError(f"{source}: tokenizer.ggml.merges must be pairs of tokens.")
    try:
        # Llama 3 takes a whole word that is a token even if no merges lead there
        tokenizer = Tokenizer(BPE(vocab, merges, ignore_merges=pre == "llama-bpe"))
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(f"{source}: tokenizer.ggml.merges do not fit ({error}).") from None
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _CUTS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (_CONTROL, _USER_DEFINED)
    ])  # fmt: skip
    return tokenizer
