"""Does `sctok tokenize`, killed at random moments and repeated, end with the bytes of one clean run?

    python benchmarks/kill.py [--kills 200] [--seed 0] [--folder DIR] [-- OPTIONS OF sctok tokenize]

Every round starts with an empty folder. One command, or two at a time, with or without decoding processes, is killed
with all its processes after a random time, and repeated until it completes. Then every file is compared with those of
the clean run. If any byte differs, the exit code is 1 and the folder is kept.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from pathlib import Path

from sctok.cli.app import main as sctok_command

CLIPS_PER_SHARD = 2
IMPORTED = ("sctok.corpus.tokenization", "sctok.features.extractor")
POLL_SECONDS = 0.02
LONGEST = 0.9  # the latest kill, as a share of the time of a whole run


@dataclass(frozen=True)
class Corpus:
    """Audio to tokenize, the codebook and further options."""

    audio: Path
    codebook: Path
    options: tuple[str, ...]

    def command(self, out: Path, workers: int) -> list[str]:
        """Return the command line that writes to a folder."""
        options = ["--codebook", str(self.codebook), "--files-per-shard", str(CLIPS_PER_SHARD), "--batch-size", "2"]
        return ["tokenize", str(self.audio), "--out", str(out), "--workers", str(workers), *options, *self.options]


def make_corpus(folder: Path, options: list[str]) -> Corpus:
    """Copy the bundled clips, add two files that cannot be read, and make a codebook."""
    audio = folder / "audio"
    shutil.copytree(str(files("sctok.samples")), audio, ignore=shutil.ignore_patterns("*.py", "*.md", "__pycache__"))
    (audio / "speech" / "empty.wav").touch()
    (audio / "music" / "text.flac").write_text("this is no audio\n")
    root = ["--root", str(folder), "--workers", "0"]
    finish(["cluster", "--from-audio", str(audio / "speech"), "--domain", "speech", "--k", "64", *root], folder / "log")
    return Corpus(audio, folder / "codebooks" / "speech-64-r100.safetensors", tuple(options))


def start(command: list[str], log: Path) -> int:
    """Start a command in its own process group and return the process."""
    # A fork of this process has imported everything, so that kills hit real work. The parent never computes anything,
    # because its threads would be missing in the forks.
    child = os.fork()
    if child:
        return child
    os.setsid()
    with log.open("a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    code = 1
    try:
        code = sctok_command(command)
    finally:
        os._exit(code)


def finish(command: list[str], log: Path) -> None:
    """Run a command to its end."""
    if code := wait(start(command, log)):
        raise SystemExit(f"sctok {command[0]} failed with exit code {code}:\n{log.read_text()[-4000:]}")


def wait(child: int) -> int:
    """Wait for a process and return its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(child: int) -> int | None:
    """Kill a process and its children, and return its exit code if it had ended before."""
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:  # it has no group yet
        os.kill(child, signal.SIGKILL)
    code = wait(child)
    return None if code == -signal.SIGKILL else code


def ended(children: list[int], seconds: float) -> float | None:
    """Wait for processes to end. Return the seconds until all ended, or None if one still runs after `seconds`."""
    began = time.monotonic()
    while (elapsed := time.monotonic() - began) < seconds:
        if all(os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) for child in children):
            return elapsed
        time.sleep(min(POLL_SECONDS, seconds))
    return None


def tree(folder: Path) -> dict[str, str]:
    """Return the hash of every file under a folder, including hidden files."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def one_round(corpus: Corpus, out: Path, rng: random.Random, pace: list[float], most: int) -> list[int]:
    """Run the command until it completes, killing it at most `most` times.

    pace: seconds that the last complete run of the command took. It is updated, because the load of the machine may
    change.

    Returns:
        Number of finished shards at each kill.
    """
    kills: list[int] = []
    while True:
        workers, log = rng.choice((0, 0, 1)), out.with_suffix(".log")
        children = [start(corpus.command(out, workers), log) for _ in range(rng.choice((1, 1, 2)))]
        if len(kills) < most:
            if elapsed := ended(children, rng.uniform(0, LONGEST * pace[-1])):
                pace.append(max(elapsed, pace[-1] / 2))
            codes = [kill(child) for child in children]
        else:
            codes = [wait(child) for child in children]
        kills += [len(list(out.glob("shard-*.tar")))] * codes.count(None)
        if any(codes_ended := [code for code in codes if code is not None]):
            raise SystemExit(f"sctok tokenize failed with {codes_ended}:\n{log.read_text()[-4000:]}")
        if None not in codes:
            return kills


def main() -> None:
    """Kill, repeat and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="work folder (default: a temporary folder)")
    parser.add_argument("options", nargs="*", help="options of sctok tokenize, such as -- --codec mini")
    args = parser.parse_args()
    for name in IMPORTED:
        import_module(name)
    folder = args.folder or Path(tempfile.mkdtemp(prefix="sctok-kill-"))
    rng = random.Random(args.seed)
    corpus = make_corpus(folder, args.options)
    began = time.monotonic()
    finish(corpus.command(folder / "clean", 0), folder / "log")
    pace = [time.monotonic() - began]
    clean = tree(folder / "clean")
    kills: Counter[int] = Counter()
    rounds = 0
    while kills.total() < args.kills:
        out = folder / f"run-{rounds}"
        kills.update(one_round(corpus, out, rng, pace, args.kills - kills.total()))
        rounds += 1
        found = tree(out)
        if wrong := [name for name in clean | found if clean.get(name) != found.get(name)]:
            print(f"after {kills.total()} kills {out} differs from {folder / 'clean'} in {', '.join(wrong)}")
            sys.exit(1)
        shutil.rmtree(out)
        spread = ", ".join(f"{shards}: {count}" for shards, count in sorted(kills.items()))
        print(
            f"{kills.total()} kills in {rounds} rounds: every byte as in the clean run (by finished shards: {spread})"
        )
        sys.stdout.flush()
    if args.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
