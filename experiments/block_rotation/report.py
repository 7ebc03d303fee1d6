"""The report of `block_rotation`: perplexities, recoveries, layers, a figure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from isojax.report import (
    Row,
    Stat,
    Study,
    complete,
    draw_curve,
    draw_lines,
    errors,
    markdown,
    new_figure,
    select,
    stat,
    summarize,
)

from .answers import answers, losses, share
from .points import (
    FITTED,
    LABELS,
    PUBLISHED,
    PUBLISHED_BLOCKS,
    PUBLISHED_PERPLEXITY,
    Point,
    coordinates_of,
    parts,
)

LOOKS = {
    "relative_error": "relative error",
    "peak_before": "max before",
    "peak": "max after",
    "peak_expected": "expected",
    "peak_bound": "bound",
    "kurtosis": "kurtosis after",
    "imbalance_of_mean": "imbalance of the mean",
    "imbalance_of_tokens": "of tokens",
}
WORST = 4  # layers


def add_published(study: Study) -> None:
    """Record the published perplexities, so that tables are made only from rows."""
    for permutation, values in PUBLISHED_PERPLEXITY.items():
        for block, perplexity in zip(PUBLISHED_BLOCKS, values, strict=True):
            own = {"rounding": "nearest", "coordinates": coordinates_of(permutation, block)}
            config = PUBLISHED | own
            study.add_published(config, {"perplexity": perplexity}, {"perplexity": "1"})
    study.add_published(PUBLISHED | {"setting": "exact"}, {"perplexity": 11.7}, {"perplexity": "1"})


def by_parts(rows: Sequence[Row]) -> list[Row]:
    """The rows with block and permutation in place of coordinates, setting and rounding as one."""
    found = []
    for row in rows:
        config = dict(row.config)
        if "coordinates" in config:
            block, permutation = parts(config["coordinates"])
            config |= {"block": block, "permutation": permutation}
        if config.get("rounding") in FITTED:
            config["setting"] += f", {config['rounding']}"
        found.append(dataclasses.replace(row, config=config))
    return found


def text(study: Study, base: dict[str, Any], windows: int) -> str:
    """The report in Markdown."""
    rows = by_parts(study.rows(**base))
    whole = complete(rows, windows, Point._fields)
    scored = select(whole, "delta_nll")
    exact = summarize(whole, "nll", setting="exact")
    full = max(r.config["block"] for r in scored)
    parts = [
        f"# Block rotations and permutations in {base['model']}",
        f"{windows} windows of {base['length']} tokens of {base['text']}; unquantized nll "
        f"{exact.mean:.4f} nats per token, perplexity {math.exp(exact.mean):.3f}. Permutations are "
        f"fitted on {base['calibration']}. A cell is delta nll ± its standard error over windows, "
        "and the perplexity. Block 0 is no rotation before down_proj, the last one the full one; "
        "smooth is SmoothQuant in place of all rotations. "
        "Recovery is (none - permuted) / (none - full) of the delta nll, ± by the jackknife over "
        "windows; a dash for one window, or where none and full are less than two standard errors "
        "apart. Windows share seeds (of signs and random permutations), window i seed i modulo "
        f"{len({r.seed for r in scored})}.",
    ]
    for setting in dict.fromkeys(r.config["setting"] for r in scored):
        for form in dict.fromkeys(r.config["format"] for r in select(scored, setting=setting)):
            here = select(scored, setting=setting, format=form)
            looked = [r for r in select(rows, format=form) if "layer" in r.config]
            parts += [
                f"## {setting}, {form}", answers(here, looked, full),
                grid(here, exact.mean, full), recoveries(here, full),
            ]  # fmt: skip
    alone = select(scored, setting="A4-down")
    if len({r.config["format"] for r in alone}) > 1:
        parts += ["## Formats of down_proj's input", formats(alone, rows)]
    parts += [f"## Published: {PUBLISHED['model']}, INT4 W4A4", published(study)]
    if select(rows, "relative_error"):
        parts += ["## The input of down_proj, by layers", *by_layers(rows)]
    return "\n\n".join(p for p in parts if p)


def grid(rows: Sequence[Row], exact: float, full: int) -> str:
    """Loss by block and permutation; no rotation and the full one have no permutation."""
    blocks = sorted({r.config["block"] for r in rows})
    lines = []
    for permutation in dict.fromkeys(r.config["permutation"] for r in rows):
        cells = []
        for block in blocks:
            mine = select(rows, permutation=permutation, block=block)
            loss = summarize(mine, "delta_nll") if mine else None
            cells.append(_cell(loss, exact) if loss else "")
        lines.append([permutation, *cells])
    names = ["full" if b == full else str(b) for b in blocks]
    return markdown(["permutation", *names], lines)


def formats(scored: Sequence[Row], rows: Sequence[Row]) -> str:
    """Loss and bits per element of each format: no rotation, the shortest blocks, the full one."""
    points = dict.fromkeys((r.config["block"], r.config["permutation"]) for r in scored)
    blocks = sorted({block for block, _ in points})
    shown = (*blocks[:2], blocks[-1])
    points = sorted((p for p in points if p[0] in shown), key=lambda point: point[0])
    lines = []
    for form in dict.fromkeys(r.config["format"] for r in scored):
        bits = select(rows, "rate_bits", format=form, block=0)
        cells = [f"{stat(r.value for r in bits).mean:.2f}" if bits else "-"]
        for block, permutation in points:
            mine = select(scored, format=form, block=block, permutation=permutation)
            loss = summarize(mine, "delta_nll") if mine else None
            cells.append(f"{loss.mean:.4f} ± {loss.sem:.4f}" if loss else "")
        lines.append([form, *cells])
    names = [f"{_length(block)} {permutation}" for block, permutation in points]
    table = markdown(["format", "bits", *names], lines)
    return f"Bits per element, scales counted; delta nll in nats per token ± se.\n\n{table}"


def recoveries(rows: Sequence[Row], full: int) -> str:
    """The share of the full rotation's gain over a block that a permutation reaches."""
    blocks = sorted({r.config["block"] for r in rows} - {0, full})
    names = dict.fromkeys(r.config["permutation"] for r in rows if r.config["block"])
    best = losses(rows, full, "none")
    lines = []
    for name in names:
        if name != "none":
            each = [(losses(rows, b, "none"), losses(rows, b, name)) for b in blocks]
            lines.append([name, *(share(none, mine, best) for none, mine in each)])
    return markdown(["recovery", *map(str, blocks)], lines) if lines and blocks else ""


def _length(block: float) -> str:
    return "full" if block == math.inf else str(block)


def _cell(loss: Stat, exact: float) -> str:
    return f"{loss.mean:.4f} ± {loss.sem:.4f} ({_perplexity(exact + loss.mean)})"


def _perplexity(nll: float) -> str:
    return f"{math.exp(nll):.4g}" if nll < 100 else "inf"


def published(study: Study) -> str:
    """The paper's row, which is of another model."""
    rows = by_parts(study.rows("perplexity", model=PUBLISHED["model"]))
    lines = []
    for permutation in PUBLISHED_PERPLEXITY:
        mine = select(rows, permutation=permutation)
        lines.append([permutation, *(f"{r.value:.1f}" for r in mine)])
    (float_,) = select(rows, setting="exact")
    head = [f"perplexity (float {float_.value:.1f})", *map(str, PUBLISHED_BLOCKS)]
    return markdown(head, lines)


def by_layers(rows: Sequence[Row]) -> list[str]:
    """Means over layers for each block and permutation; the layers with the largest error."""
    looked = [r for r in rows if "layer" in r.config]
    form = looked[0].config["format"]
    looked = select(looked, format=form)
    lines = []
    for block in sorted({r.config["block"] for r in looked}):
        for name in dict.fromkeys(r.config["permutation"] for r in select(looked, block=block)):
            mine = select(looked, block=block, permutation=name)
            cells = [f"{summarize(mine, metric).mean:.4g}" for metric in LOOKS]
            lines.append([_length(block), name, *cells])
    table = markdown(["block", "permutation", *LOOKS.values()], lines)
    plain = select(looked, block=0)
    share = summarize(plain, "persistent_share")
    worst = sorted(select(plain, "relative_error"), key=lambda r: -r.value)[:WORST]
    named = ", ".join(
        f"layer {r.config['layer']} ({r.value:.3f}; persistent "
        f"{summarize(plain, 'persistent_share', layer=r.config['layer']).mean:.0%})"
        for r in worst
    )
    said = (
        f"Means over layers, first window, {form}, seed 0. Of the largest 1% of all |x|, "
        f"{share.mean:.0%} ({share.low:.0%} to {share.high:.0%} by layers) lie in the 1% of "
        "channels with the largest calibration mean: these are persistent, and a permutation "
        f"fitted on the mean can even them out. Largest error without rotation: {named}."
    )
    return [said, table]


def figure(study: Study, base: dict[str, Any], windows: int) -> Any:
    """Loss over block length for each setting, and the peak against its bound."""
    rows = [r for r in by_parts(study.rows(**base)) if "block" in r.config]
    scored = select(complete(rows, windows, Point._fields), "delta_nll")
    forms = list(dict.fromkeys(r.config["format"] for r in scored))
    scored = select(scored, format=forms[0])
    settings = [setting for setting in LABELS if select(scored, setting=setting)]
    title = f"Block rotations in {base['model']}, {forms[0]}"
    columns = math.ceil((len(settings) + 1) / (1 if len(settings) < 4 else 2))
    chart, axes = new_figure(math.ceil((len(settings) + 1) / columns), columns, title)
    panels = list(axes.flat)
    for panel in panels[len(settings) + 1 :]:
        panel.remove()
    blocks = sorted({r.config["block"] for r in scored})
    for panel, setting in zip(panels, settings, strict=False):
        mine = select(scored, setting=setting, format=forms[0])
        draw_lines(panel, mine, "delta_nll", "block", "permutation", order=blocks, spread=errors)
        panel.set_title(setting, fontsize=10)
        panel.set_xlabel("block (0: no rotation)")
    for row in axes:
        row[0].set_ylabel("delta nll, nats per token")
    panel = panels[len(settings)]
    looked = select([r for r in rows if "layer" in r.config], format=forms[0])
    for name in dict.fromkeys(r.config["permutation"] for r in looked):
        mine = select(looked, permutation=name)
        at = sorted({r.config["block"] for r in mine})
        for metric, style in (("peak", "o-"), ("peak_expected", ":"), ("peak_bound", "--")):
            found = [summarize(mine, metric, block=b) for b in at]
            draw_curve(panel, [blocks.index(b) for b in at], found, name, errors, style=style)
    for panel in panels[: len(settings) + 1]:
        panel.set_xticks(range(len(blocks)), map(_length, blocks))
    panel.set_yscale("log")
    panel.set_xlabel("block (0: no rotation)")
    panel.set_title("largest element (dotted: expected, dashed: bound)", fontsize=8)
    return chart
