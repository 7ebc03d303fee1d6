"""Compile every kernel for GPUs that are not present, and analyse the machine code.

Use a separate environment, since the plugin is large and warns without a driver. For JAX 0.10.2
(Python 3.11 and later, CUDA 12, 600 MB):

    pip install jax==0.10.2 jaxtyping
    pip install --no-deps jax-cuda12-plugin==0.10.2 jax-cuda12-pjrt==0.10.2
    pip install --no-deps nvidia-cuda-nvcc-cu12 nvidia-cuda-nvdisasm

For JAX 0.11.2 or 0.12.0.1 (Python 3.12 and later, CUDA 13, 750 MB), that version three times:

    pip install jax==0.11.2 jaxtyping
    pip install --no-deps jax-cuda13-plugin==0.11.2 jax-cuda13-pjrt==0.11.2
    pip install --no-deps nvidia-cuda-nvcc nvidia-nvvm nvidia-cuda-nvdisasm

Then

    python scripts/aot_cuda.py                         # all kernels, sm80 to sm120
    python scripts/aot_cuda.py --targets sm90 --kernels roundtrip store --dims 128 --json rows.jsonl

One line of the table is a kernel on a target: registers per thread, bytes spilled, machine
instructions, accesses to shared memory, barriers, and the widest loads and stores of global memory
in bytes. Then, for the loop over tiles, instructions per thread and element, and the speed that
each pipe allows, in percent of the speed that memory allows: slots to issue instructions; the
half-rate pipe of integers, comparisons and selections (alu); fp32 (fma); shared memory with
shuffles (smem). `roof` is the least of them, at most 100, and `bound` its pipe, which may also be
that of roots and reciprocals (xu) or of tensor cores. These are upper bounds: latency, barriers,
bank conflicts and narrow accesses of global memory are not counted. They are `-` without nvdisasm
(from its wheel, or on the path), and where loops are nested.

Ends with code 1 unless nothing spills and vectors move 16 bytes at a time, except for the cases in
`EXEMPT`. Results are not checked.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sass import Found, Tools, Work, read, tools

ROOT = Path(__file__).parents[1]
WIDE = 16

# name: compute capability, cores, shared memory per block, L2, memory bandwidth, clock, memory
TARGETS: dict[str, tuple[int, int, int, int, int, int, float, int]] = {
    "sm80": (8, 0, 108, 166_912, 40 << 20, 2_039_000_000_000, 1.41, 80 << 30),
    "sm89": (8, 9, 128, 101_376, 72 << 20, 1_008_000_000_000, 2.52, 24 << 30),
    "sm90": (9, 0, 132, 232_448, 50 << 20, 3_352_000_000_000, 1.98, 80 << 30),
    "sm100": (10, 0, 148, 232_448, 126 << 20, 8_000_000_000_000, 1.96, 180 << 30),
    "sm120": (12, 0, 170, 101_376, 96 << 20, 1_792_000_000_000, 2.41, 32 << 30),
}
# Triton's name of one GPU per target, from JAX 0.11 on.
NAMES = {
    "sm80": "NVIDIA A100-SXM4-80GB",
    "sm89": "NVIDIA GeForce RTX 4090",
    "sm90": "NVIDIA H100 80GB HBM3",
    "sm100": "NVIDIA B200",
    "sm120": "NVIDIA RTX PRO 6000",
}


def description(target: str) -> str:
    """The target as a text proto for XLA."""
    major, minor, cores, shared, cache, bandwidth, clock, memory = TARGETS[target]
    fields = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 48 << 10,
        "shared_memory_per_block_optin": shared,
        "shared_memory_per_core": shared + 1024,
        "threads_per_core_limit": 2048 if minor == 0 and major < 12 else 1536,
        "core_count": cores,
        "fpus_per_core": 128,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "memory_bandwidth": bandwidth,
        "l2_cache_size": cache,
        "clock_rate_ghz": clock,
        "device_memory_size": memory,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
    }
    lines = "\n".join(f"  {name}: {value}" for name, value in fields.items())
    capability = f"  cuda_compute_capability {{ major: {major} minor: {minor} }}"
    info = f"gpu_device_info {{\n{lines}\n{capability}\n}}"
    versions = "dnn_version_info { major: 9 minor: 8 }"
    return f'{info}\nplatform_name: "CUDA"\n{versions}\ndevice_description_str: "{target}"\n'


# Cases whose vectors need not move 16 bytes at a time, with reasons.
EXEMPT = {
    "rotor": "three of four lanes hold numbers, so neighbours in memory are not so in registers",
    "hadamard of m * 2^k": "m of a power of two of lanes hold numbers; bits move at the end",
}
NUMBERS = 2**27  # elements of all vectors; enough for several tiles per program


def complaint(case: Any, found: Found) -> str:
    """The problems of the compiled kernel of a case; empty if none."""
    wrong = [f"{found.spills} bytes spilled"] if found.spills else []
    exempt = "rotor" if case.transform == "rotor" else ""
    if case.transform == "hadamard" and case.dim & (case.dim - 1):
        exempt = "hadamard of m * 2^k"
    if exempt not in EXEMPT:
        if case.kernel in ("roundtrip", "store", "apply") and found.loads < WIDE:
            wrong.append(f"loads of {found.loads} bytes")
        if case.kernel in ("roundtrip", "load", "apply") and found.stores < WIDE:
            wrong.append(f"stores of {found.stores} bytes")
    return ", ".join(wrong)


def cases() -> Iterator[tuple[Any, int]]:
    """The grid of kernels, transforms, dtypes, bits and lengths, with numbers of vectors."""
    from kernel_cases import Case

    def case(*values: Any) -> tuple[Any, int]:
        return Case(*values), NUMBERS // values[2]

    for bits in (2, 3, 4):
        for kernel in ("roundtrip", "store", "load", "scores"):
            yield case(kernel, "quaternion_full", 128, "bfloat16", bits)
    for dtype in ("float32", "float16"):
        for kernel in ("roundtrip", "store", "load"):
            yield case(kernel, "quaternion_full", 128, dtype, 3)
    yield Case("roundtrip", "quaternion_full", 128, "bfloat16", 3), 8192
    for dim in (32, 64, 256, 512, 1024):
        yield case("roundtrip", "quaternion_full", dim, "bfloat16", 4)
    for name in ("quaternion_fast", "planar", "rotor", "hadamard"):
        for dtype in ("float32", "bfloat16"):
            yield case("roundtrip", name, 128, dtype, 3)
        dim = 120 if name == "rotor" else 128  # 129 codes of 3 bits, padded, have no kernel
        yield case("store", name, dim, "bfloat16", 3)
        yield case("load", name, dim, "bfloat16", 3)
    for dim in (96, 1024):
        yield case("roundtrip", "hadamard", dim, "bfloat16", 4)
    yield case("roundtrip", "haar", 64, "float32", 3)
    for bits in (3, 4):
        yield case("roundtrip", "haar", 128, "bfloat16", bits)
    # the longest vectors with a kernel
    for name, dim in (("quaternion_full", 4096), ("rotor", 3072), ("hadamard", 3584)):
        yield case("roundtrip", name, dim, "bfloat16", 4)
    for dtype in ("float32", "bfloat16"):
        for dim in (128, 512, 1024, 4096, 896, 1536, 3584):
            yield case("apply", "hadamard", dim, dtype, 3)


def configure(dump: Path, cuda: Path) -> None:
    """Set the environment of the plugin without a driver; before jax is imported."""
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    flags = (f"--xla_gpu_cuda_data_dir={cuda}", f"--xla_dump_to={dump}")
    more = ("--xla_gpu_autotune_level=0", "--xla_dump_emitter_re=ptx")
    os.environ["XLA_FLAGS"] = " ".join([*flags, *more])


def compiled(case: Any, vectors: int, target: str, dump: Path, using: Tools) -> Found:
    """Compile `case` for `target`, and read its kernel."""
    import jax
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(
        platform="cuda", target_config=description(target), topology="1x1x1"
    )
    mesh = topologies.make_mesh(topo=topology, mesh_shape=(1,), axis_names=("x",))
    here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shapes = jax.eval_shape(lambda key: case.arguments(key, vectors), jax.random.key(0))
    placed = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), shapes)
    for old in dump.rglob("*.ptx"):
        old.unlink()
    call = jax.jit(case.call("triton"))
    name = f"isojax_{case.kernel}"
    with device(target):
        call.lower(*placed).compile()
        programs, steps = tiles(jax.make_jaxpr(call)(*shapes), name)
    (text,) = [p for p in dump.rglob("*.ptx") if f".entry {name}" in p.read_text()]
    work = Work(vectors * case.dim / programs, case.moved(vectors) / programs, steps)
    return read(text, name, work, target, using)


def equations(jaxpr: Any) -> Iterator[Any]:
    """The equations of a program and of all nested programs."""
    import jax

    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves([*equation.params.values()]):
            if hasattr(value, "eqns"):
                yield from equations(value)


def tiles(jaxpr: Any, name: str) -> tuple[int, int]:
    """Number of programs of a kernel, and tiles per program."""
    calls = [e for e in equations(jaxpr) if e.primitive.name == "pallas_call"]
    (call,) = [e for e in calls if e.params["name"] == name]
    loops = [e.params["length"] for e in call.params["jaxpr"].eqns if e.primitive.name == "scan"]
    return math.prod(call.params["grid_mapping"].grid), max(loops, default=1)


def device(target: str) -> Any:
    """The context in which kernels are lowered: a described GPU."""
    from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

    gpu = AbstractDevice(NAMES[target], TARGETS[target][2], platform="gpu")
    return use_abstract_mesh(AbstractMesh((), (), abstract_device=gpu))


def rows(options: argparse.Namespace, dump: Path, using: Tools) -> Iterator[dict[str, Any]]:
    """The rows of the table for the requested cases."""
    import jax

    for case, vectors in cases():
        if options.kernels and case.kernel not in options.kernels:
            continue
        if options.dims and case.dim not in options.dims:
            continue
        for target in options.targets:
            try:
                found = compiled(case, vectors, target, dump, using)
                fields, wrong = found._asdict(), complaint(case, found)
            except RuntimeError as error:  # raised by XLA where memory does not suffice
                fields, wrong = dict.fromkeys(Found._fields, "-"), str(error).splitlines()[0]
            named = {"target": target, **case.named, "vectors": vectors}
            yield {"jax": jax.__version__, **named, **fields, "wrong": wrong}


def main() -> None:
    """Compile the grid, print the table and the problems."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=[*TARGETS])
    parser.add_argument("--kernels", nargs="+", help="only these kernels")
    parser.add_argument("--dims", nargs="+", type=int, help="only vectors of these lengths")
    parser.add_argument("--json", type=Path, help="file for the rows, one JSON object per line")
    options = parser.parse_args()
    using, wrong = tools(), 0
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        configure(Path(folder), using.folder)
        sys.path.insert(0, str(ROOT))
        file = stack.enter_context(options.json.open("w")) if options.json else None
        for i, row in enumerate(rows(options, Path(folder), using)):
            if not i:
                print("|", " | ".join(row), "|\n" + "| --- " * len(row) + "|")
            print("|", " | ".join(map(str, row.values())), "|", flush=True)
            if file:
                print(json.dumps(row), file=file, flush=True)
            wrong += bool(row["wrong"])
    if wrong:
        raise SystemExit(f"{wrong} of them spill, or move less than {WIDE} bytes at a time.")


if __name__ == "__main__":
    main()
