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
Redrawn = tuple[tuple[str, Coordinates, int], ...]


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
    turns, sites = turns._replace(behind={}), tuple(starts)
    given = [_input_squares(params, config, ids, turns, sites) for ids in windows[:16]]
    inputs = jax.tree.map(lambda *each: sum(each) / len(each), *given)
    weights = _weight_squares(params, config, turns, sites)

    def fit(site: str, x: Array, w: Array) -> Array:
        tied = config.head_groups if site == "o_proj" else None
        samples = Samples(None, jnp.diag(w), moment=jnp.diag(x), size=len(x), heads=tied)
        turn = starts[site].fit(jax.random.key(0), samples)
        scale = gathered(turn) if tied else turn
        if isinstance(turn, Identity):
            scale = Diagonal(jnp.ones(len(x) // tied[1] if tied else len(x)))
        if not isinstance(scale, Diagonal):
            raise ValueError(f"learned scales must start diagonal, got {starts[site]}.")
        return -jnp.log(jnp.abs(scale.entries.reshape(-1)))

    return {
        site: jax.lax.map(lambda each, site=site: fit(site, *each), (inputs[site], weights[site]))
        for site in starts
    }


@functools.partial(jax.jit, static_argnames="config")
def divergence(
    params: Any,
    config: ModelConfig,
    windows: Integer[Array, "n t"],
    hidden: Float[Array, "n t d"],
    turns: Turns,
    inputs: Quantizer | None,
    weights: Quantizer | None = None,
) -> Float[Array, ""]:
    """Mean KL from the unquantized model over all windows, in nats per token.

    Args:
        params: the tree of `init_params`, norms folded where the residual stream is rotated.
        config: static.
        windows: token ids.
        hidden: hidden states of the unquantized model.
        turns: coordinates of the inputs.
        inputs: quantizer of the inputs, straight through for gradients; None leaves them exact.
        weights: quantizer of the weights; None leaves them exact.
    """

    def one(here: tuple[Array, Array]) -> Array:
        return _kl(params, config, here[0], here[1], turns, inputs, weights)

    return jax.lax.map(one, (windows, hidden)).mean()


@functools.partial(jax.jit, static_argnames=("config", "redrawn", "steps", "tell"))
def learn_turns(
    key: Key[Array, ""],
    params: Any,
    config: ModelConfig,
    windows: Integer[Array, "n t"],
    hidden: Float[Array, "n t d"],
    start: Turns,
    inputs: Quantizer | None,
    weights: Quantizer | None = None,
    *,
    steps: int,
    rate: float | Float[Array, ""],
    scale_rate: float | Float[Array, ""] = 0.003,
    redrawn: Redrawn = (),
    tell: Callable[..., None] | None = None,
) -> Turns:
    """Learn the rotations and the scales of `start` together; the best ones of the descent.

    Rotations alone are SpinQuant (Liu et al. 2024, arXiv 2405.16406); with scales, of which each
    input has its own, it is the idea of OSTQuant (Hu et al. 2025, arXiv 2501.13987). The loss is
    the divergence from the unquantized model. Adam, for rotations on the orthogonal group, one
    window per step, with a cosine schedule to 0. Transforms `behind` are not learned; redrawn ones
    differ in each step, so that scales do not fit the rounding of a single draw.

    Args:
        key: draws the windows.
        params: the tree of `init_params`, norms folded where the residual stream is rotated.
        config: static.
        windows: token ids to learn from.
        hidden: hidden states of the unquantized model.
        start: the first turns.
        inputs: quantizer of the inputs, straight through, scales learned; None leaves them exact.
        weights: quantizer of the weights likewise; None leaves them exact.
        steps: of descent, a multiple of 10.
        rate: of Adam, in radians per step.
        scale_rate: of Adam, for the logarithms of scales.
        redrawn: coordinates drawn anew in each step, to stand behind: (input, coordinates, length).
        tell: called on the host with (steps done, divergence), ten times.
    """
    fixed = params, config
    learnable = {"residual": start.residual, "values": start.values, "scales": start.scales}
    first = {name: each for name, each in learnable.items() if jax.tree.leaves(each)}

    def turns(free: Any, key: Array) -> Turns:
        drawn = {
            site: coordinates.draw(jax.random.fold_in(key, place), length)
            for place, (site, coordinates, length) in enumerate(redrawn)
        }
        return start._replace(**free, behind=start.behind | drawn)

    def loss(free: Any, key: Array) -> Array:
        i = jax.random.randint(key, (), 0, len(windows))
        drawn = turns(free, jax.random.fold_in(key, 1))
        return _kl(*fixed, windows[i], hidden[i], drawn, inputs, weights)

    def on_all(free: Any) -> Array:
        return divergence(*fixed, windows, hidden, turns(free, key), inputs, weights)

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
def _input_squares(
    params: Any, config: ModelConfig, ids: Array, turns: Turns, sites: tuple[str, ...]
) -> dict[str, Float[Array, "layers d"]]:
    """Mean squares of the channels of inputs on a text, in the coordinates of `turns`."""
    number = config.num_hidden_layers
    wanted = tuple(Site(f"input:{site}", i) for site in sites for i in range(number))
    seen = forward(params, config, ids[None], capture=wanted).captured

    def one(site: str, layer: Array, x: Array) -> Array:
        turn = turns.of(config, site, layer, x.shape[-1])
        return jnp.mean(jnp.square(turn.apply(x.astype(jnp.float32))), 0)

    return {site: _by_layer(one, site, seen[f"input:{site}"][:, 0]) for site in sites}


@functools.partial(jax.jit, static_argnames=("config", "sites"))
def _weight_squares(
    params: Any, config: ModelConfig, turns: Turns, sites: tuple[str, ...]
) -> dict[str, Float[Array, "layers d"]]:
    """Mean squares of the rows of the weights that read inputs, in the coordinates of `turns`."""

    def one(site: str, layer: Array, w: Array) -> Array:
        dual = turns.of(config, site, layer, len(w)).dual
        return jnp.mean(jnp.square(dual.apply(w.T.astype(jnp.float32))), 0)

    found = {}
    for site in sites:
        kernels = [params["layers"][n]["kernel"] for n, read in INPUTS.items() if read == site]
        found[site] = _by_layer(one, site, jnp.concatenate(kernels, 2))
    return found


def _by_layer(one: Callable[[str, Array, Array], Array], site: str, each: Array) -> Array:
    return jax.lax.map(lambda given: one(site, *given), (jnp.arange(len(each)), each))


def _kl(
    params: Any, config: ModelConfig, ids: Array, exact: Array, turns: Turns, *quantizers: Any
) -> Float[Array, ""]:
    """The divergence on one text, with hooks; gradients reach the turns."""
    hooks = turned_inputs(config, turns, *quantizers)
    return token_kl(params, config, exact[None], ids[None], hooks).mean()
