"""Describing any file that sctok writes."""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sctok.formats.untrusted.paths import is_file_name

from .bundled import bundled_name
from .codebooks import CODEBOOK_FORMAT, codebook_hash, find_codebooks, load_codebook
from .feature_shards import FEATURES_FORMAT, SAMPLE_RATE, FeatureShard
from .files import FormatError, damaged, foreign, read_json
from .sct import SCT_FORMAT, SCT_MAGIC, read_sct
from .stacking import TOKEN_RATES
from .tensors import begins_as_safetensors, encoder_hash, read_arrays, read_header
from .token_shards import TOKENS_FORMAT, read_token_shard

ENCODER_FORMAT = "sctok-encoder"
TENSOR_FORMATS = {
    ENCODER_FORMAT: "encoder weights",
    "sctok-pretraining": "checkpoint of pretraining",
    "sctok-kmeans-checkpoint": "checkpoint of k-means",
    "sctok-training": "checkpoint of training",
    "sctok-codec-part": "part of a codec",
}
RUN_FILE = "run.json"
SUMMARY_FILE = "summary.json"
CODEC_FILE, CODEC_FORMAT = "codec.json", "sctok-codec"

_SECONDS_PER_HOUR = 3600


def describe_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Describe and check a file or folder that sctok writes, as JSON values in the order in which to print them.

    First comes `kind`: "feature shard", "codebook", "token shard", "token file", "encoder weights", "checkpoint of …",
    "part of a codec", "run", "run folder", "run summary", "codebook folder" or "codec folder"; then `path` and, for a
    file, `size_bytes`. `run`, `summary` and `codec` are the contents of `run.json`, `summary.json` and `codec.json`.
    The last is `bundled_codebook`: the name of the codebook in the package that is described or made the tokens.

    Raises FileNotFoundError; FormatError for files that sctok does not write, and for damaged ones.
    """
    target = Path(path)
    if target.is_dir():
        return _name_codebook(_describe_folder(target))
    if target.exists() and not target.is_file():
        raise FormatError(f"{path} is neither a regular file nor a folder; check the path")  # reading it could hang
    with target.open("rb") as file:
        head = file.read(512)
    for looks_like, describe in _KINDS:
        if looks_like(target, head):
            facts = describe(target)
            about = {"kind": facts.pop("kind"), "path": str(path), "size_bytes": target.stat().st_size}
            return _name_codebook({**about, **facts})
    raise foreign(path)


def _name_codebook(facts: dict[str, Any]) -> dict[str, Any]:
    """Add the name of the bundled codebook if it is described or made the tokens."""
    places = (facts, facts.get("run", {}), facts.get("same_in_all_files", {}))
    known = facts["hash"] if facts["kind"] == "codebook" else None
    known = known or next((place["codebook_hash"] for place in places if "codebook_hash" in place), None)
    name = bundled_name(known) if known else None
    return {**facts, "bundled_codebook": name} if name else facts


def count_summary(counts: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Summarise how often each of k centroids was chosen: counts, integers (k,), not all zero.

    Returns total, min, median, max, dead (centroids never chosen), entropy_bits and perplexity (2 to the power of the
    entropy; k if all are chosen equally often).
    """
    total = int(counts.sum())
    shares = counts[counts > 0] / total
    entropy = float(-(shares * np.log2(shares)).sum()) + 0.0  # no negative zero
    return {
        "total": total,
        "min": int(counts.min()),
        "median": float(np.median(counts)),
        "max": int(counts.max()),
        "dead": int((counts == 0).sum()),
        "entropy_bits": round(entropy, 4),
        "perplexity": round(2.0**entropy, 2),
    }


def _describe_features(path: Path) -> dict[str, Any]:
    with FeatureShard(path) as shard:
        shard.verify()
        seconds = sum(clip.samples for clip in shard.clips) / SAMPLE_RATE
        longest = max(shard.clips, key=lambda clip: clip.rows, default=None)
        return {
            "kind": "feature shard",
            "format": FEATURES_FORMAT,
            "clips": len(shard.clips),
            "hours": round(seconds / _SECONDS_PER_HOUR, 4),
            "rows": shard.rows,
            "width": shard.width,
            "vectors": {f"r{rate}": shard.stacked_rows(stack) for stack, rate in TOKEN_RATES.items()},
            "first_clip": shard.clips[0].key if shard.clips else None,
            "longest_clip": longest.key if longest else None,
            "content_hash": shard.content_hash,
            "provenance": shard.provenance,
        }


def _describe_safetensors(path: Path) -> dict[str, Any]:
    metadata, shapes = read_header(path)
    format_name = metadata.get("format")
    if format_name == CODEBOOK_FORMAT:
        return _describe_codebook(path)
    if format_name not in TENSOR_FORMATS:
        raise foreign(path)
    facts = {
        "kind": TENSOR_FORMATS[format_name],
        "format": format_name,
        "tensors": len(shapes),
        "parameters": _count_values(shapes),
        "metadata": {name: metadata[name] for name in sorted(metadata) if name != "format"},
    }
    return facts | {"hash": encoder_hash(read_arrays(path))} if format_name == ENCODER_FORMAT else facts


def _describe_codebook(path: Path) -> dict[str, Any]:
    codebook = load_codebook(path)
    info = codebook.metadata
    history = info.inertia_history
    return {
        "kind": "codebook",
        "format": CODEBOOK_FORMAT,
        "format_version": info.format_version,
        "hash": codebook_hash(codebook),
        "domain": info.domain,
        "k": codebook.k,
        "dims": codebook.centroids.shape[1],
        "stack_factor": info.stack_factor,
        "token_rate": info.token_rate,
        "segments": [asdict(segment) for segment in info.segments],
        "encoder": info.encoder,
        "encoder_hash": info.encoder_hash,
        "n_vectors": info.n_vectors,
        "counts": count_summary(codebook.counts) if codebook.counts.any() else None,
        "inertia": history[-1] if history else None,
        "passes": len(history),
        "inertia_history": list(history),
        "algorithm": info.algorithm,
        "precision": info.precision,
        "seed": info.seed,
        "certificate": info.certificate,
        "sctok_version": info.sctok_version,
    }


def _describe_tokens(path: Path) -> dict[str, Any]:
    files, seconds, first = 0, 0.0, None
    usage: list[Counter[int]] = []
    shared: dict[str, Any] = {}
    for key, tokens, info in read_token_shard(path):
        if files == 0:
            first, shared = key, info
            usage = [Counter() for _ in range(tokens.shape[1])]
        files += 1
        seconds += info.get("samples", 0) / info.get("sample_rate", SAMPLE_RATE)
        shared = {name: value for name, value in shared.items() if name in info and info[name] == value}
        for counter, stream in zip(usage, tokens.T, strict=True):
            values, counts = np.unique(stream, return_counts=True)
            counter.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    return {
        "kind": "token shard",
        "format": TOKENS_FORMAT,
        "files": files,
        "hours": round(seconds / _SECONDS_PER_HOUR, 4),
        "streams": len(usage),
        "tokens_per_stream": usage[0].total() if usage else 0,
        "usage": [_usage_summary(counter) for counter in usage],
        "first_key": first,
        "same_in_all_files": dict(sorted(shared.items())),
    }


def _describe_sct(path: Path) -> dict[str, Any]:
    content = read_sct(path)
    seconds = content.samples / SAMPLE_RATE
    return {
        "kind": "token file",
        "format": SCT_FORMAT,
        "seconds": seconds,
        "samples": content.samples,
        "tokens_per_stream": len(content.tokens),
        "token_rate": content.token_rate,
        "codebook_sizes": list(content.codebook_sizes),
        "codebook_hash": content.codebook_hash,
        "codec_hash": content.codec_hash,
        "bits_per_second": content.bitrate,
        "usage": [_usage_summary(Counter(stream.tolist())) for stream in content.tokens.T],
    }


def _usage_summary(counter: Counter[int]) -> dict[str, Any]:
    counts = np.array(list(counter.values()), np.int64)
    return {"distinct": len(counts), "perplexity": count_summary(counts)["perplexity"] if len(counts) else 0.0}


def _describe_run(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise foreign(path)
    if path.name == SUMMARY_FILE:
        return {"kind": "run summary", "summary": content}
    if path.name != RUN_FILE and not str(content.get("format", "")).startswith("sctok-"):
        raise foreign(path)
    return {"kind": "run", "run": content}


def _describe_folder(folder: Path) -> dict[str, Any]:
    if (folder / RUN_FILE).is_file():
        shards = [path for suffix in ("*.h5", "*.tar") for path in folder.glob(suffix)]
        return {
            "kind": "run folder",
            "path": str(folder),
            "files_listed": _lines(folder / "manifest.jsonl"),
            "files_failed": _lines(folder / "failed.jsonl"),
            "shards_written": len(shards),
            "shard_bytes": sum(path.stat().st_size for path in shards),
            "summary": read_json(folder / SUMMARY_FILE) if (folder / SUMMARY_FILE).is_file() else None,
            "run": _describe_run(folder / RUN_FILE)["run"],
        }
    if (folder / CODEC_FILE).is_file():
        return _describe_codec(folder)
    codebooks = [{**asdict(book), "path": book.path.name} for book in find_codebooks(folder)]
    if not codebooks:
        raise foreign(folder)
    return {"kind": "codebook folder", "path": str(folder), "codebooks": codebooks}


def _describe_codec(folder: Path) -> dict[str, Any]:
    content = read_json(folder / CODEC_FILE)
    if not isinstance(content, dict) or content.get("format") != CODEC_FORMAT:
        raise foreign(folder / CODEC_FILE, CODEC_FORMAT)
    parts = _codec_parts(content)
    if foreign_names := [name for name in parts if not is_file_name(name)]:
        raise damaged(folder / CODEC_FILE, f"{foreign_names[0]!r:.200} is not a file of this folder")
    if missing := [name for name in parts if not (folder / name).is_file()]:
        raise FormatError(f"{folder} is not a whole codec: {', '.join(missing)} is missing; make or import it again")
    described = []
    for path in sorted(folder.glob("*.safetensors")):
        metadata, shapes = read_header(path)
        kind = metadata.get("kind") or str(metadata.get("format", "")).removeprefix("sctok-")
        described.append(
            {"file": path.name, "kind": kind, "values": _count_values(shapes), "bytes": path.stat().st_size}
        )
    return {"kind": "codec folder", "path": str(folder), "codec": content, "parts": described}


def _codec_parts(content: Mapping[str, Any]) -> list[str]:
    """Return the file names of the parts of a codec."""
    listed = [content.get("codebooks"), content.get("decoder_hashes")]
    names = [name for part in listed if isinstance(part, dict) for name in part]
    encoder = str(content.get("encoder", ""))
    return ["acoustic.safetensors", *names, *([encoder] if encoder.endswith(".safetensors") else [])]


def _count_values(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())


def _lines(path: Path) -> int:
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(1 for _ in file)


# Tests of (path, first bytes of the file) and what describes the file; the first true test decides.
_KINDS: tuple[tuple[Callable[[Path, bytes], bool], Callable[[Path], dict[str, Any]]], ...] = (
    (lambda _, head: head.startswith(b"\x89HDF\r\n\x1a\n"), _describe_features),
    (lambda _, head: head.startswith(SCT_MAGIC), _describe_sct),
    (lambda path, _: path.suffix == ".json", _describe_run),
    (lambda path, head: path.suffix == ".tar" or head[257:262] == b"ustar", _describe_tokens),
    (lambda path, head: path.suffix == ".safetensors" or begins_as_safetensors(head), _describe_safetensors),
)
