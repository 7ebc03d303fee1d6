"""The report: losses before and after learning, and the descent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from isojax.report import (
    Row,
    Study,
    averaged,
    color_of,
    complete,
    distinct,
    draw_lines,
    markdown,
    new_figure,
    select,
    stat,
    summarize,
)

SETTINGS = ("W16A4", "W4A4")
COLUMNS = (
    "start", "seeds", "KL",
    *(f"{setting}{of}" for setting in SETTINGS for of in ("", ", learned", ", change")),
)  # fmt: skip

POINT = ("setting", "coordinates", "learned", "seed")

Sides = tuple[dict[int | None, float], dict[int | None, float]]  # before, after learning; by seed


def losses(rows: Sequence[Row], windows: int) -> list[Row]:
    """Mean delta nll over the windows, of the seeds that have read them all."""
    rows = [row.with_config(seed=row.seed) for row in select(rows, "delta_nll")]
    return averaged(complete(rows, windows, POINT, "delta_nll"), "window")


def sides(means: Sequence[Row], setting: str, name: str) -> Sides:
    """The means of a start before and after learning, of the seeds that have both."""
    before, after = (
        {r.seed: r.value for r in select(means, setting=setting, coordinates=name, learned=learned)}
        for learned in (False, True)
    )
    both = sorted(before.keys() & after.keys(), key=str)
    return {seed: before[seed] for seed in both}, {seed: after[seed] for seed in both}


def text(study: Study, base: dict[str, Any], config: Any) -> list[str]:
    """The report in Markdown, by paragraphs."""
    rows = study.rows(**base)
    exact = summarize(rows, "nll", setting="exact")
    return [
        f"# Rotations learned end to end in {base['model']}",
        f"{config.texts} windows of {base['length']} tokens of {base['text']}; unquantized nll "
        f"{exact.mean:.4f} nats per token. Learned on {config.calibration_windows} windows of "
        f"{base['calibration']}, {config.steps} steps of one window each at a rate of "
        f"{config.rate}. Cells are delta nll, nats per token, mean ± sd over seeds, each over all "
        "windows; `change` is the change by learning, seed by seed. KL is on all calibration "
        "windows, at the start and at the best of ten checks, which is kept.",
        markdown(COLUMNS, lines(rows, config.texts)),
    ]


def lines(rows: Sequence[Row], windows: int) -> list[list[Any]]:
    """One line per start, in `COLUMNS`, of the seeds that have read all windows."""
    means, found = losses(rows, windows), []
    for name in distinct(select(means, setting=SETTINGS[-1], learned=True), "coordinates"):
        pairs = [sides(means, setting, name) for setting in SETTINGS]
        seeds = list(pairs[-1][-1])
        descent = select(rows, "kl_mean", coordinates=name, step=...)
        kl = [[r.value for r in descent if r.seed == seed] for seed in seeds]
        first, last = stat(each[0] for each in kl), stat(min(each) for each in kl)
        line = [name, len(seeds), f"{first.format(3)} to {last.format(3)}"]
        for before, after in pairs:
            change = [after[seed] - before[seed] for seed in before]
            each = (before.values(), after.values(), change)
            line += [stat(values).format(3) for values in each]
        found.append(line)
    return found


def figure(study: Study, base: dict[str, Any], config: Any) -> Any:
    """The descent of the KL divergence, and the loss of each seed before and after."""
    rows = study.rows(**base)
    means = losses(rows, config.texts)
    chart, grid = new_figure(1, 1 + len(SETTINGS), f"Learned end to end: {base['model']}")
    draw_lines(grid[0, 0], select(rows, step=...), "kl_mean", "step", "coordinates")
    grid[0, 0].set_ylabel("KL on the calibration text, nats per token")
    for axes, setting in zip(grid[0, 1:], SETTINGS, strict=True):
        for name in distinct(means, "coordinates"):
            before, after = sides(means, setting, name)
            for seed in before:
                axes.plot([before[seed], after[seed]], "o-", ms=3, lw=1, color=color_of(axes, name))
        axes.set_xticks([0, 1], ["start", "learned"])
        axes.set_xlim(-0.3, 1.3)
        axes.set_title(f"delta nll, {setting}, one line per seed", fontsize=10)
    return chart
