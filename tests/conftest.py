"""What all tests share: quick compilation, and where to find what does not ship with isojax."""

import gc
import os
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
from small_models import TEXT, small_model, tokenizer

from experiments.common import run
from isojax.models import save_checkpoint
from isojax.report import Stamp

# Tests compile much and compute little. XLA reads this when its first device is made.
FLAGS = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",  # small programs are no quicker in parts
]
if jax.__version_info__ < (0, 11):  # later ones do not know it
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))
# One core per worker: threads of XLA that wait for one another on shared cores take ten times as
# long. XLA has as many threads as the process may use cores when its first device is made.
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
if WORKER and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(WORKER) % len(cores)]})


def pytest_addoption(parser):
    """Adds --all, which `scripts/test.sh` gives."""
    parser.addoption("--all", action="store_true", help="also tests that are marked as slow")


def pytest_configure(config):
    """Takes tests that the command line names, or selects by -m, whether they are slow or not."""
    named = config.args_source is config.ArgsSource.ARGS
    if named or config.option.markexpr:  # workers of xdist have the same command line
        config.option.all = True


def pytest_collection_modifyitems(config, items):
    """Leaves slow tests out of the default suite."""
    slow = [] if config.option.all else [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    left = set(slow)
    items[:] = [item for item in items if item not in left]


def pytest_collection_finish():
    """Keeps the collector of garbage from going through all modules while programs are traced."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


@pytest.fixture(scope="module", autouse=True)
def room_for_programs():
    """Forgets compiled programs before they need more memory maps than Linux allows, 65530."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """The path of a file of the shared folder; skips the test where it is absent."""
    default = Path(__file__).parents[2] / "shared"
    root = Path(os.environ.get("ISOJAX_SHARED", default))

    def find(name: str) -> Path:
        if not (root / name).exists():
            pytest.skip(f"{root / name} is absent (set ISOJAX_SHARED)")
        return root / name

    return find


@pytest.fixture(scope="session")
def stamp():
    return Stamp("test")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model = small_model(num_hidden_layers=2)
    save_checkpoint(folder, model.config, model.params)
    tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "text.txt").write_text(TEXT * 30)
    return folder


@pytest.fixture(scope="module")
def call(small, tmp_path_factory):
    def call(module, *arguments, out=None):
        out = out or tmp_path_factory.mktemp("out") / "study"
        name = module.__name__.removesuffix(".__main__").rsplit(".", 1)[-1]
        given = ["--model", str(small), "--text", str(small / "text.txt"), "--length", "64"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", [name, *given, "--out", str(out), *map(str, arguments)])
            run(module.main, module.Config, name, module.__doc__)
        return out

    return call


@pytest.fixture
def refuses(call, capsys):
    """Asserts that arguments end an experiment in one line with these words, and exit code 2."""

    def refuses(words, module, *arguments, out=None):
        capsys.readouterr()  # bars of runs before
        with pytest.raises(SystemExit) as stop:
            call(module, *arguments, out=out)
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and words in error

    return refuses
