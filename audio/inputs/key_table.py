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
        self._database.execute("CREATE TABLE known (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")

    def add(self, key: str, value: str) -> str | None:
        """Store the value of a new key and return None; return the stored value of a known key."""
        row = [text.encode("utf-8", "surrogatepass") for text in (key, value)]
        with closing(self._database.execute("INSERT OR IGNORE INTO known VALUES (?, ?)", row)) as done:
            if done.rowcount:
                return None
        with closing(self._database.execute("SELECT value FROM known WHERE key = ?", row[:1])) as found:
            stored: bytes = found.fetchone()[0]
            return stored.decode("utf-8", "surrogatepass")
