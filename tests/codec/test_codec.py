import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from tests.conftest import cut_windows

from sctok.audio.inputs.sources import AudioItem
from sctok.audio.loader import load_windows
from sctok.audio.windows import WINDOW_SAMPLES, token_count
from sctok.codec.codec import Codec, DecodingError
from sctok.codec.decoding import WindowDecoder
from sctok.codec.models.condition import mark_out
from sctok.codec.overlap import HOP_SAMPLES, decode_window_count
from sctok.codec.samplers import SamplerConfig
from sctok.features.extractor import FeatureExtractor
from sctok.formats.codebooks import codebook_hash
from sctok.formats.sct import CodecTokens
from sctok.formats.stacking import stack_patches

from .tiny import ACOUSTIC_SIZE, CODEBOOK_SIZES, replace_parts, tiny_parts

QUICK = SamplerConfig(steps=1, eta=0)


def noise(samples: int, seed: int = 0) -> NDArray[np.float32]:
    """Return noise with a varying level, float32 (samples,)."""
    rng = np.random.default_rng(seed)
    level = np.repeat(rng.uniform(0.01, 0.3, samples // 1000 + 1), 1000)[:samples]
    return (rng.uniform(-1, 1, samples) * level).astype(np.float32)


def is_same(found: CodecTokens, expected: CodecTokens) -> bool:
    return found.samples == expected.samples and np.array_equal(found.tokens, expected.tokens)


@pytest.fixture(scope="module")
def long_tokens(codec: Codec) -> CodecTokens:
    """Tokens of 4 decoding windows."""
    return codec.encode(noise(3 * HOP_SAMPLES + 60_000), 16_000)


@pytest.mark.parametrize("samples", [1, 800, 16_000, WINDOW_SAMPLES - 1, WINDOW_SAMPLES, WINDOW_SAMPLES + 2561])
def test_decoded_audio_is_as_long_as_the_original(codec: Codec, samples: int) -> None:
    tokens = codec.encode(noise(samples), 16_000)
    assert (tokens.samples, len(tokens.tokens)) == (samples, token_count(samples, 4))
    wave = codec.decode(tokens, QUICK)
    assert wave.dtype == np.float32
    assert wave.shape == (samples,)
    assert np.isfinite(wave).all()


@pytest.mark.parametrize("stack", [1, 2, 4])
def test_tokens_equal_those_of_single_windows(stack: int) -> None:
    parts = tiny_parts(stack)
    codec = Codec(parts, torch.device("cpu"), "fp32")
    wave = noise(WINDOW_SAMPLES + 50_000)
    extractor = FeatureExtractor(parts.tokens.encoder, torch.device("cpu"), "fp32")
    centroids = parts.tokens.codebooks[-1].centroids
    expected = []
    for window, last in zip(*cut_windows(wave), strict=True):
        embedded, mel = extractor.embed_with_mel(window[None], np.array([last]))
        features = stack_patches(embedded[0], stack)
        distances = ((features[:, None].astype(np.float64) - centroids.astype(np.float64)) ** 2).sum(axis=-1)
        semantic = distances.argmin(axis=1)
        padded = mark_out(torch.from_numpy(mel), len(features))
        with torch.inference_mode():
            found = parts.tokens.acoustic(
                torch.from_numpy(features)[None], torch.from_numpy(centroids[semantic])[None], padded
            )
        expected.append(np.stack([semantic, found.indices[0].numpy()], axis=1))
    tokens = codec.encode(wave, 16_000)
    np.testing.assert_array_equal(tokens.tokens, np.concatenate(expected)[: token_count(len(wave), stack)])
    assert tokens.codebook_sizes == (max(CODEBOOK_SIZES), ACOUSTIC_SIZE)


def test_tokens_do_not_depend_on_other_files(codec: Codec, tmp_path) -> None:
    lengths = [5_000, 3 * WINDOW_SAMPLES + 7, 40_000, WINDOW_SAMPLES]
    items = []
    for index, samples in enumerate(lengths):
        soundfile.write(tmp_path / f"{index}.wav", noise(samples, index), 16_000, subtype="FLOAT")
        items.append(AudioItem(str(index), str(tmp_path / f"{index}.wav"), suffix=".wav"))
    together = list(codec.encode_many(load_windows(items, workers=0, chunk_windows=2)))
    assert [item for item, _ in together] == items
    for index, (_, found) in enumerate(together):
        assert is_same(found, codec.encode(noise(lengths[index], index), 16_000))


def test_files_with_the_same_key_are_encoded_separately(codec: Codec, tmp_path) -> None:
    items = []
    for index in range(2):
        soundfile.write(tmp_path / f"{index}.wav", noise(5_000 + index, index), 16_000, subtype="FLOAT")
        items.append(AudioItem("key", str(tmp_path / f"{index}.wav"), suffix=".wav"))
    found = [tokens.samples for _, tokens in codec.encode_many(load_windows(items, workers=0))]
    assert found == [5_000, 5_001]


@pytest.mark.parametrize("size", [999, 200_000])
def test_blocks_of_any_size_give_the_same_tokens(codec: Codec, size: int) -> None:
    wave = noise(2 * WINDOW_SAMPLES + 1234)
    blocks = (wave[start : start + size] for start in range(0, len(wave), size))
    assert is_same(codec.encode_blocks(blocks), codec.encode(wave, 16_000))


def test_shapes_and_types_of_audio(codec: Codec) -> None:
    stereo = np.stack([noise(20_000, 1), noise(20_000, 2)])
    mixed = codec.encode((stereo[0] + stereo[1]) / 2, 16_000)
    assert is_same(codec.encode(stereo, 16_000), mixed)
    assert is_same(codec.encode(stereo.T, 16_000), mixed)
    assert is_same(codec.encode(torch.from_numpy(stereo).requires_grad_(), 16_000), mixed)
    assert is_same(codec.encode(stereo, 16_000, channel=1), codec.encode(stereo[1], 16_000))
    sixteen = (stereo[0] * 32768).round().astype(np.int16)
    assert is_same(codec.encode(sixteen, 16_000), codec.encode(sixteen.astype(np.float32) / 32768, 16_000))
    assert is_same(codec.encode(stereo[0].tolist(), 16_000), codec.encode(stereo[0], 16_000))


@pytest.mark.parametrize(("rate", "samples"), [(8_000, 20_002), (44_100, 3_629), (48_000, 3_334)])
def test_other_rates_are_resampled(codec: Codec, rate: int, samples: int) -> None:
    tokens = codec.encode(noise(10_001), rate)
    assert tokens.samples == samples
    assert len(codec.decode(tokens, QUICK)) == samples


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_nonfinite_values_are_reported(codec: Codec, bad: float) -> None:
    wave = noise(100_000).astype(np.float64)
    wave[70_001] = bad
    with pytest.raises(ValueError, match=r"audio: sample 70001 \(4\.375 s\) is (nan|inf)"):
        codec.encode(wave, 16_000)


@pytest.mark.parametrize(
    ("wave", "rate", "message"),
    [
        (np.zeros(0), 16_000, "holds no samples"),
        (np.zeros((2, 0)), 16_000, "holds no samples"),
        (np.zeros((1, 2, 3)), 16_000, r"not float64 \(1, 2, 3\)"),
        (np.zeros(3, bool), 16_000, r"not bool \(3,\)"),
        (np.zeros(3, complex), 16_000, "not complex128"),
        (np.zeros(3), 0, "has a sample rate of 0 Hz; give a whole rate from 1000 to 10000000 Hz"),
        (np.zeros(3), 16_000.5, "has a sample rate of 16000.5 Hz; give a whole rate"),
        (np.zeros(3), -16_000, "has a sample rate of -16000 Hz"),
    ],
)
def test_invalid_audio_is_rejected(codec: Codec, wave: NDArray[np.float64], rate: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        codec.encode(wave, rate)  # type: ignore[arg-type]


def test_missing_channel_is_reported(codec: Codec) -> None:
    with pytest.raises(ValueError, match="has no channel 2: it has 2 channels, numbered from 0"):
        codec.encode(np.zeros((2, 10)), 16_000, channel=2)


def test_silence_can_be_encoded_and_decoded(codec: Codec) -> None:
    tokens = codec.encode(np.zeros(20_000), 16_000)
    assert len(tokens.tokens) == token_count(20_000, 4)
    assert np.isfinite(codec.decode(tokens, QUICK)).all()


def test_nonfinite_features_are_an_error(codec: Codec) -> None:
    parts = tiny_parts()
    tensors = {name: tensor * np.nan for name, tensor in parts.tokens.encoder.tensors.items()}
    broken = Codec(
        replace_parts(parts, encoder=dataclasses.replace(parts.tokens.encoder, tensors=tensors)),
        torch.device("cpu"),
        "fp32",
    )
    with pytest.raises(ValueError, match="features that are not finite"):
        broken.encode(noise(1000), 16_000)


def test_codebook_can_be_chosen_by_size_or_hash(codec: Codec) -> None:
    wave = noise(8_000)
    small, large = (codebook_hash(book) for book in tiny_parts().tokens.codebooks)
    assert codec.codebooks == {CODEBOOK_SIZES[0]: small, CODEBOOK_SIZES[1]: large}
    assert codec.encode(wave, 16_000).codebook_hash == large
    assert codec.encode(wave, 16_000, codebook=CODEBOOK_SIZES[0]).codebook_hash == small
    assert codec.encode(wave, 16_000, codebook=small).codebook_sizes == (CODEBOOK_SIZES[0], ACOUSTIC_SIZE)
    with pytest.raises(
        ValueError, match=rf"tiny has no codebook 4096; it has {small} \(24 rows\), {large} \(64 rows\)"
    ):
        codec.encode(wave, 16_000, codebook=4096)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_rate": 50}, "the tokens have a rate of 50 per second, but the codec tiny has a rate of 25"),
        ({"codec_hash": "f" * 16}, r"made with the codec ffffffffffffffff, not with tiny \([0-9a-f]{16}\)"),
        ({"codebook_hash": "e" * 16}, "has no codebook eeeeeeeeeeeeeeee; it has"),
        ({"samples": 0}, "no samples of audio"),
        ({"samples": 19_201}, "15 tokens do not fit 19201 samples of audio, which need 16 tokens"),
        ({"samples": 9_000}, "15 tokens do not fit 9000 samples"),
        (
            {"tokens": np.full((15, 2), 70), "codebook_sizes": (100, 100)},
            "semantic token 0 is 70, outside its codebook of 64 rows",
        ),
    ],
)
def test_tokens_that_do_not_fit_are_rejected(codec: Codec, changes: dict[str, object], message: str) -> None:
    tokens = codec.encode(noise(16_000), 16_000)
    with pytest.raises(ValueError, match=message):
        codec.decode(dataclasses.replace(tokens, **changes), QUICK)


def test_tokens_from_other_sources_can_be_decoded(codec: Codec) -> None:
    pairs = np.random.default_rng(0).integers(0, 24, (50, 2))
    tokens = codec.tokens(pairs, codebook=24)
    assert tokens.samples == 50 * 1280
    assert len(codec.decode(tokens, QUICK)) == tokens.samples
    assert np.array_equal(codec.tokens(torch.from_numpy(pairs)).tokens, pairs)
    assert codec.tokens(pairs, 63_000).samples == 63_000
    with pytest.raises(ValueError, match="50 tokens do not fit 64001 samples"):
        codec.tokens(pairs, 64_001)
    with pytest.raises(ValueError, match="semantic token 3 is 99"):
        codec.tokens(np.where(np.arange(50)[:, None] == 3, 99, pairs))


def test_output_depends_on_every_token(codec: Codec, long_tokens: CodecTokens) -> None:
    before = codec.decode(long_tokens, QUICK)
    for stream, size in enumerate(long_tokens.codebook_sizes):
        pairs = long_tokens.tokens.copy()
        pairs[-30, stream] = (pairs[-30, stream] + 1) % size
        after = codec.decode(dataclasses.replace(long_tokens, tokens=pairs), QUICK)
        assert np.array_equal(after[: 2 * HOP_SAMPLES], before[: 2 * HOP_SAMPLES])
        assert not np.array_equal(after, before)


def test_seed_determines_the_output(codec: Codec, long_tokens: CodecTokens) -> None:
    first, again, other = (codec.decode(long_tokens, SamplerConfig(steps=2, seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other, atol=1e-3 * np.abs(first).max())


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_output_does_not_depend_on_the_batch_size(codec: Codec, long_tokens: CodecTokens, batch: int) -> None:
    other = Codec(tiny_parts(), torch.device("cpu"), "fp32", batch_windows=batch)
    sampler = SamplerConfig(steps=3)
    expected = codec.decode(long_tokens, sampler)
    np.testing.assert_allclose(other.decode(long_tokens, sampler), expected, atol=1e-4 * np.abs(expected).max())


def test_files_decoded_together_equal_files_decoded_separately(codec: Codec, long_tokens: CodecTokens) -> None:
    files = [
        ("short", codec.encode(noise(9_000), 16_000)),
        ("long", long_tokens),
        ("end", codec.encode(noise(700), 16_000)),
    ]
    for (key, tokens), (found, blocks) in zip(files, codec.decode_many(files, QUICK), strict=True):
        assert found == key
        expected = codec.decode(tokens, QUICK)
        np.testing.assert_allclose(np.concatenate(list(blocks)), expected, atol=1e-4 * np.abs(expected).max())


def test_progress_adds_up_to_the_number_of_windows(codec: Codec, long_tokens: CodecTokens) -> None:
    counts: list[float] = []
    list(codec.decode_blocks(long_tokens, SamplerConfig(steps=3), counts.append))
    assert sum(counts) == pytest.approx(decode_window_count(long_tokens.samples))


def test_nonfinite_output_is_an_error_of_one_file_only(codec: Codec, long_tokens: CodecTokens, monkeypatch) -> None:
    short = codec.encode(noise(9_000), 16_000)
    decode = WindowDecoder.decode

    def break_third(self, windows, *rest):
        waves = decode(self, windows, *rest)
        waves[[window.number == 2 for window in windows]] = np.nan
        return waves

    monkeypatch.setattr(WindowDecoder, "decode", break_third)
    decoded = codec.decode_many([("long", long_tokens), ("short", short)], QUICK)
    with pytest.raises(DecodingError, match="window 2 decodes to values that are not finite in fp32"):
        list(next(decoded)[1])
    key, blocks = next(decoded)
    assert key == "short"
    assert sum(map(len, blocks)) == 9_000


def test_decoding_reads_tokens_lazily(codec: Codec, long_tokens: CodecTokens) -> None:
    read = []

    def files() -> Iterator[tuple[int, CodecTokens]]:
        for number in range(4):
            read.append(number)
            yield number, long_tokens

    for number, blocks in codec.decode_many(files(), QUICK):
        list(blocks)
        assert len(read) <= number + 2


def test_invalid_batch_size_is_rejected() -> None:
    with pytest.raises(ValueError, match="batch_windows must be an integer of at least 1, not 0"):
        Codec(tiny_parts(), torch.device("cpu"), "fp32", batch_windows=0)


def test_whole_rate_can_be_a_float(codec: Codec) -> None:
    wave = np.random.default_rng(0).standard_normal(4_000)
    found = [codec.encode(wave, rate).tokens for rate in (44_100, 44_100.0)]  # type: ignore[arg-type]
    np.testing.assert_array_equal(*found)


WAVE = np.zeros(800, np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda codec: codec.encode(WAVE, "16000"), "sample rate of '16000'"),
        (lambda codec: codec.encode(WAVE, None), "sample rate of None"),
        (lambda codec: codec.encode(WAVE, 16_000, channel="left"), "no channel 'left'"),
        (lambda codec: codec.encode(WAVE, 16_000, channel=0.5), r"no channel 0\.5"),
        (lambda codec: codec.encode("a.wav", 16_000), "must be floats or signed integers"),
        (lambda codec: codec.decode(None), "not NoneType"),
        (lambda codec: codec.decode("a.sct"), "not str"),
        (lambda codec: codec.decode(codec.encode(WAVE, 16_000), 50), "SamplerConfig, not 50"),
        (lambda codec: codec.tokens(None), r"integers \(n, 2\)"),
        (lambda codec: codec.tokens([[1, 2], [3]]), r"integers \(n, 2\)"),
        (lambda codec: codec.tokens(torch.zeros(1, 2, dtype=torch.bfloat16)), r"integers \(n, 2\)"),
        (lambda codec: codec.encode(WAVE, 16_000, codebook=np.array([24, 64])), "codebook must be"),
        (lambda codec: codec.codebook_hash(0.5), "codebook must be a number of rows or a hash, not 0.5"),
        (lambda codec: codec.tokens(np.zeros((1, 2), int), "800"), "samples must be an integer, not '800'"),
        (lambda codec: Codec.load(3), "3 is neither the name nor the folder of a codec"),
        (lambda codec: Codec.load("mini", "cpu", batch_windows="4"), "not '4'"),
    ],
)
def test_arguments_of_wrong_types_are_rejected(codec: Codec, call: Callable[[Codec], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(codec)
