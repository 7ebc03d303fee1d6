"""A quantized model: parameters, online transforms and quantizers, and stores of the cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from isojax._core.pytree import pytree, static
from isojax.codec import Codec
from isojax.kvcache import Cache, Store
from isojax.models import Hooks, ModelConfig, Sidecar, empty_cache
from isojax.models.hooks import Layer
from isojax.quantize.plan import Plan
from isojax.quantizers import Codes, none


@pytree
class ByLayer:
    """Trees that differ by layer, in stacks of trees that are alike.

    Attributes:
        stacks: trees whose leaves lead with the layers of a group.
        group: for each layer the index of its stack, -1 for none.
        place: for each layer its index in the stack.
    """

    stacks: tuple[Any, ...]
    group: tuple[int, ...] = static()
    place: tuple[int, ...] = static()

    def of(self, number: int) -> Any:
        """The tree of a layer, or None."""
        if self.group[number] < 0:
            return None
        return layer_of(self.stacks[self.group[number]], self.place[number])

    def apply(self, layer: Layer, x: Array, do: Callable[[Any, Array], Array]) -> Array:
        """`do(tree of the layer, x)`, or `x` where it has none; `layer` may be traced."""

        def one(stack: Any) -> Callable[[Array], Array]:
            def run(x: Array) -> Array:
                place = jnp.asarray(self.place)[layer]
                return do(layer_of(stack, place), x)

            return run

        runs = [one(stack) for stack in self.stacks]
        if len(runs) == 1 and -1 not in self.group:
            return runs[0](x)
        which = jnp.asarray(self.group)[layer] + 1
        return jax.lax.switch(which, [lambda x: x, *runs], x)


def by_layer(items: Sequence[Any]) -> ByLayer | None:
    """Stack the trees of all layers, None for a layer without one; None where no layer has one."""
    kinds: list[Any] = []
    members: list[list[Any]] = []
    group, place = [], []
    for item in items:
        if item is None:
            group.append(-1)
            place.append(0)
            continue
        kind = kind_of(item)
        if kind not in kinds:
            kinds.append(kind)
            members.append([])
        number = kinds.index(kind)
        group.append(number)
        place.append(len(members[number]))
        members[number].append(item)
    if not members:
        return None
    stacks = tuple(jax.tree.map(lambda *a: jnp.stack(a), *items) for items in members)
    return ByLayer(stacks, tuple(group), tuple(place))


def kind_of(tree: Any) -> Any:
    """The key of trees that can be stacked: structure, shapes and dtypes."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)


@dataclasses.dataclass(frozen=True)
class Origin:
    """The origin of a quantized model, for `save`, `load_quantized` and texts as strings.

    Attributes:
        plan: all applied plans, concatenated; None where numbers of it were traced.
        tokenizer: of the loaded model, or None.
        sidecar: written by `save_checkpoint` in addition.
    """

    plan: Plan | None = Plan()
    tokenizer: Any = dataclasses.field(default=None, compare=False)
    sidecar: Sidecar = dataclasses.field(default=Sidecar(), compare=False)


@pytree
class Quantized:
    """A model with a plan applied; made by `quantize`.

    A pytree. Computations leave `origin` out, so that models of one structure share compiled
    programs.

    Attributes:
        params: the tree of `init_params`, with transforms merged and weights decoded.
        inputs: by input of a projection, its codec: transform and quantizer.
        turn: of queries and keys.
        keys: the store of keys, or None to keep them exact.
        values: the store of values, or None.
        codes: of the quantized weights, by name, [layers] each.
        codecs: of the quantized weights, likewise.
        shared: transforms merged into weights and stored nowhere else: `residual`, and per layer
            `values` and, for each input, the transform merged into the projection that writes it,
            or the identity.
        config: of the decoder.
        origin: plan and files of the original model.
    """

    params: Any
    inputs: dict[str, ByLayer]
    turn: ByLayer | None
    keys: Store | None
    values: Store | None
    codes: dict[str, tuple[Codes | None, ...]]
    codecs: dict[str, tuple[Codec | None, ...]]
    shared: dict[str, Any]
    config: ModelConfig = static()
    origin: Origin = static(default=Origin())

    @property
    def hooks(self) -> Hooks:
        """The online transforms and quantizers as hooks."""

        def activation(name: str, layer: Layer, x: Array) -> Array:
            return self.inputs[name].apply(layer, x, _through) if name in self.inputs else x

        def key(layer: Layer, k: Array) -> Array:
            assert self.turn is not None
            return self.turn.apply(layer, k, lambda t, x: t.apply(x))

        def query(layer: Layer, q: Array) -> Array:
            assert self.turn is not None
            return self.turn.apply(layer, q, lambda t, x: t.dual.apply(x))

        turned = self.turn is not None
        return Hooks(
            activation if self.inputs else None, query if turned else None, key if turned else None
        )

    def cache(self, batch: int, slots: int, dtype: Any = jnp.float32, **kwargs: Any) -> Cache:
        """An empty cache for `slots` tokens in each of `batch` texts; see `empty_cache`."""
        return empty_cache(
            self.config, batch, slots, dtype, keys=self.keys, values=self.values, **kwargs
        )

    def weights_only(self) -> Quantized:
        """The same with exact inputs and cache: only transforms and weights."""

        def exact(codec: Codec) -> Codec:
            return dataclasses.replace(codec, quantizer=none())

        inputs = {
            name: dataclasses.replace(each, stacks=tuple(map(exact, each.stacks)))
            for name, each in self.inputs.items()
        }
        return dataclasses.replace(self, inputs=inputs, keys=None, values=None)

    @property
    def stores(self) -> bool:
        """Whether keys or values are stored in codes."""
        return self.keys is not None or self.values is not None


def _through(codec: Codec, x: Array) -> Array:
    """The transformed and quantized input, in its dtype; its mean is not quantized."""
    y = codec.quantizer.roundtrip(codec.rotate(x))
    y = y if codec.offset is None else y + codec.transform.apply(codec.offset)
    return y.astype(x.dtype)


def layer_of(stacked: Any, number: int | Layer) -> Any:
    """One layer of a tree whose leaves lead with layers."""
    return jax.tree.map(lambda a: a[number], stacked)


def stacked(layers: Sequence[Any]) -> Any:
    """One tree whose leaves lead with layers."""
    return jax.tree.map(lambda *a: jnp.stack(a), *layers)


def put_layer(stacked: Any, layer: Any, number: int | Layer) -> Any:
    """A tree whose leaves lead with layers, with one layer replaced."""
    return jax.tree.map(
        lambda a, b: jax.lax.dynamic_update_index_in_dim(a, b, number, 0), stacked, layer
    )


put_layer_in_place = jax.jit(put_layer, donate_argnums=0)
"""The same, with `stacked` donated."""
