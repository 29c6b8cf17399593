"""What a process of the event rig imports: `celery -A tests.event_worker ...`."""

import json
import os
from pathlib import Path

from sagas.contrib.prometheus import export
from tests.event_rig import make_app
from tests.spans import trace

settings = json.loads(os.environ["RIG"])
app = make_app(settings)
if settings.get("observed"):
    trace(app.sagas.observers, Path(settings["folder"]))
    export(app.sagas)
