import json

import pytest
import webdataset

from sctok.cli.app import main


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
