"""Quantized models on disk: bit for bit in codes, dequantized for transformers, refused if cut."""

import dataclasses
import functools
import json
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from small_models import edit_json, random_tokens, small_model, tokenizer, torch_model

from isojax.bitstream import encode_codes
from isojax.models import Sidecar, encode, forward, load_model, load_tokenizer, logits
from isojax.quantize import (
    Plan,
    calibrate,
    costs,
    generate,
    load_quantized,
    quantize,
    save,
    score,
)
from isojax.quantize.sealed import MANIFEST, seal
from isojax.quantizers import rate_bits

pytestmark = pytest.mark.slow

KEY = jax.random.key(7)
TOKENS = random_tokens(2, 24)
QUAROT = """
residual: hadamard
values: hadamard
input: absmax bits=4
input:down_proj: hadamard/absmax bits=4
weight: absmax:range=mse bits=4 rounding=gptq
"""
PLANS = {
    "quarot": QUAROT,
    "turned": "residual: hadamard; values: haar; input:o_proj: haar; weight: absmax bits=4",
    "smooth": "input: smooth/absmax bits=8; weight: absmax:group:16 bits=4",
    "mass_diff": "input:down_proj: mass_diff@block_hadamard:16/minmax bits=4; "
    "input:gate_proj: block_hadamard:8/absmax bits=4; weight: minmax bits=3",
    "own": "weight: haar/lloyd_max bits=3",
    "greedy": "weight:o_proj: pca/lloyd_max:fitted_channel:greedy bits=2; residual: haar",
    "sparse": "weight: absmax@sparse:0.05 bits=3; embedding: absmax bits=8",
    "mxfp4": "residual: hadamard; input: mxfp4; weight: mxfp4 rounding=gptq; head: mxfp4",
    "nvfp4": "input: nvfp4; weight: nvfp4",
    "narrowed": "weight[0,-1]: absmax bits=4; weight:q_proj[1]: haar/lloyd_max bits=2; "
    "input:down_proj[1]: haar/absmax bits=4; input:o_proj[0]: hadamard; input:o_proj[2]: haar",
    "cache": "queries_keys: hadamard; cache:keys: aligned/lloyd_max bits=3 sinks=2 recent=3; "
    "cache:values: centre@haar/lloyd_max:fitted bits=2",
    "pages": "cache:keys: minmax:channel bits=2 page=4 offset=pre_rope sinks=1; "
    "cache:values[:]: minmax:group:4 bits=2 recent=5; weight:down_proj: absmax bits=4",
    "centred": "residual: hadamard; weight: absmax bits=4; "
    "input: centre@balance@hadamard/absmax bits=4",
    "entropy": "weight: ecsq bits=2.5; weight:o_proj: haar/e8 bits=2.5; weight:q_proj: none",
    "exact": "",
}
FORMS = ("qwen2-tied", "qwen3-tied-bias", "llama-tied-bias")


@functools.cache
def model_of(form, folder=None):
    """What is loaded of a model whose every parameter is random."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        torch_model(form).save_pretrained(folder)
        tokenizer().save(f"{folder}/tokenizer.json")
        model = load_model(folder)
    sidecar = Sidecar({"eos_token_id": 260}, {"generation_config.json": b'{"do_sample": false}'})
    return dataclasses.replace(model, sidecar=sidecar)


@functools.cache
def quantized_of(name, form=FORMS[0]):
    model, plan = model_of(form), Plan.parse(PLANS[name])
    return quantize(KEY, model, plan, calibrate(model, TOKENS, plan))


def save_small(folder, name="narrowed", form=FORMS[0]):
    made = quantized_of(name, form)
    save(made, folder)
    return made


def assert_same_bits(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    paths = jax.tree_util.tree_leaves_with_path(want)
    for (path, there), here in zip(paths, jax.tree.leaves(got), strict=True):
        where = jax.tree_util.keystr(path)
        assert jax.typeof(here) == jax.typeof(there), where  # shapes, dtypes and weak types
        assert np.asarray(here).tobytes() == np.asarray(there).tobytes(), where


@pytest.mark.parametrize("name", PLANS)
def test_what_is_loaded_is_what_was_saved_bit_for_bit(name, tmp_path):
    made = save_small(tmp_path, name)
    loaded = load_quantized(tmp_path)
    assert_same_bits(loaded, made)
    assert loaded.config == made.config
    assert_same_bits(score(loaded, TOKENS), score(made, TOKENS))
    assert Plan.load(tmp_path / "plan.txt") == Plan.parse(PLANS[name])


@pytest.mark.parametrize("form", FORMS[1:])
def test_families_are_saved_bit_for_bit(form, tmp_path):
    made = save_small(tmp_path, "turned", form)
    assert_same_bits(load_quantized(tmp_path), made)


def test_bfloat16_is_saved_bit_for_bit(tmp_path):
    model = model_of(FORMS[0])
    model = dataclasses.replace(
        model, params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params)
    )
    plan = Plan.parse("residual: hadamard; weight: haar/lloyd_max bits=3; embedding: absmax bits=8")
    made = quantize(KEY, model, plan)
    save(made, tmp_path)
    assert_same_bits(load_quantized(tmp_path), made)


def test_plans_add_up_and_traced_numbers_make_none(tmp_path):
    model, first = model_of(FORMS[0]), Plan.parse("weight: absmax bits=4")
    then = Plan.parse("cache: haar/minmax bits=3")
    made = quantize(KEY, quantize(KEY, model, first), then)
    save(made, tmp_path)
    assert load_quantized(tmp_path).origin.plan == made.origin.plan == first + then
    plan = Plan.parse("values: low_rank:2.5")
    stats = calibrate(model, TOKENS, plan)
    traced = jax.jit(lambda plan: quantize(KEY, model, plan, stats))(plan)
    with pytest.raises(ValueError, match="plan must be given"):
        save(traced, tmp_path)


def test_a_loaded_model_reads_and_writes_strings(tmp_path):
    made = save_small(tmp_path)
    text = "the tin then"
    ids = encode(made.origin.tokenizer, text)[None]
    for each in (made, load_quantized(tmp_path)):
        assert_same_bits(score(each, text), score(each, ids))
        assert (generate(each, text, 3) == generate(each, ids, 3)).all()


def test_a_loaded_model_goes_on_to_be_quantized(tmp_path):
    made = save_small(tmp_path, "turned")
    more = Plan.parse("cache: haar/minmax bits=3; head: absmax bits=8")
    got, want = (quantize(KEY, each, more) for each in (load_quantized(tmp_path), made))
    assert_same_bits(got, want)


def test_the_tokenizer_and_the_files_beside_the_model_are_saved(tmp_path):
    model = model_of(FORMS[0])
    for form in ("packed", "dequantized"):
        folder = tmp_path / form
        save(quantized_of("smooth"), folder, form=form)
        assert load_tokenizer(folder).to_str() == model.tokenizer.to_str()
        assert (folder / "generation_config.json").read_bytes() == b'{"do_sample": false}'
        assert json.loads((folder / "config.json").read_text())["eos_token_id"] == 260
        assert Plan.load(folder / "plan.txt") == Plan.parse(PLANS["smooth"])


@pytest.mark.parametrize("forms", [("packed", "dequantized"), ("dequantized", "packed")])
def test_a_folder_holds_one_form(forms, tmp_path):
    save(quantized_of("smooth"), tmp_path, form=forms[0])
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="must hold no model in another form"):
        save(quantized_of("own"), tmp_path, form=forms[1])
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir()}


@jax.jit
def run(quantized, ids):
    hidden = forward(quantized.params, quantized.config, ids, hooks=quantized.hooks).hidden
    return logits(quantized.params, hidden)


DEQUANTIZED = [(name, FORMS[0]) for name in PLANS] + [("turned", form) for form in FORMS[1:]]


@pytest.mark.parametrize(("name", "form"), DEQUANTIZED)
def test_transformers_computes_what_the_weights_do(name, form, tmp_path):
    made = quantized_of(name, form)
    save(made, tmp_path, form="dequantized")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        got = model(torch.from_numpy(TOKENS).long()).logits.numpy()
    want = np.asarray(run(made.weights_only(), jnp.asarray(TOKENS)))
    assert np.abs(got - want).max() < 1e-3 * np.abs(want).max()
    assert model.config.tie_word_embeddings == ("residual" not in PLANS[name])


def bits_of(codes):
    """Bits of the codes of a weight with scales in fp32, counted apart from `save`."""
    if codes.bits is not None:
        return float(rate_bits(codes, scale_bits=32, offset_bits=32)) * codes.values.size
    if not jnp.issubdtype(codes.values.dtype, jnp.integer):
        return 32 * codes.values.size
    side = 0 if codes.scale is None else 32 * codes.scale.size
    return 8 * len(encode_codes(np.asarray(codes.values))) + side


@pytest.mark.parametrize("name", PLANS)
def test_bytes_on_disk_are_those_that_are_counted(name, tmp_path):
    made = save_small(tmp_path, name)
    counted = costs(made, 64)
    every = [codes for each in made.codes.values() for codes in each if codes is not None]
    exact = sum(x.size for x in jax.tree.leaves(made.params)) - sum(c.values.size for c in every)
    weights = sum(map(bits_of, every)) / 8 + 4 * exact
    data = (tmp_path / "quantized.safetensors").read_bytes()
    on_disk = len(data) - 8 - int.from_bytes(data[:8], "little")
    assert on_disk - weights == pytest.approx(counted.model_bytes - counted.weight_bytes, abs=1)


def test_a_folder_is_as_large_as_its_bits(tmp_path):
    plan = Plan.parse("weight: absmax bits=4; embedding: absmax bits=4")
    made = quantize(KEY, wide_model(), plan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(made, tmp_path)
    disk = sum(f.stat().st_size for f in tmp_path.iterdir() if f.name != "tokenizer.json")
    assert 1 < disk / costs(made, 64).model_bytes < 1.06  # scales and biases in fp32, JSON
    assert disk < sum(x.nbytes for x in jax.tree.leaves(wide_model().params)) / 7


def wide_model():
    return small_model(hidden_size=256, intermediate_size=1024, head_dim=64, num_hidden_layers=1)


LARGE = {
    "input: haar/absmax bits=4": "online transforms of inputs",
    "weight: haar/absmax bits=4": "coordinates and codebooks of weights",
    "weight: absmax:group:8 bits=2": "codes and scales of weights",
    "residual: haar; weight: absmax bits=4; embedding: absmax bits=4": "merged transforms",
}


@pytest.mark.parametrize(("text", "words"), LARGE.items())
def test_a_folder_larger_than_its_bits_says_what_takes_the_space(text, words, tmp_path):
    made = quantize(KEY, wide_model(), Plan.parse(text))
    with pytest.warns(UserWarning, match=rf"times the bits of its weights: .* MB {words}"):
        save(made, tmp_path)


def test_a_transform_that_runs_online_is_stored_once(tmp_path):
    made = quantize(KEY, wide_model(), Plan.parse("input: haar/absmax bits=4"))
    dense = sum(t.transform.entries.nbytes for e in made.inputs.values() for t in e.stacks)
    assert dense == 4 * (3 * 256**2 + 1024**2)
    assert costs(made, 64).model_bytes - costs(made, 64).weight_bytes < 1.001 * dense


def test_weights_that_are_not_what_their_codes_say_are_refused(tmp_path):
    made = quantized_of("quarot")
    params = jax.tree.map(lambda x: x * (1 + 1e-6), made.params)
    with pytest.raises(
        ValueError, match=r"weight down_proj of layer 0 must equal its decoded codes"
    ):
        save(dataclasses.replace(made, params=params), tmp_path)


def refused(folder, *words):
    with pytest.raises(ValueError) as caught:
        load_quantized(folder)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save_small(folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


NAMES = (
    "quantized.safetensors", "structure.json", "config.json", "plan.txt", "tokenizer.json",
    "generation_config.json",
)  # fmt: skip


def test_all_files_are_known_by_their_checksums(files):
    assert set(files) == {*NAMES, MANIFEST}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", ["cut", "altered", "missing"])
def test_a_file_that_is_not_as_it_was_saved_is_refused(name, change, files, tmp_path):
    for other, content in files.items():
        (tmp_path / other).write_bytes(content)
    content = files[name]
    middle = len(content) // 2
    changed = {
        "cut": content[:middle],
        "altered": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
    }
    (tmp_path / name).unlink()
    if change in changed:
        (tmp_path / name).write_bytes(changed[change])
        refused(tmp_path, f"{tmp_path / name}: must be as in {MANIFEST}", f"{len(content)} bytes")
    else:
        refused(tmp_path, f"{tmp_path / name}: must exist", "got no file")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2}, ("version must be 3, got 2",)),
        ({"version": 4}, ("version must be 3, got 4",)),
        ({"format": "gguf"}, ("format must be isojax.quantized, got 'gguf'",)),
        ({"files": ...}, ("files must name config.json",)),
        ({"files": {}}, ("files must name config.json",)),
    ],
)
def test_another_version_is_refused(changes, words, files, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    edit_json(tmp_path / MANIFEST, **changes)
    refused(tmp_path, f"{tmp_path / MANIFEST}: ", *words)


UNIFORM = "isojax.quantizers.uniform:Uniform"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"steps"', '"rounds"', f"structure.json: {UNIFORM} must have the fields clip, bits"),
        (UNIFORM, "isojax.quantizers.uniform:absmax", "structure.json: class must be a dataclass"),
        (UNIFORM, "isojax.gone:Uniform", "structure.json: class must be one of isojax"),
        (UNIFORM, "subprocess_of:Popen", "import subprocess_of first"),
        ('{"array"', '{"pickle"', "structure.json: a node must be an array"),
        ("norm/scale", "norm/gain", "quantized.safetensors: must hold 'params/"),
    ],
)
def test_a_structure_of_other_classes_is_refused(old, new, words, files, tmp_path):
    """As of a version that forgot to say that it is another one."""
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    structure = (tmp_path / "structure.json").read_text()
    assert old in structure
    (tmp_path / "structure.json").write_text(structure.replace(old, new))
    seal(tmp_path, NAMES)
    refused(tmp_path, words)


def test_a_manifest_that_is_missing_or_no_json_is_refused(files, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / MANIFEST).write_bytes(files[MANIFEST][:50])
    refused(tmp_path, f"{tmp_path / MANIFEST}: must be JSON")
    (tmp_path / MANIFEST).unlink()
    refused(tmp_path, f"{tmp_path / MANIFEST}: must exist")


OWN = """
import isojax


@isojax.pytree
class Flip(isojax.Transform):
    size: int = isojax.static()

    dim = property(lambda self: self.size)
    T = property(lambda self: self)
    params = fmas = 0

    def forward(self, x):
        return -x


def flip(key, samples):
    return Flip(samples.dim)
"""


def test_a_class_from_outside_must_be_imported_before(tmp_path):
    (tmp_path / "own_flip.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        plan = Plan.parse("weight:up_proj: own_flip:flip/absmax bits=4")
        model = model_of(FORMS[0])
        made = quantize(KEY, model, plan, calibrate(model, TOKENS, plan))
        save(made, tmp_path / "saved")
        assert_same_bits(load_quantized(tmp_path / "saved"), made)
        sys.modules.pop("own_flip")
        refused(tmp_path / "saved", "structure.json", "own_flip:Flip", "import own_flip first")
