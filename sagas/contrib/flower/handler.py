"""What all our pages share: Flower's login, protection against other sites, and SQL outside the event loop."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from base64 import b64decode
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from flower.views import BaseHandler
from tornado.web import HTTPError, RequestHandler

from sagas.contrib.flower.counts import Snapshot
from sagas.contrib.flower.hosts import OPTION, hostname, is_local, is_named
from sagas.errors import SagaNotFound, StoreUnavailable
from sagas.operations import Operations

__all__ = ["NOBODY", "STATIC", "Handler"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

STATIC = Path(__file__).parent / "static"

#: Changes with the files, so that browsers can cache them forever.
_VERSION = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(STATIC.iterdir()))).hexdigest()[:12]

#: The actor if Flower requires no login.
NOBODY = "flower (not logged in)"

#: The size of the column, in characters.
_LONGEST_NAME = 200

#: Bytes that a request may have in addition to a result of `max_payload`.
_ENVELOPE = 65_536


class Handler(BaseHandler):  # type: ignore[misc]  # Flower is not typed
    """Base class of handlers for sagas. As in Flower, `tornado.web.authenticated` marks methods that need a login."""

    @property
    def operations(self) -> Operations:
        operations: Operations = self.application.operations
        return operations

    @property
    def read_only(self) -> bool:
        return bool(getattr(self.application.options, "read_only", False))  # Flower 2.0 has no such option

    @property
    def who(self) -> str:
        """The name that is recorded in the history."""
        user = self.current_user
        if isinstance(user, str):
            return user[:_LONGEST_NAME]
        if self.application.options.basic_auth:  # already checked; Flower does not store the name
            credentials = b64decode(self.request.headers["Authorization"].split()[1]).decode()
            return credentials.partition(":")[0][:_LONGEST_NAME]
        return NOBODY

    def get_current_user(self) -> Any:
        try:
            return super().get_current_user()
        except (TypeError, UnicodeError):  # a login that is not ASCII, which Flower cannot compare
            raise HTTPError(401) from None

    def set_default_headers(self) -> None:
        # Flower's own headers let every site read the answers if no login is required. These contain saga inputs.
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")
        self.set_header(
            "Content-Security-Policy", "script-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
        )

    def check_xsrf_cookie(self) -> None:
        """Do nothing: Flower's check does not exist in every version and login. `guard` replaces it."""

    def prepare(self) -> None:
        self.refuse_other_names()
        super().prepare()
        if self.request.method not in ("GET", "HEAD", "OPTIONS"):
            self.guard()
            most = self.operations.sagas.orchestrator.max_payload + _ENVELOPE
            if len(self.request.body) > most:
                raise HTTPError(413, f"the request has {len(self.request.body):,} bytes; the limit is {most:,}")

    def guard(self) -> None:
        """Refuse requests that change something and do not come from one of our forms."""
        self.refuse_other_sites()
        RequestHandler.check_xsrf_cookie(self)

    def refuse_other_names(self) -> None:
        """Refuse a request for a host name that may belong to another site: see `sagas.contrib.flower.hosts`."""
        options, allowed, name = self.application.options, self.allowed_hosts, hostname(self.request.host)
        # Browsers do not send a login to a host name that it was not entered for.
        asks_for_login = bool(options.basic_auth or options.auth)
        if "*" in allowed or is_local(name) or is_named(name, allowed) or (asks_for_login and not allowed):
            return
        raise HTTPError(
            403,
            f"the pages of sagas are not served under the name {name!r}. To allow the name, start Flower with "
            f"--{OPTION.replace('_', '-')}={name}, or set FLOWER_{OPTION.upper()}={name}",
        )

    @property
    def allowed_hosts(self) -> Sequence[str]:
        return list(getattr(self.application.options, OPTION, ()))

    def refuse_other_sites(self) -> None:
        site, origin = self.request.headers.get("Sec-Fetch-Site"), self.request.headers.get("Origin")
        if site not in (None, "same-origin", "none"):
            raise HTTPError(403, "the request came from a page of another site")
        if origin is None:
            return
        _, _, asker = origin.partition("://")
        # A proxy may have replaced the name that the browser used with its own name for Flower.
        if asker != self.request.host and not is_named(hostname(asker), self.allowed_hosts):
            raise HTTPError(403, f"the request came from a page of {asker or 'another site'}")

    async def ask(self, question: Callable[..., T], *arguments: Any) -> T:
        """Query the database in a thread. Answers 404 for an unknown saga, 503 if the database is unavailable."""
        try:
            return await asyncio.get_running_loop().run_in_executor(None, question, *arguments)
        except SagaNotFound as error:
            raise HTTPError(404, str(error)) from error
        except StoreUnavailable as error:
            logger.warning("%s", error)
            raise HTTPError(503, "the database did not answer; try again") from error

    async def ask_counts(self) -> Snapshot:
        try:
            counts: Snapshot = await self.application.counts.get()
        except StoreUnavailable as error:
            raise HTTPError(503, "the database did not answer; try again") from error
        return counts

    def value(self, name: str, default: str = "") -> str:
        """Return a URL parameter unescaped. Flower's `get_argument` escapes it, and templates would do so again."""
        return self.get_query_argument(name, default).strip() or default

    def show(self, template: str, *, tab: str, **values: Any) -> None:
        """Render one of our templates."""
        themed = Path(self.settings["static_path"], "js", "theme.js").is_file()  # Flower has dark pages from 2.1 on
        self.render(
            f"sagas/{template}",
            tab=tab,
            themed=themed,
            read_only=self.read_only,
            has_events=self.operations.sagas.events is not None,
            asset=lambda name: f"{self.reverse_url('sagas-static', name)}?v={_VERSION}",
            **values,
        )
