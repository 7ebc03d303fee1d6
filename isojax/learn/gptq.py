"""GPTQ: weights rounded channel by channel; later channels compensate the errors of earlier ones.

Frantar et al. 2023 (arXiv 2210.17323). For y = x @ w and H = 2 mean(x x^T), the error of the output
is tr(dw^T H dw) / 2 per token. GPTQ is optimal among roundings that correct a channel by a linear
function of the errors before it (Chee et al. 2023, QuIP, arXiv 2307.13304, theorem 6). They show
that it equals the form computed here: with H = (F + I) D (F + I)^T, F strictly upper triangular,

    w_hat[i] = round(w[i] + sum_j<i F[j, i] (w[j] - w_hat[j])),    tr(dw^T H dw) = sum_i D_i |r_i|^2

where r_i is the rounding error of channel i. That is one Cholesky factor of H, and no inverse.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from isojax._core.axes import largest_divisor
from isojax._core.checks import check_positive, compute_dtype
from isojax._core.members import ROUNDINGS
from isojax.quantizers import Codes, Quantizer


@ROUNDINGS.member("nearest", fitted=())
def nearest(
    w: Float[Array, "i o"], hessian: Float[Array, "i i"] | None, quantizer: Quantizer
) -> Codes:
    """Codes of `w.T` [out, in], rounded to the nearest level."""
    return quantizer.encode(w.T)


@ROUNDINGS.member("gptq", fitted=("moment",))
def gptq(
    w: Float[Array, "i o"],
    hessian: Float[Array, "i i"],
    quantizer: Quantizer,
    *,
    damping: float | Float[Array, ""] = 0.01,
    act_order: bool = False,
    static_groups: bool = True,
    block: int = 128,
) -> Codes:
    """Codes of `w.T` [out, in] with a small error at the output; `decode(codes).T` is the weight.

    The quantizer acts along the input axis: granularity `token` is one scale per output channel,
    `group` one per `group` of its inputs. Scales are those of `encode(w.T)`, unless groups are not
    static. Any quantizer with `encode_like` is allowed, except `Sparse` and lattices.

    An input channel unseen in calibration (a zero on the diagonal) is rounded to nearest, and so is
    all of `w` for a diagonal Hessian. Computed in fp32 (fp64 where `w` is), over layers by `vmap`.
    Compile it by `jax.jit`, with the last three arguments static.

    Args:
        w: the weight of `x @ w`.
        hessian: of the layer's input, see `gram`; any positive multiple gives the same codes.
        quantizer: see above; its leaves are traced.
        damping: added to the diagonal of the Hessian, as a share of its mean.
        act_order: round channels by descending diagonal of the Hessian, instead of in order.
        static_groups: take the scales of a group from `w`; else from the group's weights as
            corrected when its first channel is reached, as in the paper. No effect on other
            granularities.
        block: most channels rounded before their errors are passed to later blocks; it is lowered
            to a divisor of the number of channels. Changes only the speed.

    Raises:
        ValueError: the Hessian has another shape; it is not finite or has a negative eigenvalue
            (where traced, scales are NaN); `damping` is a Python number that is negative or not
            finite; `block` is below one; `static_groups` is False and groups are not contiguous
            (`act_order`) or have scales relative to a tensor scale (`nvfp4()`, not `nvfp4(t)`); or
            the quantizer keeps outliers or rounds elements together, as lattices do.
    """
    inputs, outputs = w.shape
    if hessian.shape != (inputs, inputs):
        raise ValueError(f"hessian must have shape {(inputs, inputs)}, got {hessian.shape}.")
    if isinstance(damping, int | float) and not 0 <= damping < math.inf:
        raise ValueError(f"damping must be at least 0 and finite, got {damping!r}.")
    dtype = compute_dtype(w.dtype, "w")
    w, hessian = w.astype(dtype), hessian.astype(dtype)
    codes, kind = quantizer.encode(w.T), type(quantizer).__name__
    if codes.outliers is not None:
        raise ValueError(f"quantizer must round at given scales, without outliers, got {kind}.")
    if quantizer.together > 1:
        raise ValueError(
            f"quantizer must round each element independently, got {kind}, which rounds "
            f"{quantizer.together} together."
        )
    grouped = codes.scale is not None and codes.scale.ndim > w.ndim
    renewed = grouped and not static_groups
    if renewed and act_order:
        raise ValueError(
            "static_groups must be True with act_order, which mixes groups; got False."
        )
    if renewed and codes.tensor_scale is not None:
        raise ValueError("static_groups must be True with a stored tensor scale; got False.")

    order = jnp.argsort(-jnp.diagonal(hessian)) if act_order else jnp.arange(inputs)
    feedback = _feedback(hessian[order][:, order], damping)
    # a Cholesky factor hides an infinity on the diagonal
    good = jnp.all(jnp.isfinite(feedback)) & jnp.all(jnp.isfinite(hessian))
    if not isinstance(good, Tracer) and not good:
        raise ValueError(
            "hessian must be finite and, once damped, positive definite; "
            f"got one without a Cholesky factor at damping {damping}."
        )
    block = min(check_positive("block", block), inputs)
    size = largest_divisor(inputs, block)
    if renewed and codes.scale is not None:
        size = inputs // codes.scale.shape[-2]

    def round_block(carry: Any, part: Any) -> Any:
        codes, errors = carry
        number, channels, rows, taken = part
        moved = jnp.matmul(taken, errors, precision="highest")
        taken = jax.lax.dynamic_slice_in_dim(taken, number * size, size, 1)
        if renewed:
            # the optimum for all of the group, given only the errors so far
            best = solve_triangular(taken, moved, lower=True, unit_diagonal=True)
            codes = _renew(quantizer, codes, rows + best, number)

        def round_row(own: Array, part: Any) -> tuple[Array, Array]:
            place, channel, row, moved, taken = part
            corrected = row + moved + jnp.matmul(taken, own, precision="highest")
            code, row_hat = _round(quantizer, codes, corrected, channel)
            return jax.lax.dynamic_update_index_in_dim(own, row - row_hat, place, 0), code

        parts = jnp.arange(size), channels, rows, moved, taken
        own, values = jax.lax.scan(round_row, jnp.zeros_like(rows), parts)
        errors = jax.lax.dynamic_update_slice_in_dim(errors, own, number * size, 0)
        return (codes, errors), values

    blocks = inputs // size
    parts = (
        jnp.arange(blocks),
        order.reshape(blocks, size),
        w[order].reshape(blocks, size, outputs),
        feedback.T.reshape(blocks, size, inputs),
    )
    (codes, _), values = jax.lax.scan(round_block, (codes, jnp.zeros_like(w)), parts)
    values = values.reshape(inputs, outputs)[jnp.argsort(order)]
    codes = dataclasses.replace(codes, values=values.T)
    return codes.unless(good) if isinstance(good, Tracer) else codes


def _feedback(hessian: Array, damping: Any) -> Array:
    """F, strictly upper triangular, of the damped Hessian (F + I) D (F + I)^T."""
    diagonal = jnp.diagonal(hessian)
    added = jnp.where(diagonal == 0, 1, damping * jnp.mean(diagonal))
    factor = jnp.linalg.cholesky((hessian + jnp.diag(added))[::-1, ::-1])[::-1, ::-1]
    return jnp.triu(factor / jnp.diagonal(factor)[None], 1)


def _round(quantizer: Quantizer, codes: Codes, row: Array, channel: Array) -> tuple[Array, Array]:
    """Codes of the weights of one input channel, and their values."""

    def spread(column: Array) -> Array:
        return jnp.broadcast_to(column[:, None], codes.values.shape)

    def pick(array: Array) -> Array:
        return jax.lax.dynamic_index_in_dim(array, channel, 1, keepdims=False)

    # a quantizer takes whole vectors; XLA fuses `pick` with it and computes only the column
    code = pick(quantizer.encode_like(spread(row), codes).values)
    return code, pick(quantizer.decode(dataclasses.replace(codes, values=spread(code))))


def _renew(quantizer: Quantizer, codes: Codes, rows: Array, group: Array) -> Codes:
    """`codes` with the scales of one group taken from its `rows`."""
    new = quantizer.encode(rows.T)

    def put(whole: Array | None, part: Array | None) -> Array | None:
        if whole is None or part is None:
            return None
        return jax.lax.dynamic_update_slice_in_dim(whole, part, group, 1)

    return dataclasses.replace(
        codes, scale=put(codes.scale, new.scale), offset=put(codes.offset, new.offset)
    )
