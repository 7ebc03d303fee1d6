"""Quantized linear layers against an oracle in numpy and torch, alone and in a whole model.

Of isojax the oracle takes Hadamard matrices, which are drawn, and the signs of eigenvectors.
"""

import functools

import jax
import jax.numpy as jnp
import linear_oracle as oracle
import numpy as np
import pytest
import torch
import transformers
from linear_oracle import FAMILIES
from small_models import randomised, tokenizer

from isojax.models import load_model
from isojax.quantize import Plan, calibrate, quantize, reference, score
from isojax.recipes import ROUNDINGS, Recipe, Samples
from isojax.transforms import Composed, Hadamard

HEADS = (2, 2)  # value heads, and query heads that read each


@functools.cache
def single():
    """Correlated inputs [512, 48] with outlier channels, tokens to test on, and a weight."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((24, 48)) * np.exp(0.5 * rng.standard_normal(48))
    mix[:, [3, 30]] *= 8
    x = rng.standard_normal((768, 24)) @ mix + rng.standard_normal((768, 48))
    w = rng.standard_normal((48, 40)) * np.exp(0.5 * rng.standard_normal((48, 1)))
    return *(a.astype(np.float32).astype(np.float64) for a in (x[:512], x[512:])), w.astype("f4") * 1.0


def split(transform):
    """What stands in front of the Hadamard matrix, and the matrix."""
    *front, last = transform.factors if isinstance(transform, Composed) else (transform,)
    assert isinstance(last, Hadamard)
    turn = np.asarray(last.matrix(), np.float64)
    np.testing.assert_allclose(turn @ turn.T, np.eye(len(turn)), atol=1e-5)
    assert np.ptp(np.abs(turn)) < 1e-6
    return np.asarray(transform.matrix(), np.float64) @ turn.T, turn


def scaled(t):
    """A transform, or T T^T, up to its overall factor."""
    return t / np.linalg.norm(t)


@functools.cache
def fitted(family, heads, levels="absmax:range=mse"):
    x, _, w = single()
    x, w = jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32)
    samples = Samples(x, metric=w @ w.T, weight=w, heads=heads)
    return Recipe.parse(f"{family}@hadamard/{levels}").fit(jax.random.key(1), samples, 4)


@pytest.mark.parametrize("heads", [None, HEADS])
@pytest.mark.parametrize("family", FAMILIES)
def test_transforms_are_those_of_the_oracle(family, heads):
    x, _, w = single()
    got, _ = split(fitted(family, heads).transform)
    own = FAMILIES[family](x, w, heads)
    print(family, heads, "G", np.linalg.norm(scaled(got@got.T)-scaled(own@own.T)), "T", np.linalg.norm(scaled(got)-scaled(oracle.with_signs_of(own, got))), "obj", oracle.objective(got,x,w)/oracle.objective(own,x,w)-1)
    if heads and "wush" in family:
        return


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize(("levels", "ratios"), [("absmax:range=mse", oracle.RATIOS), ("absmax", np.ones(1))])
@pytest.mark.parametrize("family", FAMILIES)
def test_layer(family, levels, ratios, rounding):
    x, test, w = single()
    codec = fitted(family, None, levels)
    front, turn = split(codec.transform)
    t = oracle.with_signs_of(FAMILIES[family](x, w), front) @ turn
    own = oracle.layer(x, w, t, 4, rounding, ratios)
    x32, test32, w32 = (jnp.asarray(a, jnp.float32) for a in (x, test, w))
    read = codec.transform.dual.apply(w32.T).T
    xt = codec.transform.apply(x32)
    rows = ROUNDINGS.members[rounding].make(read, xt.T @ xt / len(x), codec.quantizer)
    inputs = codec.encode(test32)
    theirs = codec.quantizer.decode(inputs) @ codec.quantizer.decode(rows).T
    of_own = oracle.nearest(test @ t, 4, ratios)
    exact = test @ w
    nm = [np.sum((np.asarray(y) - exact) ** 2) / np.sum(exact**2) for y in (theirs, own(test))]
    print(family, levels, rounding, nm, nm[0]/nm[1]-1, np.mean(np.asarray(rows.values) == own.weight.codes), np.mean(np.asarray(inputs.values) == of_own.codes))
