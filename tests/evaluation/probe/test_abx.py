"""ABX on items with known answers, and compared with its definition."""

import itertools

import numpy as np
import pytest

from sctok.audio.inputs.sources import AudioItem
from sctok.evaluation.probe.abx import AbxItem, abx_error, dtw_distances, item_frames, read_abx_items

CLIP = AudioItem("clip", "clip.wav")


def item(label, speaker="", context="", start=None, end=None):
    return AbxItem(CLIP, label, speaker, context, start, end)


def warped(a, b):
    """Return the distance of frames (n, D), (m, D) by trying all paths for the least sum."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
    angles = np.arccos(np.clip(unit[0] @ unit[1].T, -1, 1)) / np.pi
    end = (len(a) - 1, len(b) - 1)

    def paths(cell):
        if cell == end:
            yield [cell]
            return
        for step in ((1, 0), (0, 1), (1, 1)):
            after = (cell[0] + step[0], cell[1] + step[1])
            if after[0] <= end[0] and after[1] <= end[1]:
                yield from ([cell, *rest] for rest in paths(after))

    sums = [(sum(angles[cell] for cell in path), len(path)) for path in paths((0, 0))]
    cost, length = min(sums)
    return cost / length


def errors_by_hand(items, distances, mode):
    """Return the ABX error by its definition, triple by triple."""
    cells = {}
    for a, b, x in itertools.permutations(range(len(items)), 3):
        one, two, three = items[a], items[b], items[x]
        if one.label != three.label or one.label == two.label or one.speaker != two.speaker:
            continue
        if len({one.context, two.context, three.context}) > 1 or (one.speaker == three.speaker) != (mode == "within"):
            continue
        wrong = float(distances[x, a] > distances[x, b]) + 0.5 * (distances[x, a] == distances[x, b])
        key = (one.label, two.label, one.speaker, three.speaker, one.context)
        cells.setdefault(key, []).append(wrong)
    pairs = {}
    for key, wrongs in cells.items():
        pairs.setdefault(key[:2], []).append(np.mean(wrongs))
    return np.mean([np.mean(each) for each in pairs.values()]), sum(map(len, cells.values())), len(pairs)


def test_distances_equal_those_of_the_best_path():
    generator = np.random.default_rng(0)
    items = [generator.standard_normal((length, 3)).astype(np.float32) for length in (1, 2, 3, 4, 4, 1)]
    found = dtw_distances(items)
    expected = [[warped(a.astype(float), b.astype(float)) for b in items] for a in items]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(found, found.T)


def test_stretched_items_have_distance_zero():
    frames = np.eye(4, dtype=np.float32)
    found = dtw_distances([frames, np.repeat(frames, 3, axis=0), frames[::-1]])
    assert found[0, 1] == pytest.approx(0, abs=1e-6)
    assert found[0, 2] > 0.2


def test_the_distance_of_silence_is_one_half():
    found = dtw_distances([np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)])
    assert found[0, 1] == pytest.approx(0.5)


@pytest.mark.parametrize("mode", ["within", "across"])
def test_separate_classes_have_no_error(mode):
    items = [item(label, speaker) for label in "abc" for speaker in "xy" for _ in range(3)]
    same = np.array([[one.label == two.label for two in items] for one in items])
    assert abx_error(items, np.where(same, 0.1, 0.9).astype(np.float32), mode).error == 0
    assert abx_error(items, np.where(same, 0.9, 0.1).astype(np.float32), mode).error == 1
    found = abx_error(items, np.ones((18, 18), np.float32), mode)
    assert (found.error, found.standard_error, found.pairs, found.items) == (0.5, 0.0, 6, 18)


@pytest.mark.parametrize("mode", ["within", "across"])
@pytest.mark.parametrize("seed", range(4))
def test_errors_equal_the_definition_over_all_triples(seed, mode):
    generator = np.random.default_rng(seed)
    items = [item(*(generator.choice(list(names)) for names in ("abcd", "xyz", "pq"))) for _ in range(40)]
    distances = generator.integers(0, 6, (40, 40)).astype(np.float32)  # with ties
    found = abx_error(items, distances, mode)
    error, triples, pairs = errors_by_hand(items, distances, mode)
    assert (found.error, found.triples, found.pairs) == (pytest.approx(error), triples, pairs)


def test_large_groups_are_compared_in_parts(monkeypatch):
    generator = np.random.default_rng(0)
    items = [item(label) for label in "ab" for _ in range(20)]
    distances = generator.random((40, 40), np.float32)
    whole = abx_error(items, distances, "within")
    monkeypatch.setattr("sctok.evaluation.probe.abx._MAX_TRIPLES", 500)
    assert abx_error(items, distances, "within") == whole


def test_random_distances_are_at_chance():
    items = [item(label) for label in "abcdef" for _ in range(20)]
    found = abx_error(items, np.random.default_rng(0).random((120, 120), np.float32), "within")
    assert found.error == pytest.approx(0.5, abs=0.03)
    assert 0 < found.standard_error < 0.03


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(None, None, [0, 1, 2, 3, 4]), (0.2, 0.75, [1, 2, 3]), (0.55, None, [3, 4]), (0.41, 0.42, [2]), (0.99, 3.0, [4])],
)
def test_the_middle_of_selected_frames_lies_in_the_item(start, end, expected):
    frames = np.arange(5, dtype=np.float32)[:, None]
    assert item_frames(frames, 0.2, item("a", start=start, end=end))[:, 0].tolist() == expected


def test_an_item_after_the_end_is_rejected():
    with pytest.raises(ValueError, match="starts at 2 s, after the 1 s"):
        item_frames(np.zeros((5, 1), np.float32), 0.2, item("a", start=2.0))


@pytest.mark.parametrize(
    ("items", "mode", "message"),
    [
        ([item("a"), item("b")], "within", "two items of a class"),
        ([item("a", "x"), item("a", "x"), item("b", "x")], "across", "with two speakers"),
        ([item("a", "x", "p"), item("a", "x", "q"), item("b", "x", "p")], "within", "two items of a class"),
    ],
)
def test_items_without_triples_are_rejected(items, mode, message):
    with pytest.raises(ValueError, match=message):
        abx_error(items, np.zeros((len(items), len(items)), np.float32), mode)


def test_too_many_items_are_rejected(monkeypatch):
    monkeypatch.setattr("sctok.evaluation.probe.abx.MAX_ITEMS", 2)
    with pytest.raises(ValueError, match="got 3 items, but ABX compares 1 to 2"):
        dtw_distances([np.ones((1, 2), np.float32)] * 3)


def test_unusable_rows_are_named(tmp_path):
    (tmp_path / "a.wav").touch()
    rows = ["path,label,start,end,speaker", "a.wav,a,0.1,0.5,x", "a.wav,a,0.5,0.1,x", "a.wav,,0,1,x", "b.wav,a,0,1,x"]
    (tmp_path / "items.csv").write_text("\n".join([*rows, "a.wav,a,soon,1,x", "a.wav,b,,,x", ",b,,,x"]))
    items, rejected = read_abx_items(tmp_path / "items.csv")
    assert [(each.label, each.speaker, each.start, each.end) for each in items] == [
        ("a", "x", 0.1, 0.5),
        ("b", "x", None, None),
    ]
    assert [each.source for each in rejected] == ["row 2", "row 3", "row 4", "row 5", "row 7"]
    reasons = ["before its start", "no label", "does not exist", "'soon' for start", "no path"]
    assert all(reason in each.reason for reason, each in zip(reasons, rejected, strict=True))


@pytest.mark.parametrize(
    ("text", "message"), [("path,start\na.wav,1", "no column 'label'"), ("path,label\n", "no usable item")]
)
def test_a_table_without_items_is_rejected(tmp_path, text, message):
    (tmp_path / "items.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_abx_items(tmp_path / "items.csv")
