"""How much of a codebook is used, how many bits a second its tokens really need, and how long they stay the same."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class TokenStatistics:
    """What the tokens of some clips are like. Entropies are in bits per token.

    usage: share of the codebook that occurs. entropy: of the relative frequencies; perplexity is 2 to its power.
    conditional_entropy: of a token given the one before it in the sequence, where the frequency rows of a step follow
    each other; conditional_entropy_time: given the token of the same row one step earlier. These three are estimates
    from counts, too low on average where tokens are few beside the size of the codebook (for pairs: its square).
    coded and coded_bigram: bits per token of a code whose frequencies (of tokens; of pairs in the sequence, by
    Witten and Bell's interpolation) are those of the other half of the clips: what a coder that does not know the
    clips needs, so an upper bound; None for a single clip.
    nominal_bits_per_second, bits_per_second, bigram_ and coded_bits_per_second: log2 of the size, entropy, the lower of
    the two conditional entropies, and the lower of the two codes, times the tokens per second.
    run_length: mean number of steps that a row keeps its token; repeats: share of steps that repeat the one before.
    """

    clips: int
    tokens: int
    size: int
    used: int
    usage: float
    entropy: float
    perplexity: float
    conditional_entropy: float | None
    conditional_entropy_time: float | None
    coded: float | None
    coded_bigram: float | None
    nominal_bits_per_second: float
    bits_per_second: float
    bigram_bits_per_second: float | None
    coded_bits_per_second: float | None
    run_length: float
    repeats: float | None


def token_statistics(clips: Sequence[Tokens], size: int, per_second: float) -> TokenStatistics:
    """Return statistics of the tokens of clips.

    Args:
        clips: int64 (T, R) each, R frequency rows of T steps, 0 <= token < size.
        size: rows of the codebook.
        per_second: tokens of the stream in a second.

    Raises:
        ValueError: there are no tokens, or some are out of range.
    """
    flat = [each.reshape(-1) for each in clips]
    tokens = np.concatenate(flat) if flat else np.empty(0, np.int64)
    if not len(tokens) or not 0 <= tokens.min() <= tokens.max() < size:
        found = f"{tokens.min()} to {tokens.max()}" if len(tokens) else "none"
        raise ValueError(f"expected tokens in [0, {size}), found {found}")
    counts = np.bincount(tokens, minlength=size)
    entropy = entropy_bits(counts)
    sequence = conditional_entropy(_pairs([(each[:-1], each[1:]) for each in flat]), size)
    time = conditional_entropy(_pairs([(each[:-1], each[1:]) for each in clips]), size)
    coded, coded_bigram = cross_coded_bits(flat, size)
    known = [each for each in (sequence, time) if each is not None]
    codes = [each for each in (coded, coded_bigram) if each is not None]
    length, repeats = run_lengths(clips)
    used = int((counts > 0).sum())
    return TokenStatistics(
        clips=len(clips),
        tokens=len(tokens),
        size=size,
        used=used,
        usage=used / size,
        entropy=entropy,
        perplexity=2.0**entropy,
        conditional_entropy=sequence,
        conditional_entropy_time=time,
        coded=coded,
        coded_bigram=coded_bigram,
        nominal_bits_per_second=math.log2(size) * per_second,
        bits_per_second=entropy * per_second,
        bigram_bits_per_second=min(known) * per_second if known else None,
        coded_bits_per_second=min(codes) * per_second if codes else None,
        run_length=length,
        repeats=repeats,
    )


def entropy_bits(counts: NDArray[np.int64]) -> float:
    """Return the entropy in bits of relative frequencies, given counts of any shape with a sum above 0."""
    seen = counts[counts > 0].astype(np.float64)
    share = seen / seen.sum()
    return float(max(0.0, -(share * np.log2(share)).sum()))


def _pairs(parts: Sequence[tuple[Tokens, Tokens]]) -> tuple[Tokens, Tokens]:
    first = [before.reshape(-1) for before, _ in parts]
    second = [after.reshape(-1) for _, after in parts]
    return np.concatenate(first), np.concatenate(second)


def conditional_entropy(pairs: tuple[Tokens, Tokens], size: int) -> float | None:
    """Return the entropy in bits of the second of pairs (n,), (n,) given the first; None where there are no pairs."""
    first, second = pairs
    if not len(first):
        return None
    joint = np.unique(first * size + second, return_counts=True)[1]
    return max(0.0, entropy_bits(joint) - entropy_bits(np.bincount(first)))


def cross_coded_bits(clips: Sequence[Tokens], size: int) -> tuple[float | None, float | None]:
    """Return bits per token of clips (n,) that are coded with the frequencies of the other half of them.

    Every second clip is in the other half. The first number is for frequencies of tokens, the second for those of
    pairs: P(b|a) = (n(ab) + T(a) P(b)) / (n(a) + T(a)), T(a) the number of tokens seen behind a (Witten and Bell,
    1991), P(b) likewise from the uniform distribution; the first token of a clip is coded by P. None for one clip.
    """
    halves = clips[::2], clips[1::2]
    if not halves[1]:
        return None, None
    total = sum(map(len, clips))
    bits = [_coded(train, test, size) for train, test in (halves, halves[::-1])]
    return sum(each[0] for each in bits) / total, sum(each[1] for each in bits) / total


def _coded(train: Sequence[Tokens], test: Sequence[Tokens], size: int) -> tuple[float, float]:
    counts = np.bincount(np.concatenate(train), minlength=size)
    types = int((counts > 0).sum())
    single = (counts + types / size) / (counts.sum() + types)
    first, second = _pairs([(each[:-1], each[1:]) for each in train])
    keys, occurrences = np.unique(first * size + second, return_counts=True)
    followers = np.bincount(keys // size, minlength=size)  # T(a)
    contexts = np.bincount(first, minlength=size)  # n(a)
    a, b = _pairs([(each[:-1], each[1:]) for each in test])
    place = np.minimum(np.searchsorted(keys, a * size + b), max(len(keys) - 1, 0))
    joint = np.where(keys[place] == a * size + b, occurrences[place], 0) if len(keys) else np.zeros(len(a))
    known = contexts[a] > 0
    after = np.where(known, (joint + followers[a] * single[b]) / np.maximum(contexts[a] + followers[a], 1), single[b])
    starts = single[np.array([each[0] for each in test if len(each)], np.int64)]
    return (
        float(-np.log2(single[np.concatenate(test)]).sum()),
        float(-np.log2(starts).sum() - np.log2(after).sum()),
    )


def run_lengths(clips: Sequence[Tokens]) -> tuple[float, float | None]:
    """Return the mean length of runs of equal tokens along time, row by row (T, R), and the share of steps that repeat.

    A step repeats where its row had the same token one step earlier; None where all clips are one step long.
    """
    steps = sum(each[1:].size for each in clips)
    same = sum(int((each[1:] == each[:-1]).sum()) for each in clips)
    tokens = sum(each.size for each in clips)
    return tokens / (tokens - same), same / steps if steps else None
