"""GGUF files against the models and tokenizers they were made of."""

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from gguf_files import write_model
from small_models import CASES, TEXT, random_tokens, tokenizer, torch_model

from isojax.models import config_from_hf, encode, forward, load_model, logits


def torch_logits(model, tokens):
    with torch.no_grad():
        return model(torch.from_numpy(tokens).long()).logits.numpy()


def jax_logits(model, tokens):
    run = jax.jit(lambda p, t: logits(p, forward(p, model.config, t).hidden))
    return np.asarray(run(model.params, jnp.asarray(tokens)))


@pytest.mark.parametrize("case", CASES)
def test_an_unquantized_file_is_the_model(case, tmp_path):
    path = tmp_path / "model.gguf"
    model = torch_model(case)
    write_model(path, model)
    ours = load_model(str(path))
    want = torch_logits(model, random_tokens())
    assert np.abs(jax_logits(ours, random_tokens()) - want).max() < 1e-4 * np.abs(want).max()
    known = config_from_hf(model.config.to_dict())
    assert ours.config.rope_scaling == known.rope_scaling
    assert ours.config.tie_word_embeddings == known.tie_word_embeddings
    assert ours.name == "model.gguf"


@pytest.mark.parametrize("case", ["qwen2", "llama"])
def test_a_q8_file_is_the_model_rounded_to_eight_bits(case, tmp_path):
    model = torch_model(case)
    write_model(tmp_path / "plain.gguf", model)
    write_model(tmp_path / "q8.gguf", model, gguf.GGMLQuantizationType.Q8_0)
    plain, rounded = (load_model(str(tmp_path / f"{n}.gguf")).params for n in ("plain", "q8"))
    kernel = np.asarray(plain["layers"]["q_proj"]["kernel"])
    error = np.abs(np.asarray(rounded["layers"]["q_proj"]["kernel"]) - kernel)
    # Q8_0: blocks of 32 along the input, 127 steps from zero to the largest
    step = np.abs(kernel).max(axis=1, keepdims=True) / 127
    assert (error <= 0.51 * step + 1e-3 * np.abs(kernel)).all() and (error > 0).any()


def test_text_becomes_the_tokens_of_the_tokenizer_that_was_written(tmp_path):
    write_model(tmp_path / "m.gguf", torch_model("qwen2"))
    made = load_model(str(tmp_path / "m.gguf")).tokenizer
    for text in (TEXT, "the<|end|> the"):
        ids = encode(made, text).tolist()
        assert ids == encode(tokenizer(), text).tolist()
        assert made.decode(ids, skip_special_tokens=False) == text


def test_unused_tokens_are_not_in_the_vocabulary(tmp_path):
    types = [1] * 256 + [1, 1, 1, 1, gguf.TokenType.UNUSED]
    write_model(tmp_path / "m.gguf", torch_model("qwen2"), types=types)
    made = load_model(str(tmp_path / "m.gguf")).tokenizer
    assert made.token_to_id("<|end|>") is None and made.get_vocab_size() == 260


def test_qwen_composes_accents_first(tmp_path):
    write_model(tmp_path / "m.gguf", torch_model("qwen2"), pre="qwen2")
    made = load_model(str(tmp_path / "m.gguf")).tokenizer
    assert encode(made, "cafe\u0301").tolist() == encode(made, "caf\u00e9").tolist()
