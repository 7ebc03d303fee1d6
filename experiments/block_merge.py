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


@functools.partial(jax.jit, static_argnames=("config", "site"))
def capture(
    params: Any, config: ModelConfig, ids: Int[Array, " t"], site: str
) -> Float[Array, "layers t d"]:
    """What passes at one site of all layers."""
    wanted = tuple(Site(site, layer) for layer in range(config.num_hidden_layers))
    return forward(params, config, ids[None], capture=wanted).captured[site][:, 0]


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
    params: Any,
    quantizer: quantizers.Quantizer,
    names: tuple[str, ...],
    read: Float[Array, "layers t d"] | None = None,
    turns: tuple[Any, ...] = (),
) -> Any:
    """Weights as their codes have them: to nearest, or by GPTQ where it is given what they read.

    Each of the `turns` (a transform for each layer, or None) acts on what is read first.
    """

    def nearest(w: Array) -> Array:
        return quantizer.roundtrip(w.T).T

    def gptq(here: Any) -> Array:
        w, x, turns = here
        for t in turns:
            x = x if t is None else t.apply(x)
        return quantizer.decode(learn.gptq(w, learn.second_moment(x), quantizer)).T

    layers = dict(params["layers"])
    for name in names:
        kernel = layers[name]["kernel"]
        if read is None:
            kernel = jax.lax.map(nearest, kernel)
        else:
            kernel = jax.lax.map(gptq, (kernel, read, turns))
        layers[name] = layers[name] | {"kernel": kernel}
    return params | {"layers": layers}
