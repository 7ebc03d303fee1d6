"""Entropy-coded uniform quantization (ECSQ): one step, any integer, an ideal entropy coder.

At high rate no scalar quantizer of equal entropy is better (Gish and Pierce 1968).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax._core.checks import check_above_zero, check_not_empty, check_positive, compute_dtype
from isojax._core.finite import finite
from isojax._core.pytree import pytree
from isojax.metrics.entropy import code_entropy_bits
from isojax.quantizers.base import Quantizer
from isojax.quantizers.codes import Codes

FINEST = 2.0**-24
BISECTIONS = 32


@pytree
class ECSQ(Quantizer):
    """Codes `round(y / step)`, unbounded; the step belongs to the quantizer, not to the codes.

    `bits` of the codes is None: their rate is their entropy, see `rate_bits`.
    """

    step: Float[Array, ""]

    def encode(self, y: Float[Array, "*batch d"]) -> Codes:  # noqa: D102
        v = y.astype(compute_dtype(y.dtype, "y"))
        return Codes(_codes(v, self.step.astype(v.dtype)))

    def decode(self, codes: Codes) -> Float[Array, "*batch d"]:  # noqa: D102
        return codes.values.astype(self.step.dtype) * self.step


def ecsq(step: float | Float[Array, ""]) -> ECSQ:
    """An entropy-coded uniform quantizer of the given `step`, in the units of its input.

    Raises:
        ValueError: `step` is a Python number that is not above zero and finite.
    """
    check_above_zero("step", step)
    return ECSQ(jnp.asarray(step, float))


def ecsq_for_rate(
    samples: Float[Array, "..."],
    rate_bits: int | float | Float[Array, ""],
    per: str = "tensor",
    bins: int = 4096,
) -> ECSQ:
    """The ECSQ whose codes of `samples` have an entropy of `rate_bits` per element.

    One step serves all elements; it is found by 32 bisections between 4 max|samples| and
    2^-26 times that. Traced: works under `jit`, and under `vmap` over samples or rates.

    Args:
        samples: vectors to fit the step to.
        rate_bits: bits per element, above zero and well below log2(bins).
        per: which codes share one entropy code, as in `code_entropy_bits`: `tensor`, `token` or
            `channel`.
        bins: as in `code_entropy_bits`.

    Raises:
        ValueError: `per` is none of these, `bins` is below one, `rate_bits` is a Python number out
            of its range, or `samples` are empty, or not finite (where traced, the step is NaN).
    """
    check_rate(rate_bits, bins)

    def entropy(v: Array, step: Array) -> Array:
        return code_entropy_bits(_codes(v, step), per, bins)

    return ECSQ(step_for_rate(samples, rate_bits, entropy))


def check_rate(rate_bits: int | float | Array, bins: int, spare: int = 0) -> None:
    """Raise `ValueError` for a Python number that is not above 0 and below log2(bins) - spare."""
    most = math.log2(check_positive("bins", bins)) - spare
    if isinstance(rate_bits, int | float) and not 0 < rate_bits < most:
        below = f"log2({bins}) - {spare}" if spare else f"log2({bins})"
        raise ValueError(f"rate_bits must be above 0 and below {below}, got {rate_bits!r}.")


def step_for_rate(
    samples: Array, rate_bits: int | float | Array, entropy: Callable[[Array, Array], Array]
) -> Float[Array, ""]:
    """The finest step at which `entropy(samples, step)` is not above `rate_bits`."""
    v = samples.astype(compute_dtype(samples.dtype, "samples"))
    check_not_empty("samples", samples)
    peak = finite("samples", jnp.max(jnp.abs(v)))
    top = jnp.log(jnp.where(peak == 0, 1, peak)) + math.log(4)

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        too_fine = entropy(v, jnp.exp(middle)) > rate_bits
        return jnp.where(too_fine, middle, low), jnp.where(too_fine, high, middle)

    start = top + jnp.log(jnp.asarray(FINEST / 4, v.dtype)), top
    return jnp.exp(jax.lax.fori_loop(0, BISECTIONS, halve, start)[1])


def _codes(v: Array, step: Array) -> Array:
    return jnp.round(v / step).astype(jnp.int32)
