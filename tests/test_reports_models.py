"""Public reports of this field on models, attention and files, tried on small inputs.

Each test names the report: repository and number.
"""

import json

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import torch
from gguf_files import write_gguf
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.numpy import load_file
from small_models import FAMILIES, random_tokens, randomised, small_config, small_model, tokenizer
from transformers import GenerationConfig

from isojax.kvcache import causal_attention
from isojax.models import (
    empty_cache,
    encode,
    forward,
    load_checkpoint,
    load_model,
    logits,
    save_checkpoint,
)
from isojax.models.config import config_from_hf, config_to_hf
from isojax.quantize import Plan

HF = config_to_hf(small_config())


def attention_in_fp64(q, k, v):
    """[t, heads * dim], of the numbers as they are."""
    q, k, v = (np.asarray(x[0].astype(jnp.float32), np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, q.shape[1] // k.shape[1], axis=1) for x in (k, v))
    scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(q.shape[-1])
    scores = np.where(np.tri(len(q), dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hts,shd->thd", weights / weights.sum(-1, keepdims=True), v).reshape(
        len(q), -1
    )


@pytest.mark.parametrize("dim", [64, 80, 128])
def test_scaling_rounds_no_query_once_more(dim):
    """antirez/h3.c 3: queries in bf16 times d^-1/2 in bf16, where that is no power of two."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((1, 32, 4, dim), (1, 32, 2, dim), (1, 32, 2, dim))
    q, k, v = (jax.random.normal(*pair) for pair in zip(keys, shapes, strict=True))
    q, k = (3 * q).astype(jnp.bfloat16), k.astype(jnp.bfloat16)
    want = attention_in_fp64(q, k, v)
    rounded = jnp.asarray(want, jnp.bfloat16).astype(jnp.float32)
    got = causal_attention(q, k, v)[0].astype(jnp.float32)
    floor, error = (np.sqrt(np.mean(np.square(x - want))) for x in (rounded, got))
    assert error < 1.001 * floor


@pytest.mark.parametrize("q, k, v", [
    ((1, 4, 3, 8), (1, 4, 2, 8), (1, 4, 2, 8)), ((1, 4, 2, 8), (1, 4, 3, 8), (1, 4, 3, 8)),
    ((1, 4, 4, 8), (2, 4, 2, 8), (2, 4, 2, 8)), ((1, 4, 4, 8), (1, 4, 2, 8), (1, 4, 4, 8)),
    ((1, 4, 4, 8), (1, 4, 2, 8), (1, 5, 2, 8)), ((1, 4, 4, 8), (1, 4, 2, 4), (1, 4, 2, 8)),
    ((1, 6, 4, 8), (1, 4, 2, 8), (1, 4, 2, 8)),
])  # fmt: skip
def test_heads_and_texts_that_do_not_fit_are_refused(q, k, v, monkeypatch):
    """fla-org/flash-linear-attention 1029: heads by a division that leaves a rest."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="k and v must be of 1 texts"):
        causal_attention(jnp.ones(q), jnp.ones(k), jnp.ones(v))


def test_a_cache_reads_no_other_texts_than_its_queries(monkeypatch):
    """fla-org/flash-linear-attention 1029: the same behind a cache."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    cache = empty_cache(small_config(num_hidden_layers=1), batch=2, slots=4).unstack()
    (layer,) = cache.layers
    given = jnp.ones((1, 2, 4, 8)), jnp.ones((2, 2, 2, 8)), jnp.ones((2, 2, 2, 8))
    with pytest.raises(ValueError, match="k and v must be of 1 texts"):
        layer.attend(*given, jnp.asarray(0), jnp.ones(4))


@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
def test_a_factor_without_a_kind_is_not_ignored(name):
    """NVIDIA/Megatron-LM 6305: a factor of the rotary embedding ignored in silence."""
    with pytest.raises(ValueError, match=r"config.json: rope_type must be given with factor=4"):
        config_from_hf(HF | {name: {"factor": 4.0}})
    for neutral in ({"factor": 1.0}, {"factor": None}, {"rope_theta": 1e4}):
        assert config_from_hf(HF | {name: neutral}).rope_scaling is None


@pytest.mark.parametrize("scaling", [
    {"type": "linear", "factor": 8.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 8192},
])  # fmt: skip
def test_rescaled_positions_survive_a_checkpoint(scaling, tmp_path):
    """NVIDIA-NeMo/Megatron-Bridge 5097: linear scaling lost on export."""
    config = config_from_hf(HF | {"rope_scaling": scaling})
    assert config.rope_scaling is not None and config.rope_scaling.factor == scaling["factor"]
    params = small_model().params
    save_checkpoint(tmp_path, config, params)
    assert load_checkpoint(tmp_path)[0] == config


def test_heads_need_not_divide_the_width_where_their_length_is_given(tmp_path):
    """huggingface/transformers 47707, 46211: hidden_size 1792 with 24 heads of 128."""
    make_config, make_model = FAMILIES["mistral"]
    torch.manual_seed(0)
    theirs = randomised(make_model(make_config(
        vocab_size=300, hidden_size=36, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=8, num_key_value_heads=2, head_dim=16, sliding_window=None,
        tie_word_embeddings=False, max_position_embeddings=64,
    )))  # fmt: skip
    theirs.save_pretrained(tmp_path)
    for family in ("mistral", "llama"):  # of which torch has no such model
        fields = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(fields | {"model_type": family}))
        config, params = load_checkpoint(tmp_path)
        assert config.head_dim == 16 and config.architecture == family
        ids = random_tokens(1, 12)
        got = logits(params, forward(params, config, jnp.asarray(ids)).hidden)
        with torch.no_grad():
            want = theirs(torch.tensor(ids).long()).logits
        assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize(
    ("ends", "want"),
    [
        ({"eos": 260}, 260), ({"eos": 260, "eot": 260}, 260), ({"eot": 7}, 7),
        ({"eos": 260, "eot": 7}, [260, 7]), ({"eos": 7, "eot": 260, "eom": 9}, [7, 260, 9]),
        ({"eos": 260, "eot": 9999}, 260),
    ],
)  # fmt: skip
def test_all_tokens_that_end_a_text_go_into_a_checkpoint(ends, want, tmp_path):
    """NVIDIA/TensorRT-Model-Connect 640, turboderp-org/exllamav2 449: one end of several."""
    fields = {f"tokenizer.ggml.{name}_token_id": number for name, number in ends.items()}
    write_gguf(tmp_path / "m.gguf", fields)
    ours = load_model(str(tmp_path / "m.gguf"))
    save_checkpoint(tmp_path / "out", ours.config, ours.params, like=ours)
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == want
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == want
    assert load_model(str(tmp_path / "out")).sidecar.fields["eos_token_id"] == want


def test_numbers_do_not_depend_on_the_order_in_memory(tmp_path):
    """safetensors/safetensors 825: arrays in Fortran's order, written as if they were in C's."""
    model = small_model(num_hidden_layers=1)
    params = jax.tree.map(lambda x: np.asfortranarray(np.asarray(x)), model.params)
    kernel = params["layers"]["up_proj"]["kernel"]
    assert not kernel.flags["C_CONTIGUOUS"]
    save_checkpoint(tmp_path, model.config, params)
    jax.tree.map(assert_array_equal, load_checkpoint(tmp_path)[1], model.params)
    stored = load_file(tmp_path / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert_array_equal(stored, kernel[0].T)


def test_a_rule_for_layer_one_is_none_for_layer_eleven():
    """intel/auto-round 360 and 1553: layers.1 taken for layers.11 too."""
    plan = Plan.parse("weight:up_proj[1]: absmax bits=4; weight:up_proj[-1,2:4]: absmax bits=8")
    bits = [None if part is None else part.bits for part in plan.at("weight:up_proj", 22)]
    assert bits == [None, 4, 8, 8, *[None] * 17, 8]


def test_special_tokens_come_from_nowhere(tmp_path):
    """huggingface/transformers 40524, ggml-org/llama.cpp 23252: a first token, or none."""
    write_gguf(tmp_path / "m.gguf", {
        "tokenizer.ggml.bos_token_id": 260, "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": True,
    })  # fmt: skip
    ours = load_model(str(tmp_path / "m.gguf"))
    assert_array_equal(encode(ours.tokenizer, "the tin"), encode(tokenizer(), "the tin"))
    assert_array_equal(encode(ours.tokenizer, "<|end|>the"), [260, 257])
