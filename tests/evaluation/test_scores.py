"""The journal, tables, and means with confidence intervals."""

import csv
import json
import resource

import numpy as np
import pyarrow.parquet
import pytest

from sctok.evaluation.scores import JOURNAL, Cell, Journal, interval, summarise, table_rows, write_tables
from sctok.formats.files import DiskFullError

CODED = {"bytes": 100, "payload": 80, "tokens": 30, "seconds_encode": 1.0, "seconds_decode": 3.0}
FILES = [{"key": "a", "domain": "speech", "seconds": 2.0}, {"key": "b", "domain": "music", "seconds": 4.0}]


def cell(value, **values):
    return Cell(dict(CODED), values={"mel": value, **values})


def test_the_journal_gives_back_what_it_took(tmp_path):
    with Journal(tmp_path) as journal:
        journal.add("opus", "a", coded=CODED)
        journal.add("opus", "a", metric="mel", value=0.1, details={"n": 1})
        journal.add("opus", "a", metric="pesq", failed="too short")
        journal.add("mini", "a", failed="no")
    with Journal(tmp_path) as journal:
        assert journal.cells == {
            ("opus", "a"): Cell(CODED, None, {"mel": 0.1, "n": 1}, {"pesq": "too short"}),
            ("mini", "a"): Cell(None, "no"),
        }


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_that_was_cut_short_is_taken_off(tmp_path, cut):
    with Journal(tmp_path) as journal:
        journal.add("opus", "a", metric="mel", value=1.0)
        journal.add("opus", "b", metric="mel", value=2.0)
    path = tmp_path / JOURNAL
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(tmp_path) as journal:
        assert list(journal.cells) == [("opus", "a")]
        journal.add("opus", "b", metric="mel", value=3.0)
    with Journal(tmp_path) as journal:
        assert journal.cells["opus", "b"].values == {"mel": 3.0}


def test_a_full_disk_costs_the_last_line_alone(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(tmp_path) as journal:
        journal.add("opus", "a", metric="mel", value=1.0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (80, before[1]))
        try:
            with pytest.raises(DiskFullError, match=r"journal\.jsonl: the file size limit is reached; make room"):
                journal.add("opus", "b", metric="mel", value=2.0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with Journal(tmp_path) as journal:
        journal.add("opus", "c", metric="mel", value=3.0)
    with Journal(tmp_path) as journal:
        assert list(journal.cells) == [("opus", "a"), ("opus", "c")]


def test_two_processes_do_not_write_at_once(tmp_path):
    with Journal(tmp_path), pytest.raises(ValueError, match="another command is at work"):
        Journal(tmp_path)


def test_a_value_replaces_an_error():
    found = Cell(errors={"pesq": "crashed"})
    found.take({"metric": "pesq", "value": 3.0})
    assert (found.values, found.errors) == ({"pesq": 3.0}, {})


def test_rates_are_by_the_duration_of_the_reference():
    row = table_rows(FILES, ["opus"], ["mel"], {("opus", "a"): cell(1.5)})[0]
    assert row["kbps"] == 80 * 8 / 1000 / 2
    assert (row["bytes"], row["tokens_per_second"], row["rtf_encode"], row["rtf_decode"]) == (100, 15, 0.5, 1.5)


def test_rows_of_what_failed_say_why():
    cells = {("opus", "a"): Cell(failed="no ffmpeg"), ("opus", "b"): Cell(dict(CODED), errors={"mel": "gave nan"})}
    rows = table_rows(FILES, ["opus"], ["mel"], cells)
    assert [row["error"] for row in rows] == ["no ffmpeg", "mel: gave nan"]
    assert [row["mel"] for row in rows] == [None, None]


def test_tables_hold_the_same_rows(tmp_path):
    cells = {("opus", "a"): cell(1.5, wer=0.5, wer_errors=1, wer_words=2, wer_heard='so, "he" said')}
    rows = table_rows(FILES, ["opus"], ["mel", "wer"], cells)
    summary = write_tables(tmp_path, rows, ["mel", "wer"], cells)
    assert pyarrow.parquet.read_table(tmp_path / "scores.parquet").to_pylist() == rows
    with (tmp_path / "scores.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert read == [{name: "" if value is None else str(value) for name, value in row.items()} for row in rows]
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_summary_counts_by_domain_and_over_all():
    cells = {("opus", "a"): cell(1.0), ("opus", "b"): Cell(dict(CODED), errors={"mel": "crashed"})}
    rows = table_rows(FILES, ["opus"], ["mel"], cells)
    found = {entry["domain"]: entry for entry in summarise(rows, ["mel"], cells) if entry["metric"] == "mel"}
    assert {name: (entry["mean"], entry["n"], entry["failed"]) for name, entry in found.items()} == {
        "all": (1.0, 1, 1),
        "speech": (1.0, 1, 0),
        "music": (None, 0, 1),
    }


def test_bit_rate_and_corpus_wer_are_totals_over_totals():
    said = ({"wer": 1.0, "wer_errors": 1, "wer_words": 1}, {"wer": 0.0, "wer_errors": 0, "wer_words": 9})
    cells = {("opus", file["key"]): cell(0.0, **part) for file, part in zip(FILES, said, strict=True)}
    rows = table_rows(FILES, ["opus"], ["wer"], cells)
    means = {e["metric"]: e["mean"] for e in summarise(rows, ["wer"], cells) if e["domain"] == "all"}
    assert means["kbps"] == pytest.approx(2 * 80 * 8 / 1000 / 6)
    assert (means["wer"], means["wer_corpus"]) == (0.5, 0.1)


def test_intervals_cover_the_true_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        found = interval(rng.exponential(1.0, 60), np.ones(60))
        covered += found["low"] <= 1.0 <= found["high"]
    assert 86 <= covered <= 99


def test_intervals_are_the_same_each_time_and_need_two_files():
    values = np.array([1.0, 2.0, 4.0])
    assert interval(values, np.ones(3)) == interval(values, np.ones(3))
    assert interval(values[:1], np.ones(1)) == {"mean": 1.0, "low": None, "high": None}
    assert interval(values[:0], np.ones(0)) == {"mean": None, "low": None, "high": None}


@pytest.mark.parametrize(
    "line",
    [
        "5",
        "{}",
        "\0" * 30,
        "[" * 100_000,
        '{"codec": "a", "key": [1], "failed": "x"}',
        '{"codec": "a", "key": "k", "metric": "m"}',
        '{"codec": "a", "key": "k", "metric": "m", "value": "1"}',
        '{"codec": "a", "key": "k", "metric": "m", "value": 1, "details": 2}',
        '{"codec": "a", "key": "k", "coded": 5}',
        '{"codec": "a", "key": "k", "coded": {"bytes": 1}}',
    ],
)
def test_a_line_that_is_no_entry_costs_no_other_one(tmp_path, line):
    with Journal(tmp_path) as journal:
        journal.add("a", "k", failed="why")
    with (tmp_path / JOURNAL).open("a") as file:
        file.write(line + "\n")
    for value in (1.0, 2.0):
        with Journal(tmp_path) as journal:
            journal.add("b", "k", metric="mel", value=value)
    with Journal(tmp_path) as journal:
        assert journal.cells == {("a", "k"): Cell(failed="why"), ("b", "k"): Cell(values={"mel": 2.0})}
