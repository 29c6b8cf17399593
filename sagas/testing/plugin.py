"""The pytest plugin with the fixture `inline_sagas`. pytest loads it automatically with celery-sagas."""

from __future__ import annotations

import pytest

from sagas.testing.inline import Inline

__all__ = ["inline_sagas"]


@pytest.fixture
def inline_sagas() -> Inline:
    """Run sagas in the calling thread and in memory: see `sagas.testing.Inline`."""
    return Inline()
