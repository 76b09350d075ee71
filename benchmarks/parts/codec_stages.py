"""The stages that benchmarks/codec.py times, with their inputs and numbers of operations."""

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import soxr
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sctok.audio.decoding.decode import read_audio
from sctok.audio.filterbank import FFT_SIZE, filterbank
from sctok.audio.inputs.sources import AudioItem, list_audio
from sctok.audio.loader import load_windows
from sctok.audio.mel import DECODER_BINS
from sctok.audio.pieces import empty_span, window_rows
from sctok.audio.windows import FRAME_SHIFT, MEL_BINS, SAMPLE_RATE, WINDOW_FRAMES, WINDOW_SAMPLES
from sctok.codec.codec_parts import CodecParts, DecoderParts
from sctok.codec.encoding import BATCH
from sctok.codec.models.condition import PE_WIDTH, build_condition, mark_out, unconditional
from sctok.codec.samplers import Condition, Denoise, guided
from sctok.features.extractor import GPU_BATCH
from sctok.features.tokenizer import SemanticQuantizer
from sctok.formats.codebooks import Codebook
from sctok.formats.stacking import stack_patches

FILE_RATE, FILE_CHANNELS = 44_100, 2  # of the decoded file
TIMESTEP, GUIDANCE = 500, 2.0

Audio = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Stage:
    """One stage: `call` runs it for all windows. gflop: operations for one window, None if unknown."""

    name: str
    half: str
    call: Callable[[], object]
    gflop: float | None = None


@contextmanager
def workload(windows: int) -> Iterator[tuple[AudioItem, Audio]]:
    """Yield a 44.1 kHz stereo FLAC file of bundled clips, `windows` long, and its windows at 16 kHz."""
    clips = [item for item in list_audio([str(files("sctok.samples"))]) if isinstance(item, AudioItem)]
    wave = np.concatenate([read_audio(item.open(), name=item.name) for item in clips])
    wave = np.resize(wave, windows * WINDOW_SAMPLES - FRAME_SHIFT)  # a multiple of a window would gain an empty one
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "workload.flac"
        resampled = soxr.resample(wave, SAMPLE_RATE, FILE_RATE)
        soundfile.write(path, np.repeat(resampled[:, None], FILE_CHANNELS, 1).clip(-1, 1), FILE_RATE)
        span = empty_span(windows)
        span[: len(wave)] = wave
        yield AudioItem("workload", str(path), suffix=".flac"), window_rows(span)


def largest_codebook(parts: CodecParts) -> Codebook:
    """Return the default semantic codebook of a codec."""
    return max(parts.tokens.codebooks, key=lambda book: book.k)


def encode_stages(parts: CodecParts, item: AudioItem, audio: Audio, device: torch.device) -> list[Stage]:
    """Return the stages from a file to tokens. Each gets its input from the previous ones."""
    encoder, acoustic = parts.tokens.encoder.build().to(device), parts.tokens.acoustic.to(device)
    book, stack = largest_codebook(parts), parts.info.stack_factor
    waves, last = torch.from_numpy(audio).to(device), torch.zeros(len(audio), dtype=torch.bool, device=device)
    last[-1] = True
    mel = filterbank(waves, last)
    mels = _batches(mel, 1 if device.type == "cpu" else GPU_BATCH)
    features = stack_patches(torch.cat([encoder(each) for each in mels])[: len(waves)], stack)
    quantizer = SemanticQuantizer(book, device)
    inputs = (features, quantizer.vectors(quantizer.labels(features)), mark_out(mel, features.shape[1]))
    batches = list(zip(*(_batches(each, BATCH[device.type]) for each in inputs), strict=True))
    length, width = features.shape[1:]
    return [
        Stage("decode audio", "encode", lambda: list(load_windows([item], workers=0))),
        Stage("filterbank", "encode", lambda: filterbank(waves, last), filterbank_flops() / 1e9),
        Stage("AudioMAE", "encode", lambda: [encoder(each) for each in mels], encoder_flops(encoder) / 1e9),
        Stage("nearest centroid", "encode", lambda: quantizer.labels(features), 2e-9 * length * width * book.k),
        Stage(
            "BiLSTM + VQ",
            "encode",
            lambda: [acoustic(*each) for each in batches],
            acoustic_flops(acoustic, length) / 1e9,
        ),
    ]


def decode_stages(parts: CodecParts, pairs: Tensor, at_once: int) -> list[Stage]:
    """Return the stages from tokens int64 (w, L, 2) to waveforms, with `at_once` windows in a batch of the T-UNet."""
    device, cpu = pairs.device, pairs.device.type == "cpu"
    decoder = parts.decoder
    for module in (parts.tokens.acoustic, decoder.unet, decoder.grid, decoder.vae, decoder.vocoder):
        if module is not None:
            module.to(device)
    semantic = torch.from_numpy(largest_codebook(parts).centroids).to(device)[pairs[..., 0]]
    acoustic = parts.tokens.acoustic.quantizer.decode(pairs[..., 1])
    context = build_condition(acoustic, semantic, order=parts.info.order)
    latent = torch.randn(len(pairs), *decoder.vae.config.latent_shape(WINDOW_FRAMES), device=device)
    contexts, latents, pieces = context.split(at_once), latent.split(at_once), latent.split(1 if cpu else at_once)
    steps = [guided_step(decoder, each) for each in contexts]
    mels = [decoder.vae.decode(each)[:, 0] for each in pieces]
    condition, unet, vae, vocoder = (count / 1e9 for count in decode_flops(decoder, context.shape[1]))
    return [
        Stage("condition", "decode", lambda: [guided_step(decoder, each) for each in contexts], condition),
        Stage(
            "T-UNet step with guidance",
            "step",
            lambda: [step(each, TIMESTEP) for step, each in zip(steps, latents, strict=True)],
            unet,
        ),
        Stage("VAE", "decode", lambda: [decoder.vae.decode(each) for each in pieces], vae),
        Stage("vocoder", "decode", lambda: [decoder.vocoder(each) for each in mels], vocoder),
    ]


def guided_step(decoder: DecoderParts, context: Tensor) -> Denoise:
    """Return guided v as a function of latents and step, as the samplers compute it for a context (B, L, C)."""
    nothing = unconditional(context.shape[1], context.shape[2] - PE_WIDTH).to(context)
    maps = (None, None) if decoder.grid is None else (decoder.grid(context), decoder.grid(nothing))
    return guided(decoder.unet, GUIDANCE, Condition(context, nothing, *maps))


def _batches(rows: Tensor, size: int) -> list[Tensor]:
    """Return rows in batches of one size, the last padded with zeros, as the codec runs its encoders."""
    missing = -len(rows) % size
    return list(torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]).split(size))


def filterbank_flops() -> float:
    """Return the operations of the filterbank for one window: a real FFT of each frame, then the mel filters."""
    return WINDOW_FRAMES * (2.5 * FFT_SIZE * math.log2(FFT_SIZE) + 2 * (FFT_SIZE // 2 + 1) * MEL_BINS)


def encoder_flops(encoder: Any) -> float:
    """Return the operations of AudioMAE for one window."""
    with torch.device("meta"):
        return _count(_twin(encoder), torch.empty(1, WINDOW_FRAMES, MEL_BINS))


def acoustic_flops(acoustic: Any, length: int) -> float:
    """Return the operations of an acoustic encoder for one window, including distances to its codebook."""
    lstm, linear, config = acoustic.encoder, acoustic.encoder_output_linear, acoustic.config.quantizer
    with torch.device("meta"):
        twin = nn.LSTM(lstm.input_size, lstm.hidden_size, lstm.num_layers, batch_first=True, bidirectional=True)
        recurrent = _count(twin, torch.empty(1, length, lstm.input_size))
    return recurrent + 2.0 * length * (linear.weight.numel() + config.dim * config.codebook_size)


def decode_flops(decoder: DecoderParts, length: int) -> tuple[float, float, float, float]:
    """Return the operations for one window of the condition, one guided step, the VAE and the vocoder."""
    modules = (decoder.unet, decoder.vae, decoder.vocoder, decoder.grid)
    unet, vae, vocoder, grid = (None if module is None else _twin(module) for module in modules)
    twin = replace(decoder, unet=unet, vae=vae, vocoder=vocoder, grid=grid)
    with torch.device("meta"):
        context = torch.empty(1, length, twin.unet.config.context_width)
        latent = torch.empty(1, *twin.vae.config.latent_shape(WINDOW_FRAMES))
        mel = torch.empty(1, WINDOW_FRAMES, DECODER_BINS)
        step = guided_step(twin, context)
        return (
            _count(guided_step, twin, context),
            _count(step, latent, TIMESTEP),
            _count(twin.vae.decode, latent),
            _count(twin.vocoder, mel),
        )


def _twin(module: Any) -> Any:
    """Return a module of the same sizes on the meta device."""
    with torch.device("meta"):
        return type(module)(module.config)


def _count(function: Callable[..., object], *inputs: Any) -> float:
    """Return the floating-point operations of a call on meta tensors, counting a multiply-add as two."""
    with torch.inference_mode(False), torch.no_grad(), FlopCounterMode(display=False) as counter:
        function(*inputs)
    return float(counter.get_total_flops())
