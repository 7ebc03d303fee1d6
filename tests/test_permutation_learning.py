import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_array_equal

from isojax.learn.permutation import absmax_order, co_activation, mass_diff, zigzag
from isojax.metrics.block_mass import mass_imbalance, rotation_bound
from isojax.transforms import Permutation

DIM, BLOCKS = 12, (1, 3, 4, 12)
RULES = {
    "mass_diff": mass_diff,
    "zigzag": zigzag,
    "absmax_order": lambda x, block: absmax_order(x),
    "co_activation": co_activation,
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
X = jax.random.t(jax.random.key(0), 3.0, (2, 16, DIM))
slowly = settings(max_examples=30, deadline=None)

# Integers, and a power of two of tokens: sums are exact, and there are ties.
integers = arrays(np.float32, (4, DIM), elements=st.integers(-4, 4).map(float))
activations = arrays(np.float32, (6, DIM), elements=st.floats(-1e3, 1e3, width=32))
blocks = st.sampled_from(BLOCKS)


@functools.partial(jax.jit, static_argnames=("rule", "block"))
def compiled(rule, x, block):
    return rule(x, block)


refined = jax.jit(co_activation, static_argnames=("block", "passes"))


def shares(x, block):
    """What co_activation lowers: the mean over tokens of the sum of squared shares of blocks."""
    size = np.abs(np.asarray(x, np.float64))
    share = size / np.maximum(size.sum(-1, keepdims=True), 1e-300)
    return np.mean(np.sum(np.square(share.reshape(len(x), -1, block).sum(-1)), -1))


@every_rule
@slowly
@given(arrays(np.float32, (4, DIM), elements=st.floats(width=32)), blocks)
def test_every_channel_comes_once_whatever_the_numbers(rule, x, block):
    perm = compiled(rule, x, block)
    assert isinstance(perm, Permutation)
    assert_array_equal(np.sort(perm.indices), np.arange(DIM))


def by_lists(x, block):
    score = np.abs(x).mean(0)
    order = sorted(range(DIM), key=lambda c: (-score[c], c))
    chosen = [[c] for c in order[: DIM // block]]
    for c in order[DIM // block :]:
        free = [b for b in chosen if len(b) < block]
        min(free, key=lambda b: sum(score[i] for i in b) + score[c]).append(c)
    return sum(chosen, [])


@settings(max_examples=100, deadline=None)
@given(integers, blocks)
def test_mass_diff_is_its_plain_definition(x, block):
    assert_array_equal(compiled(mass_diff, x, block).indices, by_lists(x, block))


def test_a_full_block_takes_no_more():
    x = jnp.array([[9.0, 1, 1, 1, 1, 1]])
    assert_array_equal(mass_diff(x, 3).indices, [0, 4, 5, 1, 2, 3])


def test_zigzag_deals_to_and_fro_by_the_largest_magnitude():
    x = jnp.array([[6.0, 0, -4, 0, 2, 0], [0, 5, 0, -3, 0, 1]])
    assert_array_equal(zigzag(x, 2).indices, [0, 5, 1, 4, 2, 3])
    assert_array_equal(zigzag(x, 3).indices, [0, 3, 4, 1, 2, 5])


def test_absmax_order_is_that_of_the_largest_magnitude():
    x = jnp.array([[1.0, 0, -7, 2], [-3, 3, 0, 2.5]])
    assert_array_equal(absmax_order(x).indices, [2, 0, 1, 3])


def test_mass_diff_levels_the_mean_and_absmax_order_does_the_contrary():
    x = jax.random.normal(jax.random.key(1), (64, 128)) * jnp.geomspace(1, 30, 128)
    level = {
        name: float(mass_imbalance(jnp.mean(jnp.abs(rule(x, 16).apply(x)), 0), 16))
        for name, rule in RULES.items()
    }
    assert level["mass_diff"] < 1.01
    assert level["mass_diff"] < level["zigzag"] < 1.3
    assert level["absmax_order"] > 2


@slowly
@given(activations, blocks)
def test_no_pass_of_swaps_is_for_the_worse(x, block):
    found = [compiled(mass_diff, x, block), *(refined(x, block, passes=n) for n in (1, 4))]
    sums = [shares(x[:, perm.indices], block) for perm in found]
    assert all(b <= a * (1 + 1e-5) for a, b in zip(sums, sums[1:], strict=False))


@pytest.mark.parametrize("block", [2, 3, 4])
def test_after_enough_passes_no_swap_is_for_the_better(block):
    y = np.asarray(refined(X[0], block, passes=30).apply(X[0]))
    least = shares(y, block)
    assert least < shares(X[0], block)
    for i in range(DIM):
        for k in range(i):
            swapped = y.copy()
            swapped[:, [i, k]] = y[:, [k, i]]
            assert shares(swapped, block) >= least * (1 - 1e-5)


def test_channels_that_fire_together_are_kept_apart():
    # Eight groups of four; the means are equal, so mass_diff deals each group into one block.
    x = 5 * jnp.tile(jnp.eye(8), (1, 4))
    assert_array_equal(mass_imbalance(mass_diff(x, 8).apply(x), 8), np.full(8, 4.0))
    assert_array_equal(mass_imbalance(co_activation(x, 8).apply(x), 8), np.ones(8))


def correlated(key, tokens):
    """Persistent outliers, and groups of four channels that fire on the same few tokens."""
    noise, fire = jax.random.split(key)
    x = jax.random.laplace(noise, (tokens, 64))
    loud = jnp.where(jax.random.uniform(fire, (tokens, 1, 8)) < 0.1, 15.0, 1.0)
    loud = jnp.broadcast_to(loud, (tokens, 8, 8)).reshape(tokens, 64)
    return x * loud * jnp.where(jnp.arange(64) % 13 == 0, 10.0, 1.0)


def test_co_activation_lowers_the_bound_of_tokens_it_has_not_seen():
    seen, held_out = (correlated(jax.random.key(i), 512) for i in (2, 3))
    rules = {name: rule(seen, 8).apply(held_out) for name, rule in RULES.items()}
    bound = {name: float(jnp.mean(rotation_bound(v, 8))) for name, v in rules.items()}
    assert bound["co_activation"] < 0.95 * bound["mass_diff"]
    assert bound["mass_diff"] < bound["absmax_order"]


@every_rule
def test_jit_and_vmap_over_layers_equal_a_loop(rule):
    loop = jnp.stack([rule(x, 3).indices for x in X])
    batch = jax.jit(jax.vmap(lambda x: rule(x, 3)))(X)
    assert (batch.dim, batch.indices.shape) == (DIM, (2, DIM))
    assert_array_equal(batch.indices, loop)
    assert_array_equal(compiled(rule, X[0], 3).indices, loop[0])


@every_rule
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_fp32(rule, dtype):
    low = X[0].astype(dtype)
    assert_array_equal(rule(low, 3).indices, rule(low.astype(jnp.float32), 3).indices)


@every_rule
@pytest.mark.parametrize(
    "x, words",
    [
        (X[0].at[3, 4].set(jnp.nan), "x must be finite, got NaN or infinity in 1 of its channels"),
        (X[0].at[0, :2].set(jnp.inf), "x must be finite, got NaN or infinity in 2 of its channels"),
        (X[0][:0], r"x must be \[tokens, d\], with at least one token, got shape \(0, 12\)"),
        (X, r"x must be \[tokens, d\].*got shape \(2, 16, 12\)"),
        (X[0].astype(int), "x must have a floating dtype, got int32"),
    ],
)
def test_other_activations_are_refused(rule, x, words, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=words):
        rule(x, 3)


@pytest.mark.parametrize("rule", [mass_diff, zigzag, co_activation])
def test_a_block_that_does_not_divide_is_refused(rule):
    with pytest.raises(ValueError, match="block must divide d=12, got 5"):
        rule(X[0], 5)


def test_passes_is_a_number_above_zero():
    with pytest.raises(ValueError, match="passes must be a whole number of at least 1, got 0"):
        co_activation(X[0], 3, passes=0)
