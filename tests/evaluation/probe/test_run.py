"""The HEAR classifier on classes of known separability, and labels and folds of tasks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sctok.audio.inputs.sources import AudioItem
from sctok.evaluation.probe.labels import LabelledClip, assign_folds, fold_numbers, read_task, task_faults
from sctok.evaluation.probe.mlp import (
    GRID,
    GridPoint,
    LabelledVectors,
    MlpConfig,
    build_network,
    draw_grid,
    probe_folds,
    train_network,
)

QUICK = MlpConfig(hidden=64, grid_points=2, batch=32, max_epochs=60, patience=8)


def clip(label, group="", fold=""):
    return LabelledClip(AudioItem("key", "path"), label, group, fold=fold)


def gaussians(clips, classes, width=16, distance=6.0, seed=0):
    """Return vectors around the corners of a simplex, their classes and folds."""
    labels = np.arange(clips) % classes
    noise = np.random.default_rng(seed).standard_normal((clips, width))
    vectors = noise + distance * np.eye(width)[labels]
    return vectors.astype(np.float32), labels, np.arange(clips) // classes % 5


def test_separable_classes_are_classified_without_errors():
    found = probe_folds(*gaussians(120, 4), QUICK)
    assert (found.accuracy, found.standard_error, found.fold_standard_error) == (1.0, 0.0, 0.0)
    assert found.fold_accuracies == [1.0] * 5


def test_shuffled_labels_are_at_chance():
    vectors, labels, folds = gaussians(400, 4)
    shuffled = np.random.default_rng(1).permutation(labels)
    found = probe_folds(vectors, shuffled, folds, QUICK)
    deviation = np.sqrt(0.25 * 0.75 / 400)
    assert abs(found.accuracy - 0.25) < 3.5 * deviation
    assert found.standard_error == pytest.approx(deviation, rel=0.1)


def test_the_tested_fold_is_not_used_in_training():
    """Vectors encode the class differently in each fold; a network trained on the tested fold would be perfect."""
    _, labels, folds = gaussians(300, 3)
    vectors = 6 * np.eye(16)[folds * 3 + labels].astype(np.float32)
    assert probe_folds(vectors, labels, folds, QUICK).accuracy < 0.75


def test_results_are_reproducible_by_seed():
    vectors, labels, folds = gaussians(120, 4, distance=1.0)
    one, two = (probe_folds(vectors, labels, folds, QUICK) for _ in range(2))
    np.testing.assert_array_equal(one.correct, two.correct)
    assert (one.chosen, one.epochs, one.validation) == (two.chosen, two.epochs, two.validation)
    other = probe_folds(vectors, labels, folds, replace(QUICK, seed=1))
    assert (other.chosen, other.validation) != (one.chosen, one.validation)


def test_the_global_generator_is_not_changed():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    probe_folds(*gaussians(60, 2), QUICK)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_grid_is_searched_in_the_first_or_in_every_fold():
    vectors, labels, folds = gaussians(100, 4, distance=1.0)
    tried = []

    def watched(train, valid, classes, point, config, seed):
        tried.append(point)
        return train_network(train, valid, classes, point, config, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sctok.evaluation.probe.mlp.train_network", watched)
        first = probe_folds(vectors, labels, folds, QUICK)
        assert len(tried) == 2 + 4
        assert len(set(first.chosen)) == 1
        tried.clear()
        probe_folds(vectors, labels, folds, replace(QUICK, search="every"))
        assert len(tried) == 2 * 5


def test_training_returns_the_network_of_the_best_validation():
    vectors, labels, _ = gaussians(200, 4, distance=1.5)
    x, y = torch.from_numpy(vectors), torch.from_numpy(labels)
    train, valid = LabelledVectors(x[:100], y[:100]), LabelledVectors(x[100:], y[100:])
    found = train_network(train, valid, 4, GRID[0], QUICK, 0)
    assert float((found.model(valid.x).argmax(1) == valid.y).float().mean()) == pytest.approx(found.accuracy)
    assert found.epoch % QUICK.validate_every == 0


def test_the_grid_has_sixteen_points_drawn_without_repeats():
    assert len(set(GRID)) == 16
    assert sorted(draw_grid(16, 5)) == sorted(GRID)
    assert draw_grid(8, 0) == draw_grid(16, 0)[:8]


@pytest.mark.parametrize("point", [GridPoint(1, 1e-3, "uniform"), GridPoint(2, 1e-3, "normal")])
def test_networks_match_the_protocol(point):
    torch.manual_seed(0)
    model = build_network(300, 7, point, MlpConfig())
    names = [type(layer).__name__ for layer in model]
    assert names == ["Linear", "BatchNorm1d", "Dropout", "ReLU"] * point.layers + ["Linear"]
    assert model[0].weight.shape == (1024, 300)
    assert model[0].weight.std().item() == pytest.approx(np.sqrt(2 / 1324), rel=0.01)
    assert model[-1].weight.std().item() == pytest.approx(np.sqrt(2) * np.sqrt(2 / 1031), rel=0.05)


def test_dependent_clips_have_a_larger_standard_error():
    found = probe_folds(*gaussians(120, 4, distance=1.0), QUICK)
    alone = found.group_standard_error(np.arange(120).astype(str))
    assert alone == pytest.approx(found.standard_error)
    assert found.group_standard_error(np.where(found.correct, "a", "b")) > 3 * alone


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folds": 2}, "at least 3"),
        ({"grid_points": 17}, "1 to 16"),
        ({"search": "last"}, "'last'"),
        ({"hidden": 0}, "must be positive"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_values_out_of_range_are_rejected(change, message):
    with pytest.raises(ValueError, match=message):
        MlpConfig(**change)


def test_features_that_are_not_finite_are_rejected():
    vectors, labels, folds = gaussians(40, 2)
    vectors[3, 1] = np.nan
    with pytest.raises(ValueError, match="1 clips have features that are not finite"):
        probe_folds(vectors, labels, folds, QUICK)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), min_size=1, max_size=40), st.integers(3, 6))
def test_groups_are_not_split_and_no_fold_is_empty(clips, folds):
    labels, groups = [label for label, _ in clips], [str(group) for _, group in clips]
    found = assign_folds(labels, groups, folds)
    assert len({(group, fold) for group, fold in zip(groups, found, strict=True)}) == len(set(groups))
    assert set(found) == set(range(min(folds, len(set(groups)))))


def test_classes_are_spread_evenly_over_folds():
    labels = ["a"] * 50 + ["b"] * 25 + ["c"] * 5
    found = assign_folds(labels, [str(i) for i in range(80)], 5)
    counts = [[np.sum((found == fold) & (np.array(labels) == label)) for label in "abc"] for fold in range(5)]
    assert counts == [[10, 5, 1]] * 5


def test_prescribed_folds_are_kept():
    clips = [clip("a", str(i), fold) for i, fold in enumerate("cabbca")]
    assert fold_numbers(clips, 5).tolist() == [2, 0, 1, 1, 2, 0]


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ([clip("a", "1", "x"), clip("b", "2", ""), clip("a", "3", "y"), clip("a", "4", "z")], "for every clip"),
        ([clip("a", "1", "x"), clip("b", "2", "y")], "at least 3 folds"),
        ([clip("a", "1", "x"), clip("b", "1", "y"), clip("b", "2", "z")], "group 1 is in the folds x and y"),
    ],
)
def test_invalid_prescribed_folds_are_rejected(clips, message):
    with pytest.raises(ValueError, match=message):
        fold_numbers(clips, 5)


def test_a_single_class_is_rejected():
    with pytest.raises(ValueError, match="all 9 clips are of the class 'a'"):
        task_faults([clip("a", str(i)) for i in range(9)], 5)


def test_fewer_groups_than_folds_are_rejected():
    with pytest.raises(ValueError, match="belong to 2 groups; a task needs at least 3"):
        task_faults([clip("ab"[i % 2], str(i % 2)) for i in range(9)], 5)


def test_limitations_of_a_task_are_named():
    clips = [clip("a", str(i % 4)) for i in range(8)] + [clip("b", "0"), clip("b", "0")]
    few, small, single = task_faults(clips, 5)
    assert few == "there are 4 groups, so 4 folds instead of 5"
    assert small == "classes with fewer clips than the 4 folds: b (2)"
    assert single == "classes with a single group, tested but never trained on: b"
    assert task_faults([clip("ab"[i % 2], str(i)) for i in range(20)], 5) == []


def test_a_folder_of_classes_is_read(tmp_path):
    for name in ("cat/1.wav", "cat/deep/1.wav", "dog/1.flac", "dog/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    task = read_task(tmp_path)
    assert [(each.label, each.group) for each in task.clips] == [
        ("cat", "cat/1"),
        ("cat", "cat/deep/1"),
        ("dog", "dog/1"),
    ]
    assert task.name == tmp_path.name
    assert [each.source for each in task.rejected] == ["empty"]


def test_unusable_rows_are_named(tmp_path):
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).touch()
    rows = ["path,label,group,domain", "a.wav,x,1,speech", "a.wav,x,1,speech", "a.wav,y,1,speech", "b.wav,,2,speech"]
    (tmp_path / "task.csv").write_text("\n".join([*rows, "c.wav,x,3,speech", "b.wav,y,,speech", ",y,4,speech"]))
    task = read_task(tmp_path / "task.csv")
    assert [(each.item.key, each.label, each.group) for each in task.clips] == [
        ("a.wav", "x", "1"),
        ("b.wav", "y", "b.wav"),
    ]
    assert (task.name, task.domain) == ("task", "speech")
    assert [(each.source, each.reason.partition(" (")[0]) for each in task.rejected] == [
        ("a.wav", "is repeated"),
        ("a.wav", "is repeated with the label x"),
        ("b.wav", "has no label"),
        ("c.wav", "does not exist"),
        ("row 7", "has no path"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'path'"),
        ("path,label\n", "no usable clip"),
        ("path,name\na.wav,b\n", "no column 'label'; its columns are path, name"),
        ("path,label\nmissing.wav,b\n", "missing.wav does not exist .* or to --audio"),
    ],
)
def test_a_table_without_clips_is_rejected(tmp_path, text, message):
    (tmp_path / "task.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_task(tmp_path / "task.csv")


def test_sources_that_are_not_tasks_are_rejected(tmp_path):
    (tmp_path / "a.wav").touch()
    with pytest.raises(ValueError, match="has no subfolders"):
        read_task(tmp_path)
    with pytest.raises(ValueError, match="neither a folder"):
        read_task(tmp_path / "a.wav")
    with pytest.raises(ValueError, match="does not exist"):
        read_task(tmp_path / "nowhere")
