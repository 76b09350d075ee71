"""Token statistics compared with closed forms, direct counts and scikit-learn."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from sctok.evaluation.probe.token_statistics import (
    cross_coded_bits,
    entropy_bits,
    purity_and_nmi,
    run_lengths,
    token_purity,
    token_statistics,
)

clip_lists = st.lists(
    st.tuples(st.integers(1, 6), st.integers(1, 4)).flatmap(
        lambda shape: arrays(np.int64, shape, elements=st.integers(0, 4))
    ),
    min_size=1,
    max_size=5,
)


def column(*tokens):
    return np.array(tokens, np.int64)[:, None]


def test_uniform_tokens_have_maximum_entropy():
    found = token_statistics([np.arange(64).reshape(8, 8)], 64, 50.0)
    assert (found.used, found.usage, found.tokens, found.clips) == (64, 1.0, 64, 1)
    assert found.entropy == pytest.approx(6)
    assert found.perplexity == pytest.approx(64)
    assert found.bits_per_second == pytest.approx(300)
    assert found.nominal_bits_per_second == pytest.approx(300)


def test_a_single_token_has_no_entropy():
    found = token_statistics([np.full((10, 4), 3)], 16, 25.0)
    assert (found.entropy, found.perplexity, found.bits_per_second, found.bigram_bits_per_second) == (0, 1, 0, 0)
    assert (found.used, found.usage) == (1, 1 / 16)
    assert found.nominal_bits_per_second == 100


def test_a_cycle_is_predicted_by_the_previous_token():
    found = token_statistics([column(*range(5), *range(5), *range(5))], 5, 50.0)
    assert found.entropy == pytest.approx(math.log2(5))
    assert found.conditional_entropy == pytest.approx(0, abs=1e-12)
    assert found.bigram_bits_per_second == pytest.approx(0, abs=1e-9)


def test_constant_rows_are_predicted_only_by_the_previous_step():
    rows = np.random.default_rng(0).integers(0, 16, (1, 512))
    found = token_statistics([np.repeat(rows, 20, axis=0)], 16, 50.0)
    assert found.conditional_entropy_time == pytest.approx(0, abs=1e-9)
    assert found.conditional_entropy > 3
    assert found.run_length == 20
    assert found.repeats == 1


def test_independent_tokens_are_not_predicted_by_the_previous_token():
    tokens = np.random.default_rng(0).integers(0, 4, (100_000, 1))
    found = token_statistics([tokens[:50_000], tokens[50_000:]], 4, 50.0)
    assert found.conditional_entropy == pytest.approx(2, abs=1e-3)
    assert found.coded == pytest.approx(2, abs=1e-3)
    assert found.coded_bigram == pytest.approx(2, abs=1e-3)


def test_a_code_learns_a_cycle_from_the_other_clips():
    cycle = column(*(list(range(8)) * 100))
    found = token_statistics([cycle, cycle], 8, 50.0)
    assert found.coded == pytest.approx(3, abs=0.02)
    assert found.coded_bigram < 0.2


def test_a_code_costs_at_least_the_entropy():
    clips = list(np.random.default_rng(1).zipf(1.6, (20, 50, 1)).clip(max=255))
    found = token_statistics(clips, 256, 50.0)
    assert found.coded > found.entropy
    assert found.coded_bigram > found.conditional_entropy


def by_hand(train, test, size):
    """Return the bits of test clips by the definition, pair by pair."""
    counts = Counter(token for clip in train for token in clip)
    total, types = sum(counts.values()), len(counts)
    pairs = Counter((a, b) for clip in train for a, b in pairwise(clip))
    single = {b: (counts[b] + types / size) / (total + types) for b in range(size)}
    unigram = bigram = 0.0
    for clip in test:
        for index, b in enumerate(clip):
            unigram -= math.log2(single[b])
            followers = {pair: count for pair, count in pairs.items() if index and pair[0] == clip[index - 1]}
            number, kinds = sum(followers.values()), len(followers)
            seen = followers.get((clip[index - 1], b), 0) if index else 0
            bigram -= math.log2((seen + kinds * single[b]) / (number + kinds) if number else single[b])
    return unigram, bigram


@settings(max_examples=40, deadline=None)
@given(clip_lists.filter(lambda clips: len(clips) > 1))
def test_code_lengths_equal_the_definition(clips):
    flat = [clip.reshape(-1) for clip in clips]
    total = sum(map(len, flat))
    lists = [clip.tolist() for clip in flat]
    one, other = by_hand(lists[::2], lists[1::2], 5), by_hand(lists[1::2], lists[::2], 5)
    found = cross_coded_bits(flat, 5)
    np.testing.assert_allclose(found, [(one[0] + other[0]) / total, (one[1] + other[1]) / total], rtol=1e-9)


@settings(max_examples=40, deadline=None)
@given(clip_lists)
def test_conditional_entropy_equals_counts_of_pairs(clips):
    found = token_statistics(clips, 5, 1.0)
    flat = [clip.reshape(-1).tolist() for clip in clips]
    pairs = Counter(pair for clip in flat for pair in pairwise(clip))
    number = sum(pairs.values())
    if not number:
        assert found.conditional_entropy is None
        return
    firsts = Counter(first for pair, count in pairs.items() for first in [pair[0]] * count)
    expected = -sum(count / number * math.log2(count / firsts[pair[0]]) for pair, count in pairs.items())
    assert found.conditional_entropy == pytest.approx(expected, abs=1e-9)
    assert found.entropy <= math.log2(5) + 1e-12


@settings(max_examples=40, deadline=None)
@given(clip_lists)
def test_run_lengths_equal_counts_along_the_rows(clips):
    runs = sum(1 + sum(a != b for a, b in pairwise(row)) for clip in clips for row in clip.T)
    assert run_lengths(clips)[0] == pytest.approx(sum(clip.size for clip in clips) / runs)


def test_a_single_step_has_no_repeats():
    assert run_lengths([np.zeros((1, 8), np.int64)]) == (1.0, None)


def test_a_single_clip_has_no_code():
    found = token_statistics([column(0, 1, 1)], 2, 1.0)
    assert (found.coded, found.coded_bigram, found.coded_bits_per_second) == (None, None, None)


@pytest.mark.parametrize("clips", [[], [np.empty((0, 8), np.int64)], [column(0, 9)], [column(-1)]])
def test_missing_and_invalid_tokens_are_rejected(clips):
    with pytest.raises(ValueError, match=r"expected tokens in \[0, 9\)"):
        token_statistics(clips, 9, 50.0)


def test_the_entropy_of_counts():
    assert entropy_bits(np.array([1, 1, 2, 0])) == pytest.approx(1.5)


@pytest.mark.parametrize("seed", range(5))
def test_purity_and_nmi_equal_scikit_learn(seed):
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


def test_a_single_code_has_no_information():
    found = token_purity([np.zeros((4, 8), np.int64)] * 4, ["a", "a", "a", "b"])
    assert (found.purity, found.majority, found.nmi) == (0.75, 0.75, 0.0)


def test_a_code_for_each_clip_stays_pure_with_shuffled_classes():
    clips = [np.full((3, 2), clip) for clip in range(40)]
    found = token_purity(clips, ["a", "b"] * 20)
    assert found.purity == found.shuffled_purity == 1.0
    assert found.nmi == pytest.approx(found.shuffled_nmi)


def test_classes_are_weighted_by_their_tokens():
    found = token_purity([np.zeros((30, 1), np.int64), np.zeros((10, 1), np.int64)], ["long", "short"])
    assert found.purity == 0.75


def test_clips_without_labels_are_rejected():
    with pytest.raises(ValueError, match="got 2 clips and 1 labels"):
        token_purity([np.zeros((1, 1), np.int64)] * 2, ["a"])
    with pytest.raises(ValueError, match="expected tokens"):
        token_purity([np.zeros((0, 1), np.int64)], ["a"])
