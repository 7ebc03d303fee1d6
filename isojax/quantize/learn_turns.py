"""Learning the transforms of the inputs of linear layers on the loss of the whole model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Integer, Key

from isojax import learn
from isojax._core.samples import Samples
from isojax.models import ModelConfig, Site, forward, token_kl
from isojax.models.hooks import INPUTS
from isojax.quantize.turns import Turns, turned_inputs
from isojax.quantizers import Quantizer
from isojax.recipes import Coordinates
from isojax.transforms import Dense, Diagonal, Identity
from isojax.transforms.value_scale import gathered

CHECKS = 10


def start_turns(
    key: Key[Array, ""], config: ModelConfig, coordinates: Coordinates, down: Coordinates
) -> Turns:
    """Random turns from coordinates (`down` for down_proj's input), the same for all layers."""
    keys = jax.random.split(key, 3)
    heads = (config.num_hidden_layers, config.num_key_value_heads)

    def draw(key: Array, dim: int) -> Dense:
        return Dense(coordinates.draw(key, dim).matrix())

    each = jax.vmap(jax.vmap(lambda key: draw(key, config.head_dim)))
    behind = {"down_proj": down.draw(keys[2], config.intermediate_size)}
    values = each(jax.random.split(keys[1], heads))
    return Turns(draw(keys[0], config.hidden_size), values, behind=behind)


def start_scales(
    params: Any,
    config: ModelConfig,
    windows: Integer[Array, "n t"],
    turns: Turns,
    starts: dict[str, Coordinates],
) -> dict[str, Float[Array, "layers d"]]:
    """Logarithms of the scales of diagonal coordinates behind the rotations of `turns`.

    Args:
        params: the tree of `init_params`.
        config: of the model.
        windows: token ids to fit on; mean squares are taken over at most 16 of them.
        turns: with rotations, or none.
        starts: by input; fitted on second moments, such as `balance`, or on nothing.

    Raises:
        ValueError: a start is fitted on more than second moments, or is not diagonal.
    """
    heads = config.num_key_value_heads, config.num_attention_heads // config.num_key_value_heads
    turns = turns._replace(behind={})
    given = [_mean_squares(params, config, ids, turns, tuple(starts)) for ids in windows[:16]]
    squares = jax.tree.map(lambda *each: sum(each) / len(each), *given)

    def fit(site: str, x: Array, w: Array) -> Array:
        tied = heads if site == "o_proj" else None
        samples = Samples(None, jnp.diag(w), moment=jnp.diag(x), size=len(x), heads=tied)
        turn = starts[site].fit(jax.random.key(0), samples)
        scale = gathered(turn) if tied else turn
        if isinstance(turn, Identity):
            scale = Diagonal(jnp.ones(len(x) // heads[1] if tied else len(x)))
        if not isinstance(scale, Diagonal):
            raise ValueError(f"learned scales must start diagonal, got {starts[site]}.")
        return -jnp.log(jnp.abs(scale.entries.reshape(-1)))

    return {
        site: jax.lax.map(lambda each, site=site: fit(site, *each), squares[site])
        for site in starts
    }


@functools.partial(jax.jit, static_argnames="config")
def divergence(
    params: Any,
    config: ModelConfig,
    windows: Integer[Array, "n t"],
    hidden: Float[Array, "n t d"],
    turns: Turns,
    inputs: Quantizer,
    weights: Quantizer | None = None,
) -> Float[Array, ""]:
    """Mean KL from the unquantized model over all windows, in nats per token.

    Args:
        params: the tree of `init_params`, norms folded where the residual stream is rotated.
        config: static.
        windows: token ids.
        hidden: hidden states of the unquantized model.
        turns: coordinates of the inputs.
        inputs: quantizer of the inputs, straight through for gradients.
        weights: quantizer of the weights; None leaves them exact.
    """

    def one(here: tuple[Array, Array]) -> Array:
        return _kl(params, config, here[0], here[1], turns, inputs, weights)

    return jax.lax.map(one, (windows, hidden)).mean()


@functools.partial(jax.jit, static_argnames=("config", "steps", "tell"))
def learn_turns(
    key: Key[Array, ""],
    params: Any,
    config: ModelConfig,
    windows: Integer[Array, "n t"],
    hidden: Float[Array, "n t d"],
    start: Turns,
    inputs: Quantizer,
    weights: Quantizer | None = None,
    *,
    steps: int,
    rate: float | Float[Array, ""],
    scale_rate: float | Float[Array, ""] = 0.01,
    tell: Callable[..., None] | None = None,
) -> Turns:
    """Learn the rotations and the scales of `start` together; the best ones of the descent.

    Rotations alone are SpinQuant (Liu et al. 2024, arXiv 2405.16406); with scales, of which each
    input has its own, it is the idea of OSTQuant (Hu et al. 2025, arXiv 2501.13987). The loss is
    the divergence from the unquantized model. Adam, for rotations on the orthogonal group, one
    window per step, with a cosine schedule to 0. Transforms `behind` are not learned.

    Args:
        key: draws the windows.
        params: the tree of `init_params`, norms folded where the residual stream is rotated.
        config: static.
        windows: token ids to learn from.
        hidden: hidden states of the unquantized model.
        start: the first turns.
        inputs: quantizer of the inputs, straight through, scales learned.
        weights: quantizer of the weights likewise; None leaves them exact.
        steps: of descent, a multiple of 10.
        rate: of Adam, in radians per step.
        scale_rate: of Adam, for the logarithms of scales.
        tell: called on the host with (steps done, divergence), ten times.
    """
    fixed = params, config
    learnable = {"residual": start.residual, "values": start.values, "scales": start.scales}
    first = {name: each for name, each in learnable.items() if jax.tree.leaves(each)}

    def loss(free: Any, key: Array) -> Array:
        i = jax.random.randint(key, (), 0, len(windows))
        return _kl(*fixed, windows[i], hidden[i], start._replace(**free), inputs, weights)

    def on_all(free: Any) -> Array:
        return divergence(*fixed, windows, hidden, start._replace(**free), inputs, weights)

    def adam(rate: Any) -> optax.GradientTransformation:
        return optax.adam(optax.cosine_decay_schedule(rate, steps))

    rates: Any = {"turn": learn.stiefel(adam(rate)), "scale": adam(scale_rate)}
    labels = {name: "scale" if name == "scales" else "turn" for name in first}
    optimizer = optax.multi_transform(rates, labels)
    free, _ = learn.fit(
        loss, first, optimizer, key=key, steps=steps, checks=CHECKS, objective=on_all, callback=tell
    )
    return start._replace(**free)


@functools.partial(jax.jit, static_argnames=("config", "sites"))
def _mean_squares(
    params: Any, config: ModelConfig, ids: Array, turns: Turns, sites: tuple[str, ...]
) -> dict[str, tuple[Array, Array]]:
    """Mean squares of the inputs on a text, and of the weights that read them, per channel.

    Both in the coordinates of `turns`, [layers, d].
    """
    number = config.num_hidden_layers
    wanted = tuple(Site(f"input:{site}", i) for site in sites for i in range(number))
    seen = forward(params, config, ids[None], capture=wanted).captured
    found = {}
    for site in sites:
        readers = [name for name, read in INPUTS.items() if read == site]
        kernels = [params["layers"][name]["kernel"] for name in readers]
        weights = jnp.concatenate(kernels, 2)

        def one(given: tuple[Array, Array, Array], site: str = site) -> tuple[Array, Array]:
            layer, x, w = given
            turn = turns.of(config, site, layer, x.shape[-1])
            x, rows = turn.apply(x.astype(jnp.float32)), turn.dual.apply(w.T.astype(jnp.float32))
            return jnp.mean(jnp.square(x), 0), jnp.mean(jnp.square(rows), 0)

        layers = jnp.arange(number), seen[f"input:{site}"][:, 0], weights
        found[site] = jax.lax.map(one, layers)
    return found


def _kl(
    params: Any, config: ModelConfig, ids: Array, exact: Array, turns: Turns, *quantizers: Any
) -> Float[Array, ""]:
    """The divergence on one text, with hooks; gradients reach the turns."""
    hooks = turned_inputs(config, turns, *quantizers)
    return token_kl(params, config, exact[None], ids[None], hooks).mean()
