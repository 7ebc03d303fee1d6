"""The residual stream of a decoder in other coordinates, merged into its weights.

Vectors are rows. Where `x` flows, a transform with matrix M makes it `x M`: the weight that writes
it becomes `W M` (its bias `b M`), a weight that reads it `M^-1 W`. An RMSNorm commutes with
isometries alone, and with those only where its scale is one, so `fold_norms` comes first; then all
of it merges (R1 of SpinQuant, Liu et al. 2024, arXiv 2405.16406; QuaRot, Ashkboos et al. 2024,
arXiv 2404.00456). A `Permutation` is a transform like others. What stands at other places of a
model, see `isojax.quantize`.

The functions are pure and compile under `jax.jit`, with `config` static. Each computes in fp32 and
rounds once to the dtype of the parameters, so merge in fp32 and cast last.

Example:
    >>> params, config = fold_norms(model.params, model.config)
    >>> params = rotate_residual(params, config, haar(key, config.hidden_size))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array

from isojax._core.checks import compute_dtype
from isojax.models.config import ModelConfig
from isojax.models.decoder import Params
from isojax.transforms import Transform

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
    folded = fold_ends(params) | {"layers": fold_layer(params["layers"])}
    return folded, dataclasses.replace(config, tie_word_embeddings=False)


def fold_ends(params: Params) -> Params:
    """`fold_norms` of the final norm alone, layers left as they are."""
    scale = params["norm"]["scale"]
    head = params["head"] if "head" in params else params["embedding"].T
    return params | {
        "norm": {"scale": jnp.ones_like(scale)},
        "head": _scale_rows(head, scale),
    }


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
    layers = dict(params["layers"])
    turned = turn_ends(params, transform)
    for name in (*_READERS, "norm"):
        scale = (params | layers)[name]["scale"]
        if not isinstance(scale, Tracer) and not jnp.all(scale == 1):
            raise ValueError(f"{name} must have scale one: fold it by fold_norms first.")
    return turned | {"layers": turn_layer(layers, transform)}


def turn_ends(params: Params, transform: Transform) -> Params:
    """`rotate_residual` of the embedding and the head alone, layers left as they are.

    Raises:
        ValueError: as `rotate_residual`, save for scales of norms, which are not looked at.
    """
    size = params["embedding"].shape[-1]
    if not transform.dim == transform.out_dim == size or not _is_one(transform):
        shapes = [leaf.shape for leaf in jax.tree.leaves(transform)]
        raise ValueError(
            f"transform must be one that keeps the length hidden_size={size}, got one from "
            f"{transform.dim} to {transform.out_dim} with leaves {shapes}."
        )
    if not transform.isometry:
        raise ValueError(
            "transform must be an isometry, since RMSNorm keeps the length of the residual stream; "
            f"got {type(transform).__name__}."
        )
    turn = transform.apply
    turned = params | {"embedding": turn(params["embedding"])}
    return turned | ({"head": turn(params["head"].T).T} if "head" in params else {})


def turn_layer(layer: Params, transform: Transform) -> Params:
    """`rotate_residual` of one layer, or of a stack of them; norms and transform not checked."""
    turned, turn = dict(layer), transform.apply
    for name in sum(_READERS.values(), ()):
        turned[name] = _turn_input(layer[name], turn)
    for name in _WRITERS:
        turned[name] = _turn_output(layer[name], turn)
    return turned


def _scale_rows(kernel: Array, scale: Array) -> Array:
    wide = compute_dtype(kernel.dtype)
    return (kernel.astype(wide) * scale.astype(wide)[..., None]).astype(kernel.dtype)


def _turn_input(linear: Linear, turn: Turn) -> Linear:
    """The layer for inputs of which `turn` is the dual: rows of W^T meet them in products."""
    return linear | {"kernel": turn(linear["kernel"].swapaxes(-1, -2)).swapaxes(-1, -2)}


def _turn_output(linear: Linear, turn: Turn) -> Linear:
    return {name: turn(x) for name, x in linear.items()}


def _is_one(transform: Transform) -> bool:
    """Whether it takes a vector to a vector: leaves of a batch have ranks too many."""
    x = jax.ShapeDtypeStruct((transform.dim,), jnp.float32)
    try:
        return jax.eval_shape(lambda t, x: t.apply(x, "xla"), transform, x).shape == x.shape
    except (IndexError, TypeError, ValueError):
        return False
