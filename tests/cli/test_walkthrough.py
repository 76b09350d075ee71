"""The commands of docs/guides/walkthrough.md, in order, on a small corpus that is laid out like LibriSpeech."""

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "walkthrough.md"
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CHAPTERS = ("1272/128104", "1272/135031", "1462/170138")


def write_corpus(folder: Path, clips: list[Path]) -> None:
    """Write clips like LibriSpeech: SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac, and their transcripts."""
    for index, clip in enumerate(clips):
        chapter = CHAPTERS[index % len(CHAPTERS)]
        name = f"{chapter.replace('/', '-')}-{index // len(CHAPTERS):04d}"
        (folder / chapter).mkdir(parents=True, exist_ok=True)
        (folder / chapter / f"{name}.flac").write_bytes(clip.read_bytes())
        with (folder / chapter / f"{chapter.replace('/', '-')}.trans.txt").open("a") as transcripts:
            transcripts.write(f"{name} WORDS OF {clip.stem.upper()}, ALL OF THEM\n")


def write_downloader(path: Path, archive: Path) -> None:
    """Write a stand-in for curl that copies the archive to the file name at the end of a URL of LibriSpeech."""
    path.parent.mkdir()
    wanted = "https://www.openslr.org/resources/12/*.tar.gz"
    path.write_text(f'#!/usr/bin/env bash\n[[ "${{@: -1}}" == {wanted} ]] && cp {archive} "$(basename "${{@: -1}}")"\n')
    path.chmod(0o755)


@pytest.mark.slow
def test_every_command_of_the_walkthrough(tmp_path: Path, samples_folder: Path) -> None:
    clips = [clip for kind in ("speech", "music") for clip in sorted((samples_folder / kind).glob("*.flac"))][:9]
    write_corpus(tmp_path / "made" / "LibriSpeech" / "dev-clean", clips)
    with tarfile.open(tmp_path / "made.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "made" / "LibriSpeech", "LibriSpeech")
    write_downloader(tmp_path / "bin" / "curl", tmp_path / "made.tar.gz")
    path = os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    environment.pop("SCTOK_ROOT", None)
    work = tmp_path / "work"
    work.mkdir()

    programs = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    blocks = FENCED.findall(PAGE.read_text())
    assert {language for language, _ in blocks} == set(programs)
    for language, text in blocks:
        done = subprocess.run(
            [*programs[language], text], cwd=work, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"

    exports = work / "sctok-data" / "exports"
    facts = json.loads((exports / "librispeech-megatron" / "export.json").read_text())
    assert (facts["documents"], facts["vocabulary_size"]) == (len(clips), 1025)
    documents = (exports / "librispeech-megatron" / "tokens.documents.jsonl").read_text()
    assert "WORDS OF EN_PASSWORD_INCORRECT, ALL OF THEM" in documents
    assert (exports / "librispeech-codec-megatron" / "tokens.bin").stat().st_size > 0
    assert (work / "heard.wav").stat().st_size > 0
