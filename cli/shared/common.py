"""What every command shares: the work directory, options, messages, progress and results."""

import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import typer

DEFAULT_ROOT = Path("sctok-data")
LINE_SECONDS = 10.0
# Controls, marks of direction, separators of lines, invisible marks and halves of characters.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)


class StartsOver(Exception):
    """Ctrl-C where nothing of the work is kept; the message says what to do instead."""


def one_of(*names: str) -> Callable[[str], str]:
    """Return a check for an option whose value is one of `names`; anything else is wrong usage."""

    def check(value: str) -> str:
        if value not in names:
            raise typer.BadParameter(f"{value!r} is none of {', '.join(names)}")
        return value

    return check


def not_empty(value: str | None) -> str | None:
    """Check that an option that is given has a value."""
    if value == "":
        raise typer.BadParameter("is empty")
    return value


def device_names(value: str) -> str:
    """Check that an option's value names devices, whether they are there or not."""
    if not re.fullmatch(r"auto|all|(cpu|cuda(:\d+)?)(, *(cpu|cuda(:\d+)?))*", value):
        raise typer.BadParameter(f"{value!r} is none of auto, cpu, cuda, cuda:N")
    return value


RootOption = Annotated[Path, typer.Option("--root", envvar="SCTOK_ROOT", help="Work directory of all commands.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 …", callback=device_names)]
PrecisionOption = Annotated[
    str,
    typer.Option("--precision", help="auto, fp32, bf16 or fp16.", callback=one_of("auto", "fp32", "bf16", "fp16")),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of everything random.", min=0)]
MemoryOption = Annotated[
    str | None,
    typer.Option("--memory", help="Bound on vectors and caches, such as 2G. Default: half of what is free."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


def byte_count(memory: str | None) -> int | None:
    """Return the bytes that --memory gives, if it is given."""
    from sctok.runtime.memory import parse_bytes

    try:
        return None if memory is None else parse_bytes(memory)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--memory") from None


def visible(text: str, *, lines: bool = False) -> str:
    r"""Return text as a terminal may get it, whatever file it comes from: `\x1b` in place of an escape character.

    Written out are control characters, line separators, marks that change the direction of text or are not seen, and
    bytes of file names that are no text. lines: leave line breaks as they are.
    """
    return _UNSEEN.sub(lambda found: found[0] if lines and found[0] == "\n" else _written_out(found), text)


def _written_out(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def say(message: str) -> None:
    """Print a message for people on stderr, in one line."""
    print(visible(message), file=sys.stderr, flush=True)


def emit(result: dict[str, Any] | list[dict[str, Any]], as_json: bool, text: str | Callable[[], str]) -> None:
    """Print a command's result on stdout: `result` as JSON, or `text` for people.

    Raises:
        OSError: stdout is closed or full; Python's own flush at exit then finds nothing to complain about.
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
    return json.dumps(found[0])[1:-1]  # the characters that JSON leaves as they are only occur inside texts


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Lay out rows under a header in aligned columns; numbers to the right."""
    header, *rows = [tuple(map(visible, row)) for row in [header, *rows]]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    right = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(header))]

    def line(row: tuple[str, ...]) -> str:
        cells = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        return "  ".join(cells).rstrip()

    return "\n".join([line(header), line(tuple("-" * width for width in widths)), *map(line, rows)])


class Progress:
    """A progress bar with rate and time left on a terminal, a plain line every ten seconds elsewhere."""

    def __init__(self, label: str, total: float | None = None, unit: str = "it") -> None:
        self.label, self.total, self.unit = label, total, unit
        self.count, self.note = 0.0, ""
        self.started = self.printed = time.monotonic()
        self.bar: Any = None
        if sys.stderr.isatty() and not os.environ.get("NO_PROGRESS"):
            from tqdm import tqdm

            self.bar = tqdm(desc=visible(label), total=total, unit=unit, dynamic_ncols=True, leave=False)

    def update(self, amount: float = 1, note: str = "") -> None:
        """Advance by `amount` and show `note` beside the count."""
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
        """Print a line without breaking the bar."""
        if self.bar is not None:
            self.bar.write(visible(text), file=sys.stderr)
        else:
            say(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()

    def _line(self) -> str:
        elapsed = time.monotonic() - self.started
        rate = self.count / elapsed if elapsed else 0.0
        of = f"/{self.total:g}" if self.total else ""
        left = f", {_clock((self.total - self.count) / rate)} left" if self.total and rate else ""
        note = f" ({self.note})" if self.note else ""
        return f"{self.label}: {self.count:g}{of} {self.unit}, {rate:.1f} {self.unit}/s{left}{note}"


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(f"{record.levelname.lower()}: {record.getMessage()}")


def show_library_messages() -> None:
    """Print what sctok's library code logs from the level of warnings on."""
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
