"""Rotations learned on the loss of the whole model with quantized inputs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Integer, Key

from isojax import learn, quantizers, transforms
from isojax._core.samples import identity_samples
from isojax.codec import Codec
from isojax.models import Hooks, LanguageModel, ModelConfig, fold_norms, token_kl
from isojax.models.hooks import Layer
from isojax.quantize.parts import INPUT_PLACES, is_learned
from isojax.quantize.plan import Plan
from isojax.quantize.quantized import layer_of
from isojax.quantize.score import reference
from isojax.quantize.stats import Stats
from isojax.recipes import Coordinates

CHECKS = 10


class Turns(NamedTuple):
    """The transforms of the inputs of linear layers.

    Attributes:
        residual: R1, of the residual stream: inputs of q, k, v, gate and up.
        values: R2, of the values of each head, leaves lead with [layers, kv_heads]: the input of o.
        down: R4, of the input of down_proj, which runs online.
    """

    residual: transforms.Dense
    values: transforms.Dense
    down: transforms.Transform

    def stats(self, layers: int) -> Stats:
        """Statistics with these transforms, for a plan with `learned` at these places."""
        found = (
            {"learned:values": layer_of(self.values, i), "learned:input:down_proj": self.down}
            for i in range(layers)
        )
        return Stats(tuple(found), {"learned:residual": self.residual})


def start_turns(
    key: Key[Array, ""], config: ModelConfig, coordinates: Coordinates, down: Coordinates
) -> Turns:
    """Random turns from coordinates (`down` for down_proj's input), the same for all layers."""
    keys = jax.random.split(key, 3)
    heads = (config.num_hidden_layers, config.num_key_value_heads)

    def draw(key: Array, dim: int) -> transforms.Dense:
        return transforms.Dense(coordinates.draw(key, dim).matrix())

    each = jax.vmap(jax.vmap(lambda key: draw(key, config.head_dim)))
    return Turns(
        draw(keys[0], config.hidden_size), each(jax.random.split(keys[1], heads)),
        down.draw(keys[2], config.intermediate_size),
    )  # fmt: skip


def turned_inputs(config: ModelConfig, turns: Turns, quantizer: quantizers.Quantizer) -> Hooks:
    """Hooks that quantize inputs in their coordinates and transform back, equivalent to merging."""
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
    windows: Integer[Array, "n t"],
    hidden: Float[Array, "n t d"],
    turns: Turns,
    quantizer: quantizers.Quantizer,
) -> Float[Array, ""]:
    """Mean KL from the unquantized model over all windows, in nats per token.

    Args:
        params: the tree of `init_params`, norms folded.
        config: static.
        windows: token ids.
        hidden: hidden states of the unquantized model.
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
    windows: Integer[Array, "n t"],
    hidden: Float[Array, "n t d"],
    start: Turns,
    quantizer: quantizers.Quantizer,
    *,
    steps: int,
    rate: float | Float[Array, ""],
    tell: Callable[..., None] | None = None,
) -> Turns:
    """Learn the turns of the residual stream and of values; the best ones of the descent.

    SpinQuant (Liu et al. 2024, arXiv 2405.16406), with the divergence from the unquantized model as
    the loss: Adam on the orthogonal group, one window per step, with a cosine schedule to 0. The
    turn of down_proj's input is not learned.

    Args:
        key: draws the windows.
        params: the tree of `init_params`, norms folded.
        config: static.
        windows: token ids to learn from.
        hidden: hidden states of the unquantized model.
        start: the first turns.
        quantizer: of the inputs, straight through, scales learned.
        steps: of descent, a multiple of 10.
        rate: of Adam, in radians per step.
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


def check_learned(plan: Plan, layers: int) -> bool:
    """Whether the rotations of the residual stream and of values in a plan are learned.

    Raises:
        ValueError: only one of the two is learned, or their arguments differ; or inputs are not
            quantized.
    """
    turned = [plan.whole("residual"), *plan.at("values", layers)]
    if not any(map(is_learned, turned)):
        return False
    stages = {str(part) if part else "none" for part in turned}
    if len(stages) > 1 or len(turned[0].coordinates.stages) > 1:
        raise ValueError(
            "residual and values of all layers must be learned together, as `learned` with the "
            f"same arguments; got {', '.join(sorted(stages))}."
        )
    if plan.at("input:q_proj", layers)[0] is None:
        raise ValueError("input:q_proj must be quantized where rotations are learned, got none.")
    return True


def learned_stats(key: Key[Array, ""], model: LanguageModel, windows: Any, plan: Plan) -> Stats:
    """Learn the rotations of the residual stream and of values in a plan, by `learn_turns`.

    The arguments of `learned` set the start and the number of steps. All inputs are quantized like
    that of q, k and v in the plan; the transform of the input of down_proj is that of the plan.

    Args:
        key: draws the start, and the windows.
        model: unquantized.
        windows: token ids [n, t] to learn from.
        plan: with `learned` coordinates.

    Raises:
        ValueError: only one of the two is learned, or their arguments differ; inputs are not
            quantized, or have fitted levels; or another place in the plan is learned.
    """
    number = model.config.num_hidden_layers
    if not check_learned(plan, number):
        return Stats(({},) * number)
    own = plan.whole("residual").coordinates.stages[0].arguments
    read: Any = plan.at("input:q_proj", number)[0]
    down: Any = plan.at("input:down_proj", number)[0]
    levels = read.recipe.levels.fit(identity_samples(model.config.hidden_size), read.bits)
    quantizer = quantizers.straight_through(levels, scales="learned")
    coordinates = Coordinates.parse(own["start"])
    params, config = fold_norms(model.params, model.config)
    folded = dataclasses.replace(model, params=params, config=config)
    keys = jax.random.split(key)
    before_down = Coordinates() if down is None else down.recipe.coordinates
    start = start_turns(keys[0], config, coordinates, before_down)
    hidden = jnp.asarray(reference(folded, windows).hidden)
    given = params, config, jnp.asarray(windows), hidden, start, quantizer
    turns = learn_turns(keys[1], *given, steps=own["steps"], rate=own["rate"])
    layers = tuple({"learned:values": values} for values in turns.values.entries)
    return Stats(layers, {"learned:residual": turns.residual.entries})


def _kl(
    params: Any, config: ModelConfig, ids: Array, exact: Array, turns: Turns, quantizer: Any
) -> Float[Array, ""]:
    """The divergence on one text, with hooks; gradients reach the turns."""
    hooks = turned_inputs(config, turns, quantizer)
    return token_kl(params, config, exact[None], ids[None], hooks).mean()
