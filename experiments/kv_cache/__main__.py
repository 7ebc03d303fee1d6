r"""The KV cache: which coordinates lose least when keys and values are stored in 2 to 4 bits?

    isojax kv-cache
    isojax kv-cache --model Qwen/Qwen2.5-0.5B --text wikitext-2 \
        --calibration-text wikitext-2:validation --bits 3 --out results/kv

Every window of text is read through the packed cache itself: keys and values of all layers are
encoded, packed, unpacked and decoded, scales in fp16, and every position reads its own token and
all before it from the codes (except first or last tokens that a method keeps exact). Nothing is
deferred: keys are coded during the prompt too. `delta_nll` is against the same window with an exact
cache.

Every window has separate random rotations, so that the spread over windows is over texts and seeds.
Means, scales, axes and codebooks are fitted on the calibration text.

The recipes of all methods are in `experiments/kv_cache/methods.py`.

Expected at 3 bit, keys and values, 8 windows of WikiText-2, fitted on 8 of its validation split,
nats per token: SmolLM2-135M haar 0.28, haar+pre 0.19, quaternion_full 1.1, kivi (4.5 bit) 0.03,
aligned 0.11; Qwen2.5-Coder-0.5B, whose keys have a bias, haar 2.8 at a cosine of 0.984,
haar+pre 0.10, quaternion_full+pre 0.30, kivi 0.02, aligned 0.01. At 2 bit haar+pre+sinks loses 0.46
and 0.25, aligned keys with rotated values (aligned+haar) 0.18 and 0.08.

A method takes about 15 s with SmolLM2-135M and 45 s with Qwen2.5-Coder-0.5B on 2 CPU cores, longer
if it learns; the tiny model half a minute
with `--quick`.

Sources: IsoQuant (2603.28430), TurboQuant (2504.19874), KIVI (2402.02750), KVQuant (2401.18079),
KVTC (2511.01815).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from isojax.quantize import Plan
from isojax.quantize.shapes import check_plans
from isojax.report import Entry, Job, fill

from ..common import Calibrated, check_named, finish, run
from .measure import INDUCTION, NEEDLE, SIZE, Reader, units_of
from .methods import DEFAULT, DRAWN, plan, recipes, words
from .report import TARGETS, figure, text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Calibrated):
    """Settings."""

    methods: tuple[str, ...] = DEFAULT
    """kivi, kivi+lean, kivi+sparse, kvquant, minmax, pca+pre, pca+before, pca+gaussian, aligned
    (axes and bits in the metric of queries and o_proj) or with one ingredient left out
    (aligned-centre, -metric, -bits, -gain, -sinks), with half the power of the metric
    (aligned+half), scales without shrinkage too (aligned+unbiased), and values rotated in place of
    aligned (aligned+haar; not centred: aligned+haar-centre; by learned rotations: aligned+learned);
    smaq-like (the logarithm of the metric), kvtc-like (principal axes before RoPE, greedy bits),
    gtq-like (bits per channel, values rotated); learned+pre+sinks or learned+pre+sinks+unbiased
    (rotations learned to flatten); or a rotation (identity haar hadamard quaternion_full
    quaternion_fast planar rotor), plain or with a repair: +pre and +post (means subtracted, of
    keys before or after RoPE), +scale (divided by the standard deviation of each channel), +minmax
    (ranges in place of norms and fixed levels), +fitted (levels fitted to vectors), +pre+scale,
    +pre+minmax, +pre+fitted, +pre+recent (the last 32 tokens exact), +pre+sinks (the first 4),
    +pre+sinks+unbiased (scales without shrinkage), and, for planar and quaternions, +mass_diff,
    +pre+mass_diff, +pre+co_activation (channels permuted first). kivi+lean has pages of 64 tokens
    and one range per value vector, kivi+sparse pages of 64 and exact outliers. Or your own recipe:
    'haar/lloyd_max sinks=4' for both, 'KEYS|VALUES' for each."""
    coordinates: tuple[str, ...] = ()
    """Further coordinates, such as mypackage.mymodule:name: centred before RoPE, the first 4 tokens
    exact, fixed levels, as in haar+pre+sinks."""
    bits: tuple[int, ...] = (2, 3, 4)
    """Bits per code."""
    targets: tuple[str, ...] = TARGETS
    """K: only keys are quantized, V: only values, KV: both."""
    sinks: int = 0
    """Minimum number of first tokens that stay exact."""
    recent: int = 0
    """Minimum number of last tokens that stay exact."""
    needles: tuple[int, ...] = ()
    """Lengths of prompts of the recall probe, such as 1024 4096 8192: many lines with names and
    codes, and a question about one of them at the end."""
    prompts: int = 8
    """Prompts of each length."""
    induction: int | None = None
    """Texts of the induction probe, random tokens repeated once; by default 4 with the tiny model,
    which is too small for needles, and none with others."""

    windows: int = 8
    """Windows of text, one after the other from its start."""
    length: int | None = None
    """Tokens per window; by default 1024, or 512 with the tiny model."""

    @property
    def tokens(self) -> int:  # noqa: D102
        return (512 if self.model == "tiny" else 1024) if self.length is None else self.length

    def resolved(self) -> Config:  # noqa: D102
        count = 4 * (self.model == "tiny") if self.induction is None else self.induction
        return dataclasses.replace(super().resolved(), induction=count)

    def quickened(self) -> dict[str, Any]:  # noqa: D102
        methods = ("kivi", "identity", "haar", "quaternion_full", "haar+pre")
        fewer: dict[str, Any] = {
            "methods": methods, "bits": (3,), "targets": ("KV",), "calibration_windows": 2,
        }  # fmt: skip
        return fewer | ({"windows": 4} if self.model == "tiny" else {"windows": 2, "length": 512})


def main(config: Config) -> None:
    """Fit, score, and write missing rows."""
    check_named("targets", config.targets, TARGETS)
    check_named("bits", config.bits, range(2, 9))
    config.check_positive("prompts")
    config.check_not_negative("sinks", "recent", "induction")
    methods = [*config.methods, *(DRAWN.format(name) for name in config.coordinates)]
    check_named("methods", methods)
    pairs = {name: recipes(name, config.sinks, config.recent) for name in methods}
    grows = ("methods", "coordinates", "bits", "targets", "needles")
    study = config.study("kv_cache", *grows, *config.windows_grow)
    model, texts, base, fit_on = config.load()
    plans = {name: plan(pair, "KV", config.bits[0]) for name, pair in pairs.items()}
    reader = Reader(model, texts, fit_on, list(plans.values()), config.induction or 0)
    for length in config.needles:
        reader.needles(length, config.prompts)  # or ValueError
    check_plans(plans, model.config)
    fill(study, jobs(config, reader, base, pairs))
    finish(study, text(study, base, config.texts), figure(study, base, config.texts))


def jobs(
    config: Config, reader: Reader, base: dict[str, Any], pairs: dict[str, Any]
) -> Iterator[Job]:
    """The exact cache, then every number of bits, method and quantized side."""
    exact = base | {"method": "none"}
    yield reader.exact_job(exact, "exact cache")
    yield from probes(config, reader, exact, None, False)
    for bits, (name, pair), target in itertools.product(config.bits, pairs.items(), config.targets):
        if target == "V" and pair[1].recipe.centre and pair[0].offset == "none":
            continue  # values have no RoPE: the same as +pre
        own = base | words(pair, target) | {"method": name, "target": target, "bits": bits}
        what, title = plan(pair, target, bits), f"{name} {bits} bit {target}"
        random = any(r.recipe.random for r, s in zip(pair, "KV", strict=True) if s in target)
        yield Job.one(title, own, SIZE, functools.partial(reader.size, what))
        entries = reader.entries(own, int if random else None, more=units_of(target))
        yield Job(title, entries, functools.partial(reader.windows, what, random))
        yield from probes(config, reader, own, what, random)


def probes(
    config: Config, reader: Reader, own: dict[str, Any], what: Plan | None, random: bool
) -> Iterator[Job]:
    """Probes of recall, each prompt with a separate seed."""

    def job(kind: str, length: int, count: int, units: dict[str, str], measure: Any) -> Job:
        """The job of `measure(i, model)` for each prompt i."""
        probe = {"probe": kind, "probe_length": length, "prompts": count}
        entries = [
            Entry(own | probe | {"prompt": i}, i if random else None, units) for i in range(count)
        ]

        def values(todo: Sequence[Entry]) -> Iterator[Any]:
            for entry in todo:
                i = entry.config["prompt"]
                made = None if what is None else reader.quantized(what, i * random)
                yield measure(i, made)

        return Job(f"{kind} at {length} tokens", entries, values)

    for length in config.needles:
        needle = functools.partial(reader.needle, length, config.prompts)
        yield job("needle", length, config.prompts, NEEDLE, needle)
    length = reader.texts.shape[1] // 2 * 2
    if config.induction:
        yield job("induction", length, config.induction, INDUCTION, reader.induction)


if __name__ == "__main__":
    run(main, Config, "kv_cache", __doc__)
