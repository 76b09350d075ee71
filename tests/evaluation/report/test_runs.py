"""Reading of run folders, and tables of scores."""

import json

import pytest

from sctok.evaluation.report.runs import failures, load_run, number
from sctok.evaluation.report.tables import decimals, record_table, score_tables
from sctok.formats.files import FormatError

from .example_runs import write_run


def change_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def cells(table, column):
    index = [c.label for c in table.columns].index(column)
    return {row[0].text: row[index] for row in table.rows}


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "run", audio=False)


def test_a_table_for_all_domains_and_one_for_each(folder):
    tables = score_tables(load_run(folder))
    assert [table.caption for table in tables] == ["All domains, 3 files", "Speech, 2 files", "Music, 1 file"]
    assert [column.label for column in tables[0].columns] == [
        "codec", "bit rate", "tokens", "visqol", "mel_dac", "encoding", "decoding",
    ]  # fmt: skip


def test_a_single_domain_has_no_separate_table(tmp_path):
    folder = write_run(tmp_path / "run", files=(("a", "speech"), ("b", "speech")), audio=False)
    assert len(score_tables(load_run(folder))) == 1


def test_cells_show_means_intervals_and_rates(folder):
    table = score_tables(load_run(folder))[0]
    cell = cells(table, "visqol")["opus-6"]
    assert (cell.text, cell.interval, cell.value) == ("3.00", "2.90 to 3.20", 3.0)
    assert cells(table, "bit rate")["opus-12"].text == "12.3"
    assert cells(table, "tokens")["opus-12"].text == "–"


@pytest.mark.parametrize("column", ["visqol", "mel_dac"])
def test_the_best_value_is_marked_in_either_direction(folder, column):
    best = {name for name, cell in cells(score_tables(load_run(folder))[0], column).items() if cell.best}
    assert best == {"opus-12"}


def test_anchors_are_never_the_best(tmp_path):
    codecs = (("original", "original", 256.0, 5.0), ("tiny", "tiny", 0.6, 2.0), ("opus-6", "opus:6", 6.0, 3.0))
    table = score_tables(load_run(write_run(tmp_path / "run", codecs=codecs, audio=False)))[0]
    assert {name for name, cell in cells(table, "visqol").items() if cell.best} == {"opus-6"}


def test_missing_and_failed_values_are_shown(folder):
    def change(summary):
        missing = {"mean": None, "low": None, "high": None, "n": 0, "failed": 3}
        next(e for e in summary if (e["codec"], e["domain"], e["metric"]) == ("tiny", "all", "visqol")).update(missing)
        summary[:] = [e for e in summary if (e["codec"], e["domain"]) != ("opus-12", "music")]

    change_json(folder / "summary.json", change)
    tables = score_tables(load_run(folder))
    failed = cells(tables[0], "visqol")["tiny"]
    assert (failed.text, failed.note) == ("–", "3 of 3 failed")
    assert cells(tables[2], "visqol")["opus-12"].text == "–"


def test_metrics_of_the_summary_only_are_shown(folder):
    change_json(
        folder / "summary.json",
        lambda rows: rows.append({"codec": "tiny", "domain": "all", "metric": "mel_dac_median", "mean": 1.0, "n": 3}),
    )
    table = score_tables(load_run(folder))[0]
    assert ("mel_dac_median", "lower") in {(column.label, column.better) for column in table.columns}


def test_failures_name_codec_file_and_reason(folder):
    text = (folder / "scores.csv").read_text().splitlines()
    text[1] += "visqol: killed"
    (folder / "scores.csv").write_text("\n".join(text))
    assert failures(load_run(folder)) == [{"codec": "tiny", "key": "speech/one", "error": "visqol: killed"}]


@pytest.mark.parametrize("missing", ["summary.json", "scores.csv"])
def test_an_unfinished_run_has_a_note(folder, missing):
    (folder / missing).unlink()
    assert any(missing in note for note in load_run(folder).notes)


def test_an_empty_run_has_a_note(tmp_path):
    assert "empty" in load_run(write_run(tmp_path / "run", files=(), audio=False)).notes[0]


def test_a_folder_with_only_a_probe_is_read(tmp_path):
    (tmp_path / "probe.json").write_text(json.dumps({"format": "sctok-probe", "format_version": 1, "tasks": []}))
    run = load_run(tmp_path)
    assert run.probe is not None
    assert run.codecs == ()


def test_a_folder_without_a_run_is_rejected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither run\.json nor probe\.json"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", {"format": "sctok-extraction", "format_version": 1}, "not a file that sctok writes"),
        ("run.json", {"format": "sctok-evaluation", "format_version": 2}, "version 2"),
        (
            "run.json",
            {"format": "sctok-evaluation", "format_version": 1},
            "files is not a list of entries with key and domain",
        ),
        ("run.json", 3, "not a file that sctok writes"),
        ("summary.json", {"rows": 3}, "not a list of records"),
        ("summary.json", [{"codec": "a"}], "not a list of records"),
        ("probe.json", {"format": "sctok-probe", "format_version": 9}, "version 9"),
    ],
)
def test_other_versions_and_damaged_files_are_named(folder, name, content, message):
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(FormatError, match=message) as error:
        load_run(folder)
    assert name in str(error.value)


@pytest.mark.parametrize(
    "damage",
    [
        {"files": None},
        {"files": [{"key": 3, "domain": ""}]},
        {"codecs": [{"name": "a", "spec": None}]},
        {"metrics": ["a"]},
        {"settings": "x"},
        {"created": 5},
        "nonsense",
    ],
)
def test_a_damaged_description_is_named_with_a_remedy(folder, damage):
    path = folder / "run.json"
    path.write_text(damage if isinstance(damage, str) else json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(FormatError, match=r"run\.json is damaged .*restore it, or delete the folder .*/run and run"):
        load_run(folder)


def test_a_truncated_row_of_scores_is_rejected(folder):
    text = (folder / "scores.csv").read_text()
    (folder / "scores.csv").write_text(text[: len(text) - 40])
    with pytest.raises(FormatError, match="line 10"):
        load_run(folder)


@pytest.mark.parametrize(("value", "expected"), [("1.5", 1.5), ("", None), (None, None), ("nan", None), ("inf", None)])
def test_numbers_are_read_from_text(value, expected):
    assert number(value) == expected


@pytest.mark.parametrize(("largest", "expected"), [(3000.0, 0), (256.0, 1), (12.3, 2), (0.5, 3), (0.01, 4), (None, 4)])
def test_decimals_follow_the_largest_value(largest, expected):
    assert decimals([None, largest]) == expected


def test_a_table_of_records_has_all_their_keys():
    table = record_table(
        "Tokens", [{"codebook": "a", "stability": {"mp3": 0.5}}, {"codebook": "b", "classes": [1, 2.5]}]
    )
    assert [column.label for column in table.columns] == ["codebook", "stability mp3", "classes"]
    assert [[cell.text for cell in row] for row in table.rows] == [["a", "0.500", "–"], ["b", "–", "1, 2.5"]]
