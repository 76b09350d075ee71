"""Do tokens know the class of the clip that they are of?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .token_statistics import entropy_bits


@dataclass(frozen=True)
class TokenPurity:
    """How well tokens and classes of clips agree; every token has the class of its clip.

    purity: share of tokens that are of the most frequent class of their code. nmi: mutual information over the mean of
    both entropies. majority: the purity of a single code. shuffled_: the same where clips swap their classes at random,
    which many codes and few clips alone would give.
    """

    purity: float
    nmi: float
    majority: float
    shuffled_purity: float
    shuffled_nmi: float


def token_purity(clips: Sequence[NDArray[np.int64]], labels: Sequence[str], seed: int = 0) -> TokenPurity:
    """Return the purity of the codes of clips, int64 of any shape each, with their labels. ValueError if none."""
    if not sum(each.size for each in clips) or len(clips) != len(labels):
        raise ValueError(
            f"{len(clips)} clips and {len(labels)} labels: there must be tokens, and a label for each clip"
        )
    _, classes = np.unique(np.asarray(labels), return_inverse=True)
    tokens = np.concatenate([each.reshape(-1) for each in clips])
    sizes = [each.size for each in clips]
    shuffled = np.random.default_rng(seed).permutation(classes)
    purity, nmi = purity_and_nmi(tokens, np.repeat(classes, sizes))
    other_purity, other_nmi = purity_and_nmi(tokens, np.repeat(shuffled, sizes))
    majority = float(np.bincount(np.repeat(classes, sizes)).max() / len(tokens))
    return TokenPurity(purity, nmi, majority, other_purity, other_nmi)


def purity_and_nmi(tokens: NDArray[np.int64], classes: NDArray[np.int64]) -> tuple[float, float]:
    """Return purity and normalised mutual information (arithmetic mean) of tokens (n,) and classes (n,), n > 0."""
    codes, code = np.unique(tokens, return_inverse=True)
    count = int(classes.max()) + 1
    table = np.bincount(code * count + classes, minlength=len(codes) * count).reshape(-1, count)
    of_codes, of_classes = entropy_bits(table.sum(axis=1)), entropy_bits(table.sum(axis=0))
    shared = of_codes + of_classes - entropy_bits(table)
    mean = (of_codes + of_classes) / 2
    return float(table.max(axis=1).sum() / len(tokens)), max(0.0, shared / mean) if mean > 0 else 1.0
