"""Rotations learned end to end: what does the loss of the whole model teach them?

    python -m experiments.end_to_end
    python -m experiments.end_to_end --model HuggingFaceTB/SmolLM2-135M --text wikitext-2 \
        --calibration-text valid.txt --length 256 --out results/end_to_end

SpinQuant (2405.16406) learns the rotation of the residual stream (R1) and those of the values of
each head (R2) by gradient descent on the model's own loss, inputs of linear layers in INT4 with a
scale a token. Here the loss is the KL divergence from the unquantized model on the calibration
text, one window a step, gradients straight through the rounding and into the scales, Adam on the
orthogonal group. Each start, random or none, is compared with what it became: merged into the
weights, which stay as they are (W16A4) or are rounded too (W4A4, to nearest). Before down_proj a
random Hadamard transform (R4) runs in all of them, and is not learned. Every seed draws and learns
its own and reads all windows of the test text; `delta_nll` is against the model as it is.
A step needs memory for the gradients of all layers: SmolLM2-135M 1.7 GB at 512 tokens.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
from rich.progress import Progress

from experiments.common import Calibrated, run
from isojax import transforms
from isojax._core.checks import check_choice, check_positive
from isojax.report import (
    Row,
    Study,
    draw_lines,
    markdown,
    new_figure,
    select,
    stat,
    summarize,
)

STARTS = ("identity", "hadamard", "haar")
SETTINGS = ("W16A4", "W4A4")
CHECKS = 10
COLUMNS = (
    "start", "seeds", "KL",
    *(f"{setting}{of}" for setting in SETTINGS for of in ("", ", learned", ", change")),
)  # fmt: skip

Means = dict[tuple[str, str, bool], dict[int | None, float]]  # by setting, start, learned; by seed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Calibrated):
    """Settings."""

    starts: tuple[str, ...] = STARTS
    """Where learning starts: identity, hadamard or haar."""
    seeds: int = 5
    """Seeds of the starts, of the rotation before down_proj, and of learning."""
    steps: int = 100
    """Of descent, a multiple of 10."""
    rate: float = 0.003
    """Learning rate of Adam, in radians a step; it falls to 0 as a cosine."""

    @property
    def tokens(self) -> int:  # noqa: D102
        return self.length or 512

    @property
    def texts(self) -> int:  # noqa: D102
        return self.windows or 8

    def quickened(self) -> dict[str, Any]:  # noqa: D102
        return {
            "starts": ("hadamard",), "seeds": 1, "steps": 20, "length": 128, "windows": 2,
            "calibration_windows": 4,
        }  # fmt: skip


def main(config: Config) -> None:
    """Learn, merge, score, and write what the record does not hold yet."""
    from experiments.end_to_end_trial import UNITS, Trial

    assert config.out is not None
    for start in config.starts:
        check_choice("starts", start, STARTS)
    if not config.starts:
        raise ValueError("starts must name at least one, got none.")
    check_positive("seeds", config.seeds)
    if check_positive("steps", config.steps) % CHECKS:
        raise ValueError(f"steps must be a multiple of {CHECKS}, got {config.steps}.")
    if not 0 < config.rate < math.inf:
        raise ValueError(f"rate must be above 0 and finite, got {config.rate}.")
    grows = ("starts", "seeds", "windows") if config.calibration_text else ("starts", "seeds")
    study = Study("end_to_end", config.out, config, grows=grows)
    model, texts, fit_on, base = config.load()
    width = model.config.intermediate_size
    jax.eval_shape(lambda: transforms.hadamard(jax.random.key(0), width))  # or ValueError
    trial = Trial(model, fit_on, texts)
    exact = base | {"setting": "exact"}
    with Progress() as bar:
        for i in bar.track(range(config.texts), description="exact"):
            if not study.has(exact | {"window": i}, None, ["nll"]):
                study.add(exact | {"window": i}, None, {"nll": trial.nll(i)}, UNITS)
        plain = [study.rows("nll", **exact, window=i)[0].value for i in range(config.texts)]
        task = bar.add_task("learning", total=config.steps)

        def tell(step: Any, kl: Any) -> None:
            bar.update(task, completed=int(step))
            told[int(step)] = float(kl)

        for name, seed in itertools.product(config.starts, range(config.seeds)):
            cases = [
                base | {"setting": setting, "start": name, "learned": learned, "window": i}
                for learned, setting in itertools.product((False, True), SETTINGS)
                for i in range(config.texts)
            ]
            if all(study.has(case, seed, ["nll", "delta_nll"]) for case in cases):
                continue
            bar.reset(task, description=f"{name}, seed {seed}")
            start = trial.start(name, seed)
            told = {0: trial.divergence(start)}
            learned = trial.learned(start, seed, config.steps, config.rate, tell)
            for step, kl in told.items():
                if not study.has(base | {"start": name, "step": step}, seed, ["kl"]):
                    study.add(base | {"start": name, "step": step}, seed, {"kl": kl}, UNITS)
            for turned, setting in itertools.product((False, True), SETTINGS):
                nlls = trial.quantized(learned if turned else start, setting)
                for i, nll in enumerate(nlls):
                    row = base | {"setting": setting, "start": name, "learned": turned, "window": i}
                    if not study.has(row, seed, ["nll", "delta_nll"]):
                        study.add(row, seed, {"nll": nll, "delta_nll": nll - plain[i]}, UNITS)
    study.finish(text(study, base, config), figure(study, base, config))
    print((config.out / "table.md").read_text(encoding="utf-8"))


def losses(rows: Sequence[Row], windows: int) -> Means:
    """Mean delta nll over the windows, of the seeds that have read them all."""
    found: dict[Any, list[float]] = {}
    for row in select(rows, "delta_nll"):
        if row.config["window"] < windows:
            point = *(row.config[k] for k in ("setting", "start", "learned")), row.seed
            found.setdefault(point, []).append(row.value)
    means: Means = {}
    for (*point, seed), values in found.items():
        if len(values) > windows:
            raise ValueError(f"{point}, seed {seed}: {len(values)} losses of {windows} windows.")
        if len(values) == windows:
            means.setdefault((point[0], point[1], point[2]), {})[seed] = stat(values).mean
    return means


def text(study: Study, base: dict[str, Any], config: Config) -> str:
    """The report in Markdown."""
    rows = study.rows(**base)
    exact = summarize(rows, "nll", setting="exact")
    return "\n\n".join([
        f"# Rotations learned end to end in {base['model']}",
        f"{config.texts} windows of {base['length']} tokens of {base['text']}; unquantized nll "
        f"{exact.mean:.4f} nat a token. Learned on {config.calibration_windows} windows of "
        f"{base['calibration']}, {config.steps} steps of one window each at a rate of "
        f"{config.rate}. Cells are delta nll, nat a token, mean ± sd over seeds, each over all "
        "windows; `change` is that by learning, seed by seed. KL is that on all calibration "
        "windows, at the start and at the best of ten checks, which is the one that is kept.",
        markdown(COLUMNS, lines(rows, config.texts)),
    ])  # fmt: skip


def lines(rows: Sequence[Row], windows: int) -> list[list[Any]]:
    """One for each start, as `COLUMNS` says, of the seeds that have read all windows."""
    means = losses(rows, windows)
    names = [start for setting, start, learned in means if learned and setting == SETTINGS[-1]]
    return [_line(rows, means, name) for name in names]


def _line(rows: Sequence[Row], means: Means, name: str) -> list[Any]:
    seeds = sorted(means[SETTINGS[-1], name, True], key=str)
    kl = [r for r in select(rows, "kl", start=name) if r.seed in seeds]
    first = stat(r.value for r in select(kl, step=0))
    last = stat(min(r.value for r in kl if r.seed == seed) for seed in seeds)
    cells = [name, len(seeds), f"{first.format(3)} to {last.format(3)}"]
    for setting in SETTINGS:
        before, after = (means[setting, name, learned] for learned in (False, True))
        found = [[before[s] for s in seeds], [after[s] for s in seeds]]
        found.append([b - a for a, b in zip(*found, strict=True)])
        cells += [stat(values).format(3) for values in found]
    return cells


def figure(study: Study, base: dict[str, Any], config: Config) -> Any:
    """The descent of the KL divergence, and the loss of each seed before and after."""
    rows = study.rows(**base)
    means = losses(rows, config.texts)
    chart, grid = new_figure(1, 1 + len(SETTINGS), f"Learned end to end: {base['model']}")
    draw_lines(grid[0, 0], rows, "kl", "step", "start")
    grid[0, 0].set_ylabel("KL on the calibration text, nat a token")
    grid[0, 0].legend(fontsize=7, frameon=False)
    names = dict.fromkeys(start for _, start, _ in means)
    colors = {line.get_label(): line.get_color() for line in grid[0, 0].get_lines()}
    for axes, setting in zip(grid[0, 1:], SETTINGS, strict=True):
        for name in names:
            before, after = (means.get((setting, name, learned), {}) for learned in (False, True))
            for seed in set(before) & set(after):
                axes.plot([before[seed], after[seed]], "o-", ms=3, lw=1, color=colors[name])
        axes.set_xticks([0, 1], ["start", "learned"])
        axes.set_xlim(-0.3, 1.3)
        axes.set_title(f"delta nll, {setting}, a line a seed", fontsize=10)
    return chart


if __name__ == "__main__":
    run(main, Config, "end_to_end", __doc__)
