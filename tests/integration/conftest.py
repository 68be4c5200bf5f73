"""Markers of the integration tests: each has the name of the folder that it is in."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in `server/`, `engine/`, `browser/` and `slow/`, so that `-m "not slow"` leaves it out."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(item.path.relative_to(HERE).parts[0])
