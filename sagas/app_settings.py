"""What sagas need of the settings of a Celery app."""

from __future__ import annotations

from celery import Celery

from sagas.errors import ConfigurationError

__all__ = ["check_app"]


def check_app(app: Celery) -> None:
    """Refuse an app that could not carry sagas, or whose messages could run code."""
    conf = app.conf
    accepted = conf.accept_content
    if accepted is not None:
        if unsafe := [kind for kind in accepted if kind in ("pickle", "application/x-python-serialize")]:
            raise ConfigurationError(
                f"accept_content has {unsafe[0]!r}; sagas travel as JSON, set accept_content = ['json']"
            )
        if not {"json", "application/json"} & set(accepted):
            raise ConfigurationError(
                f"accept_content is {sorted(accepted)}: workers would refuse the messages of sagas, which are JSON; "
                "add 'json' to it"
            )
    if conf.task_protocol != 2:
        raise ConfigurationError(
            f"task_protocol is {conf.task_protocol}, which carries no chains, so that each step of a saga would wait "
            "for recovery; set task_protocol = 2"
        )
