"""How loading a GGUF fails: one line that names the file and what is wrong in it."""

import numpy as np
import pytest
from gguf_files import write_gguf
from small_models import error_of_loading

from isojax.models import load_model


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("general.architecture", "gemma", "must be one of qwen2, qwen3, llama; got 'gemma'"),
        ("llama.block_count", None, "positive int, got None"),
        ("llama.block_count", "two", "positive int, got 'two'"),
        ("llama.attention.head_count_kv", [1, 2], "positive int, got [1, 2]"),
        ("llama.attention.head_count_kv", 3, "must divide num_attention_heads=4, got 3"),
        ("llama.attention.layer_norm_rms_epsilon", -1.0, "positive float, got -1.0"),
        ("llama.attention.value_length", 16, "16 is not supported, only 8"),
        ("llama.rope.dimension_count", 4, "4 is not supported, only 8"),
        ("llama.rope.scaling.type", "longrope", "one of none, linear, yarn; got 'longrope'"),
        ("llama.rope.scaling.type", ["yarn"], "one of none, linear, yarn; got ['yarn']"),
        ("llama.rope.scaling.factor", -4.0, "positive float, got -4.0"),
        ("llama.rope.scale_linear", "two", "positive float, got 'two'"),
        ("llama.rope.scaling.attn_factor", 1.5, "1.5 is not supported, only 1"),
        ("llama.attention.sliding_window", "wide", "positive int, got 'wide'"),
        ("llama.attention.causal", False, "False is not supported"),
        ("llama.attention.clamp_kqv", 8.0, "8.0 is not supported"),
        ("llama.attention.max_alibi_bias", 8.0, "8.0 is not supported"),
        ("llama.attention.scale", 0.25, "0.25 is not supported"),
        ("llama.attn_logit_softcapping", 50.0, "50.0 is not supported"),
        ("llama.final_logit_softcapping", 30.0, "30.0 is not supported"),
        ("llama.embedding_scale", 12.0, "12.0 is not supported, only 1"),
        ("llama.residual_scale", 0.5, "0.5 is not supported, only 1"),
        ("llama.logit_scale", 0.5, "0.5 is not supported, only 1"),
        ("llama.use_parallel_residual", True, "True is not supported"),
        ("llama.expert_count", 8, "8 is not supported, only 0"),
        ("tokenizer.ggml.model", "bert", "must be one of gpt2, llama; got 'bert'"),
        ("tokenizer.ggml.pre", "deepseek-llm", "got 'deepseek-llm'"),
        ("tokenizer.ggml.pre", ["qwen2"], "got ['qwen2']"),
        ("tokenizer.ggml.tokens", None, "is missing"),
        ("tokenizer.ggml.tokens", [1, 2], "must be a list of strings"),
        ("tokenizer.ggml.merges", ["t h", "h"], "must be pairs of tokens"),
        ("tokenizer.ggml.merges", ["t h", "never seen"], "do not fit"),
        ("tokenizer.ggml.token_type", [1, 1], "one number for each of 261 tokens"),
    ],
)
def test_a_wrong_field_of_a_gguf_is_named(field, value, said, tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, {field: value})
    message = error_of_loading(path)
    assert str(path) in message and said in message
    assert field in message or "num_attention_heads" in said


def test_fields_of_a_gguf_that_change_nothing_are_accepted(tmp_path):
    write_gguf(tmp_path / "plain.gguf")
    neutral = {
        "llama.attention.sliding_window": 0, "llama.attention.causal": True,
        "llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 1.0,
        "llama.rope.dimension_count": 8, "llama.expert_count": 0, "llama.logit_scale": 1.0,
    }  # fmt: skip
    write_gguf(tmp_path / "same.gguf", neutral)
    plain, same = (load_model(str(tmp_path / f"{n}.gguf")) for n in ("plain", "same"))
    assert plain.config == same.config


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("token_embd.weight", None, "is missing"),
        ("blk.0.ffn_up.weight", None, "is missing"),
        ("blk.0.ffn_up.weight", np.ones((64, 16), "f4"), "must have shape (64, 32), got (64, 16)"),
        (
            "blk.0.ffn_up.weight",
            np.ones((64, 32), "i1"),
            "must be of dtype F64, F32, F16, BF16; got I8",
        ),
        ("blk.1.ffn_up.weight", np.ones((64, 32), "f4"), "has no place"),
        ("rope_freqs.weight", np.array([1, 2, 3, 4], "f4"), "is not the rescaling of Llama 3"),
    ],
)
def test_a_wrong_tensor_of_a_gguf_is_named(name, array, said, tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, tensors={name: array})
    message = error_of_loading(path)
    assert str(path) in message and name in message and said in message


def test_a_gguf_cut_off_anywhere_is_named(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path)
    load_model(str(path))
    whole = path.read_bytes()
    for size in (0, 3, 20, 100, 1000, 4000, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:size])
        assert f"{path}: not a readable GGUF file" in error_of_loading(path), size


def test_a_gguf_of_noise_is_named(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path)
    head = path.read_bytes()[:24]
    noise = np.random.default_rng(0)
    for start in (b"", head[:8], head):
        path.write_bytes(start + noise.bytes(3000))
        assert f"{path}: not a readable GGUF file" in error_of_loading(path)
