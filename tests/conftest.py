"""Options and profiles for all tests."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

from tests import tools

settings.register_profile("dev", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("deep", max_examples=5000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-tools", action="store_true", help="fail, not skip, where an outside program or right is missing")


def pytest_configure(config: pytest.Config) -> None:
    tools.REQUIRED = bool(config.getoption("--require-tools"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under ``--require-tools`` a skipped test is a failed one, unless it is marked ``if_present``."""
    report = yield
    if tools.REQUIRED and report.skipped and not hasattr(report, "wasxfail") and item.get_closest_marker("if_present") is None:
        report.outcome = "failed"
        report.longrepr = f"skipped, though --require-tools was given: {report.longrepr}"
    return report
