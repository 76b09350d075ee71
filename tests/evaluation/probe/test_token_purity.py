"""Purity and mutual information against scikit-learn and constructed codes."""

import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from sctok.evaluation.probe.token_purity import purity_and_nmi, token_purity


@pytest.mark.parametrize("seed", range(5))
def test_they_are_those_of_scikit_learn(seed):
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, 30, 400) * 7
    classes = (tokens // 7 + generator.integers(0, 8, 400)) % 6
    table = contingency_matrix(classes, tokens)
    purity, nmi = purity_and_nmi(tokens, classes)
    assert purity == pytest.approx(table.max(axis=0).sum() / 400)
    assert nmi == pytest.approx(normalized_mutual_info_score(classes, tokens))


def test_a_code_for_each_class_is_pure():
    clips = [np.full((4, 8), label) for label in (0, 1, 2, 0, 1, 2)]
    found = token_purity(clips, ["a", "b", "c", "a", "b", "c"])
    assert (found.purity, found.nmi) == (1.0, pytest.approx(1.0))
    assert found.majority == pytest.approx(1 / 3)


def test_one_code_for_all_knows_nothing():
    found = token_purity([np.zeros((4, 8), np.int64)] * 4, ["a", "a", "a", "b"])
    assert (found.purity, found.majority, found.nmi) == (0.75, 0.75, 0.0)


def test_a_code_for_each_clip_is_as_pure_when_classes_are_shuffled():
    clips = [np.full((3, 2), clip) for clip in range(40)]
    found = token_purity(clips, ["a", "b"] * 20)
    assert found.purity == found.shuffled_purity == 1.0
    assert found.nmi == pytest.approx(found.shuffled_nmi)


def test_classes_weigh_by_their_tokens():
    found = token_purity([np.zeros((30, 1), np.int64), np.zeros((10, 1), np.int64)], ["long", "short"])
    assert found.purity == 0.75


def test_clips_without_labels_are_refused():
    with pytest.raises(ValueError, match="2 clips and 1 labels"):
        token_purity([np.zeros((1, 1), np.int64)] * 2, ["a"])
    with pytest.raises(ValueError, match="there must be tokens"):
        token_purity([np.zeros((0, 1), np.int64)], ["a"])
