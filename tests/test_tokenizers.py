"""Tokenizers of folders: tokens that only small files know, and files that are hostile."""

import base64
import json
import struct

import numpy as np
import pytest
from small_models import error_of_loading, tokenizer
from transformers import AutoTokenizer

from isojax.models import encode, load_tokenizer
from isojax.models.tokenizer_json import refuses_panic

TEXT = "the<|im_start|>in<|end|> the<|eot|>[PAD]"


def token(content, special=True, **flags):
    plain = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    return {"content": content, "special": special} | plain | flags


MADE = {"__type": "AddedToken"}
END = {"260": token("<|end|>")}
FILES = {
    "added_tokens_decoder": {
        "tokenizer_config.json": {
            "added_tokens_decoder": END
            | {"261": token("<|im_start|>"), "262": token("<|eot|>", False)}
        }
    },
    "a token of the vocabulary": {
        "tokenizer_config.json": {"added_tokens_decoder": END | {"256": token("th")}}
    },
    "strips": {
        "tokenizer_config.json": {
            "added_tokens_decoder": END | {"261": token("<|eot|>", lstrip=True, rstrip=True)}
        }
    },
    "added_tokens.json": {
        "tokenizer_config.json": {"eos_token": "<|end|>"},
        "added_tokens.json": {"<|im_start|>": 261, "<|eot|>": 262},
    },
    "added_tokens.json alone": {"added_tokens.json": {"<|im_start|>": 261}},
    "roles": {"tokenizer_config.json": {"eos_token": "<|im_start|>"}},
    "a role in full": {"tokenizer_config.json": {"eos_token": token("<|im_start|>") | MADE}},
    "special_tokens_map": {"special_tokens_map.json": {"eos_token": {"content": "<|im_start|>"}}},
}


def write(folder, files=(), change=lambda fields: None):
    fields = json.loads(tokenizer().to_str())
    change(fields)
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    for name, content in dict(files).items():
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("case", FILES)
def test_tokens_of_the_small_files_are_those_of_transformers(case, tmp_path):
    write(tmp_path, FILES[case])
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    want = AutoTokenizer.from_pretrained(tmp_path)(TEXT, add_special_tokens=False)["input_ids"]
    got = encode(load_tokenizer(tmp_path), TEXT).tolist()
    assert got == want
    assert got != encode(tokenizer(), TEXT).tolist()


def test_special_tokens_beyond_the_vocabulary_come_last(tmp_path):
    files = {"additional_special_tokens": ["<|im_start|>", token("<|eot|>")], "pad_token": "[PAD]"}
    write(tmp_path, {"tokenizer_config.json": files})
    made = load_tokenizer(tmp_path)
    assert encode(made, TEXT)[-1] == made.token_to_id("[PAD]") == 261
    assert [made.token_to_id(t) for t in ("<|im_start|>", "<|eot|>")] == [262, 263]
    assert made.decode([261, 262, 257]) == "the"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": {"265": token("<a>")}}, "number 261"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"5": token("<a>")}}, "number 261"),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "must be an object, got [1]"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": token("a")}}, "whole, got 'x'"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"261": 5}}, "a content, got 5"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"261": {"content": "<a>", "special": 1}}},
            "special must be true or false, got 1",
        ),
        ("tokenizer_config.json", {"eos_token": 7}, "eos_token: a token must be text"),
        ("tokenizer_config.json", {"additional_special_tokens": 7}, "a list of tokens, got 7"),
        ("added_tokens.json", {"<a>": "many"}, "whole, got 'many'"),
        ("added_tokens.json", {"<a>": 270}, "must have the number 261"),
        ("added_tokens.json", ["<a>"], "must hold a JSON object, got list"),
    ],
)
def test_a_wrong_small_file_is_named(name, content, said, tmp_path):
    write(tmp_path, {name: content})
    with pytest.raises(ValueError) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path / name) in str(caught.value) and said in str(caught.value)


def test_merges_are_left_out_by_no_chance(tmp_path):
    write(tmp_path, change=lambda fields: fields["model"].update(dropout=0.5))
    made, text = load_tokenizer(tmp_path), "then the thing in the inn " * 20
    want = encode(tokenizer(), text).tolist()
    assert all(encode(made, text).tolist() == want for _ in range(5))


def charsmap(blob):
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(blob).decode()}


def pattern(kind, text):
    return {"type": kind, "pattern": {"Regex": text}, "content": "", "behavior": "Isolated",
            "invert": False}  # fmt: skip


FIXED = {"type": "FixedLength", "length": 0}
HOSTILE = {
    "charsmap of 4 bytes": {"normalizer": charsmap(bytes(4))},
    "charsmap of 2 bytes": {"normalizer": charsmap(b"ab")},
    "charsmap of nothing": {"normalizer": charsmap(b"")},
    "charsmap that points away": {"normalizer": charsmap(struct.pack("<I", 1024) + b"\xff" * 1030)},
    "charsmap of no base64": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "\n!"}},
    "charsmap that asks for 4 GB": {"normalizer": charsmap(struct.pack("<I", 0xFFFFFFF0))},
    "length 0": {"pre_tokenizer": FIXED},
    "length 0 inside": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [FIXED]}},
    "empty replaced": {"normalizer": pattern("Replace", "")},
    "a bracket": {"pre_tokenizer": pattern("Split", "(a")},
    "number of an added token": {"added_tokens": [token("<|end|>") | {"id": 7}]},
    "a template of nothing": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    },
    "a model of nothing": {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "q"}},
    "a list": {"model": []},
    "no tokens": {"added_tokens": 5},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_tokenizer_ends_in_one_line_that_names_it(case, tmp_path):
    write(tmp_path, change=lambda fields: fields.update(HOSTILE[case]))
    with pytest.raises(ValueError) as caught:
        load_tokenizer(tmp_path)
    message = str(caught.value)
    assert str(tmp_path / "tokenizer.json") in message and "\n" not in message
    assert len(message) < 500


def test_a_prefix_that_no_merge_has_is_refused(tmp_path):
    write(tmp_path, change=lambda fields: fields["model"].update(continuing_subword_prefix="###"))
    assert "tokenizer.json: not a readable tokenizer" in error_of_loading(tmp_path)


def test_padding_to_a_trillion_is_not_done(tmp_path):
    padding = {
        "strategy": {"Fixed": 10**12}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "x",
    }  # fmt: skip
    cut = {"max_length": 3, "stride": 5, "strategy": "LongestFirst", "direction": "Right"}
    write(tmp_path, change=lambda fields: fields.update(padding=padding, truncation=cut))
    assert len(encode(load_tokenizer(tmp_path), "x" * 50)) == 50


def test_a_text_that_a_pattern_fails_on_is_one_error(tmp_path):
    write(tmp_path, change=lambda fields: fields.update(pre_tokenizer=pattern("Split", "(a+)+$")))
    made = load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"^a text of 41 characters cannot be encoded \("):
        encode(made, "a" * 40 + "b")


def test_a_charsmap_that_fails_on_one_letter_alone_is_one_error(tmp_path):
    trie = np.zeros(256, "<u4")
    trie[ord("Q")] = ord("Q") | 1 << 8 | 2**20 << 10  # its value would lie behind the end
    normalizer = charsmap(struct.pack("<I", 1024) + trie.tobytes() + b"a\0")
    write(tmp_path, change=lambda fields: fields.update(normalizer=normalizer))
    made = load_tokenizer(tmp_path)
    assert encode(made, "the in").size
    with pytest.raises(ValueError, match=r"^a text of 1 characters cannot be encoded \("):
        encode(made, "Q")
    (tmp_path / "added_tokens.json").write_text('{"<Q>": 261}')
    with pytest.raises(ValueError, match=r"added_tokens.json: '<Q>' cannot be normalized \(index"):
        load_tokenizer(tmp_path)


def test_ids_are_of_32_bits(tmp_path):
    assert encode(load_tokenizer(write(tmp_path)), "the in").dtype == np.int32


SLOW = {
    "vocab.json of no JSON": {"vocab.json": b"[1"},
    "vocab.json of no UTF-8": {"vocab.json": b'{"\xff": 0}'},
    "a list for a vocabulary": {"vocab.json": b"[1]"},
    "numbers below zero": {"vocab.json": b'{"a": -1}'},
    "merges of other tokens": {"merges.txt": b"#version: 0.2\nq z\nqz q\n"},
    "merges of no pairs": {"merges.txt": b"#version: 0.2\nqz\n"},
    "a class that is a list": {"tokenizer_config.json": b'{"tokenizer_class": []}'},
    "a class by a number": {"tokenizer_config.json": b'{"tokenizer_class": 5}'},
    "a list of settings": {"tokenizer_config.json": b"[1]"},
    "deep nesting": {"tokenizer_config.json": b"[" * 100_000},
    "random bytes": {"tokenizer.model": bytes(range(7, 200)), "vocab.json": b"{}"},
}


@pytest.mark.parametrize("case", SLOW)
def test_vocabulary_files_that_are_damaged_are_one_line(case, tmp_path):
    fields = json.loads(tokenizer().to_str())["model"]
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    (tmp_path / "vocab.json").write_text(json.dumps(fields["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    for name, content in SLOW[case].items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="transformers reads no tokenizer") as caught:
        load_tokenizer(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: no tokenizer.json") and "\n" not in message


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, MemoryError])
def test_only_what_the_package_raises_is_taken_for_a_damaged_file(error):
    with pytest.raises(error), refuses_panic("not a readable tokenizer"):
        raise error
