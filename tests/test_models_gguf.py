"""GGUF files against the models and tokenizers they were made of."""

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from small_models import CASES, TEXT, random_tokens, tokenizer, torch_model

from isojax.models import config_from_hf, encode, forward, load_model, logits

ARCH = {name: getattr(gguf.MODEL_ARCH, name.upper()) for name in ("qwen2", "qwen3", "llama")}


def pair_up(x, heads):
    """llama.cpp's order of the rotary channels of a llama: halves become neighbours."""
    return x.reshape(heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def rope_divisors(config):
    """As llama.cpp's converter computes them for Llama 3."""
    rope, half = config.rope_parameters, config.head_dim // 2
    divisors = []
    for i in range(half):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (i / half)
        turns = rope["original_max_position_embeddings"] / wavelength
        low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
        smooth = (turns - low) / (high - low)
        blend = 1 / ((1 - smooth) / factor + smooth)
        divisors.append(factor if turns < low else 1.0 if turns > high else blend)
    return np.array(divisors, np.float32)


def write_tokenizer(writer, made, pre, types=None):
    vocab = sorted(made.get_vocab(), key=made.token_to_id)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocab)
    writer.add_token_types(types or [1] * (len(vocab) - 1) + [gguf.TokenType.CONTROL])
    writer.add_token_merges(["t h", "th e", "\u0120 t", "i n"])


def write_gguf(path, model, kind=gguf.GGMLQuantizationType.F32, pre="gpt-2", types=None):
    """Write a torch model the way llama.cpp's converter does, by gguf's own table of names."""
    config, family = model.config, model.config.model_type
    writer = gguf.GGUFWriter(path, family)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if config.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", rope_divisors(config))
    write_tokenizer(writer, tokenizer(), pre, types)
    names = gguf.get_tensor_name_map(ARCH[family], config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for full_name, tensor in model.state_dict().items():
        name, suffix = full_name.rsplit(".", 1)
        if name == "lm_head" and config.tie_word_embeddings:
            continue
        x = tensor.numpy()
        projection = name.rsplit(".", 1)[-1]
        if family == "llama" and projection in heads:
            x = pair_up(x, heads[projection])
        stored = kind if x.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(
            f"{names.get_name(name)}.{suffix}", gguf.quants.quantize(x, stored), raw_dtype=stored
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


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
    write_gguf(path, model)
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
    write_gguf(tmp_path / "plain.gguf", model)
    write_gguf(tmp_path / "q8.gguf", model, gguf.GGMLQuantizationType.Q8_0)
    plain, rounded = (load_model(str(tmp_path / f"{n}.gguf")).params for n in ("plain", "q8"))
    kernel = np.asarray(plain["layers"]["q_proj"]["kernel"])
    error = np.abs(np.asarray(rounded["layers"]["q_proj"]["kernel"]) - kernel)
    # Q8_0: blocks of 32 along the input, 127 steps from zero to the largest
    step = np.abs(kernel).max(axis=1, keepdims=True) / 127
    assert (error <= 0.51 * step + 1e-3 * np.abs(kernel)).all() and (error > 0).any()


def test_text_becomes_the_tokens_of_the_tokenizer_that_was_written(tmp_path):
    write_gguf(tmp_path / "m.gguf", torch_model("qwen2"))
    made = load_model(str(tmp_path / "m.gguf")).tokenizer
    for text in (TEXT, "the<|end|> the"):
        ids = encode(made, text).tolist()
        assert ids == encode(tokenizer(), text).tolist()
        assert made.decode(ids, skip_special_tokens=False) == text


def test_unused_tokens_are_not_in_the_vocabulary(tmp_path):
    types = [1] * 256 + [1, 1, 1, 1, gguf.TokenType.UNUSED]
    write_gguf(tmp_path / "m.gguf", torch_model("qwen2"), types=types)
    made = load_model(str(tmp_path / "m.gguf")).tokenizer
    assert made.token_to_id("<|end|>") is None and made.get_vocab_size() == 260


ODD = "I'll SAY: don't!\r\n\r\n  x=[12345, 6.78];\t caf\u00e9 \u65e5\u672c\u8a9e  \n\n end "
PIECES = {
    "qwen2": ["I", "'ll", "\u0120SAY", ":", "\u0120don", "'t", "!\u010d\u010a\u010d\u010a"],
    "llama-bpe": ["I", "'ll", "\u0120SAY", ":", "\u0120don", "'t", "!\u010d\u010a\u010d\u010a"],
    "gpt-2": ["I", "'ll", "\u0120SAY", ":", "\u0120don", "'t", "!"],
    "smollm": ["I", "'ll", "\u0120SAY", ":", "\u0120don", "'t", "!"],
}
NUMBERS = {
    "qwen2": ["1", "2", "3", "4", "5"],
    "llama-bpe": ["123", "45"],
    "gpt-2": ["12345"],
    "smollm": ["1", "2", "3", "4", "5"],
}


@pytest.mark.parametrize("pre", PIECES)
def test_text_is_cut_as_the_field_pre_says(pre, tmp_path):
    write_gguf(tmp_path / "m.gguf", torch_model("qwen2"), pre=pre)
    made = load_model(str(tmp_path / "m.gguf")).tokenizer
    pieces = [piece for piece, _ in made.pre_tokenizer.pre_tokenize_str(ODD)]
    assert pieces[: len(PIECES[pre])] == PIECES[pre]
    assert [p for p in pieces if p.isdigit()][: len(NUMBERS[pre])] == NUMBERS[pre]
    assert made.decode(encode(made, ODD).tolist()) == ODD


def test_qwen_composes_accents_first(tmp_path):
    write_gguf(tmp_path / "m.gguf", torch_model("qwen2"), pre="qwen2")
    made = load_model(str(tmp_path / "m.gguf")).tokenizer
    assert encode(made, "cafe\u0301").tolist() == encode(made, "caf\u00e9").tolist()
