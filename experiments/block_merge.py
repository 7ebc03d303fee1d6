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
    """The inputs of linear layers, by their names, in all layers of the decoder."""
    wanted = tuple(Site(site, layer) for site in sites for layer in range(config.num_hidden_layers))
    seen = forward(params, config, ids[None], capture=wanted).captured
    return {kind: x[:, 0] for kind, x in seen.items()}


gram = jax.jit(jax.vmap(learn.gram))


@functools.partial(jax.jit, static_argnames="config")
def merge_fused(
    params: Any, config: ModelConfig, residual: transforms.Transform, values: transforms.Transform
) -> Any:
    """Rotate the residual stream, and the values within each head."""
    return rotate_values(rotate_residual(params, config, residual), config, values)


@functools.partial(jax.jit, static_argnames="config")
def merge_down(params: Any, config: ModelConfig, permutation: Any, online: Any) -> Any:
    """Permute the channels of the MLP (unless None), and undo in down_proj what turns its input."""
    if permutation is not None:
        params = permute_ffn(params, config, permutation)
    return rotate_down(params, config, online)


@jax.jit
def turn_gram(total: learn.Gram, permutation: Any, online: Any) -> learn.Gram:
    """The sums of x x^T over layers, once x is permuted and turned."""

    def turn(here: Any) -> Array:
        permutation, total = here
        for t in (permutation, online):
            total = t.apply(t.apply(total).T) if t is not None else total  # it is symmetric
        return total

    return learn.Gram(jax.lax.map(turn, (permutation, total.total)), total.count)


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


@functools.partial(jax.jit, static_argnames="names")
def round_weights(
    params: Any, quantizer: quantizers.Quantizer, names: tuple[str, ...], grams: Any
) -> Any:
    """Weights as their codes have them: to nearest, or by GPTQ where there are Gram matrices."""

    def nearest(w: Array) -> Array:
        return quantizer.roundtrip(w.T).T

    def gptq(w_and_hessian: tuple[Array, Array]) -> Array:
        return quantizer.decode(learn.gptq(*w_and_hessian, quantizer)).T

    layers = dict(params["layers"])
    for name in names:
        kernel = layers[name]["kernel"]
        if grams is None:
            kernel = jax.lax.map(nearest, kernel)
        else:
            kernel = jax.lax.map(gptq, (kernel, grams[f"input:{INPUTS[name]}"].hessian))
        layers[name] = layers[name] | {"kernel": kernel}
    return params | {"layers": layers}
