"""Rotations learned end to end: what does the loss of the whole model teach them?

    python -m experiments.end_to_end
    python -m experiments.end_to_end --model HuggingFaceTB/SmolLM2-135M --text wikitext-2 \
        --calibration-text valid.txt --length 512 --out results/end_to_end

SpinQuant (2405.16406) learns the rotation of the residual stream (R1) and those of the values of
each head (R2) by gradient descent on the model's own loss, inputs of linear layers in INT4 with a
scale a token. Here the loss is the KL divergence from the unquantized model on the calibration
text, one window a step, gradients straight through the rounding and into the scales, Adam on the
orthogonal group. Rotations start at random ones, and each is compared with its own start: merged
into the weights, which stay as they are (W16A4) or are rounded too (W4A4, to nearest). Before
down_proj a random Hadamard transform (R4) runs in all of them. Every window of the test text is
read with the rotations of one seed, in turn; `delta_nll` is against the model as it is.
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
    complete,
    draw_lines,
    markdown,
    new_figure,
    paired,
    select,
    summarize,
)

STARTS = ("identity", "hadamard", "haar")
SETTINGS = ("W16A4", "W4A4")
CHECKS = 10
POINT = ("setting", "start", "learned")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Calibrated):
    """Settings."""

    starts: tuple[str, ...] = STARTS
    """Where learning starts: identity, hadamard or haar."""
    seeds: int = 4
    """Seeds of the starts and of learning; window i has seed i modulo this."""
    steps: int = 100
    """Of descent, a multiple of 10."""
    rate: float = 0.003
    """Learning rate of Adam, in radians a step; it falls to 0 as a cosine."""

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
    from experiments.end_to_end_trial import Trial

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
    grows = ("starts", "windows") if config.calibration_text else ("starts",)
    study = Study("end_to_end", config.out, config, grows=grows)
    model, texts, fit_on, base = config.load()
    width = model.config.intermediate_size
    jax.eval_shape(lambda: transforms.hadamard(jax.random.key(0), width))  # or ValueError
    trial = Trial(model, fit_on, texts)
    exact = base | {"setting": "exact"}
    with Progress() as bar:
        for i in bar.track(range(config.texts), description="exact"):
            if not study.has(exact | {"window": i}, None, ["nll"]):
                study.add(exact | {"window": i}, None, {"nll": trial.nll(i)})
        plain = [study.rows("nll", **exact, window=i)[0].value for i in range(config.texts)]
        task = bar.add_task("learning", total=config.steps)

        def tell(step: Any, loss: Any) -> None:
            bar.update(task, completed=int(step))

        for name, seed in itertools.product(config.starts, range(min(config.seeds, config.texts))):
            read = range(seed, config.texts, config.seeds)
            rows = [
                base | {"setting": setting, "start": name, "learned": learned, "window": i}
                for learned, setting, i in itertools.product((False, True), SETTINGS, read)
            ]
            if all(study.has(row, seed, ["nll", "delta_nll"]) for row in rows):
                continue
            bar.reset(task, description=f"{name}, seed {seed}")
            rotations, trace = trial.start(name, seed), base | {"start": name}
            learned, losses = trial.learned(rotations, seed, config.steps, config.rate, tell)
            span = config.steps // CHECKS
            for first in range(0, config.steps, span):
                kl = float(losses[first : first + span].mean())
                if not study.has(trace | {"step": first + span}, seed, ["kl"]):
                    study.add(trace | {"step": first + span}, seed, {"kl": kl})
            for turned, setting in itertools.product((False, True), SETTINGS):
                nlls = trial.quantized(learned if turned else rotations, setting, read)
                for i, nll in zip(read, nlls, strict=True):
                    row = base | {"setting": setting, "start": name, "learned": turned, "window": i}
                    if not study.has(row, seed, ["nll", "delta_nll"]):
                        study.add(row, seed, {"nll": nll, "delta_nll": nll - plain[i]})
    study.finish(text(study, base, config), figure(study, base))
    print((config.out / "table.md").read_text(encoding="utf-8"))


def text(study: Study, base: dict[str, Any], config: Config) -> str:
    """The report in Markdown."""
    rows = study.rows(**base)
    whole = complete(rows, config.texts, POINT)
    exact = summarize(whole, "nll", setting="exact")
    return "\n\n".join([
        f"# Rotations learned end to end in {base['model']}",
        f"{config.texts} windows of {base['length']} tokens of {base['text']}; unquantized nll "
        f"{exact.mean:.4f} nat a token. Learned on {base['calibration']}, "
        f"{config.calibration_windows} windows, {config.steps} steps of one each at a rate of "
        f"{config.rate}, {config.seeds} seeds. Cells are delta nll ± standard error over windows; "
        "`change` is that of the same window by learning from its start. KL is that of the steps, "
        "means of the first and the last tenth, nat a token.",
        markdown(
            ["start", "KL", *(f"{s}{c}" for s in SETTINGS for c in ("", ", learned", ", change"))],
            [line(rows, whole, name) for name in dict.fromkeys(r.config["start"] for r in whole
             if "start" in r.config)],
        ),
    ])  # fmt: skip


def line(rows: Sequence[Row], whole: Sequence[Row], name: str) -> list[str]:
    """Of one start."""
    steps = [r.config["step"] for r in select(rows, "kl", start=name)]
    first, last = (summarize(rows, "kl", start=name, step=f(steps)) for f in (min, max))
    cells = [name, f"{first.mean:.4f} to {last.mean:.4f}"]
    for setting in SETTINGS:
        mine = select(whole, "delta_nll", setting=setting, start=name)
        found = [summarize(mine, "delta_nll", learned=learned) for learned in (False, True)]
        found.append(paired(mine, "delta_nll", {"learned": True}, {"learned": False}))
        cells += [f"{s.mean:.4f} ± {s.sem:.4f}" for s in found]
    return cells


def figure(study: Study, base: dict[str, Any]) -> Any:
    """The descent of the KL divergence, and the loss of each window before and after."""
    rows = study.rows(**base)
    chart, grid = new_figure(1, 1 + len(SETTINGS), f"Learned end to end: {base['model']}")
    draw_lines(grid[0, 0], rows, "kl", "step", "start")
    grid[0, 0].set_ylabel("KL on the calibration text, nat a token")
    grid[0, 0].legend(fontsize=7, frameon=False)
    for axes, setting in zip(grid[0, 1:], SETTINGS, strict=True):
        scored = [r for r in select(rows, "delta_nll", setting=setting)]
        renamed = [
            dataclasses.replace(r, config=r.config | {"rotation": "after" if r.config["learned"]
                                                      else "before"})
            for r in scored
        ]  # fmt: skip
        draw_lines(axes, renamed, "delta_nll", "rotation", "start", order=("before", "after"))
        axes.set_title(f"delta nll, {setting}", fontsize=10)
        axes.set_xlabel("learning")
    return chart


if __name__ == "__main__":
    run(main, Config, "end_to_end", __doc__)
