"""One layer of a plan: transforms fitted and merged, weights rounded, stores of the cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from isojax._core.samples import Samples
from isojax.codec import Codec
from isojax.models import ModelConfig
from isojax.models.hooks import INPUTS
from isojax.models.rope import rope_frequencies
from isojax.quantize.fitting import conjugated_by, decoded, fitted, fitted_store, rounded
from isojax.quantize.made import Made, Past
from isojax.quantize.merging import (
    applied,
    applied_by_head,
    by_head,
    check_fp16,
    keeps_length,
    output_moment,
    read_through,
    reordered,
    split_merged,
)
from isojax.quantize.parts import LEARNED_SCALE, NORMS, SITES, Part
from isojax.quantize.stats import VECTORS
from isojax.quantizers import Codes
from isojax.recipes import Recipe
from isojax.transforms import BlockDiagonal, Diagonal, Identity, Permutation, Transform, repeat
from isojax.transforms.base import chained
from isojax.transforms.value_scale import gathered


def make_layer(
    keys: Mapping[str, Key[Array, ""]],
    layer: Mapping[str, Any],
    stats: Mapping[str, Any],
    past: Past,
    *,
    parts: Mapping[str, Part],
    config: ModelConfig,
) -> Made:
    """Apply the parts of a plan to a layer; layers and plans share the programs of the steps.

    Args:
        keys: random keys by place.
        layer: its parameters; the residual stream is transformed already.
        stats: see `Stats`.
        past: earlier transforms and codes.
        parts: of the plan, by place.
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
    turn = maker.turn if "queries_keys" in at else None
    return Made(
        maker.changed, maker.inputs, maker.merged, maker.rounded, maker.codecs, maker.turned, turn,
        maker.keys, maker.stored_values,
    )  # fmt: skip


class _Maker:
    """A layer in progress: its parameters so far, and the transforms of its vectors."""

    def __init__(self, layer: Any, stats: Any, past: Past, config: ModelConfig) -> None:
        self.layer, self.stats, self.codes, self.config = dict(layer), stats, past.codes, config
        self.groups, self.repeats = config.head_groups
        self.residual, self.values, self.turn = past.residual, past.values, past.turn
        self.changed: dict[str, Any] = {}
        self.inputs: dict[str, Codec] = {}
        self.through: dict[str, Transform] = dict(past.through)
        self.merged: dict[str, Transform] = {}
        self.rounded: dict[str, Codes] = {}
        self.codecs: dict[str, Codec] = {}
        self.turned = self.keys = self.stored_values = None

    def turn_values(self, key: Array, part: Any) -> None:
        """Transform the values of each key head, and undo it in o_proj."""
        needs = part.coordinates.needs
        x = self.samples("value") if needs & VECTORS else None
        metric = self.value_metric() if "metric" in needs else None

        learned = self.stats.get("learned:values")
        x = None if x is None else by_head(x)
        samples = Samples(x, metric, learned=learned, size=self.config.head_dim)
        keys = jax.random.split(key, self.groups)
        turn = fitted(keys, samples, Recipe(part.coordinates), 0, heads=True).transform
        keeps_length("values", part.coordinates, turn)
        self.refuse_rounded("values", "v_proj", "o_proj")
        self.write("v_proj", BlockDiagonal(turn, self.groups))
        self.read("o_proj", self.for_all_heads(turn))
        self.turned = self.values = turn

    def turn_input(self, key: Array, site: str, part: Any) -> None:
        """Fit the transform and quantizer of an input, and merge the stages that merge."""
        readers = [name for name, source in INPUTS.items() if source == site]
        coordinates, needs, before = part.recipe.coordinates, part.recipe.needs, self.before(site)
        heads = self.config.head_groups if site == "o_proj" else None
        samples = Samples(None, size=self.layer[site]["kernel"].shape[0], heads=heads)
        if "x" in needs:
            x = applied(before, self.samples(f"input:{site}"))
            samples = dataclasses.replace(samples, x=x)
        if "moment" in needs:
            moment = self.statistic(f"moment:input:{site}")
            moment = moment if before is None else conjugated_by(before, moment)
            samples = dataclasses.replace(samples, moment=moment)
        if "mean" in needs:
            mean = applied(before, self.statistic(f"mean:input:{site}"))
            samples = dataclasses.replace(samples, mean=mean)
        if needs & {"metric", "weight"}:
            weight = jnp.concatenate([self.kernel(name) for name in readers], axis=1)
            metric = jnp.matmul(weight, weight.T, precision="highest")
            samples = dataclasses.replace(samples, metric=metric, weight=weight)
        learned = self.stats.get(f"learned:input:{site}")
        samples = dataclasses.replace(samples, learned=learned)
        if LEARNED_SCALE in needs:
            scale = self.statistic(f"{LEARNED_SCALE}:input:{site}")
            samples = dataclasses.replace(samples, learned_scale=scale)
        codec = fitted(key, samples, part.recipe, part.bits)
        keeps_length(f"input:{site}", coordinates, codec.transform)
        merged, online = split_merged(codec.transform, site)
        for transform in merged:
            self.merge(site, transform)
        if not isinstance(codec.transform, Identity):
            self.refuse_rounded(f"input:{site}", *readers)
            for name in readers:
                self.read(name, codec.transform)
        # transforms merged into the norm, or into the turn of the values, are recorded there
        kept = merged if site == "down_proj" else ()
        self.merged[site] = chained(online.dim, kept)
        self.through[site] = chained(online.dim, [*kept, online])
        if not isinstance(online, Identity) or not part.recipe.levels.exact:
            mean = codec.offset
            mean = None if mean is None else applied(chained(online.dim, merged), mean)
            self.inputs[f"input:{site}"] = Codec(online, codec.quantizer, mean)

    def merge(self, site: str, transform: Transform) -> None:
        """Merge a transform in front of an input into the norm or projection that writes it."""
        scale = gathered(transform)
        check_fp16(f"input:{site}", transform if scale is None else scale)
        if scale is not None:
            self.refuse_rounded(f"input:{site}", "v_proj")
            self.write("v_proj", BlockDiagonal(scale, self.groups))
            self.values = self.turned = scale if self.values is None else self.values @ scale
        elif site in NORMS:
            norm = NORMS[site]
            self.put(norm, {"scale": applied(transform, self.layer[norm]["scale"])})
        elif isinstance(transform, Permutation):
            for name in ("gate_proj", "up_proj"):
                self.write(name, transform)
                if self.codes.get(name) is not None:
                    self.rounded[name] = reordered(self.codes[name], transform)
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
                moment = moment if transform is None else conjugated_by(transform, moment)
        codec, codes = rounded(key, self.kernel(name).T, moment, part)
        kernel = decoded(codec, codes).T.astype(self.layer[name]["kernel"].dtype)
        self.put(name, self.layer[name] | {"kernel": kernel})
        self.codecs[name], self.rounded[name] = codec, codes

    def turn_keys(self, key: Array, part: Any) -> None:
        """Fit the turn of queries and keys, one for all heads; it runs online."""
        needs, size = part.coordinates.needs, self.config.head_dim
        x = self.samples("key").reshape(-1, size) if needs & VECTORS else None
        metric = self.statistic("moment:query").mean(0) if "metric" in needs else None
        samples = Samples(x, metric, learned=self.stats.get("learned:queries_keys"), size=size)
        turn = fitted(key, samples, Recipe(part.coordinates), 0).transform
        keeps_length("queries_keys", part.coordinates, turn)
        self.turn = None if isinstance(turn, Identity) else turn

    def store_keys(self, key: Array, part: Any) -> None:
        """Fit the store of keys."""
        config, recipe = self.config, part.recipe
        x, metric = self.samples("key", recipe), None
        if "metric" in recipe.recipe.needs:
            metric = self.statistic("moment:query")
        if self.turn is not None:
            x = applied(self.turn, x)
            metric = None if metric is None else conjugated_by(self.turn.dual, metric)
        frequency = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        self.keys = fitted_store(key, part, x, frequency, metric)

    def store_values(self, key: Array, part: Any, metric: Array | None) -> None:
        """Fit the store of values."""
        x = self.samples("value", part.recipe)
        if self.values is not None:
            x = applied_by_head(self.values, x)
        self.stored_values = fitted_store(key, part, x, None, metric)

    def value_metric(self) -> Float[Array, "g d d"]:
        """The metric of errors in values: W W^T of o_proj per key head, a mean over its heads."""
        kernel = self.kernel("o_proj")
        if "o_proj" in self.through:
            kernel = read_through(self.through["o_proj"].inverse, kernel)
        return output_moment(kernel, self.groups, self.config.head_dim)

    def before(self, site: str) -> Transform | None:
        """The transform of an input since the point where its statistics are taken."""
        if site in NORMS:
            scale = Diagonal(self.layer[NORMS[site]]["scale"].astype(jnp.float32))
            return scale if self.residual is None else self.residual @ scale
        return self.for_all_heads(self.values) if site == "o_proj" and self.values else None

    def for_all_heads(self, turn: Any) -> Transform:
        """The turn of values of each key head, for the input of o_proj."""
        return BlockDiagonal(repeat(turn, self.repeats), self.groups)

    def samples(self, kind: str, recipe: Any = None) -> Array:
        """Calibration vectors; for a store that needs none, one vector of zeros."""
        if recipe is None or recipe.recipe.needs & VECTORS or recipe.offset != "none":
            x = self.statistic(f"samples:{kind}")
            return x.reshape(-1, x.shape[-1]) if kind.startswith("input") else x
        return jnp.zeros((1, recipe.sinks + 1, self.groups, self.config.head_dim))

    def statistic(self, name: str) -> Array:
        """One of the statistics.

        Raises:
            ValueError: it is missing.
        """
        if name not in self.stats:
            raise ValueError(f"stats must hold {name}: calibrate the model for this plan.")
        return jnp.asarray(self.stats[name]).astype(jnp.float32)

    def kernel(self, name: str) -> Float[Array, "i o"]:
        return self.layer[name]["kernel"].astype(jnp.float32)

    def put(self, name: str, value: Any) -> None:
        self.layer[name] = self.changed[name] = value

    def write(self, name: str, transform: Transform) -> None:
        """Transform the output of a projection."""
        self.put(name, {n: applied(transform, a) for n, a in self.layer[name].items()})

    def read(self, name: str, transform: Transform) -> None:
        """Undo a transform in the input of a projection."""
        kernel = read_through(transform, self.layer[name]["kernel"])
        self.put(name, self.layer[name] | {"kernel": kernel})

    def refuse_rounded(self, place: str, *names: str) -> None:
        rounded = [name for name in names if self.codes.get(name) is not None]
        if rounded:
            raise ValueError(f"{place} must be turned before {rounded[0]} is rounded.")
