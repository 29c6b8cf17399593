"""What all our pages share: Flower's login, our guard against other sites, and SQL off the event loop."""

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

#: Changes with the files, so that browsers may keep them for ever.
_VERSION = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(STATIC.iterdir()))).hexdigest()[:12]

#: Who did something, where Flower asks nobody who they are.
NOBODY = "flower (not logged in)"

#: The column has so many characters.
_LONGEST_NAME = 200

#: Bytes that a request may have beside a result of `max_payload`.
_ENVELOPE = 65_536


class Handler(BaseHandler):  # type: ignore[misc]  # Flower is not typed
    """Answers for sagas. Methods that need a login are marked with `tornado.web.authenticated`, as Flower's are."""

    @property
    def operations(self) -> Operations:
        operations: Operations = self.application.operations
        return operations

    @property
    def read_only(self) -> bool:
        return bool(getattr(self.application.options, "read_only", False))  # Flower 2.0 has no such option

    @property
    def who(self) -> str:
        """The name that the history keeps."""
        user = self.current_user
        if isinstance(user, str):
            return user[:_LONGEST_NAME]
        if self.application.options.basic_auth:  # it has been checked; Flower does not keep the name
            credentials = b64decode(self.request.headers["Authorization"].split()[1]).decode()
            return credentials.partition(":")[0][:_LONGEST_NAME]
        return NOBODY

    def get_current_user(self) -> Any:
        try:
            return super().get_current_user()
        except (TypeError, UnicodeError):  # a login that is not ASCII, which Flower cannot compare
            raise HTTPError(401) from None

    def set_default_headers(self) -> None:
        # Flower's own let every site read the answers where nobody has to log in. These have inputs of sagas in them.
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")
        self.set_header(
            "Content-Security-Policy", "script-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
        )

    def check_xsrf_cookie(self) -> None:
        """Do nothing here: Flower's is not there in every version and login. `guard` is ours."""

    def prepare(self) -> None:
        self.refuse_other_names()
        super().prepare()
        if self.request.method not in ("GET", "HEAD", "OPTIONS"):
            self.guard()
            most = self.operations.sagas.orchestrator.max_payload + _ENVELOPE
            if len(self.request.body) > most:
                raise HTTPError(413, f"{len(self.request.body):,} bytes are more than {most:,}")

    def guard(self) -> None:
        """Refuse what changes something, and does not come from a form of ours."""
        self.refuse_other_sites()
        RequestHandler.check_xsrf_cookie(self)

    def refuse_other_names(self) -> None:
        """Refuse a request for a name that may be that of another site: `sagas.contrib.flower.hosts`."""
        options, allowed, name = self.application.options, self.allowed_hosts, hostname(self.request.host)
        # Browsers do not send a login to a name that it was not entered for.
        asks_for_login = bool(options.basic_auth or options.auth)
        if "*" in allowed or is_local(name) or is_named(name, allowed) or (asks_for_login and not allowed):
            return
        raise HTTPError(
            403,
            f"the pages of sagas are not served under the name {name!r}. If this Flower is to have it, start it with "
            f"--{OPTION.replace('_', '-')}={name}, or set FLOWER_{OPTION.upper()}={name}",
        )

    @property
    def allowed_hosts(self) -> Sequence[str]:
        return list(getattr(self.application.options, OPTION, ()))

    def refuse_other_sites(self) -> None:
        site, origin = self.request.headers.get("Sec-Fetch-Site"), self.request.headers.get("Origin")
        if site not in (None, "same-origin", "none"):
            raise HTTPError(403, "a page of another site asked for this")
        if origin is None:
            return
        _, _, asker = origin.partition("://")
        # A proxy may have replaced the name that the browser asked for by the one that it reaches Flower by.
        if asker != self.request.host and not is_named(hostname(asker), self.allowed_hosts):
            raise HTTPError(403, f"a page of {asker or 'another site'} asked for this")

    async def ask(self, question: Callable[..., T], *arguments: Any) -> T:
        """Ask the database, in a thread. What is not there is 404; a database that is away is 503."""
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
        """Return a parameter of the URL as it is. Flower's `get_argument` escapes, and templates would do so again."""
        return self.get_query_argument(name, default).strip() or default

    def show(self, template: str, *, tab: str, **values: Any) -> None:
        """Render one of our templates."""
        themed = Path(self.settings["static_path"], "js", "theme.js").is_file()  # from 2.1 on it has dark pages
        self.render(
            f"sagas/{template}",
            tab=tab,
            themed=themed,
            read_only=self.read_only,
            has_events=self.operations.sagas.events is not None,
            asset=lambda name: f"{self.reverse_url('sagas-static', name)}?v={_VERSION}",
            **values,
        )
