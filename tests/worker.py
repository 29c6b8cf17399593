"""What a worker process of the rig imports: `celery -A tests.worker worker`."""

import json
import os

from tests.rig import app_of

app = app_of(json.loads(os.environ["RIG"]))
