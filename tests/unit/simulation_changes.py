"""The world of `simulation`, with two codes: each worker, each recovery and each caller has the one or the other.

The definitions have nodes in common up to somewhere, and differ from there. A saga may go on by either until it has
passed that point; then only by the one that brought it there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sagas import DefinitionMissing, Parallel, Saga, SagaRecord, Wait, transitions
from sagas.outline import Outline
from sagas.registry import Definitions
from tests.unit.simulation import TIMING, Actor, World, _step, play


def _pair(before: Sequence[Any], after: Sequence[Any]) -> tuple[Saga, Saga]:
    return Saga("changing", *before), Saga("changing", *after)


def _wait() -> Wait:
    return Wait("w", int, timeout=60)


#: What a definition was, and what it is.
PAIRS = [
    _pair([_step("a"), _wait(), _step("b"), _step("c")], [_step("a"), _wait(), _step("x"), _step("b")]),
    _pair([_step("a"), _step("b"), _step("c")], [_step("a"), _step("c"), _step("b")]),
    _pair(
        [_step("a"), Parallel(_step("l"), _step("r")), _step("z")],
        [_step("a"), Parallel(_step("l"), _step("r")), _step("y"), _step("z")],
    ),
    _pair([_step("a"), Parallel(_step("l"), _step("r"))], [_step("a"), _step("l"), _step("r"), _step("s")]),
    _pair([_step("a"), _step("b"), _wait()], [_step("a"), _step("n"), _step("b"), _wait()]),
]


class ChangingWorld(World):
    """The codes take turns by chance; `saga` is that of whoever acts at the moment."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.code_of: dict[int, Saga] = {}
        self.passed_on = 0
        self.order: list[str] = []  # forward effects, each the first time that it landed

    def choose(self) -> Saga:
        self.codes = self.dice.choice(PAIRS)
        return self.codes[0]

    @property
    def about(self) -> str:
        return f"codes {[code.outline for code in self.codes]}"

    def case(self, record: SagaRecord) -> transitions.Case:
        definitions = Definitions()
        definitions.add(self.saga)
        return transitions.Case.of(definitions.of(record), record, self.now, TIMING)

    def deliver(self, position: int, *, keep: bool = False) -> None:
        super().deliver(position, keep=keep)
        self.code_of[self.actors[-1].number] = self.dice.choice(self.codes)

    def advance(self, actor: Actor) -> None:
        self.saga = self.code_of[actor.number]
        try:
            super().advance(actor)
        except DefinitionMissing:
            self.actors.remove(actor)
            self.passed_on += 1
            if self.calm or self.dice.random() < 0.9:
                self.broker.append(actor.message)  # passed on

    def recover(self) -> None:
        self._as_anyone(super().recover)

    def cancel(self) -> None:
        self._as_anyone(super().cancel)

    def repair(self) -> None:
        self._as_anyone(super().repair)

    def signal(self) -> None:
        self._as_anyone(super().signal)

    def _as_anyone(self, act: Any) -> None:
        self.saga = self.dice.choice(self.codes)
        try:
            act()
        except DefinitionMissing:
            if self.calm:
                self.now += timedelta(seconds=1)

    def _act(self, name: str, direction: Any, *, late: bool) -> Any:
        before = self.landed.get(name, 0)
        outcome = super()._act(name, direction, late=late)
        if self.landed.get(name, 0) > before == 0:
            self.order.append(name)
            self._judge_order()
        return outcome

    def _judge_order(self) -> None:
        """What has been done is what one of the codes does, and no mixture of both."""
        for code in self.codes:
            stages = [{node.name for node in stage} - {"w"} for stage in Outline.parse(code.outline).stages]
            places = {name: number for number, stage in enumerate(stages) for name in stage}
            done = [places.get(name, -1) for name in self.order]
            if min(done) >= 0 and done == sorted(done) and all(s <= set(self.order) for s in stages[: done[-1]]):
                return
        raise self.wrong(f"no code does {self.order}")

    def judge(self) -> None:
        self.saga = next(code for code in self.codes if code.outline == self.record.outline)
        super().judge()


def simulate(seed: int) -> ChangingWorld:
    """Play one schedule. Raises `Violation` with its story."""
    return play(ChangingWorld(seed))


if __name__ == "__main__":
    print("\n".join(simulate(int(sys.argv[1])).story))
