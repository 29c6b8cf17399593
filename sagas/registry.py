"""The definitions in the running code, and which of them a saga goes on with."""

from __future__ import annotations

from typing import TypeVar

from sagas.changes import ADVICE, describe_place, misfits
from sagas.checkpoints import FINISHED, Direction, SagaSummary, replace
from sagas.definition import Saga
from sagas.errors import DefinitionMissing, DuplicateName
from sagas.opening import place_of
from sagas.outline import Outline

__all__ = ["Definitions"]

RecordT = TypeVar("RecordT", bound=SagaSummary)


class Definitions(dict[tuple[str, int], Saga]):
    """The definitions of the running code, by name and version."""

    def add(self, saga: Saga) -> None:
        """Add a definition. Raises `DuplicateName` where there is another with its name and version."""
        if self.setdefault((saga.name, saga.version), saga) is not saga:
            raise DuplicateName(f"there is already a saga {saga.name!r} of version {saga.version}")

    def of(self, record: SagaSummary, step: str | None = None) -> Saga:
        """Return the definition that a saga goes on with. `record`: with its steps.

        Its nodes must be those of the saga up to where that stands; what comes after may differ. Raises
        `DefinitionMissing` where the running code has no such definition.
        """
        saga = self.get((record.name, record.version))
        if saga is None:
            raise DefinitionMissing(f"{_where(record, step)}: {self._absence(record.name)}")
        if saga.outline != record.outline and (found := misfits(record.outline, saga.outline, place_of(record))):
            was, are = Outline.parse(record.outline).describe(), Outline.parse(saga.outline).describe()
            raise DefinitionMissing(
                f"{_where(record, step)}: its steps were [{was}] and are [{are}] in the running code. It "
                f"{describe_place(record.outline, place_of(record))}, and up to there steps must not change: "
                f"{'; '.join(found)}. Until code with the old definition runs again, the saga waits; {ADVICE}"
            )
        return saga

    def versions(self, name: str) -> str:
        """Return the versions of a saga that the running code has, for people."""
        return ", ".join(str(version) for other, version in sorted(self) if other == name)

    def _absence(self, name: str) -> str:
        known = self.versions(name)
        has = f"only version {known} of it" if known else "no saga of this name"
        return f"the running code has {has}. Deploy code that still has this version; until then nothing of it is run"

    def foreseen(self, record: RecordT) -> RecordT:
        """Return a record with the outline by which the running code would go on with it, for tools that show it."""
        saga = self.get((record.name, record.version))
        on_its_way = record.direction is Direction.FORWARD and record.status not in FINISHED
        if saga is None or not on_its_way or misfits(record.outline, saga.outline, place_of(record)):
            return record
        return replace(record, outline=saga.outline)


def _where(record: SagaSummary, step: str | None) -> str:
    return f"saga {record.name!r} version {record.version} ({record.id})" + (f", step {step!r}" if step else "")
