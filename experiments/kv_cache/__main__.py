"""The KV cache: which coordinates lose least when keys and values are stored in 2 to 4 bits?

    python -m experiments.kv_cache
    python -m experiments.kv_cache --model Qwen/Qwen2.5-0.5B --text wikitext-2 \
        --calibration-text valid.txt --bits 3 --out results/kv

Every window of text is read through the packed cache itself: keys and values of all layers are
encoded, packed, unpacked and decoded, scales in fp16, and every position reads its own token and
all before it from the codes (save for first or last tokens kept exact, where a method has them).
Nothing is deferred: keys are coded during the prompt too. `delta_nll` is against the same window
with an exact cache. Every window is read with random rotations of its own, so that the spread over
windows is that over texts and seeds. Means, scales, axes and codebooks are fitted on the
calibration text.
Methods are in `experiments/kv_methods.py`.
Expected at 3 bit, keys and values, 8 windows of WikiText-2, fitted on 8 of its validation split,
nat a token: SmolLM2-135M haar 0.28, haar+pre 0.19, quaternion_full 1.1, kivi (4.5 bit) 0.03,
aligned 0.11; Qwen2.5-Coder-0.5B, whose keys have a bias, haar 2.8 at a cosine of 0.984, haar+pre
0.10, quaternion_full+pre 0.30, kivi 0.02, aligned 0.01. At 2 bit haar+pre+sinks loses 0.46 and
0.25, aligned keys with rotated values (aligned+haar) 0.18 and 0.08. A method takes about 15 s and
45 s there on 2 CPU cores, one that learns longer; the tiny model half a minute with `--quick`.
Sources: IsoQuant (2603.28430), TurboQuant (2504.19874), KIVI (2402.02750), KVQuant (2401.18079),
KVTC (2511.01815).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.progress import Progress

from experiments.common import Calibrated, run
from experiments.kv_methods import DEFAULT, METHODS, random, recipes, words
from experiments.kv_report import figure, text
from isojax._core.checks import check_choice, check_positive
from isojax.report import Study

TARGETS = ("K", "V", "KV")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Calibrated):
    """Settings."""

    methods: tuple[str, ...] = DEFAULT
    """Of kivi, kivi+lean, kivi+sparse, minmax, pca+pre, pca+before, pca+gaussian, aligned (axes
    and bits for what reads them) or that with one ingredient left out (aligned-centre, -metric,
    -bits, -gain, -sinks), with half the power of the metric (aligned+half), scales without
    shrinkage too (aligned+unbiased), and values rotated in place of aligned (aligned+haar; not
    centred: aligned+haar-centre; by learned rotations: aligned+learned); smaq-like (the logarithm
    of the metric), kvtc-like (principal axes before RoPE, bits where they matter), gtq-like (bits
    by channel, values rotated): see `experiments/kv_methods.py`; learned+pre+sinks or
    learned+pre+sinks+unbiased (rotations learned to flatten); or a rotation (identity haar hadamard
    quaternion_full quaternion_fast planar rotor) alone or with a repair: +pre and +post (K's mean
    removed before or after RoPE), +scale, +minmax, +fitted, +pre+scale, +pre+minmax, +pre+fitted,
    +pre+recent (the last 32 tokens exact), +pre+sinks (the first 4), +pre+sinks+unbiased (scales
    without shrinkage), and, for planar and quaternions, +massdiff, +pre+massdiff,
    +pre+coactivation (channels permuted first)."""
    bits: tuple[int, ...] = (2, 3, 4)
    """Bits a code."""
    targets: tuple[str, ...] = TARGETS
    """K: keys alone are stored in codes, V: values alone, KV: both."""
    sinks: int = 0
    """First tokens that stay exact, at least."""
    recent: int = 0
    """Last tokens that stay exact, at least."""
    needles: tuple[int, ...] = ()
    """Lengths of prompts of the recall probe, such as 1024 4096 8192: many lines that give a code
    to a name, and one asked for at the end."""
    prompts: int = 8
    """Prompts of each length."""
    induction: int = -1
    """Texts of the induction probe, random tokens said twice; -1 for 4 with the tiny model, which
    is too small for needles, and none with others."""

    @property
    def tokens(self) -> int:  # noqa: D102
        return self.length or (512 if self.model == "tiny" else 1024)

    @property
    def texts(self) -> int:  # noqa: D102
        return self.windows or 8

    def quickened(self) -> dict[str, Any]:  # noqa: D102
        methods = ("kivi", "identity", "haar", "quaternion_full", "haar+pre")
        return {
            "methods": methods, "bits": (3,), "targets": ("KV",), "windows": 4,
            "calibration_windows": 2,
        }  # fmt: skip


def main(config: Config) -> None:
    """Fit, score, and write what the record does not hold yet."""
    from experiments.kv_trial import UNITS, Trial

    assert config.out is not None
    for name, values, allowed in (
        ("methods", config.methods, METHODS), ("targets", config.targets, TARGETS),
        ("bits", config.bits, range(2, 9)),
    ):  # fmt: skip
        if not values:
            raise ValueError(f"{name} must name at least one, got none.")
        for value in values:
            check_choice(name, value, allowed)
    check_positive("prompts", config.prompts)
    for name, least in (("sinks", 0), ("recent", 0), ("induction", -1)):
        if getattr(config, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(config, name)}.")
    grows = ("methods", "bits", "targets", "needles")
    # without a text of their own, the windows to fit on come after those to test on
    grows += ("windows",) if config.calibration_text else ()
    study = Study("kv_cache", config.out, config, grows=grows)
    model, texts, fit_on, base = config.load()
    exact = base | {"method": "none"}
    induction = config.induction if config.induction >= 0 else 4 * (config.model == "tiny")
    trial = Trial(model, fit_on, texts)
    readings = trial.readings(config.needles, config.prompts, induction)
    points = [
        (name, bits, target)
        for bits in config.bits
        for name in config.methods
        for target in config.targets
        if not (target == "V" and "+post" in name)  # values have no RoPE: that is +pre
    ]
    with Progress() as bar:
        task = bar.add_task("exact cache", total=(len(points) + 1) * len(readings))
        for reading in readings:
            if not study.has(exact | reading.own, None, [reading.metric]):
                study.add(exact | reading.own, None, reading.read((None, None)), UNITS)
            bar.advance(task)
        for name, bits, target in points:
            bar.update(task, description=f"{name} {bits} bit {target}")
            keys, values = recipes(name, target, config.sinks, config.recent)
            point = base | words(keys, values) | {"method": name, "target": target, "bits": bits}
            if not study.has(point, None, ["side_bytes"]):
                study.add(point, None, trial.size(bits, keys, values), UNITS)
            for reading in readings:
                row, seed = point | reading.own, reading.seed if random(name) else None
                wanted = ["nll", "delta_nll"] if reading.metric == "nll" else [reading.metric]
                if not study.has(row, seed, wanted):
                    found = reading.read(trial.fit(reading.seed, bits, keys, values))
                    if "nll" in found:
                        plain = study.rows("nll", **exact, **reading.own)[0].value
                        found["delta_nll"] = found["nll"] - plain
                    study.add(row, seed, found, UNITS)
                bar.advance(task)
    study.finish(text(study, base, config.texts), figure(study, base, config.texts))
    print((config.out / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    run(main, Config, "kv_cache", __doc__)
