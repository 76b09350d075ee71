"""`sctok demo`: turn bundled clips into tokens and back, with the commands that a user would type."""

import shlex
import time
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sctok.cli.shared.command import command
from sctok.cli.shared.options import DEFAULT_ROOT, JsonOption, RootOption
from sctok.cli.shared.terminal import emit, say, table_of

if TYPE_CHECKING:
    from sctok.formats.codebooks import Codebook

DOMAINS = {"general": 128, "speech": 64, "music": 64}
MERGED_SIZE = 256
TOKEN_RATE = 100
SOUND = "reconstructed"
_COLUMNS = {
    "clip": "clip",
    "seconds": "seconds:.2f",
    "tokens": "tokens",
    "distinct": "distinct",
    "own domain": "own_domain:.0%",
    "mel distance": "mel_distance:.2f",
    "first tokens": "first",
}


@command("sctok demo")
def demo(context: typer.Context, root: RootOption = DEFAULT_ROOT, as_json: JsonOption = False) -> None:
    """Turn the bundled clips into tokens and back into sound, with the commands that you would type.

    Runs extract, cluster, merge, tokenize and reconstruct in ROOT/demo. Takes a minute or two.
    """
    from sctok.formats.codebooks import codebook_path, load_codebook

    started = time.monotonic()
    work = root / "demo"
    with as_file(files("sctok.samples")) as clips:
        for arguments in _commands(clips, work):
            _run(context.find_root().command, arguments, as_json)
        merged = codebook_path(work / "codebooks", "merged", MERGED_SIZE, TOKEN_RATE)
        rows = _token_rows(work / "tokens" / "demo", load_codebook(merged))
        for row in rows:
            row["mel_distance"] = _mel_distance(clips, work / SOUND, row["clip"])
    seconds = time.monotonic() - started
    places = {
        "features": str(work / "features"),
        "codebooks": str(work / "codebooks"),
        "merged codebook": str(merged),
        "tokens": str(work / "tokens" / "demo"),
        "sound": str(work / SOUND),
    }
    emit({"clips": rows, "results": places, "seconds": seconds}, as_json, lambda: _text(rows, places, seconds))


def _commands(clips: Path, work: Path) -> list[list[str]]:
    root = ["--root", str(work)]
    extract = [["extract", str(clips / domain), "--domain", domain, *root] for domain in DOMAINS]
    cluster = [["cluster", "--domain", domain, "--k", str(k), *root] for domain, k in DOMAINS.items()]
    merge = ["merge", "--size", str(MERGED_SIZE), "--token-rate", str(TOKEN_RATE), *root]
    tokenize = ["tokenize", str(clips), "--codebook", str(MERGED_SIZE), "--name", "demo", *root]
    reconstruct = ["reconstruct", str(clips), str(work / SOUND), "--sampler", "dpm++", *root]
    return [*extract, *cluster, merge, tokenize, reconstruct]


def _run(program: Any, arguments: list[str], quiet: bool) -> None:
    """Run one command; if stdout is reserved for JSON, its results go to stderr."""
    import contextlib
    import sys

    say("")
    say(f"$ sctok {shlex.join(arguments)}")
    with contextlib.redirect_stdout(sys.stderr) if quiet else contextlib.nullcontext():
        program.main(arguments, prog_name="sctok", standalone_mode=False)


def _token_rows(folder: Path, codebook: "Codebook") -> list[dict[str, Any]]:
    """Describe the tokens of each clip: number, distinct ones, and the share from the rows of its own domain."""
    from sctok.formats.token_shards import read_token_shard

    segments = {part.domain: range(part.start, part.stop) for part in codebook.metadata.segments}
    rows = []
    for path in sorted(folder.glob("*.tar")):
        for key, tokens, info in read_token_shard(path):
            own = segments[key.split("/")[0]]
            chosen = tokens[:, 0].tolist()
            rows.append(
                {
                    "clip": key,
                    "seconds": info["samples"] / info["sample_rate"],
                    "tokens": len(chosen),
                    "distinct": len(set(chosen)),
                    "own_domain": sum(token in own for token in chosen) / len(chosen),
                    "first": chosen[:6],
                }
            )
    return rows


def _mel_distance(clips: Path, sound: Path, clip: str) -> float:
    """Return DAC's mel distance between a clip and its reconstruction."""
    import numpy as np
    import torch

    from sctok.audio.decoding.decode import read_audio
    from sctok.audio.spectral_distances import mel_distance

    waves = [read_audio(folder / f"{clip}{suffix}") for folder, suffix in ((clips, ".flac"), (sound, ".wav"))]
    ours, theirs = (torch.from_numpy(np.asarray(wave)[None]) for wave in waves)
    return float(mel_distance(theirs, ours))


def _text(rows: list[dict[str, Any]], places: dict[str, str], seconds: float) -> str:
    shown = [{**row, "first": " ".join(map(str, row["first"])) + " …"} for row in rows]
    width = max(map(len, places))
    lines = [f"{name.ljust(width)}  {place}" for name, place in places.items()]
    hint = (
        f"listen to {shlex.quote(places['sound'])}; "
        f"describe any of the files with: sctok inspect {shlex.quote(places['merged codebook'])}"
    )
    return "\n".join(["", table_of(shown, _COLUMNS), "", *lines, "", f"done in {seconds:.0f} s; {hint}"])
