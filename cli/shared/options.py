"""Options that several commands take, each declared once; groups of them are dataclasses (see `command`)."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

if TYPE_CHECKING:
    from sctok.corpus.runs.selection import Selection
    from sctok.corpus.runs.sharding import Execution

DEFAULT_ROOT = Path("sctok-data")
ALL_DEVICES = "all"
WINDOWS_ON_CPU, WINDOWS_ON_GPU = 8, 64
WORKERS_ON_CPU, WORKERS_ON_GPU = 4, 16
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def one_of(*names: str) -> Callable[[str], str]:
    """Return a check for an option whose value is one of `names`; anything else is wrong usage."""

    def check(value: str) -> str:
        if value not in names:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(names)}")
        return value

    return check


def not_empty(value: str | None) -> str | None:
    """Check that an option has a value if it is given."""
    if value == "":
        raise typer.BadParameter("is empty")
    return value


def device_names(value: str) -> str:
    """Check that an option's value names devices, whether or not this machine has them."""
    if not re.fullmatch(r"auto|all|(cpu|cuda(:\d+)?)(, *(cpu|cuda(:\d+)?))*", value):
        raise typer.BadParameter(f"{value!r} is not one of auto, cpu, cuda, cuda:N")
    return value


def _above_zero(value: float | None) -> float | None:
    if value is not None and not value > 0:
        raise typer.BadParameter(f"{value} is not above 0")
    return value


AudioArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="AUDIO...",
        help="Folders, audio files, manifests (CSV, JSONL, Parquet, lhotse cuts) and tar shards; paths or URLs.",
    ),
]
RootOption = Annotated[
    Path, typer.Option("--root", envvar="SCTOK_ROOT", help="Work directory, shared by all commands.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of all random choices.", min=0)]
DeviceOption = Annotated[
    str, typer.Option("--device", help="Device to compute on: auto, cpu, cuda or cuda:N.", callback=device_names)
]
PrecisionOption = Annotated[
    str,
    typer.Option(
        "--precision", help="Arithmetic of the networks: auto, fp32, bf16 or fp16.", callback=one_of(*PRECISIONS)
    ),
]
EncoderOption = Annotated[
    str, typer.Option("--encoder", help="AudioMAE encoder: mini (bundled), base, or a file of weights.")
]
ChannelOption = Annotated[
    int | None,
    typer.Option("--channel", help="Audio channel to read, counted from 0.", show_default="the mean of all", min=0),
]
PaddingOption = Annotated[
    str,
    typer.Option(
        "--padding",
        help="keep: the encoder also sees the silence that fills up the last window of a file, as published. "
        "cut: it sees the file only, which is faster for short files; such features need their own codebooks.",
        callback=one_of("keep", "cut"),
    ),
]
ShardOption = Annotated[
    int, typer.Option("--files-per-shard", help="Number of audio files written to one shard.", min=1)
]
PatchesOption = Annotated[
    int | None,
    typer.Option(
        "--tokens-per-clip",
        help="Keep about this many patches of each file, drawn at random in groups of 16.",
        show_default="all",
        min=1,
    ),
]
HoursOption = Annotated[
    float | None,
    typer.Option(
        "--max-hours",
        help="Draw files at random until they last this many hours.",
        show_default="all files",
        callback=_above_zero,
    ),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="Folder to write to.", show_default="a folder below --root")
]
RetryOption = Annotated[
    bool, typer.Option("--retry-failed", help="Read the inputs listed in failed.jsonl again; finished ones are kept.")
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace existing results that were made from other data or settings.")
]


@dataclass(frozen=True)
class FileSelection:
    """Which of the listed audio files a run reads."""

    panel: ClassVar[str] = "Which files"
    include: Annotated[
        list[str] | None,
        typer.Option(
            help="Read only files whose name, or path below the input, matches this pattern, such as "
            "'train/*.flac'; may be repeated."
        ),
    ] = None
    exclude: Annotated[list[str] | None, typer.Option(help="Skip files that match this pattern; may be repeated.")] = (
        None
    )
    min_seconds: Annotated[float | None, typer.Option(help="Skip files shorter than this many seconds.", min=0)] = None
    max_seconds: Annotated[float | None, typer.Option(help="Skip files longer than this many seconds.", min=0)] = None

    def selection(self) -> "Selection":
        """Return the selection for the library."""
        from sctok.corpus.runs.run_folder import RunError
        from sctok.corpus.runs.selection import Selection

        try:
            return Selection(tuple(self.include or ()), tuple(self.exclude or ()), self.min_seconds, self.max_seconds)
        except RunError as error:
            raise typer.BadParameter(str(error), param_hint="--min-seconds") from None


@dataclass(frozen=True)
class EncodingOptions:
    """Where audio is decoded and encoded, and how much of it at once."""

    panel: ClassVar[str] = "Devices and processes"
    device: Annotated[
        str,
        typer.Option(
            help="Devices to compute on: auto, cpu, cuda or cuda:N; a list such as cuda:0,cuda:1, or all, starts one "
            "process on each.",
            callback=device_names,
        ),
    ] = "auto"
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Windows of 10.24 s encoded at once.",
            show_default=f"{WINDOWS_ON_CPU} on a CPU, {WINDOWS_ON_GPU} on a GPU",
            min=1,
        ),
    ] = None
    workers: Annotated[
        int | None, typer.Option(help="Processes that decode audio.", show_default="from the number of cores", min=0)
    ] = None
    engine: Annotated[
        str, typer.Option(help="local, or ray: one Ray worker for each device.", callback=one_of("local", "ray"))
    ] = "local"
    address: Annotated[
        str | None,
        typer.Option(help="Address of a running Ray cluster, or auto.", show_default="start Ray on this machine"),
    ] = None
    retry_failed: RetryOption = False

    def execution(self, precision: str, windows_on_cpu: int = WINDOWS_ON_CPU) -> tuple["Execution", str]:
        """Return the execution for the library, and the precision that `precision` means on its devices.

        windows_on_cpu: the batch size on a CPU if none is given.
        """
        from sctok.corpus.runs.sharding import LOCAL, Execution
        from sctok.features.extractor import ENCODER
        from sctok.runtime.devices import resolve_precision

        if self.address is not None and self.engine != "ray":
            raise typer.BadParameter("is an address of Ray; add --engine ray", param_hint="--address")
        devices = _devices(self.device)
        on_gpu = devices[0].type == "cuda"
        execution = Execution(
            tuple(map(str, devices)),
            self.batch_size or (WINDOWS_ON_GPU if on_gpu else windows_on_cpu),
            default_workers(on_gpu) if self.workers is None else self.workers,
            retry_failed=self.retry_failed,
            ray_address=(self.address or LOCAL) if self.engine == "ray" else None,
            **self._sharing(),
        )
        return execution, resolve_precision(precision, devices[0], [ENCODER])

    def _sharing(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class RunOptions(EncodingOptions):
    """How commands share a corpus, next to where they compute."""

    refresh: Annotated[
        bool,
        typer.Option(
            "--refresh", help="Write the shards whose audio files changed or vanished again; the others are kept."
        ),
    ] = False
    rank: Annotated[
        int,
        typer.Option(help="Part of the shards that this command writes, from 0, such as $SLURM_ARRAY_TASK_ID.", min=0),
    ] = 0
    world_size: Annotated[int, typer.Option(help="Number of commands that share the shards.", min=1)] = 1
    profile: Annotated[bool, typer.Option("--profile", help="Report the time spent in each stage.")] = False

    def __post_init__(self) -> None:
        """Check that the rank is one of the commands'."""
        if not self.rank < self.world_size:
            raise typer.BadParameter(f"{self.rank} is not below --world-size {self.world_size}", param_hint="--rank")

    def _sharing(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("refresh", "rank", "world_size", "profile")}


def default_workers(on_gpu: bool) -> int:
    """Return the number of processes that decode audio for one device."""
    cores = len(os.sched_getaffinity(0))
    return min(WORKERS_ON_GPU, cores) if on_gpu else min(WORKERS_ON_CPU, max(1, cores // 4))


def _devices(text: str) -> list[Any]:
    import torch

    from sctok.runtime.devices import resolve_device

    names = text.split(",")
    if text == ALL_DEVICES:
        names = [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["auto"]
    devices = [resolve_device(name.strip()) for name in names]
    if len({device.type for device in devices}) > 1:
        raise typer.BadParameter(f"{text!r} mixes kinds of devices; start a command for each", param_hint="--device")
    return devices


def split_list(values: list[str] | None) -> list[str]:
    """Return the parts of a repeated option whose values may also be comma lists."""
    return [part.strip() for part in ",".join(values or ()).split(",")] if values else []


def whole_numbers(values: list[str], option: str) -> list[int]:
    """Return the numbers of a repeated option, each once, in the given order; anything else is wrong usage."""
    sizes = []
    for part in split_list(values):
        if not part.isdecimal() or int(part) < 1:
            raise typer.BadParameter(f"{part!r} is not a positive whole number", param_hint=option)
        sizes.append(int(part))
    return list(dict.fromkeys(sizes))


def byte_count(text: str | None, option: str = "--memory") -> int | None:
    """Return the bytes that a size such as 2G means; None if it is not given."""
    from sctok.runtime.memory import parse_bytes

    try:
        return None if text is None else parse_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def checked_name(name: str, option: str) -> str:
    """Return a name that can be the name of a folder; any other is wrong usage."""
    from sctok.corpus.runs.run_folder import RunError, check_name

    try:
        return check_name(name, "the name")
    except RunError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None
