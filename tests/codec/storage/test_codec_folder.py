"""Codec folders: round trips, and which folders are rejected."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from tests.codec.tiny import replace_parts, tiny_parts

from sctok.codec.models.hifigan import HifiGan, HifiGanConfig
from sctok.codec.storage.codec_folder import INFO_FILE, load_codec, load_decoder, save_codec
from sctok.codec.storage.parts import load_vae, load_vocoder
from sctok.formats.files import FormatError
from sctok.formats.tensors import read_tensors, save_tensors


@pytest.fixture(scope="module")
def parts():
    return tiny_parts(2)


@pytest.fixture
def folder(parts, tmp_path):
    save_codec(tmp_path / "codec", parts)
    return tmp_path / "codec"


def rewrite(path, change):
    """Change the arrays in the file of a part."""
    arrays, metadata = read_tensors(path, format_name="sctok-codec-part", version=1)
    change(arrays)
    save_tensors(path, arrays, format_name="sctok-codec-part", version=1, metadata=metadata)


def test_hifigan_round_trips(parts, tmp_path):
    vocoder = HifiGan(HifiGanConfig(8, (2, 2), (4, 4), (3,), (1,))).eval()
    save_codec(tmp_path / "codec", replace_parts(parts, vocoder=vocoder))
    mel = torch.randn(1, 5, 64)
    assert torch.equal(load_codec(tmp_path / "codec").decoder.vocoder(mel), vocoder(mel))


def test_encoder_with_the_name_of_a_bundled_one_round_trips(parts, tmp_path):
    save_codec(tmp_path / "codec", replace_parts(parts, encoder=dataclasses.replace(parts.tokens.encoder, name="mini")))
    assert load_codec(tmp_path / "codec").tokens.encoder.hash == parts.tokens.encoder.hash


@pytest.mark.parametrize("name", ["acoustic", "unet", "grid", "vae", "vocoder"])
def test_modules_round_trip_bit_for_bit(parts, folder, name):
    half = "tokens" if name == "acoustic" else "decoder"
    ours, theirs = (getattr(getattr(codec, half), name).state_dict() for codec in (parts, load_codec(folder)))
    stored = [key for key in ours if not key.endswith(("initted", "cluster_size", "embed_avg"))]
    assert all(torch.equal(ours[key], theirs[key]) for key in stored)


def test_schedule_and_scale_round_trip(parts, folder):
    read = load_codec(folder)
    assert torch.equal(read.decoder.schedule.alphas_cumprod, parts.decoder.schedule.alphas_cumprod)
    assert read.decoder.scale_factor == parts.decoder.scale_factor


def test_half_precision_is_another_codec(parts, folder, tmp_path):
    save_codec(tmp_path / "half", parts, np.float16)
    half = load_codec(tmp_path / "half")
    assert half.info.token_hash != load_codec(folder).info.token_hash
    assert half.decoder.unet.state_dict()["out.2.weight"].dtype == torch.float32


def test_equal_codecs_have_equal_bytes(parts, folder, tmp_path):
    save_codec(tmp_path / "again", parts)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_all_mismatched_tensors_are_listed(folder):
    def change(arrays):
        del arrays["head.bias"]
        arrays["surplus"] = np.zeros(1, np.float32)
        arrays["norm.weight"] = np.zeros(3, np.float32)

    rewrite(folder / "vocoder.safetensors", change)
    with pytest.raises(FormatError, match=r"head.bias is missing; surplus is unknown; norm.weight has shape \(3,\)"):
        load_vocoder(folder / "vocoder.safetensors")


def test_parts_of_another_codec_are_rejected(folder):
    rewrite(folder / "acoustic.safetensors", lambda arrays: arrays["encoder_output_linear.weight"].__iadd__(1))
    with pytest.raises(FormatError, match="parts of another codec"):
        load_codec(folder)


def test_missing_part_is_reported(folder):
    (folder / "decoder.safetensors").unlink()
    with pytest.raises(ValueError, match=r"decoder.safetensors is missing"):
        load_codec(folder)


def test_failed_write_keeps_the_existing_codec(folder, parts, monkeypatch):
    monkeypatch.setattr("sctok.codec.storage.codec_folder.save_codebook", lambda path, book: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_codec(folder, parts, overwrite=True)
    with pytest.raises(ZeroDivisionError):
        save_codec(folder.with_name("new"), parts)
    assert load_codec(folder).info.name == "tiny"
    assert [path.name for path in folder.parent.iterdir()] == ["codec"]


def test_existing_codec_is_replaced_only_with_overwrite(folder, parts):
    (folder / "more").touch()
    with pytest.raises(ValueError, match="exists already"):
        save_codec(folder, parts)
    save_codec(folder, parts, overwrite=True)
    assert not (folder / "more").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["codec"]


@pytest.mark.parametrize("make", [lambda path: path.write_text("mine"), lambda path: path.mkdir()])
def test_other_files_and_folders_are_not_replaced(parts, tmp_path, make):
    make(tmp_path / "x")
    with pytest.raises(ValueError, match="it is not a codec"):
        save_codec(tmp_path / "x", parts, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_all_mismatched_parts_are_reported(parts):
    with pytest.raises(ValueError, match=r"T-UNet's extra channels has width 8, not 0; the scale factor is 0"):
        replace_parts(parts, grid=None, scale_factor=0.0)


def test_other_versions_are_rejected(folder):
    stored = json.loads((folder / INFO_FILE).read_text())
    (folder / INFO_FILE).write_text(json.dumps({**stored, "format_version": 2}))
    with pytest.raises(FormatError, match="update sctok"):
        load_codec(folder)


def test_unknown_name_is_reported_with_bundled_names(tmp_path):
    with pytest.raises(ValueError, match=r"neither a bundled codec \(mini\) nor a folder"):
        load_codec(tmp_path / "nothing")


def test_part_of_another_kind_is_rejected(folder):
    with pytest.raises(FormatError, match="of kind 'vae'"):
        load_vocoder(folder / "vae.safetensors")


def _change(path, **changes):
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | changes))


@pytest.mark.parametrize("changes", [{"codebooks": 3}, {"codebooks": None}, {"condition_order": "other"}])
def test_damaged_description_is_reported(folder, changes):
    _change(folder / "codec.json", **changes)
    with pytest.raises(FormatError, match=r"codec\.json is damaged \(codebooks or condition_order is invalid"):
        load_codec(folder)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("vae", {"config": {"unknown": 1}}),
        ("vae", {"config": [1]}),
        ("vae", {"config": {"channels": "x"}}),
        ("vocoder", {"config": None}),
        ("decoder", {"configs": "x"}),
        ("decoder", {"configs": {}}),
        ("decoder", {"configs": {"unet": {"unknown": 1}}}),
    ],
)
def test_damaged_sizes_are_reported(folder, part, changes):
    path = folder / f"{part}.safetensors"
    tensors, metadata = read_tensors(path, format_name="sctok-codec-part", version=1)
    save_tensors(path, tensors, format_name="sctok-codec-part", version=1, metadata=metadata | changes)
    read = {"vae": load_vae, "vocoder": load_vocoder, "decoder": lambda path: load_decoder(path.parent)}[part]
    with pytest.raises(FormatError, match=rf"{part}\.safetensors is damaged"):
        read(path)


@pytest.mark.parametrize("name", ["decoder", "vae", "vocoder"])
def test_decoder_of_another_codec_is_rejected(folder, tmp_path, name):
    save_codec(tmp_path / "other", tiny_parts(2, seed=1))
    (tmp_path / "other" / f"{name}.safetensors").replace(folder / f"{name}.safetensors")
    with pytest.raises(FormatError, match=rf"{name}.safetensors is not the file that codec.json describes"):
        load_codec(folder)
