"""Checkpoint folders that torch wrote or reads, in every form they come in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from small_models import CASES, TEXT, small_config, tokenizer, torch_model
from transformers import AutoModelForCausalLM

from isojax.models import encode, load_model, save_checkpoint, weight
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


def test_a_tied_head_may_be_in_the_file_too(tmp_path):
    write("qwen2", tmp_path)
    fields = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(
        fields.replace('"tie_word_embeddings": false', '"tie_word_embeddings": true')
    )
    assert "head" not in load_model(str(tmp_path)).params


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
