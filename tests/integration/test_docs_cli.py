"""The commands of docs/cli.md do something on the shop, as they stand there."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

from sagas.cli.sagas import sagas
from tests import forks
from tests.rig import ROOT

PAGE = (ROOT / "docs" / "cli.md").read_text()
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]

#: Run in a process of its own, because the shop reads the environment when it is imported. Each command finds the same
#: database: two orders that are stuck, one that has not begun, and an
#: expense that waits for approval.
SCENE = """
import json, pathlib, shlex, shutil, sys
import click
from click.testing import CliRunner
from decimal import Decimal
from types import SimpleNamespace

from config.celery import app, store
from sagas.cli.sagas import sagas
from sagas.testing import Inline
from tasks import tables
from tasks.expenses import Expense, pay_expense
from tasks.orders import PlaceOrder, place_order

def order(number):
    given = {"order_id": f"o-{number}", "customer": "ann", "sku": "tea", "quantity": 1, "amount": "4.50", "address": "here"}
    pathlib.Path("order.json").write_text(json.dumps(given))
    return given

store.upgrade()
tables.create_all(store.engine)
with tables.ShopSession.begin() as session:
    session.add(tables.Stock(sku="tea", available=10))
inline = Inline(store)
for number in (7, 8):
    inline.fail_at("capture_payment", RuntimeError("the bank is away"), times=None)
    inline.start(place_order, order(number), key=f"order-{number}")
place_order.start(order(9), key="order-9")
Inline(store).start(
    pay_expense, Expense(expense_id="e-7", employee="ann", amount=Decimal(900), purpose="a chair"), key="expense-7"
)
order(10)
store.engine.dispose()
shutil.copy("shop.db", "kept.db")

celery = click.Group("celery", commands={"sagas": sagas})
ends = []
for line in json.loads(sys.argv[1]):
    store.engine.dispose()
    for file in pathlib.Path().glob("shop.db*"):
        file.unlink()
    shutil.copy("kept.db", "shop.db")
    line = line.partition(" | ")[0].partition(" > ")[0]
    words = shlex.split(line)
    assert words[:3] == ["celery", "-A", "config"], line
    if "watch" in words:
        words += ["--timeout", "0s"]
    done = CliRunner().invoke(celery, words[3:], obj=SimpleNamespace(app=app))
    ends.append([line, done.exit_code, done.stdout, done.stderr])
print(json.dumps(ends))
"""


def test_the_commands_of_the_page_run(tmp_path: Path) -> None:
    run = forks.run(
        [sys.executable, "-c", SCENE, json.dumps(COMMANDS)],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "BROKER_URL": "memory://",
            "SAGAS_DATABASE_URL": "sqlite:///shop.db",
        },
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert run.returncode == 0, run.stderr
    ends = json.loads(run.stdout.splitlines()[-1])
    assert len(ends) == len(COMMANDS) > 20
    for line, code, out, err in ends:
        assert code == (3 if "watch order-7" in line else 0), (line, out, err)
        # Each finds something, but for who asks what nobody has done yet, or for what is in another state.
        assert out or "audit" in line or "schedules ticks" in line or "--idle-for" in line, (line, err)


def test_every_command_is_on_the_page() -> None:
    missing = [name for name in sagas.commands if not re.search(rf"sagas {name}\b", PAGE)]
    # The rest is for developers and deployments.
    assert set(missing) <= {"events", "rehearse", "db", "purge", "doctor", "check-deploy", "flower", "graph"}
