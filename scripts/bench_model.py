"""Speed and memory of the decoder against torch transformers, on the same weights and tokens.

    python scripts/bench_model.py --model Qwen/Qwen2.5-0.5B --text wikitext-2

All score a window of `--length` tokens in fp32: `torch_plain` by `model(ids, labels=ids).loss` of
transformers; `torch` and `isojax` from the final hidden states, with logits in chunks of 256
tokens. Each runs in a separate process, one after the other, `--rounds` times. A process warms up
once (compilation is not timed) and takes the median of `--passes`. Memory is the peak resident set,
loading included. Needs the `test` extra for torch; 8 minutes on 2 CPU cores.

`decode` is one greedy step with an almost full cache, plain in fp32 or in 3 bits (Haar rotations,
keys and values, attention in rotated space), parameters and cache unstacked and the cache donated,
in `--steps` rounds that alternate with a sum over an array of the bytes of weights and cache.
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
from typing import Any, Literal

import numpy as np
import tyro

CHUNK = 256
BITS = 3


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
    """Timed passes per process."""
    parts: tuple[Literal["window", "decode"], ...] = ("window", "decode")
    """Measurements to run."""
    slots: tuple[int, ...] = (2048, 8192)
    """Numbers of slots of the caches of `decode`."""
    steps: int = 15
    """Rounds of `decode`."""
    quick: bool = False
    """Short: 64 slots, 3 rounds."""
    out: Path = Path("results/bench_model")
    """Folder for rows.jsonl and table.md."""


def score_isojax(folder: str, tokens: np.ndarray):
    """A function that returns the mean nll."""
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
    """The same with plain transformers: all logits at once."""
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


def packed_stores(key: Any, config: Any) -> dict[str, Any]:
    """Haar rotations of keys and values of every layer and head, in codes of `BITS` bits."""
    import jax

    from isojax import Codec, quantizers, transforms
    from isojax.kvcache import store

    dim, shape = config.head_dim, (2, config.num_hidden_layers, config.num_key_value_heads)

    def make(key: Any) -> Codec:
        return Codec(transforms.haar(key, dim), quantizers.lloyd_max_sphere(BITS, dim))

    both = jax.jit(jax.vmap(jax.vmap(jax.vmap(make))))(jax.random.split(key, shape))
    keys, values = (store(jax.tree.map(lambda a, i=i: a[i], both)) for i in range(2))
    return {"keys": keys, "values": values, "rotated": True}


def decode_times(
    params: Any, config: Any, slots: int, packed: bool, steps: int
) -> dict[str, float]:
    """Median ms of a decode step and of reading its bytes, alternating."""
    import jax
    import jax.numpy as jnp

    from isojax.kvcache import Cache
    from isojax.models import empty_cache, forward, logits

    def step(params: Any, cache: Any, token: Any) -> tuple[Any, Any]:
        out = forward(params, config, token[:, None], cache=cache)
        return out.cache, jnp.argmax(logits(params, out.hidden[:, -1]), axis=-1)

    stores = packed_stores(jax.random.key(0), config) if packed else {}
    empty = empty_cache(config, batch=1, slots=slots, **stores)
    number = (sum(a.nbytes for a in jax.tree.leaves(params)) + empty.nbytes) // 4
    full = Cache(empty.layers, jnp.asarray(slots - steps - 1, jnp.int32))
    cache, token = jax.jit(Cache.unstack)(full), jnp.zeros(1, jnp.int32)
    del empty, full
    step, read = jax.jit(step, donate_argnums=1), jax.jit(jnp.sum)
    numbers = jnp.ones(number, jnp.float32)
    cache, token = step(params, cache, token)
    jax.block_until_ready((cache, read(numbers)))
    times: dict[str, list[float]] = {"read_ms": [], "decode_ms": []}
    for _ in range(steps):
        start = time.perf_counter()
        read(numbers).block_until_ready()
        middle = time.perf_counter()
        cache, token = step(params, cache, token)
        jax.block_until_ready((cache, token))
        times["read_ms"].append(1e3 * (middle - start))
        times["decode_ms"].append(1e3 * (time.perf_counter() - middle))
    found = {name: statistics.median(values) for name, values in times.items()}
    ratio = found["decode_ms"] / found["read_ms"]
    return found | {"decode_over_read": ratio, "read_bytes": 4 * number}


def decode(config: Config, model: Any, study: Any) -> str:
    """Time all caches, one row each; returns their table."""
    import jax

    from isojax.models import unstack
    from isojax.report import pivot

    params, base = jax.jit(unstack)(model.params), {"model": model.name, "part": "decode"}
    units = {"decode_ms": "ms", "read_ms": "ms", "decode_over_read": "1", "read_bytes": "bytes"}
    for slots in (64,) if config.quick else config.slots:
        for cache in ("plain", f"{BITS} bit"):
            row = base | {"slots": slots, "cache": cache}
            if not study.has(row, 0, units):
                steps = 3 if config.quick else config.steps
                found = decode_times(params, model.config, slots, cache != "plain", steps)
                print(row, found)
                study.add(row, 0, found, units)
    return pivot(study.rows(**base), ["model", "slots", "cache"], "metric", count=True)


def window(config: Config, model: Any, study: Any) -> str:
    """Write the weights as one folder for all, run the processes; returns the table."""
    from isojax.data import load_text, windows
    from isojax.models import encode, save_checkpoint
    from isojax.report import paired, pivot, summarize

    base = {"model": model.name, "length": config.length}
    units = {"tokens_per_s": "tokens/s", "peak_rss_bytes": "bytes", "nll": "nats per token"}
    with tempfile.TemporaryDirectory() as folder:
        tokens = windows(encode(model.tokenizer, load_text(config.text)), 1, config.length)[0]
        save_checkpoint(folder, model.config, model.params)
        np.save(Path(folder) / "tokens.npy", tokens)
        del model
        for round_ in range(config.rounds):
            for implementation in SCORES:
                config_row = base | {"implementation": implementation}
                if study.has(config_row, round_, units):
                    continue
                command = [sys.executable, __file__, "--worker", implementation, folder]
                output = subprocess.run(
                    [*command, str(config.passes)], capture_output=True, text=True, check=True
                )
                found = json.loads(output.stdout.splitlines()[-1])
                print(round_, implementation, found)
                study.add(config_row, round_, found, units)
    rows = study.rows(**base)
    one, ratios = {"implementation": "isojax"}, []
    for name in ("torch_plain", "torch"):
        other = {"implementation": name}
        faster = 1 + paired(rows, "tokens_per_s", one, other, relative=True).mean
        ours, theirs = (summarize(rows, "peak_rss_bytes", **side).mean for side in (one, other))
        ratios.append(
            f"isojax / {name}: {faster:.2f}x the speed, {ours / theirs:.2f}x the peak memory"
        )
    names = ["model", "length", "implementation"]
    text = pivot(rows, names, "metric", order=list(units), count=True)
    return f"{text}\n\n{'; '.join(ratios)}."


def main(config: Config) -> None:
    """Measure the parts and make the table."""
    from isojax.models import load_model
    from isojax.report import Study

    study = Study("bench_model", config.out, config, grows=("rounds", "parts", "slots"))
    parts = {"window": window, "decode": decode}
    texts = [parts[name](config, load_model(config.model), study) for name in config.parts]
    study.finish("\n\n".join(texts))
    print((config.out / "table.md").read_text())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main(tyro.cli(Config, description=__doc__))
