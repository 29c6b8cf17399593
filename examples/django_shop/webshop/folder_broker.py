"""Celery's filesystem broker, whose readers never find incomplete messages. For a demo without a server."""

import time
import uuid
from pathlib import Path
from typing import Any

from kombu.transport import filesystem
from kombu.utils.json import dumps


class Channel(filesystem.Channel):
    def _put(self, queue: str, payload: Any, **_: Any) -> None:
        draft = Path(self.data_folder_out, f"{uuid.uuid4()}.draft")
        draft.write_text(dumps(payload))
        # Readers take files in the order of their names, and only files with this ending.
        draft.rename(draft.with_name(f"{time.monotonic_ns():020}_{uuid.uuid4()}.{queue}.msg"))


class Transport(filesystem.Transport):
    Channel = Channel
