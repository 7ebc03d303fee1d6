"""Plans carried out: what is fitted and rounded, by vmap and jit and by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_allclose
from plan_models import KEY, TOKENS, inputs_of, made, model_of

from isojax import learn, quantizers
from isojax.models import WEIGHTS, weight
from isojax.models.hooks import INPUTS
from isojax.quantize import Plan, calibrate, quantize, score

pytestmark = pytest.mark.slow

_gptq = jax.jit(learn.gptq)


def test_moments_of_all_windows_are_what_inputs_are_fitted_on():
    model, plan = model_of("qwen2"), Plan.parse("input: wush:8@block_hadamard:8")
    stats = calibrate(model, TOKENS, plan)
    assert {name.partition(":")[0] for layer in stats.layers for name in layer} == {"moment"}
    without = dataclasses.replace(stats, layers=({},) * 2)
    with pytest.raises(ValueError, match="stats must hold moment:input:q_proj: calibrate"):
        quantize(KEY, model, plan, without)


PURE = {
    "quarot": "residual: hadamard; values: hadamard; queries_keys: hadamard; "
    "input: identity/absmax bits=4; input:down_proj: hadamard/absmax bits=4; "
    "weight: absmax:range=mse bits=4 rounding=gptq",
    "aligned cache": "cache:keys: aligned/lloyd_max:fitted_channel bits=3 offset=pre_rope sinks=2; "
    "cache:values: haar/lloyd_max@unbiased bits=3 sinks=2",
}


@pytest.mark.parametrize("text", PURE.values(), ids=PURE)
def test_keys_by_vmap_under_jit_are_a_loop(text):
    model, plan = model_of("qwen2"), Plan.parse(text)
    stats = calibrate(model, TOKENS, plan)
    keys = jax.random.split(KEY, 2)

    def losses(quantized):
        return score(quantized, TOKENS).nll.mean()

    loop = [quantize(key, model, plan, stats) for key in keys]
    batch = jax.jit(jax.vmap(lambda key: quantize(key, model, plan, stats)))(keys)
    lost = jax.vmap(losses)(batch)
    assert len({float(x) for x in lost}) == 2
    for i, (want, loss) in enumerate(zip(loop, lost, strict=True)):
        got = jax.tree.map(lambda a, i=i: a[i], batch)
        assert jax.tree.structure(got) == jax.tree.structure(want)
        assert float(loss) == pytest.approx(float(losses(want)), rel=1e-4)
        for a, b in zip(jax.tree.leaves(got.codes), jax.tree.leaves(want.codes), strict=True):
            if jnp.issubdtype(a.dtype, jnp.integer):
                assert np.mean(np.asarray(a == b)) > 0.999


def test_a_bar_is_shown_where_nothing_is_traced(capsys):
    model, plan = model_of("qwen2"), Plan.parse("weight: absmax bits=4")
    for shown, run in (
        (True, lambda key: quantize(key, model, plan)),
        (False, lambda key: quantize(key, model, plan, progress=False)),
        (False, jax.jit(lambda key: quantize(key, model, plan))),
    ):
        run(KEY)
        out = capsys.readouterr()
        assert not out.out and ("quantize" in out.err) == shown


def test_numbers_of_a_plan_are_swept_as_in_a_loop():
    model = model_of("qwen2")
    plan = Plan.parse(
        "input:q_proj: smooth:0.3/absmax bits=4; cache:keys: aligned:0.3/absmax bits=4"
    )
    stats = calibrate(model, TOKENS, plan)

    def loss(value):
        mine = jax.tree.map(lambda _: value, plan)
        return score(quantize(KEY, model, mine, stats), TOKENS).nll.mean()

    values = jnp.asarray([0.2, 0.7])
    swept = jax.vmap(loss)(values)
    assert_allclose(swept, [loss(v) for v in values], rtol=1e-4)
    assert abs(float(swept[0] - swept[1])) > 1e-5


@pytest.mark.parametrize(
    "turns",
    ["input:down_proj: mass_diff@block_hadamard:8", "input: smooth@hadamard; residual: hadamard",
     "input: smooth", "values: haar; input: haar"],
)  # fmt: skip
def test_weights_are_rounded_as_if_all_else_were_merged_first(turns):
    """Hessians that are turned with the inputs are those of the turned model's own inputs."""
    got = made("llama", f"{turns}\nweight: absmax bits=4 rounding=gptq")
    turned = made("llama", turns)
    seen, levels = inputs_of(turned), quantizers.absmax(4, "token")
    for name in WEIGHTS:
        x, kernel = seen[f"input:{INPUTS[name]}"], turned.params["layers"][name]["kernel"]
        for i in range(2):
            moment = learn.second_moment(x[i].reshape(-1, x.shape[-1]))
            want = levels.decode(_gptq(kernel[i], moment, levels)).T
            rounded = got.params["layers"][name]["kernel"][i]
            assert jnp.isclose(rounded, want, atol=1e-4).mean() > 0.98, name
            assert_allclose(rounded, levels.decode(got.codes[name][i]).T, atol=1e-5)


def test_gptq_loses_less_than_rounding_to_nearest():
    model = model_of("llama")
    exact = score(model, TOKENS).nll
    lost = {
        rounding: float(jnp.abs(
            score(made("llama", f"weight: absmax bits=3 rounding={rounding}"), TOKENS).nll - exact
        ).mean())
        for rounding in ("nearest", "gptq")
    }  # fmt: skip
    assert lost["gptq"] < lost["nearest"]


def rounded_rows(x):
    """Each row on 15 levels, multiples of its largest size over 7."""
    step = np.abs(x).max(-1, keepdims=True) / 7
    return np.clip(np.rint(x / step), -7, 7) * step


def oracle_nll(model, ids):
    """W4A4 to nearest of a decoder of one layer, from the definition, in fp64."""
    config = model.config
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), model.params)
    layer = jax.tree.map(lambda a: a[0], wide["layers"])
    heads, groups, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps) * scale

    def linear(name, x):
        weight = rounded_rows(layer[name]["kernel"].T)
        return rounded_rows(x) @ weight.T + layer[name].get("bias", 0)

    def turned(x):  # [t, heads, dim]
        angle = np.arange(len(x))[:, None] * config.rope_theta ** (-2 * np.arange(dim // 2) / dim)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        a, b = x[..., : dim // 2], x[..., dim // 2 :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    x = wide["embedding"][ids]
    h = norm(x, layer["input_norm"]["scale"])
    q, k, v = (linear(f"{n}_proj", h).reshape(len(ids), -1, dim) for n in "qkv")
    q, k, v = turned(q), *(np.repeat(a, heads // groups, 1) for a in (turned(k), v))
    logit = np.einsum("thd,shd->hts", q, k) / dim**0.5
    logit = np.where(np.tril(np.ones(logit.shape[1:], bool)), logit, -np.inf)
    weight = np.exp(logit - logit.max(-1, keepdims=True))
    weight /= weight.sum(-1, keepdims=True)
    x = x + linear("o_proj", np.einsum("hts,shd->thd", weight, v).reshape(len(ids), -1))
    h = norm(x, layer["post_norm"]["scale"])
    gate = linear("gate_proj", h)
    x = x + linear("down_proj", gate / (1 + np.exp(-gate)) * linear("up_proj", h))
    out = norm(x, wide["norm"]["scale"]) @ wide["head"]
    out -= out.max(-1, keepdims=True)
    out -= np.log(np.exp(out).sum(-1, keepdims=True))
    return -out[np.arange(len(ids) - 1), ids[1:]]


def test_w4a4_is_that_of_an_oracle():
    model = model_of("llama", 1)
    got = quantize(KEY, model, Plan.parse("input: absmax bits=4; weight: absmax bits=4"))
    want = oracle_nll(model, TOKENS[0])
    assert_allclose(score(got, TOKENS[:1]).nll[0], want, rtol=1e-3)
    exact = np.asarray(score(model, TOKENS[:1]).nll[0])
    assert np.abs(want - exact).mean() > 0.01


def blockwise(w, levels, size):
    """The nearest of `levels`, over the largest, times the largest magnitude of each block."""
    blocks = w.reshape(-1, size)
    peak = np.abs(blocks).max(-1, keepdims=True) / np.abs(levels).max()
    nearest = levels[np.abs(blocks[..., None] / peak[..., None] - levels).argmin(-1)]
    return (nearest * peak).reshape(w.shape)


def eight_bit(dtype):
    every = np.arange(256, dtype=np.uint8).view(dtype).astype(np.float64)
    return np.unique(every[np.isfinite(every)])


# bitsandbytes, functional.py, `get_4bit_type("nf4")`
NF4 = np.array([-1.0, -0.69619280, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004,
                0.0, 0.07958030, 0.16093020, 0.24611230, 0.33791524, 0.44070983, 0.56261700,
                0.72295684, 1.0])  # fmt: skip


@pytest.mark.parametrize(
    "levels, bits, every",
    [
        ("nf4:group:16", 4, NF4),
        ("fp8:e4m3:group:16", 8, eight_bit(ml_dtypes.float8_e4m3fn)),
        ("fp8:e5m2:group:16", 8, eight_bit(ml_dtypes.float8_e5m2)),
    ],
)
def test_weights_of_published_formats_are_theirs(levels, bits, every):
    quantized, model = made("qwen2", f"weight: {levels} bits={bits}"), model_of("qwen2")
    for name in WEIGHTS:
        for layer in range(model.config.num_hidden_layers):
            got = np.asarray(weight(quantized.params, name, layer), np.float64)
            want = blockwise(np.asarray(weight(model.params, name, layer), np.float64), every, 16)
            # scales are kept in fp16
            assert_allclose(got, want, rtol=1e-3, atol=1e-7)
