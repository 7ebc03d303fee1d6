"""A real language model, SmolLM2-135M: that it is read right as a whole."""

import jax
import numpy as np
import pytest
import torch
from k_means import best_error, error_and_cells
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from isojax.data import load_text, windows
from isojax.models import capture_tensors, encode, forward, load_model, logits, token_nll
from isojax.quantizers import lloyd_max_samples

pytestmark = [pytest.mark.shared, pytest.mark.slow]


@pytest.fixture(scope="module")
def smollm(shared, tmp_path_factory):
    path = shared("models/SmolLM2-135M-Instruct.Q4_1.gguf")
    cache = tmp_path_factory.mktemp("cache")
    (cache / "isojax").mkdir()
    (cache / "isojax" / path.name).symlink_to(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        patch.setenv("PIP_NO_INDEX", "1")
        return path, load_model("smollm2")


def test_smollm_has_the_logits_that_torch_gives(smollm):
    path, ours = smollm
    assert ours.name == "smollm2"
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    read = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    lacking = model.load_state_dict(read, strict=False)
    assert lacking.missing_keys == ["lm_head.weight"] and not lacking.unexpected_keys
    tokens = encode(ours.tokenizer, "The capital of France is Paris, and its river is the")[None]
    with torch.no_grad():
        want = model(torch.from_numpy(tokens).long()).logits.numpy()
    hidden = forward(ours.params, ours.config, jax.numpy.asarray(tokens)).hidden
    assert np.abs(logits(ours.params, hidden) - want).max() < 1e-4 * np.abs(want).max()
    assert ours.tokenizer.decode([int(want[0, -1].argmax())]) == " Se"  # of Seine


def test_smollm_has_its_known_perplexity_on_wikitext(smollm, shared):
    _, ours = smollm
    text = load_text(str(shared("data/wikitext-2/test.raw.joined.txt")))
    tokens = windows(encode(ours.tokenizer, text[:20_000]), 1, 2048)
    nll = jax.jit(token_nll, static_argnames="config")(ours.params, ours.config, tokens)
    assert np.exp(nll.mean()) == pytest.approx(15.15, rel=5e-3)


def test_levels_of_hidden_states_are_as_good_as_the_best_of_k_means(smollm, shared):
    _, ours = smollm
    text = load_text(str(shared("data/wikitext-2/test.raw.joined.txt")))
    tokens = encode(ours.tokenizer, text[:20_000])[:256]
    hidden = capture_tensors(ours, tokens, ["hidden:29"])["hidden:29"]
    v = np.asarray(hidden).ravel()
    assert np.abs(v).max() > 100 * v.std()  # massive activations
    levels = jax.jit(lloyd_max_samples, static_argnums=1)(jax.numpy.asarray(v), 2).levels
    error, used = error_and_cells(v, levels)
    assert used == 4 and error < 1.05 * best_error(v, 4)
