"""Texts and windows of tokens."""

import numpy as np
import pytest

from isojax.data import load_text, windows


def test_text_files_are_read_as_they_are(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("a\r\nb \u00e9\n".encode())
    assert load_text(str(path)) == "a\r\nb \u00e9\n"


def test_a_text_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_bytes(b"abc\xff")
    with pytest.raises(ValueError, match="text.txt: not UTF-8 .* at byte 3"):
        load_text(str(path))
    with pytest.raises(FileNotFoundError, match="nosuch: no such file"):
        load_text("nosuch")
    with pytest.raises(ValueError, match="split of wikitext-2 must be .*; got 'dev'"):
        load_text("wikitext-2:dev")


def test_wikitext_rows_are_joined_by_blank_lines(monkeypatch, tmp_path):
    import datasets
    import huggingface_hub

    asked = []
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.Dataset.from_dict({"text": ["", " = A = \n", "b\n"]}).to_parquet(
        tmp_path / "wikitext-2-raw-v1" / "validation-00000-of-00001.parquet"
    )

    def fetched(name, repo_type, revision, allow_patterns):
        asked.append((name, repo_type, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    assert load_text("wikitext-2:validation") == "\n\n = A = \n\n\nb\n"
    files = "wikitext-2-raw-v1/validation-*.parquet"
    assert asked == [("Salesforce/wikitext", "dataset", [files])]

    def offline(*args, **kwargs):
        asked.append(args)
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    words = r"wikitext-2: cannot be fetched \(no network\); give a UTF-8 file instead"
    with pytest.raises(FileNotFoundError, match=words):
        load_text("wikitext-2")
    assert len(asked) == 2


@pytest.mark.parametrize("content", [None, b"", b"PAR1", b"PAR1" + bytes(60) + b"PAR1"])
def test_a_damaged_or_absent_parquet_of_wikitext_is_one_error(content, monkeypatch, tmp_path):
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "wikitext-2-raw-v1").mkdir()
    if content is not None:
        (tmp_path / "wikitext-2-raw-v1" / "test-00000-of-00001.parquet").write_bytes(content)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="text wikitext-2: cannot be fetched") as caught:
        load_text("wikitext-2")
    assert "\n" not in str(caught.value)


def test_windows_follow_each_other_from_the_start():
    assert windows(np.arange(10), 3, 3).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    with pytest.raises(ValueError, match="windows must be at most 3: .* 10 tokens"):
        windows(np.arange(10), 4, 3)
