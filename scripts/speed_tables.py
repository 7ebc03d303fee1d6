"""The tables of speed and memory in docs/findings and docs/kernels.md."""

from __future__ import annotations

from typing import Any

from doc_tables import short

from isojax.report import Row, markdown, paired, pivot, select, summarize


def costs(rows: list[Row]) -> str:
    """Time and memory of a sweep, and of loading and quantizing a model of 1.5B."""
    what = {
        "bench_sweep": "24 seeds x 3 transforms x 5 granularities of 2048 x 1536 elements, "
        "time with compilation",
        "bench_load": "load a 1.5B Q8_0 GGUF in fp32; memory: also score 2048 tokens",
    }
    lines = []
    for name, text in what.items():
        mine = [r for r in rows if r.experiment == name]
        seconds = summarize(mine, "time_us").mean / 1e6
        peak = summarize(mine, "peak_rss_bytes").mean / 1e9
        lines.append([text, f"`scripts/{name}.py`", f"{seconds:.0f}", f"{peak:.2f}"])
    for step in ("calibrate", "quantize", "score"):
        mine = [r for r in rows if r.experiment == "bench_quantize" and r.config["step"] == step]
        seconds, peak = (summarize(mine, name).mean for name in ("time_us", "peak_rss_bytes"))
        text = f"{step} 1.5B in bf16, W4A4 by GPTQ after QuaRot's rotations"
        cells = [f"{seconds / 1e6:.0f}", f"{peak / 1e9:.2f}"]
        lines.append([text, "`scripts/bench_quantize.py`", *cells])
    for way, text in {
        "vmap": "learn 128 rotations of 128 x 128, 500 steps each, in one program by `vmap`",
        "loop": "the same, one compiled program called once per run",
        "programs": "the same, compiled again for each run",
    }.items():
        mine = [r for r in rows if r.experiment == "bench_learn" and r.config["way"] == way]
        seconds = summarize(mine, "time_us").mean / 1e6
        lines.append([text, "`scripts/bench_learn.py`", f"{seconds:.0f}", "-"])
    return markdown(["what", "script", "seconds", "peak memory, GB"], lines)


def bench_model(rows: list[Row]) -> str:
    """Speed and memory against torch, plain and with logits in chunks."""
    rows = [r for r in rows if r.experiment == "bench_model" and "part" not in r.config]
    lines = []
    for model in dict.fromkeys(r.config["model"] for r in rows):
        mine = select(rows, model=model)
        others = [n for n in ("torch_plain", "torch") if select(mine, implementation=n)]
        for name in (*others, "isojax"):
            speed, peak, nll = (
                summarize(mine, m, implementation=name)
                for m in ("tokens_per_s", "peak_rss_bytes", "nll")
            )
            cells = [speed.format(3), f"{peak.mean / 1e9:.2f}", f"{nll.mean:.4f}", speed.n]
            lines.append([short(model), name, *cells])
        for name in others:
            sides = {"implementation": "isojax"}, {"implementation": name}
            ratios = [
                1 + paired(mine, m, *sides, relative=True).mean
                for m in ("tokens_per_s", "peak_rss_bytes")
            ]
            label = "**ratio**" if len(others) == 1 else f"**ratio to {name}**"
            lines.append([short(model), label, *(f"**{r:.2f}x**" for r in ratios), "", ""])
    head = ["model", "", "tokens per second", "peak memory, GB", "nll", "processes"]
    return markdown(head, lines)


def decode_cpu(rows: list[Row]) -> str:
    """One token with an almost full cache, compared with reading the same bytes."""
    rows = select([r for r in rows if r.experiment == "bench_model"], part="decode")
    return pivot(
        rows, {"model": lambda r: short(r.config["model"]), "slots": "slots", "cache": "cache"},
        "metric", form=lambda s: f"{s.mean:.3g}",
        order={
            "decode_ms": "step, ms", "read_ms": "reading the same bytes, ms",
            "decode_over_read": "ratio",
        },
    )  # fmt: skip


def bench_cpu(rows: list[Row]) -> str:
    """Times of stage 1 and of Hadamard transforms, in passes over the same elements."""
    rows = [r for r in rows if r.experiment == "bench_cpu"]
    cases = dict.fromkeys((r.config["case"], r.config["dim"]) for r in rows)
    lines = []
    for way in dict.fromkeys(r.config["way"] for r in rows):
        cells = []
        for case, dim in cases:
            mine = select(rows, case=case, dim=dim, way=way)
            if mine:
                ratio, time = (summarize(mine, m).mean for m in ("copy_ratio", "time_us"))
                cells.append(f"{ratio:.1f} ({time / 1e3:.2g} ms)")
            else:
                cells.append("-")
        lines.append([way, *cells])
    return markdown(["", *(f"{case}, d = {dim}" for case, dim in cases)], lines)


def kernel_times(rows: list[Row]) -> str:
    """Kernels on a GPU at sizes beyond every L2: compiled bounds and measured shares of a copy."""
    names = ("kernel", "transform", "dim", "dtype", "bits")

    def of(experiment: str, metric: str) -> dict[tuple[Any, ...], float]:
        return {
            (*(r.config[n] for n in names), r.config["kernels"], r.config.get("way", "")): r.value
            for r in rows
            if (r.experiment, r.metric) == (experiment, metric)
            and r.config.get("size", "memory") == "memory"
            and r.config["vectors"] > 8192
        }

    share, roof = of("bench_gpu", "of_copy"), of("aot_cuda", "roof_percent")
    work = of("aot_cuda", "instructions_per_element")
    lines = []
    for *case, state, way in share:
        if way != "triton" or state != "now":
            continue

        def pair(found: dict[Any, float], form: str, *way: str, case: Any = case) -> str:
            both = [found.get((*case, s, *way)) for s in ("before", "now")]
            return " → ".join("-" if v is None else format(v, form) for v in both)

        bits = case[4] if case[0] != "apply" else ""
        lines.append(
            [
                *case[:4], bits, pair(work, ".1f", ""), pair(roof, ".0f", ""),
                pair(share, ".2f", "triton"), f"{share[(*case, 'before', 'xla')]:.2f}",
            ]
        )  # fmt: skip
    head = ["operation", "transform", "d", "dtype", "bits", "instructions per element"]
    return markdown([*head, "bound, %", "of a copy", "plain JAX"], lines)


def decode_times(rows: list[Row]) -> str:
    """Attention of one token over a cache of 8192 slots on a GPU."""
    rows = [
        r for r in select(rows, "time_us", kernel="decode_attention") if r.config["way"] != "copy"
    ]
    order = {
        (batch, state): f"batch of {batch}, before" if state == "before" else state
        for batch in (8, 32)
        for state in ("before", "now")
    }
    return pivot(rows, {"": "way"}, ("batch", "kernels"), form="{0.mean:.0f}".format, order=order)


TABLES = {
    make.__name__: make
    for make in (bench_model, costs, bench_cpu, kernel_times, decode_times, decode_cpu)
}
