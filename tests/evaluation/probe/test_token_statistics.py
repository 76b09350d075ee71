"""Token statistics against closed forms and counts by hand."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sctok.evaluation.probe.token_statistics import cross_coded_bits, entropy_bits, run_lengths, token_statistics

clip_lists = st.lists(
    st.tuples(st.integers(1, 6), st.integers(1, 4)).flatmap(
        lambda shape: arrays(np.int64, shape, elements=st.integers(0, 4))
    ),
    min_size=1,
    max_size=5,
)


def column(*tokens):
    return np.array(tokens, np.int64)[:, None]


def test_uniform_tokens_need_all_the_bits():
    found = token_statistics([np.arange(64).reshape(8, 8)], 64, 50.0)
    assert (found.used, found.usage, found.tokens, found.clips) == (64, 1.0, 64, 1)
    assert found.entropy == pytest.approx(6)
    assert found.perplexity == pytest.approx(64)
    assert found.bits_per_second == pytest.approx(300)
    assert found.nominal_bits_per_second == pytest.approx(300)


def test_a_single_token_needs_none():
    found = token_statistics([np.full((10, 4), 3)], 16, 25.0)
    assert (found.entropy, found.perplexity, found.bits_per_second, found.bigram_bits_per_second) == (0, 1, 0, 0)
    assert (found.used, found.usage) == (1, 1 / 16)
    assert found.nominal_bits_per_second == 100


def test_a_cycle_is_known_from_the_token_before():
    found = token_statistics([column(*range(5), *range(5), *range(5))], 5, 50.0)
    assert found.entropy == pytest.approx(math.log2(5))
    assert found.conditional_entropy == pytest.approx(0, abs=1e-12)
    assert found.bigram_bits_per_second == pytest.approx(0, abs=1e-9)


def test_rows_that_stay_are_known_from_the_step_before_alone():
    rows = np.random.default_rng(0).integers(0, 16, (1, 512))
    found = token_statistics([np.repeat(rows, 20, axis=0)], 16, 50.0)
    assert found.conditional_entropy_time == pytest.approx(0, abs=1e-9)
    assert found.conditional_entropy > 3
    assert found.run_length == 20
    assert found.repeats == 1


def test_independent_tokens_gain_nothing_from_the_token_before():
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


def test_a_code_costs_more_than_the_entropy():
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
        for place, b in enumerate(clip):
            unigram -= math.log2(single[b])
            behind = {pair: count for pair, count in pairs.items() if place and pair[0] == clip[place - 1]}
            number, kinds = sum(behind.values()), len(behind)
            seen = behind.get((clip[place - 1], b), 0) if place else 0
            bigram -= math.log2((seen + kinds * single[b]) / (number + kinds) if number else single[b])
    return unigram, bigram


@settings(max_examples=40, deadline=None)
@given(clip_lists.filter(lambda clips: len(clips) > 1))
def test_codes_are_those_of_the_definition(clips):
    flat = [clip.reshape(-1) for clip in clips]
    total = sum(map(len, flat))
    lists = [clip.tolist() for clip in flat]
    one, other = by_hand(lists[::2], lists[1::2], 5), by_hand(lists[1::2], lists[::2], 5)
    found = cross_coded_bits(flat, 5)
    np.testing.assert_allclose(found, [(one[0] + other[0]) / total, (one[1] + other[1]) / total], rtol=1e-9)


@settings(max_examples=40, deadline=None)
@given(clip_lists)
def test_entropies_are_those_of_counted_pairs(clips):
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
def test_run_lengths_are_those_of_walking_along_the_rows(clips):
    runs = sum(1 + sum(a != b for a, b in pairwise(row)) for clip in clips for row in clip.T)
    assert run_lengths(clips)[0] == pytest.approx(sum(clip.size for clip in clips) / runs)


def test_one_step_repeats_nothing():
    assert run_lengths([np.zeros((1, 8), np.int64)]) == (1.0, None)


def test_one_clip_has_no_other_to_learn_a_code_from():
    found = token_statistics([column(0, 1, 1)], 2, 1.0)
    assert (found.coded, found.coded_bigram, found.coded_bits_per_second) == (None, None, None)


@pytest.mark.parametrize("clips", [[], [np.empty((0, 8), np.int64)], [column(0, 9)], [column(-1)]])
def test_what_are_no_tokens_is_refused(clips):
    with pytest.raises(ValueError, match=r"expected tokens in \[0, 9\)"):
        token_statistics(clips, 9, 50.0)


def test_entropy_of_counts():
    assert entropy_bits(np.array([1, 1, 2, 0])) == pytest.approx(1.5)
