"""The report of `stage1`: published and measured values, four tables, a figure."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from isojax.report import (
    Row,
    Stat,
    Study,
    against,
    distinct,
    draw_lines,
    markdown,
    new_figure,
    pivot,
    select,
    stat,
    summarize,
    summarize_by,
)

from .measure import COSTS, TIMES

PUBLISHED = "IsoQuant (published)"
CUDA = "NVIDIA RTX 4090, CUDA (published)"
PUBLISHED_COSTS = {  # d = 128: parameters, FMAs
    "haar": (16384, 16384),
    "rotor": (172, 2408),
    "planar": (128, 256),
    "quaternion_full": (256, 1024),
    "quaternion_fast": (128, 512),
}
TIMED = ("rotor", "quaternion_full", "quaternion_fast", "planar")
PUBLISHED_TIMES = {  # us for 8192 vectors of length 128, 256, 512, in the order of TIMED
    ("float16", 2): ((32.7, 8.5, 8.2, 8.5), (32.6, 8.8, 8.3, 8.4), (36.0, 8.4, 8.5, 8.3)),
    ("float16", 3): ((36.4, 6.2, 6.1, 6.2), (36.8, 9.7, 9.5, 9.2), (39.9, 9.9, 8.4, 9.6)),
    ("float16", 4): ((44.2, 9.6, 9.4, 9.4), (46.7, 8.1, 7.5, 7.5), (50.4, 13.9, 12.5, 13.4)),
    ("float32", 2): ((33.4, 7.3, 7.1, 7.0), (33.8, 7.4, 7.2, 7.2), (37.8, 12.1, 11.4, 10.5)),
    ("float32", 3): ((35.1, 6.9, 7.6, 7.1), (37.9, 7.2, 7.0, 6.9), (44.1, 12.5, 11.5, 11.0)),
    ("float32", 4): ((44.7, 8.2, 8.2, 8.3), (47.9, 8.1, 7.6, 7.5), (52.9, 14.8, 13.5, 13.9)),
}
COLUMNS = {
    "nmse": "NMSE, mean of layers",
    "nmse_worst_layer": "NMSE, worst layer",
    "cosine": "cosine",
    "block_energy_cv": "block energy, cv",
    "saturation_share": "saturated share",
}


def add_published(study: Study) -> None:
    """Record the published numbers, so that the tables are made only from rows."""
    source = {"source": PUBLISHED}
    for name, (params, fmas) in PUBLISHED_COSTS.items():
        config = source | {"section": "cost", "coordinates": name, "dim": 128}
        study.add_published(config, {"params": params, "fmas": fmas}, COSTS)
    for (dtype, bits), by_dim in PUBLISHED_TIMES.items():
        for dim, us in zip((128, 256, 512), by_dim, strict=True):
            for name, value in zip(TIMED, us, strict=True):
                config = source | {"section": "time", "dim": dim, "dtype": dtype, "vectors": 8192}
                config |= {"coordinates": name, "bits": bits}
                study.add_published(config, {"time_us": value}, TIMES, CUDA)


def text(study: Study, base: dict[str, Any], bits: Sequence[int]) -> list[str]:
    """The report in Markdown, by paragraphs."""
    shown = 3 if 3 in bits else bits[0]
    real = sorted(study.rows(**base), key=lambda r: r.config["tensor"])
    return [
            f"# Stage 1: rotate, Lloyd-Max, rotate back; unit vectors, and {base['model']}",
            finding(study, base, shown),
            "Cells are mean ± sd over the seeds; codebook `gaussian` is that of N(0, 1/d), "
            "`sphere` that of a coordinate of a random unit vector. `theory` is the distortion "
            "of each codebook under its own law; the first is reached as d grows.",
            "## Cost of the rotation of one vector",
            costs(study),
            "A rotor counts 56 FMAs per block of three, as in the published multivector form of "
            "eight numbers; it is a rotation in three dimensions, and the 3 x 3 matrix used here "
            "takes 9. Blocks of three pad 128 to 129, 256 to 258 and 512 to 513.",
            "## Synthetic unit vectors: squared error per vector (NMSE)",
            synthetic(study),
            f"## Keys (after RoPE) and values of {base['model']}",
            f"{base['windows']} windows of {base['length']} tokens, all layers and heads, "
            f"d = {base['dim']}; one rotation per seed for all. `block energy, cv`: coefficient of "
            "variation of the energy in blocks of four, in the rotated coordinates; "
            f"sqrt((2 d - 8) / (4 (d + 2))) = {isotropic_cv(base['dim']):.3f} for an isotropic "
            "vector. `saturated share`: "
            "elements beyond the outermost level. Layers have equal weights.",
            pivot(real, ["tensor", "codebook", "bits"], "coordinates", "nmse"),
            f"At {shown} bit, codebook `gaussian`:",
            pivot(
                select(real, codebook="gaussian", bits=shown), ["tensor", "coordinates"], "metric",
                order=COLUMNS, count=True,
            ),
            "## Time",
            *times(study),
    ]  # fmt: skip


def isotropic_cv(dim: int) -> float:
    """Root mean square of the coefficient of variation of block energies, isotropic vectors.

    The share of a block of 4 is Beta(2, d/2 - 2).
    """
    return ((2 * dim - 8) / (4 * (dim + 2))) ** 0.5


def finding(study: Study, base: dict[str, Any], bits: int) -> str:
    """The answer to the question of the study from the rows, in words."""
    plain = {"codebook": "gaussian", "bits": bits}
    iso = study.rows("nmse", section="synthetic", **plain)
    settings = [select(iso, dim=d, dtype=t) for d, t in distinct(iso, "dim", "dtype")]
    apart = max((abs(c.mean), c.sd) for rows in settings for c in changes(rows).values())
    limit = summarize(study.rows(section="theory", **plain), "nmse").mean
    lines = [
        f"On isotropic unit vectors at {bits} bit the NMSE is {stat(r.value for r in iso).mean:.4g}"
        f" (in the Gaussian limit {limit:.4g}); the "
        f"largest change by a rotation is {apart[0]:.2%} (sd over seeds {apart[1]:.2%}) "
        f"over {len(settings)} setting(s) of d and dtype."
    ]
    largest = 1.0
    for tensor in ("key", "value"):
        rows = study.rows(tensor=tensor, **base, **plain)
        found = summarize_by(rows, "nmse", "coordinates")
        means = [(each.mean, name) for name, each in found.items()]
        (low, best), (high, worst) = min(means), max(means)
        largest = max(largest, high / low)
        lines.append(
            f"On the {tensor}s of {base['model']} it goes from {low:.4g} ({best}) to "
            f"{high:.4g} ({worst}), a factor of {high / low:.2f}."
        )
    alike = "cannot" if apart[0] < 0.01 else "CAN"
    differ = "differ by more than a tenth" if largest > 1.1 else "do NOT differ by a tenth"
    lines.append(
        f"**So rotations {alike} be told from the identity (1%) on isotropic vectors, and {differ} "
        "on real ones.**"
    )
    return " ".join(lines)


def changes(rows: Sequence[Row]) -> dict[str, Stat]:
    """Relative change of the NMSE against the identity, by transform, seeds paired."""
    changed = against(rows, {"coordinates": "identity"}, relative=True)
    found = summarize_by(changed, "nmse", "coordinates")
    return {name: change for name, change in found.items() if name != "identity"}


def costs(study: Study) -> str:
    """Parameters and FMAs, measured and published."""
    rows, lines = study.rows(section="cost"), []
    for row in select(rows, "params", source=None):
        on = {k: row.config[k] for k in ("coordinates", "dim")}
        ours = [r.value for r in select(rows, source=None, **on)]
        theirs = [r.value for r in select(rows, source=PUBLISHED, **on)]
        costs, published = ([f"{v:,.0f}" for v in values] for values in (ours, theirs))
        pairs = zip(costs, published or "--", strict=True)
        same = ("yes" if ours == theirs else "NO") if theirs else "-"
        lines.append([*on.values(), *itertools.chain(*pairs), same])
    head = ["coordinates", "d", "params", "published", "FMAs", "published", "reproduced"]
    return markdown(head, lines)


def synthetic(study: Study) -> str:
    """NMSE and theory; the exact codebook only in the first dtype."""
    rows = study.rows("nmse", section="synthetic")
    dtypes = distinct(rows, "dtype")
    theory = [
        r.with_config(coordinates="theory", dtype=dtype)
        for r in study.rows("nmse", section="theory")
        for dtype in dtypes
    ]
    gaussian, exact = {"codebook": "gaussian"}, {"codebook": "sphere", "dtype": dtypes[0]}
    shown = [r for on in (gaussian, exact) for r in select([*rows, *theory], **on)]
    keys = ["codebook", "dim", "dtype", "bits"]
    return pivot(shown, keys, "coordinates", order=["theory", *distinct(rows, "coordinates")])


def times(study: Study) -> list[str]:
    """Ratios to a copy, and speedups over the rotor, measured and published."""
    rows = study.rows(section="time")
    ours = select(rows, source=None)
    ratios = select(ours, "copy_ratio")
    copies = [
        r.with_config(coordinates="copy, us", bits=bits)
        for r in select(ours, "time_us", coordinates="copy")
        for bits in distinct(ratios, "bits")
    ]
    which, keys = distinct(ratios, "coordinates"), ["dim", "dtype", "bits"]
    forms = {"copy, us": "{0.mean:,.0f}".format} | dict.fromkeys(which, "{0.mean:.1f}".format)
    parts = [
        f"Quantize and dequantize {ours[0].config['vectors']} vectors on {ours[0].device} as a "
        "multiple of the time of `x + 1` on the same array, medians of alternating calls, compiled "
        "by XLA.",
        pivot([*ratios, *copies], keys, "coordinates", form=forms, order=list(forms)),
    ]
    faster = [n for n in TIMED[1:] if n in which]
    if faster and "rotor" in which:
        shared = {"dtype": ("float16", "float32"), "bits": (2, 3, 4), "dim": (128, 256, 512)}
        taken = select([*ours, *select(rows, source=PUBLISHED)], "time_us", **shared)
        slower = against(taken, {"coordinates": "rotor"}, relative=True)
        speedups = [dataclasses.replace(r, value=1 / (1 + r.value)) for r in slower]
        index = {"source": lambda r: r.config.get("source", "ours"), "device": "device"}
        parts += [
            "Time of the rotor over that of the others, mean ± sd over the n published settings "
            "that were measured. The published kernels are CUDA, near launch latency, and their "
            "rotor is in multivector form, so the two lines are not comparable.",
            pivot(
                speedups, index, "coordinates", form=lambda s: s.format(3), order=faster,
                count=True, over=("seed", "dtype", "bits", "dim"),
            ),
        ]  # fmt: skip
    return parts


def figure(study: Study, base: dict[str, Any]) -> Any:
    """NMSE over bits: unit vectors, keys, values."""
    chart, axes = new_figure(1, 3, "NMSE of stage 1, codebook of N(0, 1/d)")
    iso = study.rows("nmse", section="synthetic", codebook="gaussian")
    on = {k: iso[0].config[k] for k in ("dim", "dtype")}
    panels = [(select(iso, **on), f"unit vectors, d = {on['dim']}")]
    for tensor in ("key", "value"):
        rows = study.rows("nmse", tensor=tensor, codebook="gaussian", **base)
        panels.append((rows, f"{tensor}s of {base['model']}, d = {base['dim']}"))
    for place, (rows, title) in zip(axes[0], panels, strict=True):
        draw_lines(place, rows, "nmse", "bits", "coordinates")
        place.set_title(title, fontsize=9)
    values = [r.value for rows, _ in panels for r in rows]
    across = "y" if len(distinct(iso, "bits")) > 1 else "x"
    for place in axes[0]:
        place.set(**{f"{across}lim": (min(values) / 1.3, max(values) * 1.3)})
    return chart
