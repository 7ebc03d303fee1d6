"""Checkpoint folders that torch wrote or reads, in every form they come in."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from small_models import (
    CASES,
    FAMILIES,
    LLAMA3_ROPE,
    TEXT,
    small_config,
    tokenizer,
    torch_model,
)
from transformers import AutoModelForCausalLM

from isojax.models import config_from_hf, encode, load_model, save_checkpoint, weight
from isojax.models.names import GGUF, HF, leaves


def write(case, folder, stored=torch.float32, **options):
    """Save a torch model with a tokenizer; returns the model."""
    model = torch_model(case).to(stored)
    model.save_pretrained(folder, **options)
    tokenizer().save(str(folder / "tokenizer.json"))
    return model


@pytest.mark.parametrize("case", CASES)
def test_torch_reads_back_what_it_wrote_through_us(case, tmp_path):
    state = write(case, tmp_path / "torch").state_dict()
    ours = load_model(str(tmp_path / "torch"))
    save_checkpoint(tmp_path / "ours", ours.config, ours.params)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
    assert again.dtype == torch.float32
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())


def test_shards_make_the_same_model(tmp_path):
    write("llama", tmp_path / "whole")
    write("llama", tmp_path / "shards", max_shard_size="30KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    whole, shards = (load_model(str(tmp_path / name)) for name in ("whole", "shards"))
    assert whole.config == shards.config
    assert jax.tree.all(jax.tree.map(jnp.array_equal, whole.params, shards.params))


SIZES = {
    "hidden_size": 512, "num_attention_heads": 2, "num_key_value_heads": 2,
    "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 8,
}  # fmt: skip


@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 5e5},
        {},
        {"rope_theta": 2e5, "rope_scaling": {"type": "default"}},
        {"rope_scaling": {"rope_type": "default", "rope_theta": 3e5}, "rope_theta": 2e5},
        {"rope_scaling": LLAMA3_ROPE, "original_max_position_embeddings": 8192},
    ],
)
def test_rotary_fields_mean_what_they_mean_to_torch(field, fields):
    fields = {field if name == "rope_scaling" else name: x for name, x in fields.items()}
    for family, (make_config, _) in FAMILIES.items():
        ours = config_from_hf({"model_type": family} | SIZES | fields)
        torchs = make_config(**copy.deepcopy(SIZES | fields))
        rope = torchs.rope_parameters
        assert ours.rope_theta == rope["rope_theta"]
        known = {} if ours.rope_scaling is None else dataclasses.asdict(ours.rope_scaling)
        assert known == {name: rope[name] for name in known}
        assert bool(known) == (rope["rope_type"] == "llama3")


def test_a_qwen3_without_a_head_dim_has_that_of_torch():
    for family, (make_config, _) in FAMILIES.items():
        want = getattr(make_config(**SIZES), "head_dim", None) or 256
        assert config_from_hf({"model_type": family} | SIZES).head_dim == want


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float64])
def test_stored_floats_of_any_width_are_read_exactly(stored, tmp_path):
    model = write("qwen3", tmp_path, stored)
    ours = load_model(str(tmp_path))
    assert ours.params["embedding"].dtype == jnp.float32
    want = model.model.layers[2].mlp.gate_proj.weight.detach().float().numpy()
    np.testing.assert_array_equal(weight(ours.params, "gate_proj", 2), want)


def test_bf16_parameters_are_those_that_torch_rounds_to(tmp_path):
    model = write("llama-tied-bias", tmp_path / "torch")
    ours = load_model(str(tmp_path / "torch"), dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(ours.params)} == {jnp.dtype("bfloat16")}
    save_checkpoint(tmp_path / "ours", ours.config, ours.params, dtype="bfloat16")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
    assert again.dtype == torch.bfloat16
    state = model.bfloat16().state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize("column", [HF, GGUF])
def test_every_tensor_has_a_name_of_its_own(column):
    config = small_config(
        architecture="qwen3", qk_norm=True, o_bias=True, mlp_bias=True, tie_word_embeddings=False
    )
    names = [
        leaf.file_name(layer, column) for leaf in leaves(config) for layer in range(leaf.tensors)
    ]
    assert len(set(names)) == len(names) == 3 * 18 + 3


def test_tokenizer_of_the_folder_is_read(tmp_path):
    write("qwen2", tmp_path)
    made = load_model(str(tmp_path)).tokenizer
    ids = encode(made, TEXT)
    assert ids.dtype == np.int32
    assert made.decode(ids.tolist()) == TEXT
    assert encode(made, "the<|end|>").tolist() == [257, 260]
