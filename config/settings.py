"""The settings from environment variables. Nothing else in the shop reads the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

__all__ = ["Settings", "SettingsError"]


class SettingsError(ValueError):
    """An environment variable has an invalid value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The shop's settings. Each field is an environment variable; see `from_env` for the names."""

    broker_url: str
    broker_folder: Path | None
    database_url: str
    lease: float
    redispatch_after: float
    recovery_interval: float

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Read the settings. Raises `SettingsError`, naming the variable, for an invalid value."""
        broker_url = _url(environ, "BROKER_URL", "redis://127.0.0.1:6379/0")
        folder = environ.get("BROKER_FOLDER")
        if broker_url.startswith("filesystem:") and not folder:
            raise SettingsError("BROKER_FOLDER is not set, but BROKER_URL=filesystem:// needs a folder for messages")
        return cls(
            broker_url=broker_url,
            broker_folder=Path(folder) if folder else None,
            database_url=_url(environ, "SAGAS_DATABASE_URL", "postgresql+psycopg://sagas:sagas@127.0.0.1:5432/sagas"),
            # Shorter than any step's timeout, to distinguish a killed worker from a participant that does not answer.
            lease=_seconds(environ, "SAGAS_LEASE", 8),
            redispatch_after=_seconds(environ, "SAGAS_REDISPATCH_AFTER", 30),
            recovery_interval=_seconds(environ, "SAGAS_RECOVERY_INTERVAL", 1),
        )

    @property
    def broker_transport_options(self) -> dict[str, Any]:
        """Options for the broker's transport."""
        match urlsplit(self.broker_url).scheme:
            case "filesystem":
                assert self.broker_folder is not None
                messages = self.broker_folder / "messages"
                # The worker reads messages from where others write them; the folder has to exist first.
                messages.mkdir(parents=True, exist_ok=True)
                return {
                    "data_folder_in": str(messages),
                    "data_folder_out": str(messages),
                    "control_folder": str(self.broker_folder / "control"),
                    "polling_interval": 0.02,
                }
            case "redis" | "rediss":
                # Redis redelivers messages that are not acknowledged in this time. It must be longer than the longest
                # step, and may be much longer: recovery does not wait for it.
                # Without `socket_timeout`, publishing on a connection that hangs never ends.
                return {"visibility_timeout": 600, "socket_timeout": 30}
            case _:
                return {}


def _url(environ: Mapping[str, str], variable: str, default: str) -> str:
    value = environ.get(variable, default)
    if "://" not in value:
        # Without the value: it may hold a password.
        raise SettingsError(f"{variable} is not a URL. A URL looks like {default}")
    return value


def _seconds(environ: Mapping[str, str], variable: str, default: float) -> float:
    value = environ.get(variable, str(default))
    try:
        seconds = float(value)
    except ValueError:
        raise SettingsError(f"{variable}={value!r} is not a number of seconds") from None
    if not 0 < seconds < float("inf"):
        raise SettingsError(f"{variable}={value!r} must be more than zero seconds")
    return seconds
