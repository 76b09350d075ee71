import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sctok.formats.layouts import LAYOUTS, StreamLayout, deduplicate, expand_runs, make_layout

TOKENS = np.array([[0, 3], [1, 4], [2, 5]])


@st.composite
def laid_out(draw: st.DrawFn) -> tuple[StreamLayout, np.ndarray]:
    """A random layout, and tokens that match it."""
    sizes = draw(st.lists(st.sampled_from([1, 2, 7, 65_536, 1 << 32]), min_size=1, max_size=4))
    name = draw(st.sampled_from(LAYOUTS))
    single = st.lists(st.integers(0, 100_000), min_size=1, max_size=1)
    offsets = draw(st.none() | single | st.lists(st.integers(0, 1000), min_size=len(sizes), max_size=len(sizes)))
    flattened = draw(st.booleans()) and name != "parallel"
    layout = make_layout(name, sizes, offsets=offsets, end=draw(st.booleans()), flattened=flattened)
    length = draw(st.sampled_from([0, 1, 2, 3, 17]))
    return layout, np.random.default_rng(length).integers(0, sizes, (length, len(sizes)), np.int64)


@settings(max_examples=200, deadline=None)
@given(laid_out())
def test_invert_undoes_apply(case: tuple[StreamLayout, np.ndarray]) -> None:
    layout, tokens = case
    ids = layout.apply(tokens)
    assert ids.ndim == layout.dimensions
    assert ids.size == 0 or 0 <= ids.min() <= ids.max() < layout.vocabulary_size
    np.testing.assert_array_equal(layout.invert(ids), tokens)


@given(laid_out())
def test_json_round_trip(case: tuple[StreamLayout, np.ndarray]) -> None:
    assert StreamLayout.from_json(case[0].to_json()) == case[0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("flat", [0, 1, 2, 10 + 3, 10 + 4, 10 + 5]),
        ("interleaved", [0, 13, 1, 14, 2, 15]),
        ("delayed", [[0, 10], [1, 3], [2, 4], [10, 5]]),
        ("parallel", [[0, 3], [1, 4], [2, 5]]),
    ],
)
def test_ids_by_hand(name: str, expected: list[object]) -> None:
    assert make_layout(name, (10, 8)).apply(TOKENS).tolist() == expected


def test_flattened_delay_keeps_the_steps_in_order() -> None:
    layout = make_layout("delayed", (10, 8), end=True, flattened=True)
    assert layout.apply(TOKENS).tolist() == [0, 10, 1, 3, 2, 4, 10, 5, 11]


def test_the_end_of_two_dimensional_ids_is_a_whole_step() -> None:
    assert make_layout("parallel", (10, 8), end=99).apply(TOKENS).tolist()[-1] == [99, 99]


def test_a_single_offset_is_that_of_the_first_stream() -> None:
    layout = make_layout("parallel", (10, 8), offsets=[500], end=True)
    assert layout.offsets == (500, 510)
    assert layout.end == 518
    assert layout.vocabulary_size == 519


def test_an_end_below_all_tokens_is_allowed() -> None:
    assert make_layout("flat", (10,), offsets=[500], end=499).vocabulary_size == 510


@pytest.mark.parametrize(
    ("settings_", "named"),
    [
        ({"name": "spiral"}, "spiral"),
        ({"offsets": (1, 2, 3)}, "offsets"),
        ({"offsets": (0, -1)}, "offsets"),
        ({"pad": 100}, "pad"),
        ({"name": "delayed", "pad": 9}, "pad"),
        ({"end": 17}, "18"),
        ({"name": "parallel", "flattened": True}, "interleaved"),
    ],
)
def test_arguments_that_do_not_match_are_refused(settings_: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make_layout(**{"name": "flat", "sizes": (10, 8), **settings_})


@pytest.mark.parametrize("tokens", [TOKENS[:, :1], TOKENS + 0.5, TOKENS - 1, TOKENS + 3])
def test_tokens_outside_their_codebooks_are_refused(tokens: np.ndarray) -> None:
    with pytest.raises(ValueError, match="tokens"):
        make_layout("flat", (10, 8)).apply(tokens)


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("flat", [0, 1, 12]),
        ("flat", [0, 9, 10, 18]),
        ("interleaved", [10, 0]),
        ("delayed", [[0, 10], [1, 3], [2, 5]]),
        ("delayed", [[0, 10]]),
        ("parallel", [0, 3]),
    ],
)
def test_ids_of_another_layout_are_refused(name: str, ids: list[object]) -> None:
    with pytest.raises(ValueError, match="ids"):
        make_layout(name, (10, 8)).invert(ids)


def test_a_missing_end_is_refused() -> None:
    with pytest.raises(ValueError, match="end"):
        make_layout("flat", (10,), end=True).invert([1, 2, 3])


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1))))
def test_expand_runs_undoes_deduplicate(steps: list[tuple[int, int]]) -> None:
    tokens = np.array(steps, np.uint16).reshape(-1, 2)
    short, durations = deduplicate(tokens)
    assert (np.diff(short.astype(int), axis=0) != 0).any(axis=1).all()
    assert (durations > 0).all()
    np.testing.assert_array_equal(expand_runs(short, durations), tokens)


def test_only_steps_equal_in_every_stream_are_merged() -> None:
    short, durations = deduplicate(np.array([[1, 1], [1, 1], [1, 2], [1, 1]]))
    assert short.tolist() == [[1, 1], [1, 2], [1, 1]]
    assert durations.tolist() == [2, 1, 1]
