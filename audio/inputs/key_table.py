"""A table of texts that may outgrow memory: it then goes to an unnamed temporary file."""

import sqlite3
from contextlib import closing

_CACHE_KIB = 16_384


def open_spill() -> sqlite3.Connection:
    """Return a private database; beyond 16 MiB it goes to an unnamed temporary file, in TMPDIR."""
    database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    for setting in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{_CACHE_KIB}", "locking_mode=EXCLUSIVE"):
        database.execute(f"PRAGMA {setting}")
    database.execute("BEGIN")
    return database


class KeyTable:
    """What was said first of each key. Memory: 16 MiB, however many there are; the rest is on disk, in TMPDIR."""

    def __init__(self) -> None:
        self._database = open_spill()
        self._database.execute("CREATE TABLE known (key BLOB PRIMARY KEY, value TEXT) WITHOUT ROWID")

    def add(self, key: str, value: str) -> str | None:
        """Remember `value` for a key that is new and return None; else return what is remembered."""
        data = key.encode("utf-8", "surrogatepass")
        with closing(self._database.execute("INSERT OR IGNORE INTO known VALUES (?, ?)", (data, _text(value)))) as done:
            if done.rowcount:
                return None
        with closing(self._database.execute("SELECT value FROM known WHERE key = ?", (data,))) as found:
            return _untext(found.fetchone()[0])


def _text(value: str) -> str:
    return value.encode("utf-8", "surrogatepass").decode("latin-1")


def _untext(value: str) -> str:
    return value.encode("latin-1").decode("utf-8", "surrogatepass")
