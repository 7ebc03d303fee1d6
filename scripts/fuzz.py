"""Read thousands of changed files: each must be read, or refused in one line that names it.

    python scripts/fuzz.py --inputs 100000

A valid input of each loader is changed at random: its bytes, values of its JSON, or numbers in a
bitstream's header, with the CRC corrected. Prints the outcomes, the slowest input and the added
memory, and exits 1 if one raised an undocumented error. `--seeds` reads single inputs again.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import json
import logging
import random
import resource
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import jax
import numpy as np
import tyro

from isojax.bitstream import decode_codes, encode_codes, header_bytes
from isojax.models import ModelConfig, config_from_hf, init_params, load_checkpoint
from isojax.models.checkpoint import INDEX_FILE, WEIGHTS_FILE, file_entries, save_checkpoint
from isojax.models.gguf import load_gguf
from isojax.models.json_file import read_json
from isojax.models.rope_scaling import YarnScaling

WIDTH, TOKENS = 16, 24
CONFIG = ModelConfig(
    "qwen2", TOKENS, WIDTH, 32, 1, 2, 1, 8, qkv_bias=True, max_position_embeddings=64,
    rope_scaling=YarnScaling(4.0, 16, 1.1),
)  # fmt: skip
PIECES = (
    b"\0", b"\xff", b"[", b"{", b'"', b",", b":", b"\n", b"null", b"-1", b"1e400", b"\xed\xa0\x80",
    b"[" * 2000, bytes(8), b"\xff" * 8, b"\x7f" + b"\xff" * 7,
)  # fmt: skip
VALUES = (
    None, True, False, "", "\ud800\n", "x" * 300, [], {}, [[]], {"a": 1}, -1, 0, 1, 2.5, 1e308,
    10**12, 2**63, 10**400, float("inf"), float("nan"), "../x", "model.safetensors",
)  # fmt: skip
NUMBERS = (-1, 0, 1, 2, 7, 63, 64, 255, 2**15, 2**31, 2**40, 2**62, -(2**63), 2**63 - 1)
MOST_CHARACTERS = 600  # of a message, without the path


class Loader(NamedTuple):
    """A loader under test.

    Attributes:
        right: a valid input.
        change: returns a changed input.
        read: reads an input.
    """

    right: bytes
    change: Callable[[random.Random, bytes], bytes]
    read: Callable[[bytes], Any]


class Report(NamedTuple):
    """Outcomes of inputs.

    Attributes:
        ends: numbers of inputs that were read, and that raised each kind of error.
        wrong: seed and error of undocumented outcomes.
        slowest: seconds of the slowest and its seed.
        added: growth of the peak memory in MiB.
    """

    ends: collections.Counter[str]
    wrong: list[tuple[int, str]]
    slowest: tuple[float, int]
    added: float


def fuzz(loader: Loader, name: str, seeds: range | tuple[int, ...]) -> Report:
    """Read one input per seed; the loader's messages must contain `name`."""
    ends, wrong, slowest = collections.Counter(), [], (0.0, -1)
    loader.read(loader.right)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in seeds:
        data, began = loader.change(random.Random(seed), loader.right), time.perf_counter()
        try:
            loader.read(data)
            ends["read"] += 1
        except (ValueError, FileNotFoundError) as error:
            ends[type(error).__name__] += 1
            message = str(error)
            if name not in message or not message.isprintable() or len(message) > MOST_CHARACTERS:
                wrong.append((seed, f"{type(error).__name__}: {message!r}"))
        except BaseException as error:  # panics of packages in Rust too; reported below
            if isinstance(error, KeyboardInterrupt):
                raise
            wrong.append((seed, f"{type(error).__name__}: {error}"))
        slowest = max(slowest, (time.perf_counter() - began, seed))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Report(ends, wrong, slowest, (after - before) / 1024)


def loaders(folder: Path) -> dict[str, tuple[Loader, str]]:
    """The loaders by name, each with the required part of its messages; `folder` is for files."""
    save_checkpoint(folder, CONFIG, init_params(jax.random.key(0), CONFIG))
    config = (folder / "config.json").read_bytes()
    sharded = folder / "sharded"
    sharded.mkdir()
    (sharded / "config.json").write_bytes(config)
    (folder / WEIGHTS_FILE).rename(sharded / "a.safetensors")
    tensors = {n: entry.read() for n, entry in file_entries(sharded / "a.safetensors").items()}
    index = json.dumps({"weight_map": dict.fromkeys(tensors, "a.safetensors")}).encode()
    codes = np.round(np.random.default_rng(0).normal(size=(50, 3)) * [1, 30, 900]).astype(np.int16)

    def read_config(data: bytes) -> None:
        (folder / "config.json").write_bytes(data)
        config_from_hf(read_json(folder / "config.json"), str(folder / "config.json"))

    def read_index(data: bytes) -> None:
        (sharded / INDEX_FILE).write_bytes(data)
        load_checkpoint(sharded)

    def read_gguf(data: bytes) -> None:
        (folder / "m.gguf").write_bytes(data)
        load_gguf(folder / "m.gguf")

    header = write_gguf(folder / "m.gguf")
    whole = (folder / "m.gguf").read_bytes()

    def change_gguf(rng: random.Random, data: bytes) -> bytes:
        return change_bytes(rng, data[:header]) + data[header:]

    stream = Loader(encode_codes(codes, "channel"), change_stream, decode_codes)
    return {
        "bitstream": (stream, "stream"),
        "config": (Loader(config, change_json, read_config), str(folder / "config.json")),
        "index": (Loader(index, change_json, read_index), str(sharded)),
        "gguf": (Loader(whole, change_gguf, read_gguf), str(folder / "m.gguf")),
    }


def write_gguf(path: Path) -> int:
    """Write a llama of one layer; returns the number of bytes before its tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_context_length(64)
    writer.add_string("llama.rope.scaling.type", "yarn")
    writer.add_float32("llama.rope.scaling.factor", 4.0)
    writer.add_uint32("llama.rope.scaling.original_context_length", 16)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([chr(ord("a") + i) for i in range(TOKENS - 1)] + ["ab"])
    writer.add_token_types([1] * TOKENS)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(3)
    shapes = {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,), "ffn_gate": (32, WIDTH),
              "ffn_up": (32, WIDTH), "ffn_down": (WIDTH, 32)}  # fmt: skip
    shapes |= {f"attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
    shapes = {f"blk.0.{name}.weight": shape for name, shape in shapes.items()}
    shapes |= {"token_embd.weight": (TOKENS, WIDTH), "output_norm.weight": (WIDTH,)}
    for name, shape in shapes.items():
        writer.add_tensor(name, np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return gguf.GGUFReader(path).data_offset


def change_bytes(rng: random.Random, data: bytes) -> bytes:
    """Up to four bytes or pieces set, removed, inserted or copied, or the end cut off."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, size = rng.randrange(len(out) + 1), rng.choice((1, 1, 2, 4, 8, 100))
        match rng.randrange(6):
            case 0 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                del out[at : at + size]
            case 2:
                out[at:at] = rng.choice(PIECES)
            case 3:
                piece = rng.choice(PIECES)
                out[at : at + len(piece)] = piece
            case 4:
                out[at:at] = data[rng.randrange(len(data)) :][:size]
            case 5 if rng.random() < 0.2:
                del out[at:]
    return bytes(out)


def change_json(rng: random.Random, data: bytes) -> bytes:
    """Up to three values of a JSON file set, removed or renamed; or bytes of it."""
    if rng.random() < 0.3:
        return change_bytes(rng, data)
    tree = json.loads(data)
    for _ in range(rng.randint(1, 3)):
        node = tree
        while True:
            key = rng.choice(list(node)) if node else "new"
            if not isinstance(node.get(key), dict) or rng.random() < 0.2:
                break
            node = node[key]
        match rng.randrange(4):
            case 0:
                node.pop(key, None)
            case 1:
                node[rng.choice(("\n", "x" * 300, "lm_head.weight", "rope_parameters"))] = key
            case _:
                node[key] = copy.deepcopy(rng.choice(VALUES))
    return json.dumps(tree).encode()


def change_stream(rng: random.Random, stream: bytes) -> bytes:
    """Numbers of the header of a bitstream changed, or bytes; its length and CRC corrected."""
    at = header_bytes(stream) - 4
    packed, words = stream[8:at], stream[at:-4]
    if rng.random() < 0.3:
        body = change_bytes(rng, stream[:-4])
    else:
        planes = np.frombuffer(zlib.decompress(packed, -15), np.uint8).reshape(8, -1)
        numbers = planes.T.copy().view("<i8").ravel()
        for _ in range(rng.randint(1, 3)):
            # the first ones matter most
            place = rng.randrange(rng.choice((5, 20, numbers.size)))
            value = rng.choice((*NUMBERS, *numbers[:9].tolist()))
            numbers[place] = value << 1 ^ value >> 63 if abs(value) < 2**62 else value
        if rng.random() < 0.2:
            numbers = numbers[: rng.randrange(numbers.size)]
        packed = zlib.compress(numbers.view(np.uint8).reshape(-1, 8).T.tobytes(), 9, -15)
        if rng.random() < 0.1:
            packed = change_bytes(rng, packed)
        if rng.random() < 0.2:
            words = change_bytes(rng, words)
        body = b"ISO1" + len(packed).to_bytes(4, "little") + packed + words
    return body + zlib.crc32(body).to_bytes(4, "little")


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings."""

    inputs: int = 100_000
    """Inputs per loader."""
    names: tuple[str, ...] = ("bitstream", "config", "index", "gguf")
    """Loaders."""
    seeds: tuple[int, ...] = ()
    """Read only these."""


def main(config: Config) -> None:
    """Change, read, report; exit 1 on an undocumented outcome."""
    logging.getLogger("isojax").setLevel(logging.ERROR)  # no warnings of tensors left out
    bad = False
    with tempfile.TemporaryDirectory() as folder:
        made = loaders(Path(folder))
        for name in config.names:
            report = fuzz(*made[name], config.seeds or range(config.inputs))
            ends = ", ".join(f"{count} {end}" for end, count in report.ends.most_common())
            seconds, seed = report.slowest
            print(f"{name}: {ends}; slowest {seconds:.2f} s (seed {seed}); {report.added:.0f} MiB")
            for seed, error in report.wrong[:20]:
                print(f"  seed {seed}: {error}")
            bad |= bool(report.wrong)
    raise SystemExit(int(bad))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
