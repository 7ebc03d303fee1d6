"""Uniform levels: ranges, zero points and clips, by torch, qwix and Max's table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
import torch
from laws import gaussian, quick_jit
from numpy.testing import assert_allclose, assert_array_equal

from isojax import quantizers as q

Y = jax.random.t(jax.random.key(0), 4.0, (6, 32)) + 0.1
GRANULARITIES = {"tensor": 0, "token": 0, "channel": 0, "group": 8}

roundtrip = jax.jit(lambda quantizer, y: quantizer.roundtrip(y))
encode = quick_jit(lambda quantizer, y: quantizer.encode(y))
decode = quick_jit(lambda quantizer, codes: quantizer.decode(codes))


@pytest.mark.parametrize("by, group", GRANULARITIES.items())
@pytest.mark.parametrize(
    "make, levels", [(q.absmax, "restricted"), (q.minmax, "zero_point"), (q.minmax, "affine")]
)
def test_error_is_at_most_half_a_step(make, levels, by, group):
    quantizer = make(4, by, group, levels=levels)
    codes = encode(quantizer, Y)
    step = jnp.broadcast_to(codes.scale, (6, 4, 8) if group else Y.shape).reshape(Y.shape)
    # The range of `zero_point` is moved by up to half a step to put a level at zero.
    slack = 1.0 if levels == "zero_point" else 0.5
    assert bool(jnp.all(jnp.abs(decode(quantizer, codes) - Y) <= slack * step * (1 + 1e-5) + 1e-7))


@pytest.mark.parametrize("by, group", GRANULARITIES.items())
def test_each_scale_is_the_absmax_of_what_shares_it(by, group):
    y = np.asarray(Y)
    shared = {
        "tensor": np.abs(y).max(keepdims=True),
        "token": np.abs(y).max(1, keepdims=True),
        "channel": np.abs(y).max(0, keepdims=True),
        "group": np.abs(y.reshape(6, 4, 8)).max(-1, keepdims=True),
    }[by]
    assert_allclose(q.absmax(3, by, group).encode(Y).scale, shared / 3, rtol=1e-6)


def test_three_bit_absmax_is_the_published_rule():
    y = torch.tensor(np.asarray(Y))
    s = y.abs().max() / 3
    assert_allclose(q.absmax(3).roundtrip(Y), torch.clamp(torch.round(y / s), -3, 3) * s, rtol=1e-6)


@pytest.mark.parametrize("levels, divisor", [("restricted", 3.0), ("balanced", 3.5), ("full", 4.0)])
def test_symmetric_levels_by_torch(levels, divisor):
    y = -torch.tensor(np.asarray(Y))
    s = float(y.abs().max()) / divisor
    expected = torch.fake_quantize_per_tensor_affine(y, s, 0, -3 if divisor == 3 else -4, 3)
    assert_allclose(q.absmax(3, levels=levels).roundtrip(-Y), expected, rtol=1e-5)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("shift", [-5.0, 0.0, 5.0])
def test_zero_point_levels_by_torch(bits, shift):
    y = torch.tensor(np.asarray(Y)) + shift
    low, high = min(float(y.min()), 0), max(float(y.max()), 0)
    s = (high - low) / (2**bits - 1)
    expected = torch.fake_quantize_per_tensor_affine(y, s, round(-low / s), 0, 2**bits - 1)
    got = q.minmax(bits).roundtrip(jnp.asarray(y.numpy()))
    assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_zero_is_exact_for_zero_point_levels_only():
    y = Y.at[0, 0].set(0.0)
    assert q.minmax(3).roundtrip(y)[0, 0] == 0
    assert q.minmax(3, levels="affine").roundtrip(y)[0, 0] != 0


@pytest.mark.parametrize("qtype, bits", [(jnp.int4, 4), (jnp.int8, 8), ("int3", 3)])
def test_balanced_absmax_is_qwix(qtype, bits):
    expected = qwix.dequantize(qwix.quantize(Y, qtype, channelwise_axes=(0,), tiled_axes={1: 8}))
    assert_allclose(q.absmax(bits, "group", 8, levels="balanced").roundtrip(Y), expected, rtol=1e-5)
    expected = qwix.dequantize(qwix.quantize(Y, qtype, channelwise_axes=(0,)))
    assert_allclose(q.absmax(bits, "token", levels="balanced").roundtrip(Y), expected, rtol=1e-5)


def test_percentile_and_std_ranges_by_numpy():
    y = np.asarray(Y)
    scale = q.absmax(3, range_rule="percentile", clip=0.95).encode(Y).scale
    assert_allclose(scale, np.quantile(np.abs(y), 0.95) / 3, rtol=1e-5)
    codes = q.minmax(3, "channel", levels="affine", range_rule="percentile", clip=0.9).encode(Y)
    assert_allclose(codes.offset[0], np.quantile(y, 0.1, axis=0), rtol=1e-4, atol=1e-6)
    assert_allclose(
        q.absmax(3, range_rule="std", clip=4.0).encode(Y).scale, 4 * y.std() / 3, rtol=1e-5
    )


@pytest.mark.parametrize(
    "bits, step, mse", [(2, 0.9957, 0.1188), (3, 0.5860, 0.03744), (4, 0.3352, 0.01154)]
)
def test_mse_clip_finds_the_optimal_uniform_quantizer_of_a_gaussian(bits, step, mse):
    # Max (1960), table II: 2^bits evenly spaced levels placed symmetrically, none of them zero.
    z = gaussian(100_000)
    quantizer = q.minmax(bits, levels="affine", range_rule="mse", steps=300)
    codes = quantizer.encode(z)
    assert_allclose(codes.scale, step, rtol=0.01)
    assert_allclose(jnp.mean((quantizer.decode(codes) - z) ** 2), mse, rtol=2e-3)


@pytest.mark.parametrize("by, group", GRANULARITIES.items())
def test_mse_clip_beats_every_fixed_clip_of_its_grid(by, group):
    def error(quantizer):
        square = jnp.square(roundtrip(quantizer, Y) - Y)
        return square.reshape(6, 4, 8).sum(-1) if group else square

    best = error(q.absmax(3, by, group, range_rule="mse", steps=20))
    axes = {"tensor": None, "token": 1, "channel": 0, "group": ()}[by]
    for clip in np.geomspace(1, 0.01, 20):
        other = error(q.absmax(3, by, group, clip=clip))
        assert bool(jnp.all(best.sum(axes) <= other.sum(axes) * (1 + 1e-4)))


@pytest.mark.parametrize("make", [q.absmax, q.minmax])
@pytest.mark.parametrize("rule, clip", [("max", 1.0), ("percentile", 0.999), ("std", 4.0)])
def test_each_range_rule_has_its_own_default_clip(make, rule, clip):
    default, given = make(3, range_rule=rule), make(3, range_rule=rule, clip=clip)
    assert_array_equal(roundtrip(default, Y), roundtrip(given, Y))
