"""Transforms of a decoder that leave what it computes: rotations, permutations, aligned axes.

Vectors are rows. Where `x` flows, a transform with matrix M makes it `x M`: the weight that writes
it becomes `W M` (its bias `b M`), a weight that reads it `M^-1 W`. The places, named as in
SpinQuant (Liu et al. 2024, arXiv 2405.16406; QuaRot, Ashkboos et al. 2024, arXiv 2404.00456):

- R1, `rotate_residual`: the residual stream. An RMSNorm commutes with isometries alone, and with
  those only where its scale is one, so `fold_norms` comes first; then all of it merges.
- R2, `rotate_values`: values, within a head. Attention mixes tokens, not coordinates, so all of it
  merges; query heads that share a value head share its transform.
- R3, `rotate_queries_keys`: queries and keys. The rotary embedding, which commutes only with turns
  in its own planes, lies between the projections and the product, and so does the norm of each
  head in Qwen3. Nothing merges: the transform of keys and its dual for queries run online, and the
  scales of q_norm and k_norm stay where they are (no projection follows that could take them).
- R4, `rotate_down` and `rotate_down_online`: the input of down_proj. `silu(gate) * up` goes by
  coordinates, so only a permutation passes through it (`permute_ffn`, which merges). Any other
  transform runs online, and its inverse merges into down_proj.

A `Permutation` is a transform like others: R1 permutes the residual stream, R2 values.

The functions are pure and compile under `jax.jit`, with `config` static. Each computes in fp32 and
rounds once to the dtype of the parameters, so merge in fp32 and cast last. Online transforms
are `Hooks`; put a quantizer behind them by `chain`.

Example:
    >>> params, config = fold_norms(model.params, model.config)
    >>> params = rotate_residual(params, config, haar(key, config.hidden_size))
    >>> params = rotate_down(params, config, online)
    >>> hooks = chain(rotate_down_online(config, online), Hooks(activation=quantize))
    >>> nll = token_nll(params, config, tokens, hooks)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from isojax._core.checks import compute_dtype
from isojax.models.config import ModelConfig
from isojax.models.decoder import Params
from isojax.models.hooks import Hooks, Layer
from isojax.transforms import BlockDiagonal, Permutation, Transform, repeat

_READERS = {"input_norm": ("q_proj", "k_proj", "v_proj"), "post_norm": ("gate_proj", "up_proj")}
_WRITERS = ("o_proj", "down_proj")

Linear = dict[str, Array]
Turn = Callable[[Array], Array]


def fold_norms(params: Params, config: ModelConfig) -> tuple[Params, ModelConfig]:
    """Multiply the scale of each norm into the weights that read it; the scales become one.

    `input_norm` goes into q, k and v, `post_norm` into gate and up, `norm` into the head. Biases
    stay, since they are added after. A tied model is untied, as its head alone takes the scale:
    the new configuration says so, and parameters grow by [hidden, vocab].

    Args:
        params: the tree of `init_params`.
        config: of the model.
    """
    layers = fold_layer(params["layers"])
    scale = params["norm"]["scale"]
    head = params["head"] if "head" in params else params["embedding"].T
    folded = params | {
        "layers": layers,
        "norm": {"scale": jnp.ones_like(scale)},
        "head": _scale_rows(head, scale),
    }
    return folded, dataclasses.replace(config, tie_word_embeddings=False)


def fold_layer(layer: Params) -> Params:
    """`fold_norms` of one layer, or of a stack of them."""
    folded = dict(layer)
    for norm, readers in _READERS.items():
        scale = layer[norm]["scale"]
        for name in readers:
            folded[name] = folded[name] | {"kernel": _scale_rows(folded[name]["kernel"], scale)}
        folded[norm] = {"scale": jnp.ones_like(scale)}
    return folded


def rotate_residual(params: Params, config: ModelConfig, transform: Transform) -> Params:
    """R1: an isometry of the residual stream, merged into every weight that reads or writes it.

    These are the embedding, the head, the inputs of q, k, v, gate and up, and the outputs of o and
    down with their biases. A tied model stays tied.

    Args:
        params: the tree of `init_params`, norms folded (`fold_norms`).
        config: of the model.
        transform: of length hidden_size; one, since all layers share the stream.

    Raises:
        ValueError: another length, a batch, no isometry, or a norm whose scale is not one (not
            checked where it is traced).
    """
    _is_batch(transform, config, "hidden_size")
    if not transform.isometry:
        raise ValueError(
            "transform must be an isometry, since RMSNorm keeps the length of the residual stream; "
            f"got {type(transform).__name__}."
        )
    layers = dict(params["layers"])
    for name in (*_READERS, "norm"):
        scale = (params | layers)[name]["scale"]
        if not isinstance(scale, Tracer) and not jnp.all(scale == 1):
            raise ValueError(f"{name} must have scale one: fold it by fold_norms first.")
    turn = transform.apply
    for name in sum(_READERS.values(), ()):
        layers[name] = _turn_input(layers[name], turn)
    for name in _WRITERS:
        layers[name] = _turn_output(layers[name], turn)
    turned = params | {"embedding": turn(params["embedding"]), "layers": layers}
    return turned | ({"head": turn(params["head"].T).T} if "head" in params else {})


def rotate_values(params: Params, config: ModelConfig, transform: Transform) -> Params:
    """R2: turn the values of each head, merged into v_proj (and its bias) and o_proj.

    Args:
        params: the tree of `init_params`.
        config: of the model.
        transform: of length head_dim; one for all, or leaves that lead with [layers, kv_heads].

    Raises:
        ValueError: another length, or other leading axes.
    """
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    batch = _is_batch(transform, config, "head_dim", axes=2)
    written, read = repeat(transform, groups), repeat(transform, heads)
    if batch:
        written = BlockDiagonal(transform, groups)
        read = BlockDiagonal(repeat(transform, heads // groups), groups)
    layers = params["layers"]
    v_proj = _turn_output(layers["v_proj"], _stacked(written, batch))
    o_proj = _turn_input(layers["o_proj"], _stacked(read.dual, batch))
    return params | {"layers": layers | {"v_proj": v_proj, "o_proj": o_proj}}


def rotate_down(params: Params, config: ModelConfig, transform: Transform) -> Params:
    """R4, merged half: the inverse of an online transform, in front of down_proj.

    Logits stay where `rotate_down_online` with the same transform is among the hooks.

    Args:
        params: the tree of `init_params`.
        config: of the model.
        transform: of length intermediate_size; one for all layers, or leaves that lead with
            [layers]. Padded ones are refused: choose a block that divides the length.

    Raises:
        ValueError: another length, or other leading axes.
    """
    turn = _stacked(transform.dual, _is_batch(transform, config, "intermediate_size", axes=1))
    layers = params["layers"]
    return params | {"layers": layers | {"down_proj": _turn_input(layers["down_proj"], turn)}}


def permute_ffn(params: Params, config: ModelConfig, permutation: Permutation) -> Params:
    """Permute the channels between gate and up (with their biases) and down; all of it merges.

    Args:
        params: the tree of `init_params`.
        config: of the model.
        permutation: of length intermediate_size; one for all layers, or indices [layers, d].

    Raises:
        ValueError: another length, other leading axes, or not a `Permutation`.
    """
    if not isinstance(permutation, Permutation):
        kind = type(permutation).__name__
        raise ValueError(f"permutation must be a Permutation, others do not pass silu; got {kind}.")
    turn = _stacked(permutation, _is_batch(permutation, config, "intermediate_size", axes=1))
    layers = params["layers"]
    turned = {name: _turn_output(layers[name], turn) for name in ("gate_proj", "up_proj")}
    return rotate_down(params | {"layers": layers | turned}, config, permutation)


def rotate_down_online(config: ModelConfig, transform: Transform) -> Hooks:
    """R4, online half: a hook that turns the input of down_proj; see `rotate_down`.

    Raises:
        ValueError: another length than intermediate_size, or other leading axes.
    """
    turn = _online(transform, _is_batch(transform, config, "intermediate_size", axes=1))

    def activation(name: str, layer: Layer, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return turn(layer, x) if name == "input:down_proj" else x

    return Hooks(activation=activation)


def rotate_queries_keys(config: ModelConfig, transform: Transform) -> Hooks:
    """R3: hooks that turn keys, and queries by the dual, after the rotary embedding; q . k stays.

    Args:
        config: of the model.
        transform: of length head_dim; one for all layers, or leaves that lead with [layers].

    Raises:
        ValueError: another length, or other leading axes.
    """
    batch = _is_batch(transform, config, "head_dim", axes=1)
    return Hooks(query=_online(transform.dual, batch), key=_online(transform, batch))


def chain(*hooks: Hooks) -> Hooks:
    """Hooks that run one after the other, the first one first; `chain()` changes nothing."""

    def joined(functions: tuple[Any, ...]) -> Any:
        functions = tuple(f for f in functions if f is not None)

        def run(*args: Any) -> Any:
            *where, x = args
            for function in functions:
                x = function(*where, x)
            return x

        return run if functions else None

    return Hooks(*(joined(tuple(getattr(h, field) for h in hooks)) for field in Hooks._fields))


def _scale_rows(kernel: Array, scale: Array) -> Array:
    wide = compute_dtype(kernel.dtype)
    return (kernel.astype(wide) * scale.astype(wide)[..., None]).astype(kernel.dtype)


def _turn_input(linear: Linear, turn: Turn) -> Linear:
    """The layer for inputs of which `turn` is the dual: rows of W^T meet them in products."""
    return linear | {"kernel": turn(linear["kernel"].swapaxes(-1, -2)).swapaxes(-1, -2)}


def _turn_output(linear: Linear, turn: Turn) -> Linear:
    return {name: turn(x) for name, x in linear.items()}


def _stacked(transform: Transform, batch: bool) -> Turn:
    """`transform` on the last axis of leaves that lead with layers."""
    return (lambda x: jax.vmap(lambda t, y: t.apply(y))(transform, x)) if batch else transform.apply


def _online(transform: Transform, batch: bool) -> Callable[[Layer, Array], Array]:
    """`transform`, or the one of a layer, on the last axis."""

    def turn(layer: Layer, x: Array) -> Array:
        return (jax.tree.map(lambda leaf: leaf[layer], transform) if batch else transform).apply(x)

    return turn


def _is_batch(transform: Transform, config: ModelConfig, name: str, axes: int = 0) -> bool:
    """Whether leaves lead with the first `axes` of [layers, kv_heads], or it is one transform."""
    dim = getattr(config, name)
    if not transform.dim == transform.out_dim == dim:
        got = f"{transform.dim} to {transform.out_dim}"
        raise ValueError(f"transform must keep the length {name}={dim}, got one from {got}.")
    want = (config.num_hidden_layers, config.num_key_value_heads)[:axes]
    lead = _lead(transform, dim)
    if lead not in ((), want):
        allowed = f"be one for all or lead with {want}" if axes else "be one, not a batch"
        shapes = [leaf.shape for leaf in jax.tree.leaves(transform)]
        raise ValueError(f"transform of length {name} must {allowed}, got leaves {shapes}.")
    return lead != ()


def _lead(transform: Transform, dim: int) -> tuple[int, ...] | None:
    """The axes of a batch of transforms, () for one, None if leaves are of neither.

    As many axes of the leaves as leave transforms that make a vector of a vector.
    """
    shapes = [leaf.shape for leaf in jax.tree.leaves(transform)]
    for axes in reversed(range(min(map(len, shapes), default=0) + 1)):
        leads = {shape[:axes] for shape in shapes} or {()}
        if len(leads) == 1 and _keeps_shape(transform, (*min(leads), dim)):
            return min(leads)
    return None


def _keeps_shape(transform: Transform, shape: tuple[int, ...]) -> bool:
    """Whether a batch of transforms takes vectors of this shape, each its own, to such vectors."""

    def apply(t: Transform, x: Array) -> Array:
        return t.apply(x, "xla")

    for _ in shape[1:]:
        apply = jax.vmap(apply)
    try:
        out = jax.eval_shape(apply, transform, jax.ShapeDtypeStruct(shape, jnp.float32))
    except (IndexError, TypeError, ValueError):  # leaves of other ranks than one transform has
        return False
    return out.shape == shape
