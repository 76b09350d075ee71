"""Signal and speech metrics on real audio, each compared with its definition in NumPy and float64."""

import warnings

import numpy as np
import pytest
from tests.audio.test_spectral_distances import dac_mel, dac_stft, frames_of
from tests.evaluation.clips import CLIPS, clip, pair_of, spoilt

from sctok.evaluation.metrics.pairs import Pair
from sctok.evaluation.metrics.signal import log_spectral_distance, mel_dac, mel_db, si_sdr, stft_dac, stft_db
from sctok.evaluation.metrics.speech import pesq_wideband, speaker_similarity, stoi

RATE = 16_000
DISTANCES = (mel_dac, stft_dac, mel_db, stft_db, log_spectral_distance)


def levelled(pair):
    """Return the estimate, and the reference with the estimate's energy."""
    ours, theirs = pair.estimate.astype(np.float64), pair.reference.astype(np.float64)
    return ours, theirs * np.linalg.norm(ours) / np.linalg.norm(theirs)


def htk_triangles(bins, size):
    """Return triangles of height 1 with equal spacing on HTK's mel scale, (size // 2 + 1, bins)."""
    mels = np.linspace(0, 1127.01048 * np.log1p(RATE / 2 / 700), bins + 2)
    corners = 700 * np.expm1(mels / 1127.01048)
    hertz = np.arange(size // 2 + 1) * RATE / size
    return np.stack([np.interp(hertz, corners[i : i + 3], [0, 1, 0]) for i in range(bins)], axis=1)


def decibels(power, floor=1e-10):
    return 10 * np.log10(np.maximum(power, floor))


def mel_db_defined(pair):
    scales = [(2**i, 5 * 2 ** (i - 5)) for i in range(5, 12)]
    waves = levelled(pair)
    spectra = [[decibels(frames_of(w, size) ** 2 @ htk_triangles(bins, size)) for w in waves] for size, bins in scales]
    return np.mean([np.abs(ours - theirs).mean() for ours, theirs in spectra])


def stft_db_defined(pair, floor=1e-10):
    total = []
    for size in (2048, 512):
        spectra = []
        for wave in levelled(pair):
            padded = np.pad(wave, size // 2, mode="reflect")
            blocks = np.lib.stride_tricks.sliding_window_view(padded, size)[:: size // 4]
            spectra.append(decibels(np.abs(np.fft.rfft(blocks)), floor))
        total.append(np.abs(spectra[0] - spectra[1]).mean())
    return np.mean(total)


def lsd_defined(pair):
    logs = [np.log10(np.maximum(frames_of(w, 2048) ** 2, 1e-10)) for w in (pair.reference, pair.estimate)]
    return np.sqrt(((logs[0] - logs[1]) ** 2).mean(axis=1)).mean()


def si_sdr_defined(pair):
    """Return 10 log10 r² / (1 - r²) for the correlation r of both waves."""
    r = np.corrcoef(pair.reference.astype(np.float64), pair.estimate.astype(np.float64))[0, 1]
    return 10 * np.log10(r**2 / (1 - r**2))


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize(
    ("metric", "defined", "tolerance"),
    [
        (mel_dac, lambda pair: dac_mel(pair.estimate, pair.reference), 1e-4),
        (stft_dac, lambda pair: dac_stft(pair.estimate, pair.reference), 1e-4),
        (mel_db, mel_db_defined, 1e-3),
        (stft_db, stft_db_defined, 1e-3),
        (log_spectral_distance, lsd_defined, 1e-4),
        (si_sdr, si_sdr_defined, 1e-6),
    ],
)
def test_agrees_with_its_definition(metric, defined, tolerance, name):
    pair = pair_of(name, seconds=1.0)
    assert metric(pair) == pytest.approx(defined(pair), rel=tolerance)


def test_digital_silence_on_one_side_counts_down_to_the_floor_of_stft_db():
    noise = np.random.default_rng(0).standard_normal(32_000).astype(np.float32) * np.float32(0.1)
    pair = Pair(np.where(np.arange(32_000) < 16_000, noise, np.float32(0)), noise)
    found = stft_db(pair)
    assert found == pytest.approx(stft_db_defined(pair), rel=1e-4)
    # A floor that is 60 dB higher removes 60 dB from each silent frame: 29 of 63 and 124 of 251.
    share = np.mean([29 / 63, 124 / 251])
    assert found - stft_db_defined(pair, floor=1e-4) == pytest.approx(60 * share, abs=0.01)


@pytest.mark.parametrize("name", ["general/horse_neigh", *CLIPS])
def test_stft_db_equals_auraloss_with_the_same_floor(name):
    freq = pytest.importorskip("auraloss.freq", reason="auraloss is not installed")
    import torch

    pair = pair_of(name)
    waves = [torch.from_numpy(wave.astype(np.float32))[None, None] for wave in levelled(pair)]
    options = {"window": "ones", "w_sc": 0, "w_log_mag": 1, "w_lin_mag": 0, "eps": 1e-20}  # of the power
    losses = [freq.STFTLoss(size, size // 4, size, **options)(*waves).item() for size in (2048, 512)]
    assert stft_db(pair) == pytest.approx(np.mean(losses) * 10 / np.log(10), rel=1e-4)


@pytest.mark.parametrize("metric", DISTANCES)
def test_the_distance_of_a_wave_to_itself_is_zero(metric):
    wave = clip(CLIPS[0])
    assert metric(Pair(wave, wave)) == 0


@pytest.mark.parametrize("metric", [mel_db, stft_db])
def test_distances_in_decibels_ignore_the_level(metric):
    pair = pair_of(CLIPS[0])
    louder = Pair(pair.reference * 3, pair.estimate)
    assert metric(louder) == pytest.approx(metric(pair), rel=1e-4)


def test_si_sdr_is_limited():
    wave = clip(CLIPS[0])
    tone = np.sin(np.arange(16_000) * 0.1 * np.pi).astype(np.float32)
    assert si_sdr(Pair(wave, wave)) == 100
    assert si_sdr(Pair(tone, np.cos(np.arange(16_000) * 0.1 * np.pi).astype(np.float32))) < -50


@pytest.mark.parametrize("metric", [mel_db, stft_db, si_sdr, stoi])
@pytest.mark.parametrize("silent", ["reference", "decoded audio"])
def test_silence_has_no_value(metric, silent):
    wave, nothing = clip(CLIPS[0]), np.zeros(32_000, np.float32)
    pair = Pair(nothing, wave) if silent == "reference" else Pair(wave, nothing)
    with pytest.raises(ValueError, match=f"the {silent} is silent"):
        metric(pair)


@pytest.mark.parametrize("constant", ["reference", "decoded audio"])
def test_si_sdr_of_a_constant_has_no_value(constant):
    wave, level = clip(CLIPS[0]), np.full(32_000, 0.1, np.float32)
    pair = Pair(level, wave) if constant == "reference" else Pair(wave, level)
    with pytest.raises(ValueError, match=f"the {constant} is constant, so it is silent without its mean"):
        si_sdr(pair)


@pytest.mark.parametrize("metric", DISTANCES)
def test_too_few_samples_have_no_value(metric):
    wave = clip(CLIPS[0])[:1000]
    with pytest.raises(ValueError, match="1000 samples"):
        metric(Pair(wave, wave))


def test_waves_of_different_lengths_are_rejected():
    with pytest.raises(ValueError, match=r"\(8,\) and \(9,\)"):
        Pair(np.zeros(8, np.float32), np.zeros(9, np.float32))


@pytest.mark.parametrize(
    ("wave", "kind"), [(None, "NoneType"), ([0.1] * 8, "list"), (np.zeros(8), "float64"), (np.zeros(8, int), "int64")]
)
def test_waves_of_other_types_are_rejected(wave, kind):
    with pytest.raises(ValueError, match=rf"the estimate must be a float32 array \(n,\), not {kind}"):
        Pair(np.zeros(8, np.float32), wave)


def third_octaves(frames):
    """Return the magnitudes of spectra (frames, 257) at 10 kHz in 15 bands from 150 Hz."""
    hertz = np.linspace(0, 5000, 257)
    centres = 150 * 2 ** (np.arange(15) / 3)
    edges = [[np.argmin(np.abs(hertz - c * 2 ** (sign / 6))) for sign in (-1, 1)] for c in centres]
    return np.sqrt(np.stack([(np.abs(frames[:, low:high]) ** 2).sum(axis=1) for low, high in edges]))


def stoi_defined(reference, estimate):
    """Return short-time objective intelligibility of waves at 10 kHz after Taal et al. 2011."""
    window = np.hanning(258)[1:-1]

    def cut(wave):
        return np.lib.stride_tricks.sliding_window_view(wave, 256)[::128] * window

    clean, noisy = cut(reference), cut(estimate)
    energy = 20 * np.log10(np.linalg.norm(clean, axis=1) + 1e-16)
    loud = energy > energy.max() - 40
    joined = [np.zeros((loud.sum() - 1) * 128 + 256) for _ in range(2)]
    for wave, frames in zip(joined, (clean, noisy), strict=True):
        for place, frame in enumerate(frames[loud]):
            wave[place * 128 : place * 128 + 256] += frame
    bands = [third_octaves(np.fft.rfft(cut(wave), 512)) for wave in joined]
    segments = [np.lib.stride_tricks.sliding_window_view(each, 30, axis=1) for each in bands]
    x, y = segments
    y = y * np.linalg.norm(x, axis=2, keepdims=True) / np.linalg.norm(y, axis=2, keepdims=True)
    y = np.minimum(y, x * (1 + 10 ** (15 / 20)))
    x, y = (each - each.mean(axis=2, keepdims=True) for each in (x, y))
    return ((x * y).sum(axis=2) / (np.linalg.norm(x, axis=2) * np.linalg.norm(y, axis=2))).mean()


def test_stoi_agrees_with_its_definition():
    import scipy.signal

    reference = clip("speech/it_agent_login", 3.0)
    estimate = (reference + 0.03 * np.random.default_rng(1).standard_normal(len(reference))).astype(np.float32)
    at_10_khz = [scipy.signal.resample_poly(wave.astype(np.float64), 5, 8) for wave in (reference, estimate)]
    assert stoi(Pair(reference, estimate)) == pytest.approx(stoi_defined(*at_10_khz), abs=5e-3)


@pytest.mark.parametrize("samples", [100, 400, 4000, 6349])
def test_stoi_of_too_little_speech_has_no_value(samples):
    wave = clip(CLIPS[0])[8000 : 8000 + samples]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="too little speech"):
            stoi(Pair(wave, spoilt(wave)))


@pytest.mark.slow
def test_speaker_similarity_separates_speakers_at_any_level():
    pytest.importorskip("resemblyzer", reason="resemblyzer is not installed")
    wave, other = clip("speech/fr_agent_login", 3.0), clip("speech/it_agent_login", 3.0)
    length = min(len(wave), len(other))
    wave, other = wave[:length], other[:length]
    assert speaker_similarity(Pair(wave, wave)) == pytest.approx(1, abs=1e-5)
    quiet = speaker_similarity(Pair(wave, wave * np.float32(0.1)))
    assert speaker_similarity(Pair(wave, other)) < 0.7 < spoilt_similarity(wave) < quiet


def spoilt_similarity(wave):
    return speaker_similarity(Pair(wave, spoilt(wave)))


def test_pesq_equals_the_package_pesq():
    pesq = pytest.importorskip("pesq", reason="pesq is built with a C compiler")
    pair = pair_of("speech/it_agent_login")
    assert pesq_wideband(pair) == pesq.pesq(RATE, pair.reference, pair.estimate, "wb")
    assert 1.04 < pesq_wideband(pair) < pesq_wideband(Pair(pair.reference, pair.reference)) < 4.65


def test_pesq_of_too_little_speech_has_no_value():
    pytest.importorskip("pesq", reason="pesq is built with a C compiler")
    wave = clip(CLIPS[0])[:3000]
    with pytest.raises(ValueError, match="1/4 of a second"):
        pesq_wideband(Pair(wave, wave))
