"""One layer of a plan: transforms fitted and merged, weights rounded, stores of the cache."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Key

from isojax import learn
from isojax._core.pytree import pytree
from isojax._core.samples import Samples, conjugated
from isojax.codec import Codec
from isojax.models import ModelConfig
from isojax.models.hooks import INPUTS
from isojax.models.rope import rope_frequencies
from isojax.quantize.parts import NORMS, SITES, Cached, Part, Weight
from isojax.quantize.quantized import layer_of
from isojax.quantize.stats import VECTORS
from isojax.quantizers import Codes
from isojax.recipes import Recipe
from isojax.transforms import (
    BlockDiagonal,
    Composed,
    Diagonal,
    Identity,
    Permutation,
    Transform,
    identity,
    repeat,
)
from isojax.transforms.value_scale import gathered

MOST = 2**15  # vectors of the residual stream that coordinates are fitted on


@pytree
class Past:
    """What a layer has been through before a plan.

    Attributes:
        residual: what the residual stream is turned by.
        values: what values are turned by, leaves lead with [kv_heads].
        through: by input, see `Made`.
        codes: of weights that are rounded, by name.
        turn: of queries and keys.
    """

    residual: Transform | None
    values: Any
    through: dict[str, Transform]
    codes: dict[str, Codes]
    turn: Transform | None


@pytree
class Made:
    """What a plan makes of a layer.

    Attributes:
        params: those that change, by name.
        inputs: by input, the codec that it passes through.
        through: by input, all transforms behind the norm, or behind what writes it.
        codes: of weights, by name.
        codecs: what these are decoded by.
        turned: of values, for each key head, merged.
        turn: of queries and keys.
        keys: how they are stored.
        values: likewise.
    """

    params: dict[str, Any] = dataclasses.field(default_factory=dict)
    inputs: dict[str, Codec] = dataclasses.field(default_factory=dict)
    through: dict[str, Transform] = dataclasses.field(default_factory=dict)
    codes: dict[str, Codes] = dataclasses.field(default_factory=dict)
    codecs: dict[str, Codec] = dataclasses.field(default_factory=dict)
    turned: Any = None
    turn: Transform | None = None
    keys: Any = None
    values: Any = None


def make_layer(
    keys: Mapping[str, Key[Array, ""]],
    layer: Mapping[str, Any],
    stats: Mapping[str, Any],
    past: Past,
    *,
    parts: Mapping[str, Part],
    config: ModelConfig,
) -> Made:
    """What the parts make of a layer; each step is a program that layers and plans share.

    Args:
        keys: by place.
        layer: its parameters; the residual stream is turned already.
        stats: see `Stats`.
        past: what it has been through.
        parts: what stands where.
        config: of the decoder.
    """
    maker, at = _Maker(layer, stats, past, config), dict(parts)
    metric = None
    if "values" in at:
        maker.turn_values(keys["values"], at["values"])
    for site in SITES:
        if (place := f"input:{site}") in at:
            maker.turn_input(keys[place], site, at[place])
    if "cache:values" in at:
        metric = maker.value_metric()  # before weights are rounded
    for name in INPUTS:
        if (place := f"weight:{name}") in at:
            maker.round_weight(keys[place], name, at[place])
    if "queries_keys" in at:
        maker.turn_keys(keys["queries_keys"], at["queries_keys"])
    if "cache:keys" in at:
        maker.store_keys(keys["cache:keys"], at["cache:keys"])
    if "cache:values" in at:
        maker.store_values(keys["cache:values"], at["cache:values"], metric)
    through = {site: t for site, t in maker.through.items() if f"input:{site}" in at}
    turn = maker.turn if "queries_keys" in at else None
    return Made(
        maker.changed, maker.inputs, through, maker.rounded, maker.codecs, maker.turned, turn,
        maker.keys, maker.stored_values,
    )  # fmt: skip


class _Maker:
    """A layer on its way: its parameters so far, and what its vectors have been through."""

    def __init__(self, layer: Any, stats: Any, past: Past, config: ModelConfig) -> None:
        self.layer, self.stats, self.codes, self.config = dict(layer), stats, past.codes, config
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.residual, self.values, self.turn = past.residual, past.values, past.turn
        self.changed: dict[str, Any] = {}
        self.inputs: dict[str, Codec] = {}
        self.through: dict[str, Transform] = dict(past.through)
        self.rounded: dict[str, Codes] = {}
        self.codecs: dict[str, Codec] = {}
        self.turned = self.keys = self.stored_values = None

    def turn_values(self, key: Array, part: Any) -> None:
        """Turn the values of each key head, and undo it in what o_proj reads."""
        needs = part.coordinates.needs
        x = self.samples("value") if needs & VECTORS else None
        metric = self.value_metric() if "metric" in needs else None

        learned = self.stats.get("learned:values")
        x = None if x is None else _by_head(x)
        samples = Samples(x, metric, learned=learned, size=self.config.head_dim)
        keys = jax.random.split(key, self.groups)
        turn = _fitted(keys, samples, Recipe(part.coordinates), 0, heads=True).transform
        keeps_length("values", part.coordinates, turn)
        self.refuse_rounded("values", "v_proj", "o_proj")
        self.write("v_proj", BlockDiagonal(turn, self.groups))
        self.read("o_proj", self.for_all_heads(turn))
        self.turned = self.values = turn

    def turn_input(self, key: Array, site: str, part: Any) -> None:
        """Make the transform and quantizer of an input, and merge what merges."""
        readers = [name for name, source in INPUTS.items() if source == site]
        coordinates, needs, before = part.recipe.coordinates, part.recipe.needs, self.before(site)
        heads = (self.groups, self.heads // self.groups) if site == "o_proj" else None
        samples = Samples(None, size=self.layer[site]["kernel"].shape[0], heads=heads)
        if "x" in needs:
            x = _applied(before, self.samples(f"input:{site}"))
            samples = dataclasses.replace(samples, x=x)
        if "moment" in needs:
            moment = self.statistic(f"moment:input:{site}")
            moment = moment if before is None else _conjugated(before, moment)
            samples = dataclasses.replace(samples, moment=moment)
        if needs & {"metric", "weight"}:
            weight = jnp.concatenate([self.kernel(name) for name in readers], axis=1)
            metric = jnp.matmul(weight, weight.T, precision="highest")
            samples = dataclasses.replace(samples, metric=metric, weight=weight)
        learned = self.stats.get(f"learned:input:{site}")
        samples = dataclasses.replace(samples, learned=learned)
        codec = _fitted(key, samples, part.recipe, part.bits)
        keeps_length(f"input:{site}", coordinates, codec.transform)
        merged, online = _split(codec.transform, site)
        for transform in merged:
            self.merge(site, transform)
        if not isinstance(codec.transform, Identity):
            self.refuse_rounded(f"input:{site}", *readers)
            for name in readers:
                self.read(name, codec.transform)
        # the scale of the norm, or the turn of the values, already has what merged into it
        self.through[site] = codec.transform if site == "down_proj" else online
        if not isinstance(online, Identity) or not part.recipe.levels.exact:
            self.inputs[f"input:{site}"] = dataclasses.replace(codec, transform=online)

    def merge(self, site: str, transform: Transform) -> None:
        """Merge a transform in front of an input into what writes it."""
        scale = gathered(transform)
        check_fp16(f"input:{site}", transform if scale is None else scale)
        if scale is not None:
            self.refuse_rounded(f"input:{site}", "v_proj")
            self.write("v_proj", BlockDiagonal(scale, self.groups))
            self.values = self.turned = scale if self.values is None else self.values @ scale
        elif site in NORMS:
            norm = NORMS[site]
            self.put(norm, {"scale": _applied(transform, self.layer[norm]["scale"])})
        elif isinstance(transform, Permutation):
            for name in ("gate_proj", "up_proj"):
                self.write(name, transform)
                if self.codes.get(name) is not None:
                    self.rounded[name] = _reordered(self.codes[name], transform)
        else:
            self.refuse_rounded(f"input:{site}", "up_proj")
            self.write("up_proj", transform)

    def round_weight(self, key: Array, name: str, part: Any) -> None:
        """Round a weight in its recipe's coordinates."""
        site, moment = INPUTS[name], None
        needs = part.recipe.needs | set(part.rounding.member.facts.get("fitted", ("moment",)))
        if needs & {"moment", "metric"}:
            moment = self.statistic(f"moment:input:{site}")
            for transform in (self.before(site), self.through.get(site)):
                moment = moment if transform is None else _conjugated(transform, moment)
        codec, codes = rounded(key, self.kernel(name).T, moment, part)
        kernel = decoded(codec, codes).T.astype(self.layer[name]["kernel"].dtype)
        self.put(name, self.layer[name] | {"kernel": kernel})
        self.codecs[name], self.rounded[name] = codec, codes

    def turn_keys(self, key: Array, part: Any) -> None:
        """Make the turn of queries and keys, one for all heads; it runs online."""
        needs, size = part.coordinates.needs, self.config.head_dim
        x = self.samples("key").reshape(-1, size) if needs & VECTORS else None
        metric = self.statistic("moment:query").mean(0) if "metric" in needs else None
        samples = Samples(x, metric, learned=self.stats.get("learned:queries_keys"), size=size)
        turn = _fitted(key, samples, Recipe(part.coordinates), 0).transform
        keeps_length("queries_keys", part.coordinates, turn)
        self.turn = None if isinstance(turn, Identity) else turn

    def store_keys(self, key: Array, part: Any) -> None:
        """Fit the store of keys."""
        config, recipe = self.config, part.recipe
        x, metric = self.samples("key", recipe), None
        if "metric" in recipe.recipe.needs:
            metric = self.statistic("moment:query")
        if self.turn is not None:
            if (recipe.offset, recipe.rope) != ("none", "after"):
                raise ValueError(
                    "cache:keys must not undo the rotary embedding behind a turn of queries_keys, "
                    f"got {recipe}."
                )
            x = _applied(self.turn, x)
            metric = None if metric is None else _conjugated(self.turn.dual, metric)
        frequency = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        self.keys = _store(key, part, x, frequency, metric)

    def store_values(self, key: Array, part: Any, metric: Array | None) -> None:
        """Fit the store of values."""
        x = self.samples("value", part.recipe)
        if self.values is not None:
            x = _by_heads_applied(self.values, x)
        self.stored_values = _store(key, part, x, None, metric)

    def value_metric(self) -> Float[Array, "g d d"]:
        """How o_proj measures an error in the values of each key head: W W^T, a mean over heads."""
        kernel = self.kernel("o_proj")
        if "o_proj" in self.through:
            kernel = read_through(self.through["o_proj"].inverse, kernel)
        return _output_moment(kernel, self.groups, self.config.head_dim)

    def before(self, site: str) -> Transform | None:
        """What an input has been through on its way from where statistics are taken."""
        if site in NORMS:
            scale = Diagonal(self.layer[NORMS[site]]["scale"].astype(jnp.float32))
            return scale if self.residual is None else self.residual @ scale
        return self.for_all_heads(self.values) if site == "o_proj" and self.values else None

    def for_all_heads(self, turn: Any) -> Transform:
        """The turn of values of each key head, as what o_proj reads has it."""
        return BlockDiagonal(repeat(turn, self.heads // self.groups), self.groups)

    def samples(self, kind: str, recipe: Any = None) -> Array:
        """Calibration vectors; for a store that is fitted on none, one of zeros."""
        if recipe is None or recipe.recipe.needs & VECTORS or recipe.offset != "none":
            x = self.statistic(f"samples:{kind}")
            return x.reshape(-1, x.shape[-1]) if kind.startswith("input") else x
        return jnp.zeros((1, recipe.sinks + 1, self.groups, self.config.head_dim))

    def statistic(self, name: str) -> Array:
        """One of the statistics.

        Raises:
            ValueError: it is not there.
        """
        if name not in self.stats:
            raise ValueError(f"stats must hold {name}: calibrate the model for this plan.")
        return jnp.asarray(self.stats[name]).astype(jnp.float32)

    def kernel(self, name: str) -> Float[Array, "i o"]:
        return self.layer[name]["kernel"].astype(jnp.float32)

    def put(self, name: str, value: Any) -> None:
        self.layer[name] = self.changed[name] = value

    def write(self, name: str, transform: Transform) -> None:
        """Turn what a projection writes."""
        self.put(name, {n: _applied(transform, a) for n, a in self.layer[name].items()})

    def read(self, name: str, transform: Transform) -> None:
        """Undo a transform in what a projection reads."""
        kernel = read_through(transform, self.layer[name]["kernel"])
        self.put(name, self.layer[name] | {"kernel": kernel})

    def refuse_rounded(self, place: str, *names: str) -> None:
        rounded = [name for name in names if self.codes.get(name) is not None]
        if rounded:
            raise ValueError(f"{place} must be turned before {rounded[0]} is rounded.")


def rounded(
    key: Array, rows: Float[Array, "o i"], moment: Float[Array, "i i"] | None, part: Weight
) -> tuple[Codec, Codes]:
    """The codec of the rows of a weight, and their codes; see `decoded`.

    Args:
        key: draws the coordinates.
        rows: vectors that act along the input.
        moment: of the input, in which errors count; None to count all alike.
        part: what is done to them.
    """
    return (_rounded if concrete(part) else _round)(key, rows, moment, part)


def _round(key: Array, rows: Array, moment: Any, part: Weight) -> tuple[Codec, Codes]:
    codec = part.recipe.fit(key, Samples(rows, moment), part.bits)
    if moment is not None:
        moment = _conjugated(codec.transform.dual, moment)
    return codec, part.rounding(codec.transform.apply(rows).T, moment, codec.quantizer)


_rounded = functools.partial(jax.jit, static_argnames="part")(_round)


@jax.jit
def decoded(codec: Codec, codes: Codes) -> Float[Array, "o i"]:
    """Rows of a weight as their codes have them; one program, so that bits are always the same."""
    return codec.decode(codes)


def _fitted(key: Array, samples: Samples, recipe: Recipe, bits: Any, heads: bool = False) -> Codec:
    """The codec of a recipe, or those of all heads, whose keys and samples lead."""
    return (_fit_compiled if concrete(recipe) else _fit)(key, samples, recipe, bits, heads)


def _fit(key: Array, samples: Samples, recipe: Recipe, bits: Any, heads: bool) -> Codec:
    def one(key: Array, samples: Samples) -> Codec:
        return recipe.fit(key, samples, bits)

    return (jax.vmap(one) if heads else one)(key, samples)


_fit_compiled = functools.partial(jax.jit, static_argnames=("recipe", "bits", "heads"))(_fit)


def _store(key: Array, part: Cached, x: Array, frequency: Any, metric: Any) -> Any:
    return (_store_compiled if concrete(part) else _make_store)(key, x, frequency, metric, part)


def _make_store(key: Array, x: Array, frequency: Any, metric: Any, part: Cached) -> Any:
    metric = None if metric is None else metric[None]
    return layer_of(part.recipe.fit(key, x[None], int(part.bits), frequency, metric), 0)


_store_compiled = functools.partial(jax.jit, static_argnames="part")(_make_store)


_conjugated = jax.jit(conjugated)


def concrete(tree: Any) -> bool:
    """Whether numbers that may be traced are Python's, so that a program can hold them."""
    return all(isinstance(leaf, int | float) for leaf in jax.tree.leaves(tree))


def pooled(stats: Any, size: int, needs: frozenset[str]) -> Samples:
    """Vectors of the residual stream, as norms leave them, of all layers."""
    if not needs & VECTORS:
        return Samples(None, size=size)
    found = []
    for layer in stats:
        for site in NORMS:
            if f"samples:input:{site}" not in layer:
                raise ValueError(f"stats must hold samples:input:{site}: calibrate for this plan.")
            found.append(jnp.asarray(layer[f"samples:input:{site}"]).reshape(-1, size))
    x = jnp.concatenate(found)
    return Samples(x[:: -(-len(x) // MOST)])


def _split(transform: Transform, site: str) -> tuple[list[Transform], Transform]:
    """First factors that merge into what writes the input, and the rest, which runs online."""
    kinds = (Diagonal, Permutation) if site == "down_proj" else (Diagonal,)

    def merges(factor: Transform) -> bool:
        return gathered(factor) is not None if site == "o_proj" else isinstance(factor, kinds)

    rest = list(transform.factors) if isinstance(transform, Composed) else [transform]
    merged = []
    while rest and merges(rest[0]):
        merged.append(rest.pop(0))
    return merged, functools.reduce(operator.matmul, rest) if rest else identity(transform.dim)


def check_fp16(place: str, transform: Transform) -> None:
    """Raise `ValueError` for a diagonal beyond fp16, in which scales and weights are stored."""
    if not isinstance(transform, Diagonal) or isinstance(transform.entries, Tracer):
        return
    size, kind = jnp.abs(transform.entries), jnp.finfo(jnp.float16)
    low, high = float(size.min()), float(size.max())
    if not (low >= kind.smallest_normal and high <= kind.max):
        raise ValueError(
            f"{place} must merge a diagonal of fp16's normal numbers, {kind.smallest_normal:.3g} "
            f"to {kind.max:.6g} in size, got one from {low:.3g} to {high:.3g}."
        )


def keeps_length(place: str, coordinates: Any, transform: Transform) -> None:
    """Raise `ValueError` for a padded transform, which cannot merge."""
    if transform.out_dim != transform.dim:
        raise ValueError(
            f"{place} must keep its length {transform.dim}, got {coordinates} to "
            f"{transform.out_dim}: choose blocks that divide it."
        )


@jax.jit
def read_through(transform: Transform, kernel: Float[Array, "i o"]) -> Float[Array, "i o"]:
    """A kernel that reads what a transform returns."""
    return transform.dual.apply(kernel.T).T


@jax.jit
def _applied(transform: Transform | None, x: Array) -> Array:
    return x if transform is None else transform.apply(x)


@jax.jit
def _by_heads_applied(turn: Any, x: Float[Array, "w t g d"]) -> Float[Array, "w t g d"]:
    return jax.vmap(lambda t, x: t.apply(x), (0, 2), 2)(turn, x)


@functools.partial(jax.jit, static_argnames=("groups", "dim"))
def _output_moment(kernel: Float[Array, "i o"], groups: int, dim: int) -> Float[Array, "g d d"]:
    by_head = kernel.reshape(groups, -1, dim, kernel.shape[-1])
    return jax.vmap(learn.second_moment)(by_head.swapaxes(-1, -2))


def _by_head(x: Float[Array, "w t g d"]) -> Float[Array, "g n d"]:
    return x.reshape(-1, *x.shape[2:]).swapaxes(0, 1)


@jax.jit
def _reordered(codes: Any, permutation: Permutation) -> Any:
    """Codes of a weight [out, in] whose outputs are permuted."""
    number = permutation.dim
    return jax.tree.map(
        lambda a: a[permutation.indices] if a.ndim > 1 and len(a) == number else a, codes
    )
