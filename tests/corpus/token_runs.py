"""Run folders of two token streams, written without an encoder, and exports in processes that end early."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet  # noqa: F401  # once, before processes are forked

from sctok.audio.inputs.sources import AudioItem
from sctok.corpus.exports.run import ExportConfig, export_tokens
from sctok.corpus.exports.sources import open_tokens
from sctok.corpus.runs.manifest import Planned, json_line
from sctok.corpus.runs.run_folder import RunFolder
from sctok.formats.files import write_json
from sctok.formats.token_shards import TokenShardWriter

SIZES = (32, 8)
STREAMS = ("semantic", "acoustic")
KEYS = ("part 0/clïp", "part 0/clip.v2", "part 1/b", "byte\udcff", "tab\tand line\n", "z", "last")


def tokens_of(key: str, sizes: tuple[int, ...] = SIZES) -> np.ndarray:
    """Return the tokens of a file, with repeated steps; the file "z" has none."""
    rng = np.random.default_rng(len(key))
    count = 0 if key == "z" else 3 + 5 * len(key)
    return np.repeat(rng.integers(0, sizes, (count, len(sizes))), rng.integers(1, 4, count), axis=0)


def write_run(
    folder: Path,
    keys: tuple[str, ...] = KEYS,
    *,
    files_per_shard: int = 3,
    sizes: tuple[int, ...] = SIZES,
    unfinished: tuple[int, ...] = (),
    info: Mapping[str, Any] | None = None,
) -> Path:
    """Write a run of tokenization with the tokens of `keys`; `info` overrides the info of its files."""
    streams = STREAMS[: len(sizes)]
    config = {
        "format": "sctok-run",
        "format_version": 1,
        "kind": "tokens",
        "streams": list(streams),
        "codebook_hash": "c0debook",
        "codec_hash": "c0dec",
        "encoder_hash": "enc0der",
        "codebook_sizes": list(sizes),
        "token_rate": 100,
    }
    run = RunFolder(folder, config, ".tar")
    write_json(folder / "run.json", config)
    items = [AudioItem(key, f"/audio/{key}.wav", suffix=".wav") for key in keys]
    planned = [Planned(index // files_per_shard, item) for index, item in enumerate(items)]
    (folder / "manifest.jsonl").write_bytes(b"".join(json_line(row.to_json()) for row in planned))
    shared = {name: config[name] for name in ("streams", "token_rate", "codebook_hash", "codec_hash", "encoder_hash")}
    shared |= {"sample_rate": 16_000, "config_hash": run.config_hash, **(info or {})}
    for shard in run.shards():
        if shard.index in unfinished:
            continue
        with TokenShardWriter(run.shard_path(shard.index), codebook_sizes=sizes) as writer:
            for item in shard.items:
                tokens = tokens_of(item.key, sizes)
                source = {"path": item.path, "speaker": len(item.key)}
                writer.add(item.key, tokens, {**shared, "samples": 320 * len(tokens), "source": source})
    return folder


def _crash_everywhere(run: str, folder: str, to: str, part_bytes: str) -> None:
    """Export repeatedly, killing try n at its n-th sync or rename, until one ends; print the number of tries."""
    tries = 0
    while True:
        tries += 1
        child = os.fork()
        if not child:
            _end_at(tries)
            export_tokens(
                open_tokens([Path(run)]), Path(folder), ExportConfig(to, dedup=True, part_bytes=int(part_bytes))
            )
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            print(tries)
            return


def _end_at(count: int) -> None:
    left = count

    def ending(work: Any) -> Any:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left <= 0:
                os._exit(9)
            return work(*arguments, **options)

        return wrapper

    os.fsync, os.replace, os.unlink = ending(os.fsync), ending(os.replace), ending(os.unlink)
    Path.replace = ending(Path.replace)  # type: ignore[method-assign]


if __name__ == "__main__":
    _crash_everywhere(*sys.argv[1:])
