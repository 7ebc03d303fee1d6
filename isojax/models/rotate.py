"""Transforms of the residual stream of a decoder, merged into its weights.

Vectors are rows. A transform with matrix M changes the residual stream `x` to `x M`: the weights
that write it become `W M` (biases `b M`), the weights that read it `M^-1 W`. An RMSNorm commutes
only with isometries, and only if its scale is one. So `fold_norms` comes first; then the transform
merges completely (R1 of SpinQuant, Liu et al. 2024, arXiv 2405.16406; QuaRot, Ashkboos et al. 2024,
arXiv 2404.00456). A `Permutation` is a transform like others. For transforms at other places of a
model see `isojax.quantize`.

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
    stay, since they are added after. A tied model is untied, since only its head takes the scale:
    the new configuration is untied, and parameters grow by [hidden, vocab].

    Args:
        params: the tree of `init_params`.
        config: of the model.

    Returns:
        The parameters and the configuration.
    """
    folded = fold_ends(params) | {"layers": fold_layer(params["layers"])}
    return folded, dataclasses.replace(config, tie_word_embeddings=False)


def fold_ends(params: Params) -> Params:
    """`fold_norms` only of the final norm; layers are unchanged."""
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
        ValueError: `transform` has another length, is a batch or no isometry, or the scale of a
            norm is not one (not checked where it is traced).
    """
    layers = dict(params["layers"])
    turned = turn_ends(params, transform)
    for name in (*_READERS, "norm"):
        scale = (params | layers)[name]["scale"]
        if not isinstance(scale, Tracer) and not jnp.all(scale == 1):
            raise ValueError(f"{name} must have scale one: fold it by fold_norms first.")
    return turned | {"layers": turn_layer(layers, transform)}


def turn_ends(params: Params, transform: Transform) -> Params:
    """`rotate_residual` only of the embedding and the head; layers are unchanged.

    Raises:
        ValueError: as `rotate_residual`; scales of norms are not checked.
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
    """The linear layer for transformed inputs: `turn`, their dual, acts on the rows of W^T."""
    return linear | {"kernel": turn(linear["kernel"].swapaxes(-1, -2)).swapaxes(-1, -2)}


def _turn_output(linear: Linear, turn: Turn) -> Linear:
    return {name: turn(x) for name, x in linear.items()}


def _is_one(transform: Transform) -> bool:
    """Whether it is a single transform: a batch does not map one vector to one vector."""
    x = jax.ShapeDtypeStruct((transform.dim,), jnp.float32)
    try:
        return jax.eval_shape(lambda t, x: t.apply(x, "xla"), transform, x).shape == x.shape
    except (IndexError, TypeError, ValueError):
        return False
