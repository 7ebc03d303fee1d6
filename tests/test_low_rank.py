"""Low rank and a residual."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import quick_jit
from numpy.testing import assert_allclose

from isojax import learn, metrics

choose = quick_jit(learn.rank_for_rate)
shannon = quick_jit(jax.vmap(metrics.shannon_distortion, (0, None)))


def two_levels(variances, rank):
    lead, rest = variances[:rank].mean(), variances[rank:].mean() if rank < len(variances) else 0
    return np.where(np.arange(len(variances)) < rank, lead, rest).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=12, max_size=12), st.floats(0.25, 6))
def test_the_rank_leaves_the_least_error(values, rate):
    variances = np.sort(np.array(values, np.float32))[::-1]
    spread = jnp.stack([two_levels(variances, r) for r in range(1, 13)])
    errors = np.asarray(shannon(spread, rate))
    got = int(choose(jnp.asarray(variances), rate))
    assert errors[got - 1] <= errors.min() * (1 + 1e-3)


@pytest.mark.parametrize("rate", [2.0, 4.0])
def test_a_gap_in_the_spectrum_is_the_rank(rate):
    assert choose(jnp.array([50.0] * 5 + [1.0] * 27), rate) == 5


def test_a_long_steep_spectrum_loses_nothing_to_rounding():
    variances = 10.0 ** np.linspace(0, -12, 576)
    spread = [two_levels(variances, r).astype(float) for r in range(1, 577)]
    errors = [np.exp(np.log(v).mean()) * 4.0**-8 for v in spread]  # all get bits at 8
    both = [e <= v[-1] for e, v in zip(errors, spread, strict=True)]
    got = int(choose(jnp.asarray(variances, jnp.float32), 8.0))
    best = 1 + min((r for r in range(576) if both[r]), key=errors.__getitem__)
    assert both[got - 1] and errors[got - 1] <= 1.01 * errors[best - 1]


def test_fewer_dimensions_are_worth_bits_at_a_low_rate():
    falling = 2.0 ** -jnp.arange(24.0)
    ranks = [int(choose(falling, rate)) for rate in (0.25, 1.0, 4.0)]
    assert ranks == sorted(ranks) and ranks[0] < ranks[-1]


def test_each_part_is_rotated_within_itself():
    x = jax.random.normal(jax.random.key(0), (500, 12)) * jnp.array([9.0] * 4 + [1.0] * 8)
    x = x @ jnp.linalg.qr(jax.random.normal(jax.random.key(1), (12, 12)))[0]
    fit = quick_jit(learn.low_rank)
    t, other = (fit(jax.random.key(i), x, 3.0) for i in (2, 3))
    assert_allclose(t.matrix().T @ t.matrix(), np.eye(12), atol=1e-5)
    energy = np.square(t.apply(x)).mean(0)
    assert energy[:4].min() > 20 and energy[4:].max() < 5
    turn = np.abs(t.matrix().T @ other.matrix())
    assert turn[:4, 4:].max() < 1e-4 and turn[:4, :4].max() < 0.999


def test_it_makes_batches():
    x = jax.random.normal(jax.random.key(0), (3, 40, 6)) * 2.0 ** -jnp.arange(6.0)
    keys = jax.random.split(jax.random.key(1), 3)
    batch = quick_jit(jax.vmap(lambda key, x: learn.low_rank(key, x, 2.0)))(keys, x)
    for i in range(3):
        one = learn.low_rank(keys[i], x[i], 2.0)
        assert_allclose(batch.entries[i], one.entries, atol=1e-4)
    with pytest.raises(ValueError, match="samples must have shape"):
        learn.low_rank(keys[0], x[0, :0], 2.0)
    with pytest.raises(ValueError, match="rate must be at least 0 and finite, got -1.0"):
        learn.low_rank(keys[0], x[0], -1.0)
