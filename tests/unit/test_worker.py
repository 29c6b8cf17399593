"""What a worker says when it starts."""

from typing import Any

import pytest
from celery import Celery

from sagas.worker import warn_of_silence


@pytest.mark.parametrize(("broker", "options", "warned"), [
    ("redis://127.0.0.1:1/0", {}, True),
    ("redis://127.0.0.1:1/0", {"socket_timeout": 30}, False),
    ("amqp://127.0.0.1:1//", {}, False),
    ("memory://", {}, False),
])  # fmt: skip
def test_a_redis_that_may_hang_is_warned_of(
    caplog: pytest.LogCaptureFixture, broker: str, options: dict[str, Any], warned: bool
) -> None:
    app = Celery("app", broker=broker, set_as_current=False)
    app.conf.broker_transport_options = options
    warn_of_silence(app)
    assert ("no socket_timeout" in caplog.text) is warned
    app.close()
