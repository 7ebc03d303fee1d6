"""The house rules that a machine can check: who imports whom, and what an import costs."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from isojax.recipes import COORDINATES, LEVELS, ROUNDINGS, WRAPPERS

ROOT = Path(__file__).parents[1]
# a module may import from its own layer's name and from every layer below
LAYERS = [
    {"_core"},
    {"transforms", "quantizers", "metrics"},
    {"codec"},
    {"bitstream", "learn", "sweep", "report"},
    {"recipes"},
    {"kernels", "kvcache"},
    {"models", "data"},
    {"quantize"},
    {"__main__"},
]
ABOVE = 6  # the layer of models
LIGHT = {"jax", "numpy", "jaxtyping", "isojax"}
ONLY_ABOVE = {"flax", "transformers", "datasets", "safetensors", "gguf", "tokenizers"}
FILES = sorted((ROOT / "isojax").rglob("*.py"))
STUDIES = sorted(p.parent for p in (ROOT / "experiments").glob("*/__main__.py"))
PARTS = sorted(p for study in STUDIES for p in study.glob("*.py"))


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
        elif level != ABOVE:
            assert top not in ONLY_ABOVE, f"{path}: {name}"


PACKAGES = [path for path in FILES if path.name == "__init__.py"]


@pytest.mark.parametrize("path", PACKAGES, ids=lambda p: p.parent.name)
def test_a_package_lists_what_it_imports_for_others(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bound, used = set(), {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("isojax"):
            assert not any(alias.asname for alias in node.names)  # one form for all
            bound |= {alias.name for alias in node.names} - used
        elif isinstance(node, ast.Assign):
            bound |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    module = importlib.import_module(".".join(path.relative_to(ROOT).parts[:-1]))
    listed = getattr(module, "__all__", [])
    assert listed == sorted(name for name in bound if not name.startswith("_"))
    assert all(hasattr(module, name) for name in listed)


def test_transforms_and_quantizers_do_not_know_each_other():
    for path in FILES:
        part = path.relative_to(ROOT / "isojax").parts[0]
        for name in imported(path):
            assert not (part == "transforms" and name.startswith("isojax.quantizers"))
            assert not (part == "quantizers" and name.startswith("isojax.transforms"))


SHARED = {"common", "dense"}


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


MEMBERS = {
    name
    for family in (COORDINATES, LEVELS, WRAPPERS, ROUNDINGS)
    for name in family.members
    if name != "none"  # a word of many settings
}
# what stands for nothing; forms of members, not members; colours of lines; names of configurations
KNOWN = {
    "isojax/transforms/coordinates.py": {"identity"},
    "isojax/transforms/butterfly.py": {"planar"},
    "isojax/report/figure.py": {"identity", "haar", "hadamard", "pca", "zero"},
    "experiments/isotropic_tradeoff/measure.py": {"absmax", "minmax", "lloyd_max", "ecsq"},
    "experiments/compare/measure.py": {"pca", "zero"},  # bits by component; a control
    "experiments/end_to_end/__main__.py": {"learned"},  # a key of rows
}
TABLES = {"methods.py", "points.py", "presets.py", "report.py"}  # of plans; what rows say


def names_compared(tree):
    """Names of members that are compared with, or are keys of a dictionary or cases of a match."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.Dict):
            parts = [key for key in node.keys if key is not None]
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        else:
            continue
        for part in parts:
            items = part.elts if isinstance(part, ast.Tuple | ast.List | ast.Set) else [part]
            for item in items:
                if isinstance(item, ast.Constant) and item.value in MEMBERS:
                    yield item.value


@pytest.mark.parametrize("path", FILES + PARTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_code_knows_members_by_name(path):
    if path.name in TABLES:
        return
    found = set(names_compared(ast.parse(path.read_text(encoding="utf-8"))))
    assert found <= KNOWN.get(str(path.relative_to(ROOT)), set())


def test_names_that_are_compared_are_found():
    text = "{'haar': 1}; x == 'gptq'; x in ('pca', 'absmax'); 'sparse' in x; f('planar')"
    assert set(names_compared(ast.parse(text))) == {"haar", "gptq", "pca", "absmax", "sparse"}


def test_models_are_scored_and_looked_into_by_the_library():
    defined = [
        (node.name.lstrip("_"), path)
        for path in FILES + PARTS
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    ]
    names = [name for name, _ in defined]
    assert "Trial" not in names
    assert names.count("capture") <= 1 and names.count("calibrate") == 1
    assert [p.parent.name for name, p in defined if name == "token_scores"] == ["models"]


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
