"""The tensors of a model by name: weights and activations."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from isojax._core.checks import check_choice
from isojax.models.config import ModelConfig
from isojax.models.decoder import Params, forward
from isojax.models.hooks import WEIGHTS, Site, parse_site, slots
from isojax.models.inputs import check_tokens
from isojax.models.language_model import LanguageModel


def weight(params: Params, name: str, layer: int) -> Float[Array, "out in"]:
    """The weight of one projection, as [out, in]: one row per output channel.

    Args:
        params: the tree of `init_params`.
        name: `q_proj` ... `down_proj`.
        layer: counted from 0.

    Raises:
        ValueError: there is no such projection or layer.
    """
    check_choice("weight", name, WEIGHTS)
    kernel = params["layers"][name]["kernel"]
    if not 0 <= layer < kernel.shape[0]:
        raise ValueError(f"layer must be from 0 to {kernel.shape[0] - 1}, got {layer}.")
    return kernel[layer].T


def capture_tensors(
    model: LanguageModel, tokens: Integer[Array | np.ndarray, " t"], names: Sequence[str]
) -> dict[str, Float[Array, "_ _"]]:
    """Matrices of a model by name, from one text.

    Compiled once for every model configuration, set of sites and length of text.

    Args:
        model: from `load_model`.
        tokens: of one text.
        names: `hidden:final`, `hidden:L`, `key:L`, `value:L`, `query:L`, `input:NAME:L` (see
            `parse_site`): [tokens, width], heads concatenated; or `weight:NAME:L`: [out, in].

    Raises:
        ValueError: a name is not of these forms, its layer or a token is out of range, or the
            text is empty.
    """
    layers = model.config.num_hidden_layers
    found: dict[str, Array] = {}
    sites: dict[str, Site] = {}
    for name in names:
        kind, _, rest = name.partition(":")
        if kind == "weight":
            projection, _, layer = rest.partition(":")
            check_choice(f"tensor {name!r}: its projection", projection, WEIGHTS)
            if not layer.isdigit() or int(layer) >= layers:
                raise ValueError(
                    f"tensor {name!r}: its layer must be a number from 0 to {layers - 1}."
                )
            found[name] = weight(model.params, projection, int(layer))
        else:
            sites[name] = parse_site(name, layers)
    if sites:
        check_tokens(model.config, tokens[None], least=1)
        wanted = tuple(sorted(set(sites.values())))
        stacks = _run(model.params, model.config, jnp.asarray(tokens), wanted)
        places = slots(wanted)
        for name, site in sites.items():
            found[name] = stacks[site.kind][places[site.kind].index(site.layer)]
    return {name: found[name] for name in names}


@functools.partial(jax.jit, static_argnames=("config", "sites"))
def _run(
    params: Params, config: ModelConfig, tokens: Integer[Array, " t"], sites: tuple[Site, ...]
) -> dict[str, Array]:
    """Kind of site -> [requested layers, tokens, width]."""
    out = forward(params, config, tokens[None], capture=sites)
    stacks = {kind: x.reshape(*x.shape[:1], x.shape[2], -1) for kind, x in out.captured.items()}
    return stacks | {"final": out.hidden}
