"""A pytest plugin for `bin/test --long`: reports the total duration of each test module."""

from collections import defaultdict
from typing import Any

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    seconds: defaultdict[str, float] = defaultdict(float)
    reports: list[Any] = [report for reports in terminalreporter.stats.values() for report in reports]
    for report in reports:
        if isinstance(report, pytest.TestReport):
            seconds[report.nodeid.partition("::")[0]] += report.duration
    terminalreporter.section("duration of each module in seconds")
    for module, duration in sorted(seconds.items(), key=lambda each: -each[1]):
        terminalreporter.write_line(f"{duration:8.1f}  {module}")
