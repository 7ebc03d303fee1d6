"""The decoder against the models of transformers in torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from small_models import CASES, random_tokens, tokenizer, torch_model

from isojax.models import (
    capture_tensors,
    forward,
    load_model,
    logits,
    token_nll,
    weight,
)

TOKENS = random_tokens()


def torch_logits(model, tokens=TOKENS):
    with torch.no_grad():
        return model(torch.from_numpy(tokens).long()).logits.numpy()


def jax_logits(model, tokens=TOKENS):
    @jax.jit
    def run(params, tokens):
        return logits(params, forward(params, model.config, tokens).hidden)

    return np.asarray(run(model.params, jnp.asarray(tokens)))


def relative_error(got, want):
    return np.abs(got - want).max() / np.abs(want).max()


def make_pair(case, folder, dtype="float32"):
    """A torch model, and what load_model makes of the folder that torch saved."""
    model = torch_model(case)
    model.save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
    return model, load_model(str(folder), dtype)


@pytest.fixture(scope="module", params=["qwen2-tied", "qwen3", "llama-tied-bias"])
def pair(request, tmp_path_factory):
    return make_pair(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_torch(case, tmp_path):
    model, ours = make_pair(case, tmp_path)
    assert relative_error(jax_logits(ours), torch_logits(model)) < 1e-4


def test_bf16_runs_and_stays_near_fp32(tmp_path):
    model, ours = make_pair("qwen2", tmp_path, dtype="bfloat16")
    got = jax_logits(ours)
    assert got.dtype == np.float32
    assert relative_error(got, torch_logits(model)) < 0.05


def test_captured_tensors_are_those_of_torch(pair):
    model, ours = pair
    layers = ours.config.num_hidden_layers
    before_norm = []
    handle = model.model.norm.register_forward_pre_hook(lambda _, x: before_norm.append(x[0]))
    with torch.no_grad():
        out = model(torch.from_numpy(TOKENS[:1]).long(), output_hidden_states=True, use_cache=True)
    handle.remove()
    want = {f"hidden:{i}": out.hidden_states[i][0] for i in range(layers)}
    want |= {f"hidden:{layers}": before_norm[0][0], "hidden:final": out.hidden_states[-1][0]}
    for i in range(layers):
        cached = out.past_key_values.layers[i]
        want[f"key:{i}"] = cached.keys[0].transpose(0, 1).flatten(1)
        want[f"value:{i}"] = cached.values[0].transpose(0, 1).flatten(1)
        want[f"weight:down_proj:{i}"] = model.model.layers[i].mlp.down_proj.weight.detach()
    got = capture_tensors(ours, TOKENS[0], list(want))
    assert list(got) == list(want)
    for name, value in want.items():
        assert got[name].shape == value.shape
        assert relative_error(got[name], value.numpy()) < 1e-4, name


def test_inputs_times_weights_are_the_outputs_of_torch_projections(pair):
    model, ours = pair
    names = ("q_proj", "k_proj", "o_proj", "up_proj", "down_proj")
    layer = model.model.layers[1]
    seen = {}
    for name in names:
        module = getattr(layer.self_attn, name, None) or getattr(layer.mlp, name)
        module.register_forward_hook(lambda m, x, y, name=name: seen.update({name: (y, m.bias)}))
    torch_logits(model, TOKENS[:1])
    got = capture_tensors(ours, TOKENS[0], [f"input:{name}:1" for name in names])
    for name in names:
        output, bias = seen[name]
        want = (output[0] - (0 if bias is None else bias)).detach().numpy()
        product = got[f"input:{name}:1"] @ weight(ours.params, name, 1).T
        assert relative_error(product, want) < 1e-4, name


def test_token_nll_is_the_cross_entropy_of_torch(pair):
    model, ours = pair
    scores = torch.from_numpy(torch_logits(model))[:, :-1]
    want = torch.nn.functional.cross_entropy(
        scores.transpose(1, 2), torch.from_numpy(TOKENS[:, 1:]).long(), reduction="none"
    )
    nll = jax.jit(token_nll, static_argnames=("config", "chunk"))
    for chunk in (7, 256):
        got = nll(ours.params, ours.config, jnp.asarray(TOKENS), chunk=chunk)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
