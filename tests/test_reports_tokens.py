"""Public reports of this field on texts, token numbers and their scores, tried on small inputs.

Each test names the report: repository and number.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from numpy.testing import assert_allclose, assert_array_equal
from small_models import random_tokens, small_model, tokenizer
from transformers import BatchEncoding

from isojax.models import LanguageModel, capture_tensors, encode, forward, init_params
from isojax.quantize import Plan, calibrate, generate, reference, score, summary, token_windows

GPTQ = Plan.parse("weight:up_proj: absmax bits=4 rounding=gptq")
COLUMN = ["the tin then", "in the tin", "the"]


@pytest.fixture(scope="module")
def model():
    return small_model(num_hidden_layers=1)


@pytest.fixture(scope="module")
def wide():
    """A model whose vocabulary 16 bits do not count."""
    config = dataclasses.replace(small_model().config, vocab_size=70_000, num_hidden_layers=1)
    return LanguageModel("wide", config, init_params(jax.random.key(0), config), tokenizer())


@pytest.mark.parametrize(
    "texts",
    [
        {"input_ids": [[1, 2, 3]], "attention_mask": [[1, 1, 1]]},
        BatchEncoding({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 1, 1]]}),
        DatasetDict({"train": Dataset.from_dict({"text": COLUMN})}),
        set(COLUMN),
    ],
    ids=lambda texts: type(texts).__name__,
)
def test_keys_of_a_mapping_are_no_texts(texts, model):
    """huggingface/datasets 8333, intel/auto-round 2363: what is iterated over is the keys."""
    kind = type(texts).__name__
    with pytest.raises(ValueError, match=f"texts must be strings or token ids.*got {kind}"):
        token_windows(model.tokenizer, texts)
    with pytest.raises(ValueError, match=f"prompts must be strings or token ids.*got {kind}"):
        generate(model, texts, 1)


def test_rows_of_a_data_set_are_named(model):
    """casper-hansen/AutoAWQ 27, OpenBMB/MiniCPM-V 576: rows given in place of their column."""
    for texts in (Dataset.from_dict({"text": COLUMN}), [{"input_ids": [1, 2]}]):
        with pytest.raises(ValueError, match="got a dict: give the column"):
            token_windows(model.tokenizer, texts)


def test_texts_that_are_gone_once_read_are_read_once(model):
    """SonySemiconductorSolutions/mct-model-optimization 424: texts as a generator."""
    want = token_windows(model.tokenizer, COLUMN, 4)
    assert_array_equal(token_windows(model.tokenizer, (text for text in COLUMN), 4), want)
    assert_array_equal(token_windows(None, map(list, want)), want)
    moments = [
        calibrate(model, texts, GPTQ, length=4).layers[0]["moment:input:gate_proj"]
        for texts in (COLUMN, iter(COLUMN))
    ]
    assert_array_equal(*moments)
    assert_array_equal(generate(model, COLUMN, 2), generate(model, iter(COLUMN), 2))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int64])
def test_tokens_of_any_integers_are_those_of_32_bits(dtype, model):
    """jax-ml/jax 16836, urvashik/knnlm 6: token numbers in 8 and 16 bits."""
    ids = random_tokens(2, 6) % 100
    same = ids.astype(dtype)
    want = score(model, ids).nll
    assert_array_equal(score(model, same).nll, want)
    assert_array_equal(generate(model, same, 2), generate(model, ids, 2))
    moments = [calibrate(model, x, GPTQ).layers[0]["moment:input:gate_proj"] for x in (ids, same)]
    assert_array_equal(*moments)
    hidden = [capture_tensors(model, x[0], ["hidden:final"])["hidden:final"] for x in (ids, same)]
    assert_array_equal(*hidden)


def test_a_vocabulary_beyond_65536_reads_tokens_of_16_bits(wide):
    """princeton-nlp/LLM-Shearing 65: files of token numbers in uint16."""
    ids = np.array([[1, 65_535, 40_000, 7]])
    want = score(wide, ids).nll
    assert jnp.isfinite(want).all()
    assert_array_equal(score(wide, ids.astype(np.uint16)).nll, want)
    hidden = forward(wide.params, wide.config, jnp.asarray(ids, jnp.uint16)).hidden
    assert_array_equal(hidden, reference(wide, ids).hidden)


@pytest.mark.parametrize("number", [300, -100, 2**32 + 1])
def test_numbers_beyond_the_vocabulary_are_refused_by_whatever_reads_texts(number, model):
    """jax-ml/jax 3774 and 4383: an index out of bounds is another one, or wraps in 32 bits."""
    ids = np.array([[1, number, 3]])
    for read in (
        lambda: score(model, ids),
        lambda: reference(model, ids),
        lambda: calibrate(model, ids, GPTQ),
        lambda: generate(model, ids, 1),
        lambda: capture_tensors(model, ids[0], ["hidden:final"]),
    ):
        with pytest.raises(ValueError, match=rf"from 0 to 299 \(vocab_size=300\), got {number}"):
            read()
    with pytest.raises(ValueError, match="integers, got dtype float64"):
        score(model, [[1.0, 2.5, 3.0]])


def test_windows_of_unequal_length_count_by_their_tokens(model):
    """vllm-project/llm-compressor 2659, huggingface/transformers 34138: a mean of means."""
    ids = random_tokens(1, 60)[0]
    parts = [score(model, ids[None, :50]), score(model, ids[None, 50:])]
    found = summary(jax.tree.map(lambda *a: jnp.concatenate(a, axis=1), *parts))
    each = [np.float64(part.nll) for part in parts]
    assert_allclose(found["nll"], sum(x.sum() for x in each) / (49 + 9), rtol=1e-6)
    assert abs(found["nll"] - np.mean([x.mean() for x in each])) > 0.1


def test_no_window_counts_its_first_token_and_every_one_its_last(model):
    """huggingface/transformers 30975: an off-by-one error between windows."""
    ids = token_windows(None, [random_tokens(1, 25)[0].tolist(), [7]], 8)
    assert ids.shape == (3, 8)
    hidden = forward(model.params, model.config, jnp.asarray(ids)).hidden
    logits = torch.tensor(np.asarray(hidden @ model.params["embedding"].T))
    want = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), torch.tensor(ids)[:, 1:].flatten().long(), reduction="none"
    )
    assert_allclose(score(model, ids).nll.ravel(), want, rtol=1e-4, atol=1e-4)


def test_text_after_what_calibration_keeps_is_counted_too(model):
    """ModelCloud/GPTQModel 3035: of texts of several lengths the last alone was calibrated on."""
    rows = [random_tokens(1, n)[0].tolist() for n in (9, 3, 12)]
    joined = np.concatenate(rows).reshape(3, 8)
    found = calibrate(model, rows, GPTQ, length=8).layers[0]["moment:input:gate_proj"]
    each = [calibrate(model, x[None], GPTQ).layers[0]["moment:input:gate_proj"] for x in joined]
    assert_allclose(found, np.mean(each, 0), rtol=1e-4, atol=1e-5)


def test_strings_are_joined_and_not_padded(model):
    """NVIDIA/Model-Optimizer 1261, neuralmagic/sparseml 1974: padding in statistics."""
    ids = token_windows(model.tokenizer, COLUMN, 100)
    assert_array_equal(ids[0], encode(model.tokenizer, "\n\n".join(COLUMN)))
