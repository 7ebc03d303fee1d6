"""Which tensors of a checkpoint make the model, which are left out, and which are refused."""

import functools
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from gguf_files import write_gguf
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch
from small_models import (
    edit_json,
    error_of_loading,
    random_tokens,
    saved,
    small_model,
    tokenizer,
    torch_model,
)
from transformers import AutoModelForCausalLM

from isojax.models import forward, load_checkpoint, load_model, logits, save_checkpoint

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENS = random_tokens(1, 12)
MODEL = small_model(num_hidden_layers=2)


@pytest.fixture
def folder(tmp_path):
    return saved(tmp_path, MODEL)


def add(folder, **tensors):
    """Tensors of numpy by name (dots as two underscores)."""
    more = {name.replace("__", "."): x for name, x in tensors.items()}
    save_file(load_file(folder / WEIGHTS) | more, folder / WEIGHTS)


@functools.partial(jax.jit, static_argnums=1)
def read(params, config):
    return forward(params, config, jnp.asarray(TOKENS)).hidden


def jax_logits(model):
    return np.asarray(logits(model.params, read(model.params, model.config)))


def torch_logits(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS).long()).logits.numpy()


def same(got, want):
    assert jax.tree.all(jax.tree.map(np.array_equal, got, want))


def close(got, want):
    return np.abs(got - want).max() < 1e-4 * np.abs(want).max()


@pytest.mark.parametrize("case", ["qwen2", "qwen3", "llama"])
def test_a_head_of_its_own_is_used_though_the_file_says_tied(case, tmp_path):
    torch_model(case, layers=1).save_pretrained(tmp_path)
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    edit_json(tmp_path / "config.json", tie_word_embeddings=True)
    ours, want = load_model(str(tmp_path)), torch_logits(tmp_path)
    head = load_file(tmp_path / WEIGHTS)["lm_head.weight"]
    np.testing.assert_array_equal(ours.params["head"], head.T)
    if case == "qwen2":  # one compilation will do
        assert close(jax_logits(ours), want)
        tied = {name: x for name, x in ours.params.items() if name != "head"}
        without = logits(tied, read(ours.params, ours.config))
        assert np.abs(without - want).max() > np.abs(want).max()
    assert not ours.config.tie_word_embeddings
    save_checkpoint(tmp_path / "again", ours.config, ours.params, like=ours)
    assert close(torch_logits(tmp_path / "again"), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_that_is_the_embedding_is_dropped(dtype, tmp_path):
    torch_model("qwen2-tied").to(dtype).save_pretrained(tmp_path)
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    tensors = load_torch(tmp_path / WEIGHTS)
    embedding = tensors["model.embed_tokens.weight"]
    for head in (embedding.clone(), embedding.float().clone()):
        save_torch(tensors | {"lm_head.weight": head}, tmp_path / WEIGHTS)
        ours = load_model(str(tmp_path))
        assert "head" not in ours.params and ours.config.tie_word_embeddings
    # one number of another row is enough
    head = embedding.clone()
    head[7, 3] += 1
    save_torch(tensors | {"lm_head.weight": head}, tmp_path / WEIGHTS)
    assert float(load_model(str(tmp_path)).params["head"][3, 7]) == float(head[7, 3])


def test_a_tied_model_may_hold_its_head_alone_and_not_one_of_another_shape(folder):
    tensors = load_file(folder / WEIGHTS)
    embedding = tensors.pop("model.embed_tokens.weight")
    save_file(tensors | {"lm_head.weight": embedding}, folder / WEIGHTS)
    same(load_model(str(folder)).params, MODEL.params)
    both = {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding[:-1].copy()}
    save_file(tensors | both, folder / WEIGHTS)
    assert "lm_head.weight must have shape (300, 32), got (299, 32)" in error_of_loading(folder)


def shard(folder, places):
    """Spread the tensors over shards by `places`, a function of their names."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    weight_map = {name: places(name) for name in tensors}
    for file in set(weight_map.values()):
        save_file({n: x for n, x in tensors.items() if places(n) == file}, folder / file)
    return weight_map


def halves(name):
    return "b.safetensors" if "layers.1" in name else "a.safetensors"


def test_an_index_may_name_the_head_of_a_tied_model_that_no_shard_has(folder):
    weight_map = shard(folder, halves) | {"lm_head.weight": "b.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert "head" not in load_model(str(folder)).params
    edit_json(folder / "config.json", tie_word_embeddings=False)
    assert "lm_head.weight is missing, which the index names" in error_of_loading(folder)


def test_the_index_says_which_shard_counts(folder):
    weight_map = shard(folder, halves)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    for file, other in (("a", "b"), ("b", "a")):
        tensors = load_file(folder / f"{file}.safetensors")
        stale = {n: x for n, x in load_file(folder / f"{other}.safetensors").items() if x.ndim > 1}
        save_file({n: 0 * x for n, x in stale.items()} | tensors, folder / f"{file}.safetensors")
    same(load_model(str(folder)).params, MODEL.params)


@pytest.mark.parametrize(
    "name",
    ["x" * 300 + ".safetensors", "a\0b.safetensors", "\ud800.safetensors", "\n.safetensors"],
)
def test_a_shard_whose_name_no_file_can_have_is_refused_in_one_line(name, folder):
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    message = error_of_loading(folder, (ValueError, FileNotFoundError))
    assert INDEX in message and "weight_map" in message and len(message) < 500
    assert message.isprintable()


def test_names_that_are_no_line_of_text_are_shown_as_literals(folder):
    add(folder, **{"a\nb": np.zeros(3, "f4")})
    assert r"tensor 'a\nb' has no place in this model" in error_of_loading(folder)
    weight_map = shard(folder, halves) | {"\ud800\n": "a.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert r"tensor '\ud800\n' is missing" in error_of_loading(folder)


@pytest.mark.parametrize("case", ["qwen2-tied", "llama"])
def test_names_without_the_prefix_model_are_read(case, tmp_path):
    model = torch_model(case)
    model.model.save_pretrained(tmp_path)
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    assert "embed_tokens.weight" in load_file(tmp_path / WEIGHTS)
    if case == "llama":  # an untied model is not whole without its head
        assert "lm_head.weight is missing" in error_of_loading(tmp_path)
        add(tmp_path, lm_head__weight=model.lm_head.weight.detach().numpy())
    bare = load_model(str(tmp_path)).params
    model.save_pretrained(tmp_path)
    assert "model.embed_tokens.weight" in load_file(tmp_path / WEIGHTS)
    same(bare, load_model(str(tmp_path)).params)


L0 = "model__layers__0__"
HARMLESS = {
    f"{L0}self_attn__k_scale": np.float32(0.5).reshape(1),
    f"{L0}self_attn__k_proj__k_scale": np.ones(1, "f4"),
    "score__weight": np.ones((3, 32), "f4"),
    f"{L0}self_attn__rotary_emb__cos_cached": np.ones((1, 1, 8, 8), "f4"),
    f"{L0}self_attn__masked_bias": np.zeros(1, "i8"),
    "model__position_ids": np.arange(8),
    f"{L0}self_attn__mask": np.ones(8, bool),
    f"{L0}self_attn__o_proj__bias": np.zeros(32, "f4"),
    f"{L0}mlp__up_proj__bias": np.zeros(64, "f4"),
    "lm_head__bias": np.zeros(300, "f4"),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_a_harmless_tensor_is_named_in_one_line_of_warning(name, folder, caplog):
    add(folder, **{name: HARMLESS[name]})
    got = load_model(str(folder))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "\n" not in record.getMessage()
    assert name.replace("__", ".") in record.getMessage() and str(folder) in record.getMessage()
    same(got.params, MODEL.params)


def test_many_harmless_tensors_are_one_line(folder, caplog):
    add(folder, **HARMLESS)
    load_model(str(folder))
    (record,) = caplog.records
    assert "and 6 more" in record.getMessage()


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("mlp.up_proj.weight_scale", "compressed-tensors or ModelOpt"),
        ("mlp.up_proj.input_scale", "compressed-tensors or ModelOpt"),
        ("mlp.up_proj.weight_packed", "compressed-tensors"),
        ("mlp.up_proj.weight_scale_inv", "FP8"),
        ("mlp.up_proj.qzeros", "GPTQ or AWQ"),
        ("mlp.up_proj.qweight", "GPTQ or AWQ"),
        ("mlp.up_proj.scales", "GPTQ or AWQ"),
        ("mlp.up_proj.weight.absmax", "bitsandbytes"),
        ("mlp.up_proj.weight.quant_state.bitsandbytes__nf4", "bitsandbytes"),
        ("mlp.up_proj.SCB", "bitsandbytes"),
        ("mlp.up_proj.W_q", "HQQ"),
        ("mlp.up_proj.codebooks", "AQLM"),
        ("mlp.gate_up_proj_blocks", "MXFP4"),
    ],
)
def test_what_belongs_to_a_quantized_checkpoint_is_refused_by_its_format(name, form, folder):
    full = f"model.layers.1.{name}"
    tensors = load_file(folder / WEIGHTS)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors | {full: np.ones((4, 4), "i4")}, folder / WEIGHTS)
    message = error_of_loading(folder)
    assert f"tensor {full} belongs to a checkpoint quantized as {form}" in message
    assert str(folder / WEIGHTS) in message


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.int8])
def test_weights_that_are_no_plain_floats_are_named(kind, folder):
    tensors = load_torch(folder / WEIGHTS)
    name = "model.layers.1.mlp.up_proj.weight"
    save_torch(tensors | {name: tensors[name].to(kind)}, folder / WEIGHTS)
    assert f"tensor {name} must be of dtype F64, F32, F16, BF16; got" in error_of_loading(folder)


@pytest.mark.parametrize("kind", ["f2", "f4"])
def test_stored_frequencies_are_compared(kind, folder, caplog):
    name = f"{L0}self_attn__rotary_emb__inv_freq"
    right = 1e4 ** (-np.arange(0, 8, 2) / 8)
    add(folder, **{name: right.astype(kind)})
    load_model(str(folder))
    assert not caplog.records
    add(folder, **{name: (right / 2).astype(kind)})
    load_model(str(folder))
    (record,) = caplog.records
    assert "other rotary frequencies" in record.getMessage()


def test_every_tensor_counts(tmp_path):
    """Change every number of a checkpoint: every number of the model changes too."""
    torch_model("qwen3-tied-bias").save_pretrained(tmp_path)
    before = load_checkpoint(tmp_path)[1]
    tensors = load_file(tmp_path / WEIGHTS)
    save_file({name: x + 1 for name, x in tensors.items()}, tmp_path / WEIGHTS)
    after = load_checkpoint(tmp_path)[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a + 1, atol=1e-5), before, after)
    assert sum(x.size for x in tensors.values()) == sum(x.size for x in jax.tree.leaves(after))


def test_a_gguf_leaves_out_zero_biases_and_old_tables_and_says_so(tmp_path, caplog):
    path = tmp_path / "m.gguf"
    write_gguf(path, tensors={"blk.0.ffn_down.bias": np.zeros(32, "f4")})
    load_model(str(path))
    (record,) = caplog.records
    assert "blk.0.ffn_down.bias" in record.getMessage() and str(path) in record.getMessage()
    frequencies = 1e4 ** (-np.arange(0, 8, 2, dtype="f4") / 8)
    for scale, said in ((1, 1), (2, 2)):  # those of the model go without a word
        write_gguf(path, tensors={"blk.0.attn_rot_embd.weight": scale * frequencies})
        load_model(str(path))
        assert len(caplog.records) == said
    write_gguf(path, tensors={"blk.0.ffn_down.bias": np.ones(32, "f4")})
    assert "blk.0.ffn_down.bias has no place" in error_of_loading(path)
