import json
import os
from pathlib import Path

import pytest

from sctok.audio.inputs.sources import AudioItem, BadItem
from sctok.corpus.runs.locks import take_lock, try_lock
from sctok.corpus.runs.manifest import Failure
from sctok.corpus.runs.planning import plan_runs
from sctok.corpus.runs.resume import ShardContents, claim_work
from sctok.corpus.runs.run_folder import (
    RunError,
    RunFolder,
    check_name,
    safe_name,
    shard_names,
)
from sctok.formats.files import FormatError

CONFIG = {"kind": "test", "channel": None, "nested": {"a": 1.5}}


def items(*keys: str, folder: str = "/audio") -> list[AudioItem]:
    return [AudioItem(key, f"{folder}/{key}.wav", suffix=".wav", metadata={"n": 1}) for key in keys]


def plan(folder: Path, listed: list[AudioItem | BadItem], files_per_shard: int = 2, **config: object) -> RunFolder:
    config = {**CONFIG, **config}
    settings = {"files_per_shard": files_per_shard, "read_shard": read_shard}
    return plan_runs({folder: config}, ".h5", lambda: listed, **settings)[0]


def read_shard(path: Path) -> ShardContents:
    if not path.stat().st_size:
        raise FormatError(f"{path} is not a shard")
    config_hash, *keys = path.read_text().split()
    return ShardContents(None if config_hash == "-" else config_hash, tuple(keys))


def keys(run: RunFolder) -> list[list[str]]:
    return [[item.key for item in shard.items] for shard in run.shards()]


def finish(run: RunFolder) -> list[int]:
    done = []
    for work in claim_work([run]):
        shard = work.shard
        run.staged_path(shard.index).write_text(" ".join([run.config_hash, *(item.key for item in shard.items)]))
        run.finish_shard(shard, [item.key for item in shard.items], [])
        work.release()
        done.append(shard.index)
    return done


def test_inputs_are_assigned_to_shards_in_order(tmp_path: Path) -> None:
    run = plan(tmp_path / "run", items("c", "a", "b"))
    assert keys(run) == [["c", "a"], ["b"]]
    assert run.planned() == {0: 2, 1: 1}
    assert next(run.shards()).items[0] == items("c")[0]


def test_later_inputs_never_change_a_planned_shard(tmp_path: Path) -> None:
    plan(tmp_path / "run", items("a", "b", "c"))
    manifest = tmp_path / "run" / "manifest.jsonl"
    before = manifest.read_bytes()
    run = plan(tmp_path / "run", items("0", "a", "b", "c", "d"))
    assert keys(run) == [["a", "b"], ["c"], ["0", "d"]]
    assert manifest.read_bytes().startswith(before)


def test_listing_the_same_inputs_again_writes_nothing(tmp_path: Path) -> None:
    listed = [*items("a"), BadItem("b", "/audio/b.wav", "is missing"), BadItem("", "/audio/x.tar", "is cut")]
    plan(tmp_path / "run", listed)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (tmp_path / "run").iterdir()}
    plan(tmp_path / "run", listed)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (tmp_path / "run").iterdir()} == before


def test_relative_paths_mean_the_same_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    plan(tmp_path / "run", items("a", folder="audio"))
    monkeypatch.chdir(tmp_path / "sub")
    run = plan(tmp_path / "run", items("a", folder="../audio"))
    assert keys(run) == [["a"]]
    assert list(run.failures()) == []


def test_a_key_of_another_file_is_a_failure(tmp_path: Path) -> None:
    plan(tmp_path / "run", items("a"))
    run = plan(tmp_path / "run", items("a", folder="/other"))
    (failure,) = run.failures()
    assert (failure.key, failure.path) == ("a", "/other/a.wav")
    assert "/audio/a.wav" in failure.reason
    assert keys(run) == [["a"]]


def test_a_resolved_problem_is_removed(tmp_path: Path) -> None:
    plan(tmp_path / "run", [*items("a"), BadItem("b", "/audio/b.wav", "is missing")])
    run = plan(tmp_path / "run", items("a", "b"))
    assert list(run.failures()) == []
    assert keys(run) == [["a"], ["b"]]


def test_problems_without_a_key_are_distinguished_by_reason(tmp_path: Path) -> None:
    run = plan(tmp_path / "run", [*items("a"), BadItem("", "/a.csv", "row 1"), BadItem("", "/a.csv", "row 2")])
    assert [failure.reason for failure in run.failures()] == ["row 1", "row 2"]


@pytest.mark.parametrize("change", [{"kind": "other"}, {"nested": {"a": 2}}, {"more": 1}])
def test_another_configuration_is_refused_in_one_line(tmp_path: Path, change: dict[str, object]) -> None:
    plan(tmp_path / "run", items("a"))
    with pytest.raises(RunError) as caught:
        plan(tmp_path / "run", items("a"), **change)
    message = str(caught.value)
    assert "\n" not in message
    assert next(iter(change)) in message
    assert str(tmp_path / "run") in message


def test_a_foreign_run_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(RunError, match=r"run\.json"):
        plan(tmp_path, items("a"))


@pytest.mark.parametrize("content", ["ffff a", "-"])
def test_foreign_shards_without_a_configuration_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "shard-00000.h5").write_text(content)
    with pytest.raises(RunError, match=r"shard-00000\.h5 but no run\.json"):
        plan(tmp_path, items("a"))


@pytest.mark.parametrize("lost", [["run.json"], ["manifest.jsonl"], ["run.json", "manifest.jsonl"]])
def test_a_lost_plan_is_made_again_and_keeps_its_shards(tmp_path: Path, lost: list[str]) -> None:
    run = plan(tmp_path, [BadItem("x", "/x", "is missing"), *items("a", "b", "c")])
    finish(run)
    run.staged_path(0).write_text("-")
    run.finish_shard(next(run.shards()), [], [Failure(key, f"/audio/{key}.wav", "is broken") for key in "ab"])
    before = {name: (tmp_path / name).read_bytes() for name in ("run.json", "manifest.jsonl")}
    for name in lost:
        (tmp_path / name).unlink()
    again = plan(tmp_path, [BadItem("x", "/x", "is missing"), *items("a", "b", "c")])
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert finish(again) == []


def test_a_run_with_added_files_keeps_its_plan_without_a_configuration(tmp_path: Path) -> None:
    finish(plan(tmp_path, items("b", "c", "d")))
    finish(plan(tmp_path, items("a", "b", "c", "d")))
    before = (tmp_path / "manifest.jsonl").read_bytes()
    (tmp_path / "run.json").unlink()
    assert finish(plan(tmp_path, items("a", "b", "c", "d"))) == []
    assert (tmp_path / "manifest.jsonl").read_bytes() == before


@pytest.mark.parametrize("lines", [1, 3])
def test_a_manifest_truncated_inside_a_shard_is_noticed_and_can_be_repaired(tmp_path: Path, lines: int) -> None:
    finish(plan(tmp_path, items(*"abcdefg")))
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_bytes(b"".join(manifest.read_bytes().splitlines(keepends=True)[:lines]))
    for _ in range(2):
        with pytest.raises(RunError, match=rf"delete shard-0000{lines // 2}\.\* to shard-00003\.\*") as caught:
            plan(tmp_path, items(*"abcdefg"))
        assert "\n" not in str(caught.value)
    for index in range(lines // 2, 4):
        (tmp_path / f"shard-0000{index}.h5").unlink()
    finish(plan(tmp_path, items(*"abcdefg")))
    assert sorted(key for shard in keys(plan(tmp_path, items("a"))) for key in shard) == list("abcdefg")


def test_a_manifest_truncated_between_shards_is_completed(tmp_path: Path) -> None:
    finish(plan(tmp_path, items(*"abcde")))
    manifest = tmp_path / "manifest.jsonl"
    before = manifest.read_bytes()
    manifest.write_bytes(b"".join(before.splitlines(keepends=True)[:2]))
    with pytest.raises(RunError, match=r"delete shard-00001\.\* to shard-00002\.\* there"):
        plan(tmp_path, items("a"))
    assert finish(plan(tmp_path, items(*"abcde"))) == []
    assert manifest.read_bytes() == before


def test_a_lost_record_of_failures_is_noticed(tmp_path: Path) -> None:
    run = plan(tmp_path, items("a", "b"))
    run.shard_path(0).write_text(f"{run.config_hash} a")
    with pytest.raises(RunError, match=r"delete shard-00000\.\* there"):
        plan(tmp_path, items("a", "b"))


def test_the_name_of_the_encoder_comes_from_the_first_run(tmp_path: Path) -> None:
    first = plan(tmp_path, items("a"), encoder="mini", encoder_hash="ab")
    before = (tmp_path / "run.json").read_bytes()
    again = plan(tmp_path, items("a"), encoder="renamed", encoder_hash="ab")
    assert again == first
    assert (tmp_path / "run.json").read_bytes() == before
    with pytest.raises(RunError, match="encoder_hash"):
        plan(tmp_path, items("a"), encoder="mini", encoder_hash="cd")


@pytest.mark.parametrize(
    ("indices", "names"),
    [
        ([2], "shard-00002.*"),
        ([5, 2, 3, 4], "shard-00002.* to shard-00005.*"),
        ([0, 2, 4, 5, 9], "shard-00000.*, shard-00002.*, shard-00004.* to shard-00005.*, …"),
    ],
)
def test_many_shards_are_named_as_ranges(indices: list[int], names: str) -> None:
    assert shard_names(indices) == names


def test_a_plan_without_its_configuration_is_made_again(tmp_path: Path) -> None:
    plan(tmp_path / "run", items("a", "b"))
    (tmp_path / "run" / "run.json").unlink()
    assert keys(plan(tmp_path / "run", items("c"))) == [["c"]]


def test_a_damaged_manifest_is_named_with_its_line(tmp_path: Path) -> None:
    plan(tmp_path / "run", items("a", "b"))
    with (tmp_path / "run" / "manifest.jsonl").open("a") as file:
        file.write('{"shard": 1, "it')
    with pytest.raises(FormatError, match=r"manifest\.jsonl.*line 3"):
        plan(tmp_path / "run", items("a", "b"))


GOOD = items("a")[0].to_json()


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        "[]",
        "7",
        '{"shard":0}',
        json.dumps({"item": GOOD}),
        json.dumps({"shard": "0", "item": GOOD}),
        json.dumps({"shard": -1, "item": GOOD}),
        '{"item":{"key":"a"},"shard":0}',
        '{"item":[],"shard":0}',
        json.dumps({"shard": 0, "item": {**GOOD, "more": 1}}),
        json.dumps({"shard": 0, "item": {**GOOD, "metadata": None}}),
        json.dumps({"shard": 0, "item": {**GOOD, "offset": 4}}),
        json.dumps({"shard": 0, "item": GOOD, "seconds": float("nan")}),
        json.dumps({"shard": 0, "item": GOOD, "seconds": "long"}),
        '{"bad":null}',
        '{"bad":{"key":"a","path":"a"}}',
    ],
    ids=range(16),
)
def test_lines_of_another_form_count_as_damage(tmp_path: Path, line: str) -> None:
    plan(tmp_path, items("a", "b"))
    with (tmp_path / "manifest.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(FormatError, match=r"manifest\.jsonl is damaged \(line 3: ") as caught:
        plan(tmp_path, items("a", "b"))
    assert "\n" not in str(caught.value)


def test_a_damaged_record_of_failures_is_named(tmp_path: Path) -> None:
    run = plan(tmp_path, items("a", "b"))
    finish(run)
    run.failures_path(0).write_text('{"key":1}\n')
    with pytest.raises(FormatError, match=r"shard-00000\.failed\.jsonl is damaged \(line 1: "):
        run.write_failures()


def test_an_empty_listing_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no audio"):
        plan(tmp_path / "run", [])
    assert not (tmp_path / "run").exists()


def test_a_claimed_shard_is_skipped_until_it_is_released(tmp_path: Path) -> None:
    run = plan(tmp_path / "run", items("a", "b", "c"))
    work = next(claim_work([run]))
    assert [other.shard.index for other in claim_work([run]) if not other.release()] == [1]
    work.release()
    assert finish(run) == [0, 1]
    assert finish(run) == []


def test_locks_exclude_each_other(tmp_path: Path) -> None:
    with take_lock(tmp_path / "lock"):
        assert try_lock(tmp_path / "lock") is None
    again = try_lock(tmp_path / "lock")
    assert again is not None
    again.release()
    again.release()


def test_files_of_dead_processes_are_removed(tmp_path: Path) -> None:
    run = plan(tmp_path / "run", items("a", "b", "c"))
    run.shard_path(0).touch()
    for name in (
        "shard-00000.h5.tmp-999999",
        f"shard-00001.h5.tmp-{os.getpid()}",
        "dropped-shard-00001.h5.tmp-999999",
        "shard-00001.failed.jsonl.tmp-1",
        "shard-00001.failed.jsonl",
        ".shard-00001.h5",
        "manifest.jsonl.tmp-999999",
        "run.json.tmp-999999",
    ):
        (run.path / name).touch()
    finish(run)
    run.write_failures()
    left = {path.name for path in run.path.iterdir()}
    shards = {"shard-00000.h5", "shard-00001.h5", "shard-00001.sha256.json"}
    assert left == {"run.json", "manifest.jsonl", "failed.jsonl", ".claims"} | shards


def test_failures_are_merged_in_the_order_of_the_shards(tmp_path: Path) -> None:
    run = plan(tmp_path / "run", [BadItem("x", "/x", "is missing"), *items("a", "b", "c")])
    for shard, key in zip(run.shards(), "bc", strict=True):
        run.staged_path(shard.index).touch()
        run.finish_shard(shard, [], [Failure(key, f"/audio/{key}.wav", "is broken")])
    assert run.write_failures() == 3
    rows = [json.loads(line) for line in (run.path / "failed.jsonl").read_text().splitlines()]
    assert [row["key"] for row in rows] == ["x", "b", "c"]


def test_a_choice_receives_the_seconds_that_the_run_has(tmp_path: Path) -> None:
    seen = []

    def choose(news, planned):
        seen.append(planned)
        yield from ((item, 1.25) for item in news if item.key != "b")

    for listed in (items("a", "b", "c"), items("a", "b", "c", "d")):
        settings = {"files_per_shard": 2, "read_shard": read_shard, "choose": choose}
        (run,) = plan_runs({tmp_path / "run": CONFIG}, ".h5", lambda listed=listed: listed, **settings)
    assert seen == [0.0, 2.5]
    assert keys(run) == [["a", "c"], ["d"]]


@pytest.mark.parametrize("name", ["speech", "my_data-2.1", "Müll", "0"])
def test_valid_names_are_accepted(name: str) -> None:
    assert check_name(name, "domain") == name == safe_name(name)


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a b", "..", "-x", "a\nb", "é!"])
def test_invalid_names_are_refused_and_can_be_corrected(name: str) -> None:
    with pytest.raises(RunError, match="domain"):
        check_name(name, "domain")
    check_name(safe_name(name), "domain")
