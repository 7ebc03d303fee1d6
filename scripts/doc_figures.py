"""Draw the figures of the documentation pages: docs/figures/PAGE.svg.

    python scripts/doc_figures.py cache plans   # these two; all where none is named

A figure shows what the examples of its page computed, which are run first, or rows of
docs/rows.jsonl. The same input gives the same file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import tyro
from doc_examples import DOCS, run
from doc_tables import OWN, short
from matplotlib.patches import FancyBboxPatch

from isojax import report
from isojax.report import distinct, draw_curve, new_figure, select, stat, summarize
from isojax.report.figure import COLORS as COLOR

mpl.rcParams |= {"svg.hashsalt": "isojax", "svg.fonttype": "none", "font.size": 9}
SMALL = {"fontsize": 8, "frameon": False}
ARROW = {"arrowstyle": "-|>", "color": "#444444", "lw": 0.9}
TINTS = {"merged": "#cfe3f5", "online": "#fbe0bd", "rounded": "#e4e4e4"}
CACHES = ("identity", "haar", "haar+pre", "haar+pre+sinks", "kivi", "aligned", "aligned+haar")


def transforms_figure(scope: dict[str, Any]) -> Any:
    """Coordinates of one vector before and after a rotation."""
    figure, axes = new_figure(1, 2, "One vector, 64 coordinates, one outlier")
    before, after = scope["x"][0], scope["t"].apply(scope["x"])[0]
    titles = ("as it is", "after a Hadamard rotation")
    for place, values, title in zip(axes[0], (before, after), titles, strict=True):
        place.vlines(range(len(values)), 0, values, color=COLOR["haar"], lw=3)
        place.set(xlabel="coordinate", ylabel="value", ylim=(-5, 13), title=title)
    return figure


def quantizers_figure(scope: dict[str, Any]) -> Any:
    """Error of quantizers of a Gaussian against their bits."""
    figure, axes = new_figure(1, 1, "Gaussian vectors of 64 values")
    for name, values in scope["error"].items():
        style = "--" if name == "Shannon bound" else "o-"
        draw_curve(
            axes[0, 0], scope["rates"], [stat([float(v)]) for v in values], name, style=style
        )
    axes[0, 0].set(
        yscale="log", xticks=scope["rates"], xlabel="bits per element, scales not counted"
    )
    axes[0, 0].set(ylabel="NMSE")
    axes[0, 0].legend(**SMALL)
    return figure


def recipes_figure(scope: dict[str, Any]) -> Any:
    """Error of each recipe."""
    figure, axes = new_figure(1, 1, "Vectors with a mean and correlated coordinates, 3 bits")
    _bars(axes[0, 0], scope["errors"], "NMSE", "{:.4f}")
    return figure


def alignment_figure(scope: dict[str, Any]) -> Any:
    """Rate and error of an entropy coder in two sets of coordinates."""
    figure, axes = new_figure(1, 1, f"Entropy-coded vectors, coding gain {scope['gain']:.1f} dB")
    for name, title in (("haar", "random rotation"), ("pca", "principal axes")):
        bits, nmse = zip(*(scope["coded"][name, step] for step in scope["steps"]), strict=True)
        axes[0, 0].plot(bits, nmse, "o-", ms=3.5, lw=1.4, color=COLOR[name], label=title)
    axes[0, 0].set(yscale="log", xlabel="entropy of the codes, bits per element", ylabel="NMSE")
    axes[0, 0].legend(**SMALL)
    return figure


def linear_layers_figure(scope: dict[str, Any]) -> Any:
    """SQNR of a layer by coordinates, and the terms that decide it."""
    figure, axes = new_figure(1, 2, "One linear layer, inputs and weights of 4 bits")
    found, (left, right) = scope["terms"], axes[0]
    measured = {name: float(terms["SQNR"]) for name, terms in found.items()}
    _bars(left, measured, "SQNR of the product, dB (higher is better)", "{:.1f}")
    for shift, (term, label, color, marker) in enumerate((
        ("both", "concentration of both sides", "haar", "o"),
        ("alignment", "alignment", "pca", "D"),
    )):  # fmt: skip
        values = [float(terms[term]) for terms in found.values()]
        places = [number + 0.2 * (shift - 0.5) for number in range(len(values))]
        right.plot(values, places, marker, color=COLOR[color], ms=5, label=label)
    right.set_yticks(range(len(found)), [""] * len(found))
    right.set(xlabel="dB (higher is better)", ylim=left.get_ylim())
    right.legend(loc="upper center", bbox_to_anchor=(0.45, 1.2), ncols=3, **SMALL | {"fontsize": 7})
    return figure


def plans_figure(scope: dict[str, Any]) -> Any:
    """What the plan of the example puts at each place of a decoder layer."""
    figure, axes = new_figure(1, 1, "quarot: what stands at the places of a decoder layer")
    figure.set_size_inches(9.2, 4.0)
    first = "input:q_proj weight:q_proj queries_keys values cache:keys input:o_proj weight:o_proj"
    second = "input:gate_proj weight:gate_proj input:down_proj weight:down_proj"
    rows = [["residual", *names.split()] for names in (first, second)]
    title = {"weight:q_proj": "weight:\nq, k, v", "weight:gate_proj": "weight:\ngate, up"}
    title["cache:keys"] = "cache: keys,\nvalues"
    entries, place = {e.place: e for e in scope["description"].entries}, axes[0, 0]
    for row, names in enumerate(rows):
        for column, name in enumerate(names):
            entry, x, y = entries[name], 1.25 * column, -1.5 * row
            kind = "merged" if entry.merged else "online" if entry.online else "rounded"
            box = {"boxstyle": "round,pad=0.02", "fc": TINTS[kind], "ec": "#666666", "lw": 0.8}
            place.add_patch(FancyBboxPatch((x, y), 1, 0.9, **box))
            does = [f"{entry.merged or entry.online}", kind] if kind != "rounded" else []
            does += [f"{entry.bits:.2f} bits"] if entry.bits else []
            head = title.get(name, name.replace(":", ":\n"))
            place.text(x + 0.5, y + 0.86, head, ha="center", va="top", fontsize=7, weight="bold")
            place.text(x + 0.5, y + 0.04, "\n".join(does), ha="center", va="bottom", fontsize=7.5)
            if column:
                place.annotate("", (x - 0.03, y + 0.45), (x - 0.22, y + 0.45), arrowprops=ARROW)
        place.text(0, -1.5 * row + 1.0, ("attention", "MLP")[row], fontsize=9)
    names = {"merged": "merged into weights", "online": "runs online", "rounded": "only rounding"}
    for kind, text in names.items():
        place.plot([], [], "s", color=TINTS[kind], mec="#666666", ms=9, label=text)
    place.legend(loc="lower right", **SMALL)
    place.set(xlim=(-0.1, 9.9), ylim=(-1.6, 1.3))
    place.axis("off")
    return figure


def cache_figure(scope: dict[str, Any]) -> Any:
    """Loss of methods for the KV cache on the real models, from rows."""
    rows = [r for r in report.read_rows(DOCS / "rows.jsonl") if r.experiment == "kv_cache"]
    figure, axes = new_figure(2, 2, "Keys and values in codes: loss against an exact cache")
    models = [name for name in distinct(rows, "model") if name != "tiny"]
    for line, name in zip(axes, sorted(models, key=str.lower, reverse=True), strict=True):
        for place, bits in zip(line, (3, 2), strict=True):
            at = {"model": name, "target": "KV", "bits": bits, "calibration": OWN}
            mine = select(rows, "delta_nll", **at)
            report.draw_ranked(
                place, {m: summarize(mine, "delta_nll", method=m) for m in CACHES}, report.errors
            )
            place.set(xscale="log", xlim=(0.005, 8), xlabel="nats per token, mean ± standard error")
            place.set_title(f"{short(name)}, {bits} bits", fontsize=9)
            place.minorticks_off()
    return figure


def implementations_figure(scope: dict[str, Any]) -> Any:
    """Speed of kernels and of plain JAX on a GPU, from rows."""
    rows = select(report.read_rows(DOCS / "rows.jsonl"), "of_copy", size="memory", dtype="bfloat16")
    figure, axes = new_figure(1, 1, "H100, bf16: speed relative to a copy of as many bytes")
    cases = {
        "round trip, quaternions, 3 bits": ("roundtrip", "quaternion_full", 128),
        "store, quaternions, 3 bits": ("store", "quaternion_full", 128),
        "load, quaternions, 3 bits": ("load", "quaternion_full", 128),
        "round trip, dense matrix, 3 bits": ("roundtrip", "haar", 128),
        "Hadamard transform, d = 128": ("apply", "hadamard", 128),
        "Hadamard transform, d = 4096": ("apply", "hadamard", 4096),
    }
    ways = {"kernel": ("triton", "now", "hadamard"), "plain JAX": ("xla", "before", "haar")}
    for offset, (label, (way, state, color)) in enumerate(ways.items()):
        values = []
        for kernel, transform, dim in cases.values():
            found = select(
                rows, way=way, kernels=state, kernel=kernel, transform=transform, dim=dim
            )
            found = select(found, bits=3)
            values.append(max(found, key=lambda r: r.config["vectors"]).value)
        places = [number + 0.38 * offset for number in range(len(cases))]
        axes[0, 0].barh(places, values, 0.36, color=COLOR[color], label=label)
    axes[0, 0].set_yticks([n + 0.19 for n in range(len(cases))], list(cases), fontsize=8)
    axes[0, 0].invert_yaxis()
    axes[0, 0].set(xlim=(0, 1.02), xlabel="bytes per second, over those of a copy")
    axes[0, 0].legend(loc="upper center", bbox_to_anchor=(0.4, 1.12), ncols=2, **SMALL)
    return figure


def sweeps_figure(scope: dict[str, Any]) -> Any:
    """Error against the clipping ratio, mean and deviation over seeds."""
    figure, axes = new_figure(1, 2, "Vectors with one large channel: mean and deviation, 8 seeds")
    clips = scope["traced"]["clip"]
    for place, bits in zip(axes[0], scope["static"]["bits"], strict=True):
        for kind in scope["static"]["kind"]:
            rows = scope["study"].rows(kind=kind, bits=bits)
            found = [summarize(rows, "nmse", clip=clip) for clip in clips]
            draw_curve(place, clips, found, kind, report.deviations)
        place.set(
            xlabel="clip: share of the peak that is kept", ylabel="NMSE", title=f"{bits} bits"
        )
        place.set(ylim=(0, None), xticks=clips)
    axes[0, 1].legend(**SMALL)
    return figure


def models_figure(scope: dict[str, Any]) -> Any:
    """Kurtosis of activations by layer."""
    figure, axes = new_figure(1, 1, "Activations of the tiny model, 128 tokens")
    layers = list(scope["layers"])
    for site in scope["sites"]:
        found = [stat([scope["kurtosis"][f"{site}:{layer}"]]) for layer in layers]
        draw_curve(axes[0, 0], layers, found, site)
    axes[0, 0].axhline(3, color="#444444", lw=0.8, ls=":")
    axes[0, 0].text(layers[-1], 2.9, "Gaussian: 3", ha="right", va="top", fontsize=7)
    axes[0, 0].set(yscale="log", xticks=layers, xlabel="layer", ylabel="kurtosis")
    axes[0, 0].legend(loc="center left", bbox_to_anchor=(1, 0.5), **SMALL)
    return figure


def _bars(place: Any, values: Any, label: str, form: str) -> None:
    """Bars with their values beside them, the first on top."""
    most = max(values.values())
    for number, value in enumerate(values.values()):
        place.barh(number, value, 0.6, color="#1f6fb4")
        place.text(value + 0.01 * most, number, form.format(value), va="center", fontsize=7.5)
    place.set_yticks(range(len(values)), list(values), fontsize=8)
    place.invert_yaxis()
    place.set(xlim=(0, 1.18 * most), xlabel=label)


FROM_ROWS = ("cache", "implementations")
FIGURES: dict[str, Callable[[dict[str, Any]], Any]] = {
    name.removesuffix("_figure"): make
    for name, make in list(globals().items())
    if name.endswith("_figure") and name != "new_figure"
}


def main(
    pages: Annotated[tuple[str, ...], tyro.conf.Positional] = tuple(FIGURES),
    png: Path | None = None,
) -> None:
    """Draw the figures.

    Args:
        pages: names of pages.
        png: an existing folder for the same figures as PNG.
    """
    (DOCS / "figures").mkdir(exist_ok=True)
    for page in pages:
        figure = FIGURES[page]({} if page in FROM_ROWS else run(page)[0])
        path = DOCS / "figures" / f"{page}.svg"
        figure.savefig(path, metadata={"Date": None})
        print(f"{path.relative_to(DOCS.parent)}: {path.stat().st_size / 1000:.0f} kB")
        if png is not None:
            figure.savefig(png / f"{page}.png", dpi=110)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
