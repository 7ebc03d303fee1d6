"""The compared methods: recipes for keys and for values.

Methods of `isojax.quantize.presets` are taken from there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from isojax._core.checks import nearest
from isojax.kvcache.recipe import StoreRecipe
from isojax.quantize import Plan, Rule
from isojax.quantize.parts import Cached
from isojax.quantize.presets import CACHES, GREEDY

ROTATIONS = (
    "identity", "haar", "hadamard", "quaternion_full", "quaternion_fast", "planar", "rotor",
)  # fmt: skip
BLOCKWISE = ("quaternion_full", "quaternion_fast", "planar")
# Repairs added to a rotation.
REPAIRS = {
    "": "{}/lloyd_max",
    "+pre": "{}/lloyd_max offset=pre_rope",
    "+post": "centre@{}/lloyd_max",
    "+scale": "standardize@{}/lloyd_max",
    "+minmax": "{}/minmax",
    "+fitted": "{}/lloyd_max:fitted",
    "+pre+scale": "standardize@{}/lloyd_max offset=pre_rope",
    "+pre+minmax": "{}/minmax offset=pre_rope",
    "+pre+fitted": "{}/lloyd_max:fitted offset=pre_rope",
    "+mass_diff": "mass_diff@{}/lloyd_max",
    "+pre+mass_diff": "mass_diff@{}/lloyd_max offset=pre_rope",
    "+pre+co_activation": "co_activation@{}/lloyd_max offset=pre_rope",
    "+pre+recent": "{}/lloyd_max offset=pre_rope recent=32",
    "+pre+sinks": "{}/lloyd_max offset=pre_rope sinks=4",
    "+pre+sinks+unbiased": "{}/lloyd_max@unbiased offset=pre_rope sinks=4",
}
# In the metric of the queries, or of the output projection, with greedy bits; and the same with one
# ingredient left out.
ALIGNED = f"aligned/{GREEDY} offset=pre_rope sinks=4"
UNBIASED, FLAT = CACHES["aligned"]
LEARNED = REPAIRS["+pre+sinks+unbiased"].format("learned_rotation")
FITTED = "pca/lloyd_max:fitted_channel offset=pre_rope"
METHODS: dict[str, tuple[str, ...]] = {
    "kivi": CACHES["kivi"],
    # KIVI with fewer side bytes: pages of 64 tokens, of which the last one stays exact while it is
    # not full (longer pages have fewer ranges, and more exact keys: for 1024 tokens 64 is best);
    # one range per token of the values, none exact.
    "kivi+lean": ("identity/minmax:channel page=64", "identity/minmax"),
    # Of 64 elements with one range, that of largest error is stored exact, 1.6% (KVQuant: 1%).
    "kivi+sparse": (
        "identity/minmax:channel@sparse page=64", "identity/minmax:group:64@sparse recent=32",
    ),
    "minmax": ("identity/minmax",),
    **{
        t + name: (text.format(t),)
        for name, text in REPAIRS.items()
        for t in ROTATIONS
        if t in BLOCKWISE or "mass_diff@" not in text and "co_activation@" not in text
    },
    "aligned": (ALIGNED,),
    "aligned-centre": (f"aligned/{GREEDY} sinks=4",),
    "aligned-metric": (f"aligned:0.0/{GREEDY} offset=pre_rope sinks=4",),
    "aligned-bits": ("aligned/lloyd_max:fitted_channel offset=pre_rope sinks=4",),
    "aligned-gain": (f"aligned/{GREEDY}:none offset=pre_rope sinks=4",),
    "aligned-sinks": (f"aligned/{GREEDY} offset=pre_rope",),
    # Learned rotations in place of random ones.
    **{
        f"learned{name}": (REPAIRS[name].format("learned_rotation"),)
        for name in ("+pre+sinks", "+pre+sinks+unbiased")
    },
    # Like published systems; the last three centred before RoPE and with exact sinks, as the others
    # here.
    **{name: CACHES[name] for name in ("kvquant", "smaq-like", "kvtc-like", "gtq-like")},
    "aligned+half": (f"aligned:0.5/{GREEDY} offset=pre_rope sinks=4",),
    "aligned+unbiased": (UNBIASED,),
    "aligned+haar": CACHES["aligned"],
    "aligned+haar-centre": (UNBIASED, FLAT.replace(" offset=pre_rope", "")),
    "aligned+learned": (UNBIASED, LEARNED),
    "pca+pre": (FITTED,),
    "pca+before": (FITTED + " rope=before",),
    "pca+gaussian": ("pca/lloyd_max:gaussian offset=pre_rope",),
}  # fmt: skip
METHODS.pop("identity+minmax")  # that is minmax
DEFAULT = (
    "kivi", "kivi+lean", "kivi+sparse", "minmax", *ROTATIONS,
    *(f"{t}{r}" for t in ("haar", "quaternion_full") for r in REPAIRS if r and t + r in METHODS),
    *(f"{t}+pre" for t in ROTATIONS if t not in ("haar", "quaternion_full")), "pca+pre",
    *(m for m in METHODS if m == "aligned" or m.startswith("aligned-")),
    "aligned+half", "aligned+unbiased",
    "aligned+haar", "aligned+haar-centre", "aligned+learned", "learned+pre+sinks",
    "learned+pre+sinks+unbiased", "smaq-like", "kvtc-like", "gtq-like",
)  # fmt: skip
DRAWN = "{}/lloyd_max offset=pre_rope sinks=4"
"""The method for user coordinates: centred, sinks exact, fixed levels."""


def recipes(name: str, sinks: int = 0, recent: int = 0) -> tuple[StoreRecipe, StoreRecipe]:
    """The stores of keys and values of a method, with at least these exact tokens.

    Args:
        name: of `METHODS`; or your own recipe for both, or two joined by "|".
        sinks: first tokens.
        recent: last tokens.

    Raises:
        ValueError: there is no such method, and it is no recipe.
    """
    if name not in METHODS and "/" not in name:
        raise ValueError(
            f"no method {name!r}; the nearest are {', '.join(nearest(name, METHODS))}; or give a "
            "recipe such as 'haar/lloyd_max sinks=4', or two for keys and values joined by '|'."
        )
    texts: Sequence[str] = METHODS.get(name) or name.split("|")
    if len(texts) > 2:
        raise ValueError(f"methods: at most two recipes, for keys and values; got {name!r}.")
    found = [StoreRecipe.parse(text) for text in texts]
    keys, values = (
        dataclasses.replace(r, sinks=max(r.sinks, sinks), recent=max(r.recent, recent))
        for r in (found[0], found[-1])
    )
    return keys, values


def plan(pair: tuple[StoreRecipe, StoreRecipe], target: str, bits: int) -> Plan:
    """Keys, values or both quantized."""
    places = ("cache:keys", "cache:values")
    return Plan(tuple(
        Rule(place, Cached(recipe, bits))
        for place, side, recipe in zip(places, "KV", pair, strict=True)
        if side in target
    ))  # fmt: skip


def words(pair: tuple[StoreRecipe, StoreRecipe], target: str) -> dict[str, object]:
    """The keys of rows for a pair: the words of the first, and of the values where they differ."""
    keys, values = pair
    first, second = (keys if "K" in target else values), (values if "V" in target else keys)
    found = first.words
    return found | {f"value_{k}": v for k, v in second.words.items() if found.get(k) != v}
