"""What a process of the event rig imports: `celery -A tests.event_worker ...`."""

import json
import os

from tests.event_rig import make_app

app = make_app(json.loads(os.environ["RIG"]))
