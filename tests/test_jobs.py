"""Jobs: a killed run that is started again ends as an undisturbed one, wherever it was killed."""

import jax
import pytest

from isojax.report import Entry, Job, Study, fill, read_rows

NLL = {"nll": "nats per token"}
BOTH = NLL | {"delta_nll": "nats per token"}


def loss(config, seed):
    return len(config["method"]) + 10 * config["window"] + 100 * (seed or 0)


def losses(entries):
    for entry in entries:
        nll = loss(entry.config, entry.seed)
        yield {"nll": nll, "delta_nll": nll - 1}


def trial(key, *, dim, scale):
    x = scale * dim * jax.random.key_data(key).astype("float32")[1]
    return {case: {"mse": x * case, "peak": x + case} for case in (1, 2)}


def jobs(log):
    """A single entry, entries of several configurations, a sweep, one that reads the record."""

    def noted(name, call):
        return lambda *given: (log.append(name), call(*given))[1]

    def windows(method, seed):
        entries = [Entry({"method": method, "window": i}, seed, BOTH) for i in range(2)]
        return Job(method, entries, noted(method, losses))

    return [
        Job.one("exact", {"method": "none"}, NLL, noted("exact", lambda: {"nll": 3.5})),
        windows("haar", 0),
        windows("haar", 1),
        windows("pca", None),
        Job.sweep(
            "sweep", lambda point: point, {"mse": "1", "peak": "1"}, jax.random.key(0), trial,
            seeds=2, static={"dim": (3,)}, traced={"scale": (1.0,)}, inner={"case": (1, 2)},
        ),
    ]  # fmt: skip


def content(path):
    return {(r.identity, r.value, r.unit) for r in read_rows(path)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    study = Study("s", folder, {})
    fill(study, jobs([]), progress=False)
    return folder / "rows.jsonl"


def test_every_declared_row_is_there_once_with_its_unit(whole):
    declared = [(e, m) for job in jobs([]) for e in job.entries for m in e.units]
    rows = read_rows(whole)
    assert len(rows) == len(declared) == 1 + 3 * 2 * 2 + 2 * 2 * 2
    assert {(r.identity, r.unit) for r in rows} == {
        (Study("s", whole.parent, {}).stamp.rows(e.config, e.seed, {m: 0}, e.units)[0].identity,
         e.units[m])
        for e, m in declared
    }  # fmt: skip


@pytest.mark.parametrize("torn", [0, 7], ids=["after a line", "within a line"])
def test_a_run_cut_anywhere_ends_as_an_undisturbed_one(whole, tmp_path, torn):
    lines = whole.read_bytes().splitlines(keepends=True)
    for kept in range(len(lines) + (not torn)):
        folder = tmp_path / str(kept)
        folder.mkdir()
        part = b"".join(lines[:kept]) + (lines[kept][:-torn] if torn else b"")
        (folder / "rows.jsonl").write_bytes(part)
        (folder / "config.json").write_text('{"experiment": "s"}')
        fill(Study("s", folder, {}), jobs([]), progress=False)
        assert len(read_rows(folder / "rows.jsonl")) == len(lines)
        assert content(folder / "rows.jsonl") == content(whole)


def test_only_what_is_missing_is_computed(whole, tmp_path):
    rows = [line for line in whole.read_text().splitlines() if '"haar"' not in line]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "config.json").write_text('{"experiment": "s"}')
    log, given = [], []
    study = Study("s", tmp_path, {})
    fill(study, jobs(log), progress=False)
    assert log == ["haar", "haar"]

    def measure(entries):
        given.extend(entries)
        return losses(entries)

    more = [Entry({"method": "rotor", "window": i}, 0, BOTH) for i in range(4)]
    for entries in (more[:2], more):
        fill(study, [Job("more windows", entries, measure)], progress=False)
    assert given == more


def test_more_seeds_of_a_sweep_keep_the_old_ones(tmp_path):
    def sweep(seeds):
        def one(key, *, dim):
            return {"mean": jax.random.normal(key, (dim,)).mean()}

        key, grid = jax.random.key(0), {"dim": (2, 3)}
        return Job.sweep("sweep", dict, {"mean": "1"}, key, one, seeds=seeds, static=grid)

    study = Study("s", tmp_path / "more", {})
    for seeds in (2, 3):
        fill(study, [sweep(seeds)], progress=False)
    fill(Study("s", tmp_path / "once", {}), [sweep(3)], progress=False)
    assert content(tmp_path / "more" / "rows.jsonl") == content(tmp_path / "once" / "rows.jsonl")


def test_a_sweep_without_seeds_has_rows_without_one(tmp_path):
    study = Study("s", tmp_path, {})
    for _ in range(2):
        job = Job.sweep(
            "sweep", dict, {"one": "1"}, jax.random.key(0), lambda key, n: {"one": n * 1.0},
            seeds=None, static={"n": (4, 5)},
        )  # fmt: skip
        fill(study, [job], progress=False)
    assert [(r.seed, r.value) for r in study.rows("one")] == [(None, 4.0), (None, 5.0)]


@pytest.mark.parametrize(
    "values, words",
    [
        ([{"nll": 1}], r"job 'wrong' .*lacks \['delta_nll'\], also gave \[\].*'window': 0.*seed 3"),
        ([{"nll": 1, "delta_nll": 1, "kl": 1}], r"lacks \[\], also gave \['kl'\]"),
        ([{"nll": 1, "delta_nll": 1}], "job 'wrong' gave fewer values than its 2 missing entries"),
        ([{"nll": 1, "delta_nll": 1}] * 3, "job 'wrong' gave more values than its 2"),
    ],
)
def test_a_job_that_gives_other_values_than_it_declared_is_named(tmp_path, values, words):
    entries = [Entry({"window": i}, 3, BOTH) for i in range(2)]
    with pytest.raises(ValueError, match=words):
        fill(Study("s", tmp_path, {}), [Job("wrong", entries, lambda _: values)], progress=False)


def test_a_metric_without_a_unit_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no unit for \['kl'\]"):
        Study("s", tmp_path, {}).add({"window": 0}, None, {"kl": 1.0}, NLL)


def test_settings_are_on_disk_before_the_first_row_published_ones_too(tmp_path):
    Study("s", tmp_path, {"bits": 3}).add_published({"bits": 3}, {"nll": 1.0}, NLL)
    with pytest.raises(ValueError, match="bits"):
        Study("s", tmp_path, {"bits": 4})
