"""What is said of a plan without weights is what becomes of a model."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from numpy.testing import assert_allclose
from small_models import random_tokens, small_config, small_model

from isojax.models import empty_cache
from isojax.quantize import Plan, calibrate, costs, describe, preset, quantize
from isojax.quantize.costs import code_bits
from isojax.quantize.quantized import layer_of
from isojax.transforms import Identity, hadamard

pytestmark = pytest.mark.slow

MODEL = small_model(num_hidden_layers=3)
CONFIG = MODEL.config
TOKENS = random_tokens(2, 48)
MIXED = """
residual: hadamard
values[1]: haar
input: identity/absmax bits=4
input:o_proj[0]: pca@hadamard/absmax bits=4
input:down_proj: smooth@mass_diff@block_hadamard:8/absmax bits=4
input:down_proj[-1]: identity/absmax bits=8
weight: identity/absmax:group:8 bits=3 rounding=gptq
weight:down_proj[0,2]: identity/minmax bits=6
weight:k_proj: none
embedding: absmax bits=8
queries_keys[1]: haar
cache:values: haar/lloyd_max bits=3 sinks=2 recent=4
"""
ALIGNED = """
values: haar
input: balance@hadamard/absmax bits=4
input:gate_proj: wush:8@block_hadamard:8/absmax bits=4
input:down_proj[0]: kron_wush@hadamard/absmax bits=4
weight: absmax bits=4 rounding=gptq
"""
PLANS = {"mixed": MIXED, "aligned_inputs": ALIGNED} | {
    name: str(preset(name)) for name in ("quarot", "smoothquant", "kivi", "kvquant", "aligned")
}


@pytest.fixture(scope="module", params=PLANS)
def both(request):
    plan = Plan.parse(PLANS[request.param])
    made = quantize(jax.random.key(0), MODEL, plan, calibrate(MODEL, TOKENS, plan))
    return plan, made, describe(plan, CONFIG, tokens=64)


def by_hand(codes, scale_bits=16):
    """Bits of the codes of one weight [out, in], a byte at the end of each row filled."""
    rows, inputs = codes.values.shape
    total = 8 * rows * -(-inputs * codes.bits // 8)
    total += scale_bits * sum(a.size for a in (codes.scale, codes.offset) if a is not None)
    return total


def test_bits_of_weights_are_those_of_the_codes(both):
    _, made, said = both
    projections = {n: p["kernel"] for n, p in made.params["layers"].items() if "kernel" in p}
    none = (None,) * CONFIG.num_hidden_layers
    stored = {
        name: [16 * kernel[0].size if c is None else by_hand(c) for c in made.codes.get(name, none)]
        for name, kernel in projections.items()
    }
    number = sum(kernel.size for kernel in projections.values())
    bits = sum(map(sum, stored.values()))
    assert said.costs.weight_bits == pytest.approx(bits / number)
    tables = {n: a for n, a in made.params.items() if n in ("embedding", "head")}
    rest = sum(a.size for a in jax.tree.leaves(made.params)) - number
    exact = rest - sum(tables[n].size for n in tables if n in made.codes)
    bits += 16 * exact + sum(by_hand(made.codes[n][0]) for n in tables if n in made.codes)
    assert said.costs.weight_bytes == pytest.approx(bits / 8)
    for entry in said.entries:
        kind, _, name = entry.place.partition(":")
        for i in entry.layers if kind == "weight" else ():
            assert entry.bits == pytest.approx(stored[name][i] / projections[name][i].size)


def test_what_runs_online_is_what_the_model_has(both):
    _, made, said = both
    found = {(e.place, i): e for e in said.entries for i in e.layers}
    total = 0
    heads, groups = CONFIG.num_attention_heads, CONFIG.num_key_value_heads
    for i in range(CONFIG.num_hidden_layers):
        for place, each in made.inputs.items():
            if each.group[i] < 0:
                continue
            codec = layer_of(each.stacks[each.group[i]], each.place[i])
            assert found[place, i].fmas == codec.transform.fmas
            assert bool(found[place, i].online) == (not isinstance(codec.transform, Identity))
            codes = codec.quantizer.encode(jnp.ones((64, codec.transform.dim)))
            assert found[place, i].bits == pytest.approx(by_hand(codes) / codes.values.size)
            total += codec.transform.fmas
        if made.turn is not None and made.turn.group[i] >= 0:
            total += (heads + groups) * made.turn.stacks[made.turn.group[i]].fmas
        for side in (made.keys, made.values):
            if side is not None:
                total += (heads + groups) * side.codec.transform.fmas
    assert said.costs.online_fmas == total
    assert {place for place, i in found if place.startswith("input") and found[place, i].fmas} == {
        place for place, each in made.inputs.items() if any(s.transform.fmas for s in each.stacks)
    }


def test_bits_of_the_cache_are_those_of_its_arrays(both):
    _, made, said = both
    cache = made.cache(1, 64, "float16")
    layers, groups, dim = CONFIG.num_hidden_layers, CONFIG.num_key_value_heads, CONFIG.head_dim
    assert said.costs.cache_bytes == cache.nbytes / 64
    assert said.costs.cache_bits == pytest.approx(
        8 * cache.nbytes / (2 * 64 * layers * groups * dim)
    )
    exact = empty_cache(CONFIG, 1, 64, "float16")
    assert (said.costs.cache_bits < 16) == (cache.nbytes < exact.nbytes)


def test_the_costs_of_a_model_are_those_that_were_described(both):
    _, made, said = both
    for name, value in dataclasses.asdict(costs(made, 64)).items():
        assert getattr(said.costs, name) == pytest.approx(value), name


def test_stages_that_merge_are_told_from_those_that_run_online():
    said = {(e.place, e.layers): e for e in describe(Plan.parse(MIXED), CONFIG).entries}
    down = said["input:down_proj", (0, 1)]
    assert (down.merged, down.online) == ("smooth@mass_diff", "block_hadamard:8")
    out = said["input:o_proj", (0,)]
    assert (out.merged, out.online) == ("", "pca@hadamard")
    assert said["residual", ()].merged == "hadamard" and said["values", (1,)].merged == "haar"


def test_what_aligns_an_input_merges_where_it_is_a_diagonal():
    said = {(e.place, e.layers): e for e in describe(Plan.parse(ALIGNED), CONFIG).entries}
    width, inner, every = CONFIG.hidden_size, CONFIG.intermediate_size, (0, 1, 2)
    for place in ("input:q_proj", "input:o_proj"):
        entry = said[place, every]
        assert (entry.merged, entry.online) == ("balance", "hadamard")
        assert entry.fmas == hadamard(jax.random.key(0), width).fmas
    assert said["input:down_proj", (1, 2)].merged == "balance"
    gate, down = said["input:gate_proj", every], said["input:down_proj", (0,)]
    assert (gate.merged, gate.fmas) == ("", 8 * width + 3 * width)
    turn = hadamard(jax.random.key(0), inner).fmas
    assert (down.merged, down.fmas) == ("", inner * (8 + 8) + turn)


def test_it_prints_a_table_and_what_counts():
    said = str(describe(preset("quarot"), CONFIG))
    head, first, *_ = said.splitlines()
    assert head.split()[:4] == ["place", "layers", "merged", "online"]
    assert first.split() == ["residual", "all", "hadamard", "-", "-", "-", "hadamard"]
    assert "Embedding and head, which are one, become two." in said
    again = describe(Plan.parse("weight: absmax bits=4; weight: none"), CONFIG)
    assert any("weight: identity/absmax bits=4" in note for note in again.notes)
    assert again.costs.weight_bits == 16


def test_learned_rotations_cost_what_they_are():
    plan = Plan.parse("input:down_proj: learned/absmax bits=4")
    dense = CONFIG.intermediate_size**2
    assert describe(plan, CONFIG).costs.online_fmas == CONFIG.num_hidden_layers * dense


def test_entropy_coded_weights_count_what_was_asked_for_and_then_what_they_take():
    plan = Plan.parse("weight: ecsq:tensor bits=2.5")
    said = describe(plan, CONFIG)
    assert said.costs.weight_bits == pytest.approx(2.5) and "requested rate" in " ".join(said.notes)
    made = quantize(jax.random.key(0), MODEL, plan, calibrate(MODEL, TOKENS, plan))
    codes = made.codes["q_proj"][0]
    want = 0.0
    for column in codes.values.T:
        share = jnp.unique_counts(column).counts / len(column)
        want -= float(jnp.sum(share * jnp.log2(share)))
    assert code_bits(codes) == pytest.approx(want / codes.values.shape[1], rel=1e-4)
    more = describe(Plan.parse("cache: absmax bits=4"), made, tokens=64)
    assert more.costs.weight_bits == pytest.approx(costs(made, 64).weight_bits)
    assert "requested rate" not in " ".join(more.notes)


@pytest.mark.parametrize("levels", ["d4", "e8"])
def test_lattices_count_their_coset_once(levels):
    plan = Plan.parse(f"weight: {levels} bits=2.5")
    made = quantize(jax.random.key(0), MODEL, plan)
    assert costs(made, 64).weight_bits == pytest.approx(2.5, abs=0.05)


@pytest.mark.parametrize(
    "text",
    [
        "residual: balanced_scale", "values: block_hadamard:3", "values: rotor",
        "input:q_proj: block_hadamard:12", "head: absmax bits=4",
        "queries_keys: haar; cache:keys: haar/lloyd_max bits=3 offset=pre_rope",
        "weight[7]: absmax bits=4", "input:down_proj: smooth",
        "cache:keys[0]: haar/lloyd_max bits=3",
    ],
)  # fmt: skip
def test_what_quantize_refuses_is_refused_in_the_same_words(text, monkeypatch):
    from isojax._core.members import COORDINATES
    from isojax.transforms import Diagonal

    def scaled(key, samples):
        return Diagonal(jnp.arange(1.0, samples.dim + 1))

    member = COORDINATES._made("balanced_scale", scaled, {"fitted": ()})
    monkeypatch.setitem(COORDINATES.members, "balanced_scale", member)
    plan = Plan.parse(text)
    errors = []
    for run in (
        lambda: quantize(jax.random.key(0), MODEL, plan, calibrate(MODEL, TOKENS, plan)),
        lambda: describe(plan, CONFIG),
    ):
        try:
            run()
            errors.append("")
        except ValueError as error:
            errors.append(str(error))
    assert errors[0] == errors[1]
    assert bool(errors[0]) == (text != "input:down_proj: smooth")


def test_places_that_a_model_has_taken_are_refused():
    plan = Plan.parse("weight: absmax bits=4; cache: haar/lloyd_max bits=3")
    made = quantize(jax.random.key(0), MODEL, plan, calibrate(MODEL, TOKENS, plan))
    with pytest.raises(ValueError, match="quantized at cache:keys already"):
        describe(Plan.parse("cache:keys: haar/lloyd_max bits=2"), made)
    more = describe(Plan.parse("input: absmax bits=4"), made, tokens=64)
    assert more.costs.weight_bits == pytest.approx(costs(made, 64).weight_bits)


def test_layers_that_are_alike_are_made_once():
    deep = small_config(num_hidden_layers=80)
    said = describe(Plan.parse(MIXED), deep, tokens=64)
    few = describe(Plan.parse(MIXED), CONFIG, tokens=64)
    assert_allclose(said.costs.cache_bits, few.costs.cache_bits)
    (entry,) = [e for e in said.entries if e.place == "values"]
    assert entry.layers == (1,)
    assert " 0-78 " in str(said) and " 0-1 " in str(few)
