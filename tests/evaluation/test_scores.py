"""Tables of an evaluation, and means with confidence intervals."""

import csv
import json

import numpy as np
import pyarrow.parquet
import pytest

from sctok.evaluation.run_folder import FileResult
from sctok.evaluation.scores import interval, summarise, table_rows, write_tables

CODED = {"bytes": 100, "payload": 80, "tokens": 30, "seconds_encode": 1.0, "seconds_decode": 3.0}
FILES = [{"key": "a", "domain": "speech", "seconds": 2.0}, {"key": "b", "domain": "music", "seconds": 4.0}]


def result(value, **values):
    return FileResult(dict(CODED), values={"mel": value, **values})


def test_rates_are_relative_to_the_duration_of_the_reference():
    row = table_rows(FILES, ["opus"], ["mel"], {("opus", "a"): result(1.5)})[0]
    assert row["kbps"] == 80 * 8 / 1000 / 2
    assert (row["bytes"], row["tokens_per_second"], row["rtf_encode"], row["rtf_decode"]) == (100, 15, 0.5, 1.5)


def test_rows_of_failures_have_the_reason():
    results = {
        ("opus", "a"): FileResult(failed="no ffmpeg"),
        ("opus", "b"): FileResult(dict(CODED), errors={"mel": "gave nan"}),
    }
    rows = table_rows(FILES, ["opus"], ["mel"], results)
    assert [row["error"] for row in rows] == ["no ffmpeg", "mel: gave nan"]
    assert [row["mel"] for row in rows] == [None, None]


def test_all_tables_have_the_same_rows(tmp_path):
    results = {("opus", "a"): result(1.5, wer=0.5, wer_errors=1, wer_words=2, wer_heard='so, "he" said')}
    rows = table_rows(FILES, ["opus"], ["mel", "wer"], results)
    summary = write_tables(tmp_path, rows, ["mel", "wer"], results)
    assert pyarrow.parquet.read_table(tmp_path / "scores.parquet").to_pylist() == rows
    with (tmp_path / "scores.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert read == [{name: "" if value is None else str(value) for name, value in row.items()} for row in rows]
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_the_summary_counts_by_domain_and_over_all():
    results = {("opus", "a"): result(1.0), ("opus", "b"): FileResult(dict(CODED), errors={"mel": "crashed"})}
    rows = table_rows(FILES, ["opus"], ["mel"], results)
    found = {entry["domain"]: entry for entry in summarise(rows, ["mel"], results) if entry["metric"] == "mel"}
    assert {name: (entry["mean"], entry["n"], entry["failed"]) for name, entry in found.items()} == {
        "all": (1.0, 1, 1),
        "speech": (1.0, 1, 0),
        "music": (None, 0, 1),
    }


def test_bit_rate_and_corpus_wer_are_ratios_of_totals():
    said = ({"wer": 1.0, "wer_errors": 1, "wer_words": 1}, {"wer": 0.0, "wer_errors": 0, "wer_words": 9})
    results = {("opus", file["key"]): result(0.0, **part) for file, part in zip(FILES, said, strict=True)}
    rows = table_rows(FILES, ["opus"], ["wer"], results)
    means = {e["metric"]: e["mean"] for e in summarise(rows, ["wer"], results) if e["domain"] == "all"}
    assert means["kbps"] == pytest.approx(2 * 80 * 8 / 1000 / 6)
    assert (means["wer"], means["wer_corpus"]) == (0.5, 0.1)


def test_intervals_cover_the_true_mean_at_about_their_level():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        found = interval(rng.exponential(1.0, 60), np.ones(60))
        covered += found["low"] <= 1.0 <= found["high"]
    assert 86 <= covered <= 99


def test_intervals_are_reproducible_and_need_two_files():
    values = np.array([1.0, 2.0, 4.0])
    assert interval(values, np.ones(3)) == interval(values, np.ones(3))
    assert interval(values[:1], np.ones(1)) == {"mean": 1.0, "low": None, "high": None}
    assert interval(values[:0], np.ones(0)) == {"mean": None, "low": None, "high": None}
