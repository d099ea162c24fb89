"""Draws of the fuzzers, and their counts below pytest's summary."""

import random

import pytest


@pytest.fixture
def cases(request):
    """cases(fast, full) yields (index, seeded generator): `full` of them with --run slow."""
    slow = "slow" in request.config.getoption("--run")
    seed = request.config.getoption("--fuzz-seed")

    def draw(fast: int, full: int):
        for i in range(full if slow else fast):
            yield i, random.Random(f"{seed}/{request.node.name}/{i}")

    return draw


def pytest_terminal_summary(terminalreporter):
    counts = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, value in report.user_properties
        if name == "fuzz"
    ]
    if counts:
        terminalreporter.section("hostile inputs")
        for line in sorted(counts):
            terminalreporter.write_line(line)
