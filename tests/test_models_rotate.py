"""Merged rotations and permutations: logits stay, and what flows inside is turned as asked."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import torch
from laws import quick_jit
from numpy.testing import assert_allclose, assert_array_equal
from small_models import random_tokens, small_config, torch_model
from transformers import AutoModelForCausalLM

from isojax import transforms as tf
from isojax.models import (
    Hooks,
    Site,
    forward,
    load_checkpoint,
    logits,
    param_shapes,
    save_checkpoint,
)
from isojax.models.rotate import (
    chain,
    fold_norms,
    permute_ffn,
    rotate_down,
    rotate_down_online,
    rotate_queries_keys,
    rotate_residual,
    rotate_values,
)

KEY = jax.random.key(3)
TOKENS = jnp.asarray(random_tokens(2, 12))
LAYERS, GROUPS, WIDTH, INNER, HEAD = 3, 2, 32, 64, 16
MODELS = {
    "everything": {"qk_norm": True, "o_bias": True, "mlp_bias": True, "head_dim": HEAD},
    "qwen2-tied": {"tie_word_embeddings": True},
    "qwen3": {"qk_norm": True, "qkv_bias": False, "head_dim": HEAD},
    "llama-tied-bias": {"o_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
}
KINDS = {
    "haar": tf.haar,
    "hadamard": tf.hadamard,
    "block-hadamard": lambda key, d: tf.block_hadamard(key, d, 4),
    "permutation": tf.permutation,
    "quaternion": tf.quaternion,
}


def oblique(key, dim, condition=10):
    left, right = (tf.haar(part, dim).matrix() for part in jax.random.split(key))
    size = jnp.geomspace(1, condition, dim) / condition**0.5
    return tf.Oblique((left * size) @ right, (right.T / size) @ left.T)


# one for all, or each its own
TURNS = [("haar", False), ("hadamard", True), ("quaternion", True)]
TURNS += [("oblique", False), ("oblique", True)]
READ = "q_proj.kernel k_proj.kernel v_proj.kernel gate_proj.kernel up_proj.kernel"
WRITTEN = "o_proj.kernel o_proj.bias down_proj.kernel down_proj.bias"
FFN = "gate_proj.kernel gate_proj.bias up_proj.kernel up_proj.bias down_proj.kernel"
SITES = tuple(
    Site(kind, layer)
    for kind in ("hidden", "value", "query", "key", "input:down_proj")
    for layer in range(LAYERS)
)


@functools.cache
def random_model(case="everything", **changes):
    """Every leaf random: scales around one, biases too."""
    config = small_config(**{"tie_word_embeddings": False} | MODELS[case] | changes)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape, np.float32)
        return jnp.asarray((path[-1].key == "scale") + 0.3 * noise)

    return jax.tree_util.tree_map_with_path(draw, param_shapes(config)), config


@functools.cache
def folded_model(case="everything"):
    return fold_norms(*random_model(case))


@functools.partial(quick_jit, static_argnames=("config",))
def _run(params, down, turn, config):
    hooks = chain(rotate_down_online(config, down), rotate_queries_keys(config, turn))
    out = forward(params, config, TOKENS, hooks=hooks, capture=SITES)
    return logits(params, out.hidden), out.captured


def run(params, config, down=None, queries_keys=None):
    """Logits and captured tensors; turned online by the matrices of the given transforms."""

    def dense(t, dim):
        matrices = np.eye(dim, dtype=np.float32) if t is None else np.asarray(each_matrix(t))
        matrices = np.broadcast_to(matrices, (LAYERS, dim, dim))
        return tf.Oblique(jnp.asarray(matrices), jnp.asarray(np.linalg.inv(matrices)))

    online = dense(down, config.intermediate_size), dense(queries_keys, config.head_dim)
    return jax.tree.map(np.asarray, _run(params, *online, config))


def lead(t):
    """The leading axes of a batch of transforms: what no single one has."""
    ranks = {tf.Dense: 2, tf.Hadamard: 1, tf.Oblique: 2, tf.Permutation: 1, tf.Quaternion: 2}
    leaf = jax.tree.leaves(t)[0]
    return leaf.shape[: leaf.ndim - ranks[type(t)]]


@quick_jit
def each_matrix(t):
    function = type(t).matrix
    for _ in lead(t):
        function = jax.vmap(function)
    return function(t)


def draw(kind, dim, *lead, key=KEY):
    """A transform for each of the leading axes, or one."""
    make = (KINDS | {"oblique": oblique})[kind]
    for _ in lead:
        make = jax.vmap(make, (0, None))
    return make(jax.random.split(key, lead) if lead else key, dim)


@functools.partial(quick_jit, static_argnums=(0, 2))
def merge(function, params, config, *transform):
    return function(params, config, *transform)


def leaves(params):
    return {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(params)}


def swapped(params, name, value):
    """The tree with another leaf `name`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: value if jax.tree_util.keystr(path) == name else x, params
    )


def named(inner, *top):
    """Names of leaves, given as `o_proj.kernel`."""
    pairs = (name.split(".") for name in inner.split())
    return {f"['layers']['{a}']['{b}']" for a, b in pairs} | {f"['{name}']" for name in top}


def error(got, want):
    return np.abs(got - want).max() / np.abs(want).max()


def check_merge(before, after, config, changed, **online):
    """Logits stay; the leaves `changed` did, no others, and none of them could be left out.

    Returns what flowed before and after the merge.
    """
    (want, seen), (got, found) = run(before, config), run(after, config, **online)
    assert error(got, want) < 1e-4
    old, new = leaves(before), leaves(after)
    assert {name for name in old if not np.array_equal(old[name], new[name])} == changed
    for name in changed:
        assert error(run(swapped(after, name, old[name]), config, **online)[0], want) > 1e-2, name
    return seen, found


def turned(t, x):
    """`x` [layers, ..., d] times the matrices of `t`: one, [layers] or [layers, kv_heads]."""
    m = np.asarray(each_matrix(t))
    m = np.broadcast_to(m, (LAYERS, *m.shape)) if m.ndim == 2 else m
    return np.einsum("l...gi,lgij->l...gj" if m.ndim == 4 else "l...i,lij->l...j", x, m)


def assert_close(got, want):
    assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("case", MODELS)
def test_folded_norms_are_one_and_leave_the_logits(case):
    params, config = random_model(case)
    folded, changed = fold_norms(params, config)
    assert changed == dataclasses.replace(config, tie_word_embeddings=False)
    assert jax.tree.structure(folded) == jax.tree.structure(param_shapes(changed))
    want = run(params, config)[0]
    assert error(run(folded, changed)[0], want) < 1e-4
    norms = named("input_norm.scale post_norm.scale") | {"['norm']['scale']"}
    old, new = leaves(params), leaves(folded)
    for name in norms:
        assert (new[name] == 1).all()
        assert error(run(swapped(folded, name, old[name]), changed)[0], want) > 1e-2
    kept = {name for name in old if np.array_equal(old[name], new[name])}
    assert kept == old.keys() - norms - named(READ, "head")


@pytest.mark.parametrize("kind", KINDS)
def test_a_turned_residual_stream_leaves_the_logits(kind):
    folded, config = folded_model()
    turn = draw(kind, WIDTH)
    after = merge(rotate_residual, folded, config, turn)
    changed = named(f"{READ} {WRITTEN}", "embedding", "head")
    seen, found = check_merge(folded, after, config, changed)
    assert_close(found["hidden"], turned(turn, seen["hidden"]))
    assert_close(found["value"], seen["value"])


def test_a_tied_model_without_scales_stays_tied():
    params, config = random_model("qwen2-tied")
    for name in ("['norm']['scale']", *named("input_norm.scale post_norm.scale")):
        params = swapped(params, name, jnp.ones_like(leaves(params)[name]))
    after = rotate_residual(params, config, tf.haar(KEY, WIDTH))
    assert after.keys() == params.keys()
    assert error(after["embedding"], params["embedding"]) > 1e-2
    assert error(run(after, config)[0], run(params, config)[0]) < 1e-4


@pytest.mark.parametrize("kind, each", TURNS)
def test_turned_values_leave_the_logits(kind, each):
    params, config = random_model()
    turn = draw(kind, HEAD, *(LAYERS, GROUPS) if each else ())
    after = merge(rotate_values, params, config, turn)
    changed = named("v_proj.kernel v_proj.bias o_proj.kernel")
    seen, found = check_merge(params, after, config, changed)
    assert_close(found["value"], turned(turn, seen["value"]))
    assert_close(found["hidden"], seen["hidden"])


@pytest.mark.parametrize("kind, each", TURNS)
def test_a_turn_before_down_and_its_merged_inverse_leave_the_logits(kind, each):
    params, config = random_model()
    turn = draw(kind, INNER, *(LAYERS,) if each else ())
    after = merge(rotate_down, params, config, turn)
    changed = named("down_proj.kernel")
    seen, found = check_merge(params, after, config, changed, down=turn)
    assert_close(found["input:down_proj"], turned(turn, seen["input:down_proj"]))
    assert error(run(after, config)[0], run(params, config)[0]) > 1e-2


@pytest.mark.parametrize("each", [False, True])
def test_permuted_ffn_channels_leave_the_logits(each):
    params, config = random_model()
    order = draw("permutation", INNER, *(LAYERS,) if each else ())
    after = merge(permute_ffn, params, config, order)
    seen, found = check_merge(params, after, config, named(FFN))
    assert_close(found["input:down_proj"], turned(order, seen["input:down_proj"]))


@pytest.mark.parametrize("kind", ["haar", "oblique"])
def test_keys_turned_and_queries_by_the_dual_leave_the_logits(kind):
    params, config = random_model()
    turn = draw(kind, HEAD, LAYERS)
    (want, seen), (got, found) = run(params, config), run(params, config, queries_keys=turn)
    assert error(got, want) < 1e-4
    for site, t in (("query", turn.dual), ("key", turn)):
        assert error(found[site], seen[site]) > 1e-2
        flat = [x.reshape(LAYERS, -1, HEAD) for x in (found[site], seen[site])]
        assert_close(flat[0], turned(t, flat[1]))


@pytest.mark.parametrize("kind, each", TURNS)
def test_hooks_apply_the_transform_of_the_layer_to_their_own_tensor(kind, each):
    config = small_config(head_dim=INNER)
    turn = draw(kind, INNER, *(LAYERS,) if each else ())
    x = np.random.default_rng(0).standard_normal((LAYERS, 2, 3, INNER), np.float32)

    @quick_jit
    def hooked(turn, layer, x):
        both = rotate_queries_keys(config, turn)
        down = rotate_down_online(config, turn).activation
        turns = down("input:down_proj", layer, x), both.key(layer, x), both.query(layer, x)
        return turns, [down(name, layer, x) for name in ("hidden", "input:o_proj")]

    wants = turned(turn, x), turned(turn, x), turned(turn.dual, x)
    for layer in range(LAYERS):
        turns, others = hooked(turn, layer, x[layer])
        for y, want in zip(turns, wants, strict=True):
            assert_close(y, want[layer])
        for y in others:
            assert_array_equal(y, x[layer])


def merge_all(params, config, down=None):
    """Every merge there is; `down` among them, if given."""
    params, config = fold_norms(params, config)
    params = rotate_residual(params, config, tf.haar(KEY, config.hidden_size))
    params = rotate_values(params, config, draw("haar", config.head_dim, LAYERS, GROUPS))
    params = permute_ffn(params, config, draw("permutation", INNER, LAYERS))
    return params if down is None else rotate_down(params, config, down)


@pytest.mark.parametrize("case", MODELS)
def test_all_of_them_together_leave_the_logits(case):
    params, config = random_model(case)
    down, turn = draw("block-hadamard", INNER, LAYERS), draw("hadamard", config.head_dim)
    merged = merge(merge_all, params, config, down)
    want, untied = run(params, config)[0], folded_model(case)[1]
    assert error(run(merged, untied, down=down, queries_keys=turn)[0], want) < 1e-4
    assert error(run(merged, untied)[0], want) > 1e-2


@pytest.mark.parametrize("case", ["qwen2-tied", "qwen3", "llama-tied-bias"])
def test_torch_computes_the_same_from_a_merged_checkpoint(case, tmp_path):
    model = torch_model(case)
    model.save_pretrained(tmp_path / "torch")
    config, params = load_checkpoint(tmp_path / "torch")
    merged = merge(merge_all, params, config)
    untied = dataclasses.replace(config, tie_word_embeddings=False)
    save_checkpoint(tmp_path / "merged", untied, merged)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    with torch.no_grad():
        want, got = (
            m(torch.from_numpy(np.array(TOKENS)).long()).logits.numpy() for m in (model, again)
        )
        old, new = (m.model.embed_tokens.weight.numpy() for m in (model, again))
    assert error(got, want) < 1e-4
    assert error(new, old) > 1e-2


@pytest.mark.parametrize("groups, kind", [(1, "haar"), (2, "haar"), (1, "quaternion")])
def test_a_batch_for_one_layer_is_the_one_in_it(groups, kind):
    params, config = random_model(num_hidden_layers=1, num_key_value_heads=groups)
    for function, dim, axes in ((rotate_values, HEAD, (1, groups)), (rotate_down, INNER, (1,))):
        one = draw(kind, dim)
        batch = jax.tree.map(lambda x, axes=axes: jnp.broadcast_to(x, (*axes, *x.shape)), one)
        got, want = (merge(function, params, config, t) for t in (batch, one))
        jax.tree.map(lambda x, y: assert_allclose(x, y, atol=1e-5), got, want)


@pytest.mark.parametrize("kind", ["hadamard", "diagonal", "oblique"])
def test_a_batch_of_repeated_blocks_is_told_from_one_of_as_many_blocks(kind):
    config = small_config(head_dim=4 * LAYERS)

    def make(key):
        if kind == "diagonal":
            return tf.repeat(tf.Diagonal(jnp.exp(jax.random.normal(key, 4))), LAYERS)
        return tf.repeat(draw(kind, 4, key=key), LAYERS)

    batch = jax.vmap(make)(jax.random.split(KEY, LAYERS))
    x = jnp.ones((5, 4 * LAYERS))
    for layer in range(LAYERS):
        one = jax.tree.map(lambda leaf, layer=layer: leaf[layer], batch)
        for t in (batch, one):
            hooks = rotate_queries_keys(config, t)
            assert_allclose(hooks.key(jnp.asarray(layer), x), one.apply(x), rtol=1e-5)
            assert_allclose(hooks.query(jnp.asarray(layer), x), one.dual.apply(x), rtol=1e-5)


def test_bf16_is_computed_in_fp32_and_stays_bf16():
    params, config = random_model()
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), folded_model()[0])
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    for function, transform in (
        (lambda params, config: fold_norms(params, config)[0], ()),
        (rotate_residual, (tf.haar(KEY, WIDTH),)),
        (rotate_values, (tf.haar(KEY, HEAD),)),
        (permute_ffn, (tf.permutation(KEY, INNER),)),
    ):
        got, exact = (merge(function, p, config, *transform) for p in (half, wide))
        for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(exact), strict=True):
            assert x.dtype == jnp.bfloat16
            assert_allclose(x.astype(jnp.float32), y, rtol=2**-8, atol=1e-5)


def test_the_given_parameters_are_left_as_they_are():
    params, config = random_model("llama-tied-bias")
    before = jax.tree.map(np.array, params)
    structure = jax.tree.structure(params)
    folded, untied = fold_norms(params, config)
    rotate_residual(folded, untied, tf.haar(KEY, WIDTH))
    assert jax.tree.structure(params) == structure
    jax.tree.map(assert_array_equal, params, before)


def test_a_chain_runs_in_order_and_leaves_out_what_nobody_gave():
    add = Hooks(activation=lambda name, layer, x: x + 1, key=lambda layer, k: k + layer)
    double = Hooks(activation=lambda name, layer, x: 2 * x, weight=lambda name, layer, w: 3 * w)
    both = chain(add, Hooks(), double)
    assert both.activation("hidden", 0, 5) == 12
    assert chain(double, add).activation("hidden", 0, 5) == 11
    assert (both.key(2, 5), both.weight("q_proj", 0, 1)) == (7, 3)
    assert (both.query, both.value) == (None, None)
    assert chain() == Hooks()


def test_a_quantizer_behind_the_rotation_sees_rotated_inputs():
    params, config = random_model()
    turn = tf.block_hadamard(KEY, INNER, 16)
    rotate = rotate_down_online(config, turn)
    quantize = Hooks(
        activation=lambda name, layer, x: jnp.round(x) if name.startswith("input:") else x
    )
    sites = (Site("input:down_proj", 0), Site("input:gate_proj", 0))

    @quick_jit
    def captured(params):
        orders = (quantize,), (rotate, quantize), (quantize, rotate)
        return [
            forward(params, config, TOKENS, hooks=chain(*hooks), capture=sites).captured
            for hooks in orders
        ]

    plain, behind, before = captured(params)
    for out in (behind, before):
        assert_array_equal(out["input:gate_proj"], plain["input:gate_proj"])
    site = "input:down_proj"
    assert_close(before[site], turned(turn, plain[site][0][None])[:1])
    assert_array_equal(behind[site], np.round(behind[site]))
    assert not np.array_equal(before[site], np.round(before[site]))


def test_unfolded_norms_are_refused_by_name():
    (params, config), (folded, _) = random_model(), folded_model()
    turn = tf.haar(KEY, WIDTH)
    for name in ("input_norm", "post_norm", "norm"):
        where = "['norm']['scale']" if name == "norm" else next(iter(named(f"{name}.scale")))
        mixed = swapped(folded, where, leaves(params)[where])
        with pytest.raises(ValueError, match=f"^{name} must have scale one: .* fold_norms"):
            rotate_residual(mixed, config, turn)


@pytest.mark.parametrize(
    "act, name, dim",
    [
        (rotate_residual, "hidden_size", WIDTH),
        (rotate_values, "head_dim", HEAD),
        (rotate_down, "intermediate_size", INNER),
        (permute_ffn, "intermediate_size", INNER),
        (lambda _, config, t: rotate_down_online(config, t), "intermediate_size", INNER),
        (lambda _, config, t: rotate_queries_keys(config, t), "head_dim", HEAD),
    ],
)
def test_wrong_transforms_are_refused(act, name, dim):
    params, config = folded_model()
    shapes = {
        f"the length {name}={dim}, got one from 4 to 4": [(4,)],
        f"transform of length {name} must be one": [
            (5, dim),
            (GROUPS, LAYERS, dim),
            (7, 2, dim),
        ],
    }
    for message, wrong in shapes.items():
        for shape in wrong:
            with pytest.raises(ValueError, match=message):
                act(params, config, tf.Permutation(jnp.zeros(shape, jnp.int32)))
    if act is not permute_ffn:
        longer = tf.padded(tf.identity(dim + 3), dim)
        with pytest.raises(ValueError, match=f"{name}={dim}, got one from {dim} to {dim + 3}"):
            act(params, config, longer)


@pytest.mark.parametrize("kind", ["oblique", "diagonal", "composed"])
def test_the_norms_of_the_residual_stream_refuse_what_is_no_isometry(kind):
    folded, config = folded_model()
    scale = tf.Diagonal(jnp.full(WIDTH, 2.0))
    turns = {
        "oblique": oblique(KEY, WIDTH),
        "diagonal": scale,
        "composed": tf.haar(KEY, WIDTH) @ scale,
    }
    with pytest.raises(ValueError, match="transform must be an isometry, since RMSNorm .* got"):
        rotate_residual(folded, config, turns[kind])


def test_what_does_not_pass_the_nonlinearity_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    params, config = random_model()
    with pytest.raises(ValueError, match="must be a Permutation, .* got Identity"):
        permute_ffn(params, config, tf.identity(INNER))
