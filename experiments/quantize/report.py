"""The report of `quantize`: one table, errors by layer, the parts of each plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from isojax.models import ModelConfig
from isojax.quantize import Plan, describe
from isojax.report import (
    Row,
    Stat,
    Study,
    complete,
    draw_lines,
    draw_ranked,
    errors,
    new_figure,
    pivot,
    select,
    summarize_by,
)

COLUMNS = {
    "nll": "nll",
    "delta_nll": "delta nll ± se",
    "kl_mean": "KL",
    "kl_p99": "KL 99%",
    "same_top1": "same top token",
    "weight_bits": "bits per weight",
    "weight_bytes": "MB",
    "cache_bits": "cache bits",
    "bytes_per_token": "bytes per token",
    "online_fmas": "online FMAs",
    "peak_rss_bytes": "peak MB",
}


COUNT, MEGABYTES = "{0.mean:,.0f}".format, lambda found: f"{found.mean / 1e6:,.1f}"
FORMS = {
    "nll": "{0.mean:.4f}".format,
    "delta_nll": Stat.with_error,
    "kl_mean": "{0.mean:.4f}".format,
    "kl_p99": "{0.mean:.3f}".format,
    "same_top1": "{0.mean:.1%}".format,
    "weight_bits": "{0.mean:.2f}".format,
    "weight_bytes": MEGABYTES,
    "cache_bits": "{0.mean:.2f}".format,
    "bytes_per_token": COUNT,
    "online_fmas": COUNT,
    "peak_rss_bytes": MEGABYTES,
}


def rows_of(
    study: Study, base: Mapping[str, Any], plans: Mapping[str, Plan], windows: int
) -> list[Row]:
    """Rows of these plans in their current form and order, with all windows."""
    rules = {"unquantized": ""} | {n: "; ".join(str(p).splitlines()) for n, p in plans.items()}
    rows = [r for name, rule in rules.items() for r in study.rows(**base, plan=name, rules=rule)]
    return complete(rows, windows, ("plan",))


def text(
    study: Study, base: Mapping[str, Any], plans: Mapping[str, Plan], windows: int,
    config: ModelConfig,
) -> list[str]:  # fmt: skip
    """The report in Markdown, by paragraphs."""
    rows = rows_of(study, base, plans, windows)
    parts = [
        f"# {base['model']} quantized by plans",
        f"{windows} windows of {base['length']} tokens of {base['text']}, plans fitted on "
        f"{base['calibration']}. Losses and divergences in nats per token; delta nll and KL are "
        "against the same window unquantized, ± the standard error over windows (and seeds). Bits "
        "per weight are those of the projections, MB all parameters (exact ones at 16 bits); "
        f"cache bits and bytes those of {base['length']} tokens, exact ones counted; online FMAs "
        "are per token, all layers. Peak MB: resident memory of the process from quantizing to the "
        "last window; weights are held in floating point here.",
        pivot(rows, ["plan"], "metric", form=FORMS, order=COLUMNS),
    ]
    behind = select(rows, "relative_error")
    if behind:
        parts += [
            "## Relative error of the hidden state after each layer",
            "Mean over the tokens of the first window.",
            pivot(behind, ["plan"], "layer", form="{0.mean:.3f}".format),
        ]
    parts.append("## Parts of the plans")
    for name, plan in plans.items():
        said = describe(plan, config, tokens=base["length"])
        parts.append(f"**{name}**\n\n```\n{said.table}\n```")
        parts += said.notes
    return parts


def figure(
    study: Study, base: Mapping[str, Any], plans: Mapping[str, Plan], windows: int,
    config: ModelConfig,
) -> Any:  # fmt: skip
    """The loss of each plan, and its error after each layer."""
    rows = rows_of(study, base, plans, windows)
    behind = select(rows, "relative_error")
    chart, axes = new_figure(1, 1 + bool(behind), f"{base['model']} quantized by plans")
    panel = axes[0, 0]
    draw_ranked(panel, summarize_by(rows, "delta_nll", "plan"), errors)
    panel.set_xscale("symlog", linthresh=0.01)
    panel.set_xlabel("delta nll ± se, nats per token")
    if behind:
        draw_lines(axes[0, 1], behind, "relative_error", "layer", "plan")
        axes[0, 1].set_ylabel("relative error of the hidden state")
    return chart
