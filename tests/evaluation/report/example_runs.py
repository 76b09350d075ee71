"""Run folders and ratings for the tests of the report."""

import csv
import json
from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000
CODECS = (("tiny", "tiny", 0.6, 2.0), ("opus-6", "opus:6", 6.1, 3.0), ("opus-12", "opus:12", 12.3, 4.0))
METRICS = (
    {"name": "visqol", "unit": "MOS", "better": "higher", "protocol": "ViSQOL, speech mode, 16 kHz"},
    {"name": "mel_dac", "unit": "", "better": "lower", "protocol": "DAC's multi-scale mel distance"},
)
FILES = (("speech/one", "speech"), ("speech/two", "speech"), ("music/three", "music"))


def tone(key: str, seconds: float = 1.0, rate: int = RATE):
    """Return a chord that depends on the key, float32 (n,)."""
    time = np.arange(round(seconds * rate)) / rate
    pitch = 200 + 40 * (sum(key.encode()) % 7)
    return (0.2 * sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 20))).astype(np.float32)


def write_flac(path: Path, wave, rate: int = RATE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate, subtype="PCM_16")


def write_run(folder: Path, *, files=FILES, codecs=CODECS, audio: bool = True, seconds: float = 1.0, **head) -> Path:
    """Write the folder of an evaluation with invented scores; the last codec has another sample rate."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = [
        {"key": key, "domain": domain, "seconds": seconds, "path": f"/nowhere/{key}.wav"} for key, domain in files
    ]
    description = {
        "format": "sctok-evaluation",
        "format_version": 1,
        "name": folder.name,
        "created": "2026-01-02T03:04:05+00:00",
        "sctok": "0.1.0",
        "settings": {},
        "codecs": [{"name": name, "spec": spec, "settings": {}} for name, spec, *_ in codecs],
        "metrics": list(METRICS),
        "files": entries,
    }
    (folder / "run.json").write_text(json.dumps({**description, **head}))
    rows = [_score(codec, key, domain, seconds) for codec in codecs for key, domain in files]
    with (folder / "scores.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(_score(("", "", 1.0, 1.0), "", "", 1.0)))
        writer.writeheader()
        writer.writerows(rows)
    (folder / "summary.json").write_text(json.dumps(_summary(codecs, files)))
    if audio:
        for index, (key, _) in enumerate(files):
            write_flac(folder / "audio" / "reference" / f"{key}.flac", tone(key, seconds))
            for place, (name, *_) in enumerate(codecs):
                rate = 24_000 if place == len(codecs) - 1 else RATE
                noise = np.random.default_rng(index).standard_normal(round(seconds * rate)) * 0.05 / (place + 1)
                write_flac(folder / "audio" / name / f"{key}.flac", tone(key, seconds, rate) + noise, rate)
    return folder


def _score(codec, key, domain, seconds):
    name, _, kbps, quality = codec
    return {
        "codec": name, "key": key, "domain": domain, "seconds": seconds, "bytes": round(kbps * 125 * seconds),
        "kbps": kbps, "tokens_per_second": 50 if name == "tiny" else "", "rtf_encode": 0.1, "rtf_decode": 0.2,
        "visqol": quality, "mel_dac": 5 - quality, "error": "",
    }  # fmt: skip


def _summary(codecs, files):
    domains = ["all", *dict.fromkeys(domain for _, domain in files)]
    return [
        {"codec": name, "domain": domain, "metric": metric, "mean": mean, "low": mean - 0.1, "high": mean + 0.2,
         "n": len(files), "failed": 0}
        for name, _, kbps, quality in codecs
        for domain in domains
        for metric, mean in (
            *(("visqol", quality), ("mel_dac", 5 - quality), ("kbps", kbps), ("rtf_encode", 0.1), ("rtf_decode", 0.2)),
            *([("tokens_per_second", 50)] if name == "tiny" else []),
        )
    ]  # fmt: skip


def ratings(listener: str, scores: dict[str, list[float]], *, session: str = "", test: str = "t1") -> dict:
    """Return saved ratings: for each sound ("reference", "anchor" or a codec) one score for each clip."""
    trials = [
        {
            "clip": f"clip {index}",
            "run": "run",
            "domain": "speech" if index % 2 == 0 else "music",
            "seconds": 9,
            "ratings": [
                {"role": name if name in ("reference", "anchor") else "codec", "codec": name, "score": own[index]}
                for name, own in scores.items()
            ],
        }
        for index in range(len(next(iter(scores.values()))))
    ]
    return {
        "format": "sctok-ratings", "format_version": 1, "test": test, "session": session or listener,
        "listener": listener, "saved": "2026-01-01T00:00:00Z", "trials": trials,
    }  # fmt: skip
