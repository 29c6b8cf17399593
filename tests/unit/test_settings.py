"""What an app may be set to, and what is refused with a word before anything is lost."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, Task
from celery.concurrency.prefork import TaskPool as Prefork
from celery.concurrency.thread import TaskPool as Threads
from kombu.entity import Queue

from sagas import ConfigurationError, Parallel, Saga, SagaNotFound, Sagas, SqlStore, Step
from sagas import canvas as canvas_module
from sagas.worker import recovery
from sagas.worker.recovery import refuse_memory

Make = Callable[..., Sagas]


@pytest.fixture
def make(store: SqlStore) -> Make:
    def make(*definitions: Saga, task_cls: Any = None, **conf: Any) -> Sagas:
        app = Celery("set", broker="memory://", set_as_current=False, task_cls=task_cls)
        app.conf.update(conf)
        return Sagas(app, store, definitions)

    return make


def saga(name: str = "s", **options: Any) -> Saga:
    return Saga(
        name, Step("a", lambda: 1, compensation=lambda: None, **options), Step("b", lambda: 2, compensation=None)
    )


# -- refused ------------------------------------------------------------------------------------------------------

REFUSED = [
    ({"accept_content": ["json", "pickle"]}, "accept_content has 'pickle'"),
    ({"accept_content": ["application/x-python-serialize", "json"]}, "accept_content has 'application/x-python"),
    ({"accept_content": ["yaml"]}, r"accept_content is \['yaml'\]: workers would refuse"),
    ({"accept_content": []}, r"accept_content is \[\]"),
    ({"task_protocol": 1}, "task_protocol is 1, which carries no chains"),
]


@pytest.mark.parametrize(("conf", "says"), REFUSED)
def test_at_once(make: Make, conf: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        make(saga(), **conf)


@pytest.mark.parametrize(("conf", "says"), REFUSED)
def test_what_was_set_later_is_refused_by_the_first_start_and_by_workers(
    make: Make, store: SqlStore, conf: dict[str, Any], says: str
) -> None:
    made = make(one := saga())
    made.app.conf.update(conf)
    with pytest.raises(ConfigurationError, match=says):
        one.start(key="1")
    with pytest.raises(SagaNotFound):
        store.find("s", "1")
    with pytest.raises(ConfigurationError, match=says):
        made.check()


@pytest.mark.parametrize("accepted", [["json"], ["application/json"], ["json", "msgpack"], None])
def test_what_has_json_is_not(make: Make, accepted: Any) -> None:
    make(saga(), accept_content=accepted).check()


UNDECLARED: list[tuple[Saga, dict[str, Any], str]] = [
    (saga(queue="bank"), {}, "saga 's', step 'a': .*'bank'.*Step(queue=...) names it".replace("(", r"\(").replace(")", r"\)")),
    (saga(), {"task_routes": {"s.b": "bank"}}, "saga 's', step 'b': .*'bank'.*task_routes send s.b there"),
    (saga(), {"task_routes": {"s.a.compensate": {"queue": "bank"}}}, "saga 's', step 'a': .*task_routes send s.a.compensate there"),
    (saga(), {"task_routes": {"sagas.fail": "bank"}}, "saga 's', step 'a': .*task_routes send sagas.fail there"),
    (
        Saga("p", Parallel(Step("l", lambda: 1, compensation=None), Step("r", lambda: 1, compensation=None))),
        {"task_routes": {"sagas.join": "bank"}},
        "saga 'p', step 'l': .*task_routes send sagas.join there",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("one", "conf", "says"), UNDECLARED)
def test_a_queue_that_nobody_declared(store: SqlStore, one: Saga, conf: dict[str, Any], says: str) -> None:
    strict = {"task_create_missing_queues": False, "task_queues": [Queue("celery")]}
    one._starter = None
    app = Celery("set", broker="memory://", set_as_current=False)
    app.conf.update({**strict, **conf})
    made = Sagas(app, store, [one])
    with pytest.raises(ConfigurationError, match=says):
        one.start(key="1")
    with pytest.raises(SagaNotFound):
        store.find(one.name, "1")
    with pytest.raises(ConfigurationError, match=says):
        made.check()


def test_one_that_was_declared(make: Make) -> None:
    strict = {"task_create_missing_queues": False, "task_queues": [Queue("celery"), Queue("bank")]}
    one = saga(queue="bank")
    make(one, **strict).check()
    one.start()


def test_a_saga_of_another_app(make: Make, store: SqlStore) -> None:
    made, other = make(saga()), saga("other")
    with pytest.raises(ConfigurationError, match="saga 'other' is not registered with this app"):
        made.start(other, key="1")
    with pytest.raises(SagaNotFound):
        store.find("other", "1")


@pytest.mark.parametrize(("broker", "pool", "refused"), [
    ("memory://", Prefork, True), ("memory://", Threads, False), ("redis://127.0.0.1:1/0", Prefork, False),
])  # fmt: skip
def test_memory_and_several_processes(broker: str, pool: type, refused: bool) -> None:
    worker = SimpleNamespace(app=Celery("set", broker=broker, set_as_current=False), pool_cls=pool)
    if refused:
        with pytest.raises(ConfigurationError, match="memory:// works inside one process"):
            refuse_memory(worker)
    else:
        refuse_memory(worker)


@pytest.mark.parametrize("eager", [True, False])
def test_a_worker_says_that_nothing_will_come_to_it(make: Make, monkeypatch: pytest.MonkeyPatch, eager: bool) -> None:
    said: list[str] = []
    monkeypatch.setattr(recovery.logger, "warning", lambda text, *_: said.append(text))
    recovery.warn_of_eagerness(make(saga(), task_always_eager=eager).app)
    assert ["task_always_eager is on" in text for text in said] == [True] * eager


# -- tasks --------------------------------------------------------------------------------------------------------


class Helpful(Task):  # type: ignore[misc]
    """A base class as applications have them for their own tasks."""

    autoretry_for = (Exception,)
    retry_backoff = True
    max_retries = 7
    acks_late = False
    ignore_result = False
    reject_on_worker_lost = False
    rate_limit = "9/m"
    time_limit = 5
    expires = 3
    typing = False
    serializer = "pickle"
    throws = ()
    store_errors_even_if_ignored = True


ALL = {
    "acks_late": False, "acks_on_failure_or_timeout": False, "reject_on_worker_lost": False, "max_retries": 0,
    "expires": 1, "ignore_result": False, "serializer": "yaml", "autoretry_for": (Exception,), "rate_limit": "9/m",
}  # fmt: skip

SETTINGS = {
    "task_acks_late": False, "task_reject_on_worker_lost": False, "task_acks_on_failure_or_timeout": False,
    "task_ignore_result": False, "task_store_errors_even_if_ignored": True, "task_serializer": "yaml",
    "task_default_rate_limit": "9/m", "task_time_limit": 5,
}  # fmt: skip


@pytest.mark.parametrize(
    "options", [{"task_cls": Helpful}, {"task_annotations": {"*": ALL}}, SETTINGS], ids=["base", "annotations", "conf"]
)
def test_nothing_changes_what_tasks_of_sagas_are(make: Make, options: dict[str, Any]) -> None:
    made = make(saga(), **options)
    for name in ("s.a", "s.a.compensate", "s.b", "sagas.join", "sagas.fail"):
        task = made.app.tasks[name]
        assert {option: getattr(task, option) for option in canvas_module._FIXED} == dict(canvas_module._FIXED)
        assert not hasattr(task, "_orig_run"), "it would be retried"
    assert made.app.tasks["s.a"].rate_limit == "9/m", "that is what somebody asked for"
    for helper in ("sagas.join", "sagas.fail"):
        assert (made.app.tasks[helper].rate_limit, made.app.tasks[helper].time_limit) == (None, None)


def test_other_tasks_of_the_app_stay_as_they_are(make: Make) -> None:
    made = make(saga(), task_cls=Helpful, task_annotations={"*": {"acks_late": False}})

    @made.app.task  # type: ignore[untyped-decorator]
    def plain() -> None: ...

    assert plain.max_retries == 7
    assert hasattr(plain, "_orig_run")
    assert plain.acks_late is False


def test_what_is_left_out_is_said(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(canvas_module.logger, "warning", lambda text, *about: said.append(text % about))
    make(saga(), task_annotations={"s.a": {"acks_late": False}})
    assert said == ["task s.a: acks_late=False of task_annotations is left out: sagas need True"]


def test_the_queue_of_a_base_class_counts(make: Make) -> None:
    class Routed(Task):  # type: ignore[misc]
        queue = "bank"

    made = make(saga(), task_cls=Routed)
    assert made.canvas.queue_of("s.a") == "bank"
    assert made.canvas.queue_of("s.a", "steps") == "steps"
