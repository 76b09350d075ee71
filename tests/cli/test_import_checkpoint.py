"""`sctok import-checkpoint`."""

import json

import pytest
from tests.codec.published.standins import SMALL_LAYOUTS, small_checkpoints, write_checkpoints

from sctok.cli.app import main
from sctok.codec.storage.codec_folder import load_codec


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A folder with small checkpoints in the published layout."""
    monkeypatch.setattr("sctok.codec.published.checkpoints.LAYOUTS", SMALL_LAYOUTS)
    return write_checkpoints(tmp_path / "published", *small_checkpoints())


@pytest.fixture
def run(tmp_path, capsys):
    """Import into a work directory; return the exit code, what was printed and what was said."""

    def command(*arguments):
        code = main(["import-checkpoint", *map(str, arguments), "--root", str(tmp_path / "root")])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return command


def test_an_imported_codec_can_be_loaded(run, source, tmp_path):
    code, out, _ = run(source, "--json")
    result = json.loads(out)
    assert code == 0
    parts = load_codec(tmp_path / "root" / "codecs" / "semanticodec-50")
    assert result == {
        "name": "semanticodec-50",
        "path": str(tmp_path / "root" / "codecs" / "semanticodec-50"),
        "token_rate": 50,
        "codec_hash": parts.info.token_hash,
        "codebooks": [40],
    }
    assert parts.tokens.encoder.published_steps
    assert "CC-BY-NC" in parts.info.provenance["licence"]


def test_an_interrupted_import_leaves_no_files(run, source, tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("sctok.codec.storage.codec_folder.save_codebook", stop)
        code, _, said = run(source)
    assert code == 130
    assert "an incomplete codec is not kept" in said
    assert not list((tmp_path / "root" / "codecs").iterdir())
    assert run(source)[0] == 0


def test_an_existing_codec_is_replaced_only_with_overwrite(run, source):
    assert run(source, "--name", "mine")[0] == 0
    code, _, said = run(source, "--name", "mine")
    assert code == 1
    assert "exists already" in said
    assert run(source, "--name", "mine", "--ema", "--overwrite")[0] == 0


@pytest.mark.parametrize(
    "options", [("--rate", "75"), ("--name", "../x"), ("--name", ".x"), ("--name", "a\nb"), ("--name", "mini")]
)
def test_wrong_usage_is_refused(run, source, options):
    assert run(source, *options)[0] == 2


def test_a_missing_source_is_reported(run):
    code, _, said = run("nothing")
    assert code == 1
    assert "neither a folder nor a hub repository" in said
