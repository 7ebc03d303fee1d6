"""The report of `linear_layers`: losses against online cost, and their causes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from isojax.report import (
    Row,
    Study,
    averaged,
    complete,
    distinct,
    draw_pairs,
    errors,
    frontier,
    new_figure,
    pivot,
    select,
    summarize_by,
)

from .methods import Case

KIND = ("setting", "format", "rounding")  # a panel of the figure
NUMBERED = 15  # points of a panel
WIDTH, HEIGHT = 25, 11  # of the number of a point, in pixels
NAME = {"plan": "plan", "coordinates at the inputs": "coordinates", "norm scale": "norm_scale"}
ONLINE = {"online_transforms": "transforms", "online_fmas": "FMAs / 1000"}
SCORES = {"delta_nll": "loss", "kl_mean": "KL", "kl_p99": "KL 99%", "same_top1": "same top"}
FORMS = {
    "online_transforms": "{0.mean:.0f}".format,
    "online_fmas": lambda found: f"{found.mean / 1000:,.0f}",
    "delta_nll": lambda found: found.with_error(3),
    "kl_mean": "{0.mean:.3f}".format,
    "kl_p99": "{0.mean:.2f}".format,
    "same_top1": "{0.mean:.1%}".format,
}


def means(rows: Sequence[Row], windows: int) -> list[Row]:
    """Means over seeds, of the cases that have all windows; of scores that all seeds have."""
    seeds: dict[Any, set[Any]] = defaultdict(set)

    def at(row: Row, metric: str) -> Any:
        return (*(row.config.get(name) for name in Case._fields), metric)

    for row in rows:
        seeds[at(row, row.metric)].add(row.seed)
    kept = [
        row for row in rows
        if row.metric in ONLINE or seeds[at(row, "delta_nll")] <= seeds[at(row, row.metric)]
    ]  # fmt: skip
    return complete(averaged(kept, "seed"), windows, Case._fields, "delta_nll")


def scored(study: Study, base: Mapping[str, Any], cases: Sequence[Case], windows: int) -> list[Row]:
    """The `means` of these cases, in their order."""
    whole = means(study.rows(**base), windows)
    return [row for case in cases for row in select(whole, **case._asdict())]


def text(study: Study, base: Mapping[str, Any], cases: Sequence[Case], windows: int) -> list[str]:
    """The report in Markdown, by paragraphs."""
    rows = scored(study, base, cases, windows)
    parts = [
        f"# Linear layers of {base['model']}: rotate, align, or align and then flatten",
        f"{windows} windows of {base['length']} tokens of {base['text']}, all fitted on "
        f"{base['calibration']}. Scales are per token and per output channel, except for formats "
        "with groups; ranges have the least squared error in every row. Loss and KL in nats per "
        "token against the unquantized model: means over seeds, then over windows, ± the standard "
        "error over windows. FMAs: multiply-adds per token of online transforms, in thousands, "
        "all layers; transforms: number of online transforms per layer.",
    ]
    for setting, form in distinct(rows, "setting", "format"):
        parts += [f"## {setting}, {form}", table(select(rows, setting=setting, format=form))]
    looked = study.rows(**base, layer=...)
    looked = [*(row.with_config(input="all") for row in looked), *looked]
    if looked:
        parts += [
            "## Terms of the error per layer",
            "Mean over layers (`all`: and over inputs) on the first window, in dB: concentration "
            "of inputs and of weights, alignment, and the SQNR of the output in 4 bits, measured "
            "and by the law of CAT.",
            pivot(
                looked, ["format", "input", *NAME.values()], "metric",
                form="{0.mean:.1f}".format,
                over=("seed", "layer"),
            ),
        ]  # fmt: skip
    return parts


def table(rows: Sequence[Row]) -> str:
    """One line per method, in order of its best loss; means over seeds, then over windows."""
    heads: dict[Any, str] = dict(ONLINE)
    for rounding in distinct(rows, "rounding"):
        named = SCORES | {"delta_nll": f"{rounding}: loss"}
        heads |= {(rounding, metric): head for metric, head in named.items()}
    forms = {at: FORMS[at if isinstance(at, str) else at[1]] for at in heads}

    def column(row: Row) -> Any:
        return row.metric if row.metric in ONLINE else (row.config["rounding"], row.metric)

    over = ("window", "rounding")  # online transforms are the same for all roundings
    return pivot(rows, NAME, column, form=forms, order=heads, over=over, rank="delta_nll")


def figure(study: Study, base: Mapping[str, Any], cases: Sequence[Case], windows: int) -> Any:
    """Loss against online cost, one panel per setting and rounding; a line joins the best.

    Methods without online transforms are listed above a panel, unless it has no others.
    """
    rows = [row.with_config(name=short_name(row)) for row in scored(study, base, cases, windows)]
    kinds = distinct(rows, *KIND)
    panels = [select(rows, **dict(zip(KIND, kind, strict=True))) for kind in kinds]
    scores = [summarize_by(here, "delta_nll", "name") for here in panels]
    numbers: dict[str, str] = {}
    for losses in scores:
        for name in sorted(losses, key=lambda name, of=losses: of[name].mean):
            numbers.setdefault(name, str(len(numbers) + 1))
    chart, axes = new_figure(1, len(kinds), f"{base['model']}: loss against online cost")
    chart.set_figheight(max(chart.get_figheight(), 0.6 + 0.17 * len(numbers)))  # of the legend
    all_points = []
    for panel, kind, here, losses in zip(axes[0], kinds, panels, scores, strict=True):
        costs = summarize_by(here, "online_fmas", "name")
        found = [name for name in numbers if name in losses]
        online = [name for name in found if costs[name].mean]
        shown, merged = (online, [n for n in found if n not in online]) if online else (found, [])
        named = [
            row.with_config(name=f"{numbers[name]} {name}")
            for name in shown
            for row in select(here, name=name)
        ]
        drawn = draw_pairs(panel, named, "online_fmas", "delta_nll", "name", "", errors, style="o")
        points = {name: (cost, loss.mean) for name, [(cost, loss)] in drawn.items()}
        best = [points[name] for name in frontier(points)]
        panel.step(*zip(*best, strict=True), where="post", color="0.7", lw=1, zorder=0)
        title = [", ".join(kind)]
        if merged:
            said = ", ".join(f"{name} {losses[name].mean:.3f}" for name in merged)
            title += ["no online transform:", said]
        panel.set_title("\n".join(title), fontsize=8)
        costs_shown = [cost for cost, _ in points.values()]
        if max(costs_shown) > 10 * min(costs_shown):
            panel.set_xscale("log", subs=(2, 5))
            panel.xaxis.set_minor_formatter(_millions)
        panel.xaxis.set_major_formatter(_millions)
        panel.set_xlabel("online multiply-adds per token, millions")
        all_points.append(points)
    axes[0, 0].set_ylabel("delta nll, nats per token")
    chart.draw_without_rendering()  # numbers are placed in pixels
    for panel, points in zip(axes[0], all_points, strict=True):
        _number(panel, points)
    return chart


def _millions(value: float, _: Any = None) -> str:
    return f"{value / 1e6:g}"


def _number(panel: Any, points: Mapping[str, tuple[float, float]]) -> None:
    """Write the numbers of the best points beside them, above the numbers of lower neighbours."""
    placed: list[tuple[float, float]] = []
    for name, at in sorted(points.items(), key=lambda item: item[1][1])[:NUMBERED]:
        across, up = panel.transData.transform(at)
        y = max([up, *(y + HEIGHT for x, y in placed if abs(x - across) < WIDTH)])
        placed.append((across, y))
        above = (y - up) * 72 / panel.figure.dpi - 2
        panel.annotate(
            name.partition(" ")[0], at, (5, above), textcoords="offset points", fontsize=7
        )


def short_name(row: Row) -> str:
    """The plan, or the coordinates without the module of a member from outside."""
    config = row.config
    name = config["coordinates"] if config["plan"] == "inputs" else config["plan"]
    return "@".join(re.sub(r"^[\w.]+\.\w+:", "", stage) for stage in name.split("@"))
