"""SentencePiece's BPE (Kudo and Richardson 2018) from GGUF files of Llama 2 and Mistral."""

from __future__ import annotations

from collections.abc import Mapping

from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import BPE

_SPACE = "\u2581"
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


def sentencepiece(
    vocab: Mapping[str, int], scores: Mapping[str, float], unknown: str | None, prefix: bool
) -> Tokenizer:
    """A tokenizer that merges the two neighbours whose union has the highest score.

    Args:
        vocab: ids of all tokens.
        scores: of the tokens that result from merges.
        unknown: the token for characters that neither tokens nor bytes cover.
        prefix: whether a text, and each piece of it after a special token, begins with a space.

    Raises:
        ValueError: there are neither tokens for all bytes nor an unknown token.
    """
    bytes_known = all(byte in vocab for byte in _BYTES)
    if not bytes_known and unknown is None:
        raise ValueError("neither all bytes <0x00> to <0xFF> nor an unknown token is there")
    merges = []
    for token in sorted(scores, key=lambda token: (-scores[token], vocab[token])):
        halves = [(token[:i], token[i:]) for i in range(1, len(token))]
        merges += [pair for pair in halves if pair[0] in scores and pair[1] in scores]
    tokenizer = Tokenizer(
        BPE(dict(vocab), merges, unk_token=unknown, fuse_unk=True, byte_fallback=bytes_known)
    )
    spaces = normalizers.Replace(" ", _SPACE)
    first = [normalizers.Prepend(_SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*first, spaces])
    last = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *last,
    ])  # fmt: skip
    return tokenizer
