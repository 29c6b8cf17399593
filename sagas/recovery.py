"""What makes messages dispensable: a look, every second, at the sagas that are due."""

from __future__ import annotations

import logging
import random
import threading

from sagas.canvas import Canvas
from sagas.errors import SagaError
from sagas.orchestrator import Orchestrator

__all__ = ["Recovery"]

logger = logging.getLogger(__name__)

#: Sagas taken up at one look.
_BATCH = 100

#: After an error the pause grows up to this many intervals.
_LONGEST_PAUSE = 30


class Recovery:
    """Claims due sagas in the database, examines them, and launches what is left of them.

    Every worker runs one, in a thread. They keep out of each other's way by leases, so any number may run, and as long
    as one does no saga stands still.
    """

    def __init__(self, orchestrator: Orchestrator, canvas: Canvas, interval: float) -> None:
        self._orchestrator = orchestrator
        self._canvas = canvas
        self._interval = interval
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def sweep(self) -> int:
        """Look once. Returns how many sagas were launched."""
        launched = []
        for next_ in self._orchestrator.sweep(_BATCH):
            if next_.plan:
                logger.info("saga %s (%s): recovery launches %s", next_.record.name, next_.record.id, next_.plan.stages)
                try:
                    self._canvas.launch(next_.plan)
                except Exception:
                    self._orchestrator.not_launched(next_.record)
                    raise
                launched.append(next_.record)
        if observers := self._orchestrator.observers:
            observers.swept(launched)
        return len(launched)

    def start(self) -> None:
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="sagas-recovery", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def _run(self) -> None:
        pause = self._interval
        # Spread, so that workers started together do not look together.
        while not self._stop.wait(pause * random.uniform(0.8, 1.2)):  # noqa: S311
            try:
                while self.sweep() >= _BATCH and not self._stop.is_set():
                    pass
                pause = self._interval
            except SagaError as error:
                pause = min(pause * 2, self._interval * _LONGEST_PAUSE)
                logger.warning("recovery pauses for %.1f s: %s", pause, error)
            except Exception:
                pause = min(pause * 2, self._interval * _LONGEST_PAUSE)
                logger.exception("recovery failed and pauses for %.1f s", pause)
