"""What a worker process of the rig imports: `celery -A tests.worker worker`."""

import json
import os
import select
import time
from typing import Any

from sagas.stores import clock
from tests.rig import app_of

if "FAKETIME_TIMESTAMP_FILE" in os.environ:
    # libfaketime mistakes the monotonic moment that time.sleep waits for.
    def _sleep(seconds: Any) -> None:
        select.select([], [], [], seconds)

    time.sleep = _sleep

settings = json.loads(os.environ["RIG"])
clock.TRUST = settings.get("clock_trust", clock.TRUST)
app = app_of(settings)
