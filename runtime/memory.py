"""Parse memory sizes and measure the free memory of this process."""

import os
import re
from pathlib import Path

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# For cgroup v1 and v2: pattern of the line in /proc/self/cgroup, folder of all groups, files of limit and usage.
_CGROUPS = (
    (r"^\d+:[^:]*\bmemory\b[^:]*:(.*)$", "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    (r"^0::(.*)$", "sys/fs/cgroup", "memory.max", "memory.current"),
)


def parse_bytes(text: str) -> int:
    """Parse a size such as 512M, 2G, 1.5g or 100000 and return it in bytes. Suffixes are powers of 1024.

    Raises:
        ValueError: The text is not a size, or the size is less than one byte.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:I?B)?", text.strip().upper())
    size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if size < 1:
        raise ValueError(f"{text!r} is not a memory size: use a number of bytes, or a size such as 512M or 2G")
    return size


def free_memory(root: Path = Path("/")) -> int:
    """Return the memory in bytes that this process can still allocate, within the limits of its control groups.

    root: the folder of /proc and /sys. Without them (not on Linux), the result is the physical memory.
    """
    limits = _system(root)
    for line, mount, limit, usage in _CGROUPS:
        group = re.search(line, _read(root / "proc/self/cgroup"), re.MULTILINE)
        limits += _left(root / mount, group[1] if group else "", limit, usage)
    return max(0, min(limits)) if limits else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def default_memory() -> int:
    """Return half of the free memory, divided by the number of processes that `torchrun` started on this machine."""
    return max(1, free_memory() // (2 * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _system(root: Path) -> list[int]:
    match = re.search(r"^MemAvailable:\s+(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    return [int(match[1]) * 1024] if match else []


def _left(mount: Path, group: str, limit_name: str, usage_name: str) -> list[int]:
    """Return the memory left in a group and in each of its parents. A container sees its own group as the mount."""
    found = []
    folder = mount / group.lstrip("/")
    for parent in (folder, *folder.parents):
        if not parent.is_relative_to(mount):
            break
        limit, usage = _number(parent / limit_name), _number(parent / usage_name)
        if limit is not None and usage is not None:
            # Cached files count as used, but the system can drop them.
            cached = re.search(r"^(?:total_)?inactive_file (\d+)$", _read(parent / "memory.stat"), re.MULTILINE)
            found.append(limit - usage + (int(cached[1]) if cached else 0))
    return found


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdecimal() else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
