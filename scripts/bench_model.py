"""Speed and memory of the decoder against torch transformers, on the same weights and tokens.

    python scripts/bench_model.py --model Qwen/Qwen2.5-0.5B --text wikitext-2

All score a window of `--length` tokens in fp32: `torch_plain` as transformers does it,
`model(ids, labels=ids).loss`; `torch` and `isojax` from the final hidden states, with logits in
chunks of 256 tokens. Each runs in a process of its own, in turn, `--rounds` times. A process warms
up once (compilation is not timed) and takes the median of `--passes`. Memory is the peak resident
set, loading included. Needs the `test` extra for torch; 8 minutes on 2 CPU cores.
"""

from __future__ import annotations

import dataclasses
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tyro

CHUNK = 256


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings."""

    model: str = "tiny"
    """As for the experiments."""
    text: str = "tiny"
    """As for the experiments."""
    length: int = 2048
    """Tokens in the window."""
    rounds: int = 2
    """Processes of each implementation."""
    passes: int = 3
    """Timed passes a process."""
    out: Path = Path("results/bench_model")
    """Folder for rows.jsonl and table.md."""


def score_isojax(folder: str, tokens: np.ndarray):
    """A function that gives the mean nll."""
    import jax

    from isojax.models import load_checkpoint, token_nll

    config, params = load_checkpoint(folder)
    score = jax.jit(lambda params, tokens: token_nll(params, config, tokens, chunk=CHUNK).mean())
    return lambda: float(score(params, tokens[None]))


def load_torch(folder: str, tokens: np.ndarray):
    """Torch transformers (sdpa attention) and the tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return torch, model, torch.from_numpy(tokens).long()[None]


def score_torch_plain(folder: str, tokens: np.ndarray):
    """The same with transformers as it comes: all logits at once."""
    torch, model, ids = load_torch(folder, tokens)

    def score() -> float:
        with torch.inference_mode():
            return float(model(ids, labels=ids).loss)

    return score


def score_torch(folder: str, tokens: np.ndarray):
    """The same with transformers, logits in chunks too."""
    torch, model, ids = load_torch(folder, tokens)

    def score() -> float:
        with torch.inference_mode():
            hidden = model.model(ids, use_cache=False).last_hidden_state[0, :-1]
            total = 0.0
            for rows, targets in zip(hidden.split(CHUNK), ids[0, 1:].split(CHUNK), strict=True):
                nll = torch.nn.functional.cross_entropy(
                    model.lm_head(rows), targets, reduction="sum"
                )
                total += float(nll)
        return total / len(hidden)

    return score


SCORES = {"torch_plain": score_torch_plain, "torch": score_torch, "isojax": score_isojax}


def peak_rss() -> int:
    """Peak resident bytes of this process (`ru_maxrss` would start at the parent's)."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(implementation: str, folder: str, passes: int) -> None:
    """Measure in this process; print JSON."""
    tokens = np.load(Path(folder) / "tokens.npy")
    score = SCORES[implementation](folder, tokens)
    nll, seconds = score(), []
    for _ in range(passes):
        start = time.perf_counter()
        score()
        seconds.append(time.perf_counter() - start)
    speed = len(tokens) / statistics.median(seconds)
    print(json.dumps({"nll": nll, "tokens_per_s": speed, "peak_rss_bytes": peak_rss()}))


def main(config: Config) -> None:
    """Write the weights as one folder for all, run the processes, make the table."""
    from isojax.data import load_text, windows
    from isojax.models import encode, load_model, save_checkpoint
    from isojax.report import Study, paired, summarize, table

    with tempfile.TemporaryDirectory() as folder:
        model = load_model(config.model)
        tokens = windows(encode(model.tokenizer, load_text(config.text)), 1, config.length)[0]
        save_checkpoint(folder, model.config, model.params)
        np.save(Path(folder) / "tokens.npy", tokens)
        name = model.name
        del model
        study = Study("bench_model", config.out, config, grows=("rounds",))
        base = {"model": name, "length": config.length}
        for round_ in range(config.rounds):
            for implementation in SCORES:
                config_row = base | {"implementation": implementation}
                if study.has(config_row, round_, ["nll", "tokens_per_s", "peak_rss_bytes"]):
                    continue
                command = [sys.executable, __file__, "--worker", implementation, folder]
                output = subprocess.run(
                    [*command, str(config.passes)], capture_output=True, text=True, check=True
                )
                found = json.loads(output.stdout.splitlines()[-1])
                print(round_, implementation, found)
                study.add(config_row, round_, found)
    rows = study.rows(**base)
    one, ratios = {"implementation": "isojax"}, []
    for name in ("torch_plain", "torch"):
        other = {"implementation": name}
        faster = 1 + paired(rows, "tokens_per_s", one, other, relative=True).mean
        ours, theirs = (summarize(rows, "peak_rss_bytes", **side).mean for side in (one, other))
        ratios.append(
            f"isojax / {name}: {faster:.2f}x the speed, {ours / theirs:.2f}x the peak memory"
        )
    text = table(
        rows, ["model", "length", "implementation"], ["tokens_per_s", "peak_rss_bytes", "nll"]
    )
    study.finish(f"{text}\n\n{'; '.join(ratios)}.")
    print((config.out / "table.md").read_text())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main(tyro.cli(Config, description=__doc__))
