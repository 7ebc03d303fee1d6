"""The report of `alignment`: claims, tables at equal rate, a figure."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from isojax.report import (
    Row,
    Stat,
    Study,
    bullets,
    deviations,
    distinct,
    draw_curve,
    new_figure,
    pivot,
    select,
    summarize_by,
)

CODINGS = {
    "fixed": "one set of levels, one norm per vector",
    "allocated": "whole bits by component",
    "entropy": "one step, one entropy code per component",
    "lattice": "the same with E8 in place of integers",
    "lattice_d4": "the same with D4, as blocks of E8 do not divide the vector",
}
LOOKS = {
    "kurtosis": "kurtosis",
    "peak_to_rms": "peak / rms",
    "coding_gain_db": "coding gain, dB",
    "effective_dims": "effective dimensions",
    "top_tenth_energy": "energy in the top tenth",
}
ABOVE = "above_bound_db"
OVER = ("seed", "layer")
FORM = functools.partial(Stat.format, digits=3)


def above_bound(rows: Sequence[Row]) -> list[Row]:
    """Errors of one tensor in dB above Shannon's bound, by whole rates: rows of `ABOVE`.

    For all coordinates and codings at the rates (`bits`) that all layers and seeds reach,
    interpolated between measured rates.
    """
    bound = {
        (r.config["layer"], r.config["bits"]): _db(r.value)
        for r in select(rows, "nmse", coding="shannon")
    }
    spent = {_point(r): r.value for r in select(rows, "rate_bits")}
    curves: dict[Any, dict[Any, list[Row]]] = {}
    for row in sorted(select(rows, "nmse", coordinates=...), key=lambda r: r.config["bits"]):
        each = curves.setdefault((row.config["coordinates"], row.config["coding"]), {})
        each.setdefault((row.config["layer"], row.seed), []).append(row)
    found = []
    for each, bits in itertools.product(curves.values(), sorted({bits for _, bits in bound})):
        here = []
        for (layer, _), points in each.items():
            rates = [spent[_point(p)] for p in points]
            if min(rates) <= bits <= max(rates):
                error = float(np.interp(bits, rates, [_db(p.value) for p in points]))
                row = points[0].with_config(bits=bits)
                own = {"value": error - bound[layer, bits], "metric": ABOVE, "unit": "dB"}
                here.append(dataclasses.replace(row, **own))
        found += here if len(here) == len(each) else []
    return found


def less(rows: Sequence[Row], name: str) -> list[Row]:
    """Rows minus the mean over seeds of the coordinates `name`, layer by layer."""
    names = ("coding", "layer", "bits")
    level = summarize_by(rows, ABOVE, *names, coordinates=name)
    each = [(row, level.get(tuple(row.config[n] for n in names))) for row in rows]
    return [dataclasses.replace(r, value=r.value - mean.mean) for r, mean in each if mean]


def text(study: Study, base: dict[str, Any]) -> list[str]:
    """The report in Markdown, by paragraphs."""
    rows = study.rows(**base)
    parts = [
        f"# Rotate or align: {base['model']}",
        f"Vectors of {base['text']}, {base['length']} tokens per window; axes, levels, steps and "
        f"bits fitted on {base['calibration']} (for weights, on every other output). Values are "
        "means ± sd over layers and seeds. `above the bound` is the error in dB above Shannon's "
        "bound for Gaussian vectors of the test covariance, at the rate of the column, norms "
        "counted, interpolated between measured rates; a dash where a coding does not reach it. "
        "Axes, levels and code tables, which are stored once, are not counted: fitted axes of a "
        "weight are as large as the matrix itself.",
    ]
    for tensor in distinct(rows, "tensor"):
        here = select(rows, tensor=tensor, coordinates=...)
        above = above_bound(select(rows, tensor=tensor))
        parts += [
            f"## {tensor}", answers(here, above),
            pivot(here, ["coordinates"], "metric", None, FORM, order=LOOKS, over=OVER),
        ]  # fmt: skip
        for coding, words in CODINGS.items():
            mine = select(above, coding=coding)
            rates = {b: f"{b} bit" for b in sorted(distinct(mine, "bits"))}
            head = {f"`{coding}` ({words}): above the bound, dB": "coordinates"}
            if rates:
                parts.append(pivot(mine, head, "bits", None, FORM, order=rates, over=OVER))
            parts.append(hidden(select(here, coding=coding), coding, rates))
    return parts


def hidden(rows: Sequence[Row], coding: str, rates: Iterable[float]) -> str:
    """The number of measured errors that no column of `rates` uses, and their least rate."""
    spent = {_point(r): r.value for r in select(rows, "rate_bits")}
    curves: dict[Any, list[float]] = {}
    for row in select(rows, "nmse"):
        own = row.config["coordinates"], row.config["layer"], row.seed
        curves.setdefault(own, []).append(spent[_point(row)])
    left, number = [], 0
    for each in curves.values():
        below = {max((s for s in each if s <= rate), default=None) for rate in rates}
        above = {min((s for s in each if s >= rate), default=None) for rate in rates}
        left += [s for s in each if s not in below | above]
        number += len(each)
    if not left:
        return ""
    return (
        f"`{coding}`: {len(left)} of {number} measured errors are beyond these rates, from "
        f"{min(left):.2f} bits per element on, and only in rows.jsonl."
    )


def answers(rows: Sequence[Row], above: Sequence[Row]) -> str:
    """The best coordinates per coding, and their margins."""
    means = {metric: summarize_by(rows, metric, "coordinates") for metric in LOOKS}
    said = []
    if {"identity", "haar"} <= set(means["kurtosis"]):
        kurtosis, peak = (
            " to ".join(f"{means[metric][name].mean:.3g}" for name in ("identity", "haar"))
            for metric in ("kurtosis", "peak_to_rms")
        )
        said.append(f"Rotation flattens: kurtosis {kurtosis}, peak over rms {peak}.")
    gains = ", ".join(f"{n} {gain.mean:.2f}" for n, gain in means["coding_gain_db"].items())
    said.append(f"Alignment concentrates: coding gain in dB, {gains}.")
    for coding in CODINGS:
        mine = select(above, coding=coding)
        each = summarize_by(mine, ABOVE, "bits", "coordinates")
        names = distinct(mine, "coordinates")
        rates = [b for b in sorted(distinct(mine, "bits")) if all((b, n) in each for n in names)]
        if rates:
            best = {b: min(names, key=lambda n, b=b: each[b, n].mean) for b in rates}
            wins = ", ".join(f"{b} bit {n}" for b, n in best.items())
            said.append(f"Least error, `{coding}`: {wins}.")
        if rates and {"haar", "pca"} <= set(names):
            gap = summarize_by(less(mine, "pca"), ABOVE, "bits", coordinates="haar")
            shown = ", ".join(f"{b} bit {gap[b].mean:+.2f} ± {gap[b].sd:.2f}" for b in rates)
            said.append(f"Error of haar over that of pca, `{coding}`, in dB: {shown}.")
    return bullets(said)


def figure(study: Study, base: dict[str, Any]) -> Any:
    """Error against haar's, layer by layer: one row of panels per tensor, one panel per coding.

    Without haar, the distance from the bound.
    """
    rows = study.rows(**base)
    tensors = distinct(rows, "tensor")
    title = f"Rotate or align: {base['model']}"
    codings = [c for c in CODINGS if select(rows, "nmse", coding=c)]
    chart, axes = new_figure(len(tensors), len(codings), title)
    relative = bool(select(rows, coordinates="haar"))
    for line, tensor in zip(axes, tensors, strict=True):
        above = above_bound(select(rows, tensor=tensor))
        above = less(above, "haar") if relative else above
        line[0].set_ylabel("error in dB, against haar" if relative else "dB above the bound")
        for panel, coding in zip(line, codings, strict=True):
            for name in distinct(above, "coordinates"):
                found = summarize_by(above, ABOVE, "bits", coding=coding, coordinates=name)
                if found:
                    draw_curve(panel, list(found), list(found.values()), name, deviations)
            panel.set_title(f"{tensor}, {coding}", fontsize=9)
            panel.set_visible(panel.has_data())
    for panel in axes[-1]:
        panel.set_xlabel("bits per element")
    return chart


def _point(row: Row) -> tuple[Any, ...]:
    own = (row.config.get(k) for k in ("coordinates", "coding", "layer", "bits"))
    return (*own, row.seed)


def _db(nmse: float) -> float:
    return 10 * math.log10(max(nmse, 1e-12))
