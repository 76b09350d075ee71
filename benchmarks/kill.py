"""Does any number of kill -9 leave the bytes of one clean run? `sctok tokenize`, killed at random moments and repeated.

    python benchmarks/kill.py [--kills 200] [--seed 0] [--folder DIR] [-- OPTIONS OF sctok tokenize]

Every round begins with an empty folder: one command, or two at a time, with or without decoding processes, is killed
with all its processes after a random time, and repeated, until it comes to its end; then every file is compared with
those of the clean run. Exit code 1, and the folder is kept, if any byte differs.
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
LONGEST = 0.9  # of the time of a whole run: when the latest kill comes


@dataclass(frozen=True)
class Corpus:
    """What is tokenized, with which codebook and further options."""

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
    """Run a command in a process group of its own; return the process."""
    # A copy of this process has imported everything, so that kills come while there is work. This one never computes
    # anything: threads that it had would be missing in its copies.
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
    """Wait for a process; return its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(child: int) -> int | None:
    """Kill a process and all that it has started; return its exit code if it had ended before."""
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:  # it has no group yet
        os.kill(child, signal.SIGKILL)
    code = wait(child)
    return None if code == -signal.SIGKILL else code


def ended(children: list[int], seconds: float) -> float | None:
    """Wait so long for processes to end; return the seconds in which all did, None if one still runs."""
    began = time.monotonic()
    while (elapsed := time.monotonic() - began) < seconds:
        if all(os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) for child in children):
            return elapsed
        time.sleep(min(POLL_SECONDS, seconds))
    return None


def tree(folder: Path) -> dict[str, str]:
    """Return the hash of every file under a folder, hidden ones included."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def one_round(corpus: Corpus, out: Path, rng: random.Random, pace: list[float], most: int) -> list[int]:
    """Run the command until it comes to its end, killing it at most `most` times.

    pace: the seconds that the command took when it was last not killed; kept up to date, for the machine may have other
    work, too.

    Returns:
        for each kill, how many shards were finished by then.
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
    """Kill, repeat, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary folder")
    parser.add_argument("options", nargs="*", help="of sctok tokenize, such as -- --codec mini")
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
