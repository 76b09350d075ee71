"""Run a script in several processes that find each other by a file."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SOURCE = str(Path(__file__).parents[2] / "src")
_START = "from pathlib import Path\nimport sys\nfrom sctok.runtime.distributed import join_group\n"


@dataclass(frozen=True)
class Ended:
    """The exit code and the output of one rank."""

    code: int
    out: str
    err: str


def run_ranks(
    world: int, body: str, folder: Path, *arguments: object, timeout: float = 60, wait: float = 120
) -> list[Ended]:
    """Run `body` in `world` processes that have `group` and the arguments in `sys.argv[1:]`; return how each ended."""
    rendezvous = folder / "rendezvous"
    rendezvous.unlink(missing_ok=True)
    indented = "".join(f"    {line}\n" for line in body.strip().splitlines())
    script = f"{_START}with join_group({timeout}, 'file://{rendezvous}') as group:\n{indented}"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    children = []
    for rank in range(world):
        environment = {**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"}
        environment |= {"RANK": str(rank), "WORLD_SIZE": str(world), "GLOO_SOCKET_IFNAME": "lo"}
        children.append(
            subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        )
    try:
        ended = []
        for child in children:
            out, err = child.communicate(timeout=wait)
            ended.append(Ended(child.returncode, out, err))
        return ended
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
                child.communicate()
