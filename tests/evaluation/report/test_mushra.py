"""Scoring of listening tests."""

import json

import numpy as np
import pytest
from scipy import stats

from sctok.evaluation.report.mushra import MushraConfig, exclusion_reason, load_ratings, mean_interval, score_ratings
from sctok.formats.files import FormatError

from .example_runs import ratings


def sessions(tmp_path, *contents):
    for index, content in enumerate(contents):
        (tmp_path / f"{index}.json").write_text(json.dumps(content))
    return load_ratings([tmp_path])


def means(scores, domain="all"):
    return {(r.role, r.codec): r.mean for r in scores.ratings if r.domain == domain}


def test_means_over_listeners_and_clips(tmp_path):
    found = sessions(
        tmp_path,
        ratings("Ana", {"reference": [100, 90], "opus": [70, 50]}),
        ratings("Bo", {"reference": [96, 94], "opus": [80, 40]}),
    )
    (scores,) = score_ratings(found)
    assert means(scores) == {("reference", "reference"): 95, ("codec", "opus"): 60}
    assert means(scores, "speech") == {("reference", "reference"): 98, ("codec", "opus"): 75}
    assert [rating.codec for rating in scores.ratings if rating.domain == "all"] == ["reference", "opus"]


def test_intervals_follow_students_t():
    values = [70, 80, 50, 66]
    mean, low, high = mean_interval(values, 0.95)
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    np.testing.assert_allclose((mean, low, high), (np.mean(values), *expected))


def test_one_rating_has_no_interval():
    assert mean_interval([40], 0.95) == (40, None, None)


@pytest.mark.parametrize(
    ("reference", "excluded"),
    [([89] + [90] * 5, True), ([89] + [90] * 6, False), ([0] * 3 + [100] * 17, False), ([0] * 4 + [100] * 16, True)],
)
def test_listeners_who_miss_the_hidden_reference_too_often_are_excluded(tmp_path, reference, excluded):
    """1 of 6 clips is more than 15 %, 1 of 7 is less, and 3 of 20 are exactly 15 %."""
    (session,) = sessions(tmp_path, ratings("Ana", {"reference": reference}))
    assert (exclusion_reason(session, MushraConfig()) is not None) == excluded


def test_excluded_listeners_are_named_and_do_not_count(tmp_path):
    found = sessions(
        tmp_path,
        ratings("Ana", {"reference": [100], "opus": [60]}),
        ratings("Cleo", {"reference": [20], "opus": [100]}),
    )
    (scores,) = score_ratings(found)
    assert means(scores)["codec", "opus"] == 60
    assert scores.listeners == ("Ana", "Cleo")
    assert [(e.listener, "1 of 1 clips" in e.reason) for e in scores.excluded] == [("Cleo", True)]


def test_a_test_with_only_excluded_listeners_has_no_ratings(tmp_path):
    (scores,) = score_ratings(sessions(tmp_path, ratings("Cleo", {"reference": [20], "opus": [100]})))
    assert scores.ratings == ()


def test_the_file_with_the_most_clips_of_a_session_counts(tmp_path):
    whole = ratings("Ana", {"reference": [100, 100], "opus": [60, 40]}, session="s")
    part = ratings("Ana", {"reference": [100], "opus": [60]}, session="s")
    (scores,) = score_ratings(sessions(tmp_path, part, whole, part))
    assert means(scores)["codec", "opus"] == 50
    assert scores.listeners == ("Ana",)


def test_listeners_with_equal_names_are_distinguished(tmp_path):
    one, other = (ratings("Ana", {"reference": [100]}, session=session) for session in ("aaa111", "bbb222"))
    (scores,) = score_ratings(sessions(tmp_path, one, other))
    assert scores.listeners == ("Ana (aaa111)", "Ana (bbb222)")


def test_different_tests_are_scored_separately(tmp_path):
    one, other = (ratings("Ana", {"reference": [100]}, test=test) for test in ("t1", "t2"))
    assert [scores.test for scores in score_ratings(sessions(tmp_path, one, other))] == ["t1", "t2"]


def _changed(**change):
    return {**ratings("Ana", {"reference": [100]}), **change}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "not a file that sctok writes"),
        (_changed(format_version=2), "version 2"),
        (_changed(trials=None), "damaged"),
        (ratings("Ana", {"reference": [101]}), "not between 0 and 100"),
        (ratings("Ana", {"reference": [float("nan")]}), "not between 0 and 100"),
        (_changed(trials=[{"clip": "a", "domain": "b", "ratings": [{"role": "judge", "score": 1}]}]), "'judge'"),
        (_changed(trials=ratings("Ana", {"reference": [100]})["trials"] * 2), "rated twice"),
    ],
)
def test_damaged_ratings_are_named(tmp_path, content, message):
    with pytest.raises(FormatError, match=message) as error:
        sessions(tmp_path, content)
    assert "0.json" in str(error.value)


def test_a_folder_without_ratings_is_rejected(tmp_path):
    with pytest.raises(FormatError, match=r"no \.json files"):
        load_ratings([tmp_path])


@pytest.mark.parametrize("change", [{"least_reference": 101}, {"most_misses": -0.1}, {"confidence": 1}])
def test_values_out_of_range_are_rejected(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        MushraConfig(**change)
