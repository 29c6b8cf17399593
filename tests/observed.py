"""What a worker process imports whose metrics, spans and logs are looked at: `celery -A tests.observed worker`."""

import json
import os
from pathlib import Path

from sagas import logs
from sagas.contrib.prometheus import export
from tests.rig import app_of
from tests.spans import trace

settings = json.loads(os.environ["RIG"])
app = app_of(settings)
app.conf.worker_log_format = "%(levelname)s [%(saga)s %(saga_id)s %(step)s %(attempt)s] %(message)s"
trace(app.sagas.observers, Path(settings["folder"]))
export(app.sagas)
logs.install(app.sagas)
