import re
from importlib.resources import files

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import tokenizer as byte_tokenizer
from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import BPE

from isojax.data import (
    induction_tokens,
    needle_accuracy,
    needle_found,
    needle_prompts,
    second_half,
)
from isojax.models import encode, load_tokenizer

KEY = jax.random.key(0)
WHOLE = re.compile(r"The code of (\w+ \w+) is (\d{5})\.\n")
COUNT = 7


def digit_pairs():
    """Tokens of one or two digits, so that numbers have three to five."""
    made = byte_tokenizer()
    pairs = [f"{n:02}" for n in range(0, 100, 3)]
    vocab = made.get_vocab()
    state = {**vocab, **{pair: len(vocab) + i for i, pair in enumerate(pairs)}}
    changed = Tokenizer(BPE(state, [(a, b) for a, b in pairs]))
    changed.pre_tokenizer, changed.decoder = made.pre_tokenizer, made.decoder
    return changed


def sentencepiece(*merges):
    """Spaces as letters, one put before every text, and no words that merges stop at."""
    letters = "\u2581\n." + "".join(map(chr, [*range(48, 58), *range(65, 91), *range(97, 123)]))
    tokens = [*letters, *("".join(m) for m in merges)]
    made = Tokenizer(BPE({t: i for i, t in enumerate(tokens)}, list(merges)))
    steps = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    made.normalizer = normalizers.Sequence(steps)
    made.decoder = decoders.Replace("\u2581", " ")
    return made


TOKENIZERS = {
    "tiny": lambda: load_tokenizer(str(files("isojax.models") / "tiny")),
    "digit_pairs": digit_pairs,
    "sentencepiece": lambda: sentencepiece(("\u2581", "T"), ("\u2581T", "h"), ("\u2581Th", "e")),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


@pytest.fixture(scope="module")
def needles(tokenizer):
    return needle_prompts(KEY, tokenizer, 600, COUNT)


def read(tokenizer, needles):
    """([(name, number) of a whole line], name asked for, answer) of each prompt."""
    for row in needles.tokens:
        text = tokenizer.decode(row.tolist())
        if not WHOLE.match(text):
            text = text.partition("\n")[2]
        last = re.fullmatch(r"The code of (\w+ \w+) is (\d{5})", WHOLE.sub("", text))
        assert last
        yield WHOLE.findall(text), *last.groups()


def test_the_answer_is_the_number_of_the_line_asked_for(tokenizer, needles):
    assert needles.tokens.shape == (COUNT, 600)
    assert needles.tokens.dtype == np.int32
    for lines, name, answer in read(tokenizer, needles):
        assert dict(lines)[name] == answer


def test_names_and_numbers_are_distinct_and_differ_between_prompts(tokenizer, needles):
    seen = set()
    for lines, _, answer in read(tokenizer, needles):
        assert len(dict(lines)) == len({number for _, number in lines}) == len(lines) > 5
        seen.add(answer)
    assert len(seen) == COUNT


def test_depth_says_where_the_line_stands_and_covers_all(tokenizer, needles):
    for depth, (lines, name, _) in zip(needles.depth, read(tokenizer, needles), strict=True):
        assert depth == pytest.approx([n for n, _ in lines].index(name) / (len(lines) - 1))
    assert needles.depth[0] == 0 and needles.depth[-1] == 1
    assert np.abs(needles.depth - np.linspace(0, 1, COUNT)).max() < 0.5 / 5


def test_the_answer_mask_marks_the_tokens_of_the_number(tokenizer, needles):
    n = needles.answer.shape[1]
    for row, mask, (*_, answer) in zip(
        needles.tokens, needles.answer, read(tokenizer, needles), strict=True
    ):
        assert tokenizer.decode(row[-n:][mask].tolist()).strip() == answer
        assert not tokenizer.decode(row[:-n].tolist() + row[-n:][~mask].tolist()).endswith(" ")
    assert needles.answer.any(axis=0).all()


def test_tokens_are_those_of_the_text(tokenizer, needles):
    for row in needles.tokens:
        text = tokenizer.decode(row.tolist())
        whole = encode(tokenizer, text[1:] if text[0] == " " else text)
        tail = len(row) - 40
        assert np.array_equal(whole[-tail:], row[-tail:])


def test_answers_of_several_lengths_end_together():
    sizes = needle_prompts(KEY, digit_pairs(), 600, 16).answer.sum(axis=1)
    assert len(set(sizes.tolist())) > 1


@pytest.mark.parametrize("length", range(200, 216))
def test_every_length_is_filled(length):
    tokens = needle_prompts(KEY, byte_tokenizer(), length, 2).tokens
    assert tokens.shape == (2, length)


def test_the_key_alone_decides():
    made = [needle_prompts(key, byte_tokenizer(), 300, 2) for key in (KEY, KEY, jax.random.key(1))]
    assert np.array_equal(made[0].tokens, made[1].tokens)
    assert not np.array_equal(made[0].tokens, made[2].tokens)


@pytest.mark.parametrize(
    "length, words",
    [(30, r"length must have room .* got 30"), (10**6, r"length must be below \d+ for 2304 names")],
)
def test_lengths_without_room_are_refused(length, words):
    with pytest.raises(ValueError, match=words):
        needle_prompts(KEY, byte_tokenizer(), length, 1)


def test_a_tokenizer_that_joins_question_and_answer_is_refused():
    joins = sentencepiece(("s", "\u2581"))
    with pytest.raises(ValueError, match="tokenizer must keep the tokens of 'The code of"):
        needle_prompts(KEY, joins, 300, 1)


def test_accuracy_is_that_of_whole_answers(needles):
    predicted = needles.tokens[:, 1:].copy()
    n = needles.answer.shape[1]
    assert needle_accuracy(predicted, needles) == 1
    assert needle_accuracy(jnp.asarray(predicted[:, -n:]), needles) == 1
    predicted[:, :-n] += 1  # what is not asked for
    predicted[:, -n:][~needles.answer] += 1
    assert needle_accuracy(predicted, needles) == 1
    for column in range(1, n + 1):
        wrong = predicted.copy()
        wrong[2, -column] += 1
        expected = np.ones(COUNT, bool)
        expected[2] = not needles.answer[2, -column]
        assert np.array_equal(needle_found(wrong, needles), expected)
    predicted[3] += 1
    assert needle_accuracy(predicted, needles) == pytest.approx(1 - 1 / COUNT)


def test_predictions_of_other_prompts_are_refused(needles):
    with pytest.raises(ValueError, match=f"must have {COUNT} rows, got 1"):
        needle_found(needles.tokens[:1], needles)


def test_too_few_predictions_are_refused(needles):
    n = needles.answer.shape[1]
    with pytest.raises(ValueError, match=f"predicted must have at least {n} columns, got {n - 1}"):
        needle_accuracy(needles.tokens[:, : n - 1], needles)


def test_induction_is_a_random_sequence_twice():
    tokens = np.asarray(jax.jit(induction_tokens, static_argnums=(1, 2, 3))(KEY, 50, 400, 20))
    assert tokens.shape == (20, 400) and tokens.dtype == np.int32
    assert np.array_equal(tokens[:, :200], tokens[:, 200:])
    counts = np.bincount(tokens[:, :200].ravel(), minlength=50)
    assert len(counts) == 50 and abs(counts - 80).max() < 5 * 80**0.5


def test_second_half_leaves_out_the_token_that_nothing_foretells():
    positions = jnp.arange(1, 12)  # of the numbers for tokens 1 .. 11 of twelve
    assert second_half(positions).tolist() == [7, 8, 9, 10, 11]
    assert second_half(jnp.zeros((3, 2, 11))).shape == (3, 2, 5)


@pytest.mark.parametrize(
    "arguments, words",
    [((50, 7, 1), "length must be even, got 7"), ((0, 8, 1), "vocab_size"), ((5, 8, 0), "count")],
)
def test_bad_induction_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        induction_tokens(KEY, *arguments)
