import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sctok.audio.inputs.sources import AudioItem, BadItem
from sctok.audio.windows import WINDOW_SAMPLES, audio_columns, window_count
from sctok.corpus.runs.subsets import GroupSampler, choose_hours, window_columns


def sample(samples: int, tokens: int, seed: int = 0, key: str = "a") -> np.ndarray:
    """Return the numbers of the patches kept of a clip, passing windows as late as possible."""
    sampler = GroupSampler(seed, key, tokens)
    windows = window_count(samples)
    wanted = [w for w in range(windows) if sampler.offer(w, samples if w == windows - 1 else None)]
    for window in wanted:
        rows = window_columns(window, samples) * 8
        sampler.take(window, (window * 512 + np.arange(rows, dtype=np.float32))[:, None])
    return np.concatenate([*sampler.rows(), np.empty((0, 1), np.float32)])[:, 0].astype(int)


@settings(max_examples=60, deadline=None)
@given(samples=st.integers(1, 5 * WINDOW_SAMPLES), tokens=st.integers(1, 3000), seed=st.integers(0, 5))
def test_whole_groups_inside_the_audio_are_kept_in_order(samples: int, tokens: int, seed: int) -> None:
    kept = sample(samples, tokens, seed)
    rows = 8 * audio_columns(samples)
    assert len(kept) == min(-(-tokens // 16) * 16, rows)
    assert (np.diff(kept) > 0).all()
    assert kept[-1] < rows
    for start in range(0, len(kept), 16):
        group = kept[start : start + 16]
        assert group[0] % 16 == 0
        assert (np.diff(group) == 1).all()


def test_the_choice_depends_on_seed_and_key() -> None:
    length = 4 * WINDOW_SAMPLES
    assert (sample(length, 64) == sample(length, 64)).all()
    assert (sample(length, 64) != sample(length, 64, seed=1)).any()
    assert (sample(length, 64) != sample(length, 64, key="b")).any()


def test_every_part_of_a_clip_is_chosen_equally_often() -> None:
    samples = 2 * WINDOW_SAMPLES - 1
    counts = np.zeros(64)
    for clip in range(400):
        counts += np.bincount(sample(samples, 128, key=str(clip))[::16] // 16, minlength=64)
    assert abs(counts - 50).max() < 5 * np.sqrt(50)


def items(seconds: dict[str, float]) -> list[AudioItem]:
    return [AudioItem(key, f"/{key}") for key in seconds]


LENGTHS = {f"clip {index}": float(index % 7 * 60) for index in range(100)}


@pytest.mark.parametrize("hours", [0.01, 0.5, 2.0, 100.0])
def test_hours_are_reached_by_the_last_file(hours: float) -> None:
    chosen = dict(choose_hours(items(LENGTHS), 0.0, hours=hours, seed=1, seconds_of=lambda item: LENGTHS[item.key]))
    total = sum(LENGTHS[item.key] for item in chosen)
    if hours * 3600 > sum(LENGTHS.values()):
        assert len(chosen) == len(LENGTHS)
    else:
        assert hours * 3600 <= total < hours * 3600 + 420


def test_the_order_of_the_listing_does_not_matter() -> None:
    listed = items(LENGTHS)
    picks = []
    for _ in range(2):
        options = {"hours": 1.0, "seed": 0, "seconds_of": lambda item: LENGTHS[item.key]}
        picks.append({entry.key for entry, _ in choose_hours(listed, 0.0, **options)})
        random.Random(0).shuffle(listed)
    assert picks[0] == picks[1]


def test_planned_hours_count_and_problems_pass_through() -> None:
    listed = [BadItem("x", "/x", "is missing"), *items(LENGTHS)]
    options = {"hours": 1.0, "seed": 0, "seconds_of": lambda item: LENGTHS[item.key]}
    assert list(choose_hours(listed, 3600.0, **options)) == [(listed[0], None)]
