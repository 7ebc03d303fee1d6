"""Rotations learned by the loss of the whole model, inputs quantized."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array, Float, Int, Key

from isojax import learn, quantizers, transforms
from isojax.codec import Codec
from isojax.models import Hooks, ModelConfig, token_kl
from isojax.models.hooks import Layer
from isojax.quantize.parts import INPUT_PLACES
from isojax.quantize.quantized import layer_of
from isojax.quantize.stats import Stats

CHECKS = 10


class Turns(NamedTuple):
    """What turns the inputs of linear layers.

    Attributes:
        residual: R1, of the residual stream: inputs of q, k, v, gate and up.
        values: R2, of the values of each head, leaves lead with [layers, kv_heads]: the input of o.
        down: R4, of the input of down_proj, which runs online.
    """

    residual: transforms.Dense
    values: transforms.Dense
    down: transforms.Transform

    def stats(self, layers: int) -> Stats:
        """Statistics that hold them, for a plan with `learned` at these three places."""
        found = (
            {"learned:values": layer_of(self.values, i), "learned:input:down_proj": self.down}
            for i in range(layers)
        )
        return Stats(tuple(found), {"learned:residual": self.residual})


def turned_inputs(config: ModelConfig, turns: Turns, quantizer: quantizers.Quantizer) -> Hooks:
    """Inputs quantized in their coordinates and turned back: what merging makes of the model."""
    groups = config.num_key_value_heads

    def activation(name: str, layer: Layer, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        if name not in INPUT_PLACES:
            return x
        turn: transforms.Transform = turns.residual
        if name == "input:down_proj":
            turn = turns.down
        elif name == "input:o_proj":
            shared = transforms.repeat(
                layer_of(turns.values, layer), config.num_attention_heads // groups
            )
            turn = transforms.BlockDiagonal(shared, groups)
        return Codec(turn, quantizer).roundtrip(x)

    return Hooks(activation=activation)


@functools.partial(jax.jit, static_argnames="config")
def divergence(
    params: Any,
    config: ModelConfig,
    windows: Int[Array, "n t"],
    hidden: Float[Array, "n t d"],
    turns: Turns,
    quantizer: quantizers.Quantizer,
) -> Float[Array, ""]:
    """Mean KL from the unquantized model over all windows, in nats per token.

    Args:
        params: the tree of `init_params`, norms folded.
        config: static.
        windows: token numbers.
        hidden: what the unquantized model makes of them.
        turns: of the inputs.
        quantizer: of the inputs, straight through for gradients.
    """

    def one(here: tuple[Array, Array]) -> Array:
        return _kl(params, config, here[0], here[1], turns, quantizer)

    return jax.lax.map(one, (windows, hidden)).mean()


@functools.partial(jax.jit, static_argnames=("config", "steps", "tell"))
def learn_turns(
    key: Key[Array, ""],
    params: Any,
    config: ModelConfig,
    windows: Int[Array, "n t"],
    hidden: Float[Array, "n t d"],
    start: Turns,
    quantizer: quantizers.Quantizer,
    *,
    steps: int,
    rate: float | Float[Array, ""],
    tell: Callable[..., None] | None = None,
) -> Turns:
    """The turns of the residual stream and of values with the least divergence met on the way.

    SpinQuant (Liu et al. 2024, arXiv 2405.16406), with the divergence from the unquantized model as
    the loss: Adam on the orthogonal group, one window a step, the rate falling to 0 as a cosine.
    That of down_proj's input stays as it is.

    Args:
        key: draws the windows.
        params: the tree of `init_params`, norms folded.
        config: static.
        windows: token numbers to learn from.
        hidden: what the unquantized model makes of them.
        start: where to begin.
        quantizer: of the inputs, straight through, scales learned.
        steps: of descent, a multiple of 10.
        rate: of Adam, in radians a step.
        tell: called on the host with (steps done, divergence), ten times.
    """

    def own(free: Any) -> Turns:
        return start._replace(residual=free[0], values=free[1])

    def loss(free: Any, key: Array) -> Array:
        i = jax.random.randint(key, (), 0, len(windows))
        return _kl(params, config, windows[i], hidden[i], own(free), quantizer)

    def on_all(free: Any) -> Array:
        return divergence(params, config, windows, hidden, own(free), quantizer)

    optimizer = learn.stiefel(optax.adam(optax.cosine_decay_schedule(rate, steps)))
    free, _ = learn.fit(
        loss, start[:2], optimizer, key=key, steps=steps, checks=CHECKS, objective=on_all,
        callback=tell,
    )  # fmt: skip
    return own(free)


def _kl(
    params: Any, config: ModelConfig, ids: Array, exact: Array, turns: Turns, quantizer: Any
) -> Float[Array, ""]:
    """Of one text, by the hooks; gradients reach the turns."""
    hooks = turned_inputs(config, turns, quantizer)
    return token_kl(params, config, exact[None], ids[None], hooks).mean()
