"""What a worker says when it starts."""

from typing import Any

import pytest
from celery import Celery

from sagas.worker import recovery


@pytest.mark.parametrize(("broker", "options", "warned"), [
    ("redis://127.0.0.1:1/0", {}, True),
    ("redis://127.0.0.1:1/0", {"socket_timeout": 30}, False),
    ("amqp://127.0.0.1:1//", {}, False),
    ("memory://", {}, False),
])  # fmt: skip
def test_a_redis_that_may_hang_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, broker: str, options: dict[str, Any], warned: bool
) -> None:
    said: list[str] = []
    # Not by caplog: a worker that ran in this process has set the loggers up as it likes.
    monkeypatch.setattr(recovery.logger, "warning", lambda text, *_: said.append(text))
    app = Celery("app", broker=broker, set_as_current=False)
    app.conf.broker_transport_options = options
    recovery.warn_of_silence(app)
    assert any("no socket_timeout" in text for text in said) is warned
    app.close()
