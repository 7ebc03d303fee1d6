"""Transforms of the inputs of linear layers, by hooks: what a plan merges, while it is learned."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax.codec import Codec
from isojax.models import Hooks, ModelConfig
from isojax.models.hooks import INPUTS, Layer
from isojax.quantize.parts import INPUT_PLACES, NORMS
from isojax.quantize.quantized import layer_of
from isojax.quantize.stats import Stats
from isojax.quantizers import Quantizer
from isojax.transforms import BlockDiagonal, Dense, Diagonal, Transform, repeat
from isojax.transforms.base import chained
from isojax.transforms.value_scale import spread


class Turns(NamedTuple):
    """The transforms of the inputs of linear layers.

    Attributes:
        residual: R1, of the residual stream: inputs of q, k, v, gate and up; None without one.
        values: R2, of the values of each head, leaves lead with [layers, kv_heads]: the input of o.
        scales: logarithms of the scales by which inputs are then divided, by input (`q_proj`,
            `o_proj`, `gate_proj`, `down_proj`), [layers, d]; of o per channel of all values.
        behind: transforms behind these by input, which run online; the same for all layers.
    """

    residual: Dense | None = None
    values: Dense | None = None
    scales: dict[str, Float[Array, "layers d"]] = {}  # noqa: RUF012
    behind: dict[str, Transform] = {}  # noqa: RUF012

    def of(self, config: ModelConfig, site: str, layer: Layer, dim: int) -> Transform:
        """The transform of one input of one layer, of vectors of length `dim`."""
        found: list[Transform] = []
        if site in NORMS and self.residual is not None:
            found.append(self.residual)
        heads = config.head_groups
        if site == "o_proj" and self.values is not None:
            found.append(BlockDiagonal(repeat(layer_of(self.values, layer), heads[1]), heads[0]))
        if site in self.scales:
            scale = Diagonal(jnp.exp(-self.scales[site][layer]))
            found.append(spread(scale, heads) if site == "o_proj" else scale)
        if site in self.behind:
            found.append(self.behind[site])
        return chained(dim, found)

    def written(self, config: ModelConfig, name: str, layer: Layer) -> Transform | None:
        """The rotation of the output of a weight, None without one."""
        if name in ("o_proj", "down_proj"):
            return self.residual
        if name == "v_proj" and self.values is not None:
            return BlockDiagonal(layer_of(self.values, layer), config.num_key_value_heads)
        return None

    def stats(self, layers: int) -> Stats:
        """Statistics with these, for a plan that has `learned` or `learned_scales` there."""
        behind = {f"learned:input:{site}": turn for site, turn in self.behind.items()}
        every: list[dict[str, Any]] = [dict(behind) for _ in range(layers)]
        for i, found in enumerate(every):
            if self.values is not None:
                found["learned:values"] = layer_of(self.values, i).entries
            for site, logs in self.scales.items():
                found[f"learned_scale:input:{site}"] = jnp.exp(logs[i])
        whole = {} if self.residual is None else {"learned:residual": self.residual.entries}
        return Stats(tuple(every), whole)


def turned_inputs(
    config: ModelConfig, turns: Turns, inputs: Quantizer | None, weights: Quantizer | None = None
) -> Hooks:
    """Hooks that quantize in these coordinates and transform back, equivalent to merging.

    Args:
        config: of the model.
        turns: the coordinates.
        inputs: quantizer of the inputs of all linear layers; None leaves them exact.
        weights: quantizer of the rows of all weights, along the input; None leaves weights exact.
    """

    def activation(name: str, layer: Layer, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        if name not in INPUT_PLACES or inputs is None:
            return x
        turn = turns.of(config, name.removeprefix("input:"), layer, x.shape[-1])
        return Codec(turn, inputs).roundtrip(x)

    def weight(name: str, layer: Layer, w: Float[Array, "i o"]) -> Float[Array, "i o"]:
        turn = turns.of(config, INPUTS[name], layer, len(w))
        written = turns.written(config, name, layer)
        rows = (w if written is None else written.apply(w)).T
        assert weights is not None
        rows = Codec(turn.dual, weights).roundtrip(rows)
        return rows.T if written is None else written.inverse.apply(rows.T)

    return Hooks(activation=activation, weight=None if weights is None else weight)
