"""Finding the files of published codecs."""

import numpy as np
import pytest

from sctok.codec.published.files import HUB_REPOSITORY, codebooks_of_rate, find_published

REVISION = "0123456789abcdef0123456789abcdef01234567"


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.zeros(1)) if path.suffix == ".npy" else path.touch()


def published_tree(root, rates=(100, 50)):
    tokens = {100: 512, 50: 256, 25: 128}
    for rate in rates:
        touch(root, *(f"semanticodec_tokenrate_{rate}/{name}" for name in ("encoder.ckpt", "decoder.ckpt")))
        for share in (2048, 4096, 8192, 16384):
            touch(root, f"codebook_idx/combine_{tokens[rate]}_audioset_dominate/codebook_{share}_0.npy")


def test_published_folders_are_found(tmp_path):
    published_tree(tmp_path)
    found = find_published(str(tmp_path), 50)
    assert found.encoder == tmp_path / "semanticodec_tokenrate_50/encoder.ckpt"
    assert len(codebooks_of_rate(found.codebooks, 50)) == 4
    assert {path.parent.name for path in codebooks_of_rate(found.codebooks, 50)} == {"combine_256_audioset_dominate"}


def test_codebooks_next_to_the_folder_of_a_rate_are_found(tmp_path):
    published_tree(tmp_path)
    found = find_published(str(tmp_path / "semanticodec_tokenrate_100"))
    assert len(codebooks_of_rate(found.codebooks, 100)) == 4


def test_single_rate_needs_no_choice(tmp_path):
    published_tree(tmp_path, (25,))
    assert find_published(str(tmp_path)).decoder == tmp_path / "semanticodec_tokenrate_25/decoder.ckpt"


def test_several_rates_need_a_choice(tmp_path):
    published_tree(tmp_path)
    with pytest.raises(ValueError, match="give --rate"):
        find_published(str(tmp_path))


def test_codebook_in_the_folder_is_found(tmp_path):
    touch(tmp_path, "encoder.ckpt", "decoder.ckpt", "codebook.npy")
    assert find_published(str(tmp_path)).codebooks == (tmp_path / "codebook.npy",)


def test_codebooks_can_be_given(tmp_path):
    touch(tmp_path, "x/encoder.ckpt", "x/decoder.ckpt", "mine.npy", "books/codebook_2048_0.npy")
    assert find_published(str(tmp_path / "x"), codebooks=tmp_path / "mine.npy").codebooks == (tmp_path / "mine.npy",)
    assert find_published(str(tmp_path / "x"), codebooks=tmp_path / "books").codebooks[0].name == "codebook_2048_0.npy"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "neither encoder.ckpt and decoder.ckpt nor a folder"),
        (("encoder.ckpt",), "has no decoder.ckpt"),
        (("encoder.ckpt", "decoder.ckpt"), "there are no codebooks in .*--codebooks"),
    ],
)
def test_missing_files_are_reported(names, message, tmp_path):
    touch(tmp_path, *names)
    with pytest.raises(ValueError, match=message):
        find_published(str(tmp_path))


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """The folder of the published repository in an offline Hugging Face cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = tmp_path / f"models--{HUB_REPOSITORY.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(REVISION)
    return folder / "snapshots" / REVISION


@pytest.mark.parametrize("name", ["semanticodec", HUB_REPOSITORY])
def test_hub_name_is_read_from_the_cache(name, hub_cache):
    published_tree(hub_cache)
    found = find_published(name, 50)
    assert found.encoder == hub_cache / "semanticodec_tokenrate_50/encoder.ckpt"
    assert [path.parent.name for path in found.codebooks] == ["combine_256_audioset_dominate"] * 4


def test_hub_name_needs_a_rate(hub_cache):
    with pytest.raises(ValueError, match="give --rate"):
        find_published("semanticodec")


def test_without_network_the_message_says_what_to_do(hub_cache):
    with pytest.raises(ValueError, match=r"cannot fetch semanticodec_tokenrate_100/decoder.ckpt .* give the folder"):
        find_published("semanticodec", 100)


def test_unknown_source_is_rejected():
    with pytest.raises(ValueError, match="neither a folder nor a hub repository"):
        find_published("nothing")
