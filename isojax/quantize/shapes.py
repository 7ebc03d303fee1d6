"""`quantize` on shapes: without weights, statistics and computation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from isojax.models import ModelConfig, param_shapes
from isojax.models.hooks import INPUTS
from isojax.quantize.check_learned import check_learned
from isojax.quantize.parts import TABLES
from isojax.quantize.plan import Plan, Rule
from isojax.quantize.quantize import quantize, unquantized_of
from isojax.quantize.quantized import ByLayer, Quantized
from isojax.quantize.stats import Stats
from isojax.recipes import Samples
from isojax.transforms import Dense

SAMPLES = 1024  # vectors; only the shape is used


def no_weights(config: ModelConfig) -> Quantized:
    """The unquantized model, with shapes as leaves."""
    return unquantized_of(param_shapes(config), config)


def check_plans(plans: Mapping[str, Plan], config: ModelConfig) -> None:
    """Raise `ValueError` for a plan that `calibrate` or `quantize` would refuse; takes seconds.

    Args:
        plans: by name, for messages.
        config: of the model.
    """
    stats = statistics_shapes(config)
    for name, plan in plans.items():
        try:
            check_learned(plan, config.num_hidden_layers)
            quantized_shapes(plan, config, stats)
        except ValueError as error:
            raise ValueError(f"plan {name}: {error}") from None


def quantized_shapes(plan: Plan, model: ModelConfig | Quantized, stats: Stats) -> Quantized:
    """The result of `quantize`, with shapes as leaves.

    Equal layers of a configuration are processed once.

    Args:
        plan: of the model.
        model: a configuration, or a quantized model, of arrays or shapes, to add to.
        stats: of `statistics_shapes`.

    Raises:
        ValueError: as `quantize`, except for missing statistics.
    """
    if isinstance(model, Quantized):
        return _shapes(plan, model, stats)
    number = model.num_hidden_layers
    kinds: dict[str, list[int]] = {}
    for i, given in enumerate(stats.layers):
        learned = {
            n: jax.eval_shape(lambda x: x, x) for n, x in given.items() if n.startswith("learned:")
        }
        kinds.setdefault(repr((plan.layer(i, number), learned)), []).append(i)
    rules = [Rule(p, plan.whole(p)) for p in ("residual", *TABLES) if p in plan.places]
    for kind, (first, *_) in enumerate(kinds.values()):
        parts = plan.layer(first, number)
        rules += [Rule(place, part, str(kind)) for place, part in parts.items()]
    few = no_weights(dataclasses.replace(model, num_hidden_layers=len(kinds)))
    layers = tuple(stats.layers[first] for first, *_ in kinds.values())
    made = _shapes(Plan(tuple(rules)), few, dataclasses.replace(stats, layers=layers))
    kind_of = {i: kind for kind, where in enumerate(kinds.values()) for i in where}
    return _expanded(made, [kind_of[i] for i in range(number)])


def _shapes(plan: Plan, base: Quantized, stats: Stats) -> Quantized:
    make = functools.partial(quantize, plan=plan)
    return jax.eval_shape(make, jax.random.key(0), base, stats=stats)


def _expanded(made: Quantized, like: Sequence[int]) -> Quantized:
    """The shapes of a model of more layers, of which layer i is like layer `like[i]` of another."""
    number = len(like)

    def again(tree: Any, count: int) -> Any:
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct((count, *a.shape[1:]), a.dtype), tree)

    def by_layer(each: ByLayer) -> ByLayer:
        group = tuple(each.group[i] for i in like)
        place = tuple(group[:i].count(own) for i, own in enumerate(group))
        stacks = tuple(again(stack, group.count(i)) for i, stack in enumerate(each.stacks))
        return ByLayer(stacks, group, place)

    def of_layers(name: str, each: Any) -> Any:
        return each if name in TABLES or name == "residual" else tuple(each[i] for i in like)

    return dataclasses.replace(
        made,
        params=made.params | {"layers": again(made.params["layers"], number)},
        inputs={place: by_layer(each) for place, each in made.inputs.items()},
        turn=None if made.turn is None else by_layer(made.turn),
        keys=again(made.keys, number),
        values=again(made.values, number),
        codes={name: of_layers(name, each) for name, each in made.codes.items()},
        codecs={name: of_layers(name, each) for name, each in made.codecs.items()},
        shared={name: of_layers(name, each) for name, each in made.shared.items()},
        config=dataclasses.replace(made.config, num_hidden_layers=number),
    )


def statistics_shapes(config: ModelConfig, stats: Stats | None = None) -> Stats:
    """Shapes of all possible statistics, replaced by those in `stats`.

    Learned transforms are dense matrices by default.
    """
    width, dim, groups = config.hidden_size, config.head_dim, config.num_key_value_heads
    layer: dict[str, Any] = {
        "moment:query": _shape(groups, dim, dim),
        "learned:values": _dense(groups, dim, dim),
        "learned:queries_keys": _dense(dim, dim),
    }
    layer |= {f"samples:{side}": _shape(1, SAMPLES, groups, dim) for side in ("key", "value")}
    for site, size in config.widths.items():
        layer[f"samples:input:{site}"] = _shape(1, SAMPLES, size)
        layer[f"moment:input:{site}"] = _shape(size, size)
        layer[f"mean:input:{site}"] = _shape(size)
        layer[f"learned:input:{site}"] = _dense(size, size)
        layer[f"learned_scale:input:{site}"] = _shape(groups * dim if site == "o_proj" else size)
    given = Stats(({},) * config.num_hidden_layers) if stats is None else stats
    whole = {"learned:residual": _dense(width, width), **given.whole}
    return Stats(tuple({**layer, **own} for own in given.layers), whole)


def input_samples(site: str, made: Quantized, stats: Mapping[str, Any]) -> Samples:
    """Shapes of the samples for the coordinates of an input."""
    layers = made.params["layers"]
    shapes = [layers[name]["kernel"].shape for name, read in INPUTS.items() if read == site]
    width, outputs = shapes[0][1], sum(shape[2] for shape in shapes)

    tied = made.config.head_groups if site == "o_proj" else None

    def make(*arrays: Any) -> Samples:
        return Samples(*arrays, size=width, heads=tied)

    square = _shape(width, width)
    learned = stats[f"learned:input:{site}"]
    scale = stats[f"learned_scale:input:{site}"]
    return jax.eval_shape(
        make, _shape(SAMPLES, width), square, _shape(width, outputs), learned, square,
        _shape(width), scale,
    )  # fmt: skip


def _shape(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _dense(*shape: int) -> Any:
    return jax.eval_shape(Dense, _shape(*shape))
