"""The iSTFT vocoder: lengths, the inverse of the STFT, training."""

import pytest
import torch

from sctok.audio.mel import hann_window
from sctok.codec.models.vocoder import FFT_SIZE, IstftVocoder, VocoderConfig, inverse_stft

SMALL = VocoderConfig(width=8, blocks=1, expansion=2)


def spectrum_of(waves):
    """Return frames, complex (B, T, 321), centered on their 160 samples, with silence on both sides."""
    around = (FFT_SIZE - 160) // 2
    frames = torch.nn.functional.pad(waves, (around, around)).unfold(1, FFT_SIZE, 160)
    return torch.fft.rfft(frames * hann_window(FFT_SIZE, waves.device))


def test_inverse_of_the_stft():
    torch.manual_seed(0)
    waves = torch.randn(2, 1600)
    spectrum = spectrum_of(waves)
    assert spectrum.shape == (2, 10, 321)
    torch.testing.assert_close(inverse_stft(spectrum), waves, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frames", [1, 2, 7, 1024])
def test_every_frame_becomes_160_samples(frames):
    torch.manual_seed(0)
    assert IstftVocoder(SMALL)(torch.randn(1, frames, 64)).shape == (1, frames * 160)


def test_loud_predictions_stay_finite():
    torch.manual_seed(0)
    model = IstftVocoder(SMALL)
    torch.nn.init.constant_(model.head.bias, 1000.0)
    waves = model(torch.randn(1, 5, 64))
    assert bool(waves.isfinite().all())


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    model = IstftVocoder(SMALL)
    model(torch.randn(1, 9, 64)).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@pytest.mark.parametrize("name", ["width", "blocks", "expansion"])
def test_invalid_sizes_are_rejected(name):
    with pytest.raises(ValueError, match=f"{name} 0"):
        VocoderConfig(**{name: 0})
