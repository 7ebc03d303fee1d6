"""Analysis of a compiled kernel: registers, accesses, and the load of its loop on each pipe.

From the PTX, the output of ptxas, and the listing of nvdisasm. Figures of pipes are bounds: they
assume that a pipe is always busy, that every instruction of the loop is executed, and that shared
memory has no bank conflicts.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

WARP = 32


class Rates(NamedTuple):
    """Rates of a multiprocessor per clock.

    Attributes:
        fma: lanes of fp32.
        tensor: products of 16-bit numbers, by the instructions of all architectures.
        groups: the same by Hopper's instructions for four warps together; 0 without these.
        memory: its share of the bytes that a copy on the whole GPU moves.
    """

    fma: int
    tensor: int
    groups: int
    memory: float


def _share(gigabytes: float, cores: int, clock: float) -> float:
    return gigabytes / (cores * clock)


# A copy reaches 0.9 of the nominal bandwidth, 3.0 TB/s on an H100. Instructions of sm100 for tensor
# cores and their memory (tcgen05) are not counted.
RATES = {
    "sm80": Rates(64, 1024, 0, _share(1835, 108, 1.41)),
    "sm89": Rates(128, 256, 0, _share(907, 128, 2.52)),
    "sm90": Rates(128, 1024, 2048, _share(3000, 132, 1.755)),
    "sm100": Rates(128, 1024, 0, _share(7200, 148, 1.85)),
    "sm120": Rates(128, 256, 0, _share(1613, 170, 2.41)),
}
ISSUED = 4  # warps per clock, one to each of four parts
ALU = 64  # lanes of integers, comparisons, selections and conversions
HEAVY = 64  # lanes of products of integers, in the pipe of fp32
XU = 16  # lanes of roots, reciprocals and the other conversions

PIPES = ("issue", "alu", "fma", "xu", "smem", "tensor")
OF_FMA = {
    **dict.fromkeys(("FADD", "FMUL", "FFMA", "HADD2", "HMUL2", "HFMA2", "IMAD"), 1),
    **dict.fromkeys(("FADD2", "FMUL2", "FFMA2"), 2),  # of two fp32 per lane
}
OF_XU = ("MUFU", "I2F", "F2I", "F2F", "POPC", "FLO", "BREV", "FRND")
OF_ALU = (
    *("IADD", "IADD3", "VIADD", "IABS", "LOP3", "LEA", "SHF", "SHL", "SHR", "PRMT", "SEL", "MOV"),
    *("FSEL", "FSETP", "FSET", "ISETP", "HSETP2", "FMNMX", "FMNMX3", "IMNMX", "VIMNMX", "VIMNMX3"),
    *("HMNMX2", "PLOP3", "P2R", "R2P", "F2FP", "I2FP", "SGXT", "BMSK", "CS2R", "VIADDMNMX"),
)


class Found(NamedTuple):
    """Measures of a compiled kernel.

    Attributes:
        registers: per thread.
        spills: bytes.
        instructions: machine instructions in total.
        shared: accesses to shared memory in the PTX.
        barriers: in the PTX.
        loads: bytes of the widest load of global memory.
        stores: bytes of the widest store.
        per_element: instructions per thread and element in the loop over tiles.
        issue, alu, fma, smem: percent of the speed of memory that the pipe allows.
        roof: the least of these and of the other pipes, at most 100.
        bound: the pipe with the least.
    """

    registers: int
    spills: int
    instructions: int
    shared: int
    barriers: int
    loads: int
    stores: int
    per_element: Any = "-"
    issue: Any = "-"
    alu: Any = "-"
    fma: Any = "-"
    smem: Any = "-"
    roof: Any = "-"
    bound: str = "-"


class Work(NamedTuple):
    """The work of a program of a kernel: elements of its vectors, bytes moved, and tiles."""

    numbers: float
    moved: float
    tiles: int


class Tools(NamedTuple):
    """Programs of CUDA, and the folder used by XLA as that of CUDA."""

    folder: Path
    ptxas: Path
    nvdisasm: Path | None


def tools() -> Tools:
    """The tools from the wheels; the disassembler may also be on the path."""
    spec = importlib.util.find_spec("nvidia")
    wheels = [Path(p) for p in (spec.submodule_search_locations if spec else None) or []]

    def find(name: str) -> list[Path]:
        return sorted(path for wheel in wheels for path in wheel.glob(f"*/bin/{name}"))

    if not find("ptxas"):
        raise SystemExit("error: the wheel with ptxas is not installed; see --help.")
    ptxas, other = find("ptxas")[0], shutil.which("nvdisasm")
    reader = next(iter(find("nvdisasm")), Path(other) if other else None)
    return Tools(ptxas.parents[1], ptxas, reader)


class Instruction(NamedTuple):
    """One instruction; `target` is the address to which it branches, if it does."""

    address: int
    name: str
    target: int | None


def listing(text: str, kernel: str) -> list[Instruction]:
    """The instructions of `kernel` in the output of `nvdisasm -c`, up to its end."""
    (section,) = re.findall(rf"^\.text\.{kernel}:\n(.*?)(?=^//-|\Z)", text, flags=re.M | re.S)
    labels: dict[str, int] = {}
    found: list[tuple[int, str, str]] = []
    waiting: list[str] = []
    for line in section.splitlines():
        if label := re.match(r"(\.L_\w+):", line):
            waiting.append(label[1])
        elif code := re.match(r"\s*/\*(\w+)\*/\s+(@!?U?P\w+ +)?([A-Z]\S*)([^;]*)", line):
            labels.update(dict.fromkeys(waiting, int(code[1], 16)))
            waiting = []
            found.append((int(code[1], 16), code[3], code[4]))
            if code[3] == "EXIT" and not code[2]:
                break

    def target(name: str, operands: str) -> int | None:
        to = re.search(r"`\((\.L_\w+)\)", operands) if name.startswith("BRA") else None
        return labels.get(to[1]) if to else None

    return [Instruction(at, name, target(name, operands)) for at, name, operands in found]


def inner(code: Sequence[Instruction]) -> tuple[list[Instruction], bool] | None:
    """The longest loop and True, or all and False if there is none; None where loops are nested."""
    loops = [(i.target, i.address) for i in code if i.target is not None and i.target < i.address]
    if not loops:
        return [*code], False
    start, end = max(loops, key=lambda loop: loop[1] - loop[0])
    if any(start <= a and b <= end for a, b in loops if (a, b) != (start, end)):
        return None
    return [i for i in code if start <= i.address <= end], True


def clocks(code: Sequence[Instruction], rates: Rates) -> dict[str, float]:
    """Clocks of a multiprocessor that a warp needs on each of `PIPES` for `code`."""
    taken: dict[str, float] = dict.fromkeys(PIPES, 0.0)
    heavy = 0.0
    for name in (i.name for i in code):
        root, *kinds = name.split(".")
        taken["issue"] += 1 / ISSUED
        heavy += WARP / HEAVY if root == "IMAD" else 0
        if root in OF_FMA:
            taken["fma"] += OF_FMA[root] * WARP / rates.fma
        elif root in OF_ALU:
            taken["alu"] += WARP / ALU
        elif root in OF_XU:
            taken["xu"] += WARP / XU
        elif root in ("HMMA", "HGMMA"):
            taken["tensor"] += products(name) / (rates.groups if root == "HGMMA" else rates.tensor)
        else:
            taken["smem"] += lines(root, kinds)
    taken["fma"] = max(taken["fma"], heavy)
    return taken


def lines(root: str, kinds: Sequence[str]) -> float:
    """Lines of 128 bytes of shared memory moved by a warp's instruction; shuffles count as one."""
    if root in ("SHFL", "REDUX", "ATOMS", "MOVM"):
        return 1
    if root in ("LDSM", "STSM"):
        return float(kinds[-1]) if kinds[-1] in ("2", "4") else 1
    if root in ("LDS", "STS", "LDGSTS", "LDL", "STL"):
        return max((int(k) // 32 for k in kinds if k in ("64", "128")), default=1)
    return 0


def products(name: str) -> float:
    """Products on tensor cores per instruction of a warp; tf32 counts twice."""
    if name.startswith("HGMMA"):
        m, n, k = map(int, re.findall(r"(\d+)x(\d+)x(\d+)", name)[0])
        made = m * n * k / 4
    else:
        (shape,) = re.findall(r"\.(\d{3,5})\b", name)
        made = 16 * 8 * int(shape[3:] if len(shape) > 4 else shape[-1])
    return made * (2 if "TF32" in name else 1)


def read(text: Path, name: str, work: Work, target: str, using: Tools) -> Found:
    """Measures of the kernel `name` in a file of PTX."""
    ptx = text.read_text()
    (arch,) = re.findall(r"^\.target (\w+)", ptx, flags=re.M)
    body = ptx[ptx.index(f".entry {name}") :].split(".entry", 2)[1]
    cubin = text.with_suffix(".cubin")
    report = output(using.ptxas, "-v", f"-arch={arch}", text, "-o", cubin)
    own = report[report.index(name) :]

    def number(pattern: str) -> int:
        return int(re.findall(pattern, own)[0])

    def widest(kind: str) -> int:
        found = re.findall(rf"{kind}\.global\S*?(?:\.v(\d))?\.[busf](\d+)\s", body)
        return max((int(n or 1) * int(bits) // 8 for n, bits in found), default=0)

    found = Found(
        number(r"Used (\d+) registers"),
        number(r"(\d+) bytes spill stores"),
        instructions(cubin, name),
        len(re.findall(r"(?:ld|st)\.shared|ldmatrix|stmatrix", body)),
        len(re.findall(r"bar\.sync|barrier", body)),
        widest("ld"),
        widest("st"),
    )
    if not using.nvdisasm:
        return found
    code = listing(output(using.nvdisasm, "-c", cubin), name)
    return found._replace(**speed(body, code, work, RATES[target]))


def output(*command: str | Path) -> str:
    """The output of a program, from both of its streams."""
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return run.stdout + run.stderr


def instructions(cubin: Path, name: str) -> int:
    """Machine instructions of a kernel, of 16 bytes each, from the section table of an ELF file."""
    data = cubin.read_bytes()
    (table,) = struct.unpack_from("<Q", data, 40)
    length, number, names = struct.unpack_from("<HHH", data, 58)
    heads = [struct.unpack_from("<IIQQQQ", data, table + i * length) for i in range(number)]
    for at, *_, size in heads:
        start = heads[names][4] + at
        if data[start : data.index(b"\0", start)].decode() == f".text.{name}":
            return size // 16
    raise ValueError(f"{cubin} has no section of {name}.")


def speed(ptx: str, code: Sequence[Instruction], work: Work, rates: Rates) -> dict[str, Any]:
    """The fields of `Found` about pipes; empty where loops are nested.

    Args:
        ptx: the kernel, whose loop ptxas may have unrolled.
        code: its machine code.
        work: of a program.
        rates: of the GPU.
    """
    if (loop := inner(code)) is None:
        return {}
    body, repeated = loop
    stores = sum(i.name.startswith("STG") for i in code)
    unrolled = max(stores / max(len(re.findall(r"\bst\.global", ptx)), 1), 1)
    (threads,) = re.findall(r"^\.reqntid (\d+)", ptx, flags=re.M)
    share = (unrolled / work.tiles if repeated else 1) * WARP / int(threads)
    memory = share * work.moved / rates.memory
    taken = {pipe: value for pipe, value in clocks(body, rates).items() if value}
    parts = {pipe: round(100 * memory / value) for pipe, value in taken.items()}
    bound = min(parts, key=lambda pipe: parts[pipe])
    return {
        **{field: parts.get(field, "-") for field in ("issue", "alu", "fma", "smem")},
        "per_element": round(WARP * len(body) / (share * work.numbers), 1),
        "roof": min(parts[bound], 100),
        "bound": bound if parts[bound] < 100 else "memory",
    }
