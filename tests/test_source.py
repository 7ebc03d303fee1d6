"""Stale numbers: rows know the user's own code, as a hash that changes with all that it uses."""

import functools
import importlib
import importlib.util
import sys

import jax
import pytest

from experiments.alignment.measure import measure
from experiments.compare.__main__ import main
from isojax import metrics
from isojax.quantize import Plan
from isojax.recipes import Recipe
from isojax.report import Entry, Job, Study, fill, read_rows, source_of

MINE = '''
"""A study of someone's own."""
import functools
import jax
import numpy as np
from helpers import scaled
import more
import mine_config

BITS = 3
LIST = [1, 2]
UNUSED = 1


class Base:
    def offset(self):
        return 0


class Reader(Base):
    def read(self, entries):
        return self.offset() + twice(1)


def twice(x):
    return 2 * x


def unused(x):
    return x


def make(number):
    def inner(key):
        return number + more.plus(1)
    return inner


def lazy(key):
    import late
    return late.value()


@jax.jit
def trial(key):
    return {"mse": scaled(twice(BITS)) + LIST[0] + np.sum([x for x in map(twice, LIST)])}
'''
HELPERS = "FACTOR = 2\ndef scaled(x):\n    return FACTOR * x\ndef apart(x):\n    return x\n"
MORE = "def plus(x):\n    return x\ndef other(x):\n    return x\n"
LATE = "def value():\n    return 1\n"


@pytest.fixture
def hashes(tmp_path, monkeypatch):
    """Writes the user's files, edited, imports them anew and hashes what there is."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def hashes(*edits):
        files = {"mine": MINE, "helpers": HELPERS, "more": MORE, "late": LATE, "mine_config": ""}
        for name, old, new in edits:
            assert old in files[name]
            files[name] = files[name].replace(old, new)
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        mine = importlib.import_module("mine")
        return {
            "trial": source_of(mine.trial),
            "closure": source_of(mine.make(1)),
            "partial": source_of(functools.partial(mine.make(1), key=0)),
            "method": source_of(mine.Reader().read),
            "text": source_of("mass_diff@mine:twice/absmax"),
            "lazy": source_of(mine.lazy),
            "collection": source_of({"own": ["mine:twice/absmax"]}),
            "plan": source_of(
                functools.partial(len, [Plan.parse("input: mine:twice/absmax bits=4")])
            ),
        }

    yield hashes
    for name in ("mine", "helpers", "more", "late", "mine_config"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("edit", "changed"),
    [
        (("mine", "UNUSED = 1", "UNUSED = 2"), ()),
        (("mine", "BITS = 3", "BITS = 4"), ("trial",)),
        (("mine", "[1, 2]", "[1, 3]"), ("trial",)),
        (("mine", "2 * x", "3 * x"), ("trial", "method", "text", "collection", "plan")),
        (("mine", "def unused(x):\n    return x", "def unused(x):\n    return -x"), ()),
        (("mine", '"""A study', '\n\n"""The study'), ()),
        (("mine", "return 0", "return 1"), ("method",)),
        (("mine", "number + ", "number - "), ("closure", "partial")),
        (("helpers", "FACTOR = 2", "FACTOR = 3"), ("trial",)),
        (("helpers", "FACTOR * x", "-FACTOR * x"), ("trial",)),
        (("helpers", "def apart(x):\n    return x", "def apart(x):\n    return 0"), ()),
        (("more", "plus(x):\n    return x", "plus(x):\n    return 0"), ("closure", "partial")),
        (("more", "other(x):\n    return x", "other(x):\n    return 0"), ()),
        (("late", "return 1", "return 2"), ("lazy",)),
    ],
)
def test_a_hash_changes_with_what_is_used_and_with_nothing_else(hashes, edit, changed):
    before, after = hashes(), hashes(edit)
    assert all(len(value) == 12 for value in before.values())
    assert {name for name in before if before[name] != after[name]} == set(changed)
    assert hashes() == before


def test_numbers_closed_over_count():
    def make(number):
        return lambda: number

    assert source_of(make(1)) == source_of(make(1)) != source_of(make(2))


def test_what_is_no_code_of_the_users_has_no_hash():
    known = (
        metrics.nmse,
        jax.random.normal,
        Recipe,
        main,
        measure,
        source_of,
        len,
        7,
        None,
        "haar:3",
    )
    assert source_of(*known) == "" == source_of()


def test_a_study_is_no_code_of_the_users_whatever_the_module_is_called(monkeypatch):
    file = importlib.import_module("experiments.perplexity.__main__").__file__
    spec = importlib.util.spec_from_file_location("run_as_a_script", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    module.__package__ = "experiments.perplexity"
    monkeypatch.setitem(sys.modules, "run_as_a_script", module)
    spec.loader.exec_module(module)
    assert module.main.__module__ == "run_as_a_script" and source_of(module.main) == ""


def test_functions_that_name_each_other_are_walked_once():
    assert len(source_of(_even)) == 12


def _even(n):
    return n == 0 or _odd(n - 1)


def _odd(n):
    return n and _even(n - 1)


def stretched(key, samples):
    return 1


ENTRIES = [Entry({"coordinates": f"{__name__}:stretched", "i": i}, 0, {"mse": "1"}) for i in (0, 1)]


def test_rows_of_code_that_changed_are_refused_before_anything_is_computed(tmp_path, monkeypatch):
    asked = []

    def job(trial, entries=ENTRIES):
        return Job("mine", entries, lambda todo: [{"mse": trial()} for _ in todo])

    def one():
        return 1.0

    def two():
        asked.append(1)
        return 2.0

    fill(Study("s", tmp_path, {}), [job(one)], progress=False)
    (source,) = {r.source for r in read_rows(tmp_path / "rows.jsonl")}
    assert len(source) == 12
    fill(Study("s", tmp_path, {}), [job(one)], progress=False)
    new = [Entry({"i": 9}, 0, {"mse": "1"})]
    words = "mse of .*stretched.*user code that has changed since; give --overwrite or another"
    with pytest.raises(ValueError, match=words):
        fill(Study("s", tmp_path, {}), [job(one, new), job(two)], progress=False)
    assert not asked and len(read_rows(tmp_path / "rows.jsonl")) == 2
    fill(Study("s", tmp_path, {}, overwrite=True), [job(two)], progress=False)
    assert [r.value for r in read_rows(tmp_path / "rows.jsonl")] == [2.0, 2.0]
    monkeypatch.setattr(sys.modules[__name__], "stretched", lambda key, samples: 2)
    with pytest.raises(ValueError, match="changed since"):  # what a configuration names counts too
        fill(Study("s", tmp_path, {}), [job(two)], progress=False)
