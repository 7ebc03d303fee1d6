import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from isojax import metrics as m

T, D = 37, 16


def tensors(heads=6, groups=2, noise=0.3, tokens=T):
    """Queries, keys with a large offset in a few channels, values; keys and values with noise."""
    shapes = [(tokens, heads, D)] + 4 * [(tokens, groups, D)]
    keys = jax.random.split(jax.random.key(0), 5)
    q, k, v, dk, dv = (jax.random.normal(a, s) for a, s in zip(keys, shapes, strict=True))
    q, k = 2 * q, k + 8 * (jnp.arange(D) < 2)
    return q, k, v, k + noise * dk, v + noise * dv


errors = jax.jit(m.attention_errors)  # one program for all metrics
by_vmap = jax.jit(jax.vmap(m.attention_errors))
by_map = jax.jit(lambda stacked: jax.lax.map(lambda layer: m.attention_errors(*layer), stacked))


def one_of(name, errors=errors):
    return lambda *tensors: getattr(errors(*tensors), name)


METRICS = {name: one_of(name) for name in m.AttentionErrors._fields}
every_name = pytest.mark.parametrize("name", METRICS)
every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())


def oracle(q, k, v, k_hat, v_hat):
    """The three metrics query by query, in fp64."""
    q, k, v, k_hat, v_hat = (np.asarray(a, np.float64) for a in (q, k, v, k_hat, v_hat))
    share = q.shape[1] // k.shape[1]
    differences, kls, outs, outs_hat = [], [], [], []
    for head in range(q.shape[1]):
        g = head // share
        for i in range(len(q)):
            logits, logits_hat = (x[: i + 1, g] @ q[i, head] / D**0.5 for x in (k, k_hat))
            error = logits_hat - logits
            differences.append(error - error.mean())
            p, p_hat = (np.exp(x - x.max()) for x in (logits, logits_hat))
            p, p_hat = p / p.sum(), p_hat / p_hat.sum()
            kls.append(np.sum(p * np.log(p / p_hat)))
            outs.append(p @ v[: i + 1, g])
            outs_hat.append(p_hat @ v_hat[: i + 1, g])
    nmse = np.square(np.subtract(outs_hat, outs)).sum() / np.square(outs).sum()
    return {
        "logit_error": np.sqrt(np.mean(np.square(np.concatenate(differences)))),
        "attention_kl": np.mean(kls),
        "attention_output_nmse": nmse,
    }


@pytest.mark.parametrize("heads, groups", [(6, 2), (3, 3), (4, 1)])
def test_equals_numpy_in_fp64(heads, groups):
    given = tensors(heads, groups)
    for name, expected in oracle(*given).items():
        assert_allclose(METRICS[name](*given), expected, rtol=2e-5, err_msg=name)


def test_blocks_of_queries_change_nothing(monkeypatch):
    # 37 queries: four blocks of 8 and five queries left over
    monkeypatch.setattr("isojax._core.queries.BLOCK", 8)
    given = tensors()
    eager = m.attention_errors(*given)
    for name, metric in METRICS.items():
        assert_allclose(getattr(eager, name), metric(*given), rtol=1e-5, err_msg=name)


def test_small_divergences_keep_their_digits():
    given = tensors(noise=1e-3)
    assert_allclose(METRICS["attention_kl"](*given), oracle(*given)["attention_kl"], rtol=2e-2)


@every_metric
def test_exact_keys_and_values_give_zero(metric):
    q, k, v, _, _ = tensors()
    assert metric(q, k, v, k, v) == 0


@pytest.mark.parametrize("size", [1.0, 100.0])
def test_one_vector_added_to_all_keys_changes_nothing(size):
    q, k, v, k_hat, v_hat = tensors()
    shift = size * jax.random.normal(jax.random.key(1), k.shape[1:])
    for name, metric in METRICS.items():
        moved = metric(q, k, v, k_hat + shift, v_hat)
        assert_allclose(moved, metric(q, k, v, k_hat, v_hat), rtol=1e-3, err_msg=name)
    assert METRICS["logit_error"](q, k, v, k + shift, v) < 1e-4 * size
    assert abs(METRICS["attention_kl"](q, k, v, k + shift, v)) < 1e-6 * size


@every_metric
def test_the_order_of_heads_does_not_matter(metric):
    q, k, v, k_hat, v_hat = tensors()
    expected = metric(q, k, v, k_hat, v_hat)
    within = q[:, jnp.array([2, 0, 1, 5, 3, 4])]  # among the query heads of a key head
    assert_allclose(metric(within, k, v, k_hat, v_hat), expected, rtol=1e-5)
    groups = (jnp.roll(q, 3, 1), *(x[:, ::-1] for x in (k, v, k_hat, v_hat)))
    assert_allclose(metric(*groups), expected, rtol=1e-5)


@every_metric
def test_shared_key_heads_are_repeated_key_heads(metric):
    q, *rest = tensors()
    repeated = (jnp.repeat(x, 3, 1) for x in rest)
    assert_allclose(metric(q, *repeated), metric(q, *rest), rtol=1e-5)


@every_metric
def test_no_key_is_seen_before_its_time(metric):
    q, k, v, k_hat, v_hat = tensors()
    late = slice(T // 2, None)
    changed = metric(q, k, v, k.at[late].set(k_hat[late]), v.at[late].set(v_hat[late]))
    early = slice(None, T // 2)
    assert changed > 0
    assert metric(q[early], k[early], v[early], k[early], v[early]) == 0
    mixed = tuple(a.at[late].set(b[late]) for a, b in ((k, k_hat), (v, v_hat)))
    assert metric(*(x[early] for x in (q, k, v, *mixed))) == 0


def test_logit_error_is_linear_in_the_keys_and_divergence_its_variance():
    q, k, v, k_hat, _ = tensors(noise=0.02)
    once, twice = (errors(q, k, v, k + n * (k_hat - k), v) for n in (1, 2))
    assert_allclose(twice.logit_error, 2 * once.logit_error, rtol=1e-5)
    assert_allclose(twice.attention_kl, 4 * once.attention_kl, rtol=0.05)


def test_huge_logit_errors_stay_finite():
    assert 88 < METRICS["attention_kl"](*tensors(noise=1000.0)) < jnp.inf


def test_zero_values_miss_the_whole_output():
    q, k, v, k_hat, v_hat = tensors()
    nmse = METRICS["attention_output_nmse"](q, k, v, k_hat, 0 * v_hat)
    assert_allclose(nmse, 1, rtol=1e-6)


@every_name
def test_vmap_and_map_over_layers_equal_each_layer(name):
    metric = METRICS[name]
    layers = [tensors(noise=noise) for noise in (0.1, 0.4)]
    each = [metric(*layer) for layer in layers]
    assert each[0].shape == ()
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *layers)
    assert_allclose(getattr(by_vmap(*stacked), name), each, rtol=1e-4)
    assert_allclose(getattr(by_map(stacked), name), each, rtol=1e-4)


@every_metric
def test_bf16_is_computed_in_fp32(metric):
    low = [x.astype(jnp.bfloat16) for x in tensors()]
    assert_allclose(metric(*low), metric(*(x.astype(jnp.float32) for x in low)), rtol=1e-6)
    assert metric(*low).dtype == jnp.float32


@every_name
def test_logits_of_all_queries_are_never_held(name):
    heads, groups, tokens = 4, 1, 2048
    given = jax.eval_shape(lambda: tensors(heads, groups, tokens=tokens))
    alone = jax.jit(one_of(name, m.attention_errors))
    memory = alone.lower(*given).compile().memory_analysis()
    assert memory.temp_size_in_bytes < heads * tokens * tokens * 4 * 0.8


@every_metric
def test_key_heads_must_divide_query_heads(metric):
    with pytest.raises(ValueError, match="q must have a multiple of the 3 heads of k, got 4"):
        metric(*tensors(4, 3))
