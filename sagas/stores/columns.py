"""The types of columns that are the same on every database. The tables and the migrations share them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, Dialect, Integer, String, Text
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeDecorator

from sagas.causes import Cause

__all__ = ["MYSQL_OPTIONS", "CauseText", "LongText", "Serial", "UtcDateTime", "exact"]

#: MySQL's TEXT ends at 64 kB, silently in some modes.
LongText = Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")

#: SQLite counts up by itself only on an INTEGER key.
Serial = BigInteger().with_variant(Integer(), "sqlite")


def exact(length: int) -> String:
    """Return a string type that tells "A" from "a"; MySQL's own do not, and would take two keys for one."""
    return String(length).with_variant(
        mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
    )


class UtcDateTime(TypeDecorator[datetime]):
    """A moment, kept in UTC to the microsecond. What goes in must have a time zone; what comes out has UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        if dialect.name in ("mysql", "mariadb"):
            return dialect.type_descriptor(mysql.DATETIME(fsp=6))
        return dialect.type_descriptor(DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone")
        value = value.astimezone(UTC)
        return value if dialect.name == "postgresql" else value.replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class CauseText(TypeDecorator[Cause]):
    """A cause, kept as JSON."""

    impl = LongText
    cache_ok = True

    def process_bind_param(self, value: Cause | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else value.encode()

    def process_result_value(self, value: str | None, dialect: Dialect) -> Cause | None:  # noqa: ARG002
        return None if value is None else Cause.decode(value)


#: MySQL's default character set may be one that cannot hold every text.
MYSQL_OPTIONS: Any = {"mysql_charset": "utf8mb4", "mariadb_charset": "utf8mb4"}
