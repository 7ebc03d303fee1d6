"""Peak memory of loading and scoring a 1.5B model from GGUF: must stay within 10 GB.

    python scripts/bench_load.py

Writes a file of random Q8_0 weights in the shapes of Qwen2.5-1.5B (1.6 GB, in a temporary folder),
then loads it in fp32 and scores 2048 tokens in a fresh process. Rows `peak_rss_bytes` and
`time_us` (only loading). Expected 6.2 GB of parameters, below 10 GB at the peak; 2 minutes on
2 CPU cores. Speeds are measured by `bench_model.py`, on real weights.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gguf
import numpy as np
import tyro
from bench_model import peak_rss

from isojax.models import ModelConfig
from isojax.models.names import GGUF, leaves

SHAPE = ModelConfig(
    "qwen2", vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
    num_attention_heads=12, num_key_value_heads=2, head_dim=128, rope_theta=1e6, qkv_bias=True,
    tie_word_embeddings=True,
)  # fmt: skip
BLOCK = 32  # elements per block of Q8_0: an fp16 scale and 32 int8
TOKENS = 2048


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings."""

    out: Path = Path("results/bench_load")
    """Folder for rows.jsonl and table.md."""


def write_random(path: Path) -> None:
    """Write a GGUF with the shapes of Qwen2.5-1.5B, random weights and a tokenizer of bytes."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, SHAPE.architecture)
    writer.add_block_count(SHAPE.num_hidden_layers)
    writer.add_embedding_length(SHAPE.hidden_size)
    writer.add_feed_forward_length(SHAPE.intermediate_size)
    writer.add_head_count(SHAPE.num_attention_heads)
    writer.add_head_count_kv(SHAPE.num_key_value_heads)
    writer.add_layer_norm_rms_eps(SHAPE.rms_norm_eps)
    writer.add_rope_freq_base(SHAPE.rope_theta)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(["a", "b", "ab"])
    writer.add_token_types([1, 1, 1])
    writer.add_token_merges(["a b"])
    for leaf in leaves(SHAPE):
        for layer in range(leaf.tensors):
            name, shape = leaf.file_name(layer, GGUF), leaf.file_shape
            if len(shape) == 1:
                writer.add_tensor(name, np.ones(shape, np.float32))
                continue
            blocks = rng.integers(0, 256, (shape[0], shape[1] // BLOCK, 2 + BLOCK), np.uint8)
            blocks[..., :2] = np.frombuffer(np.float16(3e-4).tobytes(), np.uint8)
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, blocks.reshape(shape[0], -1), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def work(path: str) -> None:
    """Load and score in this process; print JSON."""
    import jax

    from isojax.models import load_model, token_nll

    start = time.perf_counter()
    model = load_model(path)
    jax.block_until_ready(model.params)
    seconds = time.perf_counter() - start
    tokens = np.random.default_rng(1).integers(0, SHAPE.vocab_size, (1, TOKENS), np.int32)
    nll = jax.jit(token_nll, static_argnames="config")(model.params, model.config, tokens)
    nll.block_until_ready()
    print(json.dumps({"time_us": seconds * 1e6, "peak_rss_bytes": peak_rss()}))


def main(config: Config) -> None:
    """Write the file, measure, make the table."""
    from isojax.report import Study, pivot

    study = Study("bench_load", config.out, config)
    base = {"model": "random 1.5B", "quantizer": "q8_0", "length": TOKENS}
    units = {"time_us": "us", "peak_rss_bytes": "bytes"}
    if not study.has(base, None, units):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            write_random(path)
            command = [sys.executable, __file__, "--worker", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        study.add(base, None, json.loads(done.stdout.splitlines()[-1]), units)
    study.finish(pivot(study.rows(), list(base), "metric"))
    print((config.out / "table.md").read_text())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2])
    else:
        main(tyro.cli(Config, description=__doc__))
