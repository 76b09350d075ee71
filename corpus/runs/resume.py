"""Where a run resumes: which shards are done, which inputs are left, and which results are stale.

A shard is done if its file exists and no `.retry.jsonl` next to it names inputs to try again (`RunFolder.finished`).
Each of the other shards is claimed by one process (`claim_work`). A result is stale if its audio file
changed or vanished after it was read (`find_stale`).
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

from sctok.audio.errors import AudioError
from sctok.audio.inputs.sources import AudioItem, list_audio
from sctok.formats.files import sync_folder

from .checksums import hash_keys, read_record, write_record
from .locks import Claim
from .manifest import Planned, Stamp, hash_content, stamp_file
from .run_folder import MANIFEST, RunError, RunFolder, Shard, shard_names

Relist = Callable[[str], Mapping[str, AudioItem]]


@dataclass(frozen=True)
class ShardContents:
    """What a finished shard says about itself: the hash of its configuration, None if it is empty, and its keys."""

    config_hash: str | None
    keys: tuple[str, ...]


ReadShard = Callable[[Path], ShardContents]


def all_shards(index: int) -> bool:
    """Accept every shard number."""
    return True


def keys_left(runs: Sequence[RunFolder], shard: Shard) -> dict[int, frozenset[str] | None]:
    """For each run in which a shard is not done, return the keys to read, by the position of the run; None means all
    keys.
    """
    return {place: run.retry_keys(shard) for place, run in enumerate(runs) if not run.finished(shard.index)}


def files_left(runs: Sequence[RunFolder], mine: Callable[[int], bool] = all_shards) -> dict[int, int]:
    """Return the number of files to read for each shard number in `mine` that is not done in all runs."""
    found = {}
    for shard in runs[0].shards():
        wanted = keys_left(runs, shard)
        if wanted and mine(shard.index):
            found[shard.index] = len(Work(shard, wanted, ()).items)
    return found


def mark_retries(run: RunFolder, mine: Callable[[int], bool] = all_shards) -> int:
    """Mark all failed inputs in finished shards for another try, and return their number.

    The other files of those shards stay as they are; they are copied when the shard is written again.
    """
    marked = 0
    with run.locked():
        for index in filter(mine, run.existing_shards()):
            if run.failures_path(index).exists() and run.finished(index):
                marked += sum(1 for _ in run.shard_failures(index))
                run.failures_path(index).rename(run.retry_path(index))
        sync_folder(run.path)
    return marked


@dataclass(frozen=True)
class Work:
    """A claimed shard of one or several runs over the same plan.

    wanted: the result of `keys_left`. stamps: of the files, taken before anything is read.
    """

    shard: Shard
    wanted: Mapping[int, frozenset[str] | None]
    claims: tuple[Claim, ...]
    stamps: Mapping[str, Stamp | None] = field(default_factory=dict)

    @cached_property
    def contents(self) -> dict[str, str | None]:
        """Hashes of the inputs after they were read; None for an input that changed meanwhile, except by growing."""
        # After reading, the bytes are still in the page cache, and hashing lets other threads work.
        return {item.key: _hash_as_read(item, self.stamps.get(item.key)) for item in self.items}

    @property
    def items(self) -> tuple[AudioItem, ...]:
        """The inputs to read, in the order of the shard."""
        if any(keys is None for keys in self.wanted.values()):
            return self.shard.items
        keys = frozenset[str]().union(*(keys or () for keys in self.wanted.values()))
        return tuple(item for item in self.shard.items if item.key in keys)

    def release(self) -> None:
        """Release the claims."""
        for claim in self.claims:
            claim.release()


def _hash_as_read(item: AudioItem, before: Stamp | None) -> str | None:
    """Return the hash of an input when its file had the stamp `before`, or None if those bytes no longer exist."""
    if before is None:
        return None
    found, after = hash_content(item, None if item.offset is not None else before.bytes), stamp_file(item.path)
    grown = after is not None and item.offset is None and after.bytes > before.bytes
    return found if after == before or grown else None


def claim_work(runs: Sequence[RunFolder], mine: Callable[[int], bool] = all_shards) -> Iterator[Work]:
    """Claim the shards that are left one after the other, skipping those that other processes work on.

    Args:
        runs: with equal manifests.
        mine: which shard numbers to work on.

    Yields:
        shards in order; the caller releases them.
    """
    leftovers = [run.temporaries() for run in runs]
    last: int | None = -1
    while last is not None:
        last = yield from _claim_from(runs, mine, leftovers, last)


def _claim_from(
    runs: Sequence[RunFolder], mine: Callable[[int], bool], leftovers: Sequence[dict[int, list[Path]]], last: int
) -> Generator[Work, None, int | None]:
    """Claim the shards after `last`; return None at the end, or the last one if another process changed the plan."""
    plan = _identify_plan(runs)
    for shard in runs[0].shards():
        if shard.index <= last or not mine(shard.index) or all(run.finished(shard.index) for run in runs):
            continue
        claims: list[Claim] = []
        for run, left in zip(runs, leftovers, strict=True):
            claim = run.claim(shard.index, left.get(shard.index, ()))
            if claim is None:
                break
            claims.append(claim)
        wanted = keys_left(runs, shard)
        work = Work(shard, wanted, tuple(claims), {item.key: stamp_file(item.path) for item in shard.items})
        if _identify_plan(runs) != plan:
            work.release()
            return last
        last = shard.index
        if len(claims) == len(runs) and wanted:
            yield work
        else:
            work.release()
    return None


def _identify_plan(runs: Sequence[RunFolder]) -> tuple[int, int]:
    """Return values that change when the manifest of the runs is replaced."""
    status = (runs[0].path / MANIFEST).stat()
    return status.st_ino, status.st_mtime_ns


def check_finished_shards(run: RunFolder, read_shard: ReadShard) -> None:
    """Raise RunError unless each finished shard holds the inputs that the manifest, which may lack lines, plans for it.

    A shard without a record is read, and gets one.
    """
    wrong = set(run.existing_shards())
    for shard in run.shards() if wrong else ():
        if shard.index in wrong and (not run.finished(shard.index) or _fits_plan(run, shard, read_shard)):
            wrong.remove(shard.index)
    if wrong:
        raise RunError(
            f"{run.path / MANIFEST} plans other inputs than these finished shards hold: delete {shard_names(wrong)} "
            "there and run the same command again"
        )


def _fits_plan(run: RunFolder, shard: Shard, read_shard: ReadShard) -> bool:
    failed = {failure.key for failure in run.shard_failures(shard.index)}
    keys = [item.key for item in shard.items if item.key not in failed]
    path, record = run.shard_path(shard.index), run.record_path(shard.index)
    if not record.exists():
        if list(read_shard(path).keys) != keys:
            return False
        same = [row.item for row in shard.planned if row.stamp is not None and not row.changed]
        contents = {item.key: hash_content(item) for item in same if item.key not in failed}
        write_record(record, path, keys, shard.inputs_hash, contents)
    found = read_record(record)
    if found.inputs not in (None, shard.inputs_hash):
        return False
    return (found.bytes, found.keys) == (path.stat().st_size, hash_keys(keys))


@dataclass
class Stale:
    """Inputs that differ from the manifests of runs.

    changed, gone: number of inputs with results that changed or vanished. first: one of them, for messages. shards:
    those of their shards. unread: shards with changed inputs that were not read yet.
    """

    changed: int = 0
    gone: int = 0
    first: str = ""
    shards: set[int] = field(default_factory=set)
    unread: set[int] = field(default_factory=set)

    def add(self, row: Planned, gone: bool) -> None:
        """Count an input with a result."""
        self.first = self.first or f"{row.item.name} ({'is gone' if gone else 'changed'})"
        self.gone += gone
        self.changed += not gone
        self.shards.add(row.shard)


def find_stale(runs: Sequence[RunFolder], *, refresh: bool) -> Stale:
    """Compare the inputs of runs with the files as they are now.

    A file with the size and modification time of the manifest is unchanged. For any other file, its bytes are compared
    with their hash in the record of the shard; in an archive, the bytes of the input at the same place. Failed inputs
    count as stale only with `refresh`.
    """
    found = Stale()
    for run in runs:
        relist = archive_index()
        for shard in run.shards():
            changed = [row for row in shard.planned if row.changed]
            if changed:
                state = _ShardState(run, shard)
                for row in changed:
                    _judge(row, find_now(row.item, relist), state, refresh, found)
    return found


class _ShardState:
    """Which inputs of a shard are to be read again (None for all) and which failed, and the hashes of those read."""

    def __init__(self, run: RunFolder, shard: Shard) -> None:
        finished, record = run.finished(shard.index), run.record_path(shard.index)
        self.again = frozenset[str]() if finished else run.retry_keys(shard)
        self.failed = {failure.key for failure in run.shard_failures(shard.index)} if finished else frozenset[str]()
        self.contents = (read_record(record).contents if record.exists() else None) or {}


def _judge(row: Planned, now: AudioItem | None, state: _ShardState, refresh: bool, found: Stale) -> None:
    """Decide about an input whose file has another stamp; `now` is the input as listed now, None if it is gone."""
    item = row.item
    if refresh or now not in (item, None):
        found.add(row, gone=now is None)
    elif state.again is None or item.key in state.again:
        # A file of the same size was probably copied or touched: its line stays as it is.
        resized = row.stamp is not None and (stamp := stamp_file(item.path)) and stamp.bytes != row.stamp.bytes
        if now is not None and item.offset is None and (resized or state.again is not None):
            found.unread.add(row.shard)
    elif item.key not in state.failed and (now is None or hash_content(item) != state.contents.get(item.key)):
        found.add(row, gone=now is None)


def find_now(item: AudioItem, relist: Relist) -> AudioItem | None:
    """Return an input as it would be listed now; None if it is gone. relist: the result of `archive_index`."""
    if stamp_file(item.path) is None:
        return None
    return item if item.offset is None else relist(item.path).get(item.key)


def archive_index() -> Relist:
    """Return a function that lists the inputs of a tar by key; it remembers the last few tars."""
    return lru_cache(maxsize=4)(_list_archive)


def _list_archive(path: str) -> dict[str, AudioItem]:
    try:
        return {item.key: item for item in list_audio([path]) if isinstance(item, AudioItem)}
    except AudioError:
        return {}
