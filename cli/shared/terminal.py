"""What a command prints: messages and progress on stderr, results and tables on stdout."""

import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

LINE_SECONDS = 10.0
UNBOUNDED = 100_000  # columns of a table that is not cut to the terminal
# Controls, marks of direction, separators of lines, invisible marks and halves of characters.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)


class StartsOver(Exception):
    """Ctrl-C that leaves work unfinished in an unusual way; the message says what to do."""


def visible(text: str, *, lines: bool = False) -> str:
    r"""Return text that is safe to print on a terminal, whatever file it comes from.

    Control characters, line separators, invisible characters, marks that change the direction of text, and bytes of
    file names that are not text are escaped, such as `\x1b`. lines: keep line breaks.
    """
    return _UNSEEN.sub(lambda found: found[0] if lines and found[0] == "\n" else _written_out(found), text)


def _written_out(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def say(message: str) -> None:
    """Print a message on stderr, in one line."""
    print(visible(message), file=sys.stderr, flush=True)


def emit(result: dict[str, Any] | list[dict[str, Any]], as_json: bool, text: str | Callable[[], str]) -> None:
    """Print a command's result on stdout: `result` as JSON, or `text`.

    Raises:
        OSError: stdout is closed or full. It is replaced, so that the flush at exit does not fail again.
    """
    if as_json:
        line = _UNSEEN.sub(_in_json, json.dumps(result, ensure_ascii=False, default=str))
    else:
        line = visible(text if isinstance(text, str) else text(), lines=True)
    try:
        print(line, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _in_json(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]  # characters that JSON does not escape occur only inside strings


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows under a header in aligned columns, columns of numbers to the right; cells are never cut."""
    from rich.box import Box
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=Box("    \n    \n -- \n" + "    \n" * 5), show_edge=False, pad_edge=False, collapse_padding=True)
    for i, title in enumerate(header):
        is_numeric = bool(rows) and all(_is_number(row[i]) for row in rows)
        grid.add_column(visible(title), justify="right" if is_numeric else "left", no_wrap=True)
    for row in rows:
        grid.add_row(*map(visible, row))
    console = Console(width=UNBOUNDED, color_system=None, markup=False, highlight=False)
    with console.capture() as capture:
        console.print(grid)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def table_of(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Return rows as a table. columns: for each title the key and format of a value, such as `seconds:.1f`.

    A value that is None or absent is shown as `-`.
    """
    parts = [column.partition(":") for column in columns.values()]
    cells = [["-" if row.get(key) is None else format(row[key], form) for key, _, form in parts] for row in rows]
    return table(tuple(columns), cells)


class ProgressReporter:
    """A context manager that shows progress in a bar, or in several in turn, and removes the last one at its end."""

    bar: "Progress | None" = None

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Progress(ProgressReporter):
    """A progress bar with rate and time left on a terminal, a plain line every ten seconds elsewhere."""

    bar: Any = None  # of tqdm

    def __init__(self, label: str, total: float | None = None, unit: str = "it") -> None:
        self.label, self.total, self.unit = label, total, unit
        self.count, self.note = 0.0, ""
        self.started = self.printed = time.monotonic()
        if sys.stderr.isatty() and not os.environ.get("NO_PROGRESS"):
            from tqdm import tqdm

            self.bar = tqdm(desc=visible(label), total=total, unit=unit, dynamic_ncols=True, leave=False)

    def update(self, amount: float = 1, note: str = "") -> None:
        """Advance by `amount` and show `note` after the count."""
        self.count += amount
        self.note = note or self.note
        if self.bar is not None:
            if note:
                self.bar.set_postfix_str(visible(note), refresh=False)
            self.bar.update(amount)
        elif time.monotonic() - self.printed >= LINE_SECONDS:
            self.printed = time.monotonic()
            say(self._line())

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        if self.bar is not None:
            self.bar.write(visible(text), file=sys.stderr)
        else:
            say(text)

    def _line(self) -> str:
        elapsed = time.monotonic() - self.started
        rate = self.count / elapsed if elapsed else 0.0
        of = f"/{self.total:g}" if self.total else ""
        left = f", {_clock((self.total - self.count) / rate)} left" if self.total and rate else ""
        note = f" ({self.note})" if self.note else ""
        return f"{self.label}: {self.count:g}{of} {self.unit}, {rate:.1f} {self.unit}/s{left}{note}"


class StageBars(ProgressReporter):
    """A progress bar for each stage of a command, one after the other."""

    def update(self, stage: str, done: int, total: int, unit: str) -> None:
        """Show how much of a stage is done, with a new bar if the stage is new."""
        if self.bar is None or stage != self.bar.label:
            self.close()
            self.bar = Progress(stage, total, unit)
        self.bar.update(done - self.bar.count)


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(f"{record.levelname.lower()}: {record.getMessage()}")


def show_library_messages() -> None:
    """Print warnings and errors that sctok's library code logs."""
    logger = logging.getLogger("sctok")
    if not logger.handlers:
        logger.addHandler(_StderrHandler())
        logger.propagate = False


def _is_number(cell: str) -> bool:
    return cell.replace(",", "").replace("%", "").replace("×", "").replace("-", "").strip().replace(
        ".", "", 1
    ).isdigit() or (cell in ("", "-"))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
