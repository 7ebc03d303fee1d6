"""Time every kernel on a GPU, compared with a copy of as many bytes in the same rounds.

    PYTHONPATH=. python scripts/bench_gpu.py           # on a GPU; under 5 minutes on an H100
    PYTHONPATH=. python scripts/bench_gpu.py --quick   # anywhere: small, by the interpreter

Needs only jax, numpy and jaxtyping of the dependencies of isojax. Cases are in the order of their
importance; rows are on disk after each, and a failed case is one row. Each case is checked on the
results of the timed programs: some vectors against fp64 on the host, all of them against plain JAX.
A wrong result is a row too, and the run ends with code 1.

`time_us` is the median over calls of the time of the kernels on the device, from the profiler;
`wall_us` is the mean wall time of many consecutive calls. The ways of a case alternate, after 100
ms of work that warms the clocks up. `of_copy` is the speed over that of `x + 1`, by the bytes that
must be moved. Bounds of a case: `memory` moves 200 MB and more, which exceeds every L2; `L2` moves
less, so its copy is in the cache; `launch` is an L2 case whose wall time is over 1.5 times the time
on the device. Goals at 200 MB and more, as shares of the copy: round trips and stores .85 in bf16
and .9 in fp32, Hadamard transforms to 4096 and dense matrices of 128 .8.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

# command buffers hide the program of a kernel
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_enable_command_buffer="
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax  # noqa: E402
from gpu_cases import Case, Group, large, phases  # noqa: E402
from gpu_events import Event, median_us, read_events  # noqa: E402

from isojax.report import Study, pivot  # noqa: E402

UNITS = {
    "time_us": "us", "wall_us": "us", "gb_per_s": "GB/s", "of_copy": "1", "failed": "count",
    "deviation": "1", "disagreement": "1",
}  # fmt: skip
WARM_SECONDS = 0.1
CALLS_IN_A_ROW = 10


def settings() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--repeats", type=int, default=30, help="timed calls (default %(default)s)")
    add("--size", type=int, default=256 << 20, help="bytes moved by large cases (%(default)s)")
    add("--seconds", type=float, default=280, help="start no case after (default %(default)s)")
    add("--only", nargs="+", default=[], help="only these kernels")
    add("--cases", nargs="+", default=[], help="only these, as kernel,transform,dim,dtype,bits")
    add("--threads", type=int, default=min(os.cpu_count() or 1, 14), help="compiler threads")
    add("--commit", default="", help="of the source tree, without git")
    add("--keep-trace", type=Path, help="folder for the profile of the first case")
    add("--quick", action="store_true", help="few small cases, by the interpreter without a GPU")
    add("--out", type=Path, default=Path("results/bench_gpu"), help="folder (%(default)s)")
    return parser.parse_args()


def main(options: argparse.Namespace) -> None:
    """Compile in the background, check and time case after case, write the table."""
    start, on_gpu = time.perf_counter(), jax.default_backend() == "gpu"
    if not on_gpu and not options.quick:
        raise SystemExit("error: no GPU here; --quick tries the script without one.")
    study = Study("bench_gpu", options.out, vars(options) | {"threads": 0})
    if study.rows():
        raise SystemExit(f"error: {options.out} holds a measurement; give another --out.")
    if options.commit:
        study.stamp.commit = options.commit
    mine = "triton" if on_gpu else "interpret"
    left_out, failed, number = [], [], 0

    def say(words: str) -> None:
        print(f"{time.perf_counter() - start:6.1f} s  {words}", flush=True)

    with ThreadPoolExecutor(options.threads) as pool:
        for phase in wanted(options, mine):
            compiled = []
            for group in phase:
                if not options.only or group.config["kernel"] in options.only:
                    number += 1
                    programs = {w: pool.submit(compile_way, group, w, number) for w in group.call}
                    compiled.append((group, number, programs))
            # compilers may run trials on the device, which would disturb the timing
            wait([future for *_, programs in compiled for future in programs.values()])
            say(f"{len(compiled)} cases compiled")
            for group, own, programs in compiled:
                name = " ".join(str(v) for v in group.config.values())
                if time.perf_counter() - start > options.seconds:
                    left_out.append(name)
                    continue
                troubles = run(study, group, own, programs, options)
                failed += [f"{name}, {way}: {trouble}" for way, trouble in troubles.items()]
                say(" ".join((name, *troubles.values())))
    text = report(study, left_out, failed)
    if not on_gpu:
        text += "\n\nThe interpreter on a CPU: not the speed of the kernels."
    study.finish(text)
    print((options.out / "table.md").read_text())
    if failed:
        raise SystemExit(1)


def wanted(options: argparse.Namespace, mine: str) -> Iterable[list[Group]]:
    """The requested cases, of large size if they are named one by one."""
    if not options.cases:
        return phases(options.quick, mine, options.size)
    named = [tuple(case.split(",")) for case in options.cases]
    return [[large(Case(k, t, int(d), x, int(b)), options.size, mine) for k, t, d, x, b in named]]


def compile_way(group: Group, way: str, number: int) -> tuple[Any, Any]:
    """The compiled programs of the arguments of a way, and of the timed call.

    Named so that the profile identifies their kernels.
    """
    call, donated = group.call[way], way in group.donated

    def program(*args: Any) -> Any:
        return call(*args)

    program.__name__ = program_name(way, number)
    key = jax.random.key(2)
    make = jax.jit(group.make[way]).lower(key).compile()
    shapes = jax.eval_shape(group.make[way], key)
    jitted = jax.jit(program, donate_argnums=(0,) if donated else ())
    return functools.partial(make, key), jitted.lower(*shapes).compile()


def program_name(way: str, number: int) -> str:
    """The name of the program of a way of case `number`."""
    return f"case{number}_{''.join(c if c.isalnum() else '_' for c in way)}"


def run(
    study: Study, group: Group, number: int, programs: dict[str, Future[Any]], options: Any
) -> dict[str, str]:
    """Check and time the ways of a case; record rows, and return the errors by way."""
    ready, args, results, trouble = {}, {}, {}, {}
    for way, future in programs.items():
        try:
            make, program = future.result()
            args[way] = make()
            results[way] = jax.block_until_ready(program(*args[way]))
            ready[way] = program
            if way in group.donated:
                args[way] = (results[way][0], *args[way][1:])
        except Exception as error:  # errors of a compiler or a kernel are reported
            trouble[way] = f"{type(error).__name__}: {str(error)[:300]}"
    try:
        checks = group.check(args, results)
    except Exception as error:  # as above; without its reference nothing can be checked
        checks, trouble["check"] = {}, f"{type(error).__name__}: {str(error)[:300]}"
    found: dict[str, dict[str, float]] = {way: {"failed": 1.0} for way in trouble}
    for way, metrics in checks.items():
        found.setdefault(way, {}).update({name: value for name, (value, _) in metrics.items()})
        wrong = [f"{n} {v:.3g} above {most:.3g}" for n, (v, most) in metrics.items() if v > most]
        if wrong or any(v != v for v, _ in metrics.values()):
            trouble[way] = ", ".join(wrong) or "NaN"
    del results
    keep = options.keep_trace if number == 1 else None
    timed = times(ready, args, group.donated, options.repeats, number, keep)
    copy = timed.get("copy", {})
    for way, metrics in timed.items():
        clock = "time_us" if {"time_us"} <= metrics.keys() & copy.keys() else "wall_us"
        speed = group.moved[way] / metrics[clock] / 1e3
        metrics["gb_per_s"] = speed
        if copy:
            metrics["of_copy"] = speed / (group.moved["copy"] / copy[clock] / 1e3)
        found.setdefault(way, {}).update(metrics)
    for way, metrics in found.items():
        config = group.config | {"way": way, "bound": bound(group.config, metrics)}
        study.add(config, None, metrics, UNITS)
    return trouble


def bound(config: dict[str, Any], metrics: dict[str, float]) -> str:
    """The bound of a case; see above."""
    if config["size"] == "memory":
        return "memory"
    launch = metrics.get("wall_us", 0) > 1.5 * metrics.get("time_us", float("inf"))
    return "launch" if launch else "L2"


def times(
    ready: dict[str, Any],
    args: dict[str, Any],
    donated: Any,
    repeats: int,
    number: int,
    keep: Path | None,
) -> dict[str, dict[str, float]]:
    """Microseconds of each program on the device and of wall time, in alternating calls."""

    def once(way: str) -> Any:
        result = ready[way](*args[way])
        if way in donated:
            args[way] = (result[0], *args[way][1:])
        return result

    if not ready:
        return {}
    start = time.perf_counter()
    while time.perf_counter() - start < WARM_SECONDS:
        for way in ready:
            jax.block_until_ready(once(way))
    events = traced(lambda: [jax.block_until_ready(once(way)) for way in ready], repeats, keep)
    wall: dict[str, list[float]] = {way: [] for way in ready}
    for _ in range(3):
        for way in ready:
            start = time.perf_counter()
            for _ in range(CALLS_IN_A_ROW - 1):
                once(way)
            jax.block_until_ready(once(way))
            wall[way].append((time.perf_counter() - start) / CALLS_IN_A_ROW)
    found = {}
    for way in ready:
        found[way] = {"wall_us": 1e6 * statistics.median(wall[way])}
        device = median_us(events, program_name(way, number), repeats)
        if device is not None:
            found[way]["time_us"] = device
    return found


def traced(round_: Any, rounds: int, keep: Path | None) -> list[Event]:
    """The events on the device in `rounds` rounds, from the profiler; saved in `keep` if given."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = options.host_tracer_level = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or temporary
        with jax.profiler.trace(folder, profiler_options=options):
            for _ in range(rounds):
                round_()
        return read_events(folder)


def report(study: Study, left_out: list[str], failed: list[str]) -> str:
    """The table, with missing and failed cases."""
    names = ("kernel", "transform", "dim", "dtype", "bits", "size", "way", "bound")
    shown = ("deviation", "disagreement", "time_us", "wall_us", "gb_per_s", "of_copy")
    text = pivot(study.rows(), names, "metric", order=shown)
    if left_out:
        text += "\n\nLeft out for lack of time: " + "; ".join(left_out)
    if failed:
        text += "\n\nWrong or failed:\n" + "\n".join(failed)
    return text


if __name__ == "__main__":
    main(settings())
