"""The tokenizer that a GGUF file describes in its metadata."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE

from isojax._core.checks import check_choice
from isojax.models.fields import short
from isojax.models.pretokenizers import CUTS, DEFAULT
from isojax.models.sentencepiece import sentencepiece
from isojax.models.tokenizer_json import refuses_panic

_LOG = logging.getLogger("isojax")
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6  # types of GGUF
# llama.cpp takes these as special, whatever their type in the file
_ALWAYS_CONTROL = frozenset((
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>",
    "<|eom_id|>", "<EOT>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>",
    "<|fim_repo|>", "<|repo_name|>", "<|file_sep|>",
))  # fmt: skip


class Vocabulary(NamedTuple):
    """The tokens of a file.

    Attributes:
        tokens: by id.
        types: type of each, as a number of GGUF.
    """

    tokens: list[str]
    types: list[int]

    def of(self, *types: int) -> list[tuple[int, str]]:
        """The tokens of these types, with their ids."""
        both = enumerate(zip(self.tokens, self.types, strict=True))
        return [(number, token) for number, (token, kind) in both if kind in types]

    def special(self) -> list[AddedToken]:
        """Special tokens, which are matched in text before it is split."""
        return [
            AddedToken(token, special=kind != _USER_DEFINED, normalized=False)
            for token, kind in zip(self.tokens, self.types, strict=True)
            if kind in (_CONTROL, _USER_DEFINED)
        ]


def build_tokenizer(get: Callable[[str], Any], source: str) -> Tokenizer:
    """Rebuild the tokenizer from `tokenizer.ggml.*`.

    Args:
        get: returns a field of the metadata, None where it is absent.
        source: name of the file, for messages.

    Raises:
        ValueError: a field is missing, malformed or not supported; the message names it and the
            file.
    """
    fields = _Fields(get, source)
    model = check_choice(
        f"{source}: tokenizer.ggml.model", fields.require("model"), ("gpt2", "llama")
    )
    vocabulary = _vocabulary(fields)
    if model == "gpt2":
        return _byte_level(fields, vocabulary)
    scores = fields.require("scores")
    count = len(vocabulary.tokens)
    if not isinstance(scores, list) or len(scores) != count or not all(map(_is_number, scores)):
        raise ValueError(
            f"{source}: tokenizer.ggml.scores must have one number for each of {count} tokens."
        )
    prefix = get("tokenizer.ggml.add_space_prefix")
    if not isinstance(prefix, bool | None):
        raise ValueError(
            f"{source}: tokenizer.ggml.add_space_prefix must be true or false, got {short(prefix)}."
        )
    ordinary = dict((t, i) for i, t in vocabulary.of(_NORMAL, _USER_DEFINED))
    silent = vocabulary.of(_UNKNOWN, _CONTROL, _BYTE, _UNUSED)
    unknown = vocabulary.of(_UNKNOWN)
    with refuses_panic(f"{source}: tokenizer.ggml.tokens do not fit"):
        tokenizer = sentencepiece(
            ordinary | {token: number for number, token in silent if token},
            {token: scores[number] for token, number in ordinary.items()},
            unknown[0][1] if unknown else None,
            prefix is not False,
        )
    tokenizer.add_tokens(vocabulary.special())
    return tokenizer


class _Fields(NamedTuple):
    get: Callable[[str], Any]
    source: str

    def require(self, name: str) -> Any:
        value = self.get(f"tokenizer.ggml.{name}")
        if value is None:
            raise ValueError(f"{self.source}: tokenizer.ggml.{name} is missing.")
        return value

    def texts(self, name: str) -> list[str]:
        value = self.require(name)
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise ValueError(f"{self.source}: tokenizer.ggml.{name} must be a list of strings.")
        return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _vocabulary(fields: _Fields) -> Vocabulary:
    tokens = fields.texts("tokens")
    types = fields.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
    if (
        not isinstance(types, list)
        or len(types) != len(tokens)
        or not all(isinstance(kind, int) for kind in types)
    ):
        raise ValueError(
            f"{fields.source}: tokenizer.ggml.token_type must have one number for each of "
            f"{len(tokens)} tokens."
        )
    seen: dict[str, int] = {}
    for number, token in enumerate(tokens):
        if seen.setdefault(token, number) != number and token:
            raise ValueError(
                f"{fields.source}: tokenizer.ggml.tokens has {short(token)} twice, as "
                f"{seen[token]} and {number}."
            )
    # an empty token is a gap in the ids
    types = [
        _CONTROL if token in _ALWAYS_CONTROL and kind == _NORMAL else kind if token else _UNUSED
        for token, kind in zip(tokens, types, strict=True)
    ]
    return Vocabulary(tokens, types)


def _byte_level(fields: _Fields, vocabulary: Vocabulary) -> Tokenizer:
    source = fields.source
    pre = fields.get("tokenizer.ggml.pre")
    if pre is None:
        _LOG.warning("%s: tokenizer.ggml.pre is missing; text is cut as for %r", source, DEFAULT)
        pre = DEFAULT
    cut = CUTS[check_choice(f"{source}: tokenizer.ggml.pre", pre, CUTS)]
    vocab = {
        token: number
        for number, token in enumerate(vocabulary.tokens)
        if vocabulary.types[number] != _UNUSED
    }
    merges: list[Any] = [tuple(merge.split(" ")) for merge in fields.texts("merges")]
    if any(len(merge) != 2 for merge in merges):
        raise ValueError(f"{source}: tokenizer.ggml.merges must be pairs of tokens.")
    with refuses_panic(f"{source}: tokenizer.ggml.merges do not fit"):
        tokenizer = Tokenizer(BPE(vocab, merges, ignore_merges=cut.ignore_merges))
    if cut.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = cut.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(vocabulary.special())
    return tokenizer
