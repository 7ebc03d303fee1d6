"""The methods that `kv_cache` compares, as recipes for keys and for values."""

from __future__ import annotations

import dataclasses
from typing import Any

from isojax.kvcache.recipe import BLOCKS, Recipe

ROTATIONS = (
    "identity", "haar", "hadamard", "quaternion_full", "quaternion_fast", "planar", "rotor",
)  # fmt: skip
REPAIRS: dict[str, dict[str, Any]] = {
    "": {},
    "+pre": {"offset": "channel_pre_rope"},
    "+post": {"offset": "channel_post_rope"},
    "+scale": {"scale": "channel"},
    "+minmax": {"codebook": "minmax"},
    "+fitted": {"codebook": "fitted"},
    "+pre+scale": {"offset": "channel_pre_rope", "scale": "channel"},
    "+pre+minmax": {"offset": "channel_pre_rope", "codebook": "minmax"},
    "+pre+fitted": {"offset": "channel_pre_rope", "codebook": "fitted"},
    "+massdiff": {"permutation": "mass_diff"},
    "+pre+massdiff": {"offset": "channel_pre_rope", "permutation": "mass_diff"},
    "+pre+coactivation": {"offset": "channel_pre_rope", "permutation": "co_activation"},
    "+pre+recent": {"offset": "channel_pre_rope", "recent": 32},
    "+pre+sinks": {"offset": "channel_pre_rope", "sinks": 4},
    "+pre+sinks+unbiased": {"offset": "channel_pre_rope", "sinks": 4, "gain": "unbiased"},
}


def both(recipe: Recipe) -> tuple[Recipe, Recipe]:
    """The same for keys and values."""
    return recipe, recipe


# Keys have a range for each channel of 32 tokens, and those whose page is not full stay exact;
# values have one for 32 numbers of a token, and the last 32 tokens stay exact (KIVI, residual 32).
KIVI = (
    Recipe(codebook="minmax_channel", page=32),
    Recipe(codebook="minmax", group=32, recent=32),
)
# The same with less aside: pages of 64 tokens, of which the last one stays exact while it is not
# full (longer pages have fewer ranges, and more exact keys: of 1024 tokens 64 cost least); one
# range for each token of the values, none exact.
LEAN = (Recipe(codebook="minmax_channel", page=64), Recipe(codebook="minmax"))
# The largest error of 64 numbers with a range is stored apart, 1.6% (after KVQuant's 1%).
SPARSE = (
    Recipe(codebook="minmax_channel", page=64, sparse=0.01),
    Recipe(codebook="minmax", group=64, recent=32, sparse=0.01),
)
CENTRED_PCA = Recipe("pca", offset="channel_pre_rope", codebook="fitted_channel")
# In the metric of the queries, or of the output projection; bits where they matter; and the same
# with one ingredient left out.
ALIGNED = Recipe(
    "aligned", offset="channel_pre_rope", codebook="fitted_channel", allocation="greedy", sinks=4
)
LEFT_OUT: dict[str, dict[str, Any]] = {
    "": {},
    "-centre": {"offset": "none"},
    "-metric": {"power": 0.0},
    "-bits": {"allocation": "even"},
    "-gain": {"gain": "none"},
    "-sinks": {"sinks": 0},
}
# Half the power of the metric, and scales without shrinkage; then values flattened, since what is
# read in sums wants errors that average out.
HALF = dataclasses.replace(ALIGNED, power=0.5)
UNBIASED = dataclasses.replace(HALF, gain="unbiased")
FLAT = Recipe("haar", **REPAIRS["+pre+sinks+unbiased"])
# Like published systems, as far as codes of one head and whole bits go; centred before RoPE, and
# with exact sinks, as all that they stand beside. SMAQ: the logarithm of the metric. KVTC (arXiv
# 2511.01815): principal axes before the rotary embedding, bits where they matter, no norm; there
# across heads, deflated, and with 128 recent tokens. Block-GTQ (arXiv 2606.24033): keys as they
# are, with bits by the variance of each channel after RoPE, there of each pair; values rotated.
GREEDY = {"codebook": "fitted_channel", "allocation": "greedy", "sinks": 4}
CENTRED = REPAIRS["+pre"]
SMAQ = dataclasses.replace(ALIGNED, spectrum="log")
KVTC = Recipe("pca", rope="before", gain="none", **CENTRED, **GREEDY)
GTQ = (Recipe(**CENTRED, **GREEDY), Recipe("haar", **REPAIRS["+pre+sinks"]))
# Rotations learned from a random one in place of it.
LEARNED = {
    name: Recipe("learned_rotation", **REPAIRS[name])
    for name in ("+pre+sinks", "+pre+sinks+unbiased")
}
METHODS: dict[str, tuple[Recipe, Recipe]] = {
    "kivi": KIVI,
    "kivi+lean": LEAN,
    "kivi+sparse": SPARSE,
    "minmax": both(Recipe(codebook="minmax")),
    **{
        t + name: both(Recipe(t, **r))
        for name, r in REPAIRS.items()
        for t in ROTATIONS
        if t in BLOCKS or "permutation" not in r
    },
    **{f"aligned{name}": both(dataclasses.replace(ALIGNED, **r)) for name, r in LEFT_OUT.items()},
    **{f"learned{name}": both(recipe) for name, recipe in LEARNED.items()},
    "smaq-like": both(SMAQ),
    "kvtc-like": both(KVTC),
    "gtq-like": GTQ,
    "aligned+half": both(HALF),
    "aligned+unbiased": both(UNBIASED),
    "aligned+haar": (UNBIASED, FLAT),
    "aligned+haar-centre": (UNBIASED, dataclasses.replace(FLAT, offset="none")),
    "aligned+learned": (UNBIASED, LEARNED["+pre+sinks+unbiased"]),
    "pca+pre": both(CENTRED_PCA),
    "pca+before": both(dataclasses.replace(CENTRED_PCA, rope="before")),
    "pca+gaussian": both(dataclasses.replace(CENTRED_PCA, codebook="gaussian")),
}
METHODS.pop("identity+minmax")  # that is minmax
DEFAULT = (
    "kivi", "kivi+lean", "kivi+sparse", "minmax", *ROTATIONS,
    *(f"{t}{r}" for t in ("haar", "quaternion_full") for r in REPAIRS if r and t + r in METHODS),
    *(f"{t}+pre" for t in ROTATIONS if t not in ("haar", "quaternion_full")), "pca+pre",
    *(f"aligned{name}" for name in LEFT_OUT), "aligned+half", "aligned+unbiased",
    "aligned+haar", "aligned+haar-centre", "aligned+learned",
    *(f"learned{name}" for name in LEARNED), "smaq-like", "kvtc-like",
    "gtq-like",
)  # fmt: skip


def recipes(name: str, target: str, sinks: int, recent: int) -> list[Recipe | None]:
    """How a method stores keys and values, None where `target` leaves them as they are.

    At least so many first and last tokens stay exact.
    """
    return [
        dataclasses.replace(r, sinks=max(r.sinks, sinks), recent=max(r.recent, recent))
        if side in target
        else None
        for side, r in zip("KV", METHODS[name], strict=True)
    ]


def words(keys: Recipe | None, values: Recipe | None) -> dict[str, Any]:
    """How rows name a pair of recipes: the words of one, and where they differ, of the values.

    Rows are older than `spectrum`, and say nothing of the one that all had.
    """
    first, second = (dataclasses.asdict(r) for r in (keys or values, values or keys) if r)
    found = first | {f"value_{k}": v for k, v in second.items() if v != first[k]}
    return {k: v for k, v in found.items() if (k, v) != ("spectrum", "power")}


def random(name: str) -> bool:
    """Whether a seed changes the method."""
    return any(recipe.random for recipe in METHODS[name])
