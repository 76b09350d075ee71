"""What `encode`, `decode` and `reconstruct` share: the codec, sampling, progress and the closing lines."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import Progress, StartsOver, emit, one_of, say, table
from .runs import WORKERS_ON_CPU, WORKERS_ON_GPU, checked_name

if TYPE_CHECKING:
    from sctok.codec.codec import Codec
    from sctok.codec.files import Outcome
    from sctok.codec.samplers import SamplerConfig

SAMPLE_RATE = 16_000
FEW_FILES = 8
STEPS = {"ddim": 50, "dpm++": 10, "unipc": 10}

CodecOption = Annotated[
    str, typer.Option("--codec", help="mini (bundled), the name of a codec in ROOT/codecs, or its folder.")
]
CodebookOption = Annotated[
    str | None,
    typer.Option("--codebook", help="Rows or hash of a semantic codebook.", show_default="the codec's largest"),
]
KeepOption = Annotated[
    bool,
    typer.Option("--skip-existing", help="Leave results that are there, and whole, as they are; else replace them."),
]
FormatOption = Annotated[
    str, typer.Option("--format", help="wav or flac, where a folder is written to.", callback=one_of("wav", "flac"))
]
SamplerOption = Annotated[str, typer.Option("--sampler", help="ddim, dpm++ or unipc.", callback=one_of(*STEPS))]
StepsOption = Annotated[
    int | None,
    typer.Option("--steps", help="Steps of the sampler.", show_default="50 of ddim, 10 of the others", min=1),
]
GuidanceOption = Annotated[float, typer.Option("--guidance", help="Guidance scale; 1 for none, at half the work.")]
GuidanceFormOption = Annotated[
    str,
    typer.Option(
        "--guidance-form",
        help="published: u + s·(c - u); paper: Eq. 10 as printed, (1 - s)·c + s·u.",
        callback=one_of("published", "paper"),
    ),
]
EtaOption = Annotated[float, typer.Option("--eta", help="Fresh noise in each step of ddim, 0 to 1.", min=0, max=1)]
BatchWindowsOption = Annotated[
    int | None,
    typer.Option("--batch-size", help="Windows decoded at once.", show_default="4 on a CPU, 16 on a GPU", min=1),
]


def load_codec(
    name: str, root: Path, device: str, precision: str, batch_windows: int | None = None, *, parts: Sequence[str]
) -> "Codec":
    """Return the codec that --codec means. parts: encoder, decoder or both, the ones that will be used."""
    from sctok.codec.codec import Codec
    from sctok.codec.decoding import DECODER
    from sctok.features.extractor import ENCODER

    uses = [{"encoder": ENCODER, "decoder": DECODER}[part] for part in parts]
    return Codec.load(codec_path(name, root), device, precision, batch_windows, uses)


def codec_name(name: str) -> str:
    """Return the name of a codec to be made: that of a folder, and of no bundled codec, which it would hide."""
    from sctok.codec.storage.codec_folder import BUNDLED_CODECS

    if checked_name(name, "--name") in BUNDLED_CODECS:
        raise typer.BadParameter(
            f"{name} is the bundled codec, which this would hide: choose another", param_hint="--name"
        )
    return name


def codec_path(name: str, root: Path) -> str:
    """Return what --codec means: a folder, or the name of a bundled codec."""
    own = root / "codecs" / name
    return str(own) if own.is_dir() else name


def sampler_config(
    name: str, steps: int | None, guidance: float, guidance_form: str, eta: float, seed: int
) -> "SamplerConfig":
    """Return the sampler that the options mean; what does not fit together is wrong usage."""
    from sctok.codec.samplers import SamplerConfig

    try:
        return SamplerConfig(
            name=name,  # type: ignore[arg-type]
            steps=STEPS[name] if steps is None else steps,
            eta=eta,
            guidance=guidance,
            guidance_form=guidance_form,  # type: ignore[arg-type]
            seed=seed,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def chosen_codebook(codec: "Codec", codebook: str | None) -> int | str | None:
    """Return the codebook that --codebook means; one that the codec lacks is wrong usage."""
    is_hash = codebook is not None and codebook in codec.codebooks.values()  # which may be of digits alone
    wanted = int(codebook) if codebook is not None and codebook.isdecimal() and not is_hash else codebook
    try:
        codec.codebook_hash(wanted)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--codebook") from None
    return wanted


def audio_suffix(out: Path | None, audio_format: str) -> str:
    """Return the suffix of audio files: that of `out` where it is a file of audio, else that of --format."""
    suffix = "" if out is None else out.suffix.lower()
    return suffix if suffix in (".wav", ".flac") else f".{audio_format}"


def decoding_workers(workers: int | None, files: int, on_gpu: bool) -> int:
    """Return the number of processes that decode audio files; starting one does not pay for few files."""
    if workers is not None or files < FEW_FILES:
        return workers or 0
    cores = len(os.sched_getaffinity(0))
    return min(WORKERS_ON_GPU, cores) if on_gpu else min(WORKERS_ON_CPU, max(1, cores // 4))


class FileReporter:
    """Shows files as they are finished, how fast audio passes, and what went wrong."""

    def __init__(self, label: str, lengths: Iterable[int] | None, count: Callable[[int], int]) -> None:
        """Begin work on audio of these lengths, if they are known, whose windows `count` counts."""
        total = None if lengths is None else sum(map(count, lengths))
        self._bar = Progress(label, total=total, unit="windows")
        self._started = time.monotonic()
        self._outcomes = {"done": 0, "kept": 0}
        self._failed: list[dict[str, str]] = []
        self._samples = self._bits = self._bytes = 0

    def windows(self, count: float) -> None:
        """Note that so many windows have been worked on."""
        self._bar.update(count)

    def take(self, outcomes: "Iterable[Outcome]") -> None:
        """Note what became of each file. Raises StartsOver at Ctrl-C."""
        with self._bar:
            try:
                for outcome in outcomes:
                    self._take(outcome)
            except KeyboardInterrupt:
                raise StartsOver(
                    "files that are finished are kept; the same command with --skip-existing goes on from there"
                ) from None

    def _take(self, outcome: "Outcome") -> None:
        if outcome.reason is not None:
            self._failed.append({"source": outcome.source, "reason": outcome.reason})
            self._bar.message(f"failed: {outcome.source}: {outcome.reason}")
            return
        self._outcomes["done" if outcome.bytes_written else "kept"] += 1
        if outcome.bytes_written:
            self._samples += outcome.samples
            self._bits += outcome.token_bits
            self._bytes += outcome.bytes_written
        speed = self._samples / SAMPLE_RATE / (time.monotonic() - self._started)
        self._bar.update(0, f"{self._outcomes['done']} files, {speed:.2f}× real time")

    def show(self, codec: "Codec", as_json: bool) -> None:
        """Print what was done and how fast. Raises typer.Exit(1) if a file failed."""
        seconds, elapsed = self._samples / SAMPLE_RATE, time.monotonic() - self._started
        facts = {
            "codec": codec.info.name,
            "token_rate": codec.token_rate,
            "files": self._outcomes["done"],
            "kept": self._outcomes["kept"],
            "failed": self._failed,
            "audio_seconds": seconds,
            "seconds": elapsed,
            "times_real_time": seconds / elapsed,
            "bytes": self._bytes,
            "bits_per_second": self._bits / seconds if seconds else None,
        }
        emit(facts, as_json, lambda: _text(facts))
        if self._failed:
            say(f"warning: {len(self._failed)} of {sum(self._outcomes.values()) + len(self._failed)} files failed")
            raise typer.Exit(1)


def _text(facts: dict[str, Any]) -> str:
    rate = facts["bits_per_second"]
    cells = {
        "files": f"{facts['files']:,}",
        "kept": f"{facts['kept']:,}",
        "failed": f"{len(facts['failed']):,}",
        "audio s": f"{facts['audio_seconds']:,.2f}",
        "tokens/s": str(facts["token_rate"]),
        "kbit/s": "-" if rate is None else f"{rate / 1000:.3f}",
        "bytes": f"{facts['bytes']:,}",
        "× real time": f"{facts['times_real_time']:.2f}",
    }
    return table(tuple(cells), [tuple(cells.values())])
