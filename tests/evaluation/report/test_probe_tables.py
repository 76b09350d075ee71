"""Tables of probe results."""

from sctok.evaluation.report.tables import probe_part


def shown(table):
    return [column.label for column in table.columns], [[cell.text for cell in row] for row in table.rows]


def test_the_main_result_comes_first_and_lists_are_left_out():
    task = {"clips": 40, "task": "esc-50", "accuracy": 0.5, "fold_accuracies": [0.4, 0.6], "representation": "semantic"}
    (table,) = probe_part({"tasks": [task]}).tables
    assert shown(table) == (["task", "representation", "accuracy", "clips"], [["esc-50", "semantic", "0.500", "40"]])


def test_stability_is_a_separate_table():
    row = {
        "task": "esc",
        "stream": "semantic",
        "usage": 0.9,
        "stability": {"shift": {"same": 0.8}, "mp3": {"same": 0.5}},
    }
    tokens, stability = probe_part({"tokens": [row]}).tables
    assert shown(tokens)[0] == ["task", "stream", "usage"]
    assert shown(stability)[1] == [["esc", "semantic", "shift", "0.800"], ["esc", "semantic", "mp3", "0.500"]]


def test_notes_and_failures_are_included():
    part = probe_part(
        {"notes": [{"task": "esc", "note": "few clips"}], "errors": [{"task": "gtzan", "reason": "one class"}]}
    )
    assert part.notes == ("esc: few clips", "The probe has no results yet.")
    assert shown(part.failures)[1] == [["gtzan", "one class"]]


def test_without_a_probe_there_are_no_tables():
    part = probe_part(None)
    assert (part.tables, part.notes, part.failures) == ((), (), None)
