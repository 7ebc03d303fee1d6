r"""Whole models quantized by plans: what does each lose, and what does it cost?

    isojax quantize
    isojax quantize --plans quarot aligned my.plan "weight: absmax bits=4" \
        --model HuggingFaceTB/SmolLM2-135M --text wikitext-2 --save results/models --errors

A plan is a published method by name (`quarot`, `quarot:3` for 3 bits; see
`isojax.quantize.presets`), a file of rules, the rules themselves, or `package.module:name`. One
table has, for each, the loss and its difference from the unquantized model, the divergence from its
predictions (mean, 99% quantile, share of tokens with the same most likely one), bits per weight and
per element of the cache, bytes, multiply-adds per token of online transforms, and the peak memory
of the process from quantizing to the last window. Plans are fitted on the calibration text.

Window i has seed i modulo the number of seeds, for random plans. Where a plan stores the cache in
codes, every token reads all tokens before it from the codes. At the end each quantized model
continues a short text.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isojax.quantize import Plan, find_plan, unquantized
from isojax.quantize.presets import PLANS
from isojax.quantize.shapes import check_plans
from isojax.report import Entry, Job, fill

from ..common import Calibrated, check_named, finish, run, say
from .measure import COSTS, ERROR, PEAK, Reader
from .report import figure, text

DEFAULT = (
    "gptq", "smoothquant", "quarot", "mixquant", "kivi", "isoquant", "kvtc-like", "aligned",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Calibrated):
    """Settings."""

    plans: tuple[str, ...] = DEFAULT
    """Names (of linear layers gptq smoothquant quarot spinquant mixquant rotated-inputs
    balanced-inputs, of the cache kivi kvquant isoquant kvtc-like smaq-like gtq-like rotated-cache
    aligned; with arguments as in quarot:3 or mixquant:bits=3:block=16), files, rules, or
    package.module:name. Learning the rotations of spinquant takes minutes per seed."""
    seeds: int = 2
    """Seeds of random transforms; window i has seed i modulo this."""
    errors: bool = False
    """Show the error after each layer too: of the hidden state, relative to the unquantized model,
    mean over the tokens of the first window. It accumulates the errors of all layers before and of
    the cache; where it jumps, a layer needs more bits."""
    prompt: str = ""
    """Prompt of the continuation; by default the first 16 tokens of the text."""
    continuation: int = 24
    """Tokens of the continuation; 0 for none."""
    save: Path | None = None
    """Folder for the quantized models of seed 0, one folder each, written by
    `isojax.quantize.save`."""

    windows: int = 4
    """Windows of text, one after the other from its start."""
    length: int | None = None
    """Tokens per window; by default 1024, or 512 with the tiny model."""

    @property
    def tokens(self) -> int:  # noqa: D102
        return (512 if self.model == "tiny" else 1024) if self.length is None else self.length

    def quickened(self) -> dict[str, Any]:  # noqa: D102
        return {
            "plans": ("smoothquant:4", "kivi", "aligned"), "seeds": 1, "windows": 2, "length": 256,
            "calibration_windows": 4,
        }  # fmt: skip


def main(config: Config) -> None:
    """Quantize, score, and write missing rows."""
    check_named("plans", config.plans)
    config.check_positive("seeds")
    config.check_not_negative("continuation")
    plans = {_name(given): find_plan(given) for given in config.plans}
    if len(plans) < len(config.plans):
        raise ValueError(f"plans must have different names, got {', '.join(config.plans)}.")
    grows = ("plans", "errors", "prompt", "continuation", "save")
    study = config.study("quantize", *grows, *config.windows_grow)
    model, texts, base, fit_on = config.load()
    plans = dividing(config, plans, model.config.intermediate_size)
    check_plans(plans, model.config)
    given = texts, fit_on, list(plans.values())
    reader = Reader(model, *given, config.prompt, config.continuation, config.save)
    fill(study, jobs(config, reader, base, plans))
    given = study, base, plans, config.texts, model.config
    finish(study, text(*given), figure(*given))
    for name, plan in {"unquantized": None, **plans}.items():
        say(reader.go_on(name, plan))


def dividing(config: Config, plans: dict[str, Plan], width: int) -> dict[str, Plan]:
    """Plans by name; default ones have the longest blocks that divide `width`."""
    fitted = config.dividing("plans", width, family=PLANS)
    changed = {a: b for a, b in zip(config.plans, fitted, strict=True) if a != b}
    return {
        changed.get(name, name): find_plan(changed[name]) if name in changed else plan
        for name, plan in plans.items()
    }


def jobs(
    config: Config, reader: Reader, base: dict[str, Any], plans: dict[str, Plan]
) -> Iterator[Job]:
    """The unquantized model, and each plan with one seed."""
    exact = base | {"plan": "unquantized", "rules": ""}
    yield reader.exact_job(exact, "unquantized")
    layers = range(reader.model.config.num_hidden_layers)
    for name, plan in plans.items():
        own = base | {"plan": name, "rules": "; ".join(str(plan).splitlines())}
        seeds = min(config.seeds, config.texts) if plan.random else 1
        for number in range(seeds):
            seed = number if plan.random else None
            entries = reader.entries(own, seed, every=seeds)
            whole = entries[-1].config
            entries += [Entry(own, seed, COSTS)] if not number else []
            # before the errors, which would count the exact model's memory too
            entries.append(Entry(whole, seed, PEAK))
            if config.errors and not number:
                entries += [Entry(own | {"layer": i}, seed, ERROR) for i in layers]
            title = name if seed is None else f"{name}, seed {seed}"
            yield Job(title, entries, functools.partial(reader.values, name, plan, number))
    costs = functools.partial(reader.costs, unquantized(reader.model))
    yield Job.one("unquantized", exact, COSTS, costs)


def _name(given: str) -> str:
    """The name of a plan in rows: the name of a file, or rules in one line."""
    rules = ": " in given or ";" in given or "\n" in given
    return "; ".join(given.split("\n")) if rules else Path(given).name


if __name__ == "__main__":
    run(main, Config, "quantize", __doc__)
