"""Sweeps: equal to plain loops, counted compiles, memory kept, resumable."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isojax import transforms
from isojax.sweep import grid, sweep

KEY = jax.random.key(3)
X = np.random.default_rng(0).standard_normal((8, 24), np.float32)


def trial(key, *, kind, scale):
    y = transforms.from_name(key, kind, 24).apply(jnp.asarray(X)) * scale
    return {"peak": jnp.abs(y).max(), "energy": jnp.sum(y * y)}


STATIC = {"kind": ["haar", "planar"]}
TRACED = {"scale": [0.5, 1.0, 2.0]}


def run(**kwargs):
    kwargs = {"seeds": 4, "static": STATIC, "traced": TRACED, "progress": False} | kwargs
    return list(sweep(KEY, kwargs.pop("trial", trial), **kwargs))


def test_sweep_equals_a_loop_over_grid_and_seeds():
    results = run()
    assert len(results) == 2 * 3 * 4
    for result in results:
        want = trial(jax.random.fold_in(KEY, result.seed), **result.config)
        assert result.metrics == pytest.approx({k: float(v) for k, v in want.items()}, rel=1e-5)


def test_every_point_of_the_grid_and_seed_comes_once():
    results = run()
    seen = {(r.config["kind"], r.config["scale"], r.seed) for r in results}
    assert len(seen) == len(results) == 24


def test_a_static_point_is_compiled_once_and_seeds_and_numbers_compile_nothing():
    compiled = []
    run(compiled=compiled.append)
    assert compiled == [{"kind": "haar"}, {"kind": "planar"}]
    more = []
    run(compiled=more.append, seeds=9, traced={"scale": list(np.linspace(0.1, 1, 7))})
    assert len(more) == 2


def test_more_seeds_keep_the_values_of_the_old_ones():
    few, many = run(seeds=2), run(seeds=5)
    values = {(str(r.config), r.seed): r.metrics for r in many}
    for r in few:
        assert values[str(r.config), r.seed] == pytest.approx(r.metrics, rel=1e-6)


def test_a_small_memory_budget_makes_chunks_and_changes_no_value():
    compiled = []
    chunked = run(memory=40_000, compiled=compiled.append, static={"kind": ["haar"]}, seeds=7)
    whole = run(static={"kind": ["haar"]}, seeds=7)
    assert len(compiled) == 2  # the first guess, then one that fits
    assert [(r.config, r.seed) for r in sorted(chunked, key=str)] == [
        (r.config, r.seed) for r in sorted(whole, key=str)
    ]
    by = {(str(r.config), r.seed): r.metrics for r in whole}
    for r in chunked:
        assert r.metrics == pytest.approx(by[str(r.config), r.seed], rel=1e-5)


def test_seeds_that_are_done_are_not_run_again():
    done = {("haar", 1), ("haar", 2), ("planar", 0)}
    compiled = []
    results = run(
        done=lambda config, seed, names: (config["kind"], seed) in done, compiled=compiled.append
    )
    assert {(r.config["kind"], r.seed) for r in results} == {
        ("haar", 0), ("haar", 3), ("planar", 1), ("planar", 2), ("planar", 3),
    }  # fmt: skip
    assert len(compiled) == 2
    compiled.clear()
    assert run(done=lambda *_: True, compiled=compiled.append) == []
    assert compiled == []


def test_done_is_asked_with_the_names_of_the_metrics():
    asked = []
    run(done=lambda config, seed, names: asked.append(sorted(names)) or False)
    assert asked[0] == ["energy", "peak"]


def test_inner_values_become_part_of_the_configuration():
    def both(key, *, kind):
        y = transforms.from_name(key, kind, 24).apply(jnp.asarray(X))
        return {p: {"norm": jnp.linalg.norm(y.ravel(), p)} for p in (1, 2)}

    results = run(trial=both, traced=None, inner={"p": [1, 2]}, seeds=2)
    assert [r.config["p"] for r in results[:2]] == [1, 2]
    for r in results:
        if r.config["p"] == 2:
            assert r.metrics["norm"] == pytest.approx(np.linalg.norm(X), rel=1e-5)


def test_closed_over_arrays_are_arguments_of_the_program():
    big = jnp.asarray(np.random.default_rng(1).standard_normal(2**20), jnp.float32)

    def sorting(key):  # as a constant, XLA would sort this at compile time, for minutes
        return {"median": jnp.sort(big)[2**19] + 0 * jax.random.normal(key)}

    (result,) = run(trial=sorting, static=None, traced=None, seeds=1)
    assert result.metrics["median"] == pytest.approx(float(np.sort(big)[2**19]))


def test_a_trial_that_returns_no_scalars_is_refused():
    with pytest.raises(ValueError, match=r"trial must return scalars, got y = .*24"):
        run(trial=lambda key: {"y": jnp.zeros(24)}, static=None, traced=None)


def test_inner_values_that_the_trial_did_not_return_are_refused():
    with pytest.raises(ValueError, match="inner=.*p"):
        run(trial=lambda key: {1: {"a": jnp.zeros(())}}, static=None, traced=None,
            inner={"p": [1, 2]})  # fmt: skip


def test_two_inner_names_are_refused():
    with pytest.raises(ValueError, match="inner must have one name, got p, q"):
        run(inner={"p": [1], "q": [2]})


@pytest.mark.parametrize("seeds", [0, -1, 2.0, 2.5, True, float("nan"), float("inf")])
def test_seeds_must_be_a_positive_number(seeds):
    with pytest.raises(ValueError, match="seeds must be a whole number of at least 1"):
        run(seeds=seeds)


@pytest.mark.parametrize("seeds", [np.int64(2), jnp.int32(2)])
def test_an_integer_of_any_kind_will_do_for_seeds(seeds):
    assert [
        r.seed
        for r in run(
            seeds=seeds,
            static={"kind": ["haar"]},
            traced=None,
            trial=lambda key, kind: {"one": 1.0 * key_bit(key)},
        )
    ] == [0, 1]


def key_bit(key):
    return jax.random.bernoulli(key).astype(jnp.float32)


def shaped(key, *, bits, clip):
    return {"sum": jnp.sum(jnp.arange(bits)) * clip}


def chosen(key, *, bits, clip):
    return {"sum": clip * (1.0 if bits > 2 else 2.0)}


def converted(key, *, bits, clip):
    return {"sum": clip * jnp.asarray(np.arange(8)[np.asarray(bits)])}


@pytest.mark.parametrize("trial", [shaped, chosen, converted])
def test_what_fixes_the_form_of_a_program_is_named_where_traced(trial):
    given = {"trial": trial, "static": None, "seeds": 1}
    with pytest.raises(ValueError, match="traced: bits fixes a shape, a loop count or a choice"):
        run(traced={"clip": [0.5], "bits": [2, 3]}, **given)
    assert len(run(traced={"clip": [0.5]}, **given | {"static": {"bits": [2, 3]}})) == 2


@pytest.mark.parametrize("values", [["haar", "pca"], [1, None], [[1, 2]], [jnp.ones(2)]])
def test_what_is_no_number_cannot_be_traced(values):
    with pytest.raises(ValueError, match="traced: scale must be numbers, got .*as static"):
        run(traced={"scale": values})


@pytest.mark.parametrize("values", [jnp.geomspace(0.5, 2, 3), np.geomspace(0.5, 2, 3), (0.5, 1, 2)])
def test_arrays_are_lists_of_numbers(values):
    found = [r.config["scale"] for r in run(traced={"scale": values}, static={"kind": ["haar"]})]
    assert set(map(type, found)) <= {float, int}
    assert sorted({*found}) == pytest.approx([0.5, 1, 2])


@pytest.mark.parametrize("given", ["static", "traced"])
@pytest.mark.parametrize(
    ("values", "words"),
    [("haar", "a list of values, got 'haar'"), (3, "a list of values"), (None, "a list of values"),
     (np.ones((2, 2)), "a list of values"), ([], "at least one value")],
)  # fmt: skip
def test_a_name_without_a_list_of_values_is_refused(given, values, words):
    with pytest.raises(ValueError, match=f"kind must have {words}"):
        run(**{given: {"kind": values}})


@pytest.mark.parametrize("found", [1.0, [1.0], None, "mse"])
def test_a_trial_that_returns_no_dict_is_refused(found):
    for inner, words in ((None, "a dict of scalars"), ({"p": [1]}, "a dict of dicts")):
        with pytest.raises(ValueError, match=f"trial must return {words}.*, got"):
            run(trial=lambda key: found, static=None, traced=None, inner=inner)
    with pytest.raises(ValueError, match="trial must return a dict of scalars, got {}"):
        run(trial=lambda key: {}, static=None, traced=None)
    with pytest.raises(ValueError, match="trial must return scalars, got kind = haar"):
        run(trial=lambda key: {"kind": "haar"}, static=None, traced=None)


def test_grid_of_no_axes_is_one_empty_point():
    assert grid({}) == [{}]
    assert grid({"a": [1, 2], "b": [3]}) == [{"a": 1, "b": 3}, {"a": 2, "b": 3}]
