import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
from jax.test_util import check_grads
from laws import KEY, OTHER, quick_jit
from numpy.testing import assert_allclose, assert_array_equal

from isojax import learn, metrics, quantizers
from isojax import transforms as tf
from isojax.codec import Codec
from isojax.learn.stiefel import turn

DIM = 8
MIXING = jax.random.normal(jax.random.key(3), (DIM, DIM)) * jnp.geomspace(0.2, 3, DIM)
X = jax.random.laplace(KEY, (256, DIM)) @ MIXING
METRIC = MIXING.T @ MIXING
ADAM = optax.adam(0.03)

LOSSES = {
    "absmax": lambda t, x: learn.quantization_error(t, x, quantizers.absmax(3, "token")),
    "groups": lambda t, x: learn.quantization_error(
        t, x, quantizers.minmax(2, "group", 4), METRIC, rounding="straight_through"
    ),
    "lloyd_max": lambda t, x: learn.quantization_error(
        t, x, quantizers.lloyd_max_gaussian(2), METRIC
    ),
    "kurtosis": lambda t, x: learn.kurtosis_loss(t, x),
    "log_variance": lambda t, x: learn.log_variance(t, x),
    "rate_distortion": lambda t, x: learn.rate_distortion(t, x, 0.7, 8.0),
}
FULL = {  # reach every rotation, or nearly
    "cayley": (tf.cayley, ADAM),
    "exponential": (tf.exponential, ADAM),
    "stiefel": (tf.haar, learn.stiefel(ADAM)),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def gap(m):
    m = np.asarray(m, np.float64)
    return np.abs(m.swapaxes(-1, -2) @ m - np.eye(m.shape[-1])).max()


@every_loss
def test_what_is_learned_is_better_than_its_start_on_all_samples(loss):
    def objective(t):
        return loss(t, X)

    def batch_loss(t, key):
        return loss(t, learn.minibatch(key, X, 64))

    @quick_jit
    def run(start):
        fitted, trace = learn.fit(
            batch_loss, start, learn.stiefel(ADAM), key=KEY, steps=40, checks=4, objective=objective
        )
        return fitted, trace, objective(start), objective(fitted)

    fitted, trace, before, after = run(tf.haar(OTHER, DIM))
    assert trace.shape == (40,) and np.isfinite(trace).all()
    assert after < before
    assert gap(fitted.matrix()) < 1e-5


def test_a_learned_rotation_lowers_the_peaks_of_vectors_it_has_not_seen():
    # few strong directions with signs of their own, so that their sums peak
    signs = jax.random.rademacher(OTHER, (2048, DIM), jnp.float32)
    x = signs * jnp.geomspace(30, 0.3, DIM) @ tf.haar(KEY, DIM).matrix()
    keys = jax.random.split(KEY, 4)
    learned = quick_jit(jax.vmap(lambda k: learn.learned_rotation(k, x[:1024], steps=100)))(keys)

    def error(t):
        return float(learn.quantization_error(t, x[1024:], quantizers.absmax(3, "token")))

    for i, key in enumerate(keys):
        rotation = jax.tree.map(lambda a, i=i: a[i], learned)
        assert gap(rotation.entries) < 1e-5
        assert error(rotation) < 0.9 * error(tf.hadamard(jax.random.split(key)[0], DIM))


def test_zeros_teach_no_rotation_and_bad_numbers_are_refused():
    learned = quick_jit(lambda: learn.learned_rotation(KEY, jnp.zeros((4, DIM)), steps=3))()
    assert gap(learned.entries) < 1e-5
    for words, message in (
        ({"steps": 0}, "steps must be a whole number of at least 1"),
        ({"rate": -1.0}, "rate must be above zero and finite"),
    ):
        with pytest.raises(ValueError, match=message):
            learn.learned_rotation(KEY, X, **words)


@pytest.mark.parametrize("make, optimizer", FULL.values(), ids=FULL)
def test_the_least_log_variance_is_that_of_pca(make, optimizer):
    root = jnp.asarray(np.linalg.qr(X[:, :6], mode="r"))  # fewer rows

    def loss(t, key):
        return learn.log_variance(t, root)

    run = quick_jit(
        lambda start: learn.fit(loss, start, optimizer, key=KEY, steps=300, checks=10)[0]
    )
    fitted = run(make(KEY, 6))
    assert gap(fitted.matrix()) < 1e-5

    def gain(t):
        return metrics.coding_gain_db(jnp.mean(jnp.square(t.apply(X[:, :6])), 0))

    assert gain(fitted) > 0.99 * gain(tf.pca(X[:, :6]))
    assert gain(fitted) < 1.0001 * gain(tf.pca(X[:, :6]))


def test_a_descent_that_diverges_returns_its_start():
    start = {"a": jnp.ones(3)}
    fitted, trace = learn.fit(
        lambda p, key: jnp.sum(p["a"] ** 2), start, optax.sgd(-1.0), key=KEY, steps=6, checks=3
    )
    assert trace[-1] > trace[0]
    assert_array_equal(fitted["a"], start["a"])


def test_the_best_parameters_are_kept_and_not_the_last():
    fitted, trace = learn.fit(
        lambda p, key: jnp.abs(p), jnp.asarray(0.9), optax.sgd(1.0), key=KEY, steps=2, checks=2
    )
    assert_allclose(trace, [0.9, 0.1], atol=1e-6)
    assert_allclose(fitted, -0.1, atol=1e-6)


def test_vmap_over_seeds_and_learning_rates_is_a_loop():
    def run(key, rate):
        def loss(t, key):
            return learn.log_variance(t, learn.minibatch(key, X, 32))

        optimizer = learn.stiefel(optax.adam(rate))
        return learn.fit(loss, tf.haar(key, DIM), optimizer, key=key, steps=5)

    keys, rates = jax.random.split(KEY, 2), jnp.array([1e-3, 3e-2])
    batch, traces = quick_jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))(keys, rates)
    one = quick_jit(run)
    for i, key in enumerate(keys):
        for j, rate in enumerate(rates):
            fitted, trace = one(key, rate)
            assert_allclose(batch.entries[i, j], fitted.entries, atol=1e-4)
            assert_allclose(traces[i, j], trace, atol=1e-4)


def test_equal_keys_draw_equal_minibatches_and_steps_differ():
    def loss(p, key):
        return p * jnp.mean(learn.minibatch(key, X, 4))

    @quick_jit
    def run(key):
        return learn.fit(loss, jnp.asarray(1.0), optax.sgd(0.0), key=key, steps=4)[1]

    assert_array_equal(run(KEY), run(KEY))
    assert len(set(np.asarray(run(KEY)).tolist())) == 4
    assert not np.array_equal(run(KEY), run(OTHER))


def test_progress_is_told_to_the_callback_alone(capsys):
    seen = []
    fit = functools.partial(learn.fit, lambda p, key: p**2, optimizer=optax.sgd(0.25), key=KEY)
    run = jax.jit(
        lambda p: fit(p, steps=6, checks=3, callback=lambda *a: seen.append([*map(float, a)]))
    )
    jax.block_until_ready(run(jnp.asarray(1.0)))
    jax.effects_barrier()
    assert_allclose(seen, [[2, 2.0**-4], [4, 2.0**-8], [6, 2.0**-12]])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("rate", [1e-3, 1e-1, 1e3])
def test_stiefel_stays_orthogonal_over_hundreds_of_steps(rate):
    start = tf.haar(KEY, 16)
    optimizer = learn.stiefel(optax.adam(rate))

    def loss(t, key):
        return jnp.sum(t.entries * jax.random.normal(key, (16, 16)))

    def nearness(t):
        return -jnp.sum(jnp.square(t.entries - start.entries))

    @quick_jit
    def run():
        return learn.fit(loss, start, optimizer, key=OTHER, steps=300, objective=nearness)

    r = np.asarray(run()[0].entries, np.float64)
    assert np.abs(r - start.entries).max() > 1e-3
    assert gap(r) < 1e-5
    assert_allclose(np.linalg.det(r), np.linalg.det(start.entries), atol=1e-4)


def test_a_small_step_is_the_riemannian_gradient():
    r, g = (np.asarray(tf.haar(k, 5).entries) for k in (KEY, OTHER))
    optimizer = learn.stiefel(optax.sgd(1e-3))
    start = tf.Dense(jnp.asarray(r))
    step, _ = optimizer.update(tf.Dense(jnp.asarray(g)), optimizer.init(start), start)
    assert_allclose(step.entries, -1e-3 * (g - r @ g.T @ r) / 2, atol=2e-6)


def test_a_turn_is_the_exponential_and_at_most_half_a_radian():
    r = tf.haar(KEY, 5).entries
    a = np.asarray(jax.random.normal(OTHER, (5, 5)))
    a = (a - a.T) * 0.3 / np.linalg.norm(a - a.T, 2)
    assert_allclose(turn(r, jnp.asarray(a)), r @ scipy.linalg.expm(a), atol=5e-5)
    far = np.asarray(r.T @ turn(r, jnp.asarray(100 * a)))
    angles = np.abs(np.angle(np.linalg.eigvals(far)))
    assert 0.4 < angles.max() <= 0.5 + 1e-3


def test_only_dense_leaves_are_on_the_manifold():
    params = {"r": jax.vmap(lambda k: tf.haar(k, 4))(jax.random.split(KEY, 3)), "b": jnp.ones(2)}
    gradient = jax.tree.map(lambda a: jnp.sin(jnp.arange(a.size)).reshape(a.shape), params)
    optimizer = learn.stiefel(ADAM)
    step = quick_jit(lambda g, p: optimizer.update(g, optimizer.init(p), p)[0])
    updates = step(gradient, params)
    plain, _ = ADAM.update(gradient["b"], ADAM.init(params["b"]))
    assert_allclose(updates["b"], plain, rtol=1e-5)
    moved = optax.apply_updates(params, updates)["r"].entries
    assert gap(moved) < 1e-5 and np.abs(moved - params["r"].entries).max() > 1e-3


@pytest.mark.parametrize("bits, granularity, group", [(3, "token", 0), (4, "group", 4)])
def test_quantization_error_is_that_of_the_codec(bits, granularity, group):
    t, q = tf.haar(KEY, DIM), quantizers.absmax(bits, granularity, group)
    x_hat = Codec(t, q).roundtrip(X)
    assert_allclose(learn.quantization_error(t, X, q), metrics.mse(X, x_hat), rtol=1e-4)
    e = np.asarray(x_hat - X, np.float64)
    want = np.trace(e @ METRIC @ e.T) / e.size
    for rounding in ("exact", "straight_through"):
        assert_allclose(learn.quantization_error(t, X, q, METRIC, rounding), want, rtol=1e-4)


def test_the_error_of_a_weight_in_the_metric_of_its_inputs_is_that_of_the_output():
    w = jax.random.normal(OTHER, (DIM, 5))
    t, q = tf.hadamard(KEY, DIM), quantizers.absmax(3, "token")
    w_hat = Codec(t, q).roundtrip(w.T).T
    want = np.sum(np.square(np.asarray(X @ (w_hat - w), np.float64))) * 2 / len(X) / w.size
    got = quick_jit(learn.quantization_error)(t, w.T, q, learn.gram(X).hessian)
    assert_allclose(got, want, rtol=1e-4)


def test_the_exact_gradient_is_that_of_finite_differences():
    with jax.enable_x64(True):
        x, metric = (jnp.asarray(a, jnp.float64) for a in (X[:4], METRIC))
        free = jnp.asarray(tf.cayley(KEY, DIM).free, jnp.float64)
        for q in (quantizers.absmax(3, "token"), quantizers.lloyd_max_gaussian(2)):
            check_grads(
                jax.jit(lambda v, q=q: learn.quantization_error(tf.Cayley(v), x, q, metric)),
                (free,), order=1, modes=["rev"], eps=1e-7,
            )  # fmt: skip


def test_the_other_gradients_are_those_of_finite_differences():
    with jax.enable_x64(True):
        x = jnp.asarray(X[:16], jnp.float64)
        free = jnp.asarray(tf.cayley(KEY, DIM).free, jnp.float64)
        for name in ("kurtosis", "log_variance", "rate_distortion"):
            check_grads(
                jax.jit(lambda v, loss=LOSSES[name]: loss(tf.Cayley(v), x)),
                (free,), order=1, modes=["rev"], eps=1e-7,
            )  # fmt: skip


def test_straight_through_is_the_gradient_of_the_squared_scale():
    """With one scale s the loss is s^2 times a constant, so its logarithm moves by 2 d log s."""
    free = tf.cayley(KEY, DIM).free
    q = quantizers.absmax(4)

    def log_error(v):
        return jnp.log(learn.quantization_error(tf.Cayley(v), X, q, rounding="straight_through"))

    def log_peak(v):
        return 2 * jnp.log(jnp.max(jnp.abs(tf.Cayley(v).apply(X))))

    slopes = quick_jit(lambda v: (jax.grad(log_error)(v), jax.grad(log_peak)(v)))(free)
    assert_allclose(*slopes, atol=1e-4)


def test_kurtosis_loss_is_zero_for_uniform_numbers():
    t = tf.identity(4)
    u = jnp.linspace(-1, 1, 4000).reshape(1000, 4)
    assert_allclose(learn.kurtosis_loss(t, u, "tensor"), 0, atol=1e-3)
    g = jax.random.normal(KEY, (20000, 4))
    assert_allclose(learn.kurtosis_loss(t, g, "channel"), 1.2, atol=0.1)


def test_log_variance_differs_by_the_coding_gain():
    a, b = tf.haar(KEY, DIM), tf.pca(X)
    bits = learn.log_variance(a, X) - learn.log_variance(b, X)
    gain = [metrics.coding_gain_db(jnp.mean(jnp.square(t.apply(X)), 0)) for t in (a, b)]
    assert_allclose(20 * np.log10(2) * bits, gain[1] - gain[0], rtol=1e-4)
    assert_allclose(learn.log_variance(a, jnp.zeros((3, DIM)), 2.0**-8), -4)


@pytest.mark.parametrize("step, tolerance", [(0.1, 0.01), (1.0, 0.05), (3.0, 0.15)])
def test_laplace_rate_is_the_entropy_of_the_codes_of_laplace_numbers(step, tolerance):
    y = jax.random.laplace(KEY, (20000, 3)) * jnp.array([1.0, 1.5, 2.0])
    true = metrics.code_entropy_bits(jnp.round(y / step).astype(int), "channel")
    assert_allclose(quick_jit(learn.laplace_rate)(y, step), true, atol=tolerance)


def test_laplace_distortion_is_the_error_of_rounding_laplace_numbers():
    y = jax.random.laplace(KEY, (50000, 2)) * jnp.array([1.0, 2.0])
    distortion = quick_jit(learn.laplace_distortion)
    for step in (0.01, 0.5, 1.0, 2.0, 20.0):
        true = np.mean(np.square(y - step * np.round(y / step)))
        assert_allclose(distortion(y, step), true, rtol=0.02)


def test_zeros_cost_nothing_and_have_finite_gradients_beside_outliers():
    def total(y):
        return learn.laplace_rate(y, 1.0) + learn.laplace_distortion(y, 1.0)

    value_and_grad = quick_jit(jax.value_and_grad(total))
    y = jnp.zeros((100, 2))
    value, slope = value_and_grad(y)
    assert abs(value) < 1e-3 and np.isfinite(slope).all()
    value, slope = value_and_grad(y.at[0].set(1e6))
    assert np.isfinite(value) and np.isfinite(slope).all()


def test_the_natural_weight_makes_its_step_the_best_at_high_rate():
    y, step = jax.random.laplace(KEY, (512, 4)), 0.05
    weight = 6 / (np.log(2) * step**2)
    loss = quick_jit(jax.grad(lambda s: learn.rate_distortion(tf.identity(4), y, s, weight)))
    slope = loss(step)
    assert abs(slope * step) < 0.01


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: learn.fit(max, 0, ADAM, key=KEY, steps=0), "steps must be .* got 0"),
        (
            lambda: learn.fit(max, 0, ADAM, key=KEY, steps=5, checks=2),
            "checks must divide .*=5",
        ),
        (lambda: learn.minibatch(KEY, X, 0), "size must be .* got 0"),
        (lambda: learn.stiefel(ADAM).update(0, 0), "params must be given"),
        (
            lambda: learn.quantization_error(
                tf.haar(KEY, DIM), X, quantizers.absmax(3), None, "ste"
            ),
            "rounding must be one of exact, straight_through; got 'ste'",
        ),
        (
            lambda: learn.quantization_error(
                tf.haar(KEY, DIM), X, quantizers.ecsq(1.0), rounding="straight_through"
            ),
            "scales must be real numbers to be learned",
        ),
    ],
)
def test_bad_input_is_refused_with_what_was_got_and_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()
