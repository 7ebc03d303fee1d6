import dataclasses
import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from laws import quick_jit
from numpy.testing import assert_allclose, assert_array_equal

from isojax import quantizers as q
from isojax.learn import gptq, gram

IN, OUT = 32, 6


def hessian(x):
    return gram(x).hessian


RNG = np.random.default_rng(0)
MIX = RNG.standard_normal((IN, IN)) * np.geomspace(1, 0.05, IN)[:, None]
X = jnp.asarray(RNG.standard_normal((200, IN)) @ MIX, jnp.float32)
W = jnp.asarray(RNG.standard_normal((IN, OUT)), jnp.float32)
H = hessian(X)

# a quantizer and the codes that it may use
MEMBERS = {
    "absmax-tensor": (q.absmax(3), range(-3, 4)),
    "absmax-token-mse": (q.absmax(3, "token", range_rule="mse", steps=8), range(-3, 4)),
    "minmax-channel": (q.minmax(2, "channel"), range(4)),
    "minmax-group": (q.minmax(3, "group", 8), range(8)),
    "affine-group": (q.minmax(2, "group", 16, levels="affine"), range(4)),
    "lloyd-token": (q.lloyd_max_gaussian(3), range(8)),
    "levels-of-each-channel": (
        q.nearest_level(jax.random.normal(jax.random.key(0), (IN, 5))),
        range(5),
    ),
    "fp4-group": (q.fp4("group", 8), range(16)),
    "mxfp4": (q.mxfp4(), range(16)),
    "nvfp4": (q.nvfp4(), range(16)),
    "ecsq": (q.ecsq(0.7), range(-40, 41)),
}
GROUPED = ("minmax-group", "affine-group", "fp4-group")
TOKEN = MEMBERS["lloyd-token"][0]
GROUP = MEMBERS["minmax-group"][0]

STATIC = ("act_order", "static_groups", "block")
compiled = quick_jit(gptq, static_argnames=STATIC)
encode = quick_jit(lambda quantizer, y: quantizer.encode(y))


def members(names=MEMBERS):
    return pytest.mark.parametrize("quantizer, legal", [MEMBERS[n] for n in names], ids=list(names))


def weight(quantizer, codes):
    return np.asarray(quantizer.decode(codes), np.float64).T


def output_error(h, w_hat):
    error = w_hat - np.asarray(W, np.float64)
    return np.trace(error.T @ np.asarray(h, np.float64) @ error)


def levels(quantizer, legal, w):
    """All that numbers of `w` may become at its scales, [codes, in, out]."""
    codes = encode(quantizer, jnp.asarray(w, jnp.float32).T)

    def constant(code):
        values = jnp.full_like(codes.values, 1) * code.astype(codes.values.dtype)
        return quantizer.decode(dataclasses.replace(codes, values=values)).T

    return np.asarray(jax.vmap(constant)(jnp.asarray(legal)), np.float64)


def optimal_brain_quantization(levels, h, order=range(IN), damping=0.01, renew=None, group=IN):
    """Equations 2 and 3 of Frantar et al., the inverse of what remains taken anew each step."""
    h = np.asarray(h, np.float64)
    h, w = h + damping * np.mean(np.diag(h)) * np.eye(IN), np.asarray(W, np.float64)
    left, levels = list(order), levels.copy()
    while left:
        i = left[0]
        if renew and i % group == 0:
            levels[:, i : i + group] = renew(w[i : i + group])
        inverse = np.linalg.inv(h[np.ix_(left, left)])
        nearest = np.abs(levels[:, i] - w[i]).argmin(0)
        w_hat = np.take_along_axis(levels[:, i], nearest[None], 0)[0]
        w[left] -= np.outer(inverse[:, 0], (w[i] - w_hat) / inverse[0, 0])
        w[i] = w_hat
        left.pop(0)
    return w


def assert_same_weight(got, want):
    """A near tie may fall either way, and takes the rest of its output channel with it."""
    equal = np.isclose(got, want, rtol=1e-4, atol=1e-5).all(0)
    assert equal.sum() >= OUT - 1, equal


@members()
def test_it_is_optimal_brain_quantization_in_order(quantizer, legal):
    got = weight(quantizer, compiled(W, H, quantizer))
    assert_same_weight(got, optimal_brain_quantization(levels(quantizer, legal, W), H))


@members(("absmax-token-mse", "minmax-group", "nvfp4"))
def test_act_order_goes_by_descending_diagonal(quantizer, legal):
    got = weight(quantizer, compiled(W, H, quantizer, act_order=True))
    order = sorted(range(IN), key=lambda i: -H[i, i])
    assert order != list(range(IN))
    assert_same_weight(got, optimal_brain_quantization(levels(quantizer, legal, W), H, order))


@members(GROUPED)
def test_groups_that_are_not_static_have_the_scales_of_corrected_weights(quantizer, legal):
    codes = compiled(W, H, quantizer, static_groups=False)
    renew = functools.partial(levels, quantizer, legal)
    want = optimal_brain_quantization(renew(W), H, renew=renew, group=quantizer.group)
    assert_same_weight(weight(quantizer, codes), want)
    assert not np.allclose(codes.scale, encode(quantizer, W.T).scale)


@members()
def test_the_output_error_is_below_that_of_rounding_to_nearest(quantizer, legal):
    got = output_error(H, weight(quantizer, compiled(W, H, quantizer)))
    assert got < 0.8 * output_error(H, weight(quantizer, encode(quantizer, W.T)))


@members()
def test_uncorrelated_inputs_are_rounded_to_nearest(quantizer, legal):
    for h in (jnp.eye(IN), jnp.diag(jnp.diagonal(H)), jnp.zeros((IN, IN))):
        codes = compiled(W, h, quantizer)
        for got, want in zip(*map(jax.tree.leaves, (codes, encode(quantizer, W.T))), strict=True):
            assert_array_equal(got, want)


@members()
def test_codes_are_those_of_the_quantizer(quantizer, legal):
    codes, nearest = compiled(W, H, quantizer), encode(quantizer, W.T)
    assert set(np.unique(codes.values).tolist()) <= set(legal)
    assert codes.values.shape == (OUT, IN) and codes.values.dtype == nearest.values.dtype
    for got, want in zip(*(jax.tree.leaves(c)[1:] for c in (codes, nearest)), strict=True):
        assert_array_equal(got, want)
    if codes.bits is not None:
        assert q.rate_bits(codes) == q.rate_bits(nearest)
        unpacked = quantizer.unpack(quantizer.pack(codes))
        assert_array_equal(unpacked.values, codes.values)


@pytest.mark.parametrize("block", [1, 5, 8])
def test_the_block_changes_nothing(block):
    for quantizer in (TOKEN, GROUP):
        got = weight(quantizer, compiled(W, H, quantizer, block=block))
        assert_same_weight(got, weight(quantizer, compiled(W, H, quantizer)))


@pytest.mark.parametrize("settings", [{"act_order": True}, {"static_groups": False}])
def test_vmap_over_layers_is_a_loop(settings):
    ws = jnp.stack([W, 3 * W[::-1]])
    hs = jnp.stack([H, hessian(X[:, ::-1] ** 3)])
    batch = quick_jit(jax.vmap(lambda w, h: gptq(w, h, GROUP, **settings)))(ws, hs)
    loop = [compiled(w, h, GROUP, **settings) for w, h in zip(ws, hs, strict=True)]
    for i, codes in enumerate(loop):
        got = weight(GROUP, jax.tree.map(lambda leaf: leaf[i], batch))  # noqa: B023
        assert_same_weight(got, weight(GROUP, codes))


def test_jit_equals_eager():
    assert_same_weight(weight(GROUP, gptq(W, H, GROUP)), weight(GROUP, compiled(W, H, GROUP)))


def test_new_leaves_do_not_recompile():
    compiled(W, H, q.absmax(3), damping=0.1)
    before = compiled._cache_size()
    compiled(2 * W, H.T + 1, q.absmax(3, clip=0.9), damping=0.2)
    assert compiled._cache_size() == before


def test_act_order_keeps_the_order_of_equal_diagonals():
    spread = jnp.sqrt(jnp.diagonal(H))
    h = (H / spread / spread[:, None]).at[jnp.arange(IN), jnp.arange(IN)].set(1)
    first = compiled(W, h, TOKEN, act_order=True)
    assert_array_equal(first.values, compiled(W, h, TOKEN).values)


def test_a_multiple_of_the_hessian_gives_the_same_codes():
    codes = compiled(W, 2.0**-20 * H, TOKEN)
    assert_array_equal(codes.values, compiled(W, H, TOKEN).values)


def test_channels_never_seen_are_rounded_to_nearest_and_do_no_harm():
    dead = np.array([0, 7, IN - 1])
    h = H.at[dead].set(0).at[:, dead].set(0)
    got = weight(TOKEN, compiled(W, h, TOKEN, damping=0.0))
    assert_array_equal(got[dead], weight(TOKEN, encode(TOKEN, W.T))[dead])
    live = [i for i in range(IN) if i not in dead]
    table = levels(TOKEN, MEMBERS["lloyd-token"][1], W)
    want = optimal_brain_quantization(table, h, live, damping=0)
    assert_same_weight(got[live], want[live])


def test_few_tokens_are_enough():
    few = compiled(W, hessian(X[:4]), TOKEN)
    x, w_hat = np.asarray(X[:4]), weight(TOKEN, few)
    nearest = weight(TOKEN, encode(TOKEN, W.T))
    assert np.linalg.norm(x @ (w_hat - W)) < 0.5 * np.linalg.norm(x @ (nearest - W))


def test_bf16_weights_are_computed_in_fp32():
    low = W.astype(jnp.bfloat16)
    got, want = (compiled(w, H, TOKEN).values for w in (low, low.astype(jnp.float32)))
    assert_array_equal(got, want)


def test_the_hessian_is_twice_the_mean_of_outer_products():
    x = np.asarray(X, np.float64)
    assert_allclose(H, 2 * np.einsum("ni,nj->ij", x, x) / len(x), rtol=1e-4, atol=1e-4)
    assert_allclose(hessian(X.reshape(8, 25, IN)), H, rtol=1e-5, atol=1e-5)


def test_batches_of_unequal_size_add_up():
    total = gram(X[:30]) + gram(X[30:40]) + gram(X[40:])
    assert total.count == len(X)
    assert_allclose(total.hessian, H, rtol=1e-5, atol=1e-5)


def test_grams_stack_over_layers():
    x = X.reshape(2, 100, IN)
    total = jax.vmap(gram)(x) + jax.vmap(gram)(2 * x)
    assert_allclose(total.hessian[1], 2.5 * hessian(x[1]), rtol=1e-5, atol=1e-5)


def test_the_gram_of_bf16_is_computed_in_fp32():
    low = X.astype(jnp.bfloat16)
    assert hessian(low).dtype == jnp.float32
    assert_array_equal(hessian(low), hessian(low.astype(jnp.float32)))


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: gptq(W, H[:8, :8], TOKEN), r"hessian must have shape \(32, 32\), got \(8, 8\)"),
        (lambda: gptq(W, H.at[3, 2].set(jnp.nan), TOKEN), "hessian must be finite"),
        (lambda: gptq(W, -H, TOKEN), "hessian must .*positive definite.*damping 0.01"),
        (lambda: gptq(W, H, TOKEN, damping=-1), "damping must be at least 0 and finite, got -1"),
        (lambda: gptq(W, H, TOKEN, block=0), "block.*at least 1, got 0"),
        (lambda: gptq(W, H, GROUP, act_order=True, static_groups=False), "True with act_order"),
        (lambda: gptq(W, H, q.nvfp4(), static_groups=False), "static_groups.*stored tensor scale"),
        (lambda: gptq(W, H, q.sparse(q.absmax(3), 0.1)), "without outliers, got Sparse"),
        (lambda: gptq(W, H, q.absmax(3, "group", 5)), "group must divide.*32.*got 5"),
    ],
)
def test_errors_name_what_was_got_and_what_is_allowed(make, words, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=words):
        make()
