"""All that the experimental kernels take from Pallas for Mosaic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array


def over_columns(
    body: Callable[..., None],
    operands: Sequence[Array],
    out: Any,
    width: int,
    scratch: Sequence[Any] = (),
) -> Array:
    """Run `body(columns, operand_refs, out_ref, *scratch_refs)` on tiles of `width` columns.

    Args:
        body: reads and writes the slice `columns` of the last axis.
        operands: arrays, whole.
        out: whose shape [rows, columns] and dtype the result has; `width` divides its columns.
        width: columns a tile, a multiple of the 128 threads of a warpgroup.
        scratch: memory of a tile.
    """

    def kernel(*refs: Any) -> None:
        columns = pl.ds(lax.axis_index("tile") * width, width)
        body(columns, refs[: len(operands)], *refs[len(operands) :])

    return plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct(out.shape, out.dtype),
        grid=(out.shape[1] // width,),
        grid_names=("tile",),
        scratch_types=list(scratch),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
    )(*operands)


def rows_in_shared_memory(rows: int, width: int) -> list[Any]:
    """Room for so many rows of a tile in fp32."""
    return [plgpu.SMEM((rows, width), jnp.float32)]


def zeros(width: int) -> Array:
    """Zeros for a row of a tile, as its threads hold one."""
    layout = plgpu.Layout.WG_STRIDED((width,), width // 128)
    return plgpu.layout_cast(jnp.zeros((width,), jnp.float32), layout)
