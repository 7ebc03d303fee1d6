"""The model that ships: an ordinary folder that torch reads alike, as good as its card says."""

import importlib.resources
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from isojax.data import load_text, windows
from isojax.models import encode, forward, load_model, logits, token_nll

FOLDER = Path(str(importlib.resources.files("isojax.models") / "tiny"))


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


def test_it_is_small_enough_to_ship():
    assert sum(f.stat().st_size for f in FOLDER.iterdir()) < 12e6
    assert (FOLDER / "heldout.txt").stat().st_size <= 300_000


def test_torch_loads_the_same_folder_and_agrees(tiny):
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    text = load_text("tiny")[:2000]
    tokens = encode(tiny.tokenizer, text)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == list(tokens)
    assert tiny.tokenizer.decode(list(tokens)) == text
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    with torch.no_grad():
        want = model(torch.from_numpy(tokens[None, :256]).long()).logits[0].numpy()
    hidden = forward(tiny.params, tiny.config, jax.numpy.asarray(tokens[None, :256])).hidden[0]
    assert np.abs(logits(tiny.params, hidden) - want).max() < 1e-4 * np.abs(want).max()


def test_its_held_out_loss_is_that_of_its_card(tiny):
    card = (FOLDER / "README.md").read_text()
    (claimed,) = re.findall(r"([\d.]+) nats per token, perplexity", card)
    tokens = encode(tiny.tokenizer, load_text("tiny"))
    batch = windows(tokens, len(tokens) // 513, 513)[::4]  # a quarter of the windows
    nll = jax.jit(token_nll, static_argnames="config")(tiny.params, tiny.config, batch)
    assert float(nll.mean()) == pytest.approx(float(claimed), rel=0.02)
