"""Laws of the families, each a function that takes any member."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

KEYS = jax.random.split(jax.random.key(7))
KEY, OTHER = KEYS


# For programs that take longer to optimise than to run.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
traces = []


@jax.jit
def _apply(t, x):
    traces.append(t)
    return t.apply(x)


@quick_jit
def _views(t, x):
    y = t.apply(x)
    return {
        "apply": y,
        "there and back": t.inverse.apply(y),
        "dual": t.dual.apply(x[::-1]),
        "matrix": t.matrix(),
        "T.matrix": t.T.matrix(),
        "T.T.matrix": t.T.T.matrix(),
        "inverse.matrix": t.inverse.matrix(),
        "inverse.inverse.matrix": t.inverse.inverse.matrix(),
        "inverse.T.matrix": t.inverse.T.matrix(),
        "T.inverse.matrix": t.T.inverse.matrix(),
        "dual.matrix": t.dual.matrix(),
        "one vector": t.apply(x[0]),
        "more axes": t.apply(x.reshape(2, 2, -1)),
    }


def apply(t, x):
    return np.asarray(_apply(t, x))


def views(t, x=None):
    """What the laws compare, from one compiled program; for four vectors `x`."""
    return jax.tree.map(np.asarray, _views(t, vectors(t.dim, 4) if x is None else x))


def rounded_products(f, *args):
    """Products of f that GPUs take of fewer digits than fp32 has, unless told otherwise; in lines.

    jax-ml/jax 12008 and 19444, scipy/scipy 24724: TF32 by default.
    """
    program = str(jax.make_jaxpr(f)(*args))
    products = re.findall(r"dot_general\[.*?\n\s*\]", program, re.DOTALL)
    assert len(products) == program.count("dot_general[")
    return [product for product in products if "HIGHEST" not in product]


def gaussian(n):
    """Symmetric samples at equal shares of the normal distribution, with its tails."""
    half = stats.norm.ppf((np.arange(n // 2) + 0.5) / n).astype(np.float32)
    return jnp.asarray(np.concatenate([half, -half]))


def vectors(dim, *batch):
    return np.random.default_rng(dim).standard_normal((*batch, dim), np.float32)


def floating(tree):
    """The leaves that gradients go to, and a function that puts new ones in their place."""
    leaves, treedef = jax.tree.flatten(tree)
    at = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

    def rebuild(values):
        new = list(leaves)
        for i, value in zip(at, values, strict=True):
            new[i] = value
        return jax.tree.unflatten(treedef, new)

    return [leaves[i] for i in at], rebuild


def isometries_have_orthonormal_rows_and_others_do_not(make):
    t = make(KEY)
    seen = views(t)
    for name, part in (("", t), ("T.", t.T), ("inverse.", t.inverse)):
        m = seen[f"{name}matrix"]
        assert part.isometry == np.allclose(m @ m.T, np.eye(len(m)), atol=1e-5)


def norms_are_kept(make):
    t = make(KEY)
    x = vectors(t.dim, 4)
    y = views(t, x)["apply"]
    assert_allclose(np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)


def inverses_of_isometries_are_transposes(make):
    seen = views(make(KEY))
    assert_allclose(seen["inverse.matrix"], seen["T.matrix"], atol=1e-6)
    assert_allclose(seen["dual.matrix"], seen["matrix"], atol=1e-6)


def inverse_undoes(make):
    t = make(KEY)
    x = vectors(t.dim, 4)
    assert (t.inverse.dim, t.inverse.out_dim) == (t.out_dim, t.dim)
    seen = views(t, x)
    assert_allclose(seen["there and back"], x, atol=1e-5)
    assert_allclose(seen["inverse.inverse.matrix"], seen["matrix"], atol=1e-6)
    if t.dim == t.out_dim:
        assert_allclose(apply(t, apply(t.inverse, x)), x, atol=1e-5)


def transpose_has_the_transposed_matrix(make):
    t = make(KEY)
    assert (t.T.dim, t.T.out_dim) == (t.out_dim, t.dim)
    seen = views(t)
    assert_allclose(seen["T.matrix"], seen["matrix"].T, atol=1e-6)
    assert_allclose(seen["T.T.matrix"], seen["matrix"], atol=1e-6)
    assert_allclose(seen["inverse.T.matrix"], seen["inverse.matrix"].T, atol=1e-6)
    assert_allclose(seen["T.inverse.matrix"], seen["inverse.T.matrix"], atol=1e-6)


def dual_keeps_inner_products(make):
    t = make(KEY)
    x = vectors(t.dim, 4)
    seen = views(t, x)
    assert_allclose(seen["dual"] @ seen["apply"].T, x[::-1] @ x.T, atol=1e-4)
    assert_allclose(seen["dual.matrix"], seen["inverse.T.matrix"], atol=1e-6)


def apply_is_the_matrix_product(make):
    t = make(KEY)
    x = vectors(t.dim, 4)
    seen = views(t, x)
    assert seen["matrix"].shape == (t.dim, t.out_dim)
    assert_allclose(seen["apply"], x @ seen["matrix"], atol=2e-5)


def apply_is_linear(make):
    t = make(KEY)
    x, y = vectors(t.dim, 2, 4)
    assert_allclose(apply(t, 2 * x - 3 * y), 2 * apply(t, x) - 3 * apply(t, y), atol=2e-5)


def leading_axes_are_free(make):
    t = make(KEY)
    seen = views(t)
    assert_allclose(seen["one vector"], seen["apply"][0], atol=1e-5)
    assert_allclose(seen["more axes"], seen["apply"].reshape(2, 2, -1), atol=1e-5)
    none = jax.ShapeDtypeStruct((0, t.dim), jnp.float32)
    assert jax.eval_shape(lambda t, x: t.apply(x), t, none).shape == (0, t.out_dim)


def composition_applies_the_first_factor_first(make):
    a, b = make(KEY), make(OTHER).T
    x = vectors(a.dim, 4)
    got = apply(a @ b, x)
    assert_allclose(got, apply(b, apply(a, x)), atol=1e-5)
    assert_allclose(got, x @ views(a)["matrix"] @ views(b.T)["T.matrix"], atol=2e-5)
    assert ((a @ b).params, (a @ b).fmas) == (a.params + b.params, a.fmas + b.fmas)


def vmap_is_a_loop(make):
    loop = [make(KEY), make(OTHER)]
    batch = jax.vmap(make)(KEYS)
    assert (batch.dim, batch.params, batch.fmas) == (loop[0].dim, loop[0].params, loop[0].fmas)
    x = vectors(batch.dim, 2, 4)
    want = [apply(t, rows) for t, rows in zip(loop, x, strict=True)]
    assert_allclose(jax.vmap(_apply)(batch, x), want, atol=1e-5)
    for i, t in enumerate(loop):
        for both, one in ((batch.T, t.T), (batch.inverse, t.inverse), (batch.dual, t.dual)):
            for a, b in zip(jax.tree.leaves(both), jax.tree.leaves(one), strict=True):
                assert_allclose(np.asarray(a)[i], b, atol=1e-5)


def jit_is_eager_and_new_leaves_do_not_recompile(make):
    t = make(KEY)
    x = vectors(t.dim, 4)
    assert_allclose(apply(t, x), t.apply(jnp.asarray(x)), atol=1e-5)
    before = len(traces)
    apply(make(OTHER), 2 * x)
    assert len(traces) == before


def half_precision_is_computed_in_fp32(make):
    t = make(KEY)
    for dtype in (jnp.bfloat16, jnp.float16):
        x = jnp.asarray(vectors(t.dim, 4)).astype(dtype)
        y = t.apply(x)
        assert y.dtype == dtype
        assert_array_equal(y, t.apply(x.astype(jnp.float32)).astype(dtype))


def products_have_all_digits_on_gpus_too(make):
    t = make(KEY)
    x = jnp.ones((2, t.dim))
    assert rounded_products(lambda t, x: (t.apply(x), t.inverse.apply(t.apply(x))), t, x) == []


def gradients_are_finite(make):
    t = make(KEY)
    leaves, rebuild = floating(t)
    weights, x = vectors(t.out_dim, 1)[0], vectors(t.dim, 4)[0]
    gradient = quick_jit(
        jax.grad(lambda leaves, x: weights @ rebuild(leaves).apply(x), argnums=(0, 1))
    )
    want = views(t)["matrix"] @ weights
    for v in (x, np.zeros_like(x)):
        by_leaves, by_x = gradient(leaves, v)
        assert all(np.isfinite(g).all() for g in by_leaves)
        assert_allclose(by_x, want, atol=1e-5)


def equal_keys_give_equal_transforms(make):
    for a, b in zip(jax.tree.leaves(make(KEY)), jax.tree.leaves(make(KEY)), strict=True):
        assert_array_equal(a, b)


def other_keys_give_other_transforms(make):
    leaves = jax.tree.leaves(make(KEY))
    others = jax.tree.leaves(make(OTHER))
    assert leaves == [] or any(
        not np.array_equal(a, b) for a, b in zip(leaves, others, strict=True)
    )


ISOMETRY_LAWS = (norms_are_kept, inverses_of_isometries_are_transposes)
TRANSFORM_LAWS = (
    isometries_have_orthonormal_rows_and_others_do_not,
    inverse_undoes,
    transpose_has_the_transposed_matrix,
    dual_keeps_inner_products,
    apply_is_the_matrix_product,
    apply_is_linear,
    leading_axes_are_free,
    composition_applies_the_first_factor_first,
    vmap_is_a_loop,
    jit_is_eager_and_new_leaves_do_not_recompile,
    half_precision_is_computed_in_fp32,
    products_have_all_digits_on_gpus_too,
    gradients_are_finite,
    equal_keys_give_equal_transforms,
    other_keys_give_other_transforms,
)


def message(read, *args):
    """The message of the ValueError that a call raises: one line of less than 500 characters."""
    with pytest.raises(ValueError) as caught:
        read(*args)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500, text
    return text
