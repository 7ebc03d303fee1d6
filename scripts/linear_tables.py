"""The tables of linear layers in docs/findings."""

from __future__ import annotations

import math

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
    lines = []
    for model in distinct(rows, "model"):
        mine = select(rows, model=model)
        whole, found = means(mine, WINDOWS), []
        for name in distinct(whole, "name"):
            own = select(whole, name=name)
            fmas = summarize(own, "online_fmas").mean / 1000
            seeds = {r.seed for r in select(mine, "delta_nll", name=name)}
            cells = [f"{summarize(own, 'online_transforms').mean:.0f}", f"{fmas:,.0f}", len(seeds)]
            for rounding in ("nearest", "gptq"):
                scored = select(own, rounding=rounding)
                base = select(whole, name="quarot", rounding=rounding)
                cells += _against(scored, base) if scored else ["-"] * 3
            rank = [summarize(select(own, rounding=r), "delta_nll").mean
                    for r in ("gptq", "nearest") if select(own, rounding=r)]  # fmt: skip
            found.append((rank, [short(model), f"`{name}`", *cells]))
        lines += [line for _, line in sorted(found, key=lambda item: item[0])]
    head = ["model", "inputs of linear layers", "online", "FMAs / 1000", "seeds"]
    scores = ["loss", "of quarot's", "KL"]
    heads = [f"{rounding}: {score}" for rounding in ("nearest", "GPTQ") for score in scores]
    return markdown([*head, *heads], lines)


def linear_formats(rows: list[Row]) -> str:
    """Losses in W4A4, weights to nearest, in formats whose groups share a scale.

    In order of the loss in the first format that has one.
    """
    rows = select(_scored(rows), setting="W4A4", rounding="nearest", format=GROUPED)
    formats, lines = distinct(rows, "format"), []
    for model in distinct(rows, "model"):
        mine = select(rows, model=model)
        whole, found = means(mine, WINDOWS), []
        for name in distinct(whole, "name"):
            cells, losses = [], []
            for form in formats:
                own = select(whole, name=name, format=form)
                seeds = {r.seed for r in select(mine, "delta_nll", name=name, format=form)}
                if not own:
                    losses.append(math.inf)
                    cells += ["-"] * 3
                    continue
                loss, kl = (summarize(own, metric) for metric in ("delta_nll", "kl_mean"))
                losses.append(loss.mean)
                cells += [loss.with_error(3), f"{kl.mean:.3f}", len(seeds)]
            found.append((losses, [short(model), f"`{name}`", *cells]))
        lines += [line for _, line in sorted(found, key=lambda item: item[0])]
    heads = [f"{form}: {head}" for form in formats for head in ("loss", "KL", "seeds")]
    return markdown(["model", "inputs of linear layers", *heads], lines)


def _scored(rows: list[Row]) -> list[Row]:
    """Rows of whole models, with a short name of the method."""
    rows = [r for r in rows if r.experiment == "linear_layers"]
    return [r.with_config(name=short_name(r)) for r in select(rows, rounding=...)]


def _against(rows: list[Row], base: list[Row]) -> list[str]:
    """Loss, its share of another loss on the same windows, and KL."""
    loss, kl = (summarize(rows, metric) for metric in ("delta_nll", "kl_mean"))
    names = ("plan", "coordinates", "norm_scale", "name")
    sides = [{n: side[0].config[n] for n in names} for side in (rows, base) if side]
    share = "-"
    if len(sides) == 2 and sides[0] != sides[1]:
        found = paired([*rows, *base], "delta_nll", *sides, relative=True)
        share = f"{1 + found.mean:.3f} ± {found.sem:.3f}"
    return [loss.with_error(3), share, f"{kl.mean:.3f}"]


TABLES = {make.__name__: make for make in (linear_layers, linear_tiny, linear_formats)}
