import json

import numpy as np
import pytest
import webdataset

from sctok.cli.app import main
from sctok.formats.token_shards import read_token_shard


@pytest.mark.slow
def test_the_demo_ends_with_tokens_of_every_clip(tmp_path, capsys, samples_folder):
    assert main(["demo", "--root", str(tmp_path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    clips = sorted(
        path.relative_to(samples_folder).with_suffix("").as_posix() for path in samples_folder.rglob("*.flac")
    )
    assert [row["clip"] for row in result["clips"]] == clips
    assert all(row["tokens"] >= 50 * row["seconds"] for row in result["clips"])
    shards = [str(path) for path in (tmp_path / "demo" / "tokens" / "demo").glob("*.tar")]
    read = {
        sample["__key__"]: sample["tokens.npy"] for sample in webdataset.WebDataset(shards, shardshuffle=False).decode()
    }
    assert sorted(read) == clips
    assert all(tokens.max() < 256 for tokens in read.values())


@pytest.mark.slow
def test_tokens_of_a_clip_do_not_depend_on_the_other_clips(tmp_path, samples_folder):
    """With the bundled encoder: alone, among others, in other batches."""
    root = ["--root", str(tmp_path)]
    assert main(["extract", str(samples_folder / "general"), "--domain", "x", *root]) == 0
    assert main(["cluster", "--domain", "x", "--k", "512", "--iterations", "2", *root]) == 0
    codebook = ["--codebook", str(tmp_path / "codebooks" / "x-512-r100.safetensors")]
    folder = samples_folder / "general"
    assert main(["tokenize", str(folder), "--name", "all", "--batch-size", "5", *codebook, *root]) == 0
    together = {key: tokens for key, tokens, _ in read_token_shard(tmp_path / "tokens" / "all" / "shard-00000.tar")}
    for clip in ("owl", "fire"):
        assert main(["tokenize", str(folder / f"{clip}.flac"), "--name", clip, *codebook, *root]) == 0
        ((_, alone, _),) = read_token_shard(tmp_path / "tokens" / clip / "shard-00000.tar")
        assert np.array_equal(alone, together[clip])
