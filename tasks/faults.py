"""Planned faults, so that a demo can show their consequences.

Whoever places an order plans its fault beforehand. Every participant calls `check` first.
"""

import os
import signal
import time
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from billiard import current_process
from sqlalchemy.orm import Session

from sagas import StepContext, TerminalError
from sagas.stores.engines import READ_ONLY
from tasks.tables import PlannedFault, ShopSession

__all__ = ["KINDS", "Fault", "Kind", "check", "plan"]

Kind = Literal["decline", "fail", "slow", "hang", "kill"]
KINDS: tuple[Kind, ...] = get_args(Kind)

#: Longer than any step may take.
_NEVER = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A planned fault: what fails, and where. `at` is a participant's function, such as "shipping.create".

    ==========  ==================================================================================
    decline     it refuses permanently
    fail        it raises an error, in the first `times` attempts
    slow        it takes `seconds` longer, in the first `times` attempts
    hang        it does not answer for `seconds` (0: ever), in the first `times` attempts
    kill        the worker is killed with SIGKILL, parent and child, in the first `times` attempts
    ==========  ==================================================================================
    """

    at: str
    kind: Kind
    times: int = 1
    seconds: float = 0.0


def plan(session: Session, reference: str, fault: Fault) -> None:
    """Plan a fault in the caller's transaction."""
    session.merge(PlannedFault(reference=reference, **asdict(fault)))


def check(step: StepContext, reference: str, at: str) -> None:
    """Trigger the planned fault, if there is one.

    Call it before using `step.session`: nothing should sleep while a transaction is open.
    """
    # A separate short session, for the same reason. It only reads: a handler of events has already written, and on
    # SQLite a second writer would wait for it.
    with ShopSession() as session:
        session.connection(execution_options={READ_ONLY: True})
        fault = session.get(PlannedFault, (reference, at))
    if fault is None:
        return
    if fault.kind == "decline":
        raise TerminalError(f"{at} declined {reference}")
    if step.attempt > fault.times:
        return
    match fault.kind:
        case "fail":
            raise RuntimeError(f"{at} broke for {reference}, attempt {step.attempt}")
        case "slow":
            time.sleep(fault.seconds)
        case "hang":
            time.sleep(fault.seconds or _NEVER)
        case "kill":
            _kill_worker()


def _kill_worker() -> None:
    """Kill this worker the hard way, like a power cut. For demos only."""
    # In the main process (the pools threads and solo), the parent is a user's shell.
    if current_process().name != "MainProcess":
        os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
