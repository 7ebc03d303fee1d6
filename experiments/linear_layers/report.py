"""The report of `linear_layers`: losses against online cost, and their causes."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from isojax.report import (
    Row,
    Stat,
    Study,
    draw_curve,
    errors,
    markdown,
    new_figure,
    pivot,
    select,
    stat,
)

from .methods import Case

NAME = {"plan": "plan", "coordinates": "coordinates at the inputs", "norm_scale": "norm scale"}


def text(study: Study, base: Mapping[str, Any], cases: Sequence[Case], windows: int) -> str:
    """The report in Markdown."""
    rows = study.rows(**base)
    parts = [
        f"# Linear layers of {base['model']}: rotate, align, or align and then flatten",
        f"{windows} windows of {base['length']} tokens of {base['text']}, all fitted on "
        f"{base['calibration']}. Scales are per token and per output channel, except for formats "
        "with groups; ranges have the least squared error in every row. Loss and KL in nats per "
        "token against the unquantized model: means over seeds, then over windows, ± the standard "
        "error over windows. FMAs: multiply-adds per token of online transforms, in thousands, "
        "all layers; transforms: number of online transforms per layer.",
    ]
    for setting, form in dict.fromkeys((c.setting, c.format) for c in cases):
        here = [c for c in cases if (c.setting, c.format) == (setting, form)]
        parts += [f"## {setting}, {form}", _table(rows, here, windows)]
    looked = select(rows, "alignment_db")
    if looked:
        parts += [
            "## Terms of the error per layer",
            "Mean over layers on the first window, in dB: concentration of inputs and of weights, "
            "alignment, and the SQNR of the output in 4 bits, measured and by the law of CAT.",
            pivot(
                [r for r in rows if "layer" in r.config], ["input", *NAME], "metric",
                form=lambda s: f"{s.mean:.1f}", over=("seed", "layer"),
            ),
        ]  # fmt: skip
    return "\n\n".join(parts)


def _table(rows: Sequence[Row], cases: Sequence[Case], windows: int) -> str:
    """One line per method, in order of its best loss."""
    roundings = list(dict.fromkeys(c.rounding for c in cases))
    lines: dict[tuple[str, ...], dict[str, Any]] = {}
    for case in cases:
        own = select(rows, **case._asdict())
        loss = by_window(own, "delta_nll", windows)
        if loss is not None:
            lines.setdefault(case[:3], {})[case.rounding] = own
    ranked = sorted(lines.items(), key=lambda item: _best(item[1], windows))
    head = [*NAME.values(), "transforms", "FMAs / 1000"]
    for rounding in roundings:
        head += [f"{rounding}: loss", "KL", "KL 99%", "same top"]
    body = []
    for name, found in ranked:
        any_rows = next(iter(found.values()))
        online = [_mean(any_rows, m) for m in ("online_transforms", "online_fmas")]
        line = [*name, f"{online[0]:.0f}", f"{online[1] / 1000:,.0f}"]
        for rounding in roundings:
            own = found.get(rounding, [])
            loss, kl = (by_window(own, m, windows) for m in ("delta_nll", "kl_mean"))
            if loss is None or kl is None:
                line += ["-"] * 4
                continue
            top = by_window(own, "same_top1", windows)
            line += [f"{loss.mean:.3f} ± {loss.sem:.3f}", f"{kl.mean:.3f}",
                     f"{_mean(own, 'kl_p99'):.2f}", f"{top.mean:.1%}" if top else "-"]  # fmt: skip
        body.append(line)
    return markdown(head, body)


def by_window(rows: Sequence[Row], metric: str, windows: int) -> Stat | None:
    """Statistics over windows of the mean over seeds; None unless all windows are there."""
    found: dict[int, list[float]] = {}
    for row in select(rows, metric):
        if "window" in row.config:
            found.setdefault(row.config["window"], []).append(row.value)
    if any(i not in found for i in range(windows)):
        return None
    return stat(statistics.fmean(found[i]) for i in range(windows))


def _best(found: Mapping[str, Sequence[Row]], windows: int) -> float:
    losses = [by_window(rows, "delta_nll", windows) for rows in found.values()]
    return min(loss.mean for loss in losses if loss is not None)


def _mean(rows: Sequence[Row], metric: str) -> float:
    values = [row.value for row in select(rows, metric)]
    return statistics.fmean(values) if values else float("nan")


def figure(study: Study, base: Mapping[str, Any], cases: Sequence[Case], windows: int) -> Any:
    """Loss against online cost, one panel per setting and rounding; a line joins the best."""
    rows = study.rows(**base)
    kinds = list(dict.fromkeys((c.setting, c.format, c.rounding) for c in cases))
    chart, axes = new_figure(1, len(kinds), f"{base['model']}: loss against online cost")
    numbers: dict[str, int] = {}
    for panel, kind in zip(axes[0], kinds, strict=True):
        points = []
        for case in cases:
            own = select(rows, **case._asdict()) if case[3:] == kind else []
            loss = by_window(own, "delta_nll", windows)
            if loss is not None:
                name = case.coordinates if case.plan == "inputs" else case.plan
                points.append((_mean(own, "online_fmas") / 1000, loss, name))
        for cost, loss, name in sorted(points, key=lambda point: point[1].mean):
            number = numbers.setdefault(name, len(numbers) + 1)
            draw_curve(panel, [cost], [loss], f"{number} {_short(name)}", errors, style="o")
            panel.annotate(
                str(number), (cost, loss.mean), (4, 2), textcoords="offset points", fontsize=7
            )
        best = _frontier([(cost, loss.mean) for cost, loss, _ in points])
        if best:
            panel.step(*zip(*best, strict=True), where="post", color="0.7", lw=1, zorder=0)
        panel.set_title(", ".join(kind))
        panel.set_xlabel("online multiply-adds per token / 1000")
        panel.set_xscale("symlog", linthresh=100)
        panel.set_yscale("symlog", linthresh=0.01)
    axes[0, 0].set_ylabel("delta nll, nats per token")
    axes[0, -1].legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    return chart


def _short(name: str) -> str:
    """A chain without the module of a member from outside."""
    return "@".join(re.sub(r"^[\w.]+\.\w+:", "", stage) for stage in name.split("@"))


def _frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points for which no other one with at most their cost has less loss."""
    kept: list[tuple[float, float]] = []
    for cost, loss in sorted(points):
        if not kept or loss < kept[-1][1]:
            kept.append((cost, loss))
    return kept
