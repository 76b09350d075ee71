"""The geometry of AudioMAE windows: samples, frames, patch columns and tokens."""

import math

SAMPLE_RATE = 16_000
FRAME_SHIFT = 160
FRAME_LENGTH = 400
MEL_BINS = 128
PATCH_SIZE = 16
WINDOW_FRAMES = 1024

WINDOW_SAMPLES = WINDOW_FRAMES * FRAME_SHIFT  # 163,840 samples: 10.24 s
WINDOW_SPAN = (WINDOW_FRAMES - 1) * FRAME_SHIFT + FRAME_LENGTH  # the last frames reach 240 samples into the next window
COLUMN_SAMPLES = PATCH_SIZE * FRAME_SHIFT  # 2,560 samples: 0.16 s
WINDOW_COLUMNS = WINDOW_FRAMES // PATCH_SIZE
PATCH_ROWS = MEL_BINS // PATCH_SIZE  # patches in one column, low frequencies first
WINDOW_PATCHES = WINDOW_COLUMNS * PATCH_ROWS

_COLUMNS_AT_ONCE = 48


def window_count(samples: int) -> int:
    """Return how many windows a file of `samples` samples at 16 kHz fills.

    A file is padded to the next multiple of a window, never to the same: an exact multiple gains an empty window,
    as in the published code.
    """
    return samples // WINDOW_SAMPLES + 1


def span_samples(columns: int) -> int:
    """Return how many samples successive columns are made of: 240 more than they last, for their last frame."""
    return columns * COLUMN_SAMPLES + FRAME_LENGTH - FRAME_SHIFT


def span_columns(samples: int) -> int:
    """Return how many columns, from 1 to 64, are made of so many samples. Raises ValueError where none are."""
    columns = samples // COLUMN_SAMPLES
    if not 1 <= columns <= WINDOW_COLUMNS or span_samples(columns) != samples:
        raise ValueError(f"{samples} samples are not those of 1 to {WINDOW_COLUMNS} columns, such as {WINDOW_SPAN}")
    return columns


def windows_at_once(columns: int) -> int:
    """Return how many windows of so many columns are encoded in place of a whole one: with 48 columns, three quarters.

    Alone, short windows take up to 1.5 times as long on a CPU. With more columns, batches of windows of many lengths
    would often not be full.
    """
    return max(1, _COLUMNS_AT_ONCE // columns)


def audio_columns(samples: int) -> int:
    """Return how many patch columns (0.16 s) of a file hold audio; those after them are padding."""
    return -(-samples // COLUMN_SAMPLES)


def token_columns(samples: int) -> int:
    """Return how many patch columns of a file get tokens at some stack factor: those of audio and up to three more.

    An even number, as stack factor 4 joins pairs of columns.
    """
    return 2 * -(-token_count(samples, 1) // (2 * PATCH_ROWS))


def token_count(samples: int, stack_factor: int) -> int:
    """Return the number of tokens of a file of `samples` samples at 16 kHz, one stream, at stack factor 1, 2 or 4.

    One column more than lies inside the file, divided by the stack factor, in the published code's float64
    arithmetic: rounding there gives one token more for about 5 % of lengths, and none for the extra column at some
    exact multiples of 0.16 s.
    """
    seconds = samples / SAMPLE_RATE
    seconds += 0.16 - (seconds % 0.16)
    return math.ceil(8 * seconds / 0.16 / float(stack_factor))
