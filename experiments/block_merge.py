"""What `block_rotation` merges into a model, and how it rounds weights."""

from __future__ import annotations

import functools
from typing import Any

import jax
from jaxtyping import Array, Float, Int

from isojax import learn, quantizers, transforms
from isojax.models import ModelConfig, Site, forward
from isojax.models.hooks import INPUTS
from isojax.models.rotate import permute_ffn, rotate_down, rotate_residual, rotate_values

Layers = dict[str, Any]


@functools.partial(jax.jit, static_argnames=("config", "sites"))
def capture(
    params: Any, config: ModelConfig, ids: Int[Array, " t"], sites: tuple[str, ...]
) -> dict[str, Float[Array, "layers t d"]]:
    """What passes at these sites of all layers."""
    wanted = tuple(Site(site, layer) for site in sites for layer in range(config.num_hidden_layers))
    captured = forward(params, config, ids[None], capture=wanted).captured
    return {site: captured[site][:, 0] for site in sites}


@functools.partial(jax.jit, static_argnames="config")
def merge_fused(
    params: Any, config: ModelConfig, residual: transforms.Transform, values: transforms.Transform
) -> Any:
    """Rotate the residual stream, and the values within each head."""
    return rotate_values(rotate_residual(params, config, residual), config, values)


def merge_down(params: Any, config: ModelConfig, permutation: Any, online: Any) -> Any:
    """Permute the channels of the MLP (unless None), and undo in down_proj what turns its input.

    What is not turned is shared with `params`, not copied.
    """
    names = ("down_proj",) if permutation is None else ("gate_proj", "up_proj", "down_proj")
    turned = _turn_down({n: params["layers"][n] for n in names}, config, permutation, online)
    return params | {"layers": params["layers"] | turned}


@functools.partial(jax.jit, static_argnames="config")
def _turn_down(layers: Layers, config: ModelConfig, permutation: Any, online: Any) -> Layers:
    params = {"layers": layers}
    if permutation is not None:
        params = permute_ffn(params, config, permutation)
    return rotate_down(params, config, online)["layers"]


@functools.partial(jax.jit, static_argnames="sites")
def smooth(params: Any, absmax: dict[str, Float[Array, "layers d"]], sites: tuple[str, ...]) -> Any:
    """SmoothQuant at alpha 0.5: ranges of inputs moved into the weights that read them.

    o_proj's input is left, as in the paper.
    """
    layers = dict(params["layers"])
    writers = {"q_proj": "input_norm", "gate_proj": "post_norm", "down_proj": "up_proj"}
    for first, writer in writers.items():
        site = f"input:{first}"
        if site not in sites:
            continue
        names = [name for name, source in INPUTS.items() if source == first]
        read = [layers[name]["kernel"] for name in names]
        scale = jax.vmap(learn.smooth_scale)(absmax[site], read)
        layers[writer], read = jax.vmap(learn.smooth)(scale, layers[writer], read)
        for name, kernel in zip(names, read, strict=True):
            layers[name] = layers[name] | {"kernel": kernel}
    return params | {"layers": layers}


def round_weights(
    params: Any,
    quantizer: quantizers.Quantizer,
    names: tuple[str, ...],
    hessian: Float[Array, "layers i i"] | None = None,
    turns: tuple[Any, ...] = (),
) -> Any:
    """Weights as their codes have them: to nearest, or by GPTQ where it is given a Hessian.

    That is of what the weights read before each of the `turns` (a transform for each layer, or
    None) acts on it. Other weights are shared with `params`, not copied.
    """
    layers = dict(params["layers"])
    for name in names:
        kernel = layers[name]["kernel"]
        if hessian is None:
            rounded = _nearest(kernel, quantizer)
        else:
            rounded = _gptq(kernel, quantizer, hessian, turns)
        layers[name] = layers[name] | {"kernel": rounded}
    return params | {"layers": layers}


@functools.partial(jax.jit, donate_argnames="total")
def add_grams(
    total: Float[Array, "layers d d"], read: Float[Array, "layers t d"]
) -> Float[Array, "layers d d"]:
    """`total`, whose memory is used again, and the Gram matrices of what the layers read."""

    def add(layer: Array, total: Array) -> Array:
        return total.at[layer].add(learn.gram(read[layer]).total)

    return jax.lax.fori_loop(0, len(read), add, total)


@jax.jit
def _nearest(kernel: Float[Array, "layers i o"], quantizer: Any) -> Float[Array, "layers i o"]:
    return jax.lax.map(lambda w: quantizer.roundtrip(w.T).T, kernel)


@jax.jit
def _gptq(
    kernel: Float[Array, "layers i o"], quantizer: Any, hessian: Float[Array, "layers i i"],
    turns: Any,
) -> Float[Array, "layers i o"]:  # fmt: skip
    def rounded(here: Any) -> Array:
        w, h, turns = here
        for t in turns:
            h = h if t is None else t.apply(t.apply(h).T)
        return quantizer.decode(learn.gptq(w, h, quantizer)).T

    return jax.lax.map(rounded, (kernel, hessian, turns))
