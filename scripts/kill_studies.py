"""Kill every study at random times; each must end with the rows of an uninterrupted run.

    python scripts/kill_studies.py --kills 30 --out kills

Runs each study once uninterrupted, on the tiny model with few windows, and once with SIGKILLs, each
after a random part of the time of the uninterrupted run. Then compares the rows and checks for
duplicates.
"""

from __future__ import annotations

import dataclasses
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import tyro

from isojax.report import read_rows

FEW = ("--windows", "2", "--length", "64")
FIT = ("--calibration-windows", "2")
STUDIES = {
    "perplexity": FEW,
    "alignment": (*FEW, *FIT, "--layers", "1", "--bits", "2", "--tensors", "key", "--coordinates",
                  "identity", "haar", "--seeds", "2"),
    "block_rotation": (*FEW, *FIT, "--settings", "A4-down", "--permutations", "none", "mass_diff",
                       "--blocks", "16"),
    "compare": (*FEW, *FIT, "--coordinates", "hadamard", "--seeds", "2", "--repeats", "3"),
    "end_to_end": (*FEW, *FIT, "--starts", "haar", "--seeds", "2", "--steps", "10"),
    "isotropic_tradeoff": (*FEW, "--seeds", "2", "--bits", "3", "--quantizers", "absmax",
                           "--weights", "weight:q_proj:0"),
    "kv_cache": (*FEW, *FIT, "--methods", "kivi", "haar", "--bits", "3", "--targets", "KV"),
    "linear_layers": (*FEW, *FIT, "--plans", "quarot", "--coordinates", "balance@hadamard",
                      "--rounding", "nearest", "--seeds", "2"),
    "quantize": (*FEW, *FIT, "--plans", "kivi", "smoothquant:4", "--continuation", "0"),
    "stage1": (*FEW, "--seeds", "2", "--dims", "64", "--dtypes", "float32", "--vectors", "64",
               "--repeats", "3"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings."""

    out: Path
    """Folder for the studies."""
    kills: int = 30
    """SIGKILLs, divided among the studies."""
    studies: tuple[str, ...] = tuple(STUDIES)
    """Names of the studies."""
    seed: int = 0
    """Seed of the times."""


def main(config: Config) -> None:
    """Run, kill, run again, compare; exit 1 where rows differ."""
    rng, wrong = random.Random(config.seed), False
    for number, name in enumerate(config.studies):
        share = range(number, config.kills, len(config.studies))
        began = time.monotonic()
        _begin(name, config.out / name / "whole").wait()
        taken, killed, out = time.monotonic() - began, 0, config.out / name / "killed"
        for _ in share:
            run = _begin(name, out)
            try:
                run.wait(rng.uniform(0.2, 1) * taken)
            except subprocess.TimeoutExpired:
                run.send_signal(signal.SIGKILL)
                killed += run.wait() != 0
        last = _begin(name, out).wait()
        whole, rows = (read_rows(p / "rows.jsonl") for p in (config.out / name / "whole", out))
        same = last == 0 and sorted(r.identity for r in whole) == sorted(r.identity for r in rows)
        wrong |= not same
        print(f"{name}: {len(rows)} rows after {killed} kills, {'as' if same else 'NOT as'} whole")
    raise SystemExit(int(wrong))


def _begin(name: str, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", f"experiments.{name}", "--out", str(out), *STUDIES[name]]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
