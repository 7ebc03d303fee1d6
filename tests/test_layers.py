"""The house rules that a machine can check: who imports whom, and what an import costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# a module may import from its own layer's name and from every layer below
LAYERS = [
    {"_core"},
    {"transforms", "quantizers", "metrics"},
    {"codec"},
    {"bitstream", "kernels", "kvcache", "learn", "sweep", "report"},
    {"models", "data"},
]
LIGHT = {"jax", "numpy", "jaxtyping", "isojax"}
ONLY_ABOVE = {"flax", "transformers", "datasets", "safetensors", "gguf", "tokenizers"}
FILES = sorted((ROOT / "isojax").rglob("*.py"))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module


def layer_of(part):
    return next(i for i, names in enumerate(LAYERS) if part in names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down_only(path):
    own = path.relative_to(ROOT / "isojax").parts[0].removesuffix(".py")
    for name in imported(path):
        top, _, rest = name.partition(".")
        if own == "__init__":
            assert top not in ONLY_ABOVE
            continue
        level = layer_of(own)
        if top == "isojax" and rest:
            below = rest.split(".")[0]
            assert below == own or layer_of(below) <= level, f"{path}: {name}"
        elif level < 3 and top not in sys.stdlib_module_names:
            assert top in LIGHT, f"{path}: {name}"
        elif level < 4:
            assert top not in ONLY_ABOVE, f"{path}: {name}"


def test_transforms_and_quantizers_do_not_know_each_other():
    for path in FILES:
        part = path.relative_to(ROOT / "isojax").parts[0]
        for name in imported(path):
            assert not (part == "transforms" and name.startswith("isojax.quantizers"))
            assert not (part == "quantizers" and name.startswith("isojax.transforms"))


STUDIES = sorted(path.parent for path in (ROOT / "experiments").glob("*/__main__.py"))
SHARED = {"common", "timing"}


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_a_study_imports_no_other_and_its_measurements_no_report(study):
    for path in study.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not any(a.name.startswith("experiments") for a in node.names), path
            elif isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 or (node.level, node.module in SHARED) == (2, True), path
                if path.name != "__main__.py" and path.name != "report.py":
                    assert node.module != "report", path
                assert node.module != "__main__", path
            elif isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("experiments"), path


def test_import_is_quick_and_light():
    code = (
        "import time, sys, jax; t = time.perf_counter(); import isojax; "
        "print(time.perf_counter() - t, 'flax' in sys.modules, 'transformers' in sys.modules)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    outputs = [run.stdout.split() for run in runs]
    seconds, *heavy = min(outputs, key=lambda out: float(out[0]))  # others may be at work
    assert float(seconds) < 1.0
    assert heavy == ["False", "False"]
