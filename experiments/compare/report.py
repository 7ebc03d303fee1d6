"""The report of `compare`: the table, correlations of columns, a figure."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Sequence
from typing import Any

from isojax.report import (
    Row,
    Stat,
    Study,
    bullets,
    deviations,
    distinct,
    draw_pairs,
    errors,
    least,
    new_figure,
    pivot,
    select,
    summarize,
    summarize_by,
)

# of a metric, in the model after its setting
COLUMNS = {
    "kurtosis": "kurtosis",
    "peak_to_rms": "peak / rms",
    "effective_dims": "effective dims",
    "top_tenth_energy": "top tenth",
    "nmse": "NMSE at 3 bit",
    "rate_bits": "bits at NMSE .01",
    "outlier_mse": "outlier MSE",
    "noise_floor_mse": "floor MSE",
    "false_firings": "false firings",
    "missed_firings": "missed",
    "KV3 delta_nll": "KV 3 bit",
    "KV3 kl_mean": "KV KL",
    "KV3 rate_bits": "KV bits",
    "W4A4 delta_nll": "W4A4",
    "W4A4 kl_mean": "W4A4 KL",
    "params": "params",
    "fmas": "FMAs",
    "copy_ratio": "time / pass",
}
# over windows: with a standard error
LOSSES = ("KV3 delta_nll", "KV3 kl_mean", "W4A4 delta_nll", "W4A4 kl_mean")
BEST = ("nmse", "rate_bits", "outlier_mse", "noise_floor_mse", *LOSSES)  # the lower the better
PAIRS = (
    ("kurtosis", "nmse"), ("top_tenth_energy", "rate_bits"), ("peak_to_rms", "W4A4 delta_nll"),
)  # fmt: skip


def by_column(rows: Sequence[Row]) -> list[Row]:
    """Rows with the column as their metric, and controls among the coordinates."""
    found = []
    for row in rows:
        setting, control = row.config.get("setting", ""), row.config.get("quantizer")
        if setting != "exact":
            metric = f"{setting} {row.metric}".strip()
            named = row.with_config(coordinates=row.config.get("coordinates", control))
            found.append(dataclasses.replace(named, metric=metric))
    return found


def text(study: Study, base: dict[str, Any]) -> list[str]:
    """The report in Markdown, by paragraphs."""
    rows = study.rows(**base)
    exact = summarize(rows, "nll", setting="exact")
    return [
        f"# Every transform by every measure: {base['model']}",
        f"Columns to `missed`: the tensor {base['tensor']} on {exact.n} windows of "
        f"{base['length']} tokens of {base['text']}, mean ± sd over seeds. `effective dims` "
        "(exponential of the entropy) and `top tenth` are of the energy of the coordinates; NMSE "
        "has one absmax scale per vector; `bits at NMSE .01` are the entropy with one step and one "
        "code per coordinate, with the frequencies of the calibration text; outliers (top 1% "
        "of |x|), the floor (lowest 90%) and firings have one scale for the tensor. `KV 3 bit` "
        "(keys and values centred, 4 sinks exact; fixed levels, for pca levels fitted per "
        "coordinate and greedy bits) and `W4A4` (int4, one scale per row and token, to "
        f"nearest) are nats per token lost against {exact.mean:.4f}, `KL` the mean divergence from "
        "the unquantized model, in nats per token, ± standard error over windows and seeds; axes "
        "are per layer and key head, one for the residual stream. `KV bits` are bits "
        "per element, norms and exact tokens counted. Parameters and FMAs of one vector; time "
        f"in passes over the tensor (x + 1). Fitted on {base['calibration']}. A dash: the "
        "coordinates have no such form here (learned axes of down_proj's input are a Hadamard "
        "rotation, which is online). Bold: the least of a column, where more than two standard "
        "errors below the second.",
        lines(rows),
        bullets(answers(by_column(rows))),
    ]


def lines(rows: Sequence[Row]) -> str:
    """One line per coordinates."""
    rows = by_column(rows)
    shown = {metric: head for metric, head in COLUMNS.items() if select(rows, metric)}
    forms = {}
    for metric in shown:
        found = summarize_by(rows, metric, "coordinates", coordinates=tuple(_names(rows)))
        best = found.get(least(found)) if metric in BEST else None
        forms[metric] = functools.partial(_cell, best=best, loss=metric in LOSSES)
    return pivot(rows, ["coordinates"], "metric", form=forms, order=shown)


def answers(rows: Sequence[Row]) -> list[str]:
    """Rank correlations of columns over the coordinates."""
    said, names = [], tuple(_names(rows))
    for pair in PAIRS:
        found = [summarize_by(rows, metric, "coordinates", coordinates=names) for metric in pair]
        both = [name for name in names if all(name in each for each in found)]
        sides = [[each[name].mean for name in both] for each in found]
        if len(both) > 2 and all(len(set(side)) > 1 for side in sides):
            rho = statistics.correlation(*map(_ranks, sides))
            one, other = (COLUMNS[metric] for metric in pair)
            said.append(
                f"Rank correlation over {len(both)} coordinates of {one} with {other}: {rho:+.2f}."
            )
    return said


def figure(study: Study, base: dict[str, Any]) -> Any:
    """The value of flattening and concentration: one panel per pair of columns."""
    rows = by_column(study.rows(**base))
    rows = select(rows, coordinates=tuple(_names(rows)))
    chart, axes = new_figure(1, len(PAIRS), f"Rotate or align: {base['model']}")
    for panel, (one, other) in zip(axes[0], PAIRS, strict=True):
        spread = errors if other in LOSSES else deviations
        draw_pairs(panel, rows, one, other, "coordinates", spread=spread)
        panel.set_xlabel(COLUMNS[one])
        panel.set_ylabel(COLUMNS[other])
    axes[0, 0].set_xscale("log")
    axes[0, 0].set_xticks([2, 3, 5, 10, 20, 40], ["2", "3", "5", "10", "20", "40"])
    axes[0, 0].minorticks_off()
    return chart


def _cell(found: Stat, best: Stat | None, loss: bool) -> str:
    cell = found.with_error(3) if loss and found.n > 1 else found.format(3)
    return f"**{cell}**" if found == best else cell


def _names(rows: Sequence[Row]) -> list[str]:
    """All coordinates, without the controls."""
    return distinct(select(rows, "fmas"), "coordinates")


def _ranks(values: Sequence[float]) -> list[float]:
    return [sorted(values).index(v) for v in values]
