"""The tables of studies in README.md and docs/findings, each made from rows."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter

from experiments.block_rotation.points import LABELS
from experiments.block_rotation.report import by_parts
from experiments.compare import report as compare_report
from experiments.end_to_end.report import COLUMNS
from experiments.end_to_end.report import lines as learned_lines
from experiments.kv_cache.methods import recipes
from isojax.report import (
    Row,
    Stat,
    against,
    complete,
    markdown,
    pivot,
    select,
    summarize,
)

AT3 = {"quantizer": "absmax", "bits": 3, "granularity": "tensor", "tensor": "hidden:final"}
WINDOWS = 8  # required of a point
# calibration texts of the same kind as the test text
OWN = ("wikitext-2:validation", "valid.tokens.txt", "the windows after them")
KV_METHODS = (
    "kivi", "kivi+lean", "minmax", "identity", "haar", "hadamard", "quaternion_full", "planar",
    "rotor", "haar+pre", "haar+post", "haar+scale", "haar+pre+minmax", "haar+pre+fitted",
    "quaternion_full+mass_diff", "quaternion_full+pre", "quaternion_full+pre+minmax",
    "quaternion_full+pre+fitted", "quaternion_full+pre+mass_diff",
    "quaternion_full+pre+co_activation", "pca+pre", "haar+pre+sinks", "haar+pre+sinks+unbiased",
    "aligned", "aligned+half", "aligned+unbiased", "aligned+haar", "aligned+haar-centre",
    "aligned+learned", "learned+pre+sinks", "learned+pre+sinks+unbiased", "smaq-like",
    "kvtc-like", "gtq-like",
)  # fmt: skip
OVERVIEW = {
    "identity": "as they are",
    "haar": "rotated",
    "haar+pre+sinks": "rotated and centred, first 4 tokens exact",
    "haar+pre+sinks+unbiased": "the same, with unbiased scales",
    "aligned+haar": "the same, but keys on aligned axes, with levels and bits per channel",
    "kivi": "KIVI: ranges per channel of keys, last tokens exact",
}
SIDES = (
    "haar", "quaternion_full", "haar+pre", "quaternion_full+pre", "haar+pre+sinks",
    "haar+pre+sinks+unbiased", "aligned", "aligned+half", "aligned+unbiased",
    "learned+pre+sinks", "learned+pre+sinks+unbiased", "kivi",
)  # fmt: skip
SHORT = ("none", "random_permutation", "mass_diff")  # permutations before blocks of 16
SHOWN = {
    "outlier_mse": "outlier MSE", "noise_floor_mse": "noise floor MSE",
    "false_firings": "false firings", "missed_firings": "missed firings", "firing_f1": "F1",
}  # fmt: skip


def short(model: str) -> str:
    """The name of a model without its quantization and the ending of its file."""
    return re.sub(r"[-.]q\d.*", "", model, flags=re.I)


def model(row: Row) -> str:
    """The short name of its model."""
    return short(row.config["model"])


def perplexity(rows: list[Row]) -> str:
    """Perplexities."""
    rows = [r for r in rows if r.experiment == "perplexity" and r.metric == "perplexity"]
    index = {"model": model} | {name: name for name in ("text", "windows", "length", "dtype")}
    return pivot(rows, index, "metric", form="{0.mean:.3f}".format)


def isotropic_tradeoff(rows: list[Row]) -> str:
    """The tradeoff in every model, 3 bit, one absmax scale per tensor."""
    rows = select([r for r in rows if r.experiment == "isotropic_tradeoff"], **AT3)
    changed = ("outlier_mse", "noise_floor_mse")
    errors = [r for r in rows if r.metric in changed]
    errors = against(errors, {"coordinates": "identity"}, relative=True)
    firings = [r for r in rows if r.metric not in changed]
    percent = dict.fromkeys(changed, lambda s: s.percent() if s.mean else "")
    return pivot(
        [*errors, *firings], {"model": model, "coordinates": "coordinates"}, "metric",
        form=dict.fromkeys(SHOWN, Stat.format) | percent, order=SHOWN, count=True,
    )  # fmt: skip


def kv_cache(rows: list[Row]) -> str:
    """Losses of the methods with keys and values in codes.

    Sorted by the mean over the real models at 2 bit, or at 3 where there is none.
    """
    rows = select(_whole(rows), target="KV", calibration=OWN)
    columns = [
        (model, bits)
        for model in dict.fromkeys(r.config["model"] for r in rows)
        for bits in (3, 2)
        if select(rows, "delta_nll", model=model, bits=bits)
    ]
    found = []
    for method in dict.fromkeys(r.config["method"] for r in rows):
        cells, losses = [], {2: [], 3: []}
        for model, bits in columns:
            mine = select(rows, model=model, method=method, bits=bits)
            loss = summarize(mine, "delta_nll") if mine else None
            cells.append(f"{loss.mean:.3f} ± {loss.sem:.3f}" if loss else "-")
            if bits == 3:
                cells.append(f"{summarize(mine, 'key_cosine').mean:.3f}" if mine else "-")
            if loss and model != "tiny":
                losses[bits].append(loss.mean)
        rate = summarize(rows, "rate_bits", method=method, bits=3)
        ends = dict.fromkeys(f"{end:.2f}" for end in (rate.low, rate.high))
        order = [statistics.fmean(losses[b]) if losses[b] else math.inf for b in (2, 3)]
        found.append((order, [method, " to ".join(ends), *cells]))
    head = ["method", "bits at 3"]
    for model, bits in columns:
        head += [f"{short(model)}, {bits} bit", *(["K cosine"] if bits == 3 else [])]
    return markdown(head, [line for _, line in sorted(found, key=lambda f: f[0])])


def kv_methods(rows: list[Row]) -> str:
    """The recipes of the methods of the cache."""
    lines = []
    for name in KV_METHODS:
        keys, values = map(str, recipes(name))
        lines.append([name, f"`{keys}`", "the same" if values == keys else f"`{values}`"])
    return markdown(["method", "keys", "values"], lines)


def overview(rows: list[Row]) -> str:
    """What rotation and alignment lose in the cache of the real models at 2 bits."""
    rows = select(_whole(rows), target="KV", calibration=OWN, bits=2)
    models = [m for m in dict.fromkeys(r.config["model"] for r in rows) if m != "tiny"]
    lines = []
    for method, said in OVERVIEW.items():
        mine = select(rows, method=method)
        rate = summarize(select(mine, model=tuple(models)), "rate_bits").mean
        losses = [_loss(select(mine, "delta_nll", model=model)) for model in models]
        lines.append([said, f"`{method}`", f"{rate:.2f}", *losses])
    head = ["keys and values at 2 bits", "method", "bits per element", *map(short, models)]
    return markdown(head, lines)


def kv_sides(rows: list[Row]) -> str:
    """Losses of the methods in real models with only keys in codes, and with only values."""
    rows = [r for r in _whole(rows) if r.config["model"] != "tiny"]
    rows = select(rows, "delta_nll", calibration=OWN)
    columns = [
        (model, bits, side)
        for model in dict.fromkeys(r.config["model"] for r in rows)
        for bits in (3, 2)
        for side in ("K", "V")
        if select(rows, model=model, bits=bits, target=side)
    ]
    lines = []
    for name in SIDES:
        cells = [
            _loss(select(rows, model=model, bits=bits, target=side, method=name))
            for model, bits, side in columns
        ]
        if set(cells) != {"-"}:
            lines.append([name, *cells])
    return markdown(["method", *(f"{short(m)}, {s} at {b}" for m, b, s in columns)], lines)


def kv_domain(rows: list[Row]) -> str:
    """Losses of the methods at 2 bit, fitted on text of the same kind and of another."""
    rows = select(_whole(rows), "delta_nll", target="KV", bits=2)
    other = list(
        dict.fromkeys(r.config["calibration"] for r in rows if not select([r], calibration=OWN))
    )
    models = list(dict.fromkeys(r.config["model"] for r in select(rows, calibration=tuple(other))))
    lines = []
    for name in dict.fromkeys(r.config["method"] for r in select(rows, calibration=tuple(other))):
        mine = select(rows, method=name)
        cells = [
            _loss(select(mine, model=model, calibration=fitted))
            for model in models
            for fitted in (OWN, *other)
        ]
        lines.append([name, *cells])
    head = [
        f"{short(model)}, fitted on {fitted}"
        for model in models
        for fitted in ("the same kind", *other)
    ]
    return markdown(["method", *head], lines)


def kv_needles(rows: list[Row]) -> str:
    """Share of needles that are found, by length of the prompt."""
    rows = [r for r in rows if r.metric == "needle_accuracy"]
    cases = dict.fromkeys(
        (r.config["model"], r.config["method"], r.config.get("bits", 16)) for r in rows
    )
    lengths = sorted({r.config["probe_length"] for r in rows})
    lines = []
    for model, name, bits in cases:
        mine = [
            r for r in select(rows, model=model, method=name) if r.config.get("bits", 16) == bits
        ]
        found = [[r.value for r in select(mine, probe_length=n)] for n in lengths]
        cells = [f"{sum(f):.0f} of {len(f)}" if f else "-" for f in found]
        lines.append([short(model), name, bits, *cells])
    return markdown(["model", "method", "bits per code", *(f"{n} tokens" for n in lengths)], lines)


def compare(rows: list[Row]) -> str:
    """Every transform by every measure."""
    rows = [r for r in rows if r.experiment == "compare"]
    return compare_report.lines(select(rows, model="tiny", tensor="hidden:final"))


def _whole(rows: list[Row]) -> list[Row]:
    """Rows of the points of `kv_cache` with all windows."""
    rows = [r for r in rows if r.experiment == "kv_cache" and r.metric != "needle_accuracy"]
    return complete(
        rows, WINDOWS, ("model", "calibration", "method", "bits", "target"), "delta_nll"
    )


def _loss(rows: list[Row]) -> str:
    loss = summarize(rows, "delta_nll") if rows else None
    return f"{loss.mean:.3f} ± {loss.sem:.3f}" if loss else "-"


def block_rotation(rows: list[Row]) -> str:
    """Loss over the length of blocks before down_proj, by permutation."""
    point = ("model", "setting", "format", "block", "permutation")
    rows = by_parts([r for r in rows if r.experiment == "block_rotation"])
    rows = select(complete(rows, WINDOWS, point, "delta_nll"), "delta_nll", format="int4")
    lengths = sorted({r.config["block"] for r in select(rows, permutation="mass_diff")})
    lines = []
    for model in dict.fromkeys(r.config["model"] for r in rows):
        for setting in LABELS:
            here = select(rows, model=model, setting=setting)
            if not here:
                continue
            full = max(r.config["block"] for r in here)
            for name in dict.fromkeys(r.config["permutation"] for r in here):
                mine = select(here, permutation=name)
                cells = []
                for block in (0, *lengths, full):
                    cells.append(_loss(select(mine, block=block)))
                lines.append([short(model), setting, name, *cells])
    return markdown(
        ["model", "setting (INT4)", "permutation", "none", *map(str, lengths), "full"], lines
    )


def block_formats(rows: list[Row]) -> str:
    """Loss by the format of down_proj's input, and bits per element, at the common rotations."""
    rows = by_parts([r for r in rows if r.experiment == "block_rotation"])
    scored = complete(
        select(rows, "delta_nll", setting="A4-down"), WINDOWS,
        ("model", "format", "block", "permutation"), "delta_nll",
    )  # fmt: skip
    lines = []
    for model in dict.fromkeys(r.config["model"] for r in scored):
        mine = select(scored, model=model)
        full = max(r.config["block"] for r in mine)
        points = ((0, "none"), *((16, name) for name in SHORT), (full, "none"))
        for form in dict.fromkeys(r.config["format"] for r in mine):
            here = select(mine, format=form)
            bits = select(rows, "rate_bits", model=model, format=form)
            cells = [_loss(select(here, block=b, permutation=p)) for b, p in points]
            rate = f"{summarize(bits, 'rate_bits').mean:.2f}" if bits else "-"
            lines.append([short(model), form, rate, *cells])
    return markdown(
        ["model", "format", "bits", "none", *(f"16, {n}" for n in SHORT), "full"], lines
    )


def end_to_end(rows: list[Row]) -> str:
    """Rotations before and after learning on the loss of the whole model."""
    rows = [r for r in rows if r.experiment == "end_to_end"]
    lines = []
    for model in dict.fromkeys(r.config["model"] for r in rows):
        mine = learned_lines(select(rows, model=model), WINDOWS)
        lines += [[short(model), *line] for line in mine]
    return markdown(["model", *COLUMNS], lines)


def uncommitted(rows: list[Row]) -> str:
    """Rows measured with uncommitted changes."""
    found = Counter(
        (r.experiment, model(r) if "model" in r.config else "-", r.commit)
        for r in rows
        if r.commit.endswith("-dirty")
    )
    lines = [[*of, number] for of, number in sorted(found.items())]
    return markdown(["experiment", "model", "commit", "rows"], lines)


TABLES = {
    make.__name__: make
    for make in (
        perplexity, isotropic_tradeoff, overview, kv_cache, kv_methods, kv_sides, kv_domain,
        kv_needles, block_rotation, block_formats, end_to_end, compare, uncommitted,
    )
}  # fmt: skip
