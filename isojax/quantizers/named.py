"""Quantizers by name, for those that need no data to be made."""

from __future__ import annotations

from isojax._core.checks import check_choice
from isojax.quantizers.base import Quantizer
from isojax.quantizers.controls import none, zero
from isojax.quantizers.lloyd_max import lloyd_max_gaussian
from isojax.quantizers.uniform import absmax, minmax

NAMES = {
    "absmax": absmax,
    "absmax_mse": lambda bits, by, group: absmax(bits, by, group, range_rule="mse"),
    "minmax": minmax,
    "minmax_mse": lambda bits, by, group: minmax(bits, by, group, range_rule="mse"),
    "kivi": lambda bits, by, group: minmax(bits, by, group, levels="affine"),
    "lloyd_max": lambda bits, by, group: lloyd_max_gaussian(bits, granularity=by, group=group),
    "zero": lambda bits, by, group: zero(),
    "none": lambda bits, by, group: none(),
}


def from_name(name: str, bits: int, granularity: str = "tensor", group: int = 0) -> Quantizer:
    """The quantizer that configurations call `name`.

    `absmax` and `minmax` in their default form, each also with the MSE-optimal clip (`_mse`);
    `kivi`: min-max with a real offset; `lloyd_max`: Gaussian Lloyd-Max levels times the rms;
    `zero` and `none`, which ignore the other arguments.

    Raises:
        ValueError: the name is unknown, or the quantizer allows no such argument.
    """
    return NAMES[check_choice("name", name, NAMES)](bits, granularity, group)
