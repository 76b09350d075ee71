"""The geometry of AudioMAE windows: samples, frames, patch columns and tokens."""

import math

SAMPLE_RATE = 16_000
FRAME_SHIFT = 160
FRAME_LENGTH = 400
MEL_BINS = 128
PATCH_SIZE = 16
WINDOW_FRAMES = 1024

WINDOW_SAMPLES = WINDOW_FRAMES * FRAME_SHIFT  # 163,840 samples: 10.24 s
WINDOW_SPAN = (WINDOW_FRAMES - 1) * FRAME_SHIFT + FRAME_LENGTH  # the last frames end 240 samples after the window
COLUMN_SAMPLES = PATCH_SIZE * FRAME_SHIFT  # 2,560 samples: 0.16 s
WINDOW_COLUMNS = WINDOW_FRAMES // PATCH_SIZE
PATCH_ROWS = MEL_BINS // PATCH_SIZE  # patches in one column, low frequencies first
WINDOW_PATCHES = WINDOW_COLUMNS * PATCH_ROWS

_COLUMNS_AT_ONCE = 48


def window_count(samples: int) -> int:
    """Return how many windows a file of `samples` samples at 16 kHz fills.

    A file is always padded: an exact multiple of a window gains an empty window, as in the published code.
    """
    return samples // WINDOW_SAMPLES + 1


def span_samples(columns: int) -> int:
    """Return how many samples successive columns need: their duration and 240 more, for their last frame."""
    return columns * COLUMN_SAMPLES + FRAME_LENGTH - FRAME_SHIFT


def span_columns(samples: int) -> int:
    """Return how many columns, from 1 to 64, need exactly `samples` samples. Raises ValueError if none do."""
    columns = samples // COLUMN_SAMPLES
    if not 1 <= columns <= WINDOW_COLUMNS or span_samples(columns) != samples:
        raise ValueError(f"{samples} samples are not 1 to {WINDOW_COLUMNS} whole columns, such as {WINDOW_SPAN}")
    return columns


def windows_at_once(columns: int) -> int:
    """Return how many windows of `columns` columns replace one whole window in a batch: together at most 48 columns.

    One by one, short windows would take up to 1.5 times as long on a CPU. With a limit above 48, batches of windows of
    many lengths would often not be full.
    """
    return max(1, _COLUMNS_AT_ONCE // columns)


def audio_columns(samples: int) -> int:
    """Return how many patch columns (0.16 s) of a file hold audio; later columns are padding."""
    return -(-samples // COLUMN_SAMPLES)


def token_columns(samples: int) -> int:
    """Return how many patch columns of a file get tokens at any stack factor: those with audio and up to three more.

    The number is even because stack factor 4 joins pairs of columns.
    """
    return 2 * -(-token_count(samples, 1) // (2 * PATCH_ROWS))


def token_count(samples: int, stack_factor: int) -> int:
    """Return the tokens per stream of a file of `samples` samples at 16 kHz, at stack factor 1, 2 or 4.

    The file has one column more than fits inside it. The float64 arithmetic is that of the published code: its rounding
    adds a token for about 5 % of lengths, and drops the extra column at some exact multiples of 0.16 s.
    """
    seconds = samples / SAMPLE_RATE
    seconds += 0.16 - (seconds % 0.16)
    return math.ceil(8 * seconds / 0.16 / float(stack_factor))
