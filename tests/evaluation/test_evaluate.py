"""Whole evaluations with small codecs: the run folder, failures, interruption and resumption."""

import csv
import json
import re
import resource
from dataclasses import replace

import numpy as np
import pyarrow.parquet
import pytest
import soundfile

from sctok.evaluation.codecs.base import RoundTrip
from sctok.evaluation.evaluate import EvaluationConfig, evaluate_codecs
from sctok.evaluation.metrics.registry import Metric, all_metrics
from sctok.evaluation.references import list_references
from sctok.formats.files import DiskFullError

METRICS = [all_metrics()[name] for name in ("mel_dac", "si_sdr")]
ONE = EvaluationConfig(workers=1)

METRIC_MODULE = """
import os, signal

def die(pair):
    os.kill(os.getpid(), signal.SIGKILL)

def fail(pair):
    raise KeyError("nothing there")

def nan(pair):
    return float("nan")

def peak(pair):
    return float(abs(pair.estimate).max())

def loss(pair):
    return float(abs(pair.reference - pair.estimate).mean())
"""


class Halves:
    """A codec that halves the level; it fails on the keys in `refuses`."""

    def __init__(self, name="halves", factor=0.5, refuses=(), rate=16_000, extra=0):
        self.name, self.factor, self.refuses, self.rate, self.extra = name, factor, refuses, rate, extra
        self.coded = []

    @property
    def settings(self):
        return {"factor": str(self.factor), "sizes": (1, 2)}

    def roundtrip(self, wave, sample_rate, *, key=""):
        self.coded.append(key)
        if key in self.refuses:
            raise RuntimeError(f"cannot code\n{key}")
        samples = np.repeat(wave, self.rate // sample_rate) * np.float32(self.factor)
        samples = samples[: self.extra] if self.extra < 0 else np.pad(samples, (0, self.extra))
        return RoundTrip(samples, self.rate, 1000, 0.25, 0.5, tokens=50, container=200)


@pytest.fixture
def references(tmp_path):
    """Return two files of speech and one of music, half a second of noise each."""
    for seed, name in enumerate(("speech/one", "speech/two", "music/three")):
        path = tmp_path / "set" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.random.default_rng(seed).standard_normal(8000) * 0.1, 16_000)
    return list_references([tmp_path / "set"])


@pytest.fixture
def metrics_by_name(tmp_path, monkeypatch):
    """Return a function that returns metrics by name, from a module that other processes can import."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "failing_metrics.py").write_text(METRIC_MODULE)
    monkeypatch.syspath_prepend(folder)
    import failing_metrics

    return lambda *names: [Metric(name, "", "higher", name, getattr(failing_metrics, name)) for name in names]


@pytest.fixture
def light(metrics_by_name):
    """Return two metrics whose processes start quickly."""
    return metrics_by_name("loss", "peak")


def rows_of(folder):
    with (folder / "scores.csv").open(newline="") as file:
        return {(row["codec"], row["key"]): row for row in csv.DictReader(file)}


def test_a_run_folder_has_descriptions_scores_and_audio(references, tmp_path):
    out = evaluate_codecs(
        references, {"half": Halves(), "same": Halves("same", 1.0)}, METRICS, str(tmp_path / "run"), ONE
    )
    run = json.loads((out / "run.json").read_text())
    assert [codec["spec"] for codec in run["codecs"]] == ["half", "same"]
    assert [metric["name"] for metric in run["metrics"]] == ["mel_dac", "si_sdr"]
    assert [(file["key"], file["domain"], file["seconds"]) for file in run["files"]] == [
        ("music/three", "music", 0.5),
        ("speech/one", "speech", 0.5),
        ("speech/two", "speech", 0.5),
    ]
    row = rows_of(out)["halves", "speech/one"]
    assert (row["bytes"], row["kbps"], row["tokens_per_second"], row["rtf_encode"]) == ("1000", "12.8", "100.0", "0.5")
    assert float(rows_of(out)["same", "speech/two"]["mel_dac"]) == 0
    assert pyarrow.parquet.read_table(out / "scores.parquet").num_rows == 6
    summary = json.loads((out / "summary.json").read_text())
    assert {(e["codec"], e["domain"]) for e in summary} == {
        (codec, domain) for codec in ("halves", "same") for domain in ("all", "speech", "music")
    }
    for codec in ("reference", "halves", "same"):
        assert soundfile.info(out / "audio" / codec / "speech" / "one.flac").frames == 8000


def test_audio_of_another_rate_is_kept_at_its_rate_and_scored_at_16_khz(references, tmp_path, light):
    out = evaluate_codecs(references[:1], {"c": Halves(rate=48_000, extra=300)}, light, tmp_path / "run", ONE)
    assert soundfile.info(out / "audio" / "halves" / "music" / "three.flac").samplerate == 48_000
    row = rows_of(out)["halves", "music/three"]
    assert 0.01 < float(row["loss"]) < 0.06
    assert row["error"] == ""


@pytest.mark.parametrize(
    ("codec", "reason"),
    [
        (Halves(refuses=("music/three",)), "RuntimeError: cannot code music/three"),
        (Halves(extra=-8000), "the codec returned no samples"),
        (Halves(extra=16_000), "the decoded audio lasts 1.50 s, the reference 0.50 s"),
        (Halves(factor=np.nan), "the samples are not all finite"),
    ],
    ids=["raises", "empty", "too long", "not finite"],
)
def test_the_row_of_a_file_has_the_reason_for_a_failure(codec, reason, references, tmp_path, light):
    codecs = {"bad": codec, "good": Halves("good")}
    rows = rows_of(evaluate_codecs(references[:1], codecs, light[1:], tmp_path / "run", ONE))
    assert rows["halves", "music/three"]["error"] == reason
    assert rows["halves", "music/three"]["peak"] == ""
    assert rows["good", "music/three"]["peak"] != ""


def test_metrics_that_raise_or_kill_their_process_lose_only_their_own_values(references, metrics_by_name, tmp_path):
    metrics = metrics_by_name("die", "fail", "nan", "peak")
    out = evaluate_codecs(references, {"c": Halves()}, metrics, tmp_path / "run", EvaluationConfig(workers=2))
    for row in rows_of(out).values():
        assert float(row["peak"]) > 0.1
        assert row["error"] == (
            "die: its process was killed by SIGKILL; fail: KeyError: 'nothing there'; nan: gave nan"
        )
    failed = {e["metric"]: e["failed"] for e in json.loads((out / "summary.json").read_text()) if e["domain"] == "all"}
    assert (failed["die"], failed["fail"], failed["nan"], failed["peak"]) == (3, 3, 3, 0)


def test_the_row_of_a_silent_file_says_so(references, tmp_path):
    silent = tmp_path / "set" / "speech" / "silence.wav"
    soundfile.write(silent, np.zeros(8000), 16_000)
    out = evaluate_codecs(list_references([silent]), {"c": Halves()}, METRICS, tmp_path / "run", ONE)
    row = rows_of(out)["halves", "silence"]
    assert (row["mel_dac"], row["si_sdr"]) == ("0.0", "")
    assert row["error"] == "si_sdr: the reference is silent"


def test_an_unreadable_reference_has_a_row(references, tmp_path, light):
    (tmp_path / "set" / "speech" / "two.wav").write_bytes(b"no sound")
    codec = Halves()
    out = evaluate_codecs(list_references([tmp_path / "set"]), {"c": codec}, light, tmp_path / "run", ONE)
    assert rows_of(out)["halves", "speech/two"]["error"].startswith("the reference cannot be read: ")
    assert codec.coded == ["music/three", "speech/one"]


def test_an_excerpt_of_a_file_is_a_reference(references, light, tmp_path):
    path = references[0].item.path
    cuts = [
        {
            "id": f"at-{start}",
            "start": start,
            "duration": 0.2,
            "recording": {"sources": [{"type": "file", "source": path}]},
        }
        for start in (0.1, 0.9)
    ]
    (tmp_path / "cuts.jsonl").write_text("".join(json.dumps(cut) + "\n" for cut in cuts))
    out = evaluate_codecs(list_references([tmp_path / "cuts.jsonl"]), {"c": Halves()}, light, tmp_path / "run", ONE)
    kept = soundfile.read(out / "audio" / "reference" / "at-0.1.flac")[0]
    assert np.array_equal(kept, soundfile.read(path)[0][1600:4800])
    assert "ends before 0.9 s" in rows_of(out)["halves", "at-0.9"]["error"]


def test_an_interrupted_evaluation_resumes(references, tmp_path, light):
    class Stopped(Exception):
        pass

    def stop_after(moment):
        def progress(event):
            if (event.stage, event.done) == moment:
                raise Stopped

        return progress

    whole = evaluate_codecs(references, {"c": Halves()}, light, tmp_path / "whole", ONE)
    codec = Halves()
    for moment in (("read", 2), ("halves", 2), ("score", 1), ("score", 2)):
        with pytest.raises(Stopped):
            evaluate_codecs(references, {"c": codec}, light, tmp_path / "run", ONE, stop_after(moment))
    out = evaluate_codecs(references, {"c": codec}, light, tmp_path / "run", ONE)
    assert codec.coded == ["music/three", "speech/one", "speech/two"]
    for name in ("scores.csv", "scores.parquet", "summary.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("limit", [10_000, 600])
def test_a_full_disk_ends_the_evaluation_and_keeps_complete_files(references, tmp_path, light, limit):
    whole = evaluate_codecs(references, {"c": Halves()}, light, tmp_path / "whole", ONE)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(DiskFullError, match="the file size limit is reached; make room and run the same"):
            evaluate_codecs(references, {"c": Halves()}, light, tmp_path / "run", ONE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    for path in (tmp_path / "run").rglob("*.flac"):
        assert path.read_bytes() == (whole / path.relative_to(tmp_path / "run")).read_bytes()
    out = evaluate_codecs(references, {"c": Halves()}, light, tmp_path / "run", ONE)
    assert (out / "scores.csv").read_bytes() == (whole / "scores.csv").read_bytes()


def test_codecs_and_metrics_can_be_added_later(references, tmp_path, light):
    first, second = Halves(), Halves("same", 1.0)
    evaluate_codecs(references, {"c": first}, light[:1], tmp_path / "run", ONE)
    out = evaluate_codecs(references, {"d": second}, light[1:], tmp_path / "run", ONE)
    out = evaluate_codecs(references, {"c": first, "d": second}, light, out, ONE)
    assert [len(codec.coded) for codec in (first, second)] == [3, 3]
    for row in rows_of(out).values():
        assert row["loss"] != ""
        assert row["peak"] != ""


def test_failures_are_retried_on_request(references, metrics_by_name, tmp_path):
    codec = Halves(refuses=("speech/one",))
    metrics = metrics_by_name("fail")
    evaluate_codecs(references, {"c": codec}, metrics, tmp_path / "run", ONE)
    evaluate_codecs(references, {"c": codec}, metrics, tmp_path / "run", ONE)
    assert codec.coded.count("speech/one") == 1
    codec.refuses = ()
    better = [replace(metrics[0], score=metrics_by_name("peak")[0].score)]
    out = evaluate_codecs(references, {"c": codec}, better, tmp_path / "run", replace(ONE, retry_failed=True))
    assert [row["error"] for row in rows_of(out).values()] == ["", "", ""]
    assert codec.coded.count("speech/one") == 2
    assert codec.coded.count("speech/two") == 1


def test_audio_is_removed_on_request_and_decoded_again_for_a_new_metric(references, tmp_path, light):
    codec, without = Halves(), replace(ONE, keep_audio=False)
    out = evaluate_codecs(references, {"c": codec}, light[:1], tmp_path / "run", without)
    evaluate_codecs(references, {"c": codec}, light[:1], out, without)
    assert not (out / "audio").exists()
    assert len(codec.coded) == 3
    evaluate_codecs(references, {"c": codec}, light, out, without)
    assert len(codec.coded) == 6


def test_other_references_and_other_settings_are_rejected(references, tmp_path, light):
    out = evaluate_codecs(references, {"c": Halves()}, light[:1], tmp_path / "run", ONE)
    with pytest.raises(ValueError, match="codec halves has other settings"):
        evaluate_codecs(references, {"c": Halves(factor=0.25)}, light, out, ONE)
    with pytest.raises(ValueError, match=r"other references .* 1 are missing; the first: music/three"):
        evaluate_codecs(references[1:], {"c": Halves()}, light, out, ONE)
    soundfile.write(references[0].item.path, np.zeros(8000), 16_000)
    with pytest.raises(ValueError, match="1 differ or are new"):
        evaluate_codecs(references, {"c": Halves()}, light, out, ONE)


def test_invalid_arguments_are_rejected(references, tmp_path, light):
    with pytest.raises(ValueError, match="no codecs"):
        evaluate_codecs(references, {}, light, tmp_path / "run", ONE)
    with pytest.raises(ValueError, match="no references"):
        evaluate_codecs([], {"c": Halves()}, light, tmp_path / "run", ONE)
    with pytest.raises(ValueError, match="'a' and 'b' are both called halves"):
        evaluate_codecs(references, {"a": Halves(), "b": Halves()}, light, tmp_path / "run", ONE)
    with pytest.raises(ValueError, match="cannot be called 'reference'"):
        evaluate_codecs(references, {"a": Halves("reference")}, light, tmp_path / "run", ONE)
    with pytest.raises(ValueError, match="holds files that do not belong to an evaluation"):
        evaluate_codecs(references, {"a": Halves()}, light, tmp_path, ONE)
    with pytest.raises(ValueError, match="is a file; name a folder"):
        evaluate_codecs(references, {"a": Halves()}, light, references[0].item.path, ONE)
    for reference in references:
        (tmp_path / "set" / f"{reference.key}.wav").write_bytes(b"no sound")
    with pytest.raises(ValueError, match="none of 3 references can be read; the first: "):
        evaluate_codecs(references, {"a": Halves()}, light, tmp_path / "run", ONE)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("references", ["a.wav"], "references must be a list of Reference from list_references, not ['a.wav']"),
        ("references", None, "references must be a list of Reference"),
        ("codecs", ["opus:6"], "codecs must be a dict"),
        ("codecs", {"opus:6": "opus:6"}, "codec 'opus:6' must have name, settings and roundtrip"),
        ("metrics", ["si_sdr"], "metrics must be a list of Metric from choose_metrics, not ['si_sdr']"),
        ("metrics", all_metrics(), "metrics must be a list of Metric"),
        ("config", {"workers": 1}, "config must be an EvaluationConfig, not {'workers': 1}"),
    ],
)
def test_arguments_of_wrong_types_are_named(argument, value, message, references, tmp_path, light):
    arguments = {"references": references, "codecs": {"a": Halves()}, "metrics": light, "out": tmp_path / "run"}
    with pytest.raises(ValueError, match=re.escape(message)):
        evaluate_codecs(**{**arguments, argument: value})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [-1, 1.5, "2", None])
def test_workers_must_be_a_whole_number(workers):
    with pytest.raises(ValueError, match=f"workers must be a whole number of at least 0, not {workers!r}"):
        EvaluationConfig(workers)


@pytest.mark.parametrize("changes", [{"files": 3}, {"codecs": [1]}, {"metrics": None}, {"created": 5}])
def test_a_damaged_description_is_named(references, tmp_path, light, changes):
    out = evaluate_codecs(references, {"c": Halves()}, light[:1], tmp_path / "run", ONE)
    path = out / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(
        ValueError, match=rf"run.json is damaged \(.*{next(iter(changes))} is .*; restore it, or delete the"
    ):
        evaluate_codecs(references, {"c": Halves()}, light[:1], out, ONE)
    path.unlink()
    with pytest.raises(ValueError, match=r"its run\.json is missing; restore it, or delete the folder"):
        evaluate_codecs(references, {"c": Halves()}, light[:1], out, ONE)
