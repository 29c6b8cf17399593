"""Celery's filesystem broker, with messages that appear in the folder complete.

kombu's own transport writes messages where its readers look for them. A reader that looks too early finds an empty
file, and its worker ends with a JSONDecodeError (https://github.com/celery/kombu/issues/1551).
"""

import time
import uuid
from pathlib import Path
from typing import Any

from kombu.transport import filesystem
from kombu.utils.json import dumps

__all__ = ["Transport"]


class Channel(filesystem.Channel):
    def _put(self, queue: str, payload: Any, **_: Any) -> None:  # type: ignore[override]
        # Readers take files in the order of their names, and only those with the ending of messages.
        file = Path(self.data_folder_out, f"{time.monotonic_ns():020}_{uuid.uuid4()}.{queue}.msg")
        draft = file.with_suffix(".draft")
        draft.write_text(dumps(payload))
        draft.rename(file)


class Transport(filesystem.Transport):
    Channel = Channel
