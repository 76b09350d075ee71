"""Evaluation of codecs: code references, score the decoded audio, and write tables to a run folder that can resume."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sctok import __version__
from sctok.audio.crops import read_crop
from sctok.audio.decoding.decode import read_audio
from sctok.audio.errors import AudioError
from sctok.audio.inputs.sources import AudioItem, BadItem
from sctok.audio.windows import SAMPLE_RATE
from sctok.evaluation.codecs.base import CodecUnderTest, Wave
from sctok.evaluation.metrics.base import Metric
from sctok.evaluation.metrics.pairs import length_problem, read_pcm, to_pcm, write_flac
from sctok.evaluation.metrics.processes import ScoreTask, score_tasks
from sctok.formats.files import hash_bytes, json_text, remove_stale_temporaries, write_json
from sctok.formats.untrusted.paths import path_inside, path_problem

from .references import Reference
from .run_folder import FACTS, FORMAT, JOURNAL, RUN_FILE, VERSION, FileResult, Journal, read_run
from .scores import table_rows, write_tables

AUDIO, REFERENCE = "audio", "reference"


@dataclass(frozen=True)
class EvaluationConfig:
    """How an evaluation runs. The scores do not depend on it.

    Attributes:
        workers: number of scoring processes, 0 for one per core.
        keep_audio: whether to keep the references and the decoded audio in the run folder.
        retry_failed: whether to retry files and metrics that failed in an earlier run.
    """

    workers: int = 0
    keep_audio: bool = True
    retry_failed: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.workers, int) or self.workers < 0:
            raise ValueError(f"workers must be a whole number of at least 0, not {self.workers!r}")


@dataclass(frozen=True)
class EvaluationProgress:
    """A progress event. stage: "read", the name of a codec, "score" or "transcribe"; done and total: of that stage."""

    stage: str
    done: int
    total: int


@dataclass
class _Run:
    folder: Path
    files: list[dict[str, Any]]
    journal: Journal
    config: EvaluationConfig
    report: Callable[[EvaluationProgress], None]

    def audio(self, codec: str, key: str) -> Path:
        return path_inside(self.folder / AUDIO / codec, key, ".flac")


def evaluate_codecs(
    references: Sequence[Reference],
    codecs: Mapping[str, CodecUnderTest],
    metrics: Sequence[Metric],
    out: str | Path,
    config: EvaluationConfig = EvaluationConfig(),
    progress: Callable[[EvaluationProgress], None] = lambda event: None,
) -> Path:
    """Code references with codecs, score the decoded audio, and return the run folder `out`.

    Metrics compare 16-bit samples at 16 kHz: the reference, and the decoded audio resampled and cut or zero-padded to
    the reference's length. If a file cannot be read, coded or scored, its row has the reason.
    After an interruption, the same call resumes. Later calls with the same references add codecs and metrics.

    Args:
        references: from `list_references`.
        codecs: by the text that names each of them, see `open_codec`; the codecs' own names must differ.
        metrics: from `choose_metrics`.
        out: the run folder: run.json, scores.csv, scores.parquet, summary.json, journal.jsonl and audio/.
        config: processes, audio and failures.
        progress: called with each progress event.

    Raises:
        ValueError: an argument has the wrong type; there are no codecs or no readable references; two codecs share a
            name; `out` holds an evaluation of other references, or codecs or metrics with equal names but other
            settings; or another process is using it.
    """
    _check_types(references, codecs, metrics, config)
    _check_names(references, codecs)
    out = Path(out)
    earlier = _earlier_run(out)
    with Journal(out) as journal:
        remove_stale_temporaries(out)
        run = _Run(out, [], journal, config, progress)
        run.files = _read_references(run, references, earlier)
        description = _describe(run, codecs, metrics, earlier)
        write_json(out / RUN_FILE, description)
        for codec in codecs.values():
            _code_files(run, codec, metrics)
        _score(run, [codec.name for codec in codecs.values()], metrics)
        journal.sync()
        codec_names, metric_names = ([each["name"] for each in description[part]] for part in ("codecs", "metrics"))
        rows = table_rows(run.files, codec_names, metric_names, journal.results)
        write_tables(out, rows, metric_names, journal.results)
    if not config.keep_audio:
        rmtree(out / AUDIO, ignore_errors=True)
    return out


def _check_types(references: Any, codecs: Any, metrics: Any, config: Any) -> None:
    for name, found, kind, maker in (
        ("references", references, Reference, "list_references"),
        ("metrics", metrics, Metric, "choose_metrics"),
    ):
        if not isinstance(found, Sequence) or not all(isinstance(each, kind) for each in found):
            raise ValueError(f"{name} must be a list of {kind.__name__} from {maker}, not {found!r:.80}")
    if not isinstance(codecs, Mapping):
        raise ValueError(f"codecs must be a dict from the text that opened each codec, not {codecs!r:.80}")
    for spec, codec in codecs.items():
        if not isinstance(getattr(codec, "name", None), str) or not hasattr(codec, "roundtrip"):
            raise ValueError(f"codec {spec!r} must have name, settings and roundtrip, see open_codec: {codec!r:.80}")
    if not isinstance(config, EvaluationConfig):
        raise ValueError(f"config must be an EvaluationConfig, not {config!r:.80}")


def _check_names(references: Sequence[Reference], codecs: Mapping[str, CodecUnderTest]) -> None:
    if not references or not codecs:
        raise ValueError(f"no {'codecs' if references else 'references'}: nothing to evaluate")
    names: dict[str, str] = {}
    for spec, codec in codecs.items():
        if codec.name == REFERENCE or "/" in codec.name or path_problem(codec.name):
            raise ValueError(f"codec {spec!r} cannot be called {codec.name!r}; add the option name=")
        if codec.name in names:
            raise ValueError(f"codecs {names[codec.name]!r} and {spec!r} are both called {codec.name}; add name=")
        names[codec.name] = spec


def _earlier_run(out: Path) -> dict[str, Any] | None:
    """Return the description of the evaluation that `out` already holds, None if it is new."""
    if (out / RUN_FILE).exists():
        return read_run(out)
    journal = out / JOURNAL
    if journal.is_file() and journal.stat().st_size:
        raise ValueError(f"{out}: its {RUN_FILE} is missing; restore it, or delete the folder and evaluate again")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder with --out")
    if out.is_dir() and any(each.name not in (AUDIO, JOURNAL) for each in out.iterdir()):
        raise ValueError(f"{out} holds files that do not belong to an evaluation; name another folder with --out")
    return None


def _read_references(
    run: _Run, references: Sequence[Reference], earlier: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Read all references, store them at 16 kHz and 16 bits, and return their entries for run.json."""
    known = {file["key"]: file for file in earlier["files"]} if earlier else {}
    files: list[dict[str, Any]] = []
    for reference in references:
        run.report(EvaluationProgress("read", len(files), len(references)))
        files.append(_read_reference(reference, run.folder / AUDIO / REFERENCE, known.get(reference.key)))
    run.report(EvaluationProgress("read", len(files), len(references)))
    if earlier and (files != list(known.values())):
        raise ValueError(
            f"{run.folder}: holds the evaluation of other references ({_difference(files, known)}); "
            "name another folder with --out"
        )
    if all("error" in file for file in files):
        raise ValueError(f"none of {len(files)} references can be read; the first: {files[0]['error']}")
    return files


def _read_reference(reference: Reference, folder: Path, known: Mapping[str, Any] | None) -> dict[str, Any]:
    item = reference.item
    file: dict[str, Any] = {"key": reference.key, "domain": reference.domain, "path": item.path, "seconds": None}
    if reference.transcript is not None:
        file["transcript"] = reference.transcript
    if isinstance(item, BadItem):
        return {**file, "error": item.reason}
    try:
        target = path_inside(folder, reference.key, ".flac")
        pcm = to_pcm(_read_item(item))
    except (ValueError, OSError) as error:
        return {**file, "error": str(error)}
    digest = hash_bytes(pcm.tobytes())
    if known is None or known.get("hash") != digest or not target.exists():
        write_flac(target, pcm, SAMPLE_RATE)
    return {**file, "seconds": len(pcm) / SAMPLE_RATE, "hash": digest}


def _read_item(item: AudioItem) -> NDArray[np.float32]:
    if item.seconds is None:
        return read_audio(item.open(), name=item.name)
    wave = read_crop(item, 0.0, round(item.seconds * SAMPLE_RATE))
    if not len(wave):
        raise AudioError(item.name, f"ends before {item.start:g} s, where the excerpt begins")
    return wave


def _difference(files: Sequence[Mapping[str, Any]], known: Mapping[str, Mapping[str, Any]]) -> str:
    changed = [file["key"] for file in files if file != known.get(file["key"])]
    missing = known.keys() - {file["key"] for file in files}
    first = (changed or sorted(missing) or ["their order"])[0]
    return f"{len(changed)} differ or are new, {len(missing)} are missing; the first: {first}"


def _describe(
    run: _Run, codecs: Mapping[str, CodecUnderTest], metrics: Sequence[Metric], earlier: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the content of run.json: its earlier content, and what this call adds."""
    # Settings are compared as JSON gives them back.
    opened = [
        {"name": codec.name, "spec": spec, "settings": json.loads(json_text(dict(codec.settings)))}
        for spec, codec in codecs.items()
    ]
    measures = [{name: getattr(m, name) for name in ("name", "unit", "better", "protocol")} for m in metrics]
    return {
        "format": FORMAT,
        "format_version": VERSION,
        "name": run.folder.resolve().name,
        "created": earlier["created"] if earlier else datetime.now(UTC).isoformat(timespec="seconds"),
        "sctok": __version__,
        "settings": {"sample_rate": SAMPLE_RATE, "bits": 16},
        "codecs": _merged(earlier["codecs"] if earlier else [], opened, "settings", "codec"),
        "metrics": _merged(earlier["metrics"] if earlier else [], measures, "protocol", "metric"),
        "files": run.files,
    }


def _merged(
    earlier: Sequence[dict[str, Any]], added: Sequence[dict[str, Any]], identity: str, kind: str
) -> list[dict[str, Any]]:
    entries = {entry["name"]: entry for entry in earlier}
    for entry in added:
        existing = entries.setdefault(entry["name"], entry)
        if existing.get(identity) != entry[identity]:
            raise ValueError(
                f"{kind} {entry['name']} has other {identity} in this evaluation ({existing.get(identity)}, not "
                f"{entry[identity]}); name another folder with --out"
            )
    return list(entries.values())


def _code_files(run: _Run, codec: CodecUnderTest, metrics: Sequence[Metric]) -> None:
    """Encode and decode each file that is due."""
    for number, file in enumerate(run.files):
        run.report(EvaluationProgress(codec.name, number, len(run.files)))
        key, result = file["key"], run.journal.result(codec.name, file["key"])
        if "error" in file:
            result.failed = f"the reference cannot be read: {file['error']}"
        elif _must_code(run, codec.name, file, metrics):
            wave = read_pcm(run.audio(REFERENCE, key))
            run.journal.add(codec.name, key, **_round_trip(run, codec, key, wave))
    run.report(EvaluationProgress(codec.name, len(run.files), len(run.files)))


def _must_code(run: _Run, codec: str, file: Mapping[str, Any], metrics: Sequence[Metric]) -> bool:
    """Return whether to code a file: it is new, is retried after a failure, or lacks decoded audio that is needed."""
    result = run.journal.result(codec, file["key"])
    if result.failed is not None:
        return run.config.retry_failed
    if result.coded is None:
        return True
    needed = run.config.keep_audio or bool(_due_metrics(run, result, file, metrics))
    return needed and not run.audio(codec, file["key"]).exists()


def _due_metrics(
    run: _Run, result: FileResult, file: Mapping[str, Any], metrics: Sequence[Metric]
) -> tuple[Metric, ...]:
    retry, transcript = run.config.retry_failed, file.get("transcript")
    return tuple(m for m in metrics if result.is_due(m.name, retry) and m.applies(file["domain"], transcript))


def _round_trip(run: _Run, codec: CodecUnderTest, key: str, wave: Wave) -> dict[str, Any]:
    """Return the journal entry of one round trip; an exception of the codec becomes the reason of a failure."""
    try:
        coded = codec.roundtrip(wave, SAMPLE_RATE, key=key)
        samples = np.asarray(coded.samples, np.float32)
        if problem := length_problem(len(samples), coded.sample_rate, len(wave) / SAMPLE_RATE):
            return {"failed": problem}
        pcm = to_pcm(samples)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())}".removeprefix("ValueError: ")}
    write_flac(run.audio(codec.name, key), pcm, coded.sample_rate)
    facts = {name: getattr(coded, name) for name in (*FACTS, "sample_rate")}
    return {"coded": {**facts, "samples": len(coded.samples)}}


def _score(run: _Run, codecs: Sequence[str], metrics: Sequence[Metric]) -> None:
    """Compute the metrics that are due: light ones in many processes, then those with large models in one."""
    cores = len(os.sched_getaffinity(0))
    light, heavy = ([metric for metric in metrics if metric.heavy == kind] for kind in (False, True))
    _score_stage(run, "score", _score_tasks(run, codecs, light), run.config.workers or cores, 1)
    _score_stage(run, "transcribe", _score_tasks(run, codecs, heavy), 1, cores)


def _score_stage(run: _Run, stage: str, tasks: Sequence[ScoreTask], workers: int, threads: int) -> None:
    total = sum(len(task.metrics) for task in tasks)
    done = 0

    def record(codec: str, key: str, entry: dict[str, Any]) -> None:
        nonlocal done
        run.journal.add(codec, key, **entry)
        done += 1
        run.report(EvaluationProgress(stage, done, total))

    score_tasks(tasks, workers, record, threads)


def _score_tasks(run: _Run, codecs: Sequence[str], metrics: Sequence[Metric]) -> list[ScoreTask]:
    tasks = []
    for codec in codecs:
        for file in run.files:
            key = file["key"]
            result = run.journal.result(codec, key)
            if result.coded is not None and (due := _due_metrics(run, result, file, metrics)):
                paths = run.audio(REFERENCE, key), run.audio(codec, key)
                tasks.append(ScoreTask(codec, key, *paths, file.get("transcript"), due))
    return tasks
