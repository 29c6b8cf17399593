"""Sagas that write what they did into the database that holds them, and fail as their input asks."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import TypedDict

from django.conf import settings
from django.db import transaction

from sagas import Pivot, Retry, Saga, Schedule, Step, StepContext, TerminalError, Wait
from sagas.contrib.django import atomic
from tests.django_project.orders.models import Effect, Order

QUICK = Retry(delay=0.05, jitter=0)


class Placed(TypedDict):
    number: str
    card: str
    fault: str


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fault(fault: str, step: StepContext) -> None:
    if step.attempt > 1 and fault != "declined":
        return
    match fault:
        case "kill":
            _die()
        case "kill_after_commit":
            transaction.on_commit(_die)
        case "raise":
            raise RuntimeError("after its effect")
        case "declined":
            raise TerminalError("card declined")
        case "hook":
            transaction.on_commit(lambda: 1 / 0)
        case "slow":
            while not (Path(settings.FOLDER) / f"go-{step.key}").exists():
                time.sleep(0.02)


def reserve(number: str, fault: str, step: StepContext) -> str:
    with atomic(step):
        Effect.objects.create(what=f"reserve {number}")
    _fault(fault if fault != "declined" else "", step)
    return "reserved"


def release(number: str, step: StepContext) -> None:
    with atomic(step):
        Effect.objects.filter(what=f"reserve {number}").delete()


def careless(number: str, fault: str, step: StepContext) -> None:
    with transaction.atomic():
        Effect.objects.create(what=f"careless {number}")
    _fault(fault, step)


def charge(number: str, card: str, fault: str, step: StepContext) -> str:
    if fault == "quotes_card":
        raise RuntimeError(f"the bank says: {{'card': {card!r}}} is unknown")
    if fault == "declined":
        raise TerminalError("card declined")
    if fault == "broken_charge":
        step.progress(1200, 3000)
        raise RuntimeError("the bank is away")
    return f"charged {number}"


def confirm(number: str, step: StepContext) -> None:
    with atomic(step):
        Order.objects.filter(number=number).update(number=f"{number} confirmed")


place_order = Saga(
    "place_order",
    Step("reserve", reserve, compensation=release, retry=QUICK),
    Pivot("charge", charge, retry=Retry(max_attempts=2, delay=0.05, jitter=0)),
    Step("confirm", confirm),
    input=Placed,
)


@dataclass
class Decision:
    approved: bool
    amount: Decimal
    day: date | None = None
    comment: str = ""


class Refund(TypedDict):
    number: str
    card: str


def ask_bank(number: str, step: StepContext) -> None:
    with atomic(step):
        Effect.objects.create(what=f"asked {number} {step.token}")


def recall(number: str, result: str | None, step: StepContext) -> None:
    with atomic(step):
        Effect.objects.create(what=f"recalled {number} {result}")


#: Asks a person, and then another system.
refund_order = Saga(
    "refund_order",
    Wait("approval", Decision, approvers=("finance", "board"), timeout=600),
    Step("pay_back", ask_bank, compensation=recall, deferred=True, deadline=600, result=str, retry=QUICK),
    input=Refund,
)
careless_order = Saga("careless_order", Step("careless", careless, compensation=None, retry=QUICK), input=Placed)
nightly_order = Schedule(
    "nightly_order",
    place_order,
    cron="0 2 * * *",
    timezone="Europe/Vienna",
    input=lambda tick: {"number": f"{tick:%Y-%m-%d}", "card": "4111", "fault": ""},
)
