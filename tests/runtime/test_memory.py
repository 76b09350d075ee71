"""Memory sizes, and the free memory within the limits of control groups."""

from pathlib import Path

import pytest

from sctok.runtime.memory import free_memory, parse_bytes

GIB = 2**30


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("1K", 1024), ("2G", 2 * GIB), ("1.5g", 3 * GIB // 2), ("3MiB", 3 << 20), ("1TB", 2**40)],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "0", "0.5", "-1G", "2X", "G", "1e9", "many", "nan"])
def test_invalid_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="is not a memory size"):
        parse_bytes(text)


def system(root: Path, **files: str) -> Path:
    """Write files of /proc and /sys. The keys are paths with __ for / and _dot_ for a dot."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = f"MemTotal: {32 * GIB // 1024} kB\nMemAvailable: {20 * GIB // 1024} kB\n"


def test_a_system_without_limits(tmp_path: Path) -> None:
    root = system(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/\n")
    assert free_memory(root) == 20 * GIB


def test_the_tightest_parent_group_counts_and_cached_files_do_not(tmp_path: Path) -> None:
    files = {
        "proc__meminfo": MEMINFO,
        "proc__self__cgroup": "0::/a/b\n",
        "sys__fs__cgroup__a__b__memory_dot_max": "max\n",
        "sys__fs__cgroup__a__b__memory_dot_current": "5\n",
        "sys__fs__cgroup__a__memory_dot_max": str(4 * GIB),
        "sys__fs__cgroup__a__memory_dot_current": str(3 * GIB),
        "sys__fs__cgroup__a__memory_dot_stat": f"anon 7\ninactive_file {GIB}\n",
    }
    assert free_memory(system(tmp_path, **files)) == 2 * GIB


def test_groups_of_the_first_version_seen_from_a_container(tmp_path: Path) -> None:
    files = {
        "proc__meminfo": MEMINFO,
        "proc__self__cgroup": "5:cpu:/x\n4:memory:/docker/1234\n",
        "sys__fs__cgroup__memory__memory_dot_limit_in_bytes": str(3 * GIB),
        "sys__fs__cgroup__memory__memory_dot_usage_in_bytes": str(GIB),
    }
    assert free_memory(system(tmp_path, **files)) == 2 * GIB


def test_a_group_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    files = {
        "proc__meminfo": MEMINFO,
        "proc__self__cgroup": "0::/\n",
        "sys__fs__cgroup__memory_dot_max": "10",
        "sys__fs__cgroup__memory_dot_current": "30",
    }
    assert free_memory(system(tmp_path, **files)) == 0


def test_this_machine_has_free_memory(tmp_path: Path) -> None:
    assert free_memory() > 2**20
    assert free_memory(tmp_path) > 2**20  # neither /proc nor /sys
