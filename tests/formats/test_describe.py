import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from sctok.formats.codebooks import Codebook, CodebookInfo, Segment, codebook_hash, codebook_path, save_codebook
from sctok.formats.describe import count_summary, describe_file
from sctok.formats.feature_shards import FeatureShard, FeatureShardWriter
from sctok.formats.files import FormatError, write_json
from sctok.formats.sct import CodecTokens, write_sct
from sctok.formats.tensors import save_tensors
from sctok.formats.token_shards import TokenShardWriter


def described(path: Path) -> dict[str, Any]:
    facts = describe_file(path)
    assert next(iter(facts)) == "kind"
    json.dumps(facts, allow_nan=False)
    return facts


def test_feature_shard(tmp_path: Path) -> None:
    provenance = {"encoder": "mini", "encoder_hash": "abc"}
    with FeatureShardWriter(tmp_path / "s.h5", width=4, provenance=provenance) as writer:
        writer.add_clip("short", np.zeros((8, 4), np.float32), 16_000 * 1800)
        writer.add_clip("long", np.zeros((40, 4), np.float32), 16_000 * 1800)
    facts = described(tmp_path / "s.h5")
    assert facts["kind"] == "feature shard"
    assert facts["size_bytes"] == (tmp_path / "s.h5").stat().st_size
    assert (facts["clips"], facts["hours"], facts["rows"], facts["width"]) == (2, 1.0, 48, 4)
    assert facts["vectors"] == {"r100": 48, "r50": 24, "r25": 8}
    assert facts["longest_clip"] == "long"
    assert facts["provenance"]["encoder_hash"] == "abc"
    with FeatureShard(tmp_path / "s.h5") as shard:
        assert facts["content_hash"] == shard.content_hash


def codebook() -> Codebook:
    info = CodebookInfo(
        "merged", (Segment("a", 0, 1), Segment("b", 1, 4)), 2, "mini", "abc", inertia_history=(3.0, 2.0)
    )
    return Codebook(np.eye(4, 6, dtype=np.float32), np.array([2, 2, 0, 0]), info)


def test_codebook(tmp_path: Path) -> None:
    save_codebook(tmp_path / "c.safetensors", codebook())
    facts = described(tmp_path / "c.safetensors")
    assert (facts["kind"], facts["k"], facts["dims"], facts["token_rate"]) == ("codebook", 4, 6, 50)
    assert facts["hash"] == codebook_hash(codebook())
    assert facts["segments"][1] == {"domain": "b", "start": 1, "stop": 4}
    assert (facts["counts"]["dead"], facts["counts"]["perplexity"]) == (2, 2.0)
    assert (facts["inertia"], facts["passes"]) == (2.0, 2)
    assert facts["inertia_history"][-1] == 2.0


def test_codebook_folder(tmp_path: Path) -> None:
    save_codebook(codebook_path(tmp_path, "merged", 4, 50), codebook())
    facts = described(tmp_path)
    assert facts["kind"] == "codebook folder"
    assert facts["codebooks"] == [{"domain": "merged", "k": 4, "token_rate": 50, "path": "merged-4-r50.safetensors"}]


def test_token_shard(tmp_path: Path) -> None:
    with TokenShardWriter(tmp_path / "t.tar", codebook_sizes=(8, 8)) as writer:
        for key, samples in (("a", 8000), ("b", 8000 * 7199)):
            tokens = np.array([[0, 5], [1, 5]])
            writer.add(key, tokens, {"samples": samples, "sample_rate": 16_000, "codebook": "abc"})
    facts = described(tmp_path / "t.tar")
    assert (facts["kind"], facts["files"], facts["hours"]) == ("token shard", 2, 1.0)
    assert (facts["streams"], facts["tokens_per_stream"]) == (2, 4)
    assert facts["usage"] == [{"distinct": 2, "perplexity": 2.0}, {"distinct": 1, "perplexity": 1.0}]
    assert facts["same_in_all_files"] == {"sample_rate": 16_000, "codebook": "abc"}


def test_token_file(tmp_path: Path) -> None:
    write_sct(tmp_path / "t.sct", CodecTokens(np.array([[0, 5], [1, 5]]), 8000, 50, (4096, 8192), "0" * 16, "1" * 16))
    facts = described(tmp_path / "t.sct")
    assert (facts["kind"], facts["seconds"], facts["token_rate"]) == ("token file", 0.5, 50)
    assert (facts["size_bytes"], facts["bits_per_second"]) == (63, 625)
    assert (facts["codebook_hash"], facts["codec_hash"]) == ("0" * 16, "1" * 16)
    assert facts["usage"] == [{"distinct": 2, "perplexity": 2.0}, {"distinct": 1, "perplexity": 1.0}]


def test_empty_shards(tmp_path: Path) -> None:
    with TokenShardWriter(tmp_path / "t.tar", codebook_sizes=(8,)):
        pass
    with FeatureShardWriter(tmp_path / "s.h5", width=4, provenance={"encoder": "e", "encoder_hash": "h"}):
        pass
    assert described(tmp_path / "t.tar")["files"] == 0
    assert described(tmp_path / "s.h5")["clips"] == 0


@pytest.mark.parametrize("packed", [True, False])
def test_encoder_weights(tmp_path: Path, packed: bool) -> None:
    tensors = {"w": np.zeros((3, 5), np.float16), "scale": np.zeros((), np.float32)}
    if packed:
        save_tensors(tmp_path / "e", tensors, format_name="sctok-encoder", version=1, metadata={"name": "mini"})
    else:
        safetensors.numpy.save_file(tensors, tmp_path / "e", {"format": "sctok-encoder", "name": "mini"})
    facts = described(tmp_path / "e")
    assert (facts["kind"], facts["tensors"], facts["parameters"]) == ("encoder weights", 2, 16)
    assert facts["metadata"]["name"] == "mini"


@pytest.mark.parametrize("what", ["pretraining", "kmeans-checkpoint", "training"])
def test_checkpoints(tmp_path: Path, what: str) -> None:
    save_tensors(tmp_path / "c", {"w": np.zeros(3)}, format_name=f"sctok-{what}", version=1, metadata={"step": 7})
    facts = described(tmp_path / "c")
    assert facts["kind"].startswith("checkpoint of ")
    assert facts["metadata"]["step"] == 7


def test_codec_folder_and_part(tmp_path: Path) -> None:
    part = {"format_name": "sctok-codec-part", "version": 1, "metadata": {"kind": "vae", "config": {"channels": 8}}}
    for name in ("acoustic", "vae"):
        save_tensors(tmp_path / f"{name}.safetensors", {"w": np.zeros((2, 3))}, **part)
    save_codebook(tmp_path / "codebook-4.safetensors", codebook())
    write_json(tmp_path / "codec.json", {"format": "sctok-codec", "name": "mine", "token_rate": 50})
    facts = described(tmp_path / "vae.safetensors")
    assert (facts["kind"], facts["parameters"], facts["metadata"]["kind"]) == ("part of a codec", 6, "vae")
    facts = described(tmp_path)
    assert (facts["kind"], facts["codec"]["name"]) == ("codec folder", "mine")
    assert [(row["file"], row["kind"], row["values"]) for row in facts["parts"]] == [
        ("acoustic.safetensors", "vae", 6),
        ("codebook-4.safetensors", "codebook", 28),
        ("vae.safetensors", "vae", 6),
    ]
    listed = {
        "codebooks": {"codebook-4.safetensors": "0", "codebook-8.safetensors": "0"},
        "encoder": "encoder.safetensors",
    }
    write_json(tmp_path / "codec.json", {"format": "sctok-codec", **listed})
    with pytest.raises(
        FormatError, match=r"not a whole codec: codebook-8\.safetensors, encoder\.safetensors is missing"
    ):
        describe_file(tmp_path)
    write_json(tmp_path / "codec.json", {"format": "other"})
    with pytest.raises(FormatError, match=r"codec\.json is not a file that sctok writes"):
        describe_file(tmp_path)


def test_run_and_run_folder(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"format": "sctok-run", "encoder": "mini"})
    assert described(tmp_path / "run.json")["run"]["encoder"] == "mini"
    (tmp_path / "manifest.jsonl").write_text("{}\n{}\n")
    (tmp_path / "shard-00000.tar").write_bytes(b"12345")
    write_json(tmp_path / "summary.json", {"hours": 2})
    facts = described(tmp_path)
    assert facts["kind"] == "run folder"
    assert (facts["files_listed"], facts["files_failed"], facts["shards_written"], facts["shard_bytes"]) == (2, 0, 1, 5)
    assert facts["summary"] == {"hours": 2}
    assert facts["run"] == {"format": "sctok-run", "encoder": "mini"}


@pytest.mark.parametrize("name", ["a.txt", "a.wav", "a.json", "a.tar", "a.h5", "empty", "lead{"])
def test_unknown_files_are_refused(tmp_path: Path, name: str) -> None:
    content = {"empty": b"", "lead{": b'{"run": {"format": 1}}', "a.json": b'{"run": {"a": 1}}'}
    (tmp_path / name).write_bytes(content.get(name, b"RIFF of nothing"))
    with pytest.raises(FormatError, match="is not a file that sctok writes") as caught:
        describe_file(tmp_path / name)
    assert name in str(caught.value)


def test_unknown_folders_and_foreign_tensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="is not a file that sctok writes"):
        describe_file(tmp_path)
    safetensors.numpy.save_file({"w": np.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(FormatError, match=r"w\.safetensors is not a file that sctok writes"):
        describe_file(tmp_path / "w.safetensors")
    with pytest.raises(FileNotFoundError):
        describe_file(tmp_path / "missing")


@pytest.mark.parametrize("name", ["pipe", "pipe.json", "pipe.tar"])
def test_pipes_are_refused_without_waiting(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(FormatError, match=f"{name} is neither a regular file nor a folder"):
        describe_file(tmp_path / name)


def test_count_summary_by_hand() -> None:
    facts = count_summary(np.array([4, 4, 4, 4, 0]))
    assert facts == {"total": 16, "min": 0, "median": 4.0, "max": 4, "dead": 1, "entropy_bits": 2.0, "perplexity": 4.0}
