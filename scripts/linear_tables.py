"""The tables of linear layers in docs/findings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from doc_tables import WINDOWS, short

from experiments.linear_layers.report import means, short_name
from isojax.report import Row, distinct, markdown, paired, select, summarize

GROUPED = ("int4g32", "int4g128", "mxfp4", "nvfp4")


def linear_layers(rows: list[Row]) -> str:
    """Losses in W4A4, INT4, of the real models, and their shares of that of QuaRot."""
    return _int4([r for r in _scored(rows) if r.config["model"] != "tiny"])


def linear_tiny(rows: list[Row]) -> str:
    """The same of the tiny model."""
    return _int4(select(_scored(rows), model="tiny"))


def _int4(rows: list[Row]) -> str:
    rows = select(rows, setting="W4A4", format="int4")

    def line(own: list[Row], whole: list[Row], seeded: list[Row]) -> tuple[list[float], list[Any]]:
        fmas = summarize(own, "online_fmas").mean / 1000
        cells: list[Any] = [f"{summarize(own, 'online_transforms').mean:.0f}", f"{fmas:,.0f}"]
        cells.append(_seeds(seeded))
        for rounding in ("nearest", "gptq"):
            loss, kl = _scores(select(own, rounding=rounding))
            base = select(whole, name="quarot", rounding=rounding)
            cells += [loss, _share(select(own, rounding=rounding), base), kl]
        rank = [summarize(select(own, rounding=r), "delta_nll").mean
                for r in ("gptq", "nearest") if select(own, rounding=r)]  # fmt: skip
        return rank, cells

    head = ["online", "FMAs / 1000", "seeds"]
    scores = ["loss", "of quarot's", "KL"]
    heads = [f"{rounding}: {score}" for rounding in ("nearest", "GPTQ") for score in scores]
    return _ranked(rows, [*head, *heads], line)


def linear_formats(rows: list[Row]) -> str:
    """Losses in W4A4, weights to nearest, in formats whose groups share a scale.

    In order of the loss in the first format that has one.
    """
    rows = select(_scored(rows), setting="W4A4", rounding="nearest", format=GROUPED)
    formats = distinct(rows, "format")

    def line(own: list[Row], whole: list[Row], seeded: list[Row]) -> tuple[list[float], list[Any]]:
        rank, cells = [], []
        for form in formats:
            mine = select(own, format=form)
            rank.append(summarize(mine, "delta_nll").mean if mine else math.inf)
            seeds = _seeds(select(seeded, format=form)) if mine else "-"
            cells += [*_scores(mine), seeds]
        return rank, cells

    heads = [f"{form}: {head}" for form in formats for head in ("loss", "KL", "seeds")]
    return _ranked(rows, heads, line)


def _ranked(rows: list[Row], heads: list[str], line: Callable[..., Any]) -> str:
    """A table with a line per model and method, in order of rank within a model.

    `line` makes rank and cells from the means over seeds of a method, those of all methods, and
    the rows of the method by seed.
    """
    lines = []
    for model in distinct(rows, "model"):
        mine = select(rows, model=model)
        whole, found = means(mine, WINDOWS), []
        for name in distinct(whole, "name"):
            rank, cells = line(select(whole, name=name), whole, select(mine, name=name))
            found.append((rank, [short(model), f"`{name}`", *cells]))
        lines += [cells for _, cells in sorted(found, key=lambda item: item[0])]
    return markdown(["model", "inputs of linear layers", *heads], lines)


def _scored(rows: list[Row]) -> list[Row]:
    """Rows of whole models, with a short name of the method."""
    rows = [r for r in rows if r.experiment == "linear_layers"]
    return [r.with_config(name=short_name(r)) for r in select(rows, rounding=...)]


def _seeds(rows: list[Row]) -> int:
    return len({row.seed for row in select(rows, "delta_nll")})


def _scores(rows: list[Row]) -> tuple[str, str]:
    """Loss and KL, where there are any."""
    if not rows:
        return "-", "-"
    loss, kl = (summarize(rows, metric) for metric in ("delta_nll", "kl_mean"))
    return loss.with_error(3), f"{kl.mean:.3f}"


def _share(rows: list[Row], base: list[Row]) -> str:
    """The loss as a share of another on the same windows."""
    names = ("plan", "coordinates", "norm_scale", "name")
    sides = [{n: side[0].config[n] for n in names} for side in (rows, base) if side]
    if len(sides) < 2 or sides[0] == sides[1]:
        return "-"
    found = paired([*rows, *base], "delta_nll", *sides, relative=True)
    return f"{1 + found.mean:.3f} ± {found.sem:.3f}"


TABLES = {make.__name__: make for make in (linear_layers, linear_tiny, linear_formats)}
