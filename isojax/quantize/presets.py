"""Published methods as plans, by name.

    plan = preset("quarot", bits=4)
    plan = find_plan("quarot:3")      # the same notation as that of recipes
    plan = find_plan("my.plan")       # a file
    plan = find_plan("weight: minmax bits=4 rounding=gptq; cache: haar/lloyd_max bits=3")
    plan = find_plan("mypackage.mymodule:name")

A preset has the transforms and quantizers of its paper. Other details of the papers (clipped
ranges, order of channels, kernels, group lengths of a family of models) are left out. The first
argument of all presets is the number of bits of everything that the method quantizes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from isojax._core.members import Family
from isojax.quantize.plan import Plan

PLANS = Family("plan", 0)
"""`(bits, ...) -> Plan`."""

GREEDY = "lloyd_max:fitted_channel:greedy"
"""Levels per channel, with bits where they lower the error most."""
CACHES: dict[str, tuple[str, ...]] = {
    # Keys have one range per channel of 32 tokens, and keys of a page that is not full stay exact;
    # values have one range per 32 elements of a token, and the last 32 tokens stay exact.
    "kivi": ("identity/minmax:channel page=32", "identity/minmax:group:32 recent=32"),
    "kvquant": (
        "identity/lloyd_max:fitted_channel:gain=none@sparse rope=before sinks=1",
        "identity/lloyd_max:fitted@sparse sinks=1",
    ),
    "isoquant": ("quaternion_full/lloyd_max",),
    "kvtc-like": (f"pca/{GREEDY}:none offset=pre_rope rope=before sinks=4",),
    "smaq-like": (f"aligned:spectrum=log/{GREEDY} offset=pre_rope sinks=4",),
    "gtq-like": (
        f"identity/{GREEDY} offset=pre_rope sinks=4", "haar/lloyd_max offset=pre_rope sinks=4",
    ),
    # Half the power of the metric, and scales without shrinkage; values are flattened, since sums
    # of them need errors that average out.
    "aligned": (
        f"aligned:0.5/{GREEDY}@unbiased offset=pre_rope sinks=4",
        "haar/lloyd_max@unbiased offset=pre_rope sinks=4",
    ),
    "rotated-cache": ("haar/lloyd_max@unbiased offset=pre_rope sinks=4",),
}  # fmt: skip
"""Recipes of keys and of values, or one for both, without bits."""


def preset(name: str, **arguments: Any) -> Plan:
    """The plan of a published method.

    Args:
        name: of `PLANS`.
        arguments: of the method, such as `bits`.

    Raises:
        ValueError: there is no such method (the message names the nearest), or it has no such
            argument.
    """
    return _made(PLANS.parse(name).member.stage(**arguments))


def find_plan(text: str) -> Plan:
    """The plan named by `text` or written in it.

    Args:
        text: rules (see `isojax.quantize.plan`), where the name of a plan includes its rules, as
            in `quarot; cache: none`; or the path of a file of rules; or a name and its arguments,
            as in `quarot:bits=3`; or `package.module:name`, your own function that returns a plan.

    Raises:
        ValueError: it is none of these; the message, one line, has the nearest names.
        OSError: the file cannot be read.
    """
    text = text.strip()
    if ": " in text or "\n" in text or ";" in text:
        return _with_names(text)
    path = Path(text).expanduser()
    if path.is_file():
        return Plan.load(path)
    if ":" not in text and (len(path.parts) > 1 or path.suffix):
        raise ValueError(f"plan {text}: no such file.")
    return _made(PLANS.parse(text))


def _with_names(text: str) -> Plan:
    """The plan of rules, with names of plans replaced by their rules."""
    rules: list[str] = []
    for line in re.split(r"[\n;]", text):
        rule = line.partition("#")[0].strip()
        named = ": " not in rule and rule.partition(":")[0] in PLANS.members
        rules.append(str(_made(PLANS.parse(rule))).replace("\n", "; ") if named else line)
    return Plan.parse("\n".join(rules))


def _made(stage: Any) -> Plan:
    plan = stage()
    if not isinstance(plan, Plan):
        raise ValueError(f"plan {stage} must return a Plan, got {type(plan).__name__}.")
    return plan


@PLANS.member("quarot")
def _quarot(bits: int = 4) -> Plan:
    """QuaRot (Ashkboos et al. 2024, arXiv 2404.00456).

    Random Hadamard matrices, merged into the residual stream and the values of each head, and
    online on queries and keys and before o_proj (in the paper across heads; here over the whole
    width) and down_proj. Weights by GPTQ, inputs with one scale per token, the cache in groups.
    """
    return Plan.parse(f"""
        residual: hadamard
        values: hadamard
        queries_keys: hadamard
        input: identity/absmax bits={bits}
        input:o_proj: hadamard/absmax bits={bits}
        input:down_proj: hadamard/absmax bits={bits}
        weight: identity/absmax:range=mse bits={bits} rounding=gptq
        cache: identity/minmax:group:128 bits={bits}
    """)


@PLANS.member("spinquant")
def _spinquant(bits: int = 4, steps: int = 100) -> Plan:
    """SpinQuant (Liu et al. 2024, arXiv 2405.16406).

    As QuaRot, with rotations of the residual stream and of values learned on the loss of the model
    (by `calibrate`). Nothing runs before o_proj.
    """
    return Plan.parse(f"""
        residual: learned:steps={steps}
        values: learned:steps={steps}
        queries_keys: hadamard
        input: identity/minmax bits={bits}
        input:down_proj: hadamard/minmax bits={bits}
        weight: identity/absmax:range=mse bits={bits} rounding=gptq
        cache: identity/minmax:group:128 bits={bits}
    """)


@PLANS.member("smoothquant")
def _smoothquant(bits: int = 8, alpha: float = 0.5) -> Plan:
    """SmoothQuant (Xiao et al. 2022, arXiv 2211.10438).

    Part of the range of the inputs after norms is moved into the weights; nothing runs online. One
    scale per token and per output channel.
    """
    return Plan.parse(f"""
        input: identity/absmax bits={bits}
        input:q_proj: smooth:{alpha}/absmax bits={bits}
        input:gate_proj: smooth:{alpha}/absmax bits={bits}
        weight: identity/absmax bits={bits}
    """)


@PLANS.member("mixquant", block="block")
def _mixquant(bits: int = 4, block: int = 32) -> Plan:
    """MixQuant (arXiv 2601.22347), weights by GPTQ.

    Channels before down_proj are permuted so that all blocks have nearly equal mass (merged); then
    each block is rotated online. The residual stream and values are rotated as in QuaRot.
    """
    return Plan.parse(f"""
        residual: hadamard
        values: hadamard
        input: identity/absmax bits={bits}
        input:down_proj: mass_diff@block_hadamard:{block}/absmax bits={bits}
        weight: identity/absmax:range=mse bits={bits} rounding=gptq
    """)


@PLANS.member("gptq")
def _gptq(bits: int = 4, group: int = 0) -> Plan:
    """GPTQ (Frantar et al. 2022, arXiv 2210.17323): only weights.

    One range per output channel, or per `group` of its inputs.
    """
    levels = f"minmax:group:{group}" if group else "minmax"
    return Plan.parse(f"weight: identity/{levels} bits={bits} rounding=gptq")


@PLANS.member("kivi")
def _kivi(bits: int = 2) -> Plan:
    """KIVI (Liu et al. 2024, arXiv 2402.02750): keys per channel, values per token."""
    return _cache("kivi", bits)


@PLANS.member("kvquant")
def _kvquant(bits: int = 3) -> Plan:
    """KVQuant (Hooper et al. 2024, arXiv 2401.18079).

    Levels fitted offline, for keys per channel before the rotary embedding; the 1% of elements with
    the largest error and the first token are exact. Outliers of keys are chosen per token, in the
    paper per channel.
    """
    return _cache("kvquant", bits)


@PLANS.member("isoquant")
def _isoquant(bits: int = 3) -> Plan:
    """IsoQuant (arXiv 2603.28430): pairs of quaternions rotate blocks of four."""
    return _cache("isoquant", bits)


@PLANS.member("kvtc-like")
def _kvtc_like(bits: int = 3) -> Plan:
    """After KVTC (arXiv 2511.01815), with codes of single heads and whole bits.

    Principal axes before the rotary embedding, greedy bits, no norm; in the paper across heads,
    deflated, and with 128 recent tokens exact.
    """
    return _cache("kvtc-like", bits)


@PLANS.member("smaq-like")
def _smaq_like(bits: int = 3) -> Plan:
    """After SMAQ (Spectral Metric-Aware Quantization, 2026): the logarithm of the metric.

    Scalar levels with greedy bits; in the original vector codebooks.
    """
    return _cache("smaq-like", bits)


@PLANS.member("gtq-like")
def _gtq_like(bits: int = 3) -> Plan:
    """After Block-GTQ (arXiv 2606.24033): keys with bits by channel, values rotated.

    Bits by the variance per channel after the rotary embedding; in the paper per pair.
    """
    return _cache("gtq-like", bits)


@PLANS.member("aligned")
def _aligned(bits: int = 3) -> Plan:
    """Keys in the metric of their queries at half its power, values rotated.

    The best method of `isojax kv-cache` at 2 bits, `aligned+haar`; see docs/findings/kv_cache.md.
    Unbiased scales are those of EDEN (Vargaftik et al. 2022, arXiv 2108.08842).
    """
    return _cache("aligned", bits)


@PLANS.member("rotated-cache")
def _rotated_cache(bits: int = 3) -> Plan:
    """The baseline of `aligned`: keys are rotated at random too, with one fixed set of levels.

    After TurboQuant (arXiv 2504.19874), with centred keys and unbiased scales.
    """
    return _cache("rotated-cache", bits)


@PLANS.member("balanced-inputs")
def _balanced_inputs(bits: int = 4) -> Plan:
    """Align, then flatten: a diagonal balances inputs and weights, a Hadamard matrix follows.

    At all four inputs, weights by GPTQ. The diagonal merges, the Hadamard matrix runs online. After
    SmoothRot (arXiv 2506.05413), with root mean squares for peaks; see `isojax linear-layers`.
    """
    return _inputs("balance@hadamard", bits)


@PLANS.member("rotated-inputs")
def _rotated_inputs(bits: int = 4) -> Plan:
    """The baseline of `balanced-inputs`: the Hadamard matrix without the diagonal.

    QuaRot's rotation (arXiv 2404.00456), online at all four inputs, norm scales not folded.
    """
    return _inputs("hadamard", bits)


def _inputs(coordinates: str, bits: int) -> Plan:
    return Plan.parse(f"""
        input: {coordinates}/absmax:range=mse bits={bits}
        weight: identity/absmax:range=mse bits={bits} rounding=gptq
    """)


def _cache(name: str, bits: int) -> Plan:
    recipes = [recipe.partition(" ") for recipe in CACHES[name]]
    return Plan.parse("\n".join(
        f"cache:{side}: {codec} bits={bits} {settings}"
        for side, (codec, _, settings) in (("keys", recipes[0]), ("values", recipes[-1]))
    ))  # fmt: skip
