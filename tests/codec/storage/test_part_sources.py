"""Sources of a VAE and a vocoder."""

from pathlib import Path

import pytest
import torch
from tests.codec.tiny import tiny_parts
from tests.training.trainings import VAE

from sctok.codec.models.vae import AutoencoderKL
from sctok.codec.models.vocoder import IstftVocoder, VocoderConfig
from sctok.codec.storage import part_sources
from sctok.codec.storage.codec_folder import save_codec
from sctok.codec.storage.part_sources import open_vae, open_vocoder
from sctok.codec.storage.parts import arrays_of, save_part


def same(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    ours, theirs = one.state_dict(), two.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_part_files(tmp_path: Path) -> None:
    vae, vocoder = AutoencoderKL(VAE), IstftVocoder(VocoderConfig(8, 1, 2))
    save_part(tmp_path / "a.safetensors", "vae", arrays_of(vae), vae.config)
    save_part(tmp_path / "b.safetensors", "istft", arrays_of(vocoder), vocoder.config)
    assert same(open_vae(str(tmp_path / "a.safetensors")), vae)
    assert same(open_vocoder(str(tmp_path / "b.safetensors")), vocoder)
    with pytest.raises(ValueError, match=r"b\.safetensors is a part of kind 'istft', not vae"):
        open_vae(str(tmp_path / "b.safetensors"))


def test_codecs_by_folder_or_name(tmp_path: Path) -> None:
    parts = tiny_parts()
    save_codec(tmp_path / "mine", parts)
    assert same(open_vae(str(tmp_path / "mine")), parts.decoder.vae)
    assert same(open_vae("mine", tmp_path), parts.decoder.vae)
    assert same(open_vocoder("mine", tmp_path), parts.decoder.vocoder)


def test_codec_of_the_user_hides_a_bundled_one(tmp_path: Path) -> None:
    parts = tiny_parts(seed=5)
    save_codec(tmp_path / "mini", parts)
    assert same(open_vae("mini", tmp_path), parts.decoder.vae)


@pytest.mark.parametrize("name", ["nowhere", "x.safetensors", "x.ckpt"])
def test_unknown_source_is_reported(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("x.safetensors", "x.ckpt"):
        Path(path).write_text("nothing")
    for reader in (open_vae, open_vocoder):
        with pytest.raises(ValueError, match=name):
            reader(name)


def test_published_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "decoder.ckpt"
    path.touch()
    monkeypatch.setattr(part_sources, "load_published_vae", lambda path: ("vae", path))
    monkeypatch.setattr(part_sources, "load_published_vocoder", lambda path: ("vocoder", path))
    assert (open_vae(str(path)), open_vocoder(str(path))) == (("vae", path), ("vocoder", path))
