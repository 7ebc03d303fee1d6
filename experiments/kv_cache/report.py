"""The report of `kv_cache`: answers, tables, a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from isojax.report import (
    Row,
    Stat,
    Study,
    complete,
    draw_curve,
    draw_ranked,
    errors,
    markdown,
    new_figure,
    select,
    stat,
    summarize,
)

ALWAYS = (
    "kivi", "identity", "haar", "quaternion_full", "planar", "haar+pre", "haar+pre+sinks",
    "aligned", "aligned+haar",
)  # fmt: skip
BEST = 3  # further methods per number of bits in the figure
DENSE = "haar"  # the reference of others
BLOCKWISE = ("quaternion_full", "quaternion_fast", "planar", "rotor")
POINT = ("method", "bits", "target")
COLUMNS = {
    "nll": "perplexity",
    "delta_nll": "delta nll ± se",
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


def text(study: Study, base: dict[str, Any], windows: int) -> str:
    """The report in Markdown."""
    rows = complete(study.rows(**base), windows, POINT)
    exact = summarize(rows, "nll", method="none")
    probed = [r for r in select(rows, method="none") if "probe" in r.config]
    probes = [
        f"{metric} {summarize(probed, metric, probe_length=length).mean:.4g} at {length} tokens"
        for metric, length in dict.fromkeys((r.metric, r.config["probe_length"]) for r in probed)
    ]
    parts = [
        f"# The KV cache of {base['model']} in few bits",
        f"{windows} windows of {base['length']} tokens of {base['text']}, exact cache: nll "
        f"{exact.mean:.4f} nats per token. Fitted on {base['calibration']}."
        + (f" Exact cache on the recall probes: {', '.join(probes)}." if probes else ""),
        "**How a perplexity with a quantized cache is computed here.** Each window is read in one "
        "pass through the packed cache. Every query attends to codes at all positions up to and "
        "with its own, from the first token on, prompt included; a token is exact only if its "
        "method keeps it (sinks, recent tokens, KIVI's page that is not full). Norms, minima, "
        "maxima and exact tokens are fp16 and counted in the bytes, as is, at 16 bit, a side "
        "that is not in codes; `bytes once` are transforms, means and codebooks in fp32, one copy "
        "per head. `delta nll` is the mean over windows of nll minus the exact cache's on the same "
        "window, ± its standard error. Each window has separate rotations, so that ± covers "
        "texts and rotations together. Logit error (rms, each row's mean removed), attention KL, "
        "output NMSE and cosines (mean ± sd over windows) are over all layers on the tensors of "
        "the exact model, no token exact. Needles: lines with names and codes, a question about "
        "one of them, greedy; induction: random tokens repeated once, the nll of the repetition.",
    ]
    for bits in sorted({r.config["bits"] for r in rows if "bits" in r.config}):
        for target in ("K", "V", "KV"):
            here = select(rows, bits=bits, target=target)
            if here:
                parts += [f"## {target} at {bits} bit", *answers(here), lines(here)]
    parts += frontier(rows)
    return "\n\n".join(parts)


def lines(rows: Sequence[Row]) -> str:
    """One line per method, the least loss first."""
    names = list(dict.fromkeys(r.config["method"] for r in rows))
    shown = {metric: head for metric, head in COLUMNS.items() if select(rows, metric)}
    needles = {r.config["probe_length"] for r in select(rows, "needle_accuracy")}
    shown |= {f"needle_accuracy:{n}": f"needles at {n}" for n in sorted(needles)}
    found = []
    for name in names:
        mine = select(rows, method=name)
        if not select(mine, "delta_nll"):
            continue
        loss, nll = summarize(mine, "delta_nll"), summarize(mine, "nll")
        cells: dict[str, str] = {
            "nll": f"{_exp(nll.mean):.5g}",
            "delta_nll": _loss(loss),
        }
        for column in shown:
            if column not in cells:
                metric, _, length = column.partition(":")
                on = {"probe_length": int(length)} if length else {}
                values = [r.value for r in select(mine, metric, **on)]
                cells[column] = stat(values).format(3) if values else "-"
        found.append((loss.mean, [name, *(cells[m] for m in shown)]))
    return markdown(
        ["method", *shown.values()], [line for _, line in sorted(found, key=lambda f: f[0])]
    )


def answers(rows: Sequence[Row]) -> list[str]:
    """The loss of block rotations against a dense one, and the best repairs."""
    loss = {
        name: summarize(rows, "delta_nll", method=name).mean
        for name in dict.fromkeys(r.config["method"] for r in rows)
        if select(rows, "delta_nll", method=name)
    }
    said = []
    haar = summarize(rows, "delta_nll", method=DENSE) if DENSE in loss else None
    if haar and haar.mean > 2 * haar.sem:
        ranked = [f"{b} {_ratio(loss[b], loss[DENSE])}" for b in BLOCKWISE if b in loss]
        also = [n for n in ("identity", "hadamard", "kivi") if n in loss]
        ranked += [f"{n} {_ratio(loss[n], loss[DENSE])}" for n in also]
        if ranked:
            said.append(
                f"Loss against a dense rotation's ({loss[DENSE]:.4f}): {', '.join(ranked)}."
            )
    for family in (DENSE, "quaternion_full"):
        repaired = {n: v for n, v in loss.items() if n.startswith(family + "+")}
        if family in loss and repaired:
            each = ", ".join(
                f"{n[len(family) :]} {v:.4f}"
                for n, v in sorted(repaired.items(), key=lambda item: item[1])
            )
            said.append(f"Repairs of {family} ({loss[family]:.4f}), best first: {each}.")
    if loss:
        first = sorted(loss, key=lambda n: loss[n])[:3]
        each = ", ".join(
            f"{n} {_loss(summarize(rows, 'delta_nll', method=n))} at "
            f"{summarize(rows, 'rate_bits', method=n).mean:.2f} bits per element"
            for n in first
        )
        said.append(f"Least loss: {each}.")
    return ["\n".join(f"- {line}" for line in said)] if said else []


def frontier(rows: Sequence[Row]) -> list[str]:
    """At equal bytes: the points that no other one beats in both bytes and loss."""
    found = []
    for target in ("K", "V", "KV"):
        here = [r for r in select(rows, target=target) if r.metric in ("delta_nll", "rate_bits")]
        points = []
        for bits, name in dict.fromkeys((r.config["bits"], r.config["method"]) for r in here):
            mine = select(here, bits=bits, method=name)
            loss, rate = summarize(mine, "delta_nll"), summarize(mine, "rate_bits").mean
            points.append((rate, loss.mean, [name, bits, f"{rate:.3f}", _loss(loss)]))
        least, kept = math.inf, []
        for _, loss, line in sorted(points, key=lambda p: p[:2]):
            if loss < least:
                least = loss
                kept.append([target, *line])
        found += kept
    if not found:
        return []
    head = ["in codes", "method", "bits per code", "bits per element", "delta nll ± se"]
    title = (
        "## At equal bytes per token: points with less loss than all others of at most their bytes"
    )
    return [title, "`bytes once` are not counted.", markdown(head, found)]


def figure(study: Study, base: dict[str, Any], windows: int) -> Any:
    """Loss over bits per element, scales counted, one panel per side in codes."""
    rows = complete(study.rows(**base), windows, POINT)
    targets = [t for t in ("K", "V", "KV") if select(rows, "delta_nll", target=t)]
    chart, axes = new_figure(1, max(len(targets), 1), f"KV cache of {base['model']}")
    for panel, target in zip(axes[0], targets, strict=False):
        mine = select(rows, target=target)
        losses = select(mine, "delta_nll")
        names = list(dict.fromkeys(r.config["method"] for r in losses))
        ranked = {
            bits: sorted(names, key=lambda n, b=bits: _mean(select(losses, bits=b, method=n)))
            for bits in sorted({r.config["bits"] for r in losses})
        }
        best = [name for order in ranked.values() for name in order[:BEST]]
        shown = [name for name in names if name in ALWAYS or name in best]
        curves = {name: _curve(select(mine, method=name)) for name in shown}
        if len(ranked) == 1:
            draw_ranked(panel, {name: curve[0][1] for name, curve in curves.items()}, errors)
        for name, curve in curves.items() if len(ranked) > 1 else ():
            rate, loss = zip(*curve, strict=True)
            draw_curve(panel, rate, loss, name, errors)
        words = "delta nll ± se, nats per token", "bits per element, scales counted"
        (panel.set_xscale if len(ranked) == 1 else panel.set_yscale)("symlog", linthresh=0.01)
        panel.set_xlabel(words[len(ranked) > 1])
        if len(ranked) > 1 and panel is axes[0, 0]:
            panel.set_ylabel(words[0])
        hidden = len(names) - len(shown)
        also = f" ({hidden} others are in the table)" if hidden else ""
        panel.set_title(f"{target} in codes{also}", fontsize=9)
    return chart


def _mean(rows: Sequence[Row]) -> float:
    return stat(r.value for r in rows).mean if rows else math.inf


def _curve(rows: Sequence[Row]) -> list[tuple[float, Stat]]:
    bits = sorted({r.config["bits"] for r in select(rows, "delta_nll")})
    at = [select(rows, bits=b) for b in bits]
    return [(summarize(r, "rate_bits").mean, summarize(r, "delta_nll")) for r in at]


def _loss(loss: Stat) -> str:
    return f"{loss.mean:.4f} ± {loss.sem:.4f}"


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def _ratio(a: float, b: float) -> str:
    return f"{a / b:.2f}x"
