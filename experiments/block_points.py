"""What `block_rotation` compares."""

from __future__ import annotations

from typing import NamedTuple

from isojax import learn, quantizers

DOWN = "input:down_proj"
SITES = ("input:q_proj", "input:o_proj", "input:gate_proj", DOWN)
# what is quantized: inputs of the linear layers, and whether weights are, and how
SETTINGS: dict[str, tuple[tuple[str, ...], str]] = {
    "exact": ((), ""),
    "D4": ((DOWN,), ""),
    "W16A4": (SITES, ""),
    "W4A16": ((), "nearest"),
    "W4A16-gptq": ((), "gptq"),
    "W4A4": (SITES, "nearest"),
    "W4A4-gptq": (SITES, "gptq"),
}
# settings whose models are the same but for what they read
SHARED = (("D4",), ("W16A4",), ("W4A16", "W4A4"), ("W4A16-gptq", "W4A4-gptq"))
PERMUTATIONS = {
    "none": None,
    "random": None,
    "massdiff": learn.mass_diff,
    "coactivation": learn.co_activation,
    "zigzag": learn.zigzag,
    "absmax": lambda x, block: learn.absmax_order(x),
}
FORMATS = ("int4", "int4sparse", "int4g64", "fp4", "mxfp4", "nvfp4")


def quantizer_of(kind: str, of_weights: bool) -> quantizers.Quantizer:
    """For weights [out, in] or activations: int4 and fp4 have a scale a row, a token.

    int4g64 has one for 64 neighbours, and int4sparse keeps 1% of the numbers of each token exact.
    Scales of int4 weights are those of least squared error.
    """
    if kind.startswith("int4"):
        rule = "mse" if of_weights else "max"
        per, group = ("group", 64) if kind == "int4g64" else ("token", 0)
        dense = quantizers.absmax(4, per, group, range_rule=rule)
        return quantizers.sparse(dense, 0.01) if kind == "int4sparse" and not of_weights else dense
    makers = {"mxfp4": quantizers.mxfp4, "nvfp4": quantizers.nvfp4}
    return quantizers.fp4("token") if kind == "fp4" else makers[kind]()


class Point(NamedTuple):
    """What is compared.

    Attributes:
        setting: a name of `SETTINGS`.
        format: of numbers, as for `quantizer_of`.
        block: length of the blocks of the Hadamard rotation before down_proj; 0 for no rotation.
        permutation: a name of `PERMUTATIONS`; or `smooth`, SmoothQuant in place of all rotations.
    """

    setting: str
    format: str
    block: int
    permutation: str
