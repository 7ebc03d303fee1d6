"""Train the model that ships inside isojax: a small Qwen2 on public-domain novels.

    python scripts/train_tiny.py --books DIR --out isojax/models/tiny

DIR holds UTF-8 `.txt` files. The last tenth of each is held out: its first half is for early
stopping, its second half is shipped as `heldout.txt`, for the perplexity in the model card.
Expected: held-out loss about 3.6 nats per token; under an hour on 2 CPU cores, 1 minute on a GPU.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.progress import track
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

from isojax.models.checkpoint import save_checkpoint
from isojax.models.config import ModelConfig
from isojax.models.decoder import Decoder, Params, init_params, logits

END = "<|endoftext|>"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the run; the defaults made the shipped model."""

    books: Path
    """Folder of the `.txt` files."""
    out: Path
    """Folder to write: an ordinary Hugging Face model folder."""
    steps: int = 2800
    """Optimizer steps; the learning rate decays to zero over them (cosine)."""
    batch: int = 8
    """Texts per step."""
    length: int = 512
    """Tokens per text."""
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.1
    dropout: float = 0.1
    vocab: int = 3072
    layers: int = 4
    seed: int = 0


def split_books(folder: Path) -> tuple[list[str], str, str]:
    """Training texts, validation text and shipped held-out text (at most 100 kB per book)."""
    train, valid, test = [], [], []
    for path in sorted(folder.glob("*.txt")):
        text = path.read_text(encoding="utf-8")
        start, middle = len(text) * 90 // 100, len(text) * 95 // 100
        train.append(text[:start])
        valid.append(text[start:middle])
        test.append(text[middle : middle + 95_000])
    if not train:
        raise SystemExit(f"{folder} holds no .txt file.")
    return train, "\n\n".join(valid), "\n\n".join(test)


def train_tokenizer(texts: list[str], size: int) -> Tokenizer:
    """Byte-level BPE on words as Qwen2 splits them, with one special token, `END`."""
    qwen = Qwen2Tokenizer().backend_tokenizer
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = qwen.normalizer
    tokenizer.pre_tokenizer = qwen.pre_tokenizer
    tokenizer.decoder = qwen.decoder
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def loss(params: Params, model: Decoder, tokens: jax.Array, key: jax.Array | None) -> jax.Array:
    """Mean nll in nats per token, with dropout if there is a key."""
    rngs = None if key is None else {"dropout": key}
    hidden = model.apply({"params": params}, tokens[:, :-1], rngs=rngs).hidden  # pyright: ignore
    scores = logits(params, hidden)
    return optax.softmax_cross_entropy_with_integer_labels(scores, tokens[:, 1:]).mean()


def main(config: Config) -> None:
    """Train, keep the parameters of the best validation loss, write the folder."""
    started = time.time()
    texts, valid_text, test_text = split_books(config.books)
    tokenizer = train_tokenizer(texts, config.vocab)
    end = tokenizer.token_to_id(END)
    stream = np.concatenate([np.array([*tokenizer.encode(t).ids, end], np.int32) for t in texts])

    def windows(text: str) -> jax.Array:
        ids = np.array(tokenizer.encode(text).ids, np.int32)
        count = len(ids) // (config.length + 1)
        return jnp.asarray(ids[: count * (config.length + 1)].reshape(count, -1))

    valid, test = windows(valid_text), windows(test_text)
    shape = ModelConfig(
        "qwen2", vocab_size=config.vocab, hidden_size=320, intermediate_size=896,
        num_hidden_layers=config.layers, num_attention_heads=5, num_key_value_heads=1,
        head_dim=64, qkv_bias=True, tie_word_embeddings=True,
    )  # fmt: skip
    model = Decoder(shape, dropout=config.dropout)
    init_key = jax.random.key(config.seed)
    key = jax.random.key(config.seed, impl="rbg")  # dropout masks cost less than by threefry
    params = init_params(init_key, shape)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0,
        config.learning_rate,
        min(100, config.steps // 10),
        config.steps,
        end_value=0.0,
    )
    decayed = jax.tree.map(lambda p: p.ndim > 2, params) | {"embedding": True}
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b2=0.98, weight_decay=config.weight_decay, mask=decayed),
    )
    state = optimizer.init(params)
    data = jnp.asarray(stream)

    @jax.jit
    def step(params: Params, state: optax.OptState, key: jax.Array):
        key, start_key, drop_key = jax.random.split(key, 3)
        starts = jax.random.randint(start_key, (config.batch,), 0, len(data) - config.length)
        tokens = data[starts[:, None] + jnp.arange(config.length + 1)]
        value, grads = jax.value_and_grad(loss)(params, model, tokens, drop_key)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, key, value

    @jax.jit
    def evaluate(params: Params, tokens: jax.Array) -> jax.Array:
        return jax.lax.map(lambda t: loss(params, model, t[None], None), tokens).mean()

    best, kept, test_loss, curve = math.inf, 0, math.inf, []
    for i in track(range(1, config.steps + 1), "training", refresh_per_second=1):
        params, state, key, value = step(params, state, key)
        if i % 200 and i != config.steps:
            continue
        curve.append((i, float(value), float(evaluate(params, valid))))
        print("step {} train {:.4f} validation {:.4f}".format(*curve[-1]), flush=True)
        if curve[-1][2] < best:
            best = curve[-1][2]
            shipped = jax.tree.map(lambda p: p.astype(jnp.bfloat16).astype(jnp.float32), params)
            test_loss = float(evaluate(shipped, test))
            config.out.mkdir(parents=True, exist_ok=True)
            save_checkpoint(config.out, shape, shipped, dtype="bfloat16")
            kept = i
    minutes = (time.time() - started) / 60
    print(f"kept step {kept}, validation {best:.4f}, test {test_loss:.4f}; {minutes:.1f} min")
    tokenizer.save(str(config.out / "tokenizer.json"))
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": END}
    (config.out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (config.out / "heldout.txt").write_text(test_text, encoding="utf-8")
    bits = test_loss * len(tokenizer.encode(test_text).ids) / len(test_text) / math.log(2)
    card = model_card(config, shape, params, curve, kept, test_loss, bits, len(stream), minutes)
    (config.out / "README.md").write_text(card, encoding="utf-8")


def model_card(config, shape, params, curve, kept, test_loss, bits, train_tokens, minutes) -> str:
    """The README of the model folder, with the measured values."""
    count = sum(p.size for p in jax.tree.leaves(params))
    books = ", ".join(p.stem.replace("_", " ").title() for p in sorted(config.books.glob("*.txt")))
    seen = config.steps * config.batch * config.length
    rows = "\n".join(f"| {i} | {train:.3f} | {valid:.3f} |" for i, train, valid in curve)
    return f"""---
license: apache-2.0
language: en
---
# isojax tiny

A Qwen2 decoder of {count / 1e6:.2f} M parameters for demonstrations and tests of isojax: {
        shape.num_hidden_layers
    } layers, hidden {shape.hidden_size}, ffn {shape.intermediate_size}, {
        shape.num_attention_heads
    } query heads on {shape.num_key_value_heads} key head of {shape.head_dim}, q/k/v bias, tied
embedding, byte-level BPE of {shape.vocab_size}. It has read three novels; it knows nothing else.

- **Data**: public-domain English texts ({books}), {train_tokens / 1e6:.2f} M training tokens.
  The last tenth of each book is held out: its first half chose the checkpoint (validation), the
  beginning of its second half is `heldout.txt`.
- **Training**: `scripts/train_tiny.py`, {config.steps} steps of {config.batch} x {
        config.length
    } tokens ({seen / train_tokens:.1f} epochs), AdamW, peak learning rate {
        config.learning_rate
    }, weight decay {config.weight_decay}, dropout {config.dropout}, seed {config.seed}; {
        minutes:.0f} min on {jax.devices()[0].device_kind}. Kept: step {kept}.
- **Held-out loss** on `heldout.txt`, bf16 weights, windows of {config.length} tokens: {
        test_loss:.4f} nats per token, perplexity {math.exp(test_loss):.2f}; {
        bits:.3f} bits per character.
- **Tokenizer**: words split as Qwen2 splits them; `AutoTokenizer` in transformers reads it.
- **Licence**: weights and tokenizer Apache-2.0; the texts are in the public domain.

| step | training loss (one batch, with dropout) | validation loss |
|---|---|---|
{rows}
"""


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
