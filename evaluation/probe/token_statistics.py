"""Token statistics: codebook usage, entropy, bits per second, run lengths, and agreement with classes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class TokenStatistics:
    """Statistics of the tokens of some clips. Entropies are in bits per token.

    The entropies are estimated from counts. They are too low if there are few tokens compared with the size of the
    codebook (or, for pairs, with its square). `coded` and `coded_bigram` are upper bounds; they are None for one clip.

    Attributes:
        used, usage: number and share of codebook rows that occur.
        entropy, perplexity: entropy of the relative frequencies, and 2 to its power.
        conditional_entropy: entropy given the previous token; the frequency rows of a step follow each other.
        conditional_entropy_time: entropy given the token of the same row one step earlier.
        coded, coded_bigram: bits per token in a code for the frequencies of tokens, or of pairs, in other clips.
        nominal_, bigram_ and coded_bits_per_second: from log2 of the size, the lower conditional entropy and the
            shorter code; bits_per_second: from the entropy.
        run_length, repeats: mean length of runs of equal tokens along a row, and share of steps that repeat a token.
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
    """Compute the statistics of the tokens of clips.

    Args:
        clips: int64 (T, R) each: T steps of R frequency rows, 0 <= token < size.
        size: number of rows of the codebook.
        per_second: tokens of the stream per second.

    Raises:
        ValueError: there are no tokens, or some are out of range.
    """
    flat = [each.reshape(-1) for each in clips]
    tokens = np.concatenate(flat) if flat else np.empty(0, np.int64)
    if not len(tokens) or not 0 <= tokens.min() <= tokens.max() < size:
        existing = f"{tokens.min()} to {tokens.max()}" if len(tokens) else "none"
        raise ValueError(f"expected tokens in [0, {size}), got {existing}")
    counts = np.bincount(tokens, minlength=size)
    entropy = entropy_bits(counts)
    sequence = conditional_entropy(_pairs(flat), size)
    time = conditional_entropy(_pairs(clips), size)
    coded, coded_bigram = cross_coded_bits(flat, size)
    conditional = [each for each in (sequence, time) if each is not None]
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
        bigram_bits_per_second=min(conditional) * per_second if conditional else None,
        coded_bits_per_second=min(codes) * per_second if codes else None,
        run_length=length,
        repeats=repeats,
    )


def entropy_bits(counts: NDArray[np.int64]) -> float:
    """Return the entropy in bits of the relative frequencies of counts, of any shape, with a sum above 0."""
    seen = counts[counts > 0].astype(np.float64)
    share = seen / seen.sum()
    return float(max(0.0, -(share * np.log2(share)).sum()))


def _pairs(clips: Sequence[Tokens]) -> tuple[Tokens, Tokens]:
    """Return the tokens of all steps but the last of each clip, flat, and the tokens one step later."""
    return np.concatenate([each[:-1].ravel() for each in clips]), np.concatenate([each[1:].ravel() for each in clips])


def conditional_entropy(pairs: tuple[Tokens, Tokens], size: int) -> float | None:
    """Return the entropy in bits of the second token of pairs (n,), (n,) given the first; None without pairs."""
    first, second = pairs
    if not len(first):
        return None
    joint = np.unique(first * size + second, return_counts=True)[1]
    return max(0.0, entropy_bits(joint) - entropy_bits(np.bincount(first)))


def cross_coded_bits(clips: Sequence[Tokens], size: int) -> tuple[float | None, float | None]:
    """Return the bits per token of clips (n,), coded with the frequencies of the other half of the clips.

    Every second clip is in the other half. The first number uses frequencies of tokens, the second of pairs:
    P(b|a) = (n(ab) + T(a) P(b)) / (n(a) + T(a)), where T(a) is the number of different tokens seen after a (Witten and
    Bell, 1991). P(b) is interpolated with the uniform distribution in the same way, and codes the first token of a
    clip. Both numbers are None for a single clip.
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
    first, second = _pairs(train)
    keys, occurrences = np.unique(first * size + second, return_counts=True)
    followers = np.bincount(keys // size, minlength=size)  # T(a)
    contexts = np.bincount(first, minlength=size)  # n(a)
    a, b = _pairs(test)
    found = np.minimum(np.searchsorted(keys, a * size + b), max(len(keys) - 1, 0))
    joint = np.where(keys[found] == a * size + b, occurrences[found], 0) if len(keys) else np.zeros(len(a))
    seen = contexts[a] > 0
    after = np.where(seen, (joint + followers[a] * single[b]) / np.maximum(contexts[a] + followers[a], 1), single[b])
    starts = single[np.array([each[0] for each in test if len(each)], np.int64)]
    return (
        float(-np.log2(single[np.concatenate(test)]).sum()),
        float(-np.log2(starts).sum() - np.log2(after).sum()),
    )


def run_lengths(clips: Sequence[Tokens]) -> tuple[float, float | None]:
    """Return the mean length of runs of equal tokens along the rows of (T, R), and the share of steps that repeat.

    A step repeats if its row had the same token one step earlier. The share is None if all clips have one step.
    """
    steps = sum(each[1:].size for each in clips)
    same = sum(int((each[1:] == each[:-1]).sum()) for each in clips)
    tokens = sum(each.size for each in clips)
    return tokens / (tokens - same), same / steps if steps else None


@dataclass(frozen=True)
class TokenPurity:
    """Agreement of tokens with the classes of their clips.

    Attributes:
        purity: share of tokens that belong to the most frequent class of their codebook row.
        nmi: mutual information divided by the mean of both entropies.
        majority: purity if all tokens were equal.
        shuffled_purity, shuffled_nmi: values with the classes shuffled between clips; the level reached by chance.
    """

    purity: float
    nmi: float
    majority: float
    shuffled_purity: float
    shuffled_nmi: float


def token_purity(clips: Sequence[NDArray[np.int64]], labels: Sequence[str], seed: int = 0) -> TokenPurity:
    """Compute the purity of the tokens of clips, int64 of any shape, with a label for each clip.

    Raises ValueError if there are no tokens, or not one label for each clip.
    """
    if not sum(each.size for each in clips) or len(clips) != len(labels):
        raise ValueError(f"expected tokens and a label for each clip, got {len(clips)} clips and {len(labels)} labels")
    _, classes = np.unique(np.asarray(labels), return_inverse=True)
    tokens = np.concatenate([each.reshape(-1) for each in clips])
    sizes = [each.size for each in clips]
    shuffled = np.random.default_rng(seed).permutation(classes)
    purity, nmi = purity_and_nmi(tokens, np.repeat(classes, sizes))
    other_purity, other_nmi = purity_and_nmi(tokens, np.repeat(shuffled, sizes))
    majority = float(np.bincount(np.repeat(classes, sizes)).max() / len(tokens))
    return TokenPurity(purity, nmi, majority, other_purity, other_nmi)


def purity_and_nmi(tokens: NDArray[np.int64], classes: NDArray[np.int64]) -> tuple[float, float]:
    """Return the purity and the normalised mutual information of tokens (n,) and classes (n,), n > 0."""
    codes, code = np.unique(tokens, return_inverse=True)
    count = int(classes.max()) + 1
    table = np.bincount(code * count + classes, minlength=len(codes) * count).reshape(-1, count)
    code_entropy, class_entropy = entropy_bits(table.sum(axis=1)), entropy_bits(table.sum(axis=0))
    shared = code_entropy + class_entropy - entropy_bits(table)
    mean = (code_entropy + class_entropy) / 2
    return float(table.max(axis=1).sum() / len(tokens)), max(0.0, shared / mean) if mean > 0 else 1.0
