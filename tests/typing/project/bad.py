"""A user's mistakes. Each line with a comment is reported by both type checkers, and no other line is."""

from dataclasses import dataclass

from celery import Celery
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from sagas import Parallel, Pivot, Retry, Saga, Sagas, SqlStore, Step, StepContext
from sagas.contrib.flask import FlaskSagas, status_blueprint
from sagas.events import Service, event
from sagas.operations import Operations
from sagas.stores import Filter


@dataclass
class Order:
    sku: str


@dataclass
class Stay:
    nights: int


@event("orders.order.placed")
class OrderPlaced:
    order_id: str


def act(step: StepContext) -> None:
    print(step.attempts)  # wrong: it is attempt
    step.session.comit()  # wrong: no such method
    step.attempt = "1"  # wrong: a number


place_order = Saga("place_order", Step("a", act, compensation=None), input=Order)
place_order.start(Stay(2))  # wrong: another input
place_order.start("tea")  # wrong: no input at all
place_order.start(Order("tea"), "o-1")  # wrong: the key is given by name
place_order.start(Order("tea"), key=1)  # wrong: a key is text
place_order.start(Order("tea")).wait("10")  # wrong: seconds
print(place_order.start(Order("tea")).reslut)  # wrong: no such attribute
place_order.start(Order("tea"), session="db")  # wrong: not a session

Saga(1, Step("a", act, compensation=None))  # wrong: a name is text
Saga("x", act)  # wrong: a function is no step
Saga("x", Step("a", act, compensation=None), input=Order("tea"))  # wrong: the type, not a value
Step("a", "act", compensation=None)  # wrong: a name of a function
Step("a", act, compensation=None, retry=3)  # wrong: Retry(max_attempts=3)
Step("a", act, compensation=None, retrys=Retry())  # wrong: no such option
Pivot("a", act, queue=1)  # wrong: a queue is text
Parallel(act, act)  # wrong: functions are no steps

app = Celery("shop")
store = SqlStore("sqlite://")
sagas = Sagas(app, store, [place_order])
Sagas(app, "sqlite://")  # wrong: an URL is no store
Sagas(app, store, [act])  # wrong: a function is no saga
Sagas(app, store, laese=3)  # wrong: no such option
sagas.start(place_order, Stay(1))  # wrong: another input
sagas.store.selekt()  # wrong: no such method
Operations(sagas).act("retry", "id", actor="ann", reason="why")  # wrong: Action.RETRY
Filter(status="STUCK")  # wrong: statuses

OrderPlaced(1)  # wrong: by name, and text
OrderPlaced(order="1")  # wrong: no such field
OrderPlaced(order_id="1").order_id = "2"  # wrong: events do not change
Service("orders", publishes=OrderPlaced)  # wrong: a list of them

FlaskSagas(Flask("x"), [place_order])  # wrong: the db comes first
FlaskSagas(SQLAlchemy(), place_order)  # wrong: a list of them
status_blueprint()  # wrong: say who may see one
status_blueprint(lambda record: record.kee == "mine")  # wrong: no such field
