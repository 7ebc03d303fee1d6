"""Rotations learned by the loss of the whole model: the divergence, the trial, and the study."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from small_models import small_model

from experiments import end_to_end
from experiments.block_points import quantizer_of
from experiments.end_to_end_trial import Trial, rotated_inputs
from isojax.models import Hooks, forward, logits, token_kl, token_nll
from isojax.report import read_rows, select

TOKENS = np.random.default_rng(0).integers(0, 60, (3, 24))
GIVEN = ("--starts", "haar", "--seeds", 2, "--steps", 10, "--rate", 0.02, "--windows", 2,
         "--calibration-windows", 2)  # fmt: skip


@pytest.fixture(scope="module")
def trial():
    return Trial(small_model(num_hidden_layers=2), TOKENS[:2], TOKENS[2:])


def test_divergence_is_that_of_the_whole_distributions(trial):
    def shift(name, layer, x):
        return x + 0.3 * jnp.sin(jnp.arange(x.shape[-1])) if name == "input:q_proj" else x

    ids, hooks = jnp.asarray(TOKENS), Hooks(activation=shift)
    args = (trial.params, trial.config)
    exact = forward(*args, ids).hidden
    p, q = (
        np.asarray(jax.nn.log_softmax(logits(trial.params, h)), float)
        for h in (exact, forward(*args, ids, hooks=hooks).hidden)
    )
    got = token_kl(*args, exact, ids, hooks, chunk=7)
    assert_allclose(got, np.sum(np.exp(p) * (p - q), -1), rtol=1e-3, atol=1e-6)
    assert np.max(got) > 1e-4
    assert_allclose(token_kl(*args, exact, ids), 0, atol=1e-6)
    with pytest.raises(ValueError, match="hidden must have shape"):
        token_kl(*args, exact[..., 1:], ids)


def test_merged_rotations_read_as_the_hooks_they_were_learned_by(trial):
    rotations, inputs = trial.start("haar", 0), quantizer_of("int4", False)
    hooks = rotated_inputs(trial.config, rotations, inputs)
    want = token_nll(trial.params, trial.config, jnp.asarray(TOKENS[2:]), hooks).mean()
    (got,) = trial.quantized(rotations, "W16A4")
    assert abs(float(want) - trial.nll(0)) > 1e-4
    # in fp32 a number may fall on the other side of a border
    assert got == pytest.approx(float(want), abs=0.1 * abs(float(want) - trial.nll(0)))


def test_learning_lowers_the_divergence_and_keeps_rotations(trial):
    start, told = trial.start("haar", 1), []
    learned = trial.learned(start, 1, 20, 0.02, lambda step, kl: told.append(float(kl)))
    assert len(told) == 10
    quantizer, ids = quantizer_of("int4", False), jnp.asarray(TOKENS[:2])
    exact = forward(trial.params, trial.config, ids).hidden
    before, after = (
        float(token_kl(trial.params, trial.config, exact, ids, hooks).mean())
        for hooks in (rotated_inputs(trial.config, r, quantizer) for r in (start, learned))
    )
    assert after < 0.9 * before
    assert after == pytest.approx(min(told), rel=0.02)
    assert before == pytest.approx(trial.divergence(start), rel=0.02)
    for turned, first in zip(learned[:2], start[:2], strict=True):
        m = np.asarray(turned.entries, float)
        eye = np.broadcast_to(np.eye(m.shape[-1]), m.shape)
        assert_allclose(m @ m.swapaxes(-1, -2), eye, atol=1e-5)
        assert np.abs(m - np.asarray(first.entries)).max() > 1e-3


def test_the_study_compares_each_start_with_what_it_became_and_resumes(call):
    out = call(end_to_end, *GIVEN)
    rows = read_rows(out / "rows.jsonl")
    scored = select(rows, "delta_nll")
    assert len(scored) == 2 * 2 * 2 * 2  # seeds, settings, before and after, windows
    assert sorted(r.config["step"] for r in select(rows, "kl") if r.seed == 1) == [*range(11)]
    lines = (out / "rows.jsonl").read_text().splitlines(keepends=True)
    (out / "rows.jsonl").write_text("".join(lines[:-3]))  # as a killed run leaves it
    call(end_to_end, *GIVEN, out=out)
    again = read_rows(out / "rows.jsonl")
    assert again[:-3] == rows[:-3] and [r.identity for r in again] == [r.identity for r in rows]
    assert_allclose([r.value for r in again], [r.value for r in rows], rtol=1e-4)
    for seed in (0, 1):
        first, *later = [r.value for r in select(rows, "kl") if r.seed == seed]
        assert min(later) < first, (first, later)
    assert "W4A4, learned" in (out / "table.md").read_text()
    assert (out / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "words, arguments",
    [
        ("steps must be a multiple of 10, got 15", ("--steps", 15)),
        ("starts must be one of identity, hadamard, haar", ("--starts", "pca")),
        ("rate must be above 0", ("--rate", 0)),
    ],
)
def test_bad_input_ends_in_one_line(refuses, words, arguments):
    refuses(words, end_to_end, *arguments)
