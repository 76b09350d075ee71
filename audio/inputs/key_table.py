"""A table of texts that moves to an unnamed temporary file if it outgrows memory."""

import sqlite3
from contextlib import closing

_CACHE_KIB = 16_384


def open_spill() -> sqlite3.Connection:
    """Return a private database that uses 16 MiB of memory and an unnamed temporary file in TMPDIR for the rest."""
    database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    for setting in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{_CACHE_KIB}", "locking_mode=EXCLUSIVE"):
        database.execute(f"PRAGMA {setting}")
    database.execute("BEGIN")
    return database


class KeyTable:
    """The first value of each key, in 16 MiB of memory and a temporary file in TMPDIR for the rest."""

    def __init__(self) -> None:
        self._database = open_spill()
        self._database.execute("CREATE TABLE known (key BLOB PRIMARY KEY, value TEXT) WITHOUT ROWID")

    def add(self, key: str, value: str) -> str | None:
        """Store the value of a new key and return None; return the stored value of a known key."""
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
