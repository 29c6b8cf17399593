"""Sagas in a Flask app: with its session, in its context, on real workers."""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from flask import Flask, current_app, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import String, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sagas import (
    ConfigurationError,
    Pivot,
    Retry,
    Saga,
    SagaHandle,
    SagaNotFound,
    SagaStatus,
    Schedule,
    SqlStore,
    Step,
    StepContext,
    TerminalError,
)
from sagas.cli.sagas import sagas as sagas_commands
from sagas.contrib.flask import FlaskSagas, current_sagas, status_blueprint
from sagas.errors import TransactionMisuse
from sagas.events import Events, Service
from sagas.events import event as event_type
from sagas.events.brokers.memory import MemoryBroker
from sagas.stores import EVERYTHING, schema
from sagas.testing import Inline, rehearse
from tests import forks
from tests.servers import Postgres, wait_for


class Base(DeclarativeBase): ...


db = SQLAlchemy(model_class=Base)


class Order(db.Model):  # type: ignore[name-defined, misc]
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str] = mapped_column(String(100))


gate = threading.Event()


def note(step: StepContext) -> str:
    """Write with db.session alone, and look at the app."""
    db.session.add(Order(note=f"{step.step} of {step.key} in {current_app.name}"))
    return current_app.name


def unnote(step: StepContext) -> None:
    db.session.execute(text("delete from orders where note like :like"), {"like": f"% of {step.key} %"})


def note_then_fail(step: StepContext) -> None:
    note(step)
    db.session.flush()
    if step.attempt == 1:
        raise RuntimeError("after its effect")


def noted(step: StepContext) -> bool:
    note(step)
    return True


def slow(step: StepContext) -> None:
    note(step)
    db.session.flush()
    gate.wait(10)


def both(step: StepContext) -> bool:
    return step.session is db.session()


def remove(step: StepContext) -> None:
    note(step)
    db.session.flush()
    db.session.remove()
    note(step)
    db.session.flush()


def commit(step: StepContext) -> None:
    note(step)
    db.session.commit()


def elsewhere(step: StepContext) -> None:
    """A context of the step's own has a session of the step's own, for it to commit."""
    with current_app.app_context():
        note(step)
        db.session.commit()
    raise TerminalError("after all")


def start_another(step: StepContext) -> str:
    return ORDER.start(key=f"{step.key}-child").id


QUICK = Retry(delay=0.01)
ORDER = Saga("order", Step("note", note, compensation=unnote), Pivot("pay", lambda: "paid"))
AGAIN = Saga("again", Step("note", note_then_fail, compensation=unnote, retry=QUICK))
ASKED = Saga("asked", Step("note", note_then_fail, compensation=unnote, retry=QUICK, when=noted))
SLOW = Saga("slow", Step("note", slow, compensation=unnote), Step("never", note, compensation=unnote))
BOTH = Saga("both", Step("both", both, compensation=None))
REMOVED = Saga("removed", Step("note", remove, compensation=None, retry=Retry(max_attempts=1)))
COMMITTED = Saga("committed", Step("note", commit, compensation=None, retry=Retry(max_attempts=1)))
ELSEWHERE = Saga("elsewhere", Step("note", elsewhere, compensation=None))
PARENT = Saga("parent", Step("child", start_another, compensation=None))
SAGAS = [ORDER, AGAIN, ASKED, SLOW, BOTH, REMOVED, COMMITTED, ELSEWHERE, PARENT]
flask_sagas = FlaskSagas(db, SAGAS)


def create_app(url: str, name: str = "shop", **settings: Any) -> Flask:
    app = Flask(name)
    app.config.update(
        SQLALCHEMY_DATABASE_URI=url,
        CELERY={
            "broker_url": "memory://",
            "broker_transport_options": {"polling_interval": 0.01},
            "task_default_queue": secrets.token_hex(8),  # the memory broker is one for the whole process
        },
        SAGAS_RECOVERY_INTERVAL=0.1,
        **settings,
    )
    db.init_app(app)
    sagas = flask_sagas.init_app(app)

    @app.post("/orders/<key>")
    def place(key: str) -> str:
        db.session.add(Order(note=key))
        handle = ORDER.start(key=key)
        if request.args.get("commit") != "no":
            db.session.commit()
        return handle.id

    app.register_blueprint(status_blueprint(lambda record: request.args.get("me") == record.key), url_prefix="/sagas")
    assert isinstance(sagas.store, SqlStore)
    sagas.store.upgrade()
    with app.app_context():
        db.create_all()
    return app


ON_ALL = pytest.mark.parametrize("url", ["sqlite", "postgres", "mariadb"], indirect=True)
ON_SQLITE = pytest.mark.parametrize("url", ["sqlite"], indirect=True)


@pytest.fixture(params=["postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'app.db'}"
    made: str = request.getfixturevalue(request.param).database()
    return made


@pytest.fixture
def app(url: str) -> Iterator[Flask]:
    options = {"isolation_level": "READ COMMITTED"} if url.startswith(("mysql", "mariadb")) else {}
    app = create_app(url, SQLALCHEMY_ENGINE_OPTIONS=options)
    gate.clear()
    yield app
    with app.app_context():
        db.engine.dispose()


@contextmanager
def worker(app: Flask) -> Iterator[None]:
    with start_worker(app.extensions["celery"], pool="threads", concurrency=3, perform_ping_check=False):
        yield


def notes(app: Flask) -> list[str]:
    with app.app_context():
        return sorted(db.session.scalars(select(Order.note)))


def stored(app: Flask) -> int:
    store = app.extensions["sagas"].store
    assert isinstance(store, SqlStore)
    return store.queries.count(EVERYTHING)


# -- starting -----------------------------------------------------------------------------------------------------


@ON_ALL
def test_a_saga_is_launched_when_the_request_commits(app: Flask) -> None:
    with worker(app):
        saga_id = app.test_client().post("/orders/o-1").text
        handle = app.extensions["sagas"].handle(saga_id)
        assert handle.wait(60) is SagaStatus.COMPLETED
    assert handle.result == {"note": "shop", "pay": "paid"}
    assert notes(app) == ["note of o-1 in shop", "o-1"]


@ON_ALL
def test_eagerly_it_runs_when_the_request_commits(app: Flask) -> None:
    """Each step in a context of its own, and nothing is left of them in the request's."""
    app.extensions["celery"].conf.task_always_eager = True
    saga_id = app.test_client().post("/orders/o-1").text
    handle = app.extensions["sagas"].handle(saga_id)
    assert handle.status is SagaStatus.COMPLETED
    assert handle.result == {"note": "shop", "pay": "paid"}
    assert notes(app) == ["note of o-1 in shop", "o-1"]
    with app.app_context():
        again = AGAIN.start(key="o-2")
        db.session.commit()
        assert again.status is SagaStatus.COMPLETED, "its second attempt"
        db.session.add(Order(note="after"))
        ORDER.start(key="o-3")
        db.session.rollback()
    assert notes(app) == ["note of o-1 in shop", "note of o-2 in shop", "o-1"]


def test_eagerly_a_flaw_is_raised_by_the_commit(app: Flask) -> None:
    app.extensions["celery"].conf.update(task_always_eager=True, task_eager_propagates=True)
    with app.app_context():
        handle = REMOVED.start(key="o-1")
        with pytest.raises(TransactionMisuse, match=r"calls session.close\(\)"):
            db.session.commit()
        assert handle.status is SagaStatus.COMPENSATED
        db.session.add(Order(note="after"))
        db.session.commit()
    assert notes(app) == ["after"]


def test_a_saga_is_rolled_back_with_its_caller(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    sent = watch(app)
    with app.app_context():
        db.session.add(Order(note="x"))
        handle = ORDER.start(key="x")
        assert sent == []
        db.session.rollback()
        with pytest.raises(SagaNotFound):
            _ = handle.status
    assert (stored(app), notes(app), sent) == (0, [], [])
    assert caplog.records == []  # it was meant


@ON_ALL
def test_a_savepoint_takes_its_sagas_along(app: Flask) -> None:
    sent = watch(app)
    with app.app_context():
        kept = ORDER.start(key="kept")
        with pytest.raises(RuntimeError), db.session.begin_nested():
            db.session.add(Order(note="inner"))
            ORDER.start(key="gone")
            raise RuntimeError
        with db.session.begin_nested():
            released = ORDER.start(key="released")
        assert sent == []
        db.session.commit()
        assert sorted(sent) == sorted([kept.id, released.id])
    assert stored(app) == 2
    with app.app_context(), db.session.begin_nested():
        ORDER.start(key="outer is rolled back")
    assert (stored(app), len(sent), notes(app)) == (2, 2, [])


def watch(app: Flask) -> list[str]:
    """Note which sagas are dispatched, instead of dispatching them."""
    sent: list[str] = []
    app.extensions["sagas"].canvas.dispatch_or_leave = lambda plan: sent.append(plan.saga_id)
    return sent


@ON_SQLITE
def test_a_forgotten_commit_is_told(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    saga_id = app.test_client().post("/orders/o-1?commit=no").text
    assert stored(app) == 0
    [told] = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert told.startswith(f"saga 'order' ({saga_id}) was started in db.session, which was never committed")


@ON_SQLITE
def test_a_request_that_fails_is_not_told_twice(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RuntimeError, match="its own"), app.app_context():
        ORDER.start(key="x")
        raise RuntimeError("its own")
    assert stored(app) == 0
    assert caplog.records == []


def test_at_once_where_that_is_wanted(app: Flask) -> None:
    with app.app_context():
        handle = current_sagas().start(ORDER, key="now")
        assert handle.status is SagaStatus.PENDING
        assert current_sagas().start_by_name("order", key="now") == handle


def test_a_session_of_the_callers(app: Flask) -> None:
    with app.app_context():
        with Session(db.engine) as session:
            given = ORDER.start(key="a", session=session)
            session.commit()
        assert given.status is SagaStatus.PENDING
        assert current_sagas().start(ORDER, key="b", session=db.session).id
        db.session.rollback()
    assert stored(app) == 1


@event_type("shop.order.noted")
class Noted:
    note: str


def test_events_in_its_session(tmp_path: Path) -> None:
    other = SQLAlchemy(model_class=Base)
    shop = Service("shop", publishes=[Noted])
    extension = FlaskSagas(other, events=lambda engine: Events([shop], engine=engine, broker=MemoryBroker()))
    app = Flask("noting")
    app.config |= {"SQLALCHEMY_DATABASE_URI": f"sqlite:///{tmp_path / 'e.db'}", "CELERY": {"broker_url": "memory://"}}
    other.init_app(app)
    sagas = extension.init_app(app)
    assert isinstance(sagas.store, SqlStore)
    sagas.store.upgrade()
    events = sagas.events
    assert events is not None
    with app.app_context():
        for end in (other.session.commit, other.session.rollback):
            events.publish(Noted(note="x"), other.session)
            end()
    assert events.outbox_unsent() == 1


# -- steps --------------------------------------------------------------------------------------------------------


def run(app: Flask, saga: Saga, key: str = "k") -> SagaHandle:
    with app.app_context():
        handle = saga.start(key=key)
        db.session.commit()
    handle.wait(60)
    return handle


@ON_ALL
def test_effect_and_checkpoint_commit_together(app: Flask) -> None:
    with worker(app):
        handle = run(app, AGAIN)
        assert handle.status is SagaStatus.COMPLETED, handle.error
        assert handle.record.step("note").attempt == 2
        assert notes(app) == ["note of k in shop"]


@ON_ALL
def test_a_condition_has_a_transaction_of_its_own(app: Flask) -> None:
    with worker(app):
        handle = run(app, ASKED)
        assert handle.status is SagaStatus.COMPLETED, handle.error
        assert handle.record.step("note").attempt == 2
        assert notes(app) == ["note of k in shop"] * 2, "the condition's, and that of the second attempt"


def test_a_late_effect_is_rolled_back(app: Flask) -> None:
    with worker(app):
        with app.app_context():
            handle = SLOW.start(key="k")
            db.session.commit()
        wait_for(lambda: handle.record.step("note").held, 10)
        handle.cancel()
        gate.set()
        assert handle.wait(60) is SagaStatus.COMPENSATED
    assert notes(app) == []


@ON_SQLITE
def test_the_session_of_a_step_is_the_apps(app: Flask) -> None:
    with worker(app):
        assert run(app, BOTH).result == {"both": True}


def test_no_session_is_left_behind(app: Flask) -> None:
    with worker(app):
        for number in range(3):
            assert run(app, ORDER, f"k{number}").status is SagaStatus.COMPLETED
            assert run(app, AGAIN, f"k{number}").status is SagaStatus.COMPLETED
            assert run(app, ASKED, f"k{number}").status is SagaStatus.COMPLETED
        with app.app_context():
            pool: Any = db.engine.pool
            wait_for(lambda: pool.checkedout() == 0, 10)
        assert len(db.session.registry.registry) == 0


def test_what_a_removed_session_would_lose_is_refused(app: Flask) -> None:
    with worker(app):
        handle = run(app, REMOVED)
    assert handle.status is SagaStatus.COMPENSATED
    assert "step 'note' calls session.close()" in (handle.error or "")
    assert notes(app) == []


def test_a_step_does_not_commit_the_apps_session(app: Flask) -> None:
    with worker(app):
        handle = run(app, COMMITTED)
    assert handle.status is SagaStatus.COMPENSATED
    assert "step 'note' calls session.commit()" in (handle.error or "")
    assert notes(app) == []


def test_a_context_within_a_step_is_its_own_affair(app: Flask) -> None:
    with worker(app):
        assert run(app, ELSEWHERE).status is SagaStatus.COMPENSATED
    assert notes(app) == ["note of k in shop"]


def test_a_step_starts_another_saga(app: Flask) -> None:
    with worker(app):
        handle = run(app, PARENT)
        assert handle.status is SagaStatus.COMPLETED
        child = app.extensions["sagas"].find("order", "k-child")
        assert child.id == handle.result["child"]
        assert child.wait(10) is SagaStatus.COMPLETED


@ON_SQLITE
def test_inline_and_rehearsed(app: Flask) -> None:
    store = app.extensions["sagas"].store
    with app.app_context():
        inline = Inline(store)
        inline.fail_at("pay", TerminalError("declined"))
        assert inline.start(ORDER).status is SagaStatus.COMPENSATED
        assert notes(app) == []
        assert inline.start(ORDER, key="fine").status is SagaStatus.COMPLETED
        assert notes(app) == ["note of fine in shop"]
        db.session.execute(text("delete from orders"))
        db.session.commit()

    def orders() -> list[str]:
        return ["order"] * len(notes(app))

    rehearsal = rehearse(ORDER, store=store, state=orders)
    assert rehearsal.ok, rehearsal.table()


# -- several apps -------------------------------------------------------------------------------------------------


def test_several_apps_with_the_same_sagas(tmp_path: Path) -> None:
    one, two = (create_app(f"sqlite:///{tmp_path / name}.db", name) for name in ("one", "two"))
    for app in (one, two):  # one after the other: Celery has no two workers in one process
        with worker(app):
            assert run(app, ORDER).result["note"] == app.name
    assert notes(one) == ["note of k in one"]
    assert notes(two) == ["note of k in two"]


def test_a_schedule_starts_its_saga(tmp_path: Path) -> None:
    app = Flask("nightly")
    app.config |= {
        "SQLALCHEMY_DATABASE_URI": f"sqlite:///{tmp_path / 'nightly.db'}",
        "CELERY": {"broker_url": "memory://"},
        "SAGAS_RECOVERY_INTERVAL": 0.1,
    }
    database = SQLAlchemy()
    database.init_app(app)
    nightly = Saga("nightly", Step("note", lambda: current_app.name, compensation=None))
    schedule = Schedule("every_night", nightly, cron="0 2 * * *")
    sagas = FlaskSagas(database, [nightly], schedules=[schedule]).init_app(app)
    sagas.store.upgrade()
    operated = app.test_cli_runner().invoke(args=["sagas", "schedules", "run", "every_night", "--reason", "try it"])
    assert operated.output.startswith("every_night: STARTED "), operated.output
    with worker(app):
        handle = sagas.handle(operated.output.split()[-1])
        assert handle.wait(20) is SagaStatus.COMPLETED
    assert handle.result["note"] == "nightly"
    sagas.store.engine.dispose()


def test_what_cannot_be(tmp_path: Path) -> None:
    def app(**settings: Any) -> Flask:
        app = Flask("x")
        url = f"sqlite:///{tmp_path / 'x.db'}"
        app.config.update({"SQLALCHEMY_DATABASE_URI": url, "CELERY": {"broker_url": "memory://"}, **settings})
        return app

    def made(app: Flask) -> Flask:
        db.init_app(app)
        flask_sagas.init_app(app)
        return app

    with pytest.raises(ConfigurationError, match=r"Call db.init_app\(app\) first"):
        flask_sagas.init_app(app())
    with pytest.raises(ConfigurationError, match="there is no setting SAGAS_LAESE. The settings are: .*SAGAS_LEASE"):
        made(app(SAGAS_LAESE=3))
    with pytest.raises(ConfigurationError, match="in-memory SQLite database: it has one connection"):
        made(app(SQLALCHEMY_DATABASE_URI="sqlite://"))
    with pytest.raises(ConfigurationError, match="sagas need READ COMMITTED"):
        made(app(SQLALCHEMY_DATABASE_URI="mysql+pymysql://x@127.0.0.1:1/x"))
    without = app()
    del without.config["CELERY"]
    with pytest.raises(ConfigurationError, match="has no Celery app. Set CELERY"):
        made(without)
    with pytest.raises(ConfigurationError, match="already has sagas"):
        flask_sagas.init_app(made(app()))
    with pytest.raises(ConfigurationError, match="no current app"):
        ORDER.start()
    with pytest.raises(ConfigurationError, match="'y' has no sagas"), Flask("y").app_context():
        ORDER.start()
    assert made(app(SAGAS_LEASE=7)).extensions["sagas"].orchestrator.timing.lease == 7


def test_a_celery_of_ones_own(tmp_path: Path) -> None:
    app = Flask("own")
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path / 'x.db'}"
    app.extensions["celery"] = own = Celery("own", broker="memory://", set_as_current=False)
    db.init_app(app)
    assert flask_sagas.init_app(app).app is own


# -- the status ---------------------------------------------------------------------------------------------------


@ON_SQLITE
def test_the_status_tells_no_more_than_it_may(app: Flask) -> None:
    client = app.test_client()
    saga_id = client.post("/orders/secret-key").text
    for refused in (f"/sagas/{saga_id}", f"/sagas/{saga_id}?me=other", "/sagas/none?me=secret-key"):
        answer = client.get(refused)
        assert (answer.status_code, answer.json) == (404, {"error": "there is no such saga"})
    answer = client.get(f"/sagas/{saga_id}?me=secret-key")
    assert answer.json == {
        "id": saga_id,
        "status": "PENDING",
        "steps": [{"name": "note", "status": "PENDING"}, {"name": "pay", "status": "PENDING"}],
    }
    assert (answer.headers["Retry-After"], answer.headers["Cache-Control"]) == ("1", "private, no-cache")
    again = client.get(f"/sagas/{saga_id}?me=secret-key", headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    app.extensions["sagas"].cancel(saga_id, "card 4111 declined")
    ended = client.get(f"/sagas/{saga_id}?me=secret-key", headers={"If-None-Match": answer.headers["ETag"]})
    assert ended.status_code == 200
    assert "4111" not in ended.text
    assert "Retry-After" not in ended.headers
    assert ended.json is not None
    assert ended.json["status"] == "COMPENSATED"


def test_the_status_of_what_cannot_be_asked_for(app: Flask) -> None:
    """On PostgreSQL a NUL in a question is an error of the database, which would be a 500."""
    client = app.test_client()
    for asked in ("%00", "a%00b", "%FF", "%ED%A0%80", "x" * 5_000, "%27--", "%F0%9F%92%A9"):
        assert client.get(f"/sagas/{asked}?me={asked}").status_code == 404, asked
    saga_id, store = client.post("/orders/deep").text, app.extensions["sagas"].store
    with store.engine.begin() as connection:
        connection.execute(update(schema.sagas).values(input="[" * 100_000))
    assert client.get(f"/sagas/{saga_id}?me=deep").status_code == 200
    with store.engine.begin() as connection:
        connection.execute(update(schema.sagas).values(input="~aesgcm:old:AAAA"))
    assert client.get(f"/sagas/{saga_id}?me=deep").status_code == 503


@ON_SQLITE
def test_the_error_is_shown_to_whom_it_may(app: Flask) -> None:
    app.register_blueprint(status_blueprint(lambda _: True, show_error=lambda record: record.key == "a"), name="open")
    client = app.test_client()
    for key, shown in (("a", "no money"), ("b", None)):
        saga_id = client.post(f"/orders/{key}").text
        app.extensions["sagas"].cancel(saga_id, "no money")
        answer = client.get(f"/{saga_id}").json
        assert answer is not None
        assert shown in answer.get("error", "") if shown else "error" not in answer


def test_a_database_that_is_away(tmp_path: Path) -> None:
    app = Flask("away")
    app.config |= {
        "SQLALCHEMY_DATABASE_URI": "postgresql+psycopg://x@127.0.0.1:1/x", "CELERY": {"broker_url": "memory://"},
    }  # fmt: skip
    db.init_app(app)
    flask_sagas.init_app(app)
    app.register_blueprint(status_blueprint(lambda _: True))
    answer = app.test_client().get("/x")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")


def test_commands_that_others_add_are_there_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(f"sqlite:///{tmp_path / 'x.db'}")

    @click.command()
    @click.pass_obj
    def which(obj: Any) -> None:
        click.echo(f"{obj.app.sagas!r} in {current_app.name}")

    monkeypatch.setitem(sagas_commands.commands, "which", which)
    told = app.test_cli_runner().invoke(args=["sagas", "which"])
    assert told.output.startswith("<Sagas of 'shop': order 1"), told.output
    assert told.output.endswith("in shop\n")


# -- processes ----------------------------------------------------------------------------------------------------

PROGRAM = """
    from flask import Flask, current_app
    from flask_sqlalchemy import SQLAlchemy
    from sqlalchemy import text
    from sagas import Saga, Step, StepContext
    from sagas.contrib.flask import FlaskSagas
    import os, time

    db = SQLAlchemy()

    def write(step: StepContext) -> str:
        db.session.execute(text("insert into effect values (:k)"), {"k": step.key})
        while step.attempt == 1 and not os.path.exists("go"):
            time.sleep(0.05)
        return current_app.name

    def unwrite() -> None: ...

    place_order = Saga("place_order", Step("write", write, compensation=unwrite), Step("more", lambda: 1, compensation=None))
    flask_sagas = FlaskSagas(db, [place_order])

    def create_app():
        app = Flask("program")
        app.config.from_prefixed_env()
        db.init_app(app)
        flask_sagas.init_app(app)
        return app
"""


def test_the_commands_and_a_killed_worker(postgres: Postgres, redis_server: Any, tmp_path: Path) -> None:
    """What a reader types: flask sagas db upgrade, celery -A make_celery worker; and what survives a kill -9."""
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    (tmp_path / "make_celery.py").write_text(
        "from program import create_app\nflask_app = create_app()\ncelery_app = flask_app.extensions['celery']\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
        "FLASK_APP": "program",
        "FLASK_SQLALCHEMY_DATABASE_URI": postgres.database(),
        "FLASK_CELERY": json.dumps(
            {
                "broker_url": redis_server.url,
                "broker_transport_options": {"socket_timeout": 30},
                "task_default_queue": "flask",
            }
        ),
        "FLASK_SAGAS_LEASE": "2",
        "FLASK_SAGAS_REDISPATCH_AFTER": "2",
        "FLASK_SAGAS_RECOVERY_INTERVAL": "0.2",
    }

    def flask(*words: str) -> str:
        command = [sys.executable, "-m", "flask", *words]
        done = forks.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    assert "is up to date" in flask("sagas", "db", "upgrade")
    assert "rehearse" in flask("sagas", "--help")

    def worker(name: str) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "make_celery",
            "worker",
            "-c",
            "1",
            "-n",
            f"{name}@flask",
            "-l",
            "INFO",
        ]
        with (tmp_path / f"{name}.log").open("wb") as log:
            process = forks.Popen(
                command, cwd=tmp_path, env=environment, stdout=log, stderr=log,
            )  # fmt: skip
        wait_for(lambda: b" ready." in (tmp_path / f"{name}.log").read_bytes(), 60)
        return process

    store = SqlStore(environment["FLASK_SQLALCHEMY_DATABASE_URI"])
    with store.engine.begin() as connection:
        connection.execute(text("create table effect (n varchar(100))"))
    first = worker("first")
    start = "from program import *; app = create_app(); app.app_context().push(); print(place_order.start(key='k').id); db.session.commit()"
    done = forks.run(
        [sys.executable, "-c", start], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    saga_id = done.stdout.strip()
    wait_for(lambda: store.load(saga_id).step("write").held, 30)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait(30)
    second = worker("second")
    try:
        wait_for(lambda: store.load(saga_id).status is SagaStatus.COMPLETED, 30)
    finally:
        os.killpg(second.pid, signal.SIGKILL)
        second.wait(30)
    record = store.load(saga_id)
    assert record.step("write").result == '"program"'
    assert record.step("write").lost == 1
    with store.engine.connect() as connection:
        assert connection.execute(text("select n from effect")).scalars().all() == ["k"]
    store.engine.dispose()
