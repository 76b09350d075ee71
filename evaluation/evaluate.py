"""Codecs over references: decoded audio, scores and tables in one run folder that can be gone on with."""

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
from sctok.evaluation.codecs.base import CodecUnderTest, RoundTrip
from sctok.evaluation.metrics.base import Metric
from sctok.evaluation.metrics.pairs import length_problem, read_pcm, to_pcm, write_flac
from sctok.evaluation.metrics.processes import ScoreTask, score_tasks
from sctok.formats.files import hash_bytes, json_text, remove_stale_temporaries, write_json
from sctok.formats.untrusted.paths import path_inside, path_problem

from .references import Reference
from .run_file import FORMAT, RUN_FILE, VERSION, read_run
from .scores import FACTS, JOURNAL, Cell, Journal, Row, table_rows, write_tables

AUDIO, REFERENCE = "audio", "reference"

# Gets a stage ("read", a codec's name, "score" or "transcribe"), what is done and how much there is.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings:
    """How an evaluation is run; none of it changes a score.

    workers: processes that score, 0 for one per core. keep_audio: leave references and decoded audio in the folder.
    retry_failed: do again what failed before.
    """

    workers: int = 0
    keep_audio: bool = True
    retry_failed: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.workers, int) or self.workers < 0:
            raise ValueError(f"workers must be a whole number of at least 0, not {self.workers!r}")


@dataclass
class _Run:
    folder: Path
    files: list[dict[str, Any]]
    journal: Journal
    progress: Progress
    settings: Settings

    def audio(self, codec: str, key: str) -> Path:
        return path_inside(self.folder / AUDIO / codec, key, ".flac")


def evaluate(
    references: Sequence[Reference],
    codecs: Mapping[str, CodecUnderTest],
    metrics: Sequence[Metric],
    out: str | Path,
    settings: Settings = Settings(),
    progress: Progress = lambda stage, done, total: None,
) -> Path:
    """Put references through codecs, score what comes back, write the run folder `out`, and return it.

    What is compared are 16-bit samples: the reference at 16 kHz, and the decoded audio brought to 16 kHz, cut or filled
    with zeros to the reference's length. A file that cannot be read, coded or measured gets a reason in its row.
    Interrupted at any moment, the same call goes on; another call for the same references adds codecs and metrics.

    Args:
        references: of `list_references`.
        codecs: by the text that opened them; their names differ.
        metrics: of `choose_metrics`.
        out: the run folder: run.json, scores.csv, scores.parquet, summary.json, journal.jsonl and audio/.
        settings: processes, audio and failures.
        progress: called as the work goes on.

    Raises:
        ValueError: an argument is of another kind; there are no references or codecs, or none of the references can be
            read; two codecs share a name; `out` holds an evaluation of other references, or other codecs or metrics of
            the same names; or another process is at work on it.
    """
    _check_kinds(references, codecs, metrics, settings)
    _check_names(references, codecs)
    out = Path(out)
    old = _old_run(out)
    with Journal(out) as journal:
        remove_stale_temporaries(out)
        files = _read_references(references, out, old, settings, progress)
        run = _Run(out, files, journal, progress, settings)
        description = _describe(out.resolve().name, files, codecs, metrics, old)
        write_json(out / RUN_FILE, description)
        for codec in codecs.values():
            _put_through(run, codec, metrics)
        _score(run, [codec.name for codec in codecs.values()], metrics)
        journal.sync()
        _write(run, description)
    if not settings.keep_audio:
        rmtree(out / AUDIO, ignore_errors=True)
    return out


def _check_kinds(references: Any, codecs: Any, metrics: Any, settings: Any) -> None:
    for name, found, kind, maker in (
        ("references", references, Reference, "list_references"),
        ("metrics", metrics, Metric, "choose_metrics"),
    ):
        if not isinstance(found, Sequence) or not all(isinstance(each, kind) for each in found):
            raise ValueError(f"{name} must be a list of {kind.__name__}, as {maker} makes it, not {found!r:.80}")
    if not isinstance(codecs, Mapping):
        raise ValueError(f"codecs must be a dict of them by the text that opened each, not {codecs!r:.80}")
    for spec, codec in codecs.items():
        if not isinstance(getattr(codec, "name", None), str) or not hasattr(codec, "roundtrip"):
            raise ValueError(
                f"codec {spec!r} must have name, settings and roundtrip, as open_codec makes it: {codec!r:.80}"
            )
    if not isinstance(settings, Settings):
        raise ValueError(f"settings must be Settings, not {settings!r:.80}")


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


def _old_run(out: Path) -> dict[str, Any] | None:
    if (out / RUN_FILE).exists():
        return read_run(out)
    journal = out / JOURNAL
    if journal.is_file() and journal.stat().st_size:
        raise ValueError(f"{out}: its {RUN_FILE} is gone; restore it, or delete the folder and evaluate again")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file; name a folder with --out")
    if out.is_dir() and any(each.name not in (AUDIO, JOURNAL) for each in out.iterdir()):
        raise ValueError(f"{out}: holds something else than an evaluation; name another folder with --out")
    return None


def _read_references(
    references: Sequence[Reference], out: Path, old: Mapping[str, Any] | None, settings: Settings, progress: Progress
) -> list[dict[str, Any]]:
    """Read all references, keep them at 16 kHz and 16 bits, and return what run.json says of them."""
    known = {file["key"]: file for file in old["files"]} if old else {}
    files: list[dict[str, Any]] = []
    for number, reference in enumerate(references):
        progress("read", number, len(references))
        files.append(_read_reference(reference, out / AUDIO / REFERENCE, known.get(reference.key)))
    progress("read", len(references), len(references))
    if old and (files != list(known.values())):
        raise ValueError(
            f"{out}: holds the evaluation of other references ({_difference(files, known)}); "
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
        raise AudioError(item.name, f"ends before {item.start:g} s, where the stretch begins")
    return wave


def _difference(files: Sequence[Mapping[str, Any]], known: Mapping[str, Mapping[str, Any]]) -> str:
    changed = [file["key"] for file in files if file != known.get(file["key"])]
    gone = known.keys() - {file["key"] for file in files}
    first = (changed or sorted(gone) or ["their order"])[0]
    return f"{len(changed)} differ or are new, {len(gone)} are missing; the first: {first}"


def _describe(
    name: str,
    files: Sequence[Mapping[str, Any]],
    codecs: Mapping[str, CodecUnderTest],
    metrics: Sequence[Metric],
    old: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return run.json: what was there before, and what this call adds."""
    ours = [{"name": codec.name, "spec": spec, "settings": _plain(codec.settings)} for spec, codec in codecs.items()]
    measures = [{name: getattr(m, name) for name in ("name", "unit", "better", "protocol")} for m in metrics]
    return {
        "format": FORMAT,
        "format_version": VERSION,
        "name": name,
        "created": old["created"] if old else datetime.now(UTC).isoformat(timespec="seconds"),
        "sctok": __version__,
        "settings": {"sample_rate": SAMPLE_RATE, "bits": 16},
        "codecs": _united(old["codecs"] if old else [], ours, "settings", "codec"),
        "metrics": _united(old["metrics"] if old else [], measures, "protocol", "metric"),
        "files": list(files),
    }


def _plain(settings: Mapping[str, Any]) -> Any:
    """Return settings as they are read back from JSON, so that they can be compared."""
    return json.loads(json_text(dict(settings)))


def _united(
    old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]], identity: str, kind: str
) -> list[dict[str, Any]]:
    there = {each["name"]: each for each in old}
    for each in new:
        known = there.setdefault(each["name"], each)
        if known.get(identity) != each[identity]:
            raise ValueError(
                f"{kind} {each['name']} has other {identity} in this evaluation ({known.get(identity)}, not "
                f"{each[identity]}); name another folder with --out"
            )
    return list(there.values())


def _put_through(run: _Run, codec: CodecUnderTest, metrics: Sequence[Metric]) -> None:
    """Code and decode each file that is not done."""
    for number, file in enumerate(run.files):
        run.progress(codec.name, number, len(run.files))
        key, cell = file["key"], run.journal.cell(codec.name, file["key"])
        if "error" in file:
            cell.failed = f"the reference cannot be read: {file['error']}"
        elif _is_due(run, codec.name, file, metrics):
            wave = read_pcm(run.audio(REFERENCE, key))
            run.journal.add(codec.name, key, **_coded(run, codec, key, wave))
    run.progress(codec.name, len(run.files), len(run.files))


def _is_due(run: _Run, codec: str, file: Mapping[str, Any], metrics: Sequence[Metric]) -> bool:
    """Return whether a file is to be coded: for the first time, again, or for audio that is needed and not kept."""
    cell = run.journal.cell(codec, file["key"])
    if cell.failed is not None:
        return run.settings.retry_failed
    if cell.coded is None:
        return True
    needed = run.settings.keep_audio or bool(_due_metrics(run, cell, file, metrics))
    return needed and not run.audio(codec, file["key"]).exists()


def _due_metrics(run: _Run, cell: Cell, file: Mapping[str, Any], metrics: Sequence[Metric]) -> tuple[Metric, ...]:
    retry, said = run.settings.retry_failed, file.get("transcript")
    return tuple(m for m in metrics if cell.lacks(m.name, retry) and m.applies(file["domain"], said))


def _coded(run: _Run, codec: CodecUnderTest, key: str, wave: Any) -> dict[str, Any]:
    """Return the journal's entry of one round trip; whatever the codec raises is a reason."""
    try:
        coded = codec.roundtrip(wave, SAMPLE_RATE, key=key)
        samples = np.asarray(coded.samples, np.float32)
        problem = length_problem(len(samples), coded.sample_rate, len(wave) / SAMPLE_RATE)
        if problem:
            return {"failed": problem}
        pcm = to_pcm(samples)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())}".removeprefix("ValueError: ")}
    write_flac(run.audio(codec.name, key), pcm, coded.sample_rate)
    return {"coded": _facts(coded)}


def _facts(coded: RoundTrip) -> dict[str, Any]:
    return {**{name: getattr(coded, name) for name in (*FACTS, "sample_rate")}, "samples": len(coded.samples)}


def _score(run: _Run, codecs: Sequence[str], metrics: Sequence[Metric]) -> None:
    """Measure what is not measured: light metrics in many processes, then those with large models in one."""
    cores = len(os.sched_getaffinity(0))
    for stage, heavy, workers, threads in (
        ("score", False, run.settings.workers or cores, 1),
        ("transcribe", True, 1, cores),
    ):
        tasks = [task for codec in codecs for task in _tasks(run, codec, [m for m in metrics if m.heavy == heavy])]
        total = sum(len(task.metrics) for task in tasks)
        done = 0

        def report(codec: str, key: str, entry: dict[str, Any], stage: str = stage, total: int = total) -> None:
            nonlocal done
            run.journal.add(codec, key, **entry)
            done += 1
            run.progress(stage, done, total)

        score_tasks(tasks, workers, report, threads)


def _tasks(run: _Run, codec: str, metrics: Sequence[Metric]) -> list[ScoreTask]:
    tasks = []
    for file in run.files:
        key = file["key"]
        cell = run.journal.cell(codec, key)
        due = _due_metrics(run, cell, file, metrics)
        if cell.coded is not None and due:
            paths = run.audio(REFERENCE, key), run.audio(codec, key)
            tasks.append(ScoreTask(codec, key, *paths, file.get("transcript"), due))
    return tasks


def _write(run: _Run, description: Mapping[str, Any]) -> list[Row]:
    metrics = [metric["name"] for metric in description["metrics"]]
    codecs = [codec["name"] for codec in description["codecs"]]
    rows = table_rows(run.files, codecs, metrics, run.journal.cells)
    return write_tables(run.folder, rows, metrics, run.journal.cells)
