"""Long tables and slow tests take turns: a run of the suite takes some of each, daily others.

Of what is named on the command line all is tried, and of everything with ``--all``.
"""

import os
from datetime import date
from hashlib import sha256
from typing import Any

import pytest

# A slow test's turn comes every so many days.
SLOW_DAYS = 3
# Rows of a test's table that a run of the whole suite takes; every day others.
ROWS = 16


def pytest_addoption(parser: pytest.Parser) -> None:
    told = "all rows of long tables and all slow tests too"
    parser.addoption("--all", action="store_true", help=told)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Have all workers take the same tests."""
    node.workerinput["day"] = day_of(node.config)


def day_of(config: pytest.Config) -> int | None:
    """Return by which day the long tables take turns; None where it is said which tests are meant.

    ``VLM_EDIT_DAY`` is the day of a run that is to be looked at again.
    """
    if hasattr(config, "workerinput"):
        day: int | None = config.workerinput["day"]
        return day
    option = config.option
    if option.all or option.markexpr or option.keyword:
        return None
    if config.args_source is pytest.Config.ArgsSource.ARGS:
        return None
    return int(os.environ.get("VLM_EDIT_DAY") or date.today().toordinal())


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Failures(config))


def pytest_report_header(config: pytest.Config) -> str | None:
    day = day_of(config)
    if day is None:
        return None
    return (
        f"of long tables {ROWS} rows and of slow tests one in {SLOW_DAYS}, VLM_EDIT_DAY={day}; "
        "all of them: --all"
    )


class Failures:
    """Name what fails at once: a run that is cut short has no summary."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            terminal.ensure_newline()
            terminal.write_line(f"{report.nodeid} failed")


def keep_todays(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the rows of long tables that are not tried today."""
    day = day_of(config)
    if day is not None:
        tables: dict[str, list[pytest.Item]] = {}
        for item in items:
            tables.setdefault(item.nodeid.partition("[")[0], []).append(item)
        today: set[pytest.Item] = set()
        for rows in tables.values():
            today.update(rows_of(rows, day, SLOW_DAYS if _is_slow(rows[0]) else 1))
        config.hook.pytest_deselected(items=[item for item in items if item not in today])
        items[:] = [item for item in items if item in today]


def rows_of(rows: list[pytest.Item], day: int, days: int = 1) -> list[pytest.Item]:
    """Return a day's rows of a table: in as many days as it takes, all of them.

    Args:
        rows: The table, which may be one test alone.
        day: The day.
        days: How many it takes at least.
    """
    parts = max(-(-len(rows) // ROWS), days)
    mixed = sorted(rows, key=lambda item: _digest(item.nodeid))
    first = day + _digest(rows[0].nodeid.partition("[")[0])[0]
    return mixed[first % parts :: parts]


def _is_slow(item: pytest.Item) -> bool:
    return item.get_closest_marker("slow") is not None


def _digest(name: str) -> bytes:
    return sha256(name.encode()).digest()
