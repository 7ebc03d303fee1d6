"""Tokenizers of GGUF files: cut as llama.cpp cuts, merged as SentencePiece merges."""

import logging

import gguf
import pytest
from gguf_files import write_gguf
from small_models import error_of_loading, tokenizer

from isojax.models import encode
from isojax.models.gguf_file import GgufFile
from isojax.models.gguf_tokenizer import build_tokenizer
from isojax.models.pretokenizers import CUTS

TEXT = "x=12345 = $a I'LL don't!\r\n\n  ABCdef/ caf\u00e9\u65e5"
# by the regular expressions that src/llama-vocab.cpp of llama.cpp lists for these names
PIECES = {
    "default": "x = 123 45 _ = _ $ a _I ' LL _don ' t ! RNN_ _ABCdef / _caf\u00e9\u65e5",
    "gpt-2 phi-2 mpt olmo jais gigachat a.x-4.0 mellum exaone4 trillion":
        "x = 12345 _= _$ a _I ' LL _don 't ! RNN_ _ABCdef / _caf\u00e9\u65e5",
    "smollm starcoder refact command-r codeshell exaone minerva-7b":
        "x = 1 2 3 4 5 _= _$ a _I ' LL _don 't ! RNN_ _ABCdef / _caf\u00e9\u65e5",
    "qwen2 deepseek-r1-qwen stablelm2 hunyuan megrez kormo f2llmv2 solar-open":
        "x = 1 2 3 4 5 _= _$ a _I 'LL _don 't !RNN _ _ABCdef / _caf\u00e9\u65e5",
    "llama-bpe llama3 llama-v3 falcon3 pixtral midm-2.0 lfm2 dbrx smaug-bpe":
        "x = 123 45 _= _$ a _I 'LL _don 't !RNN _ _ABCdef / _caf\u00e9\u65e5",
    "falcon": "x = 123 45 _ = _ $ a _I ' LL _don ' t ! RNN_ _ABCdef / _caf\u00e9\u65e5",
    "tekken": "x = 1 2 3 4 5 _= _$ a _I 'LL _don 't !RNN _ _ABCdef / _caf\u00e9\u65e5",
    "gpt-4o llama4 kanana2": "x = 123 45 _= _$ a _I'LL _don't !RNN _ _ABCdef / _caf\u00e9\u65e5",
    "seed-coder": "x = 1 2 3 4 5 _= _$ a _I 'LL _don 't ! RNN _ _ABCdef / _caf\u00e9\u65e5",
    "deepseek-coder":
        "x = 1 2 3 4 5 _=_$ a _I ' LL _don ' t ! R N N _ _ABCdef / _caf\u00e9 \u65e5",
    "deepseek-v3": "x = 123 45 _= _$ a _I 'LL _don 't !RNN _ _ABCdef / _caf\u00e9 \u65e5",
}  # fmt: skip
CASES = [(name, text) for names, text in PIECES.items() for name in names.split()]


def test_every_name_that_is_accepted_is_in_this_table():
    assert {name for name, _ in CASES} == set(CUTS)
    whole = "llama-bpe llama3 llama-v3 falcon3 pixtral midm-2.0 lfm2 tekken"  # ignore_merges there
    assert {name for name, cut in CUTS.items() if cut.ignore_merges} == set(whole.split())


def load(path, **fields):
    write_gguf(path / "m.gguf", {f"tokenizer.ggml.{name}": x for name, x in fields.items()})
    return read(path / "m.gguf")


def read(path):
    file = GgufFile(path)
    return build_tokenizer(file.get, file.source)


@pytest.fixture(scope="module")
def metadata(tmp_path_factory):
    """The fields of one file."""
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_gguf(path)
    names = ("model", "pre", "tokens", "merges", "token_type", "eos_token_id")
    file = GgufFile(path)
    return {name: file.get(name) for name in (f"tokenizer.ggml.{name}" for name in names)}


@pytest.mark.parametrize(("pre", "pieces"), CASES)
def test_text_is_cut_as_llama_cpp_cuts_it(pre, pieces, metadata):
    made = build_tokenizer((metadata | {"tokenizer.ggml.pre": pre}).get, "m.gguf")
    got = [TEXT[a:b] for _, (a, b) in made.pre_tokenizer.pre_tokenize_str(TEXT)]
    names = str.maketrans({" ": "_", "\r": "R", "\n": "N"})
    assert [piece.translate(names) for piece in got] == pieces.split(" ")
    assert made.decode(encode(made, TEXT).tolist()) == TEXT


def test_a_file_without_pre_is_cut_by_default_and_says_so(tmp_path, caplog):
    made = load(tmp_path, pre=None)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "tokenizer.ggml.pre is missing" in record.message
    pieces = [piece for piece, _ in made.pre_tokenizer.pre_tokenize_str("x=12345")]
    assert pieces == ["x", "=", "123", "45"]


@pytest.mark.parametrize(("pre", "whole"), [("llama3", 1), ("smaug-bpe", 3)])
def test_llama_3_takes_a_word_that_is_a_token_whole(pre, whole, tmp_path):
    tokens = sorted(tokenizer().get_vocab(), key=tokenizer().token_to_id)
    made = load(tmp_path, pre=pre, tokens=[*tokens, "abc"])
    assert len(encode(made, "abc")) == whole


def test_tokens_that_look_like_control_are_taken_for_control(tmp_path):
    """A list of llama.cpp; converters have given them the type of ordinary text."""
    tokens = sorted(tokenizer().get_vocab(), key=tokenizer().token_to_id)
    made = load(tmp_path, tokens=[*tokens, "<|im_end|>", "<|im_odd|>"])
    assert encode(made, "the<|im_end|>").tolist() == [257, 261]
    assert 262 not in encode(made, "the<|im_odd|>").tolist()


def test_a_token_twice_is_refused_and_empty_ones_are_gaps(tmp_path):
    tokens = sorted(tokenizer().get_vocab(), key=tokenizer().token_to_id)
    made = load(tmp_path, tokens=[*tokens, "", "", "new"])
    assert made.token_to_id("new") == 263
    write_gguf(tmp_path / "m.gguf", {"tokenizer.ggml.tokens": [*tokens, "the"]})
    assert "has 'the' twice, as 257 and 261" in error_of_loading(tmp_path / "m.gguf")


# BPE pieces and numbers by the sentencepiece package 0.2.3 (byte_fallback, identity, split_digits)
WORDS = (
    "_t he _a in _w _the _s _h nd _o re it at ing _b er _and _m is _f _to _th _he ou ed _c on as"
    " _of an or en _d _l _n ll es _in _p im ot _be _ha ut _I _his _was le ow _that _wh se _g ld"
    ' om _it ar _e id _not ly ch _him gh _" st _ e t a o n h i s r d l u w f m c g , y b p v . k "'
    " I ' - A H ? T x S W K B L ! q ; M j G Y F C N z P O D"
)
SPOKEN = {
    "the other day, he said there was":
        [264, 268, 327, 260, 334, 291, 328, 344, 343, 281, 265, 328, 317, 264, 269, 305],
    " two  spaces and\nlines\t!":
        [325, 259, 338, 329, 325, 265, 346, 328, 341, 295, 275, 13, 336, 262, 295, 12, 364],
    "caf\u00e9 \u65e5\u672c 12345 \U0001f600":
        [284, 328, 339, 198, 172, 325, 233, 154, 168, 233, 159, 175, 325, 52, 53, 54, 55, 56, 325,
         243, 162, 155, 131],
    "": [],
    "aaaa tttthe": [261, 328, 328, 328, 259, 327, 327, 327, 260],
    "the\u2581the": [264, 264],
}  # fmt: skip
KIND = gguf.TokenType


def sentencepiece_fields(**changes):
    words = [word.replace("_", "\u2581") for word in WORDS.split()]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    types = [KIND.UNKNOWN, KIND.CONTROL, KIND.CONTROL, *[KIND.BYTE] * 256, *[KIND.NORMAL] * 378]
    scores = [0.0] * 259 + [-float(i) for i in range(len(words))]
    return {
        "model": "llama", "pre": "default", "tokens": tokens, "merges": None, "scores": scores,
        "token_type": [int(kind) for kind in types[: len(tokens)]],
    } | changes  # fmt: skip


def load_sentencepiece(path, **changes):
    return load(path, **sentencepiece_fields(**changes))


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    return load_sentencepiece(tmp_path_factory.mktemp("gguf"))


@pytest.mark.parametrize("text", SPOKEN)
def test_text_is_merged_as_sentencepiece_merges_it(text, sentencepiece):
    assert encode(sentencepiece, text).tolist() == SPOKEN[text]
    assert sentencepiece.decode(SPOKEN[text]) == text.replace("\u2581", " ")


@pytest.mark.parametrize("text", ["\nfoo \U0001f917 bar   ", "\uc7a0 \uae70 \uc218", "\u7bc7", " "])
def test_bytes_become_the_text_that_they_were(text, sentencepiece):
    """huggingface/transformers 47843 and 48041, cactus-compute/cactus 684: <0xEA> as text."""
    assert sentencepiece.decode(encode(sentencepiece, text).tolist()) == text


def test_special_tokens_of_sentencepiece_are_found_and_a_space_begins_what_follows(sentencepiece):
    """As llama.cpp and transformers: each piece after a special token begins with a space."""
    assert encode(sentencepiece, "<s>the</s>the").tolist() == [1, 264, 2, 264]
    assert (
        13 not in encode(sentencepiece, "<0x0A>").tolist()
    )  # text that looks like a byte is no byte


def test_sentencepiece_without_a_space_in_front(tmp_path):
    made = load_sentencepiece(tmp_path, add_space_prefix=False)
    assert encode(made, "the the").tolist() == [327, 260, 264]
    assert made.decode([327, 260, 264]) == "the the"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("scores", None, "is missing"),
        ("scores", [0.0], "one number for each of"),
        ("add_space_prefix", "no", "true or false, got 'no'"),
        ("token_type", [1] * 5, "one number for each of"),
    ],
)
def test_a_wrong_field_of_sentencepiece_is_named(field, value, said, tmp_path):
    with pytest.raises(ValueError) as caught:
        load_sentencepiece(tmp_path, **{field: value})
    assert f"tokenizer.ggml.{field}" in str(caught.value) and said in str(caught.value)


def test_sentencepiece_with_neither_bytes_nor_an_unknown_token_is_refused(tmp_path):
    fields = sentencepiece_fields()
    cut = {name: fields[name][259:] for name in ("tokens", "scores", "token_type")}
    with pytest.raises(ValueError, match="neither all bytes .* nor an unknown token"):
        load_sentencepiece(tmp_path, **cut)
