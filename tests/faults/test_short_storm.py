"""The storm of `python -m tests.faults.long`, in short: one of each blow, and the same judge."""

from tests.faults.long.storm import Settings, report, storm


def test_a_short_storm() -> None:
    plan = (
        (2.0, "child killed"),
        (4.0, "worker killed"),
        (6.0, "worker stopped"),
        (11.0, "flushed"),
        (13.0, "connections cut"),
    )
    outcome = storm(Settings(sagas=120, seconds=16, seed=1, workers=2, plan=plan, calm=60))
    print(report(outcome))
    assert outcome.ok, report(outcome)
    assert set(outcome.blows) == {kind for _, kind in plan}
