"""Hold what really happened, the ledger outside of the database, against what the database says."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sagas import Sagas, SagaStatus
from sagas.checkpoints import FINISHED, HistoryEntry, HistoryKind, SagaRecord
from sagas.errors import SagaNotFound
from tests.rig import TAKEOVERS, Effect

#: A saga's times that differ by so much from those of the ledger were written while the clock was stepped by an hour.
STEPPED = 1800.0

#: A process that wrote a saga's last line no longer ago than this is taken to have been at work on it.
AT_WORK = 5.0


@dataclass(frozen=True)
class Blow:
    """One thing that the saboteur did."""

    kind: str
    at: float
    pids: frozenset[int] = frozenset()  #: the processes that it hit; none where it hit a server


@dataclass(frozen=True)
class Violation:
    kind: str
    saga: str
    story: tuple[str, ...]


@dataclass
class Verdict:
    """What the judge found."""

    sagas: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    repeated: int = 0  #: actions and compensations that began more than once
    doubled: int = 0  #: effects that landed more than once, each explained by a takeover unless it is a violation
    recovery: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def count(self, kind: str) -> int:
        return sum(violation.kind == kind for violation in self.violations)


def read_ledger(folder: Path) -> dict[str, list[Effect]]:
    """Return the lines of each saga, in the order of the file."""
    file = folder / "ledger"
    effects: dict[str, list[Effect]] = defaultdict(list)
    for line in file.read_text().splitlines() if file.exists() else []:
        effect = Effect(**json.loads(line))
        effects[effect.saga].append(effect)
    return effects


def judge(
    sagas: Sagas, folder: Path, started: Mapping[tuple[str, str], Iterable[str]], blows: Sequence[Blow]
) -> Verdict:
    """`started`: for each name and key the ids that `start()` returned."""
    verdict, ledger, known = Verdict(sagas=len(started)), read_ledger(folder), set[str]()
    for (name, key), ids in started.items():
        try:
            record = sagas.load(sagas.find(name, key).id)
        except SagaNotFound:
            verdict.violations.append(Violation("lost", f"{name} {key}", (f"start() returned {list(ids)}",)))
            continue
        known.add(record.id)
        verdict.statuses[str(record.status)] += 1
        history = sagas.store.queries.history(record.id)
        lines = ledger.get(record.id, [])
        found = [] if set(ids) <= {record.id} else ["several sagas of one key"]
        found += _of_one(sagas, record, lines, history)
        for kind in found:
            verdict.violations.append(Violation(kind, f"{name} {key} {record.id}", _story(record, lines, history)))
        verdict.doubled += sum(n - 1 for n in (_times(lines, "do") + _times(lines, "undo")).values())
        if not _dated_right(record, lines):
            continue
        verdict.repeated += _repeated(lines, history)
        for blow in blows:
            if (took := _recovery(record, lines, blow)) is not None:
                verdict.recovery[blow.kind].append(took)
        for at in _suicides(record, lines):
            if (took := _recovery(record, lines, at)) is not None:
                verdict.recovery[at.kind].append(took)
    for stranger in ledger.keys() - known:
        verdict.violations.append(Violation("several sagas of one key", stranger, ("in the ledger, under no key",)))
    return verdict


def _of_one(
    sagas: Sagas, record: SagaRecord, lines: Sequence[Effect], history: Sequence[HistoryEntry]
) -> Iterable[str]:
    last = {line.step: line.event for line in lines if line.event != "begin"}
    if record.status is SagaStatus.COMPENSATED and any(e == "do" for step, e in last.items() if step != "free"):
        yield "left standing"
    elif record.status is SagaStatus.COMPLETED:
        steps = sagas.orchestrator.definition(record).steps
        if any(last.get(step) != "do" for step in steps):
            yield "completed without its effects"
    elif record.status not in FINISHED:
        yield "not at its end"
    takeovers = Counter(entry.step for entry in history if entry.what in TAKEOVERS)
    for event in ("do", "undo"):
        # Stricter than overlap: each effect after the first needs an entry of its own.
        if any(n > 1 + takeovers[step] for (step, _), n in _times(lines, event).items()):
            yield "doubled without a takeover"


def _times(lines: Iterable[Effect], event: str) -> Counter[tuple[str, str]]:
    return Counter((line.step, event) for line in lines if line.event == event)


def _dated_right(record: SagaRecord, lines: Sequence[Effect]) -> bool:
    """Tell whether the saga's own times are the machine's: they are not where the database's clock was stepped then."""
    begun, ended = record.created_at.timestamp(), record.updated_at.timestamp()
    return not lines or (lines[0].at - begun < STEPPED and ended - lines[-1].at < STEPPED)


def _repeated(lines: Iterable[Effect], history: Iterable[HistoryEntry]) -> int:
    """How many times an action or a compensation began beyond the first.

    A "begin" does not say which way it goes; what begins after the saga first turned back is taken for a compensation.
    """
    back = min(
        (entry.at.timestamp() for entry in history if entry.what == HistoryKind.COMPENSATION_STARTED),
        default=float("inf"),
    )
    begun = Counter((line.step, line.at > back) for line in lines if line.event == "begin")
    return sum(n - 1 for n in begun.values())


def _suicides(record: SagaRecord, lines: Sequence[Effect]) -> Iterable[Blow]:
    """The kills that a saga's own input asked for: kill_before:1 and kill_after:1 of a step or its compensation."""
    for what, fault in json.loads(record.input)["faults"].items():
        if not fault.startswith("kill"):
            continue
        step, _, undo = what.partition(".")
        wanted = {"kill_before": "begin"}.get(fault.partition(":")[0], "undo" if undo else "do")
        first = next((line for line in lines if line.step == step and line.event == wanted and line.attempt == 1), None)
        if first is not None and not (undo and wanted == "begin"):
            yield Blow("a step kills its process", first.at, frozenset({first.pid}))


def _recovery(record: SagaRecord, lines: Sequence[Effect], blow: Blow) -> float | None:
    """Seconds from a blow to the next sign of life of a saga that it hit; None for one that it did not.

    A blow on a process hits the sagas that were not at their end and whose last line, at most 5 s old, that process
    had written; the sign of life must come from another process. A blow on a server hits every saga in flight. A sign
    of life is a line of the ledger (a begin, an effect) or the saga's end.
    """
    end = record.updated_at.timestamp()
    if not record.created_at.timestamp() < blow.at < end:
        return None
    before = [line for line in lines if line.at <= blow.at]
    after = [line.at for line in lines if line.at > blow.at and line.pid not in blow.pids]
    if blow.pids and not (before and before[-1].pid in blow.pids and blow.at - before[-1].at < AT_WORK):
        return None
    return min([*after, end]) - blow.at


def _story(record: SagaRecord, lines: Sequence[Effect], history: Sequence[HistoryEntry]) -> tuple[str, ...]:
    told = [
        (line.at, f"ledger   {line.event:5} {line.step} attempt {line.attempt} pid {line.pid} {line.key}")
        for line in lines
    ]
    told += [
        (entry.at.timestamp(), f"history  {entry.what}: {entry.step or ''} {entry.detail} (epoch {entry.epoch})")
        for entry in history
    ]
    steps = {name: str(step.status) for name, step in record.steps.items()}
    return (
        f"{record.status} {record.input} {steps}",
        *(f"{at - record.created_at.timestamp():8.3f}  {what}" for at, what in sorted(told)),
    )
