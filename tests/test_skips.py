"""Skips are listed at the end of a run, and fail it if they are not allowed, in one process and in several."""

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PLUGIN = """
import sys

sys.path.insert(0, {tests!r})
from skips import SkipReport

def pytest_configure(config):
    config.pluginmanager.register(SkipReport(config))
"""
MODULE = 'import pytest\n\npytest.skip("{reason}", allow_module_level=True)\n'
TEST = 'import pytest\n\ndef test_it():\n    pytest.skip("{reason}")\n\ndef test_another():\n    pass\n'


def outcome(folder: Path, code: str, *options: str) -> tuple[int, str]:
    (folder / "conftest.py").write_text(PLUGIN.format(tests=str(TESTS)))
    (folder / "test_here.py").write_text(code)
    (folder / "test_other.py").write_text("def test_other():\n    pass\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", *options, "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_an_allowed_skip_is_listed(tmp_path: Path) -> None:
    status, said = outcome(tmp_path, TEST.format(reason="no CUDA device"), "-n", "1")
    assert status == 0, said
    assert "1 skipped" in said
    assert "no CUDA device" in said


@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["one process", "a worker"])
@pytest.mark.parametrize("code", [MODULE, TEST], ids=["module", "test"])
def test_another_skip_fails_the_run(code: str, options: tuple[str, ...], tmp_path: Path) -> None:
    status, said = outcome(tmp_path, code.format(reason="no CUDA device today"), *options)
    assert status == 1, said
    assert "NOT ALLOWED: test_here.py" in said
