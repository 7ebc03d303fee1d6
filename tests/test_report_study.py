"""A study: its folder, its settings, and what its report begins with."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from report_rows import UNITS

from isojax import report
from isojax.report import Study, read_rows


def test_times_in_turn_are_medians_of_calls_that_alternate():
    order = []
    calls = {name: lambda name=name: order.append(name) or jnp.zeros(()) for name in "ab"}
    times = report.times_in_turn(calls, 3)
    assert "".join(order) == "ab" * 5 and all(0 < t < 1e6 for t in times.values())


def test_paragraphs_of_a_report_are_apart_and_empty_ones_left_out(tmp_path):
    Study("test", tmp_path, {}).finish(["# A", "", report.bullets(["b", "c"])])
    assert (tmp_path / "table.md").read_text() == "# A\n\n- b\n- c\n"


def test_a_study_goes_on_and_refuses_other_settings(tmp_path):
    study = Study("s", tmp_path, {"bits": (2, 3), "seeds": 4})
    study.add({"bits": 2}, 0, {"mse": 1.0}, UNITS)
    again = Study("s", tmp_path, {"bits": (2, 3), "seeds": 9})
    assert again.has({"bits": 2}, 0, ["mse"])
    with pytest.raises(ValueError, match=r"bits \(there \[2, 3\], now \[2\]\).*--out"):
        Study("s", tmp_path, {"bits": (2,), "seeds": 4})
    with pytest.raises(ValueError, match="experiment"):
        Study("other", tmp_path, {"bits": (2, 3), "seeds": 4})
    (tmp_path / "config.json").write_text("")
    for hostile in ("", "[]", '"text"', "7", "[" * 100_000, "{" * 9, "\0"):
        (tmp_path / "config.json").write_text(hostile)
        with pytest.raises(ValueError, match=r"config\.json: not a readable"):
            Study("s", tmp_path, {"bits": (2, 3), "seeds": 4})


def test_another_value_of_a_row_is_refused_and_the_same_is_not(tmp_path):
    study = Study("s", tmp_path, {})
    study.add({"bits": 2}, 0, {"mse": 1.0}, UNITS)
    study.add({"bits": np.int64(2)}, 0, {"mse": jnp.float32(1)}, UNITS)
    with pytest.raises(ValueError, match=r"holds mse = 1 of .*bits.*now it is 99; give --overwr"):
        study.add({"bits": 2}, 0, {"mse": 99.0}, UNITS)
    assert [r.value for r in study.rows()] == [1.0]
    nan = float("nan")
    study.add({"bits": 3}, 0, {"mse": nan}, UNITS)
    study.add({"bits": 3}, 0, {"mse": nan}, UNITS)


def test_overwriting_begins_the_folder_anew_with_the_first_row(tmp_path):
    Study("s", tmp_path, {"bits": 2}).add({"bits": 2}, 0, {"mse": 1.0}, UNITS)
    study = Study("s", tmp_path, {"bits": 3}, overwrite=True)
    assert not study.rows() and len(read_rows(tmp_path / "rows.jsonl")) == 1
    study.add({"bits": 3}, 0, {"mse": 5.0}, UNITS)
    assert [r.value for r in read_rows(tmp_path / "rows.jsonl")] == [5.0]
    assert json.loads((tmp_path / "config.json").read_text())["bits"] == 3
    assert Study("s", tmp_path, {"bits": 3}).rows() == study.rows()


@pytest.mark.parametrize("value", [[1, 2], (1, 2), {"a": 1}, np.ones(2), 1j])
def test_a_configuration_holds_no_lists(tmp_path, value):
    with pytest.raises(ValueError, match="config: bits must be a string, a number or a boolean"):
        Study("s", tmp_path, {}).add({"bits": value}, 0, {"mse": 1.0}, UNITS)


def test_a_report_says_that_its_rows_are_of_uncommitted_code(tmp_path):
    for commit, said in (("0123456789ab", False), ("0123456789ab-dirty", True)):
        study = Study("s", tmp_path / commit, {})
        study.stamp.commit = commit
        study.add({"bits": 2}, 0, {"mse": 1.0}, UNITS)
        study.finish("text")
        table = (tmp_path / commit / "table.md").read_text()
        assert ("uncommitted changes: 0123456789ab-dirty" in table) == said
