"""Principal axes of samples."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from laws import KEY, OTHER
from numpy.testing import assert_allclose, assert_array_equal

from isojax import transforms as tf


def samples(n=200, d=8):
    mixing = jax.random.normal(OTHER, (d, d))
    return jax.random.normal(KEY, (n, d)) @ mixing + 5 * jnp.arange(d)


def test_pca_gives_uncorrelated_coefficients_with_the_energies_of_the_svd():
    x = samples()
    y = np.asarray(tf.pca(x).apply(x), np.float64)
    energies = torch.linalg.svdvals(torch.tensor(np.asarray(x, np.float64))).numpy() ** 2 / len(x)
    assert_allclose(y.T @ y / len(y), np.diag(energies), atol=1e-5 * energies[0])


def test_pca_is_not_centred():
    x = samples()
    mean = np.asarray(x.mean(0))
    first = np.asarray(tf.pca(x).entries[:, 0])
    assert first @ mean / np.linalg.norm(mean) > 0.99


def test_pca_axes_point_to_their_largest_entry_whatever_the_sign_of_the_samples():
    x = samples()
    axes = np.asarray(tf.pca(x).entries)
    assert (axes[np.abs(axes).argmax(0), np.arange(8)] > 0).all()
    assert_allclose(tf.pca(-x[::-1]).entries, axes, atol=1e-3)


def test_pca_takes_bf16_samples_and_fits_in_fp32():
    x = samples().astype(jnp.bfloat16)
    assert_array_equal(tf.pca(x).entries, tf.pca(x.astype(jnp.float32)).entries)
