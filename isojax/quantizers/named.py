"""Quantizers by name, for those that need no data to be made."""

from __future__ import annotations

from isojax._core.checks import check_choice
from isojax.quantizers.base import Quantizer
from isojax.quantizers.controls import none, zero
from isojax.quantizers.float4 import fp4, mxfp4, nvfp4
from isojax.quantizers.float8 import fp8
from isojax.quantizers.lloyd_max import lloyd_max_gaussian
from isojax.quantizers.nf4 import nf4
from isojax.quantizers.uniform import absmax, minmax

NAMES = {
    "absmax": absmax,
    "absmax_mse": lambda bits, by, group: absmax(bits, by, group, range_rule="mse"),
    "minmax": minmax,
    "minmax_mse": lambda bits, by, group: minmax(bits, by, group, range_rule="mse"),
    "kivi": lambda bits, by, group: minmax(bits, by, group, levels="affine"),
    "lloyd_max": lambda bits, by, group: lloyd_max_gaussian(bits, granularity=by, group=group),
    "fp4": lambda bits, by, group: fp4(by, group),
    "nf4": lambda bits, by, group: nf4(by, group),
    "fp8": lambda bits, by, group: fp8("e4m3", by, group),
    "fp8_e5m2": lambda bits, by, group: fp8("e5m2", by, group),
    "mxfp4": lambda bits, by, group: mxfp4(),
    "nvfp4": lambda bits, by, group: nvfp4(),
    "zero": lambda bits, by, group: zero(),
    "none": lambda bits, by, group: none(),
}
BITS = {"fp4": 4, "nf4": 4, "mxfp4": 4, "nvfp4": 4, "fp8": 8, "fp8_e5m2": 8}


def from_name(name: str, bits: int, granularity: str = "tensor", group: int = 0) -> Quantizer:
    """The quantizer that configurations call `name`.

    `absmax` and `minmax` in their default form, each also with the MSE-optimal clip (`_mse`);
    `kivi`: min-max with a real offset; `lloyd_max`: Gaussian Lloyd-Max levels times the rms;
    `fp4`, `nf4`, `mxfp4` and `nvfp4`, which have 4 bits, the latter two with their own blocks
    whatever the granularity; `fp8` (E4M3) and `fp8_e5m2`, which have 8; `zero` and `none`, which
    ignore the other arguments.

    Raises:
        ValueError: the name is unknown, or the quantizer allows no such argument.
    """
    check_choice("name", name, NAMES)
    if name in BITS:
        check_choice("bits", bits, (BITS[name],))
    return NAMES[name](bits, granularity, group)
