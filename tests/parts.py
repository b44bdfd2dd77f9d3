"""pytest plugin of `bin/test --long`: how long each module took."""

from collections import defaultdict
from typing import Any

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    seconds: defaultdict[str, float] = defaultdict(float)
    reports: list[Any] = [report for reports in terminalreporter.stats.values() for report in reports]
    for report in reports:
        if isinstance(report, pytest.TestReport):
            seconds[report.nodeid.partition("::")[0]] += report.duration
    terminalreporter.section("seconds of each module")
    for module, duration in sorted(seconds.items(), key=lambda each: -each[1]):
        terminalreporter.write_line(f"{duration:8.1f}  {module}")
