"""What could not be listed, in the order in which it was found; it may outgrow memory."""

from collections.abc import Iterator

from sctok.audio.inputs.key_table import open_spill

from .manifest import Failure


class Complaints:
    """The problems of listing that stand. Memory: 16 MiB, however many there are; the rest is on disk, in TMPDIR."""

    def __init__(self) -> None:
        self._database = open_spill()
        self._database.execute(
            "CREATE TABLE listed (number INTEGER PRIMARY KEY, first BLOB, second BLOB, key BLOB, path BLOB, "
            "reason BLOB)"
        )
        self._database.execute("CREATE UNIQUE INDEX identities ON listed (first, second)")
        self._database.execute("CREATE INDEX whole ON listed (path) WHERE key = x''")
        self._empty = True

    def add(self, failure: Failure) -> None:
        """Remember a problem, in the place of an earlier one of the same identity."""
        self._empty = False
        identity, row = map(_bytes, failure.identity), map(_bytes, (failure.key, failure.path, failure.reason))
        self._database.execute(
            "INSERT INTO listed (first, second, key, path, reason) VALUES (?, ?, ?, ?, ?) ON CONFLICT (first, second) "
            "DO UPDATE SET key = excluded.key, path = excluded.path, reason = excluded.reason",
            (*identity, *row),
        )

    def take_back(self, key: str, path: str) -> None:
        """Forget the problem of an input that was listed after all, and those of the tar that it lies in."""
        if not self._empty:
            self._database.execute("DELETE FROM listed WHERE first = ? AND second = ?", (_bytes(key), _bytes(path)))
            self._database.execute("DELETE FROM listed WHERE key = x'' AND path = ?", (_bytes(path),))

    def __iter__(self) -> Iterator[Failure]:
        for row in self._database.execute("SELECT key, path, reason FROM listed ORDER BY number"):
            yield Failure(*(part.decode("utf-8", "surrogatepass") for part in row))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
