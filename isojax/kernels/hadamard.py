"""Hadamard transforms in one kernel."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax._core.checks import check_last_axis
from isojax.kernels._pallas import over_rows
from isojax.kernels.choice import choose
from isojax.kernels.rotations import rotation, tuning, unsupported_transform
from isojax.kernels.roundtrip import unsupported_array
from isojax.kernels.tile import flat, read, write
from isojax.transforms import Hadamard, Transform


def apply(
    transform: Transform, x: Float[Array, "*batch d"], implementation: str | None = None
) -> Float[Array, "*batch e"]:
    """`transform.apply(x)`, with a kernel for `Hadamard`.

    On a GPU each vector is read and written once. Computed in fp32 and returned in the dtype of
    `x`. Gradients are exact; that for `x` is one more such transform.

    Args:
        transform: any; those without a kernel go by `xla`.
        x: vectors of `transform.dim` numbers.
        implementation: see `choice.choose`.

    Raises:
        ValueError: the last axis of `x` is not `transform.dim` long, or the kernel was asked for
            and does not support the arguments.
    """
    check_last_axis("x", x, transform.dim)
    if isinstance(transform, Hadamard):
        return _apply(transform, x, implementation)
    why = f"a Hadamard, got {type(transform).__name__}."
    return choose(implementation, why, _kernel, _reference, transform, x)


def _reference(transform: Transform, x: Array) -> Array:
    return transform.apply(x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _apply(t: Hadamard, x: Array, implementation: str | None) -> Array:
    why = unsupported_array(x) or unsupported_transform(t, x.dtype)
    return choose(implementation, why, _kernel, _reference, t, x)


def _forward(t: Hadamard, x: Array, implementation: str | None) -> Any:
    return _apply(t, x, implementation), (t, x)


def _backward(implementation: str | None, saved: Any, g: Array) -> Any:
    t, x = saved
    # y = (x signs) H, or (x H^T) signs: one of the two goes through H^T
    turned, other = (x, g) if t.transposed else (g, x)
    bare = Hadamard(jnp.ones_like(t.signs), t.block, True)
    own = jnp.asarray(_apply(bare, turned, implementation))
    by_signs = (own * other.astype(t.signs.dtype)).reshape(-1, t.dim).sum(0)
    if t.transposed:
        back = _apply(Hadamard(t.signs, t.block), g, implementation)
    else:
        back = (own * t.signs).astype(x.dtype)
    return Hadamard(by_signs, t.block, t.transposed), back


_apply.defvjp(_forward, _backward)


def _kernel(t: Hadamard, x: Array, *, interpret: bool) -> Array:
    turn = rotation(t, x.dtype)

    def body(whole: Any) -> Any:
        state = turn.prepare(whole)

        def step(span: Any, tiled: Any, outs: Any) -> None:
            places, mask = turn.lanes.places(span, turn.size)
            write(outs[0], places, mask, turn.forward(state, read(tiled[0], places, mask)))

        return step

    rows = flat(x)
    shape = jax.ShapeDtypeStruct(rows.shape, x.dtype)
    call = functools.partial(over_rows, name="hadamard", interpret=interpret, **tuning(turn.lanes))
    return call(body, [rows], turn.operands, [shape])[0].reshape(x.shape)
