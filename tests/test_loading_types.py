"""Fields of every wrong kind end in a ValueError of one line that names the file."""

import json

import numpy as np
import pytest
from gguf_files import write_gguf
from small_models import error_of_loading, small_model, tokenizer

from isojax.models import config_from_hf, load_model, param_shapes, save_checkpoint
from isojax.models.gguf_config import config_from_gguf
from isojax.models.gguf_file import GgufFile
from isojax.models.gguf_tokenizer import build_tokenizer

MODEL = small_model(num_hidden_layers=2)
RIGHT = {
    "model_type": "qwen2", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "rms_norm_eps": 1e-6, "rope_theta": 1e4, "tie_word_embeddings": True, "hidden_act": "silu",
    "max_position_embeddings": 64, "use_sliding_window": True, "sliding_window": 16,
    "max_window_layers": 2, "layer_types": None, "attention_bias": False, "mlp_bias": False,
    "is_causal": True, "quantization_config": None, "partial_rotary_factor": 1.0,
    "rope_scaling": None, "rope_parameters": None, "original_max_position_embeddings": None,
}  # fmt: skip
DEEP: list = []
for _ in range(500):
    DEEP = [DEEP]
ODD = [
    [1], {"a": 1}, "", "4", -1, 0, 2.5, True, None, DEEP, 1e308, float("inf"), float("nan"),
    2**31 - 1, 2**63, 10**400,
]  # fmt: skip
ODD_ROPE = [
    {"rope_type": []}, {"type": {}}, {"rope_type": "linear", "factor": []},
    {"rope_type": "yarn", "factor": 10**400}, {"rope_theta": 1e-5},
    {"rope_type": "yarn", "factor": 2.0, "rope_theta": 0.5},
    {"rope_type": "yarn", "factor": 2.0, "beta_fast": 1e299, "beta_slow": 1e-299},
    {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 2**40},
    {"rope_type": "llama3", "factor": 1, "low_freq_factor": 1, "high_freq_factor": 2,
     "original_max_position_embeddings": 1e299},
]  # fmt: skip


def test_a_field_of_any_kind_is_read_or_refused_in_one_line():
    cases = [(RIGHT, name, value) for name in RIGHT for value in ODD]
    mistral = RIGHT | {"model_type": "mistral"}
    cases += [(mistral, "sliding_window", value) for value in ODD]
    cases += [(RIGHT, "rope_scaling", value) for value in ODD_ROPE]
    for fields, name, value in cases:
        try:
            config_from_hf(fields | {name: value}, "FILE")
        except ValueError as error:  # any other error fails
            message = str(error)
            assert message.startswith("FILE: ") and "\n" not in message, (name, value)
            assert len(message) < 400, (name, value)


def test_the_largest_sizes_that_are_read_ask_for_no_memory():
    largest = dict.fromkeys(("vocab_size", "intermediate_size", "num_hidden_layers"), 2**31 - 1)
    shapes = param_shapes(config_from_hf(RIGHT | largest | {"max_window_layers": 2**31}))
    assert shapes["embedding"].shape == (2**31 - 1, 32)


@pytest.mark.parametrize(
    ("field", "text", "said"),
    [
        ("model_type", "[]", "model_type must be one of"),
        ("layer_types", "5", "layer_types must be a list of 2 strings, got 5"),
        ("layer_types", '["full_attention"]', "layer_types must be a list of 2 strings"),
        ("rope_theta", "1e400", "rope_theta must be a positive number, got inf"),
        ("rope_theta", "1" + "0" * 400, "rope_theta must be a positive number"),
        ("vocab_size", "1000000000000", "vocab_size must be at most 2147483647"),
        ("num_hidden_layers", "2000000000", "is missing"),
        ("rope_scaling", '{"rope_type": [1]}', "rope_type must be one of"),
        ("quantization_config", '{"quant_method": ["a"]}', "quantized as ['a']"),
        ("max_window_layers", '"x"', "max_window_layers must be a whole number, got 'x'"),
    ],
)
def test_a_field_of_the_wrong_kind_in_a_folder_is_named(field, text, said, tmp_path):
    save_checkpoint(tmp_path, MODEL.config, MODEL.params, like=MODEL)
    path = tmp_path / "config.json"
    fields = {n: x for n, x in json.loads(path.read_text()).items() if n != field}
    path.write_text(json.dumps(fields)[:-1] + f', "{field}": {text}}}')
    message = error_of_loading(tmp_path)
    assert said in message and str(tmp_path) in message


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize(
    "content", [b"\xff\xfe{", b"[" * 100_000, b"[1]", b'{"a": \xff}', b"nul", b'"text"']
)
def test_json_of_any_kind_is_named(name, content, tmp_path):
    save_checkpoint(tmp_path, MODEL.config, MODEL.params)
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / name).write_bytes(content)
    assert str(tmp_path / name) in error_of_loading(tmp_path)


def test_json_may_begin_with_a_byte_order_mark(tmp_path):
    save_checkpoint(tmp_path, MODEL.config, MODEL.params, like=MODEL)
    path = tmp_path / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_model(str(tmp_path)).config == MODEL.config


FIELDS = (
    "general.architecture", "llama.block_count", "llama.attention.head_count",
    "llama.attention.layer_norm_rms_epsilon", "llama.attention.sliding_window",
    "llama.context_length", "llama.rope.freq_base", "llama.rope.scaling.type",
    "llama.rope.scaling.factor", "tokenizer.ggml.model", "tokenizer.ggml.pre",
    "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges",
    "tokenizer.ggml.eos_token_id", "tokenizer.chat_template", "split.count", "split.no",
)  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_a_gguf_of_any_kind_is_read_or_refused_in_one_line(field, tmp_path):
    path = tmp_path / "m.gguf"
    for value in ("x", 2**32 - 1, float("nan"), True, [1], ["a"]):
        if field == "general.architecture" and not isinstance(value, str):
            continue
        write_gguf(path, {field: value})
        try:
            file = GgufFile(path)
            config_from_gguf(file)
            build_tokenizer(file.get, file.source)
        except ValueError as error:  # any other error fails
            assert str(path) in str(error) and "\n" not in str(error), value
            assert len(str(error)) < 600


@pytest.mark.parametrize("name", ["token_embd.weight", "blk.0.ffn_up.weight", "rope_freqs.weight"])
@pytest.mark.parametrize("shape", [(), (0,), (0, 32), (1, 1, 1, 1)])
def test_a_tensor_of_a_gguf_of_any_shape_is_named(name, shape, tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, tensors={name: np.full(shape, 2, "f4")})
    message = error_of_loading(path)
    assert str(path) in message and (name in message or "not a readable GGUF file" in message)
