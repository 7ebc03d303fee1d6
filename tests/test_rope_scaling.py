"""YaRN, linear scaling and Mistral against torch: texts longer than windows and first contexts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from gguf_files import write_gguf, write_model
from small_models import (
    FAMILIES,
    LLAMA3_ROPE,
    error_of_loading,
    random_tokens,
    randomised,
    tokenizer,
)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from isojax.models import (
    LinearScaling,
    YarnScaling,
    config_from_hf,
    empty_cache,
    forward,
    load_model,
    logits,
    save_checkpoint,
)
from isojax.models.rope import query_scale, rope_frequencies

TOKENS = random_tokens(2, 96)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "factor": 4.0}
CASES = {
    "yarn": ("qwen2", YARN),
    "yarn with a factor of its own": ("llama", YARN | {"attention_factor": 1.5}),
    "linear": ("llama", LINEAR),
}
SCALINGS = {
    "yarn": YARN,
    "yarn times 8": YARN | {"factor": 8.0, "beta_fast": 8, "beta_slow": 0.5},
    "yarn with mscale": YARN | {"mscale": 1.4, "mscale_all_dim": 0.5},
    "yarn with one mscale": YARN | {"mscale": 1.4},
    "yarn not truncated": YARN | {"truncate": False},
    "yarn of a long context": YARN | {"original_max_position_embeddings": 32768},
    "yarn of a short context": YARN | {"original_max_position_embeddings": 2},
    "yarn that shrinks": YARN | {"factor": 0.5},
    "linear": LINEAR,
    "llama3": LLAMA3_ROPE,
    "default": {"rope_type": "default"},
}


def torch_model(family, rope=None, layers=1, **fields):
    """Every weight large, so that attention is far from uniform."""
    make_config, make_model = FAMILIES[family]
    torch.manual_seed(0)
    rope = {"rope_theta": 500.0} | (rope or {"rope_type": "default"})
    config = make_config(**{
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "head_dim": 16,
        "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 128, "tie_word_embeddings": False, "rope_parameters": rope,
        **fields,
    })  # fmt: skip
    return randomised(make_model(config))


def torch_logits(model, tokens=TOKENS):
    with torch.no_grad():
        return model(torch.from_numpy(tokens).long()).logits.numpy()


def jax_logits(model, tokens=TOKENS):
    run = jax.jit(lambda p, t: logits(p, forward(p, model.config, t).hidden))
    return np.asarray(run(model.params, jnp.asarray(tokens)))


def error(got, want):
    return np.abs(got - want).max()


def load(model, folder):
    model.save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
    return load_model(str(folder))


@pytest.mark.parametrize("theta", [500.0, 1e6])
@pytest.mark.parametrize("case", SCALINGS)
def test_frequencies_and_the_attention_factor_are_those_of_torch(case, theta):
    sizes = {
        "hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 8, "head_dim": 64,
        "num_hidden_layers": 1, "vocab_size": 8, "max_position_embeddings": 128,
    }  # fmt: skip
    rope = SCALINGS[case] | {"rope_theta": theta}
    ours = config_from_hf({"model_type": "llama", "rope_parameters": rope} | sizes)
    theirs = transformers.LlamaConfig(**sizes, rope_parameters=dict(rope))
    embedding = LlamaRotaryEmbedding(theirs)
    got = rope_frequencies(64, ours.rope_theta, ours.rope_scaling)
    np.testing.assert_allclose(got, embedding.inv_freq, rtol=1e-5)
    assert query_scale(ours.rope_scaling) == pytest.approx(embedding.attention_scaling**2)


@pytest.mark.parametrize("case", CASES)
def test_rescaled_positions_are_those_of_torch(case, tmp_path):
    family, rope = CASES[case]
    model = torch_model(family, rope)
    ours, want = load(model, tmp_path), torch_logits(model)
    assert error(jax_logits(ours), want) < 1e-3
    # what the model would say without the rescaling, and without its attention factor
    left_out = [{"rope_type": "default"}]
    left_out += [rope | {"attention_factor": 1.0}] * (rope["rope_type"] == "yarn")
    for other in left_out:
        assert error(torch_logits(torch_model(family, other)), want) > 0.1
    save_checkpoint(tmp_path / "again", ours.config, ours.params)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
    assert error(torch_logits(again), want) < 1e-3


@pytest.mark.parametrize(
    ("family", "rope", "fields"),
    [
        (
            "qwen2",
            YARN,
            {"type": "yarn", "factor": 4.0, "original_context_length": 32},
        ),
        (
            "llama",
            YARN | {"factor": 8.0, "attention_factor": 1.5 * (1 + 0.1 * np.log(8.0))},
            {"type": "yarn", "factor": 8.0, "original_context_length": 32, "attn_factor": 1.5},
        ),
        (
            "qwen3",
            YARN | {"beta_fast": 8.0, "beta_slow": 0.5},
            {
                "type": "yarn", "factor": 4.0, "original_context_length": 32,
                "yarn_beta_fast": 8.0, "yarn_beta_slow": 0.5,
            },
        ),
        ("llama", LINEAR, {"type": "linear", "factor": 4.0}),
        ("llama", LINEAR, {"factor": 4.0}),  # linear unless a type is given
    ],
)  # fmt: skip
def test_rescaled_positions_of_a_gguf_are_those_of_torch(family, rope, fields, tmp_path):
    model = torch_model(family, rope)
    names = {f"rope.scaling.{name}": value for name, value in fields.items()}
    write_model(tmp_path / "m.gguf", model, fields=names)
    ours = load_model(str(tmp_path / "m.gguf"))
    if "attn_factor" in fields:  # one compilation will do
        want = torch_logits(model)
        assert error(jax_logits(ours), want) < 1e-3
        assert error(torch_logits(torch_model(family)), want) > 0.1
    known = config_from_hf(model.config.to_dict()).rope_scaling
    assert dataclasses.asdict(ours.config.rope_scaling) == pytest.approx(dataclasses.asdict(known))


def test_the_context_of_yarn_is_that_of_the_model_where_none_is_given(tmp_path):
    fields = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}
    write_gguf(tmp_path / "m.gguf", fields)
    assert "original_context_length must be a positive int" in error_of_loading(tmp_path / "m.gguf")
    write_gguf(tmp_path / "m.gguf", fields | {"llama.context_length": 64})
    config = load_model(str(tmp_path / "m.gguf")).config
    assert config.rope_scaling == YarnScaling(4.0, 64, 0.1 * np.log(4).item() + 1)
    assert config.max_position_embeddings == 64
    write_gguf(tmp_path / "m.gguf", {"llama.rope.scale_linear": 4.0})
    assert load_model(str(tmp_path / "m.gguf")).config.rope_scaling == LinearScaling(4.0)
    none = {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}
    write_gguf(tmp_path / "m.gguf", none)
    assert load_model(str(tmp_path / "m.gguf")).config.rope_scaling is None


def test_two_rescalings_in_one_gguf_are_refused(tmp_path):
    divisors = 8.0 * np.ones(4, "f4")
    divisors[:2] = 1.0
    path = tmp_path / "m.gguf"
    write_gguf(path, {"llama.rope.scaling.factor": 4.0}, {"rope_freqs.weight": divisors})
    assert "rope_freqs.weight" in error_of_loading(path)


def test_yarn_from_the_readme_of_qwen_is_read():
    """The object that the READMEs of Qwen 2.5 and 3 say to add."""
    fields = {
        "model_type": "qwen2", "vocab_size": 8, "hidden_size": 64, "intermediate_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
        "max_position_embeddings": 32768, "rope_theta": 1e6,
        "rope_scaling": {
            "factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn",
        },
    }  # fmt: skip
    scaling = config_from_hf(fields).rope_scaling
    assert scaling == YarnScaling(4.0, 32768, 0.1 * np.log(4).item() + 1)
    inner = {"factor": 4, "type": "yarn"}
    assert config_from_hf(fields | {"rope_scaling": inner}).rope_scaling == scaling


def test_yarn_is_the_same_token_by_token(tmp_path):
    """The attention factor is in queries and keys of one pass; a cache must see it too."""
    model = torch_model("qwen2", YARN)
    ours, whole = load(model, tmp_path), torch_logits(model)[:, -1]
    step = jax.jit(lambda p, t, cache: forward(p, ours.config, t, cache=cache))
    cache = empty_cache(ours.config, 2, 96)
    for part in (TOKENS[:, :48], TOKENS[:, 48:]):
        out = step(ours.params, jnp.asarray(part), cache)
        cache = out.cache
    assert error(logits(ours.params, out.hidden[:, -1]), whole) < 1e-3


@pytest.mark.parametrize("window", [None, 96])
def test_mistral_is_that_of_torch_within_its_window(window, tmp_path):
    model = torch_model("mistral", sliding_window=window)
    ours, want = load(model, tmp_path), torch_logits(model)
    if window is not None:
        assert error(jax_logits(ours), want) < 1e-3
    assert ours.config.architecture == "mistral" and ours.config.sliding_window == window
    # and the window is what makes a longer text another one
    narrow = torch_logits(torch_model("mistral", sliding_window=32))
    assert error(narrow, want) > 0.1
    save_checkpoint(tmp_path / "again", ours.config, ours.params)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
    assert again.config.sliding_window == window
    assert error(torch_logits(again), want) < 1e-3
    long = np.concatenate([TOKENS, TOKENS[:, :1]], axis=1)
    if window is not None:
        with pytest.raises(ValueError, match="sliding_window=96 .* got 97"):
            forward(ours.params, ours.config, jnp.asarray(long))


def test_a_mistral_without_the_field_has_the_window_of_torch():
    sizes = {
        "hidden_size": 64, "num_attention_heads": 8, "intermediate_size": 8,
        "num_hidden_layers": 1, "vocab_size": 8,
    }  # fmt: skip
    theirs = transformers.MistralConfig(**sizes)
    ours = config_from_hf({"model_type": "mistral"} | sizes)
    for name in ("sliding_window", "num_key_value_heads", "head_dim", "rms_norm_eps"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]


def test_families_take_for_a_missing_field_what_torch_takes():
    sizes = {
        "hidden_size": 320, "num_attention_heads": 32, "intermediate_size": 8,
        "num_hidden_layers": 1, "vocab_size": 8,
    }  # fmt: skip
    for family, (make_config, _) in FAMILIES.items():
        ours, theirs = config_from_hf({"model_type": family} | sizes), make_config(**sizes)
        for name in ("num_key_value_heads", "rms_norm_eps", "tie_word_embeddings"):
            assert getattr(ours, name) == getattr(theirs, name), (family, name)


@pytest.mark.parametrize("window", [None, 4096])
def test_mistral_in_a_gguf_is_a_llama_with_a_window(window, tmp_path):
    model = torch_model("mistral", sliding_window=window)
    fields = {} if window is None else {"attention.sliding_window": window}
    write_model(tmp_path / "m.gguf", model, fields=fields)
    ours = load_model(str(tmp_path / "m.gguf"))
    if window is None:
        assert error(jax_logits(ours), torch_logits(model)) < 1e-3
    assert ours.config.sliding_window == window


def test_a_window_that_no_layer_has_is_none(tmp_path):
    """A text longer than the window of a Qwen whose every layer sees all of it."""
    fields = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
    model = torch_model("qwen2", layers=1, **fields)
    ours, want = load(model, tmp_path), torch_logits(model)
    assert error(jax_logits(ours), want) < 1e-3
    narrow = torch_model("qwen2", layers=1, **(fields | {"max_window_layers": 0}))
    assert error(torch_logits(narrow), want) > 0.1
    narrow.save_pretrained(tmp_path)
    message = error_of_loading(tmp_path)
    assert "config.json" in message and "'sliding_attention' is not supported" in message
    fields = {"layer_types": None, "max_window_layers": 0}
    narrow.config.update(fields)
    narrow.config.save_pretrained(tmp_path)
    assert "max_window_layers=0 is not supported, only 1 or more" in error_of_loading(tmp_path)
