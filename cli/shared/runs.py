"""What `extract` and `tokenize` share: their options, the devices of a run, progress and the closing lines."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import Progress, device_names, emit, one_of, say, table

if TYPE_CHECKING:
    from sctok.corpus.engines.processes import RunResult
    from sctok.corpus.runs.events import RunEvent
    from sctok.corpus.runs.selection import Selection
    from sctok.corpus.runs.sharding import Execution, MakeExtractor

ALL_DEVICES = "all"
WINDOWS_ON_CPU, WINDOWS_ON_GPU = 8, 64
WORKERS_ON_CPU, WORKERS_ON_GPU = 4, 16

RETRY = "mend them and run the same command with --retry-failed to try them again"


def _above_zero(value: float | None) -> float | None:
    if value is not None and not value > 0:
        raise typer.BadParameter(f"{value} is not above 0")
    return value


AudioArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="AUDIO...",
        help="Folders, audio files, manifests (CSV, JSONL, Parquet, lhotse cuts) and tar shards, also at URLs.",
    ),
]
EncoderOption = Annotated[str, typer.Option("--encoder", help="mini (bundled), base, or a file of AudioMAE weights.")]
DevicesOption = Annotated[
    str,
    typer.Option(
        "--device",
        help="auto, cpu, cuda, cuda:1 …; cuda:0,cuda:1 or all: a process on each.",
        callback=device_names,
    ),
]
BatchOption = Annotated[
    int | None,
    typer.Option("--batch-size", help="Windows encoded at once.", show_default="8 on a CPU, 64 on a GPU", min=1),
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", help="Decoding processes.", show_default="by the number of cores", min=0)
]
ChannelOption = Annotated[
    int | None, typer.Option("--channel", help="Read this channel, from 0.", show_default="mix all down", min=0)
]
ShardOption = Annotated[int, typer.Option("--files-per-shard", help="Audio files in one shard.", min=1)]
IncludeOption = Annotated[
    list[str] | None,
    typer.Option("--include", help="Take only files whose path below the input, or name, fits: 'train/*.flac'."),
]
ExcludeOption = Annotated[
    list[str] | None, typer.Option("--exclude", help="Leave out files that fit; may be repeated.")
]
MinSecondsOption = Annotated[float | None, typer.Option("--min-seconds", help="Leave out shorter files.", min=0)]
MaxSecondsOption = Annotated[float | None, typer.Option("--max-seconds", help="Leave out longer files.", min=0)]
PatchesOption = Annotated[
    int | None,
    typer.Option("--tokens-per-clip", help="Keep about so many patches of each file, chosen 16 at a time.", min=1),
]
HoursOption = Annotated[
    float | None,
    typer.Option("--max-hours", help="Choose files at random until they last so many hours.", callback=_above_zero),
]
RankOption = Annotated[
    int, typer.Option("--rank", help="Which of --world-size parts of the shards to do; $SLURM_ARRAY_TASK_ID.", min=0)
]
WorldOption = Annotated[int, typer.Option("--world-size", help="How many commands share the shards.", min=1)]
ProfileOption = Annotated[bool, typer.Option("--profile", help="Tell where the time went, stage by stage.")]
EngineOption = Annotated[
    str, typer.Option("--engine", help="local, or ray: a worker of Ray per device.", callback=one_of("local", "ray"))
]
AddressOption = Annotated[
    str | None,
    typer.Option("--address", help="Of a running Ray cluster, or auto.", show_default="start Ray here for this run"),
]
RetryOption = Annotated[
    bool,
    typer.Option("--retry-failed", help="Read what failed.jsonl names again; what is done stays as it is."),
]
RefreshOption = Annotated[
    bool,
    typer.Option("--refresh", help="Do the shards again whose files changed or vanished; the others stay as they are."),
]
PaddingOption = Annotated[
    str,
    typer.Option(
        "--padding",
        help="keep, as published: the encoder sees the silence that fills up a file's last window; cut: it does not.",
        callback=one_of("keep", "cut"),
    ),
]
OutOption = Annotated[Path | None, typer.Option("--out", help="Folder to write to, instead of one below the root.")]


def checked_name(name: str, option: str) -> str:
    """Return a name that can be a folder; any other is wrong usage."""
    from sctok.corpus.runs.run_folder import RunError, check_name

    try:
        return check_name(name, "the name")
    except RunError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def select(
    include: list[str] | None, exclude: list[str] | None, min_seconds: float | None, max_seconds: float | None
) -> "Selection":
    """Return the selection that the options mean."""
    from sctok.corpus.runs.run_folder import RunError
    from sctok.corpus.runs.selection import Selection

    try:
        return Selection(tuple(include or ()), tuple(exclude or ()), min_seconds, max_seconds)
    except RunError as error:
        raise typer.BadParameter(str(error), param_hint="--min-seconds") from None


def prepare(
    encoder: str,
    device: str,
    precision: str,
    batch_size: int | None,
    workers: int | None,
    padding: str = "keep",
    **how: Any,
) -> tuple["MakeExtractor", "Execution"]:
    """Return a function that loads the encoder onto a device, and the execution that the options describe.

    how: engine, address, and further fields of Execution.
    """
    from functools import partial

    from sctok.features.extractor import load_encoder

    execution, chosen = prepare_execution(device, precision, batch_size, workers, **how)
    return partial(load_encoder, encoder, precision=chosen, padding=padding), execution


def prepare_execution(
    device: str,
    precision: str,
    batch_size: int | None,
    workers: int | None,
    on_cpu: int = WINDOWS_ON_CPU,
    **how: Any,
) -> tuple["Execution", str]:
    """Return what `prepare` does of devices, batch size (`on_cpu` by default) and workers, and the precision there."""
    if not how["rank"] < how["world_size"]:
        raise typer.BadParameter(f"{how['rank']} is not below --world-size {how['world_size']}", param_hint="--rank")

    from sctok.corpus.runs.sharding import LOCAL, Execution
    from sctok.features.extractor import ENCODER
    from sctok.runtime.devices import resolve_precision

    engine, address = how.pop("engine"), how.pop("address")
    if address is not None and engine != "ray":
        raise typer.BadParameter("is an address of Ray; add --engine ray", param_hint="--address")
    if engine == "ray":
        how["ray_address"] = address or LOCAL
    devices = _devices(device)
    on_gpu = devices[0].type == "cuda"
    batch = batch_size or (WINDOWS_ON_GPU if on_gpu else on_cpu)
    if workers is None:
        cores = len(os.sched_getaffinity(0))
        workers = min(WORKERS_ON_GPU, cores) if on_gpu else min(WORKERS_ON_CPU, max(1, cores // 4))
    return Execution(tuple(map(str, devices)), batch, workers, **how), resolve_precision(
        precision, devices[0], [ENCODER]
    )


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


class RunReporter:
    """Shows the files of a run as they are finished, how fast audio passes, and what went wrong."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._bar: Progress | None = None
        self._started = time.monotonic()
        self._seconds = 0.0
        self._windows = 0
        self.stages: dict[str, float] = {}

    def __enter__(self) -> "RunReporter":
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)

    @property
    def elapsed(self) -> float:
        """Seconds since the files were listed and the encoder loaded."""
        return time.monotonic() - self._started

    def __call__(self, event: "RunEvent") -> None:
        from sctok.corpus.runs.events import FileFinished, RunPlanned, StagesTimed, WindowsEncoded, WorkerLost

        if isinstance(event, RunPlanned):
            self._begin(event.files, event.shards)
        if self._bar is None:
            return
        match event:
            case WindowsEncoded(count):
                self._windows += count
                self._bar.update(0, self._note())
            case FileFinished(seconds=seconds):
                self._seconds += seconds
                self._bar.update(1, self._note())
            case StagesTimed(times):
                self.stages = {name: self.stages.get(name, 0.0) + value for name, value in times.items()}
            case WorkerLost(device, reason):
                self._bar.message(f"warning: the process on {device} ended early ({reason}); others take its shards")

    def _begin(self, files: int, shards: int) -> None:
        self._started = time.monotonic()
        if files:
            say(f"{self._label}: {_count(files, 'file')} in {_count(shards, 'shard')} to do")
            self._bar = Progress(self._label, total=files, unit="files")
        else:
            say(f"{self._label}: nothing left to do")

    def _note(self) -> str:
        return f"{_count(self._windows, 'window')}, {self._seconds / max(self.elapsed, 1e-9):.1f}× real time"


def show_results(results: list["RunResult[Any]"], reporter: RunReporter, as_json: bool) -> None:
    """Print what runs hold now and how fast this call was; as JSON, an object for one run and a list for several.

    Raises:
        ValueError: no input gave a result.
    """
    speed = results[0].seconds_done / reporter.elapsed if results[0].seconds_done else None
    facts = [
        {"folder": str(result.folder), **result.summary.to_json(), "shards_left": result.shards_left}
        for result in results
    ]
    timing = {
        "audio_seconds_done": results[0].seconds_done,
        "seconds": reporter.elapsed,
        "times_real_time": speed,
        **({"stages": reporter.stages} if reporter.stages else {}),
    }
    summary, left = results[0].summary, results[0].shards_left
    if summary.files or not summary.failed:
        whole: list[dict[str, Any]] = [{**one, **timing} for one in facts]
        emit(whole if len(whole) > 1 else whole[0], as_json, lambda: _text(facts, speed))
    if reporter.stages:
        for line in _profile_text(reporter.stages, reporter.elapsed).splitlines():
            say(line)
    if left:
        say(f"{_count(left, 'shard')} left to other processes that are at work on them")
    failed = f"{results[0].folder / 'failed.jsonl'}"
    if summary.failed and not summary.files and not left:
        raise ValueError(
            f"{failed}: none of {_count(summary.failed, 'input')} could be read; it lists the reasons; {RETRY}"
        )
    if summary.failed:
        say(f"warning: {_count(summary.failed, 'input')} failed; the reasons are in {failed}; {RETRY}")


def _profile_text(stages: dict[str, float], elapsed: float) -> str:
    from sctok.runtime.stages import find_bottleneck

    shares = sorted(stages.items(), key=lambda entry: -entry[1])
    rows: list[tuple[str, ...]] = [(name, f"{value:,.2f}", f"{100 * value / elapsed:.1f}%") for name, value in shares]
    slowest, remedy = find_bottleneck(stages)
    text = table(("stage", "seconds", "of the run"), rows)
    return f"{text}\n\nbottleneck: {slowest}; what speeds it up: {remedy}"


def _text(runs: list[dict[str, Any]], speed: float | None) -> str:
    hidden = ("folder", "shards_left")
    rows = [[value for name, value in run.items() if name not in hidden] for run in runs]
    header = tuple(name.replace("_", " ") for name in runs[0] if name not in hidden)
    if speed is not None:
        header, rows = (*header, "× real time"), [[*row, round(speed, 1)] for row in rows]
    cells = [tuple(f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" for value in row) for row in rows]
    return "\n".join([table(header, cells), "", *(run["folder"] for run in runs)])


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
