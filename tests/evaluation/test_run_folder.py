"""The journal of an evaluation: reading, damaged and truncated lines, full disks."""

import resource

import pytest

from sctok.evaluation.run_folder import JOURNAL, FileResult, Journal
from sctok.formats.files import DiskFullError

CODED = {"bytes": 100, "payload": 80, "tokens": 30, "seconds_encode": 1.0, "seconds_decode": 3.0}


def test_the_journal_returns_its_entries(tmp_path):
    with Journal(tmp_path) as journal:
        journal.add("opus", "a", coded=CODED)
        journal.add("opus", "a", metric="mel", value=0.1, details={"n": 1})
        journal.add("opus", "a", metric="pesq", failed="too short")
        journal.add("mini", "a", failed="no")
    with Journal(tmp_path) as journal:
        assert journal.results == {
            ("opus", "a"): FileResult(CODED, None, {"mel": 0.1, "n": 1}, {"pesq": "too short"}),
            ("mini", "a"): FileResult(None, "no"),
        }


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_truncated_last_line_is_removed(tmp_path, cut):
    with Journal(tmp_path) as journal:
        journal.add("opus", "a", metric="mel", value=1.0)
        journal.add("opus", "b", metric="mel", value=2.0)
    path = tmp_path / JOURNAL
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(tmp_path) as journal:
        assert list(journal.results) == [("opus", "a")]
        journal.add("opus", "b", metric="mel", value=3.0)
    with Journal(tmp_path) as journal:
        assert journal.results["opus", "b"].values == {"mel": 3.0}


def test_a_full_disk_loses_only_the_last_line(tmp_path):
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
        assert list(journal.results) == [("opus", "a"), ("opus", "c")]


def test_a_journal_cannot_be_opened_twice(tmp_path):
    with Journal(tmp_path), pytest.raises(ValueError, match="is in use by another command"):
        Journal(tmp_path)


def test_a_value_replaces_an_error():
    found = FileResult(errors={"pesq": "crashed"})
    found.apply({"metric": "pesq", "value": 3.0})
    assert (found.values, found.errors) == ({"pesq": 3.0}, {})


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
def test_an_invalid_line_is_skipped(tmp_path, line):
    with Journal(tmp_path) as journal:
        journal.add("a", "k", failed="why")
    with (tmp_path / JOURNAL).open("a") as file:
        file.write(line + "\n")
    for value in (1.0, 2.0):
        with Journal(tmp_path) as journal:
            journal.add("b", "k", metric="mel", value=value)
    with Journal(tmp_path) as journal:
        assert journal.results == {("a", "k"): FileResult(failed="why"), ("b", "k"): FileResult(values={"mel": 2.0})}
