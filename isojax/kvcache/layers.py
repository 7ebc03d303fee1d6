"""Arrays of one layer, or of all layers in one stack, written in place.

A stack carried by a loop over layers is written in place. Passed to the loop slice by slice and
collected again, all of it would be copied at every step.
"""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array, Int


def append(
    old: Array, new: Array, start: Int[Array, ""] | int, axis: int, layer: Int[Array, ""] | None
) -> Array:
    """`old` with `new` at index `start` of an axis; the index is clipped so that `new` fits.

    Args:
        old: of one layer, or of all if `layer` is set.
        new: of one layer.
        start: first index.
        axis: of one layer.
        layer: index of the layer, or None.
    """
    index: list[Any] = [0] * new.ndim
    index[axis] = start
    if layer is None:
        return jax.lax.dynamic_update_slice(old, new, index)
    return jax.lax.dynamic_update_slice(old, new[None], [layer, *index])


def at_layer(tree: Any, layer: Int[Array, ""] | None) -> Any:
    """One layer of stacks of all layers; the whole tree if `layer` is None."""
    if layer is None:
        return tree
    return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, layer, 0, keepdims=False), tree)
