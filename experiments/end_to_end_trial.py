"""A model with rotated inputs of 4 bits: what `end_to_end` learns and measures."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from experiments import block_merge
from experiments.block_points import SITES, quantizer_of
from experiments.block_trial import score
from isojax import Codec, learn, quantizers, transforms
from isojax.models import Hooks, LanguageModel, ModelConfig, forward, token_kl, token_nll
from isojax.models.hooks import INPUTS, Layer
from isojax.models.rotate import fold_norms

UNITS: dict[str, str] = dict.fromkeys(("nll", "delta_nll", "kl"), "nats per token")


class Rotations(NamedTuple):
    """What turns the inputs of linear layers.

    Attributes:
        residual: R1, of the residual stream: inputs of q, k, v, gate and up.
        values: R2, of the values of each head, [layers, kv_heads]: the input of o.
        down: R4, of the input of down_proj; not learned, since it runs online.
    """

    residual: transforms.Dense
    values: transforms.Dense
    down: transforms.Transform


class Trial:
    """A model with folded norms, texts to learn from, and texts to test on."""

    def __init__(self, model: LanguageModel, calibration: np.ndarray, texts: np.ndarray) -> None:
        """Take the calibration windows [n, tokens]; `texts` [m, tokens] are those to test on."""
        self.params, self.config = fold_norms(model.params, model.config)
        self.calibration, self.texts = jnp.asarray(calibration), jnp.asarray(texts)
        self.exact = _hidden(self.params, self.config, self.calibration)

    def nll(self, i: int) -> float:
        """Mean nll of text i in nat a token, nothing quantized."""
        read = jax.jit(token_nll, static_argnames="config")
        return float(read(self.params, self.config, self.texts[i][None]).mean())

    def start(self, name: str, seed: int) -> Rotations:
        """Rotations of that name; before down_proj a random Hadamard transform."""
        config, keys = self.config, jax.random.split(jax.random.key(seed), 3)
        heads = (config.num_hidden_layers, config.num_key_value_heads)

        def draw(key: Array, dim: int) -> transforms.Dense:
            return transforms.Dense(transforms.from_name(key, name, dim).matrix())

        each = jax.vmap(jax.vmap(lambda key: draw(key, config.head_dim)))
        return Rotations(
            draw(keys[0], config.hidden_size), each(jax.random.split(keys[1], heads)),
            transforms.hadamard(keys[2], config.intermediate_size),
        )  # fmt: skip

    def divergence(self, rotations: Rotations) -> float:
        """Mean KL on all calibration windows, in nat a token."""
        return float(_divergence(self.params, self.config, self.calibration, self.exact, rotations))

    def learned(
        self, start: Rotations, seed: int, steps: int, rate: float, tell: Callable[..., None]
    ) -> Rotations:
        """Those of the least divergence met; `tell` hears (step, divergence) ten times."""
        key = jax.random.fold_in(jax.random.key(seed), 3)
        given = (self.params, self.calibration, self.exact, start, key, rate)
        return _learn(*given, config=self.config, steps=steps, tell=tell)

    def quantized(self, rotations: Rotations, setting: str) -> list[float]:
        """Mean nll of each text in nat a token, rotations merged, weights rounded for W4A4."""
        params = block_merge.merge_fused(self.params, self.config, *rotations[:2])
        params = block_merge.merge_down(params, self.config, None, rotations.down)
        if setting == "W4A4":
            params = block_merge.round_weights(params, quantizer_of("int4", True), tuple(INPUTS))
        inputs = quantizer_of("int4", False)
        return [
            float(score(params, self.config, rotations.down, ids, SITES, inputs))
            for ids in self.texts
        ]


def rotated_inputs(
    config: ModelConfig, rotations: Rotations, quantizer: quantizers.Quantizer
) -> Hooks:
    """Inputs quantized in rotated coordinates and turned back: what merging makes of the model."""
    groups = config.num_key_value_heads

    def activation(name: str, layer: Layer, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        if name not in SITES:
            return x
        turn: transforms.Transform = rotations.residual
        if name == "input:down_proj":
            turn = rotations.down
        elif name == "input:o_proj":
            own = jax.tree.map(lambda leaf: leaf[layer], rotations.values)
            shared = transforms.repeat(own, config.num_attention_heads // groups)
            turn = transforms.BlockDiagonal(shared, groups)
        return Codec(turn, quantizer).roundtrip(x)

    return Hooks(activation=activation)


@functools.partial(jax.jit, static_argnames="config")
def _hidden(
    params: Any, config: ModelConfig, texts: Int[Array, "n t"]
) -> Float[Array, "n t width"]:
    return jax.lax.map(lambda ids: forward(params, config, ids[None]).hidden[0], texts)


def _kl(
    params: Any, config: ModelConfig, ids: Array, exact: Array, rotations: Rotations
) -> Float[Array, ""]:
    """Of one text, by the hooks; gradients reach the rotations."""
    quantizer = quantizers.straight_through(quantizer_of("int4", False), scales="learned")
    hooks = rotated_inputs(config, rotations, quantizer)
    return token_kl(params, config, exact[None], ids[None], hooks).mean()


@functools.partial(jax.jit, static_argnames="config")
def _divergence(
    params: Any, config: ModelConfig, texts: Array, exact: Array, rotations: Rotations
) -> Float[Array, ""]:
    each = jax.lax.map(lambda at: _kl(params, config, at[0], at[1], rotations), (texts, exact))
    return each.mean()


@functools.partial(jax.jit, static_argnames=("config", "steps", "tell"))
def _learn(
    params: Any, texts: Array, exact: Array, start: Rotations, key: Key[Array, ""], rate: float, *,
    config: ModelConfig, steps: int, tell: Callable[..., None],
) -> Rotations:  # fmt: skip

    def own(free: Any) -> Rotations:
        return start._replace(residual=free[0], values=free[1])

    def loss(free: Any, key: Array) -> Array:
        i = jax.random.randint(key, (), 0, len(texts))
        return _kl(params, config, texts[i], exact[i], own(free))

    def on_all(free: Any) -> Array:
        return _divergence(params, config, texts, exact, own(free))

    optimizer = learn.stiefel(optax.adam(optax.cosine_decay_schedule(rate, steps)))
    free, _ = learn.fit(
        loss, start[:2], optimizer, key=key, steps=steps, checks=10, objective=on_all,
        callback=tell,
    )  # fmt: skip
    return own(free)
