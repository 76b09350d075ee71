"""What `encode`, `decode` and `reconstruct` share: the codec, sampling, progress and the closing lines."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import typer

from .options import (
    DEFAULT_ROOT,
    ChannelOption,
    DeviceOption,
    PrecisionOption,
    RootOption,
    SeedOption,
    checked_name,
    default_workers,
    one_of,
)
from .terminal import Progress, StartsOver, emit, say, table

if TYPE_CHECKING:
    from sctok.codec.codec import Codec
    from sctok.codec.files import Outcome, Reading
    from sctok.codec.samplers import SamplerConfig

SAMPLE_RATE = 16_000
FEW_FILES = 8
STEPS = {"ddim": 50, "dpm++": 10, "unipc": 10}

KeepOption = Annotated[
    bool, typer.Option("--skip-existing", help="Keep existing results that are complete instead of replacing them.")
]
FormatOption = Annotated[
    str,
    typer.Option("--format", help="Format of audio files in a folder: wav or flac.", callback=one_of("wav", "flac")),
]


@dataclass(frozen=True)
class CodecOptions:
    """The codec and where it computes."""

    codec: Annotated[str, typer.Option(help="Codec: mini (bundled), a name in ROOT/codecs, or a folder.")] = "mini"
    root: RootOption = DEFAULT_ROOT
    device: DeviceOption = "auto"
    precision: PrecisionOption = "auto"

    def load(self, *parts: Literal["encoder", "decoder"], batch_windows: int | None = None) -> "Codec":
        """Return the codec, ready to use the named parts."""
        from sctok.codec.codec import Codec
        from sctok.codec.decoding import DECODER
        from sctok.features.extractor import ENCODER

        uses = [{"encoder": ENCODER, "decoder": DECODER}[part] for part in parts]
        return Codec.load(codec_path(self.codec, self.root), self.device, self.precision, batch_windows, uses)


@dataclass(frozen=True)
class ReadingOptions:
    """How audio files are read and which codebook their semantic tokens come from."""

    codebook: Annotated[
        str | None,
        typer.Option(
            help="Semantic codebook of the codec, by its number of centroids or its hash.",
            show_default="the codec's largest",
        ),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that decode audio files.", show_default="from the number of cores", min=0),
    ] = None
    channel: ChannelOption = None

    def for_codec(self, codec: "Codec", files: int) -> "Reading":
        """Return how `files` audio files are read for a codec; a codebook that it lacks is wrong usage."""
        from sctok.codec.files import Reading

        workers = self.workers
        if workers is None:  # for few files, starting a process takes longer than it saves
            workers = 0 if files < FEW_FILES else default_workers(codec.device.type == "cuda")
        return Reading(self._codebook(codec), self.channel, workers)

    def _codebook(self, codec: "Codec") -> int | str | None:
        is_hash = self.codebook in codec.codebooks.values()  # a hash may consist of digits
        is_size = self.codebook is not None and self.codebook.isdecimal() and not is_hash
        wanted = int(self.codebook) if is_size and self.codebook else self.codebook
        try:
            codec.codebook_hash(wanted)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--codebook") from None
        return wanted


@dataclass(frozen=True)
class DecodingOptions:
    """How the diffusion decoder samples."""

    panel: ClassVar[str] = "Sampling"
    sampler: Annotated[Literal["ddim", "dpm++", "unipc"], typer.Option(help="Sampler of the diffusion decoder.")] = (
        "ddim"
    )
    steps: Annotated[
        int | None,
        typer.Option(help="Steps of the sampler.", show_default="50 for ddim, 10 for dpm++ and unipc", min=1),
    ] = None
    guidance: Annotated[
        float, typer.Option(help="Scale of classifier-free guidance; 1 turns it off and halves the work.")
    ] = 2.0
    guidance_form: Annotated[
        Literal["published", "paper"],
        typer.Option(
            help="Formula for conditional output c, unconditional output u and scale s. published: u + s·(c - u); "
            "paper: (1 - s)·c + s·u, as printed in Eq. 10."
        ),
    ] = "published"
    eta: Annotated[
        float, typer.Option(help="Share of fresh noise in each step of ddim, from 0 to 1.", min=0, max=1)
    ] = 1.0
    seed: SeedOption = 0
    batch_size: Annotated[
        int | None, typer.Option(help="Windows decoded at once.", show_default="4 on a CPU, 16 on a GPU", min=1)
    ] = None

    def sampler_config(self) -> "SamplerConfig":
        """Return the configuration of the sampler; options that contradict each other are wrong usage."""
        from sctok.codec.samplers import SamplerConfig

        try:
            return SamplerConfig(
                name=self.sampler,
                steps=self.steps or STEPS[self.sampler],
                eta=self.eta,
                guidance=self.guidance,
                guidance_form=self.guidance_form,
                seed=self.seed,
            )
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None


def codec_name(name: str) -> str:
    """Return the name of a new codec; the name of a bundled codec, which it would hide, is wrong usage."""
    from sctok.codec.storage.codec_folder import BUNDLED_CODECS

    if checked_name(name, "--name") in BUNDLED_CODECS:
        raise typer.BadParameter(
            f"{name} is the name of the bundled codec, which this would hide; choose another", param_hint="--name"
        )
    return name


def codec_path(name: str, root: Path) -> str:
    """Return the folder of a codec in ROOT/codecs if it exists, else the name or folder as given."""
    own = root / "codecs" / name
    return str(own) if own.is_dir() else name


def audio_suffix(out: Path | None, audio_format: str) -> str:
    """Return the suffix of audio files: that of `out` if it names an audio file, else that of --format."""
    suffix = "" if out is None else out.suffix.lower()
    return suffix if suffix in (".wav", ".flac") else f".{audio_format}"


class FileReporter:
    """Show finished files, the speed, and what went wrong."""

    def __init__(self, label: str, lengths: Iterable[int] | None, count: Callable[[int], int]) -> None:
        """Start the progress bar.

        lengths: samples of each file, or None if unknown. count: returns the windows of a length.
        """
        total = None if lengths is None else sum(map(count, lengths))
        self._bar = Progress(label, total=total, unit="windows")
        self._started = time.monotonic()
        self._outcomes = {"done": 0, "kept": 0}
        self._failed: list[dict[str, str]] = []
        self._samples = self._bits = self._bytes = 0

    def windows(self, count: float) -> None:
        """Count windows that are finished."""
        self._bar.update(count)

    def take(self, outcomes: "Iterable[Outcome]") -> None:
        """Count the outcome of each file. Raises StartsOver at Ctrl-C."""
        with self._bar:
            try:
                for outcome in outcomes:
                    self._take(outcome)
            except KeyboardInterrupt:
                raise StartsOver(
                    "finished files are kept; run the same command with --skip-existing to resume"
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
        """Print the totals and the speed. Raises typer.Exit(1) if a file failed."""
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
