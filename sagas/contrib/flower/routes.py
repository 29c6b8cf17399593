"""The URLs and their handlers. All are below Flower's `--url-prefix`, if it has one.

Metrics are not here: Flower's own /metrics serves prometheus_client's registry. Metrics of sagas that are registered
there are served, too.
"""

from __future__ import annotations

from tornado.routing import URLSpec
from tornado.web import StaticFileHandler

from sagas.contrib.flower import api, approvals, pages, schedules
from sagas.contrib.flower.handler import STATIC
from sagas.operator_actions import Action

__all__ = ["routes"]

_ID = r"([0-9A-Za-z-]{1,36})"
_SCHEDULE = r"([A-Za-z_][A-Za-z0-9_.-]{0,99})"
_ACTION = f"({'|'.join(Action)})"
_WAIT = r"([^/]{1,300})"


def routes(prefix: str | None) -> list[URLSpec]:
    """Return the handlers of all pages, each below Flower's prefix."""
    before = f"/{prefix.strip('/')}" if prefix else ""
    return [
        URLSpec(rf"{before}/sagas", pages.Sagas, name="sagas"),
        URLSpec(rf"{before}/sagas/definitions", pages.Definitions, name="sagas-definitions"),
        URLSpec(rf"{before}/sagas/schedules", schedules.Schedules, name="sagas-schedules"),
        URLSpec(
            rf"{before}/sagas/schedules/{_SCHEDULE}/(pause|resume|run)",
            schedules.ActOnSchedule,
            name="sagas-schedule-act",
        ),
        URLSpec(rf"{before}/sagas/approvals", approvals.Waiting, name="sagas-approvals"),
        URLSpec(rf"{before}/sagas/saga/{_ID}/answer/{_WAIT}", approvals.Answer, name="saga-answer"),
        URLSpec(rf"{before}/sagas/dead-letters", pages.DeadLetters, name="sagas-dead-letters"),
        URLSpec(rf"{before}/sagas/choreography", pages.Choreography, name="sagas-choreography"),
        URLSpec(rf"{before}/sagas/choreography\.svg", pages.ChoreographyImage, name="sagas-choreography-image"),
        URLSpec(rf"{before}/sagas/saga/{_ID}", pages.OneSaga, name="saga"),
        URLSpec(rf"{before}/sagas/saga/{_ID}/{_ACTION}", pages.Act, name="saga-act"),
        URLSpec(rf"{before}/sagas/static/(.*)", StaticFileHandler, {"path": str(STATIC)}, name="sagas-static"),
        URLSpec(rf"{before}/api/sagas", api.Sagas),
        URLSpec(rf"{before}/api/sagas/counts", api.Counts),
        URLSpec(rf"{before}/api/sagas/{_ID}", api.OneSaga),
        URLSpec(rf"{before}/api/sagas/{_ID}/{_ACTION}", api.Act),
    ]
