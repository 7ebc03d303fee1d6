"""Published methods as plans: they are written in the notation, and run."""

import jax
import numpy as np
import pytest
from small_models import random_tokens, small_model

from experiments.kv_cache.methods import METHODS
from isojax.kvcache.recipe import StoreRecipe
from isojax.quantize import Plan, calibrate, find_plan, preset, quantize, score
from isojax.quantize.calibrate import keyed
from isojax.quantize.presets import CACHES, PLANS

pytestmark = pytest.mark.slow

MODEL = small_model(num_hidden_layers=2)
KEY = jax.random.key(0)
TOKENS = random_tokens(3, 48)
NAMES = sorted(PLANS.members)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_prints_as_it_is_written_and_takes_its_bits(name):
    for bits in (2, 4):
        plan = preset(name, bits=bits)
        assert Plan.parse(str(plan)) == plan == find_plan(f"{name}:{bits}")
        assert {rule.part.bits for rule in plan.rules if hasattr(rule.part, "bits")} == {bits}
    assert preset(name) == find_plan(name)
    says = PLANS.members[name].make.__doc__
    assert "arXiv" in says or name == "smaq-like"


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_runs(name):
    few = {"steps": 10} if "steps" in PLANS.members[name].arguments else {}
    plan, key = preset(name, **few), jax.random.key(0)
    stats = calibrate(MODEL, TOKENS[:2], plan, key=key if keyed(plan) else None)
    made = quantize(key, MODEL, plan, stats)
    exact, got = (score(m, TOKENS[2:]).nll for m in (MODEL, made))
    assert np.isfinite(got).all() and np.abs(got - exact).max() > 1e-4


def test_recipes_of_the_cache_are_those_of_its_study():
    names = {name: name for name in CACHES} | {
        "aligned": "aligned+haar", "isoquant": "quaternion_full",
        "rotated-cache": "haar+pre+sinks+unbiased",
    }  # fmt: skip
    for name, method in names.items():
        own, theirs = (list(map(StoreRecipe.parse, r)) for r in (CACHES[name], METHODS[method]))
        assert [own[0], own[-1]] == [theirs[0], theirs[-1]]
        assert [rule.part.recipe for rule in preset(name).rules] == [own[0], own[-1]]


def test_a_plan_is_found_by_name_file_text_and_in_a_module(tmp_path, monkeypatch):
    want = Plan.parse("weight: absmax bits=4")
    (tmp_path / "my.plan").write_text("# mine\nweight: absmax bits=4\n")
    (tmp_path / "mine.py").write_text(
        "from isojax.quantize import Plan\n\n\n"
        "def plan(bits: int = 4):\n    return Plan.parse(f'weight: absmax bits={bits}')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = ("weight: absmax bits=4", str(tmp_path / "my.plan"), "mine:plan", "mine:plan:bits=4")
    assert [find_plan(text) for text in found] == [want] * 4
    assert find_plan("mine:plan:2") == Plan.parse("weight: absmax bits=2")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("quarott", "must be one of quarot, .*, or package"),
        ("quarot:bits=x", "bits must be of type int"),
        ("quarot:4:4", "takes the arguments bits=4"),
        ("mixquant:blocks=4", "takes the arguments bits=4, block=32"),
        ("no/such.plan", "no such file"),
        ("no.plan", "no such file"),
        ("weights: absmax bits=4", "place must be one of weight"),
        ("os:getcwd", "must return a Plan, got str"),
        ("gptq:9", "bits of minmax must be one of"),
    ],
)
def test_what_is_no_plan_is_refused_in_one_line(text, words):
    with pytest.raises(ValueError, match=words) as caught:
        find_plan(text)
    assert "\n" not in str(caught.value)


def test_drawn_plans_are_told_from_fitted_ones():
    assert preset("quarot").random and preset("aligned").random
    assert not preset("gptq").random and not preset("kivi").random
    assert not find_plan("weight: none; cache: none").random


def test_names_stand_for_their_rules_among_others():
    plan = find_plan("quarot:3; cache: none")
    assert plan == preset("quarot", bits=3) + Plan.parse("cache: none")
    assert find_plan("gptq\nweight:up_proj: none  # exact").at("weight:up_proj", 1) == [None]
    with pytest.raises(ValueError, match="rule must read as PLACE: RECIPE, got 'quarott'"):
        find_plan("quarott; cache: none")


def test_what_cannot_stand_together_is_said_before_anything_is_computed():
    both = preset("quarot") + preset("aligned")
    for run in (lambda: calibrate(MODEL, TOKENS, both), lambda: quantize(KEY, MODEL, both)):
        with pytest.raises(ValueError, match="add the rule queries_keys: none"):
            run()


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("weight: absmx bits=4", "absmax"),
        ("weight: no_such:levels bits=4", "there is no module no_such"),
        ("weight: test_presets:find bits=4", "write identity/test_presets:find"),
    ],
)
def test_messages_say_what_was_meant(rule, words):
    with pytest.raises(ValueError, match=words):
        Plan.parse(rule)


def find(samples, bits):
    """Levels from outside, for the test of messages."""
