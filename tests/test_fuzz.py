"""Files changed at random are read, or refused in one line; the long form is scripts/fuzz.py."""

import importlib.util
import logging
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SPEC = importlib.util.spec_from_file_location("fuzz", Path(__file__).parents[1] / "scripts/fuzz.py")
assert SPEC is not None and SPEC.loader is not None
script = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = script  # where dataclasses look for their module
SPEC.loader.exec_module(script)


@pytest.fixture(scope="module")
def loaders(tmp_path_factory):
    return script.loaders(tmp_path_factory.mktemp("files"))


@pytest.mark.parametrize(
    ("name", "inputs"), [("bitstream", 2000), ("config", 500), ("index", 500), ("gguf", 500)]
)
def test_changed_files_end_as_documented(name, inputs, loaders, caplog):
    caplog.set_level(logging.ERROR, "isojax")
    report = script.fuzz(*loaders[name], range(inputs))
    assert report.wrong == []
    assert report.ends["read"] > 20 and report.ends["ValueError"] > 200
    assert report.slowest[0] < 5 and report.added < 200  # s, MiB


def test_an_error_that_is_not_documented_is_found():
    def read(data):
        return {b"a": 1, b"b": int}[data]

    loader = script.Loader(b"a", lambda rng, data: rng.choice((b"a", b"c")), read)
    report = script.fuzz(loader, "name", range(20))
    assert 0 < len(report.wrong) == 20 - report.ends["read"] < 20
    assert report.wrong[0][1] == "KeyError: b'c'"
    loud = script.Loader(b"1", lambda rng, data: b"x", int)
    assert "invalid literal" in script.fuzz(loud, "name", range(1)).wrong[0][1]
