"""The file of rows under what may befall it: full disks, other processes, kills, hostile lines."""

import json
import os
import random
import resource
import signal
import time

import pytest

from isojax.report import Entry, Job, Record, Study, fill, read_rows

pytestmark = pytest.mark.slow

UNITS = {"mse": "1", "peak": "1", "nll": "nats per token"}


def rows_of(stamp, number, first=0):
    return [stamp.rows({"i": i}, None, {"mse": float(i)}, UNITS)[0] for i in range(first, number)]


@pytest.fixture
def disk():
    """Limits the length of files of this process; as on a full disk, a part may be written."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("room", [0, 1, 300, 800])
def test_a_full_disk_is_an_error_that_loses_nothing(tmp_path, stamp, disk, room):
    path = tmp_path / "rows.jsonl"
    record = Record(path)
    record.append(rows_of(stamp, 3))
    before = path.read_bytes()
    disk(len(before) + room)
    with pytest.raises(OSError, match=r"rows\.jsonl"):
        record.append(rows_of(stamp, 9, 3))
    assert path.read_bytes() == before
    assert not record.has("test", {"i": 3}, None, ["mse"])
    disk(10**6)
    record.append(rows_of(stamp, 9, 3))
    assert read_rows(path) == record.rows == rows_of(stamp, 9)


def test_two_records_of_one_file_double_and_lose_nothing(tmp_path, stamp):
    path = tmp_path / "rows.jsonl"
    one, other = Record(path), Record(path)
    for i in range(5):
        one.append(rows_of(stamp, 2 * i + 2))
        other.append(rows_of(stamp, 2 * i + 3))
    assert read_rows(path) == rows_of(stamp, 11) == other.rows
    assert one.has("test", {"i": 8}, None, ["mse"])


def test_rows_that_are_double_on_disk_are_read_once(tmp_path, stamp):
    path = tmp_path / "rows.jsonl"
    Record(path).append(rows_of(stamp, 2))
    path.write_bytes(path.read_bytes() * 2)
    record = Record(path)
    assert record.rows == rows_of(stamp, 2)
    path.write_bytes(path.read_bytes() + b"no row\n")
    with pytest.raises(ValueError, match="line 5 is no row"):
        record.append(rows_of(stamp, 3))


def test_a_file_that_another_run_began_anew_is_not_gone_on_with(tmp_path, stamp):
    path = tmp_path / "rows.jsonl"
    record = Record(path)
    record.append(rows_of(stamp, 5))
    Record(path, anew=True).append(rows_of(stamp, 1))
    with pytest.raises(ValueError, match="started it again"):
        record.append(rows_of(stamp, 6))


FIELDS = {
    "experiment": "s", "config": {"i": 1}, "seed": None, "metric": "mse", "value": 1.0, "unit": "1",
    "device": "cpu", "versions": {}, "commit": "unknown", "started": "now",
}  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        b"", b"[]", b'"text"', b"7", b"null", b"{}", b"\xff", b"[" * 100_000, b'{"a": 1}',
        *(json.dumps(FIELDS | other).encode() for other in (
            {"config": []}, {"config": "x"}, {"config": {"i": [1]}}, {"config": {"i": {"j": 1}}},
            {"value": "1"}, {"value": None}, {"value": 10**400}, {"seed": "0"}, {"seed": 0.5},
            {"metric": ["mse"]}, {"experiment": 1}, {"unit": {}}, {"commit": 0}, {"more": 1},
        )),
    ],
    ids=range(23),
)  # fmt: skip
def test_a_line_that_is_no_row_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(FIELDS).encode() + b"\n" + line + b"\n")
    for read in (read_rows, Record):
        with pytest.raises(ValueError, match=r"rows\.jsonl: line 2 is no row"):
            read(path)


def test_rows_without_settings_are_of_nobody_knows_what(tmp_path):
    Study("s", tmp_path, {"bits": 2}).add({"bits": 2}, 0, {"mse": 1.0}, UNITS)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"holds rows and no config\.json.*--overwrite"):
        Study("s", tmp_path, {"bits": 3})


def test_a_folder_that_another_run_began_in_the_meantime_keeps_its_settings(tmp_path):
    one, other = (Study("s", tmp_path, {"bits": bits}) for bits in (2, 3))
    one.add({"bits": 2}, 0, {"mse": 1.0}, UNITS)
    with pytest.raises(ValueError, match="bits"):
        other.add({"bits": 3}, 0, {"mse": 1.0}, UNITS)
    assert [r.config for r in read_rows(tmp_path / "rows.jsonl")] == [{"bits": 2}]


def jobs():
    """Entries of several metrics and of one, none measured at once."""

    def measure(entries):
        for entry in entries:
            time.sleep(random.uniform(0, 0.002))
            i = entry.config["i"]
            yield {"mse": i, "peak": i + 1, "nll": i + 2}

    for name in "abc":
        entries = [Entry({"job": name, "i": i}, None, UNITS) for i in range(8)]
        yield Job(name, entries, measure)
    yield Job.one("one", {"job": "one"}, {"mse": "1"}, lambda: {"mse": 7.0})


def begin(folder):
    """A process that fills a study, as a user starts it."""
    child = os.fork()
    if not child:
        try:
            fill(Study("s", folder, {}), jobs(), progress=False)
            os._exit(0)
        finally:
            os._exit(1)
    return child


def values(folder):
    return sorted((r.identity, r.value) for r in read_rows(folder / "rows.jsonl"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    fill(Study("s", folder, {}), jobs(), progress=False)
    return values(folder)


@pytest.mark.filterwarnings("ignore:os.fork")
def test_a_study_killed_at_random_moments_ends_as_an_undisturbed_one(tmp_path, whole):
    rng, killed = random.Random(0), 0
    for number in range(3):
        folder = tmp_path / str(number)
        for _ in range(5):
            child = begin(folder)
            time.sleep(rng.uniform(0, 0.06))
            os.kill(child, signal.SIGKILL)
            killed += os.waitpid(child, 0)[1] != 0
        assert os.waitpid(begin(folder), 0)[1] == 0
        assert values(folder) == whole
    assert killed > 5


@pytest.mark.filterwarnings("ignore:os.fork")
def test_processes_that_share_a_folder_write_every_row_once(tmp_path, whole):
    children = [begin(tmp_path) for _ in range(3)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert values(tmp_path) == whole
