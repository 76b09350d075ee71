"""Compares an imported codec with the published code, with stand-in weights at 100 tokens per second."""

import numpy as np
import pytest
import torch
from tests.codec.published.operators import Acoustic, features
from tests.conftest import REFERENCE

from sctok.audio.published_filterbank import centre, published_filterbank
from sctok.cli.app import main
from sctok.codec.codec import Codec
from sctok.codec.encoding import WindowEncoder
from sctok.codec.models.condition import mark_out
from sctok.codec.published.checkpoints import load_published_vae, load_published_vocoder
from sctok.codec.storage.codec_folder import load_codec
from sctok.features.extractor import FeatureExtractor

from .standins import golden_condition, initial_noise, relative_error

pytestmark = pytest.mark.slow

CONTRACTION = 0.3  # of the recurrent weights; with unscaled stand-ins, rounding changes tokens


@pytest.fixture(scope="module")
def checkpoints(reference, tmp_path_factory):
    """A folder with both checkpoints, 2.4 GB, and the codebook. The recurrence is contractive."""
    folder = tmp_path_factory.mktemp("published")
    for name in ("encoder", "decoder"):
        tensors = reference.state_dict(name, 100)
        for key in tensors:
            if key.startswith("encoder.weight_hh"):
                tensors[key] *= CONTRACTION
        torch.save(tensors, folder / f"{name}.ckpt")
    np.save(folder / "codebook.npy", reference.codebook(100))
    yield folder
    for name in ("encoder", "decoder"):
        (folder / f"{name}.ckpt").unlink()


@pytest.fixture(scope="module")
def parts(checkpoints, tmp_path_factory):
    """The parts of the imported codec."""
    root = tmp_path_factory.mktemp("root")
    assert main(["import-checkpoint", str(checkpoints), "--root", str(root)]) == 0
    yield load_codec(root / "codecs" / "semanticodec-100")
    for path in root.rglob("*.safetensors"):
        path.unlink()


@pytest.fixture(scope="module")
def codec(parts):
    return Codec(parts, torch.device("cpu"), "fp32")


@pytest.fixture(scope="module")
def tokens(codec, reference):
    """Tokens (n, 2) of the test signal."""
    return codec.encode(reference.waveform(), 16_000).tokens


@pytest.fixture(scope="module")
def contractive():
    """Results of the published code with these weights on another CPU."""
    return dict(np.load(REFERENCE / "golden_contractive_100.npz"))


@pytest.fixture(scope="module")
def mel(parts, golden):
    """The VAE's decoding (1, 1, 1024, 64) of the published latent."""
    latent = torch.from_numpy(golden[100]["ddim4_eta0_cfg2_latent"])
    with torch.inference_mode():
        return parts.decoder.vae.decode(latent / parts.decoder.scale_factor)


def test_semantic_tokens(tokens, golden, contractive):
    assert np.array_equal(tokens[:, 0], golden[100]["tokens"][0, :, 0])
    assert np.array_equal(tokens[:, 0], contractive["tokens"][0, :, 0])


def test_acoustic_tokens_of_another_cpu(tokens, contractive):
    expected = contractive["tokens"][0, :, 1]
    assert (tokens[:, 1] == expected).mean() >= 0.999


def test_published_operators_on_this_cpu(parts, tokens, signal_windows):
    """In the first window, features and quantized vectors are bit-identical, so that tokens differ only at near ties.

    sctok returns the exact nearest codes, the published code those with the smallest float32 distance.
    """
    waves, last = (torch.from_numpy(each) for each in signal_windows)
    waves = centre(waves)[:1]
    extractor = FeatureExtractor(parts.tokens.encoder, torch.device("cpu"), "fp32")
    embedded = WindowEncoder(extractor, parts.tokens.acoustic, 1, torch.device("cpu")).embed(waves, last[:1])
    semantic = torch.from_numpy(parts.tokens.codebooks[0].centroids)
    acoustic, quantized = Acoustic(parts.tokens.acoustic.state_dict()), []
    parts.tokens.acoustic.quantizer.register_forward_pre_hook(lambda module, inputs: quantized.append(inputs[0]))
    with torch.inference_mode():
        mel = published_filterbank(waves, last[:1])
        plain, padded = features(parts.tokens.encoder.tensors, mel), mark_out(mel, 512)
        assert torch.equal(embedded.features, plain)
        centroids = semantic[torch.cdist(plain, semantic).argmin(dim=-1)]
        vectors = acoustic(plain, centroids, padded)
        parts.tokens.acoustic(plain, centroids, padded)
    assert torch.equal(quantized[0], vectors)
    assert (acoustic.tokens(vectors)[0].numpy() == tokens[:512, 1]).mean() >= 0.999


def test_velocity(parts, golden, reference):
    context = golden_condition(reference, 100, golden[100])
    with torch.inference_mode():
        velocity = parts.decoder.unet(initial_noise(), torch.tensor([500]), context)
    assert relative_error(velocity, golden[100]["unet_v_at_500"]) < 1e-4


def test_spectrogram(mel, golden):
    assert relative_error(mel[:, :, ::4], golden[100]["vae_mel_every_4th_frame"]) < 1e-4


def test_waveform(parts, mel, golden):
    with torch.inference_mode():
        wave = parts.decoder.vocoder(mel[:, 0])
    assert relative_error(wave[:, None, :16_000], golden[100]["waveform_first_second"]) < 1e-4
    assert wave.square().mean().sqrt().item() == pytest.approx(float(golden[100]["waveform_rms"]), rel=1e-4)


def test_parts_of_a_checkpoint_can_be_loaded_separately(parts, checkpoints):
    vae, vocoder = (load(checkpoints / "decoder.ckpt") for load in (load_published_vae, load_published_vocoder))
    for loaded, imported in ((vae, parts.decoder.vae), (vocoder, parts.decoder.vocoder)):
        expected = imported.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
