"""Applications that have Alembic migrations of their own, by Flask-Migrate or by themselves: they keep off our tables."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import alembic
import pytest
from sqlalchemy import create_engine, inspect

from sagas.stores import SqlStore
from sagas.stores.migrate import VERSION_TABLE, current, head
from sagas.stores.schema import metadata
from tests.rig import ROOT
from tests.servers import Postgres

TEMPLATE = Path(alembic.__file__).parent / "templates" / "generic"
OURS = {*metadata.tables, VERSION_TABLE}

SHOP = """
import os

from flask import Flask
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sagas import Saga, Step
from sagas.contrib.flask import FlaskSagas
from sagas.stores.schema import sagas as saga_table


class Base(DeclarativeBase): ...


db = SQLAlchemy(model_class=Base)


class Order(db.Model):
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    saga: Mapped[str | None] = mapped_column(ForeignKey(saga_table.c.id))


if "LATER" in os.environ:
    Order.note = mapped_column(String(20), nullable=True)

if "SHOP_SQLALCHEMY_BINDS" in os.environ:

    class Visit(db.Model):
        __bind_key__ = "visits"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Snapshot(db.Model):
        "It has the name of one of ours, in a database that holds no sagas."
        __bind_key__ = "visits"
        __tablename__ = "events_snapshot"
        id: Mapped[int] = mapped_column(primary_key=True)

    if "LATER" in os.environ:
        Snapshot.note = mapped_column(String(20), nullable=True)


def mine(thing, name, kind, reflected, compare_to):
    return name != "somebody_elses"


def create_app():
    app = Flask(__name__)
    app.config.from_mapping(CELERY={"broker_url": "memory://"})
    app.config.from_prefixed_env("SHOP")
    db.init_app(app)
    greet = Saga("greet", Step("hello", lambda: "hi", compensation=None))
    migrate = Migrate(include_object=mine)
    if "MIGRATE_LAST" not in os.environ:
        migrate.init_app(app, db)
    FlaskSagas(db, [greet]).init_app(app)
    if "MIGRATE_LAST" in os.environ:
        migrate.init_app(app, db)
    return app
"""

# Each command line as `flask` runs it, without the seconds that a process for each would take.
FLASK = """
import json, sys
from shop import create_app
for words in json.loads(sys.argv[1]):
    done = create_app().test_cli_runner().invoke(args=words)
    print("$", *words, "->", done.exit_code, flush=True)
    print(done.output, flush=True)
    if done.exit_code:
        raise SystemExit(1)
"""


def flask(folder: Path, *commands: str, **environment: str) -> str:
    (folder / "shop.py").write_text(SHOP)
    return run(folder, "-c", FLASK, json.dumps([command.split() for command in commands]), **environment)


def run(folder: Path, *words: str, **environment: str) -> str:
    mine = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), **environment}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=mine, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def tables(url: str) -> set[str]:
    engine = create_engine(url)
    try:
        return set(inspect(engine).get_table_names())
    finally:
        engine.dispose()


def scripts(folder: Path) -> str:
    return "\n".join(file.read_text() for file in sorted(folder.glob("migrations/versions/*.py")))


def assert_not_of_ours(folder: Path, said: str) -> None:
    for operation in ("drop", "create", "alter", "batch_alter"):
        for name in (*metadata.tables, VERSION_TABLE):
            if name != "events_snapshot":
                assert f"{operation}_table('{name}'" not in scripts(folder)
    assert "Detected removed" not in said


def test_flask_migrate(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    environment = {"SHOP_SQLALCHEMY_DATABASE_URI": url}
    said = flask(
        tmp_path, "sagas db upgrade", "db init", "db migrate", "db upgrade", "db check", "db migrate", **environment
    )
    assert_not_of_ours(tmp_path, said)
    assert len(list(tmp_path.glob("migrations/versions/*.py"))) == 1  # the second found no change
    assert tables(url) == OURS | {"order", "alembic_version"}
    again = ("db migrate", "db upgrade", "db check", "db downgrade", "db downgrade", "sagas db upgrade")
    said = flask(tmp_path, *again, **environment, LATER="1")
    assert_not_of_ours(tmp_path, said)
    assert "batch_op.add_column(sa.Column('note'" in scripts(tmp_path)
    assert tables(url) == OURS | {"alembic_version"}


def test_flask_migrate_with_two_binds(tmp_path: Path, postgres: Postgres) -> None:
    """And with the extensions in the other order."""
    url, visits = postgres.database(), postgres.database()
    environment = {
        "SHOP_SQLALCHEMY_DATABASE_URI": url,
        "SHOP_SQLALCHEMY_BINDS": json.dumps({"visits": visits}),
        "MIGRATE_LAST": "1",
    }
    said = flask(
        tmp_path,
        *("sagas db upgrade", "db init --multidb", "db migrate", "db upgrade", "db check", "db migrate"),
        **environment,
    )
    assert_not_of_ours(tmp_path, said)
    assert len(list(tmp_path.glob("migrations/versions/*.py"))) == 1
    assert tables(url) == OURS | {"order", "alembic_version"}
    assert tables(visits) == {"visit", "events_snapshot", "alembic_version"}
    again = ("db migrate", "db upgrade", "db check", "db downgrade", "db downgrade", "sagas db upgrade")
    assert_not_of_ours(tmp_path, flask(tmp_path, *again, **environment, LATER="1"))
    # Theirs is compared, whatever its name.
    assert "batch_alter_table('events_snapshot'" in scripts(tmp_path)
    assert tables(url) == OURS | {"alembic_version"}
    assert tables(visits) == {"alembic_version"}


MODELS = """
from sqlalchemy import Column, Integer, MetaData, String, Table

metadata = MetaData()
Table("orders", metadata, Column("id", Integer, primary_key=True))
Table("sagas_saga", metadata, Column("id", String(40), primary_key=True))  # for foreign keys to it
"""
ENV = """
from alembic import context
from sqlalchemy import create_engine
{imports}
import models

engine = create_engine(context.config.get_main_option("sqlalchemy.url"))
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=models.metadata{argument})
    with context.begin_transaction():
        context.run_migrations()
"""
ALEMBIC = """
import json, sys
from alembic.config import main
for command in sys.argv[1:]:
    main(argv=command.split())
"""


@pytest.mark.parametrize(
    ("imports", "argument"),
    [
        ("from sagas.stores.autogenerate import include_object", ", include_object=include_object"),
        ("import sagas", ""),
    ],
    ids=["the documented line", "the library is imported"],
)
def test_alembic(tmp_path: Path, imports: str, argument: str) -> None:
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    store = SqlStore(url)
    store.upgrade()
    folder = tmp_path / "migrations"
    (folder / "versions").mkdir(parents=True)
    shutil.copy(TEMPLATE / "script.py.mako", folder)
    (folder / "env.py").write_text(ENV.format(imports=imports, argument=argument))
    (tmp_path / "models.py").write_text(MODELS)
    (tmp_path / "alembic.ini").write_text(f"[alembic]\nscript_location = migrations\nsqlalchemy.url = {url}\n")
    first = ("revision --autogenerate -m one", "upgrade head", "check", "revision --autogenerate -m two")
    said = run(tmp_path, "-c", ALEMBIC, *first, "downgrade base")
    assert_not_of_ours(tmp_path, said)
    assert scripts(tmp_path).count("op.create_table(") == 1
    assert tables(url) == OURS | {"alembic_version"}
    assert current(store.engine) == head()
    store.engine.dispose()
