"""The pytest plugin: the fixture `inline_sagas`. pytest loads it by itself where celery-sagas is installed."""

from __future__ import annotations

import pytest

from sagas.testing.inline import Inline

__all__ = ["inline_sagas"]


@pytest.fixture
def inline_sagas() -> Inline:
    """Runs sagas in the calling thread, kept in memory: see `sagas.testing.Inline`."""
    return Inline()
