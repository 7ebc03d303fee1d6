import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import KEY, vectors
from numpy.testing import assert_allclose, assert_array_equal

from isojax.transforms import fwht, hadamard, hadamard_matrix, paley

PALEY_1 = (12, 20, 24, 28, 44, 60, 68, 72, 80, 104, 108, 140, 152, 344)
PALEY_2 = (36, 52, 76, 100, 148)
MODEL_WIDTHS = {
    896: 28,
    4864: 76,
    1536: 12,
    8960: 140,
    3584: 28,
    18944: 148,
    3072: 12,
    6144: 12,
    2560: 20,
    9728: 76,
    576: 36,
    320: 20,
    96: 12,
    128: 1,
    11008: 344,
}


@pytest.mark.parametrize("order", PALEY_1 + PALEY_2)
def test_paley_matrices_are_hadamard_in_integers(order):
    h = paley.paley(order).astype(np.int64)
    assert set(np.unique(h)) == {-1, 1}
    assert_array_equal(h @ h.T, order * np.eye(order, dtype=np.int64))


def test_paley_1_is_skew_and_paley_2_is_symmetric():
    for order in PALEY_1:
        h = paley.paley(order)
        assert_array_equal(h + h.T, 2 * np.eye(order))
    for order in PALEY_2:
        assert_array_equal(paley.paley(order), paley.paley(order).T)


@pytest.mark.parametrize("order", [1, 2, 4, 8, 64, 128, 1024])
def test_powers_of_two_are_the_matrices_of_scipy(order):
    assert_array_equal(hadamard_matrix(order), scipy.linalg.hadamard(order))


@pytest.mark.parametrize("dim, base", MODEL_WIDTHS.items())
def test_model_widths_have_a_hadamard_with_a_small_base(dim, base):
    assert paley.decompose(dim) == (dim // base, base)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([1, 12, 20, 28, 36, 52]), st.integers(0, 4))
def test_any_product_of_a_base_and_a_power_of_two_is_hadamard(base, k):
    h = hadamard_matrix(base * 2**k).astype(np.int64)
    assert_array_equal(h @ h.T, len(h) * np.eye(len(h), dtype=np.int64))


@pytest.mark.parametrize("dim", [1, 2, 24, 36, 896, 2048])
def test_fwht_is_the_normalised_matrix(dim):
    x = vectors(dim, 3)
    h = hadamard_matrix(dim).astype(np.float64) / np.sqrt(dim)
    fast = jax.jit(fwht, static_argnames="transposed")
    assert_allclose(fast(x), x @ h, atol=1e-5)
    assert_allclose(fast(x, transposed=True), x @ h.T, atol=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dim", [24, 256, 1536, 2048])
def test_derivatives_of_fwht_are_the_matrix(dim, transposed):
    x, t = jnp.asarray(vectors(dim, 2))
    h = hadamard_matrix(dim).astype(np.float64) / np.sqrt(dim)
    h = h.T if transposed else h
    call = functools.partial(fwht, transposed=transposed)
    y, back = jax.vjp(call, x)
    assert_allclose(back(t)[0], t @ h.T, atol=1e-5)
    assert_allclose(jax.jvp(call, (x,), (t,))[1], t @ h, atol=1e-5)
    assert_allclose(jax.linear_transpose(call, x)(t)[0], t @ h.T, atol=1e-5)
    assert_allclose(jax.vmap(jax.grad(lambda v: call(v) @ t))(x[None])[0], t @ h.T, atol=1e-5)
    assert_array_equal(y, call(x))


@pytest.mark.parametrize("dim", [1, 8, 24, 32, 256, 576, 896, 1536, 4096, 4864, 8192])
def test_fwht_in_fp64_is_the_matrix(dim):
    with jax.enable_x64(True):
        x = np.asarray(vectors(dim, 2), np.float64)
        h = hadamard_matrix(dim).astype(np.float64) / np.sqrt(dim)
        for transposed, want in ((False, h), (True, h.T)):
            assert_allclose(fwht(jnp.asarray(x), transposed=transposed), x @ want, atol=1e-13)


def test_hadamard_flips_signs_first():
    t = hadamard(KEY, 24)
    h = hadamard_matrix(24) / np.sqrt(24)
    assert_allclose(t.matrix(), np.asarray(t.signs)[:, None] * h, atol=1e-6)
    assert set(np.unique(t.signs)) == {-1, 1}


def test_without_a_key_the_hadamard_is_plain():
    assert_allclose(hadamard(None, 24).matrix() * np.sqrt(24), hadamard_matrix(24), atol=1e-6)


def test_a_peak_spreads_evenly():
    y = hadamard(KEY, 96).apply(jnp.zeros(96).at[5].set(1.0))
    assert_allclose(jnp.abs(y), np.full(96, 96**-0.5), rtol=1e-5)


@pytest.mark.parametrize("order, works", [(43, "1"), (172, "4, 2, 1"), (156, "52, 12, 4, 2, 1")])
def test_other_orders_are_refused_with_the_blocks_that_work(order, works):
    with pytest.raises(ValueError, match=f"got {order}; blocks .* work: {works}"):
        paley.decompose(order)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3000))
def test_admissible_blocks_divide_and_decompose(dim):
    blocks = paley.admissible_blocks(dim)
    assert list(blocks) == sorted(blocks, reverse=True) and blocks[-1] == 1
    for block in blocks:
        power, base = paley.decompose(block)
        assert dim % block == 0 and power * base == block and power.bit_count() == 1
        assert block <= 2 or block % 4 == 0


def test_fwht_computes_bf16_in_fp32_and_refuses_integers(monkeypatch):
    x = jnp.asarray(vectors(256, 4), jnp.bfloat16)
    got = fwht(x)
    assert got.dtype == jnp.bfloat16
    assert_array_equal(got, fwht(x.astype(jnp.float32)).astype(jnp.bfloat16))
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="floating"):
        fwht(jnp.arange(8))
