"""The rate of codes, side information included."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax._core.checks import check_choice
from isojax.metrics.entropy import code_entropy_bits
from isojax.quantizers.codes import Codes
from isojax.quantizers.packing import packed_bytes


def rate_bits(
    codes: Codes,
    coding: str = "fixed",
    *,
    per: str = "tensor",
    bins: int = 4096,
    scale_bits: int = 16,
    offset_bits: int = 16,
) -> Float[Array, ""]:
    """Bits per element: the codes, plus their scales and offsets divided among the elements.

    Args:
        codes: of one array (under `vmap`: of each).
        coding: `fixed` counts packed codes, in whole bytes per vector, `entropy` their empirical
            entropy.
        per: which codes share one entropy code, as in `code_entropy_bits`.
        bins: as in `code_entropy_bits`.
        scale_bits: bits per stored scale, and per outlier (without its index); 8 for scales of
            one byte. A tensor scale has 32.
        offset_bits: bits per stored offset or zero point.

    Raises:
        ValueError: `coding` is unknown, `fixed` is used for codes without a fixed number of bits,
            or `entropy` for codes that are not integers.
    """
    check_choice("coding", coding, ("fixed", "entropy"))
    if coding == "entropy":
        own = code_entropy_bits(codes.values, per, bins)
    elif codes.bits is None:
        raise ValueError("coding must be 'entropy' for unbounded codes (codes.bits is None).")
    else:
        dim = codes.values.shape[-1]
        own = 8 * packed_bytes(dim, codes.bits) / dim
    side = sum(
        min(bits, 8 * part.dtype.itemsize) * part.size
        for part, bits in (
            (codes.scale, scale_bits),
            (codes.offset, offset_bits),
            (codes.tensor_scale, 32),
        )
        if part is not None
    )
    if codes.outliers is not None:
        index = codes.outliers.index
        side += (scale_bits + 8 * index.dtype.itemsize) * index.size
    return jnp.asarray(own + side / codes.values.size, jnp.float32)
