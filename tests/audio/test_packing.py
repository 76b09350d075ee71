from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from sctok.audio.inputs.sources import AudioItem
from sctok.audio.loader import Chunk
from sctok.audio.packing import FileEnd, WindowResult, encode_files
from sctok.audio.transfer import DeviceLanes, DirectLanes
from sctok.audio.windows import WINDOW_COLUMNS, WINDOW_SAMPLES, WINDOW_SPAN, span_columns, token_columns


@dataclass
class Everything:
    key: str
    asked: list[tuple[int, int | None]] = field(default_factory=list)

    def wants(self, window: int, samples: int | None) -> bool:
        self.asked.append((window, samples))
        return True


class EvenWindows(Everything):
    def wants(self, window: int, samples: int | None) -> bool:
        return window % 2 == 0


def chunks_of(key: str, *sizes: int, error: str | None = None) -> list[Chunk]:
    item, first, made = AudioItem(key, f"/{key}"), 0, []
    for size in sizes:
        waves = np.full((size, WINDOW_SPAN), hash(key) % 97, np.float32)
        waves[:, 0] = np.arange(first, first + size)
        first += size
        last = first == sum(sizes) and error is None
        made.append(Chunk(item, first - size, waves, last, first * WINDOW_SAMPLES - 5 if last else None, None))
    if error:
        made.append(Chunk(item, first, np.empty((0, WINDOW_SPAN), np.float32), True, None, error))
    return made


def encode(waves: np.ndarray, last: np.ndarray) -> np.ndarray:
    return np.column_stack([waves[:, 1], waves[:, 0], last])


def events(
    chunks: list[Chunk],
    batch_size: int,
    clip: type[Everything] = Everything,
    lanes: DeviceLanes | None = None,
    *,
    cut: bool = False,
) -> list[tuple]:
    found: list[tuple] = []
    lanes = lanes or DirectLanes(encode_cut if cut else encode, batch_size)
    for event in encode_files(iter(chunks), lanes, lambda item: clip(item.key), cut=cut):
        if isinstance(event, WindowResult):
            found.append((event.clip.key, event.window, event.values.tolist()))
        else:
            assert isinstance(event, FileEnd)
            found.append((event.item.key, event.samples, event.reason))
    return found


CHUNKS = [*chunks_of("a", 3, 2), *chunks_of("b", 1), *chunks_of("c", 2, error="is cut"), *chunks_of("d", 4)]


def test_windows_come_in_order_with_their_results() -> None:
    value = float(hash("a") % 97)
    assert events(chunks_of("a", 2, 1), 2) == [
        ("a", 0, [value, 0, 0]),
        ("a", 1, [value, 1, 0]),
        ("a", 2, [value, 2, 1]),
        ("a", 3 * WINDOW_SAMPLES - 5, None),
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 64])
def test_results_do_not_depend_on_the_batch_size(batch_size: int) -> None:
    assert events(CHUNKS, batch_size) == events(CHUNKS, 4)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_a_batch_is_filled_while_another_is_encoded(batch_size: int) -> None:
    def encode_tensors(waves: torch.Tensor, last: torch.Tensor) -> np.ndarray:
        return encode(waves.numpy(), last.numpy())

    with DeviceLanes(encode_tensors, batch_size, torch.device("cpu")) as lanes:
        assert events(CHUNKS, batch_size, lanes=lanes) == events(CHUNKS, batch_size)


def test_an_error_of_the_encoder_reaches_the_caller() -> None:
    def fail(waves: torch.Tensor, last: torch.Tensor) -> np.ndarray:
        raise ValueError("no memory is left")

    with DeviceLanes(fail, 2, torch.device("cpu")) as lanes, pytest.raises(ValueError, match="no memory is left"):
        events(CHUNKS, 2, lanes=lanes)


def test_batches_are_full_across_files() -> None:
    sizes = []

    def count(waves: np.ndarray, last: np.ndarray) -> np.ndarray:
        sizes.append(len(waves))
        return encode(waves, last)

    list(encode_files(iter(CHUNKS), DirectLanes(count, 5), lambda item: Everything(item.key)))
    assert sizes == [5, 5, 2]


def test_a_broken_file_ends_with_its_reason() -> None:
    assert [event for event in events(CHUNKS, 3) if event[0] == "c"][-1] == ("c", 0, "is cut")


def test_a_file_without_samples_is_a_failure() -> None:
    empty = Chunk(AudioItem("a", "/a"), 0, np.zeros((1, WINDOW_SPAN), np.float32), True, 0, None)
    assert events([empty], 3) == [("a", 0, "it holds no audio")]


def test_the_length_is_known_only_with_the_last_window() -> None:
    clip = Everything("a")
    list(encode_files(iter(chunks_of("a", 2, 1)), DirectLanes(encode, 8), lambda item: clip))
    assert clip.asked == [(0, None), (1, None), (2, 3 * WINDOW_SAMPLES - 5)]


def test_unwanted_windows_are_skipped() -> None:
    assert [event[1] for event in events(chunks_of("a", 3, 2), 2, EvenWindows)[:-1]] == [0, 2, 4]


def clip_of(number: int, samples: int) -> Chunk:
    waves = np.zeros((1, WINDOW_SPAN), np.float32)
    waves[0, :samples] = number
    return Chunk(AudioItem(f"{number}", f"/{number}"), 0, waves, True, samples, None)


def encode_cut(waves: np.ndarray, last: np.ndarray) -> np.ndarray:
    return np.column_stack([waves[:, 0], np.full(len(waves), span_columns(waves.shape[1]))])


LENGTHS = [16_000, 30_000, 16_100, 163_839, 400, 30_100, 16_200, 50_000, 2_559, 16_000] * 5
CLIPS = [clip_of(number, samples) for number, samples in enumerate(LENGTHS, 1)]


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_without_padding_files_come_in_order_with_their_token_columns(batch_size: int) -> None:
    found = events(CLIPS, batch_size, cut=True)
    assert found[::2] == [
        (str(number), 0, [number, min(WINDOW_COLUMNS, token_columns(samples))])
        for number, samples in enumerate(LENGTHS, 1)
    ]
    assert [event[1] for event in found[1::2]] == LENGTHS


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_a_batch_of_short_windows_is_filled_while_another_is_encoded(batch_size: int) -> None:
    def encode_tensors(waves: torch.Tensor, last: torch.Tensor) -> np.ndarray:
        return encode_cut(waves.numpy(), last.numpy())

    with DeviceLanes(encode_tensors, batch_size, torch.device("cpu")) as lanes:
        assert events(CLIPS, batch_size, lanes=lanes, cut=True) == events(CLIPS, batch_size, cut=True)


def test_short_windows_of_equal_length_are_encoded_together() -> None:
    batches = []

    def count(waves: np.ndarray, last: np.ndarray) -> np.ndarray:
        batches.append((len(waves), span_columns(waves.shape[1])))
        return encode_cut(waves, last)

    clips = [clip_of(number, samples) for number, samples in enumerate([16_000, 30_000] * 13)]
    list(encode_files(iter(clips), DirectLanes(count, 2), lambda item: Everything(item.key), cut=True))
    assert batches == [(8, 12), (12, 8), (5, 12), (1, 8)]


def test_a_window_waits_for_a_bounded_number_of_batches() -> None:
    read = 0

    def reading() -> Iterator[Chunk]:
        nonlocal read
        for number in range(1000):
            read += 1
            yield clip_of(number, 30_000 if number == 0 else 16_000)

    files = encode_files(reading(), DirectLanes(encode_cut, 1), lambda item: Everything(item.key), cut=True)
    assert isinstance(next(files), WindowResult)
    assert read <= 8 * WINDOW_COLUMNS // token_columns(16_000) + 1
    assert len(list(files)) == 1999
