"""Reading parts of a file as a file of their own."""

import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, BinaryIO

UNKNOWN_LENGTH = 2**63 - 1
SCAN_BYTES = 1 << 16
_AHEAD_BYTES = 1 << 16
_BEHIND_BYTES = 1 << 12  # kept before a position, because readers look ahead and come back

Range = tuple[int, int]  # first byte, and the one after the last


class Window:
    """Random access to the bytes of a file before `end`, through one buffer of 64 KiB."""

    def __init__(self, file: BinaryIO, end: int | None = None) -> None:
        self.file = file
        self.end = file.seek(0, os.SEEK_END) if end is None else end
        self._first = 0
        self._buffer = b""

    def at(self, position: int, count: int) -> bytes:
        """Return `count` bytes, at most 32 KiB, from `position` on; fewer at the end."""
        first = position - self._first
        if first < 0 or first + count > len(self._buffer):
            self._first = max(0, position - _BEHIND_BYTES)
            self._buffer, first = self.piece(self._first), position - self._first
        return self._buffer[first : first + count]

    def piece(self, position: int) -> bytes:
        """Read up to 64 KiB from `position` on; empty at the end."""
        if position >= self.end:
            return b""
        self.file.seek(position)
        return read_up_to(self.file, min(SCAN_BYTES, self.end - position))


def read_up_to(file: BinaryIO, count: int) -> bytes:
    """Return `count` bytes, or fewer if the file ends first; one read of an unbuffered file may return fewer."""
    data = file.read(count)
    while len(data) < count and (more := file.read(count - len(data))):
        data += more
    return data


class SectionFile:
    """Successive ranges of a file for the callbacks of libsndfile: reads are complete and raise no exception.

    `head` replaces the first bytes. An endless file hides its length, so that libsndfile reads to its end. `failure` is
    the error that ended a read.
    """

    def __init__(self, file: BinaryIO, ranges: Sequence[Range], head: bytes, endless: bool) -> None:
        self._file = file
        self._ranges = ranges
        self._starts = [0, *accumulate(end - start for start, end in ranges)]
        self._head = head
        self._endless = endless
        self._position = 0
        self._ahead, self._ahead_at = b"", 0
        self._at_end = False
        self.failure: OSError | None = None

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        done = 0
        try:
            while done < len(view):
                first = self._position - self._ahead_at
                if not 0 <= first < len(self._ahead):
                    self._ahead, self._ahead_at, first = self._fetch(self._position), self._position, 0
                    if not self._ahead:
                        break
                data = self._ahead[first : first + len(view) - done]
                view[done : done + len(data)] = data
                done += len(data)
                self._position += len(data)
        except OSError as error:
            self.failure = error
        return done

    def _fetch(self, position: int) -> bytes:
        if position < len(self._head):
            return self._head[position:]
        number = bisect_right(self._starts, position) - 1
        if number >= len(self._ranges):
            return b""
        start, end = self._ranges[number]
        place = start + position - self._starts[number]
        self._file.seek(place)
        return self._file.read(min(_AHEAD_BYTES, end - place))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at_end = self._endless and whence == os.SEEK_END
        if self._at_end:
            return UNKNOWN_LENGTH
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._starts[-1]}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return UNKNOWN_LENGTH if self._at_end else self._position
