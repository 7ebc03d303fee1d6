"""Probes of recall: synthetic tokens whose continuation occurs earlier in the same window.

A needle is one line among many, which a question at the end asks for. Induction, a random sequence
seen twice, needs no language. Both need a model that has learned to copy from its context.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from tokenizers import Tokenizer

from isojax._core.checks import check_positive

LINE = "The code of {} is {}.\n"
QUESTION = "The code of {} is"
ANSWER = " {}"
_FIRST = """
    amber ancient arctic autumn bitter black blue brave bright broken bronze calm clever cold copper
    crimson crystal curious dark distant early eager empty frozen gentle golden grand green hidden
    hollow iron ivory little lonely lucky narrow noble northern orange pale quiet rapid red royal
    rusty secret silent silver
""".split()
_SECOND = """
    anchor apple arrow badger basket beacon bridge candle canyon castle comet compass desert dragon
    eagle falcon feather forest fountain garden glacier hammer harbor island jacket kettle ladder
    lantern lemon lion marble meadow mirror mountain otter panther pepper pillow planet rabbit raven
    river shadow shell spider temple tiger wagon
""".split()
_NAMES = [f"{first} {second}" for first in _FIRST for second in _SECOND]


class Needles(NamedTuple):
    """Prompts that end in their answer.

    The n last logits before the end predict the answers, so an experiment needs only these:
    `logits(params, hidden[:, -n - 1 : -1])`, of the hidden states of one forward pass.

    Attributes:
        tokens: all of one length, without padding; the answer is in them, at the end.
        answer: mask of the answer among the n last tokens, n the length of the longest answer.
        depth: position of the line asked for: 0 the first whole line, 1 the last.
    """

    tokens: Int[np.ndarray, "count length"]
    answer: Bool[np.ndarray, "count n"]
    depth: Float[np.ndarray, " count"]


def needle_prompts(key: Array, tokenizer: Tokenizer, length: int, count: int) -> Needles:
    """Windows full of lines such as "The code of amber falcon is 48213.", one asked for at the end.

    Names and numbers are different within a window and drawn per window. A window begins inside a
    line, cut so that the tokens fill the window. The depths of the lines asked for are evenly
    spread over the prompts, from 0 in the first to 1 in the last. Key retrieval as in LongEval (Li
    et al. 2023) and RULER (Hsieh et al. 2024).

    Args:
        key: of `jax.random`.
        tokenizer: must keep the tokens of a text when a space and digits follow it.
        length: tokens per prompt, its answer included.
        count: prompts.

    Raises:
        ValueError: `length` has no room for a line and its question, or needs more lines than
            there are names; or the tokens of a question change when its answer follows.
    """
    check_positive("length", length)
    check_positive("count", count)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    prompts = [_prompt(rng, tokenizer, length, depth) for depth in np.linspace(0, 1, count)]
    tokens, sizes, depths = zip(*prompts, strict=True)
    answer = np.arange(max(sizes), 0, -1) <= np.array(sizes)[:, None]
    return Needles(np.stack(tokens), answer, np.array(depths, np.float32))


def _prompt(
    rng: np.random.Generator, tokenizer: Tokenizer, length: int, depth: float
) -> tuple[Int[np.ndarray, " length"], int, float]:
    """Tokens of a prompt, the length of its answer, and the actual depth."""
    count = min(length // 8 + 2, len(_NAMES))  # a line has eight words or signs
    names = rng.choice(_NAMES, count, replace=False)
    numbers = rng.choice(np.arange(10_000, 100_000), count, replace=False)
    asked, *rest = [LINE.format(*pair) for pair in zip(names, numbers, strict=True)]
    question, answer = QUESTION.format(names[0]), ANSWER.format(numbers[0])

    # sizes are measured after a line: some tokenizers put a space before the start of a text
    texts = ["", asked + question + answer, *rest]
    encoded = tokenizer.encode_batch([asked + text for text in texts], add_special_tokens=False)
    used, *sizes = [len(e) - len(encoded[0]) for e in encoded[1:]]
    if used > length:
        raise ValueError(f"length must have room for one line of {used} tokens, got {length}.")
    fit = int(np.searchsorted(np.cumsum(sizes), length - used, side="right"))
    if fit == len(sizes):
        most = used + sum(sizes)
        raise ValueError(f"length must be below {most} for {count} names, got {length}.")
    before = round(depth * fit)
    whole, cut = rest[:fit], rest[fit:]
    head = "".join([*cut, *whole[:before], asked, *whole[before:], question])
    pair = tokenizer.encode_batch([head, head + answer], add_special_tokens=False)
    start, tokens = (np.array(e.ids, np.int32) for e in pair)
    if not np.array_equal(start, tokens[: len(start)]):
        raise ValueError(f"tokenizer must keep the tokens of {question!r} when {answer!r} follows.")
    return tokens[-length:], len(tokens) - len(start), before / max(fit, 1)


def needle_found(
    predicted: Int[Array | np.ndarray, "count m"], needles: Needles
) -> Bool[np.ndarray, " count"]:
    """Whether every token of a prompt's answer is the one predicted.

    Then greedy decoding from the question yields the answer; no decoding is needed, since tokens
    are predicted from the true ones before them.

    Args:
        predicted: the most likely token at each of the m last positions before the end, m at
            least n; `[count, length - 1]` of whole prompts is allowed.
        needles: of `needle_prompts`.

    Raises:
        ValueError: m is below n, or there are not as many rows as prompts.
    """
    count, n = needles.answer.shape
    if predicted.shape[0] != count:
        raise ValueError(f"predicted must have {count} rows, got {predicted.shape[0]}.")
    if predicted.shape[1] < n:
        raise ValueError(f"predicted must have at least {n} columns, got {predicted.shape[1]}.")
    right = np.asarray(predicted)[:, -n:] == needles.tokens[:, -n:]
    return np.all(right | ~needles.answer, axis=1)


def needle_accuracy(predicted: Int[Array | np.ndarray, "count m"], needles: Needles) -> float:
    """Share of the prompts whose whole answer is predicted, see `needle_found`."""
    return float(np.mean(needle_found(predicted, needles)))


def induction_tokens(
    key: Array, vocab_size: int, length: int, count: int
) -> Int[Array, "count length"]:
    """Uniformly random tokens, repeated once: [s, s] with s of `length` / 2 tokens.

    Only the first half predicts the second, so the loss there shows whether attention still
    finds it (Olsson et al. 2022); see `second_half`.

    Args:
        key: of `jax.random`.
        vocab_size: tokens are below it.
        length: tokens of a sequence, even.
        count: sequences.

    Raises:
        ValueError: `length` is odd, or an argument is below one.
    """
    for name, value in (("vocab_size", vocab_size), ("length", length), ("count", count)):
        check_positive(name, value)
    if length % 2:
        raise ValueError(f"length must be even, got {length}.")
    half = jax.random.randint(key, (count, length // 2), 0, vocab_size, jnp.int32)
    return jnp.concatenate([half, half], axis=1)


def second_half(nll: Array) -> Array:
    """The elements for the second half of sequences: of [..., length - 1], the last length/2 - 1.

    Its first token, which cannot be predicted, is left out.

    Args:
        nll: one value per token except the first, as from `token_nll`.
    """
    return nll[..., (nll.shape[-1] + 1) // 2 :]
