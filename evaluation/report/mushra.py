"""Scoring of listening tests after ITU-R BS.1534 (MUSHRA), from ratings saved by the report's page."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sctok.evaluation.scores import ALL_DOMAINS
from sctok.formats.files import FormatError, check_format, damaged, read_json

from .runs import number

RATINGS_FORMAT, RATINGS_VERSION = "sctok-ratings", 1
REFERENCE, ANCHOR, CODEC = "reference", "anchor", "codec"


@dataclass(frozen=True)
class MushraConfig:
    """Scoring of listening tests.

    A listener who rates the hidden reference below `least_reference` in more than the share `most_misses` of the clips
    is excluded, following ITU-R BS.1534. confidence: confidence level of the intervals.
    """

    least_reference: float = 90.0
    most_misses: float = 0.15
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not 0 <= self.least_reference <= 100:
            raise ValueError(f"least_reference={self.least_reference} is not between 0 and 100")
        if not 0 <= self.most_misses <= 1:
            raise ValueError(f"most_misses={self.most_misses} is not between 0 and 1")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence={self.confidence} is not between 0 and 1")


@dataclass(frozen=True)
class Trial:
    """One listener's ratings of one clip, from 0 to 100, by (role, codec)."""

    clip: str
    domain: str
    ratings: Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class ListeningSession:
    """One listener's ratings in one test. saved: when the file was written."""

    test: str
    session: str
    listener: str
    saved: str
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class Exclusion:
    """An excluded listener, and the reason."""

    listener: str
    reason: str


@dataclass(frozen=True)
class Rating:
    """The mean rating of a stimulus in a domain, or in "all" of them.

    low, high: interval of the mean by Student's t over single ratings, None for a single rating.
    """

    role: str
    codec: str
    domain: str
    mean: float
    low: float | None
    high: float | None
    n: int
    listeners: int


@dataclass(frozen=True)
class ListeningScores:
    """The result of a listening test: ratings by domain, best first; all listeners; and those excluded."""

    test: str
    ratings: tuple[Rating, ...]
    listeners: tuple[str, ...]
    excluded: tuple[Exclusion, ...]


def load_ratings(paths: Iterable[str | os.PathLike[str]]) -> list[ListeningSession]:
    """Read ratings saved by the listening page: files, or folders with `.json` files.

    If a session has several files, the one with the most clips counts; if these are equal, the latest one.

    Raises:
        FileNotFoundError: a file does not exist.
        FormatError: a file, which the message names, is damaged or of another format, or a folder has no ratings.
    """
    sessions: dict[tuple[str, str], ListeningSession] = {}
    for path in paths:
        for file in _rating_files(Path(path)):
            session = _read_session(file)
            name = (session.test, session.session)
            earlier = sessions.get(name)
            if earlier is None or (len(earlier.trials), earlier.saved) < (len(session.trials), session.saved):
                sessions[name] = session
    return list(sessions.values())


def _rating_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.json"))
    if not files:
        raise FormatError(f"{path} has no .json files; give ratings that were saved by the listening page")
    return files


def _read_session(path: Path) -> ListeningSession:
    content = read_json(path)
    check_format(path, content, RATINGS_FORMAT, RATINGS_VERSION)
    try:
        trials = tuple(_read_trial(trial) for trial in content["trials"])
        clips = [trial.clip for trial in trials]
        if len(set(clips)) < len(clips):
            raise ValueError("a clip is rated twice")
        session = str(content["session"])
        listener = str(content.get("listener") or "").strip() or f"listener {session[:6]}"
        return ListeningSession(str(content["test"]), session, listener, str(content.get("saved", "")), trials)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise damaged(path, error) from None


def _read_trial(trial: Mapping[str, Any]) -> Trial:
    ratings = {}
    for entry in trial["ratings"]:
        score = number(entry["score"])
        if score is None or not 0 <= score <= 100:
            raise ValueError(f"the rating {entry['score']!r} is not between 0 and 100")
        if entry["role"] not in (REFERENCE, ANCHOR, CODEC):
            raise ValueError(f"{entry['role']!r} is not a role of a stimulus")
        ratings[entry["role"], str(entry.get("codec") or entry["role"])] = score
    return Trial(str(trial["clip"]), str(trial["domain"]), ratings)


def score_ratings(sessions: Sequence[ListeningSession], config: MushraConfig = MushraConfig()) -> list[ListeningScores]:
    """Score the tests of some sessions, in the order of their first session."""
    tests = dict.fromkeys(session.test for session in sessions)
    return [_score_test(test, [s for s in sessions if s.test == test], config) for test in tests]


def _score_test(test: str, sessions: Sequence[ListeningSession], config: MushraConfig) -> ListeningScores:
    names = _distinct_names(sessions)
    reasons = [exclusion_reason(session, config) for session in sessions]
    counted = [session for session, reason in zip(sessions, reasons, strict=True) if reason is None]
    excluded = [Exclusion(name, reason) for name, reason in zip(names, reasons, strict=True) if reason is not None]
    domains = dict.fromkeys(trial.domain for session in counted for trial in session.trials)
    wanted = [ALL_DOMAINS, *(domains if len(domains) > 1 else [])]
    ratings = tuple(rating for domain in wanted for rating in _mean_ratings(counted, domain, config.confidence))
    return ListeningScores(test, ratings, tuple(names), tuple(excluded))


def _distinct_names(sessions: Sequence[ListeningSession]) -> list[str]:
    listeners = [session.listener for session in sessions]
    return [
        session.listener if listeners.count(session.listener) == 1 else f"{session.listener} ({session.session[:6]})"
        for session in sessions
    ]


def exclusion_reason(session: ListeningSession, config: MushraConfig) -> str | None:
    """Return why a session is excluded, or None if it counts."""
    scores = [score for t in session.trials for (role, _), score in t.ratings.items() if role == REFERENCE]
    if not scores:
        return "no clip was rated"
    misses = sum(score < config.least_reference for score in scores)
    if misses <= config.most_misses * len(scores):
        return None
    return (
        f"rated the hidden reference below {config.least_reference:g} in {misses} of {len(scores)} clips "
        f"({misses / len(scores):.0%}; {config.most_misses:.0%} are allowed)"
    )


def _mean_ratings(sessions: Sequence[ListeningSession], domain: str, confidence: float) -> list[Rating]:
    by_stimulus: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for listener, session in enumerate(sessions):
        for trial in session.trials:
            if domain in (ALL_DOMAINS, trial.domain):
                for stimulus, score in trial.ratings.items():
                    by_stimulus.setdefault(stimulus, []).append((listener, score))
    ratings = []
    for (role, codec), scores in by_stimulus.items():
        interval = mean_interval([score for _, score in scores], confidence)
        ratings.append(Rating(role, codec, domain, *interval, len(scores), len({listener for listener, _ in scores})))
    return sorted(ratings, key=lambda rating: -rating.mean)


def mean_interval(scores: Sequence[float], confidence: float) -> tuple[float, float | None, float | None]:
    """Return the mean of scores (n,) and the limits of its interval by Student's t, which are None if n is 1."""
    from scipy.stats import t

    values = np.asarray(scores, np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, None, None
    half = float(t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half
