"""Reading machine code: what the inner loop of a kernel takes of each pipe of a GPU.

From the listing of nvdisasm. The figures are bounds: a pipe is taken to be busy all the time, every
instruction of the loop to be executed, and shared memory to have no conflicts of banks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

WARP = 32


class Rates(NamedTuple):
    """What a multiprocessor does in a clock.

    Attributes:
        fma: lanes of fp32.
        tensor: products of 16-bit numbers, by the instructions of all architectures.
        groups: the same by those of Hopper, for four warps together; 0 where there are none.
        memory: bytes that it moves, of what a copy reaches over all of the GPU.
    """

    fma: int
    tensor: int
    groups: int
    memory: float


def _share(gigabytes: float, cores: int, clock: float) -> float:
    return gigabytes / (cores * clock)


# What a copy reaches is 0.9 of the bandwidth on paper, 3.0 TB/s of an H100.
RATES = {
    "sm80": Rates(64, 1024, 0, _share(1835, 108, 1.41)),
    "sm89": Rates(128, 256, 0, _share(907, 128, 2.52)),
    "sm90": Rates(128, 1024, 2048, _share(3000, 132, 1.755)),
    "sm100": Rates(128, 1024, 0, _share(7200, 148, 1.85)),
    "sm120": Rates(128, 256, 0, _share(1613, 170, 2.41)),
}
ISSUED = 4  # warps a clock, of which one each goes on to one of four parts
ALU = 64  # lanes of integers, comparisons, selections and conversions
HEAVY = 64  # lanes of products of integers, in the pipe of fp32
XU = 16  # lanes of roots, reciprocals and the other conversions
LINE = 128  # bytes of shared memory

PIPES = ("issue", "alu", "fma", "xu", "shared", "tensor")
OF_FMA = {
    **dict.fromkeys(("FADD", "FMUL", "FFMA", "HADD2", "HMUL2", "HFMA2", "IMAD"), 1),
    **dict.fromkeys(("FADD2", "FMUL2", "FFMA2"), 2),  # of two fp32 a lane
}
OF_XU = ("MUFU", "I2F", "F2I", "F2F", "POPC", "FLO", "BREV", "FRND")
OF_ALU = (
    *("IADD", "IADD3", "VIADD", "IABS", "LOP3", "LEA", "SHF", "SHL", "SHR", "PRMT", "SEL", "MOV"),
    *("FSEL", "FSETP", "FSET", "ISETP", "HSETP2", "FMNMX", "FMNMX3", "IMNMX", "VIMNMX", "VIMNMX3"),
    *("HMNMX2", "PLOP3", "P2R", "R2P", "F2FP", "I2FP", "SGXT", "BMSK", "CS2R", "VIADDMNMX"),
)


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
    """Clocks of a multiprocessor for which a warp takes each of `PIPES` with `code`."""
    taken = dict.fromkeys(PIPES, 0.0)
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
            taken["shared"] += lines(root, kinds)
    taken["fma"] = max(taken["fma"], heavy)
    return taken


def lines(root: str, kinds: Sequence[str]) -> float:
    """Lines of shared memory that an instruction of a warp moves; a shuffle is one."""
    if root in ("SHFL", "REDUX", "ATOMS", "MOVM"):
        return 1
    if root in ("LDSM", "STSM"):
        return float(kinds[-1]) if kinds[-1] in ("2", "4") else 1
    if root in ("LDS", "STS", "LDGSTS", "LDL", "STL"):
        return max((int(k) // 32 for k in kinds if k in ("64", "128")), default=1)
    return 0


def products(name: str) -> float:
    """Products by tensor cores that an instruction adds up, by its warp; of tf32 twice."""
    if name.startswith("HGMMA"):
        m, n, k = map(int, re.findall(r"(\d+)x(\d+)x(\d+)", name)[0])
        made = m * n * k / 4
    else:
        (shape,) = re.findall(r"\.(\d{3,5})\b", name)
        made = 16 * 8 * int(shape[3:] if len(shape) > 4 else shape[-1])
    return made * (2 if "TF32" in name else 1)
