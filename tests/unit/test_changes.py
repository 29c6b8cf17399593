"""Which changes of a definition a saga in flight can take, by where it stands."""

import pytest

from sagas import Saga, Step, Wait
from sagas.changes import Place, differences, misfits
from sagas.checkpoints import SagaStatus
from sagas.definition import Saga as Definition
from sagas.errors import DefinitionMissing
from sagas.testing import Inline

STORED = '[{"step": "a"}, {"wait": "w"}, {"step": "b"}]'


@pytest.mark.parametrize(
    ("running", "fits_up_to"),
    [
        ('[{"step": "a"}, {"wait": "w"}, {"step": "x"}, {"step": "b"}]', 1),
        ('[{"step": "a"}, {"wait": "w"}]', 1),
        ('[{"step": "a"}, {"step": "x"}, {"wait": "w"}, {"step": "b"}]', 0),
        ('[{"step": "a"}, {"wait": "w"}, {"pivot": "b"}]', 1),
        ('[{"step": "a", "compensation": false}, {"wait": "w"}, {"step": "b"}]', -1),
        ('[{"step": "x"}, {"step": "a"}, {"wait": "w"}, {"step": "b"}]', -1),
        ('[{"step": "a"}, {"wait": "w", "when": true}, {"step": "b"}]', 0),
    ],
)
def test_what_is_ahead_may_change(running: str, fits_up_to: int) -> None:
    assert [not misfits(STORED, running, Place(stage)) for stage in range(-1, 3)] == [
        stage <= fits_up_to for stage in range(-1, 3)
    ]


def test_a_wait_whose_signal_has_come_stays() -> None:
    early = Place(0, frozenset({"w"}))
    assert misfits(STORED, '[{"step": "a"}, {"step": "b"}]', early) == [
        "the signal of wait 'w' has come, and that is gone"
    ]
    assert not misfits(STORED, '[{"step": "a"}, {"step": "x"}, {"wait": "w"}]', early)


def test_an_each_is_told_by_its_options() -> None:
    each = '[{"each": "e", "over": "%s", "max_concurrency": %d, "allow_failures": 0}]'
    assert differences(each % ("lines", 5), each % ("items", 9)) == [
        "each 'e' went over 'lines' and goes over 'items'",
        "each 'e' had max_concurrency=5 and has max_concurrency=9",
    ]
    assert misfits(each % ("lines", 5), each % ("items", 5), Place(0))
    assert not misfits(each % ("lines", 5), each % ("lines", 9), Place(0))


def nothing() -> None: ...


def order(*names: str) -> Definition:
    nodes = {name: Step(name, nothing, compensation=None) for name in names}
    return Saga("order", *(Wait(name, bool, timeout=9e6) if name == "w" else nodes[name] for name in names))


def test_a_waiting_saga_goes_on_by_what_has_changed_ahead() -> None:
    before = Inline()
    handle = before.start(order("a", "w", "b"))
    after, changed = Inline(before.store), order("a", "w", "x", "b")
    after.orchestrator.register(changed)
    after.send_signal(handle.id, "w", True)
    record = before.store.load(handle.id)
    assert record.status is SagaStatus.COMPLETED
    assert list(record.steps) == ["a", "w", "x", "b"]
    assert record.outline == changed.outline


def test_a_change_where_the_saga_stands_is_refused() -> None:
    before = Inline()
    handle = before.start(order("a", "w", "b"))
    after = Inline(before.store)
    after.orchestrator.register(order("a", "x", "w", "b"))
    with pytest.raises(DefinitionMissing, match="stands at 'w'.*step 'x' is new"):
        after.send_signal(handle.id, "w", True)
