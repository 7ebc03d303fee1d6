"""Rows of texts scored by quantized models: which there are, and what they hold."""

import functools

import jax
import numpy as np
import pytest
from small_models import random_tokens, small_model

from isojax.quantize import Plan, Scorer, calibrate, quantize, reference, score, summary
from isojax.report import Study, fill, select

TOKENS = random_tokens(5, 24)
PLAN = Plan.parse("residual: haar; weight: absmax bits=4")


@pytest.fixture(scope="module")
def scorer():
    return Scorer(small_model(num_hidden_layers=2), TOKENS[:3], TOKENS[3:], [PLAN])


def seeds(entries):
    return [(e.config.get("window"), e.config.get("windows"), e.config.get("seeds"), e.seed)
            for e in entries]  # fmt: skip


def test_every_window_has_an_entry_and_all_have_one(scorer):
    assert seeds(scorer.entries({})) == [(i, None, None, None) for i in range(3)] + [
        (None, 3, None, None)
    ]
    assert [e.seed for e in scorer.entries({}, 7)] == [7] * 4
    assert [e.seed for e in scorer.entries({}, lambda i: 10 + i)] == [10, 11, 12, None]
    shared = [seeds(scorer.entries({}, seed, every=2)) for seed in (0, 1)]
    assert shared == [
        [(0, None, None, 0), (2, None, None, 0), (None, 3, 2, 0)],
        [(1, None, None, 1), (None, 3, 2, 1)],
    ]
    assert scorer.entries({}, 4, every=5) == []
    window, *_, whole = scorer.entries({"a": 1}, more={"mine": "1"})
    assert window.units["mine"] == "1" and "mine" not in whole.units and whole.config["a"] == 1


def test_values_are_those_of_scores_of_the_windows(scorer, tmp_path):
    study, made = Study("test", tmp_path, {}), functools.partial(scorer.quantized, PLAN)
    jobs = [scorer.exact_job({"plan": "none"}), scorer.job("haar", {"plan": "haar"}, made, int)]
    fill(study, jobs, progress=False)
    model, stats = scorer.model, calibrate(scorer.model, TOKENS[3:], PLAN)
    exact = summary(score(model, TOKENS[:3], reference(model, TOKENS[:3])))
    nll = [r.value for r in study.rows("nll", plan="none")]
    assert np.mean(nll) == pytest.approx(exact["nll"], rel=1e-5)
    each = [
        score(quantize(jax.random.key(i), model, PLAN, stats), TOKENS[i : i + 1],
              reference(model, TOKENS[i : i + 1]))
        for i in range(3)
    ]  # fmt: skip
    for i, found in enumerate(each):
        (row,) = study.rows("kl_mean", plan="haar", window=i)
        assert row.seed == i and row.value == pytest.approx(summary(found)["kl_mean"], rel=1e-4)
    (tail,) = study.rows("kl_p99", plan="haar")
    every = np.concatenate([np.asarray(found.kl)[0] for found in each])
    assert tail.seed is None and tail.value == pytest.approx(np.quantile(every, 0.99), rel=1e-3)
    assert len(select(study.rows(), plan="haar")) == 3 * 5 + 3


def test_tokens_of_windows_that_share_seeds_are_those_a_seed_read(scorer):
    read = []
    scores = scorer.scores(lambda i: read.append(i) or scorer.quantized(PLAN, 1))
    *_, whole = scorer.entries({}, 1, every=2)
    scorer.scored(whole, scores)
    scorer.scored(whole, scores)
    assert read == [1]


def test_a_reference_of_other_texts_is_refused(scorer):
    model = scorer.model
    other = reference(model, TOKENS[1:4])
    with pytest.raises(ValueError, match="reference must be of the same texts"):
        score(model, TOKENS[:3], other)
    with pytest.raises(ValueError, match="reference must be of the 2 windows, got 3"):
        score(model, TOKENS[:2], other)
