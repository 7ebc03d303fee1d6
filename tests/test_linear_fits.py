"""Transforms in front of a linear layer, fitted to inputs and weights together."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from laws import KEY, quick_jit
from numpy.testing import assert_allclose, assert_array_equal

from isojax import learn, metrics, quantizers
from isojax import transforms as tf
from isojax._core.samples import Samples
from isojax.recipes import Coordinates

DIM, OUT, TOKENS = 24, 40, 600


def layer(seed, d=DIM, o=OUT, n=TOKENS, outliers=3):
    """Correlated inputs with channels of outliers, and weights with axes of their own; fp32."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((2 * d, d)) * np.geomspace(2, 0.5, d)
    x = rng.standard_normal((n, 2 * d)) @ mix
    x[:, rng.choice(d, outliers, False)] *= 10
    w = rng.standard_normal((d, o)) * np.exp(0.5 * rng.standard_normal((d, 1)))
    return x.astype(np.float32), w.astype(np.float32)


def moments(x, w):
    """C and M in fp64, and in fp32 for what is tested."""
    x, w = np.asarray(x, float), np.asarray(w, float)
    both = x.T @ x / len(x), w @ w.T
    return (*both, *(jnp.asarray(m, jnp.float32) for m in both))


def size(t, c, m):
    """|x T| |T^-1 W| from moments, in fp64."""
    there, back = (np.asarray(each.matrix(), float) for each in (t, t.inverse))
    assert_allclose(there @ back, np.eye(len(c)), atol=2e-3)
    return np.sqrt(np.trace(there.T @ c @ there) * np.trace(back @ m @ back.T))


def nuclear(c, m):
    """The sum of the singular values of C^(1/2) M^(1/2)."""
    roots = (np.linalg.cholesky(each).T for each in (c, m))
    first, second = roots
    return np.linalg.svd(first @ second.T, compute_uv=False).sum()


FORMS = {"wush": learn.wush, "cat": learn.cat}
every_form = pytest.mark.parametrize("form", FORMS)


@every_form
@pytest.mark.parametrize("block", [0, 8])
def test_closed_forms_reach_the_nuclear_norm(form, block):
    x, w = layer(0)
    c, m, *given = moments(x, w)
    t = quick_jit(lambda c, m: FORMS[form](c, m, block=block, damping=0.0))(*given)
    parts = [np.s_[i : i + block] for i in range(0, DIM, block)] if block else [np.s_[:]]
    want = sum(nuclear(c[p, p], m[p, p]) for p in parts)
    assert_allclose(size(t, c, m), want, rtol=1e-5)
    if not block:
        exact = np.asarray(x, float) @ np.asarray(w, float) / len(x) ** 0.5
        assert_allclose(want, np.linalg.svd(exact, compute_uv=False).sum(), rtol=1e-5)
    assert size(tf.identity(DIM), c, m) > 1.5 * want
    assert (t.fmas, t.params) == ((block or DIM) * DIM,) * 2


def test_both_sides_of_wush_have_one_diagonal_second_moment():
    c, m, *given = moments(*layer(1))
    t = quick_jit(lambda c, m: learn.wush(c, m, damping=0.0))(*given)
    there, back = (np.asarray(each.matrix(), float) for each in (t, t.inverse))
    inputs, weights = there.T @ c @ there, back @ m @ back.T
    roots = np.linalg.eigvals(c @ m).real
    spectrum = np.diag(np.sort(np.sqrt(roots))[::-1])
    assert_allclose(inputs, spectrum, atol=1e-4 * spectrum.max())
    assert_allclose(weights, spectrum, atol=1e-4 * spectrum.max())


def test_cat_is_the_symmetric_positive_root_of_the_same():
    _, _, *given = moments(*layer(2))
    one, other = (np.asarray(form(*given).matrix(), float) for form in FORMS.values())
    assert_allclose(other, other.T, atol=1e-5 * np.abs(other).max())
    assert (np.linalg.eigvalsh(other) > 0).all()
    assert_allclose(other @ other.T, one @ one.T, rtol=1e-3, atol=1e-4 * np.abs(one @ one.T).max())


def test_half_a_balance_is_the_best_diagonal():
    c, m, *given = moments(*layer(3))
    x, w = (jnp.sqrt(jnp.diagonal(each)) for each in given)
    balance = tf.Diagonal(1 / learn.balance_scale(x, w))
    assert_allclose(size(balance, c, m), np.sqrt(np.diag(c) * np.diag(m)).sum(), rtol=1e-5)
    of_blocks = learn.wush(*given, block=1, damping=0.0)
    ratio = np.diagonal(of_blocks.matrix()) / balance.entries
    assert_allclose(ratio, np.full(DIM, ratio[0]), rtol=1e-4)
    for exponent in (0.0, 0.25, 0.75, 1.0):
        other = tf.Diagonal(1 / learn.balance_scale(x, w, exponent))
        assert size(other, c, m) > size(balance, c, m)
        assert_allclose(np.log(other.entries).mean(), 0, atol=1e-5)
    assert_allclose(other.entries * x / w, np.full(DIM, (other.entries * x / w)[0]), rtol=1e-4)


def factors_of(seed, first=4, second=6):
    rng = np.random.default_rng(seed)
    parts = (rng.standard_normal((n, 3 * n)) * np.geomspace(3, 0.2, 3 * n) for n in (first, second))
    return np.kron(*(part @ part.T for part in parts))


def test_kronecker_factors_of_moments_that_are_products_reach_the_nuclear_norm():
    c, m = factors_of(0), factors_of(1)
    t = learn.kron_wush(jnp.asarray(c, jnp.float32), jnp.asarray(m, jnp.float32), damping=0.0)
    assert (t.left.dim, t.right.dim) == (4, 6)
    assert_allclose(size(t, c, m), nuclear(c, m), rtol=1e-4)


def test_no_other_kronecker_factors_near_by_are_better():
    c, m, *given = moments(*layer(4))
    fit = quick_jit(learn.kron_wush, static_argnames=("left", "steps"))
    t = fit(*given, damping=0.0, steps=40)
    best = size(t, c, m)
    assert nuclear(c, m) < best < size(tf.identity(DIM), c, m)
    assert_allclose(best, size(fit(*given, damping=0.0, steps=80), c, m), rtol=1e-3)
    rng = np.random.default_rng(0)
    for _ in range(8):
        left, right = (
            np.eye(n) + 0.05 * rng.standard_normal((n, n)) for n in (t.left.dim, t.right.dim)
        )
        near = t @ tf.kronecker(jnp.asarray(left), jnp.asarray(right))
        assert size(near, c, m) > 0.999 * best
    alone = fit(*given, left=1, damping=0.0)
    assert_allclose(size(alone, c, m), nuclear(c, m), rtol=1e-4)


def test_closed_forms_keep_their_accuracy_in_fp32_at_the_usual_damping():
    x, w = layer(5, d=256, o=96, n=200, outliers=6)  # singular on both sides
    c, m, *given = moments(x, w)
    t = jax.jit(learn.wush)(*given)
    c, m = (a + 0.01 * np.trace(a) / len(a) * np.eye(len(a)) for a in (c, m))
    assert np.linalg.cond(c) > 1e3
    assert_allclose(size(t, c, m), nuclear(c, m), rtol=1e-5)
    assert_allclose(t.inverse.matrix() @ t.matrix(), np.eye(256), atol=1e-4)


SINGULAR = {
    "fewer vectors than dimensions": lambda: layer(6, n=10),
    "dead channels": lambda: [a * (np.arange(DIM) > 1) for a in [layer(7)[0]]] + [layer(7)[1]],
    "dead weights": lambda: (layer(8)[0], layer(8)[1] * (np.arange(DIM) > 1)[:, None]),
    "no inputs": lambda: (0 * layer(9)[0], layer(9)[1]),
    "fewer outputs than dimensions": lambda: layer(10, o=5),
}


@pytest.mark.parametrize("case", SINGULAR)
@pytest.mark.parametrize("damping", [0.0, 0.01])
@pytest.mark.parametrize("name", ["wush", "wush:8", "cat:8", "kron_wush"])
def test_singular_moments_give_invertible_transforms(name, damping, case):
    x, w = (jnp.asarray(a) for a in SINGULAR[case]())
    samples = Samples(x, w @ w.T, w)
    t = Coordinates.parse(f"{name}:damping={damping}").fit(KEY, samples)
    for each in (t, t.inverse):
        assert np.isfinite(each.matrix()).all()
    if damping:
        assert_allclose(t.inverse.apply(t.apply(x)), x, atol=1e-3 * (1 + np.abs(x).max()))


@pytest.mark.parametrize("name", ["balance", "smooth", "awq"])
@pytest.mark.parametrize("case", ["dead channels", "dead weights", "no inputs"])
def test_dead_channels_are_left_alone(name, case):
    x, w = (jnp.asarray(a) for a in SINGULAR[case]())
    samples = Samples(x, w @ w.T, w)
    t = Coordinates.parse(name).fit(KEY, samples)
    assert np.isfinite(t.entries).all() and (t.entries > 0).all()
    if name != "awq" or case != "dead weights":
        assert_array_equal(t.entries[:2], [1, 1])


def test_awq_takes_the_best_of_its_grid():
    x, w = layer(11)
    quantizer = quantizers.absmax(3, "group", group=8)
    scales = []
    mean = np.abs(x).mean(0)
    for alpha in np.arange(10) / 10:
        s = mean**alpha
        scales.append(s / np.sqrt(s.max() * s.min()))
    lost = [
        np.square(x @ (np.asarray(quantizer.roundtrip(jnp.asarray((w * s[:, None]).T))).T
                       / s[:, None] - w)).sum()
        for s in scales
    ]  # fmt: skip
    best = int(np.argmin(lost))
    assert 0 < best
    got = learn.awq_scale(jnp.asarray(x), jnp.asarray(w), quantizer, steps=10)
    assert_allclose(got, scales[best], rtol=1e-4)


def error(t, x, w, levels):
    """NMSE of x w with both sides in codes."""
    w_hat = levels.roundtrip(t.dual.apply(w.T)).T
    return float(metrics.nmse(x @ w, levels.roundtrip(t.apply(x)) @ w_hat))


@pytest.mark.parametrize("first", ["balance", "wush", "kron_wush", "smooth"])
def test_alignment_before_a_rotation_halves_what_it_loses(first):
    rng = np.random.default_rng(12)
    x, w = (jnp.asarray(a) for a in layer(12, d=64, o=96, n=2000, outliers=0))
    scale = jnp.asarray(np.exp(1.5 * rng.standard_normal(64)), jnp.float32)
    x, w = x * scale, w / scale[:, None]  # as a norm's scale leaves them
    seen, held = x[:1500], x[1500:]
    samples, levels = Samples(seen, w @ w.T, w), quantizers.absmax(4, "token")
    lost = {
        name: error(Coordinates.parse(name).fit(KEY, samples), held, w, levels)
        for name in ("hadamard", f"{first}@hadamard")
    }
    assert lost[f"{first}@hadamard"] < 0.5 * lost["hadamard"]


@pytest.mark.parametrize(
    "name", ["smooth:0.3", "balance", "balance_search:steps=4", "awq:4:8", "standardize"]
)
def test_what_query_heads_share_is_scaled_alike(name):
    groups, repeats, d = 2, 3, 4
    x, w = (jnp.asarray(a) for a in layer(13))
    samples = Samples(x, w @ w.T, w, moment=x.T @ x / len(x), heads=(groups, repeats))
    entries = np.diagonal(Coordinates.parse(name).fit(KEY, samples).matrix())
    by_head = entries.reshape(groups, repeats, d)
    assert_array_equal(by_head, np.broadcast_to(by_head[:, :1], by_head.shape))
    # as if the value heads were read once, by all outputs of all query heads
    heads = np.asarray(x).reshape(-1, groups, repeats, d).swapaxes(1, 2).reshape(-1, groups * d)
    kernel = np.asarray(w).reshape(groups, repeats, d, -1).swapaxes(1, 2).reshape(groups * d, -1)
    values = Samples(jnp.asarray(heads), jnp.asarray(kernel @ kernel.T), jnp.asarray(kernel))
    want = Coordinates.parse(name).fit(KEY, values).entries.reshape(groups, d)
    assert_allclose(by_head[:, 0], want, rtol=1e-4)


def test_after_a_rotation_channels_are_their_own():
    x, w = (jnp.asarray(a) for a in layer(14))
    samples = Samples(x, w @ w.T, w, heads=(2, 3))
    t = Coordinates.parse("balance@hadamard@balance").fit(KEY, samples)
    assert [type(f).__name__ for f in t.factors] == ["BlockDiagonal", "Hadamard", "Diagonal"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda c: learn.wush(c, c[:4, :4]), r"metric must have shape \(24, 24\), got \(4, 4\)"),
        (lambda c: learn.wush(c[:4], c[:4]), r"moment must be a square matrix, got shape \(4, 24"),
        (lambda c: learn.cat(c * jnp.nan, c), "moment must be finite"),
        (lambda c: learn.kron_wush(c, c / 0), "metric must be finite"),
        (lambda c: learn.wush(c, c, damping=-0.1), "damping must be at least 0, got -0.1"),
        (lambda c: learn.wush(c, c, block=7), "block must divide d=24, got 7"),
        (lambda c: learn.kron_wush(c, c, left=7), "left must divide d=24, got 7"),
        (lambda c: learn.kron_wush(c, c, steps=0), "steps must be a whole number of at least 1"),
        (lambda c: learn.balance_scale(c[0], c[0], 1.5), "exponent must be from 0 to 1, got 1.5"),
        (lambda c: learn.balance_scale(c[0], c[0, :4]), r"weight_rms must have shape \(24,\)"),
        (lambda c: learn.awq_scale(c, c[:4], quantizers.absmax(4, "token")), "x must have a last"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, words, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=words) as caught:
        call(jnp.eye(DIM))
    assert "\n" not in str(caught.value)
