"""Time of every kernel on a GPU, beside a copy of as many bytes in the same run.

    python scripts/bench_gpu.py            # on a GPU; under 8 minutes on an H100
    python scripts/bench_gpu.py --quick    # anywhere: the same path by the interpreter, tiny

First each kernel is held against fp64, and at 256 MB and an uneven number of vectors against plain
JAX; a wrong one is not timed, and the run ends with code 1. The others are timed by the events of
the device (medians of calls on random numbers; by the wall, calls in a row, where the profiler
reports none, and `clock` says so), at 8192 vectors, where launch and L2 set the pace, and at 256 MB
moved and more, which no L2 holds. `of copy` is the speed in bytes that must be moved over that of
`x + 1` in the same run, which reads as much as it writes. Beside it: `xla`, jit of the same in
plain JAX, with comparisons for the search; a dense rotation on tensor cores; and the published
times of IsoQuant on an RTX 4090, multiplied by its 1008 GB/s over the speed of the copy here.
Expected at 256 MB: round trips at 0.85 of the copy in bf16 at 3 bit and 0.9 in fp32, packed codes
at 0.8, Hadamard transforms at 0.8; arithmetic says that 4 bit in 16-bit vectors is bound by
comparisons instead.
"""

from __future__ import annotations

import dataclasses
import glob
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from kernel_cases import Case

from experiments.stage1_report import TIMED, TIMES
from isojax.report import Study, table

BATCH = 8192
ADA = 1008.0  # GB/s of an RTX 4090


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings."""

    repeats: int = 30
    size: int = 256 << 20
    """Bytes moved by the large measurements."""
    seconds: float = 420.0
    """After so long no new case is begun."""
    quick: bool = False
    """Few small cases by the interpreter, to try the script without a GPU."""
    out: Path = Path("results/bench_gpu")
    """Folder for rows.jsonl and table.md."""


def cases(quick: bool) -> Iterator[Case]:
    """What is timed, the most wanted first."""
    if quick:
        yield Case("roundtrip", "quaternion_full", 64, "bfloat16", 3)
        yield Case("store", "quaternion_full", 64, "float32", 3)
        yield Case("load", "planar", 64, "bfloat16", 2)
        yield Case("scores", "planar", 64, "bfloat16", 4)
        yield Case("hadamard", "hadamard", 64, "bfloat16", 3)
        yield Case("roundtrip", "haar", 64, "bfloat16", 3)
        return
    for bits in (3, 2, 4):
        for dtype in ("bfloat16", "float32", "float16"):
            yield Case("roundtrip", "quaternion_full", 128, dtype, bits)
    for name in ("quaternion_fast", "planar", "rotor", "hadamard"):
        for dtype in ("bfloat16", "float32"):
            yield Case("roundtrip", name, 128, dtype, 3)
    for bits in (3, 2, 4):
        for kernel in ("store", "load", "scores"):
            yield Case(kernel, "quaternion_full", 128, "bfloat16", bits)
    for kernel in ("store", "load"):
        yield Case(kernel, "quaternion_full", 128, "float32", 3)
    yield Case("roundtrip", "haar", 128, "bfloat16", 3)
    yield Case("roundtrip", "haar", 64, "float32", 3)
    for dtype in ("bfloat16", "float32"):
        for dim in (128, 512, 1024, 4096, 1536):
            yield Case("hadamard", "hadamard", dim, dtype, 3)
    for dim in (64, 256, 512, 1024):
        yield Case("roundtrip", "quaternion_full", dim, "bfloat16", 3)


def main(config: Config) -> None:
    """Check, then time, and write the table."""
    study, start = Study("bench_gpu", config.out, config), time.perf_counter()
    if study.rows():
        raise SystemExit(f"{config.out} holds a measurement; give another --out.")
    on_gpu = jax.default_backend() == "gpu"
    if not on_gpu and not config.quick:
        raise SystemExit("error: no GPU here; --quick tries the script without one.")
    mine = "triton" if on_gpu else "interpret"
    seen = on_gpu and kernel_times(jax.jit(lambda x: x + 1), (jnp.ones(8),), 2)
    clock = "device" if seen else "wall"
    wrong, left_out, chosen = [], [], []
    for case in cases(config.quick):
        large = case.vectors_for(config.size) if on_gpu else 130
        found = {
            "deviation": case.deviation(mine, 257 if on_gpu else 33),
            "disagreement": case.disagreement(mine, "xla", large + 5),
        }
        study.add(case.named | {"way": mine}, None, found)
        if found["deviation"] <= case.tolerance and found["disagreement"] <= case.least_loss:
            chosen.append(case)
        else:
            most = f"{case.tolerance:.2e} and {case.least_loss:.2e}"
            wrong.append(f"{case}: {found}, at most {most} expected")
    copies: dict[tuple[str, int, str], float] = {}
    for case in chosen:
        if time.perf_counter() - start > config.seconds:
            left_out.append(str(case))
            continue
        large = case.vectors_for(config.size) if on_gpu else 130
        for size, vectors in (("batch", BATCH if on_gpu else 33), ("memory", large)):
            moved = case.moved(vectors)
            if (size, moved, case.dtype) not in copies:
                copies[size, moved, case.dtype] = copy_time(
                    moved, case.dtype, config.repeats, clock
                )
            copy_us = copies[size, moved, case.dtype]
            base = case.named | {"size": size, "vectors": vectors, "clock": clock}
            study.add(base | {"way": "copy"}, None, speed(moved, copy_us, copy_us))
            for way in (mine, "xla"):
                args = jax.jit(case.arguments, static_argnums=1)(jax.random.key(2), vectors)
                us = call_time(jax.jit(case.call(way)), args, config.repeats, clock)
                study.add(base | {"way": way}, None, speed(moved, us, copy_us))
            if size == "batch":
                add_published(study, case, base, moved, copy_us)
    names = ("kernel", "transform", "dim", "dtype", "bits", "size", "way", "clock")
    index = {name: name for name in names}
    metrics = ("deviation", "disagreement", "time_us", "gb_per_s", "of_copy")
    text = table(study.rows(), index, metrics, spread=False)
    if left_out:
        text += "\n\nLeft out for want of time: " + "; ".join(left_out)
    if wrong:
        text += "\n\nWrong, and not timed:\n" + "\n".join(wrong)
    if not on_gpu:
        text += "\n\nThe interpreter on a CPU, wall times: no figures of the kernels."
    study.finish(text)
    print((config.out / "table.md").read_text())
    if wrong:
        raise SystemExit(1)


def speed(moved: int, us: float, copy_us: float) -> dict[str, float]:
    """What a row says of a time; `copy_us` is that of a copy of as many bytes."""
    return {"time_us": us, "gb_per_s": moved / us / 1e3, "of_copy": copy_us / us}


def copy_time(moved: int, dtype: str, repeats: int, clock: str) -> float:
    """Microseconds of `x + 1` that reads and writes so many bytes."""
    number = max(moved // 2 // jnp.dtype(dtype).itemsize, 1)
    x = jax.random.normal(jax.random.key(3), (number,)).astype(dtype)
    return call_time(jax.jit(lambda x: x + 1), (x,), repeats, clock)


def add_published(study: Study, case: Case, base: dict[str, Any], moved: int, us: float) -> None:
    """The published time of the same, as it would be at the bandwidth of the copy."""
    dims = {128: 0, 256: 1, 512: 2}
    dtype = "float32" if case.dtype == "float32" else "float16"
    known = case.kernel == "roundtrip" and case.transform in TIMED and case.dim in dims
    if not known or base["vectors"] != BATCH:
        return
    published = TIMES[dtype, case.bits][dims[case.dim]][TIMED.index(case.transform)]
    scaled = published * ADA / (moved / us / 1e3)
    way = base | {"way": "published, scaled by bandwidth"}
    study.add_published(way, speed(moved, scaled, us), "NVIDIA RTX 4090, CUDA (published)")


def call_time(call: Callable[..., Any], args: Any, repeats: int, clock: str) -> float:
    """Median microseconds of a call, of its kernels on the device or by the wall."""
    for _ in range(3):
        jax.block_until_ready(call(*args))
    if clock == "device":
        times = kernel_times(call, args, repeats)
        if not times:
            raise SystemExit("error: the profiler reported kernels before, and now none.")
        return 1e6 * statistics.median(times)
    return 1e6 * statistics.median(wall(call, args) for _ in range(repeats))


def kernel_times(call: Callable[..., Any], args: Any, repeats: int) -> list[float]:
    """Seconds of the kernels of each call, as the profiler has them; empty if it has none.

    A kernel of the call appears once or several times in each; what appears less than once a call
    is a stray copy.

    Raises:
        SystemExit: the events of a kernel cannot be told apart by calls.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = options.host_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            for _ in range(repeats):
                jax.block_until_ready(call(*args))
        found = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        planes = [p for path in found for p in jax.profiler.ProfileData.from_file(path).planes]
    seen: dict[str, list[tuple[float, float]]] = {}
    for plane in planes:
        for line in plane.lines if plane.name.startswith("/device:GPU") else ():
            for event in line.events if line.name.startswith("Stream") else ():
                seen.setdefault(event.name, []).append((event.start_ns, event.duration_ns))
    own = [sorted(events) for events in seen.values() if len(events) >= repeats]
    if any(len(events) % repeats for events in own):
        numbers = ", ".join(f"{len(events)} of {name}" for name, events in seen.items())
        raise SystemExit(f"error: events of {repeats} calls cannot be told apart: {numbers}.")
    if not own:
        return []
    each = [(events, len(events) // repeats) for events in own]
    return [
        sum(ns for events, n in each for _, ns in events[i * n : (i + 1) * n]) / 1e9
        for i in range(repeats)
    ]


def wall(call: Callable[..., Any], args: Any, calls: int = 10) -> float:
    """Seconds of one of some calls in a row, each begun before the one before has ended."""
    start = time.perf_counter()
    jax.block_until_ready([call(*args) for _ in range(calls)])
    return (time.perf_counter() - start) / calls


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
