"""The tables of linear layers in docs/findings."""

from __future__ import annotations

import math

from doc_tables import WINDOWS, short

from experiments.linear_layers.report import means, short_name
from isojax.report import Row, distinct, markdown, paired, select, summarize

GROUPED = ("int4g32", "int4g128", "mxfp4", "nvfp4")


def linear_layers(rows: list[Row]) -> str:
    """Losses in W4A4, INT4, by coordinates of the inputs, and their shares of that of QuaRot."""
    rows = select(_scored(rows), setting="W4A4", format="int4")
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
    """Losses in W4A4, weights to nearest, in formats whose groups share a scale."""
    rows = select(_scored(rows), setting="W4A4", rounding="nearest")
    return _losses_by([r for r in rows if r.config["format"] in GROUPED], "format")


def linear_settings(rows: list[Row]) -> str:
    """Losses where only weights or only inputs are quantized, one scale per vector."""
    rows = [r for r in select(_scored(rows), format="int4") if r.config["setting"] != "W4A4"]
    return _losses_by(rows, "setting", "rounding")


def _scored(rows: list[Row]) -> list[Row]:
    """Rows of whole models, with a short name of the method."""
    rows = [r for r in rows if r.experiment == "linear_layers"]
    return [r.with_config(name=short_name(r)) for r in select(rows, rounding=...)]


def _losses_by(rows: list[Row], *by: str) -> str:
    """Loss and KL in columns of `by`, one line per method: means over seeds; best first."""
    kinds = distinct(rows, *by)
    kinds = [kind if isinstance(kind, tuple) else (kind,) for kind in kinds]
    lines = []
    for model in distinct(rows, "model"):
        whole, found = means(select(rows, model=model), WINDOWS), []
        for name in distinct(whole, "name"):
            cells, losses = [], []
            for kind in kinds:
                own = select(whole, name=name, **dict(zip(by, kind, strict=True)))
                loss = summarize(own, "delta_nll") if own else None
                losses.append(loss.mean if loss else math.inf)
                kl = summarize(own, "kl_mean") if own else None
                cells += [loss.with_error(3), f"{kl.mean:.3f}"] if loss and kl else ["-", "-"]
            found.append((losses, [short(model), f"`{name}`", *cells]))
        lines += [line for _, line in sorted(found, key=lambda item: item[0])]
    heads = [f"{' '.join(kind)}: {head}" for kind in kinds for head in ("loss", "KL")]
    return markdown(["model", "inputs of linear layers", *heads], lines)


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


TABLES = {make.__name__: make for make in (linear_layers, linear_formats, linear_settings)}
