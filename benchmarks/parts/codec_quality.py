"""Distances of reconstructed clips by sampler, steps and guidance, for benchmarks/codec.py --quality."""

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sctok.audio.decoding.decode import read_audio
from sctok.audio.inputs.sources import AudioItem, list_audio
from sctok.audio.mel import log_mel
from sctok.audio.spectral_distances import mel_distance
from sctok.audio.windows import SAMPLE_RATE, WINDOW_SAMPLES
from sctok.codec.codec import Codec
from sctok.codec.codec_parts import CodecParts
from sctok.codec.samplers import SamplerConfig
from sctok.formats.sct import CodecTokens

SAMPLERS: tuple[dict[str, Any], ...] = (
    {"name": "ddim", "eta": 0.0},
    {"name": "ddim", "eta": 1.0},
    {"name": "dpm++"},
    {"name": "unipc"},
)
SHUFFLES = {"acoustic": 1, "semantic": 0}  # columns of the tokens
SHORTEST = 2048  # samples of the widest window of the mel distance

Wave = npt.NDArray[np.float32]


@dataclass(frozen=True)
class QualityRuns:
    """Reconstructions to measure.

    These are all samplers with each of `steps`, `at` and DPM-Solver++ with each `guidance`, and `at` with shuffled
    tokens. `at` gives the settings that are not varied. Clips of the folder are cut to `seconds`.
    """

    steps: tuple[int, ...] = (2, 5, 10, 20, 50, 100)
    guidance: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    at: SamplerConfig = SamplerConfig()  # noqa: RUF009, frozen
    clips: int = 24
    seconds: float = WINDOW_SAMPLES / SAMPLE_RATE
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip at 16 kHz and its tokens."""

    key: str
    wave: Wave
    tokens: CodecTokens


def sampler_label(sampler: SamplerConfig) -> str:
    """Return the name of a sampler in tables."""
    names = {"ddim": f"DDIM, η = {sampler.eta:g}", "dpm++": "DPM-Solver++", "unipc": "UniPC"}
    return names[sampler.name]


def measure_quality(parts: CodecParts, codec: Codec, folder: Path, runs: QualityRuns) -> dict[str, Any]:
    """Return the mel distances of all runs as JSON values: mean and standard error over clips, and each clip's."""
    clips = read_clips(codec, folder, runs)
    samplers = [replace(runs.at, **settings) for settings in SAMPLERS]
    guided = {sampler_label(each): each for each in (runs.at, samplers[2])}
    run = cache(partial(measure_run, codec, clips))  # the curves cross
    return {
        "runs": asdict(runs),
        "clips": [clip.key for clip in clips],
        "seconds": sum(len(clip.wave) for clip in clips) / SAMPLE_RATE,
        "floors": measure_floors(parts, clips),
        "steps": {sampler_label(each): [run(replace(each, steps=steps)) for steps in runs.steps] for each in samplers},
        "guidance": {
            name: [run(replace(each, guidance=scale)) for scale in runs.guidance] for name, each in guided.items()
        },
        "shuffled": {"none": run(runs.at)}
        | {
            stream: measure_run(codec, shuffled(clips, column, runs.seed), runs.at)
            for stream, column in SHUFFLES.items()
        },
    }


def read_clips(codec: Codec, folder: Path, runs: QualityRuns) -> list[Clip]:
    """Return the beginnings of clips that are evenly spread over a folder."""
    items = [item for item in list_audio([folder]) if isinstance(item, AudioItem)]
    count = min(runs.clips, len(items))
    clips = []
    for item in [items[index * len(items) // count] for index in range(count)]:
        wave = read_audio(item.open(), name=item.name)[: int(runs.seconds * SAMPLE_RATE)]
        if len(wave) < SHORTEST:
            print(f"{item.name} is too short for the mel distance and left out", file=sys.stderr)
        else:
            clips.append(Clip(item.key, wave, codec.encode_blocks([wave])))
    if not clips:
        raise SystemExit(f"{folder} holds no clip of at least {SHORTEST} samples")
    return clips


def shuffled(clips: Sequence[Clip], column: int, seed: int) -> list[Clip]:
    """Return the clips with the tokens of one stream shuffled within each clip."""
    generator, found = np.random.default_rng(seed), []
    for clip in clips:
        pairs = clip.tokens.tokens.copy()
        pairs[:, column] = generator.permutation(pairs[:, column])
        found.append(replace(clip, tokens=replace(clip.tokens, tokens=pairs)))
    return found


def measure_floors(parts: CodecParts, clips: Sequence[Clip]) -> dict[str, Any]:
    """Return the distances of the vocoder, and of VAE and vocoder, given perfect latents."""

    def through_vae(mel: Tensor) -> Tensor:
        return parts.decoder.vae.decode(parts.decoder.vae.encode(mel[:, None])[0])[:, 0]

    routes: dict[str, Callable[[Tensor], Tensor]] = {"vocoder": lambda mel: mel, "VAE and vocoder": through_vae}
    device = next(parts.decoder.vae.parameters()).device
    floors = {}
    for name, route in routes.items():
        distances = []
        for clip in clips:
            windows = torch.from_numpy(np.pad(clip.wave, (0, -len(clip.wave) % WINDOW_SAMPLES))).to(device)
            with torch.inference_mode():
                waves = parts.decoder.vocoder(route(log_mel(windows.view(-1, WINDOW_SAMPLES))))[:, :WINDOW_SAMPLES]
            distances.append(_distance(waves.flatten().cpu().numpy()[: len(clip.wave)], clip.wave))
        floors[name] = _summary(distances)
    return floors


def measure_run(codec: Codec, clips: Sequence[Clip], sampler: SamplerConfig) -> dict[str, Any]:
    """Return the distances of the clips decoded with one sampler."""
    settings = f"{sampler.steps} steps, guidance {sampler.guidance:g}"
    print(f"quality: {sampler_label(sampler)}, {settings}", file=sys.stderr, flush=True)
    decoded = codec.decode_many([(clip, clip.tokens) for clip in clips], sampler)
    distances = [_distance(np.concatenate(list(blocks)), clip.wave) for clip, blocks in decoded]
    return asdict(sampler) | _summary(distances)


def _summary(distances: Sequence[float]) -> dict[str, Any]:
    spread = statistics.stdev(distances) / len(distances) ** 0.5 if len(distances) > 1 else None
    return {"mean": statistics.fmean(distances), "error": spread, "distances": list(distances)}


def _distance(estimate: Wave, reference: Wave) -> float:
    return mel_distance(torch.from_numpy(estimate)[None], torch.from_numpy(reference)[None]).item()
