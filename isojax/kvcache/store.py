"""Stores of keys or values: the codec, and the tokens that stay exact."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from isojax._core.checks import check_choice, check_positive
from isojax._core.implementation import IMPLEMENTATIONS
from isojax._core.pytree import pytree, static
from isojax.codec import Codec
from isojax.kvcache.attention import Seen, apply_rope
from isojax.quantizers.codes import Packed
from isojax.transforms import identity

ROPE = ("after", "before")
DTYPES = ("float16", "bfloat16", "float32")


@pytree
class Store:
    """The storage of keys or values; made by `store`. Leaves lead with [layers, kv_heads].

    Attributes:
        codec: one per layer and head, acting on [page, head_dim].
        mean: of keys before the rotary embedding, [layers, kv_heads, head_dim], or None.
        rope: whether keys are stored `after` or `before` the rotary embedding.
        page: tokens encoded together.
        sinks: tokens at the start of the text that stay exact.
        recent: tokens before the query, itself included, that stay exact.
        deferred: tokens appended in one call see each other exact.
        dtype: of the tokens that stay exact.
        scale_dtype: of the scales and offsets in the codes.
        implementation: of the codec's operations.
    """

    codec: Codec
    mean: Float[Array, "*layers g d"] | None
    rope: str = static()
    page: int = static()
    sinks: int = static()
    recent: int = static()
    deferred: bool = static()
    dtype: str = static()
    scale_dtype: str = static()
    implementation: str | None = static(default=None)

    @property
    def tail(self) -> int:
        """Number of last tokens to keep: the `recent` ones, and those whose page is not full."""
        return max(self.recent, self.page - 1)

    def encode(self, x: Float[Array, "b n p g d"]) -> Packed:
        """Codes of pages, of one layer; their leaves lead with [kv_heads, batch, pages]."""
        dtype, how = jnp.dtype(self.scale_dtype), self.implementation
        one = jax.vmap(jax.vmap(lambda c, x: c.store(x, dtype, how), (None, 0)), (None, 0))
        return jax.vmap(one)(self.codec, x.transpose(3, 0, 1, 2, 4))

    def decode(self, packed: Packed, dtype: Any) -> Float[Array, "b s g d"]:
        """The inverse of `encode`, pages joined, in `dtype`."""
        x = self._each(lambda c, p: c.load(p, dtype, self.implementation), packed)
        return jax.lax.collapse(x, 2, 4).transpose(1, 2, 0, 3)

    def decode_rotated(self, packed: Packed, dtype: Any) -> Seen:
        """The same in the codec's coordinates, in the layout of attention.

        Plain JAX by default: one token of 8 texts with 8192 slots of 3 bits takes 0.39 ms on an
        H100, and 0.59 ms with kernels that load values and score keys.
        """
        how, joined = self.implementation, jax.tree.map(lambda a: jax.lax.collapse(a, 2, 4), packed)
        kernels = how in ("triton", "interpret")

        def by_text(found: Any) -> Any:  # [kv_heads, batch, ...] to [batch * kv_heads, ...]
            return jax.tree.map(lambda a: jax.lax.collapse(a.swapaxes(0, 1), 0, 2), found)

        if self.page == 1 and self.mean is None and not kernels:
            columns = jax.vmap(jax.vmap(lambda c, p: c.quantizer.load_columns(p), (None, 0)))
            found = by_text(columns(self.codec, joined))
            if found is not None:
                x, scale = found
                return Seen(x.astype(dtype), columns=True, scale=scale)
        x = self._each(lambda c, p: c.load_rotated(p, dtype, how), packed)
        scores = functools.partial(self._scores, joined) if kernels and self.mean is None else None
        return Seen(by_text(jax.lax.collapse(x, 2, 4)), scores=scores)

    def _scores(self, packed: Packed, rows: Float[Array, "n r e"]) -> Float[Array, "n r s"]:
        """Inner products of rotated queries with keys in codes, pages joined, by head; in fp32."""
        groups, batch = packed.data.shape[:2]
        rows = rows.reshape(batch, groups, *rows.shape[1:]).swapaxes(0, 1)

        def one(c: Codec, q: Array, p: Packed) -> Array:
            same = Codec(identity(q.shape[-1]), c.quantizer)
            return same.scores(q, p, self.implementation)

        found = jax.vmap(jax.vmap(one, (None, 0, 0)))(self.codec, rows, packed)
        return jax.lax.collapse(found.swapaxes(0, 1), 0, 2)

    def _each(self, one: Callable[[Codec, Packed], Any], packed: Packed) -> Any:
        """`one` applied to each head's codec and each of its pages."""
        return jax.vmap(jax.vmap(jax.vmap(one, (None, 0)), (None, 0)))(self.codec, packed)

    def by_head(
        self, name: str, x: Float[Array, "b t h d"], groups: int
    ) -> Float[Array, "b t h e"]:
        """The codec's method `name` on all heads, query heads by the codec of their key head."""
        batch, tokens, heads, dim = x.shape
        x = x.reshape(batch, tokens, groups, heads // groups, dim)
        y = jax.vmap(lambda c, x: getattr(c, name)(x), (0, 2), 2)(self.codec, x)
        return y.reshape(batch, tokens, heads, y.shape[-1])


def mean_at(
    mean: Float[Array, "g d"],
    positions: Int[Array, " t"],
    frequency: Float[Array, " half"] | None,
    rope: str,
) -> Float[Array, "t g d"]:
    """The mean of keys before the rotary embedding, as contained in stored keys; see `store`.

    For values, whose `frequency` is None, it is the same everywhere.
    """
    mean = jnp.broadcast_to(mean, (len(positions), *mean.shape))
    return mean if rope == "before" or frequency is None else apply_rope(mean, positions, frequency)


def store(
    codec: Codec,
    *,
    mean: Float[Array, "layers g d"] | None = None,
    rope: str = "after",
    page: int = 1,
    sinks: int = 0,
    recent: int = 0,
    deferred: bool = False,
    dtype: Any = "float16",
    scale_dtype: Any = "float16",
    implementation: str | None = None,
) -> Store:
    """A store of keys or values.

    A query at position p reads token j exact, not from its codes, if j < sinks, if j > p - recent,
    or if the page of j is not full once p is appended. With `deferred`, p counts as the last token
    before the call, so that a prompt is read exact and quantized afterwards.

    Args:
        codec: leaves lead with [layers, kv_heads], as from `vmap(vmap(make))` of keys; a codec acts
            on pages [page, head_dim], so that granularity `channel` is one scale per channel and
            page (KIVI's keys).
        mean: key means before the rotary embedding. With `rope` "after", the codec sees
            `k - R_j mean` for the key at position j, and `R_j mean`, which depends only on
            the position, is added back; with "before", `R_j^-1 k - mean`.
        rope: `after` or `before`: whether the codec sees keys as attention does, or with the
            rotary embedding undone.
        page: tokens encoded together; 1 for codecs of single vectors.
        sinks: number of first tokens to keep exact.
        recent: number of last tokens to keep exact.
        deferred: quantize after the call that appends.
        dtype: of tokens kept exact, `float16`, `bfloat16` or `float32`.
        scale_dtype: of scales and offsets in the codes, likewise.
        implementation: None, or one of `isojax.IMPLEMENTATIONS`, of the codec's operations.

    Raises:
        ValueError: an argument is none of the allowed values.
    """
    check_choice("rope", rope, ROPE)
    check_positive("page", page)
    for name, value in (("sinks", sinks), ("recent", recent)):
        if value:
            check_positive(name, value)
    names = {"dtype": str(jnp.dtype(dtype)), "scale_dtype": str(jnp.dtype(scale_dtype))}
    for name, value in names.items():
        check_choice(name, value, DTYPES)
    check_choice("implementation", implementation, IMPLEMENTATIONS)
    return Store(
        codec, mean, rope, page, sinks, recent, bool(deferred),
        names["dtype"], names["scale_dtype"], implementation,
    )  # fmt: skip
