"""The report of `kv_cache`: answers, tables, a figure."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from isojax.report import (
    Row,
    Stat,
    Study,
    bullets,
    complete,
    distinct,
    draw_pairs,
    draw_ranked,
    errors,
    frontier,
    markdown,
    new_figure,
    pivot,
    select,
    summarize,
    summarize_by,
)

ALWAYS = (
    "kivi", "identity", "haar", "quaternion_full", "planar", "haar+pre", "haar+pre+sinks",
    "aligned", "aligned+haar",
)  # fmt: skip
BEST = 3  # further methods per number of bits in the figure
DENSE = "haar"  # the reference of others
BLOCKWISE = ("quaternion_full", "quaternion_fast", "planar", "rotor")
POINT = ("method", "bits", "target")
TARGETS = ("K", "V", "KV")
COLUMNS = {
    "nll": "perplexity",
    "delta_nll": "delta nll ± se",
    "kl_mean": "KL",
    "kl_p99": "KL 99%",
    "same_top1": "same top",
    "logit_error": "logit error",
    "logit_error_worst_layer": "worst layer",
    "attention_kl": "attention KL",
    "attention_output_nmse": "output NMSE",
    "key_cosine": "K cosine",
    "value_cosine": "V cosine",
    "rate_bits": "bits per element",
    "induction_nll": "induction nll",
    "bytes_per_token": "bytes per token",
    "side_bytes": "bytes once",
    "compression_ratio": "fp16 / bytes",
}


def text(study: Study, base: dict[str, Any], windows: int) -> list[str]:
    """The report in Markdown, by paragraphs."""
    rows = complete(study.rows(**base), windows, POINT)
    exact = summarize(rows, "nll", method="none")
    probed = select(rows, method="none", probe_length=...)
    probes = [
        f"{metric} {found.mean:.4g} at {length} tokens"
        for metric in dict.fromkeys(row.metric for row in probed)
        for length, found in summarize_by(probed, metric, "probe_length").items()
    ]
    parts = [
        f"# The KV cache of {base['model']} in few bits",
        f"{windows} windows of {base['length']} tokens of {base['text']}, exact cache: nll "
        f"{exact.mean:.4f} nats per token. Fitted on {base['calibration']}."
        + (f" Exact cache on the recall probes: {', '.join(probes)}." if probes else ""),
        "**How a perplexity with a quantized cache is computed here.** Each window is read in "
        "one pass through the packed cache. Every query attends to codes at all positions up to "
        "and with its own, from the first token on, prompt included; a token is exact only if "
        "its method keeps it (sinks, recent tokens, KIVI's page that is not full). Norms, "
        "minima, maxima and exact tokens are fp16 and counted in the bytes, as is, at 16 bit, a "
        "side that is not quantized; `bytes once` are transforms, means and codebooks in fp32, "
        "one copy per head. `delta nll` is the mean over windows of nll minus the exact cache's "
        "on the same window, ± its standard error; KL is from the unquantized model's next-token "
        "distribution, mean and 99th percentile over tokens. Rotations are drawn for each "
        "window, so that ± covers texts and rotations together. Logit error (rms, each row's "
        "mean removed), attention KL, output NMSE and cosines (mean ± sd over windows) are over "
        "all layers on the tensors of the exact model, no token exact. Needles: lines with names "
        "and codes, a question about one of them, greedy; induction: random tokens repeated "
        "once, the nll of the repetition.",
    ]
    for bits in sorted(distinct(rows, "bits")):
        for target in TARGETS:
            here = select(rows, bits=bits, target=target)
            if here:
                parts += [f"## {target} at {bits} bit", bullets(answers(here)), lines(here)]
    return [*parts, *at_equal_bytes(rows)]


def lines(rows: Sequence[Row]) -> str:
    """One line per method, the least loss first."""
    shown = {metric: head for metric, head in COLUMNS.items() if select(rows, metric)}
    for length in sorted(distinct(select(rows, "needle_accuracy"), "probe_length")):
        shown[f"needles at {length}"] = f"needles at {length}"
    forms = dict.fromkeys(shown, functools.partial(Stat.format, digits=3))
    forms |= {
        "nll": lambda found: f"{_exp(found.mean):.5g}",
        "delta_nll": Stat.with_error,
        "kl_mean": lambda found: f"{found.mean:.4f}",
        "same_top1": lambda found: f"{found.mean:.1%}",
    }

    def column(row: Row) -> str:
        needle = row.metric == "needle_accuracy"
        return f"needles at {row.config['probe_length']}" if needle else row.metric

    return pivot(
        rows, ["method"], column, form=forms, order=shown,
        over=("seed", "window", "windows", "prompt"), rank="delta_nll",
    )  # fmt: skip


def answers(rows: Sequence[Row]) -> list[str]:
    """The loss of block rotations against a dense one, and the best repairs."""
    losses = summarize_by(rows, "delta_nll", "method")
    loss = {name: found.mean for name, found in losses.items()}
    said = []
    haar = losses.get(DENSE)
    if haar and haar.mean > 2 * haar.sem:
        others = [n for n in (*BLOCKWISE, "identity", "hadamard", "kivi") if n in loss]
        ranked = [f"{name} {loss[name] / haar.mean:.2f}x" for name in others]
        if ranked:
            said.append(f"Loss against a dense rotation's ({haar.mean:.4f}): {', '.join(ranked)}.")
    order = sorted(loss, key=loss.__getitem__)
    for family in (DENSE, "quaternion_full"):
        repaired = [name for name in order if name.startswith(family + "+")]
        if family in loss and repaired:
            each = ", ".join(f"{name[len(family) :]} {loss[name]:.4f}" for name in repaired)
            said.append(f"Repairs of {family} ({loss[family]:.4f}), best first: {each}.")
    rates = summarize_by(rows, "rate_bits", "method")
    each = ", ".join(
        f"{name} {losses[name].with_error()} at {rates[name].mean:.2f} bits per element"
        for name in order[:3]
    )
    return [*said, f"Least loss: {each}."] if order else said


def at_equal_bytes(rows: Sequence[Row]) -> list[str]:
    """The points that no other one beats in both bytes and loss."""
    found = []
    for target in TARGETS:
        here = select(rows, target=target)
        losses, rates = (
            summarize_by(here, metric, "method", "bits") for metric in ("delta_nll", "rate_bits")
        )
        points = {point: (rates[point].mean, loss.mean) for point, loss in losses.items()}
        for point in frontier(points):
            rate, loss = f"{rates[point].mean:.3f}", losses[point].with_error()
            found.append([target, *point, rate, loss])
    if not found:
        return []
    head = ["quantized", "method", "bits per code", "bits per element", "delta nll ± se"]
    title = (
        "## At equal bytes per token: points with less loss than all others of at most their bytes"
    )
    return [title, "`bytes once` are not counted.", markdown(head, found)]


def figure(study: Study, base: dict[str, Any], windows: int) -> Any:
    """Loss over bits per element, scales counted, one panel per quantized side."""
    rows = complete(study.rows(**base), windows, POINT)
    targets = [t for t in TARGETS if select(rows, "delta_nll", target=t)]
    chart, axes = new_figure(1, max(len(targets), 1), f"KV cache of {base['model']}")
    for panel, target in zip(axes[0], targets, strict=False):
        mine = select(rows, target=target)
        names, best = distinct(select(mine, "delta_nll"), "method"), set()
        bits = sorted(distinct(mine, "bits"))
        for at in bits:
            losses = summarize_by(mine, "delta_nll", "method", bits=at)
            best |= set(sorted(losses, key=lambda name, of=losses: of[name].mean)[:BEST])
        shown = tuple(name for name in names if name in ALWAYS or name in best)
        mine = select(mine, method=shown)
        words = "delta nll ± se, nats per token", "bits per element, scales counted"
        if len(bits) == 1:
            draw_ranked(panel, summarize_by(mine, "delta_nll", "method"), errors)
            panel.set_xscale("symlog", linthresh=0.01)
        else:
            draw_pairs(panel, mine, "rate_bits", "delta_nll", "method", "bits", errors)
            panel.set_yscale("symlog", linthresh=0.01)
            axes[0, 0].set_ylabel(words[0])
        panel.set_xlabel(words[len(bits) > 1])
        hidden = len(names) - len(shown)
        also = f" ({hidden} others are in the table)" if hidden else ""
        panel.set_title(f"{target} quantized{also}", fontsize=9)
    return chart


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
