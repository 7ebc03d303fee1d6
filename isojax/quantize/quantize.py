"""Application of a plan: transforms are merged, weights rounded, online parts fitted."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Key

from isojax.models import LanguageModel, ModelConfig
from isojax.models.decoder import Params
from isojax.models.hooks import Layer
from isojax.models.rotate import fold_ends, fold_layer, turn_ends, turn_layer
from isojax.quantize.check import check_added
from isojax.quantize.fitting import concrete, decoded, pooled, rounded
from isojax.quantize.layer import make_layer
from isojax.quantize.made import Made, Past
from isojax.quantize.merging import keeps_length
from isojax.quantize.parts import INPUT_PLACES, PLACES, TABLES, Turn, Weight
from isojax.quantize.plan import Plan
from isojax.quantize.quantized import (
    ByLayer,
    Origin,
    Quantized,
    by_layer,
    kind_of,
    layer_of,
    put_layer,
    put_layer_in_place,
    stacked,
)
from isojax.quantize.stats import Stats
from isojax.sweep import progress_bar
from isojax.transforms import Transform
from isojax.transforms.base import chained


def quantize(
    key: Key[Array, ""],
    model: LanguageModel | Quantized,
    plan: Plan,
    stats: Stats | None = None,
    *,
    progress: bool = True,
) -> Quantized:
    """Quantize a model by a plan.

    Pure: works under `jit` and under `vmap` over keys and numbers of the plan that may be traced.
    Layers are processed one after the other, by compiled steps that they share; GPTQ takes about a
    second per layer of 4 million weights on 2 cores. Memory beyond the model and the result is one
    layer. The order is: the residual stream is transformed (which folds the scales of norms into
    weights); then in each layer values, the inputs of projections, weights, queries and keys, and
    the cache, each fitted on the results of those before it.

    Args:
        key: random key; the key of a place depends only on the place and the layer.
        model: a loaded model; or a quantized one, to which the plan adds free places.
        plan: the plan.
        stats: of `calibrate` for this plan; None where nothing is fitted.
        progress: show a progress bar, unless something is traced.

    Raises:
        ValueError: the transform of the residual stream is no isometry, statistics for a fit are
            missing, a transform changes a length, or a place is quantized already or was read by
            weights that are rounded already.
    """
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise ValueError(f"key must be one of jax.random.key, got {type(key).__name__}.")
    keys, base = begin(key, model, plan, stats)
    number = base.config.num_hidden_layers
    every = ({},) * number if stats is None else stats.layers
    if len(every) != number:
        raise ValueError(f"stats must be of {number} layers, got {len(every)}.")
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((keys, base, plan, stats)))
    put = put_layer if traced else put_layer_in_place
    layers, made = {}, []
    with progress_bar(traced or not progress) as bar:
        for i, found in enumerate(bar.track(every, description="quantize")):
            one = one_layer(keys, base, plan, i, found)
            for name, params in one.params.items():
                if name not in layers:
                    layers[name] = jax.tree.map(jnp.copy, base.params["layers"][name])
                layers[name] = put(layers[name], params, i)
            made.append(dataclasses.replace(one, params={}))
            if not traced:  # pending layers would keep their inputs in memory
                jax.block_until_ready((layers, one))
    layers = base.params["layers"] | layers
    base = dataclasses.replace(base, params=base.params | {"layers": layers})
    done = _tables(keys, joined(base, made), plan)
    whole = base.origin.plan
    if whole is not None:  # its places stay, where the plan has none
        whole += plan.without(whole.places - plan.places)
    whole = whole if concrete(plan) else None
    return dataclasses.replace(done, origin=dataclasses.replace(base.origin, plan=whole))


def begin(
    key: Key[Array, ""], model: LanguageModel | Quantized, plan: Plan, stats: Stats | None
) -> tuple[dict[str, Key[Array, ""]], Quantized]:
    """Keys by place, and the model from which layers are made; see `quantize`.

    If the plan transforms the residual stream, embedding and head are transformed here, and
    `shared` holds the transform; `one_layer` transforms the layers, so that no second model is
    held.
    """
    base = model if isinstance(model, Quantized) else unquantized(model)
    check_added(plan, base)
    keys = {place: jax.random.fold_in(key, i) for i, place in enumerate(PLACES)}
    stats = Stats(({},) * base.config.num_hidden_layers) if stats is None else stats
    return keys, _turn_residual(keys["residual"], base, plan, stats)


def one_layer(
    keys: Mapping[str, Key[Array, ""]],
    base: Quantized,
    plan: Plan,
    number: int,
    stats: Mapping[str, Any],
) -> Made:
    """Apply the plan to one layer of the result of `begin`."""
    layers = base.config.num_hidden_layers
    parts, turns = plan.layer(number, layers), plan.whole("residual") is not None
    if not parts and not turns:
        return Made()
    layer = _layer_of(base.params["layers"], number)
    layer = _turned_layer(layer, base.shared["residual"]) if turns else layer
    own = _layer_keys({place: keys[place] for place in parts}, number, layers)
    made = make_layer(own, layer, stats, _past(base, number), parts=parts, config=base.config)
    return dataclasses.replace(made, params=layer | made.params) if turns else made


@functools.partial(jax.jit, static_argnames="layers")
def _layer_keys(keys: Mapping[str, Key[Array, ""]], number: Layer, layers: int) -> dict[str, Any]:
    """The keys of one layer, by place."""
    return {place: jax.random.split(key, layers)[number] for place, key in keys.items()}


_layer_of = jax.jit(layer_of)


def unquantized(model: LanguageModel) -> Quantized:
    """The unquantized model as a `Quantized`, with an empty plan."""
    origin = Origin(Plan(), model.tokenizer, model.sidecar)
    return dataclasses.replace(unquantized_of(model.params, model.config), origin=origin)


def unquantized_of(params: Params, config: ModelConfig) -> Quantized:
    """The same of parameters without a tokenizer."""
    return Quantized(params, {}, None, None, None, {}, {}, {}, config)


def _past(base: Quantized, number: int) -> Past:
    """The transforms and codes of a layer so far."""
    each = {name: found[number] for name, found in base.shared.items() if name != "residual"}
    through = {
        place.partition(":")[2]: _through(each[place], base.inputs.get(place), number)
        for place in INPUT_PLACES
        if each.get(place)
    }
    codes = {n: found[number] for n, found in base.codes.items() if n not in TABLES}
    codes = {name: found for name, found in codes.items() if found is not None}
    turn = None if base.turn is None else base.turn.of(number)
    return Past(base.shared.get("residual"), each.get("values"), through, codes, turn)


def _through(merged: Transform, inputs: ByLayer | None, number: int) -> Transform:
    """All transforms of an input: those that merged, then those that run online."""
    codec = None if inputs is None else inputs.of(number)
    return merged if codec is None else chained(merged.dim, (merged, codec.transform))


def _turn_residual(key: Array, base: Quantized, plan: Plan, stats: Stats) -> Quantized:
    part = plan.whole("residual")
    if not isinstance(part, Turn):
        return base
    other = ValueError(
        "residual must be turned by an isometry, since RMSNorm commutes with no other transform; "
        f"got {part.coordinates}."
    )
    if any(stage.member.facts.get("diagonal") for stage in part.coordinates.stages):
        raise other
    samples = pooled(stats.layers, base.config.hidden_size, part.coordinates.needs)
    samples = dataclasses.replace(samples, learned=stats.whole.get("learned:residual"))
    transform = part.coordinates.fit(key, samples)
    keeps_length("residual", part.coordinates, transform)
    if not transform.isometry:
        raise other
    params = base.params | _turned_ends(
        {name: base.params[name] for name in ("embedding", "norm", "head") if name in base.params},
        transform,
    )
    config = dataclasses.replace(base.config, tie_word_embeddings=False)
    shared = base.shared | {"residual": transform}
    return dataclasses.replace(base, params=params, config=config, shared=shared)


@jax.jit
def _turned_ends(params: Params, transform: Transform) -> Params:
    """Embedding and head with the norm folded and the residual stream transformed."""
    return turn_ends(fold_ends(params), transform)


@jax.jit
def _turned_layer(layer: Params, transform: Transform) -> Params:
    """A layer with norms folded and the residual stream transformed."""
    return turn_layer(fold_layer(layer), transform)


def single(base: Quantized, number: int, made: Made) -> Quantized:
    """A model of one layer of `base`, with the plan applied."""
    layers = stacked([layer_of(base.params["layers"], number) | made.params])
    config = dataclasses.replace(base.config, num_hidden_layers=1)
    one = unquantized_of({"layers": layers}, config)
    return dataclasses.replace(joined(one, [made]), shared={
        name: turn for name, turn in base.shared.items() if name == "residual"
    }, codes={}, codecs={})  # fmt: skip


def joined(base: Quantized, made: list[Made]) -> Quantized:
    """The model with the results of its layers, except their parameters."""
    inputs = dict(base.inputs)
    for site in sorted(set().union(*(m.inputs for m in made))):
        joined = by_layer([m.inputs.get(site) for m in made])
        assert joined is not None
        inputs[site] = joined
    codes, codecs = dict(base.codes), dict(base.codecs)
    for name in sorted(set().union(*(m.codes for m in made))):
        nothing = (None,) * len(made)
        before = codes.get(name, nothing), codecs.get(name, nothing)
        codes[name] = tuple(m.codes.get(name, before[0][i]) for i, m in enumerate(made))
        codecs[name] = tuple(m.codecs.get(name, before[1][i]) for i, m in enumerate(made))
    shared = dict(base.shared)
    if any(m.turned is not None for m in made):
        before = shared.get("values", (None,) * len(made))
        shared["values"] = tuple(m.turned or before[i] for i, m in enumerate(made))
    for site in sorted(set().union(*(m.merged for m in made))):
        shared[f"input:{site}"] = tuple(m.merged.get(site) for m in made)
    turn = by_layer([m.turn for m in made])
    sides = {}
    for side in ("keys", "values"):
        each = [getattr(m, side) for m in made]
        if any(s is not None for s in each):
            sides[side] = _stores(f"cache:{side}", each)
    return dataclasses.replace(
        base, inputs=inputs, codes=codes, codecs=codecs, shared=shared,
        turn=base.turn if turn is None else turn, **sides,
    )  # fmt: skip


def _stores(place: str, each: list[Any]) -> Any:
    """One store of all layers.

    Raises:
        ValueError: layers differ in more than the values of their arrays.
    """
    if len(set(map(kind_of, each))) > 1:
        raise ValueError(f"{place} must be alike in all layers, which share one cache.")
    return stacked(each)


def _tables(keys: Any, model: Quantized, plan: Plan) -> Quantized:
    """The model with its embedding and head quantized by the plan."""
    params, codes, codecs = dict(model.params), dict(model.codes), dict(model.codecs)
    for place in TABLES:
        part = plan.whole(place)
        if not isinstance(part, Weight):
            continue
        if place not in params:
            raise ValueError("head is the embedding in this model: quantize embedding instead.")
        rows = params[place] if place == "embedding" else params[place].T
        codec, found = rounded(keys[place], rows, None, part)
        hat = decoded(codec, found).astype(params[place].dtype)
        params[place] = hat if place == "embedding" else hat.T
        codes[place], codecs[place] = (found,), (codec,)
    return dataclasses.replace(model, params=params, codes=codes, codecs=codecs)
