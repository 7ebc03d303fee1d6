"""The report of `block_rotation`: perplexities, recoveries, layers, a figure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from isojax.report import (
    Row,
    Stat,
    Study,
    complete,
    distinct,
    draw_curve,
    draw_lines,
    errors,
    markdown,
    new_figure,
    pivot,
    select,
    summarize,
    summarize_by,
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
        if "coordinates" in row.config:
            block, permutation = parts(row.config["coordinates"])
            row = row.with_config(block=block, permutation=permutation)
        if (rounding := row.config.get("rounding")) in FITTED:
            row = row.with_config(setting=f"{row.config['setting']}, {rounding}")
        found.append(row)
    return found


def text(study: Study, base: dict[str, Any], windows: int) -> list[str]:
    """The report in Markdown, by paragraphs."""
    rows = by_parts(study.rows(**base))
    whole = complete(rows, windows, Point._fields)
    scored = select(whole, "delta_nll")
    exact = summarize(whole, "nll", setting="exact")
    full = max(distinct(scored, "block"))
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
    for setting, form in itertools.product(distinct(scored, "setting"), distinct(scored, "format")):
        here = select(scored, setting=setting, format=form)
        if not here:
            continue
        parts += [
            f"## {setting}, {form}", answers(here, select(rows, format=form, layer=...), full),
            grid(here, exact.mean, full), recoveries(here, full),
        ]  # fmt: skip
    alone = select(scored, setting="A4-down")
    if len(distinct(alone, "format")) > 1:
        parts += ["## Formats of down_proj's input", formats(alone, rows)]
    parts += [f"## Published: {PUBLISHED['model']}, INT4 W4A4", published(study)]
    if select(rows, "relative_error"):
        parts += ["## The input of down_proj, by layers", *by_layers(rows)]
    return parts


def grid(rows: Sequence[Row], exact: float, full: int) -> str:
    """Loss by block and permutation; no rotation and the full one have no permutation."""

    def cell(loss: Stat) -> str:
        return f"{loss.with_error()} ({_perplexity(exact + loss.mean)})"

    blocks = {b: "full" if b == full else str(b) for b in sorted(distinct(rows, "block"))}
    return pivot(rows, ["permutation"], "block", form=cell, order=blocks)


def formats(scored: Sequence[Row], rows: Sequence[Row]) -> str:
    """Loss and bits per element of each format: no rotation, the shortest blocks, the full one."""
    points = sorted(distinct(scored, "block", "permutation"), key=lambda point: point[0])
    blocks = sorted(distinct(scored, "block"))
    shown: dict[Any, str] = {"bits": "bits"}
    for block, permutation in points:
        if block in (*blocks[:2], blocks[-1]):
            shown[block, permutation] = f"{_length(block)} {permutation}"

    def column(row: Row) -> Any:
        loss = row.metric == "delta_nll"
        return (row.config["block"], row.config["permutation"]) if loss else "bits"

    table = pivot(
        [*scored, *select(rows, "rate_bits", block=0)], ["format"], column,
        form=dict.fromkeys(shown, Stat.with_error) | {"bits": "{0.mean:.2f}".format}, order=shown,
        over=("seed", "window", "layer"),
    )  # fmt: skip
    return f"Bits per element, scales counted; delta nll in nats per token ± se.\n\n{table}"


def recoveries(rows: Sequence[Row], full: int) -> str:
    """The share of the full rotation's gain over a block that a permutation reaches."""
    blocks = [block for block in sorted(distinct(rows, "block")) if 0 < block < full]
    best = losses(rows, full, "none")
    lines = [
        [name, *(share(losses(rows, b, "none"), losses(rows, b, name), best) for b in blocks)]
        for name in distinct(select(rows, block=tuple(blocks)), "permutation")
        if name != "none"
    ]
    return markdown(["recovery", *map(str, blocks)], lines) if lines else ""


def _length(block: float) -> str:
    return "full" if block == math.inf else str(block)


def _perplexity(nll: float) -> str:
    return f"{math.exp(nll):.4g}" if nll < 100 else "inf"


def published(study: Study) -> str:
    """The paper's row, which is of another model."""
    rows = by_parts(study.rows("perplexity", model=PUBLISHED["model"]))
    exact = summarize(rows, "perplexity", setting="exact").mean
    index = {f"perplexity (float {exact:.1f})": "permutation"}
    return pivot(select(rows, block=...), index, "block", form="{0.mean:.1f}".format)


def by_layers(rows: Sequence[Row]) -> list[str]:
    """Means over layers for each block and permutation; the layers with the largest error."""
    looked = select(rows, layer=...)
    form = looked[0].config["format"]
    looked = sorted(select(looked, format=form), key=lambda row: row.config["block"])
    index = {"block": lambda row: _length(row.config["block"]), "permutation": "permutation"}
    table = pivot(
        looked, index, "metric", form="{0.mean:.4g}".format, order=LOOKS, over=("seed", "layer")
    )
    plain = select(looked, block=0)
    share = summarize(plain, "persistent_share")
    errors, persistent = (
        summarize_by(plain, metric, "layer") for metric in ("relative_error", "persistent_share")
    )
    worst = sorted(errors, key=lambda layer: -errors[layer].mean)[:WORST]
    named = ", ".join(
        f"layer {i} ({errors[i].mean:.3f}; persistent {persistent[i].mean:.0%})" for i in worst
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
    rows = select(by_parts(study.rows(**base)), block=...)
    scored = select(complete(rows, windows, Point._fields), "delta_nll")
    form = scored[0].config["format"]
    scored = select(scored, format=form)
    settings = [setting for setting in LABELS if select(scored, setting=setting)]
    number = len(settings) + 1
    columns = math.ceil(number / (1 if number < 5 else 2))
    title = f"Block rotations in {base['model']}, {form}"
    chart, axes = new_figure(math.ceil(number / columns), columns, title)
    for panel in axes.flat[number:]:
        panel.remove()
    *panels, last = axes.flat[:number]
    blocks = sorted(distinct(scored, "block"))
    for panel, setting in zip(panels, settings, strict=True):
        mine = select(scored, setting=setting)
        draw_lines(panel, mine, "delta_nll", "block", "permutation", order=blocks, spread=errors)
        panel.set_title(setting, fontsize=10)
    for row in axes:
        row[0].set_ylabel("delta nll, nats per token")
    looked = select(rows, format=form, layer=...)
    for name in distinct(looked, "permutation"):
        for metric, style in (("peak", "o-"), ("peak_expected", ":"), ("peak_bound", "--")):
            found = summarize_by(looked, metric, "block", permutation=name)
            at = [block for block in blocks if block in found]
            places = [blocks.index(block) for block in at]
            draw_curve(last, places, [found[b] for b in at], name, errors, style=style)
    for panel in (*panels, last):
        panel.set_xticks(range(len(blocks)), map(_length, blocks))
        panel.set_xlabel("block (0: no rotation)")
    last.set_yscale("log")
    last.set_title("largest element (dotted: expected, dashed: bound)", fontsize=8)
    return chart
