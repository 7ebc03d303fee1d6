"""The KV cache: which coordinates lose least when keys and values are stored in 2 to 4 bits?

    python -m experiments.kv_cache
    python -m experiments.kv_cache --model Qwen/Qwen2.5-0.5B --text wikitext-2 \
        --calibration-text valid.txt --bits 3 --out results/kv

Every window of text is read through the packed cache itself: keys and values of all layers are
encoded, packed, unpacked and decoded, scales in fp16, and every position reads its own token and
all before it from the codes (save for first or last tokens kept exact, where a method has them).
Nothing is deferred: keys are coded during the prompt too. `delta_nll` is against the same window
with an exact cache. Means, scales, axes and codebooks are fitted on the calibration text.
Methods are in `experiments/kv_methods.py`.
Expected at 3 bit, keys and values, 2 windows of WikiText-2, fitted on 2 of its validation split, a
seed, nat a token: SmolLM2-135M haar 0.32, haar+pre 0.20, quaternion_full 1.5, kivi (4.5 bit, all
counted) 0.05; Qwen2.5-Coder-0.5B, whose keys have a bias, haar 2.2 at a cosine of 0.983, haar+pre
0.21, quaternion_full+pre 0.44, kivi 0.03. A method takes 10 s and 15 s there on 2 CPU cores; the
tiny model 20 s with `--quick`.
Sources: IsoQuant (2603.28430), TurboQuant (2504.19874), KIVI (2402.02750), KVQuant (2401.18079).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from rich.progress import Progress

from experiments.common import Common, run
from experiments.kv_methods import DEFAULT, METHODS
from experiments.kv_report import figure, text
from isojax._core.checks import check_choice, check_positive
from isojax.report import Study

TARGETS = ("K", "V", "KV")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    """Settings."""

    methods: tuple[str, ...] = DEFAULT
    """Of kivi, kivi+sparse, minmax, pca+pre, pca+before, pca+gaussian, or a rotation (identity haar
    hadamard quaternion_full quaternion_fast planar rotor) alone or with a repair: +pre and +post
    (K's mean removed before or after RoPE), +scale, +minmax, +fitted, +pre+scale, +pre+minmax,
    +pre+fitted, +pre+recent (the last 32 tokens exact)."""
    bits: tuple[int, ...] = (2, 3, 4)
    """Bits a code."""
    targets: tuple[str, ...] = TARGETS
    """K: keys alone are stored in codes, V: values alone, KV: both."""
    seeds: int = 5
    """Seeds of each random rotation."""
    sinks: int = 0
    """First tokens that stay exact, at least."""
    recent: int = 0
    """Last tokens that stay exact, at least."""
    calibration_text: str = ""
    """As `--text`; by default the windows of the text that follow those it is tested on."""
    calibration_windows: int = 8
    """Windows to fit on."""
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
            "methods": methods, "bits": (3,), "targets": ("KV",), "seeds": 1,
            "windows": 4, "calibration_windows": 2,
        }  # fmt: skip


def main(config: Config) -> None:
    """Fit, score, and write what the record does not hold yet."""
    from experiments.kv_trial import Trial, make_probes
    from isojax.data import load_text, windows
    from isojax.models import encode, load_model

    assert config.out is not None
    for name, values, allowed in (
        ("methods", config.methods, METHODS), ("targets", config.targets, TARGETS),
        ("bits", config.bits, range(2, 9)),
    ):  # fmt: skip
        for value in values:
            check_choice(name, value, allowed)
    for name in ("seeds", "calibration_windows"):
        check_positive(name, getattr(config, name))
    grows = ("seeds", "methods", "bits", "targets", "needles")
    # without a text of their own, the windows to fit on come after those to test on
    grows += ("windows",) if config.calibration_text else ()
    study = Study("kv_cache", config.out, config, grows=grows)
    model = load_model(config.model)
    ids = encode(model.tokenizer, load_text(config.text))
    apart = bool(config.calibration_text)
    extra = 0 if apart else config.calibration_windows
    both = windows(ids, config.texts + extra, config.tokens)
    fit_on = both[config.texts :]
    if apart:
        other = encode(model.tokenizer, load_text(config.calibration_text))
        fit_on = windows(other, config.calibration_windows, config.tokens)
    base = {
        "model": model.name, "text": config.text.rsplit("/", 1)[-1], "length": config.tokens,
        "calibration": (config.calibration_text or config.text).rsplit("/", 1)[-1],
    }  # fmt: skip
    trial = Trial(model, jnp.asarray(fit_on), jnp.asarray(both[0]))

    probes = make_probes(config, model)
    points = [
        (name, bits, target, seed)
        for bits in config.bits
        for name in config.methods
        for target in config.targets
        if not (target == "V" and "+post" in name)  # values have no RoPE: that is +pre
        for seed in range(config.seeds if random(name) else 1)
    ]
    with Progress() as bar:
        task = bar.add_task("exact cache", total=len(points) + 1)
        row = base | {"method": "none"}
        for i in range(config.texts):
            if not study.has(row | {"window": i}, None, ["nll"]):
                study.add(row | {"window": i}, None, {"nll": trial.nll(both[i])})
        for own, metric, probe in probes:
            if not study.has(row | own, None, [metric]):
                study.add(row | own, None, {metric: probe(trial, (None, None))})
        plain = [study.rows("nll", **row, window=i)[0].value for i in range(config.texts)]
        bar.advance(task)
        for name, bits, target, seed in points:
            bar.update(task, description=f"{name} {bits} bit {target}")
            recipes = [
                dataclasses.replace(
                    r, sinks=max(r.sinks, config.sinks), recent=max(r.recent, config.recent)
                )
                for r in METHODS[name]
            ]
            keys = recipes[0] if "K" in target else None
            values = recipes[1] if "V" in target else None
            words = dataclasses.asdict(recipes["KV".index(target[0])])
            if target == "KV":  # of the values, what differs
                own = dataclasses.asdict(recipes[1])
                words |= {f"value_{k}": v for k, v in own.items() if v != words[k]}
            point = base | words | {"method": name, "target": target, "bits": bits}
            row_seed = seed if random(name) else None
            stores = None
            todo: list[tuple[dict[str, Any], str, Any]] = [({}, "bytes_per_token", None)]
            todo += [({"window": i}, "delta_nll", None) for i in range(config.texts)]
            for own, metric, probe in (*todo, *probes):
                if study.has(point | own, row_seed, [metric]):
                    continue
                stores = stores or trial.fit(seed, bits, keys, values)
                if probe is not None:
                    found = {metric: probe(trial, stores)}
                elif own:
                    nll = trial.nll(both[own["window"]], stores)
                    found = {"nll": nll, "delta_nll": nll - plain[own["window"]]}
                else:
                    found = trial.measure(stores)
                study.add(point | own, row_seed, found)
            bar.advance(task)
    study.finish(text(study, base, config.texts), figure(study, base))
    print((config.out / "table.md").read_text(encoding="utf-8"))


def random(name: str) -> bool:
    """Whether a seed changes the method."""
    return any(recipe.random for recipe in METHODS[name])


if __name__ == "__main__":
    run(main, Config, "kv_cache", __doc__)
