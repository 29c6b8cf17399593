"""A schema registry with Confluent's HTTP API, small but strict: what it is not asked as documented, it refuses."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

MEDIA = "application/vnd.schemaregistry.v1+json"
LEVELS = "NONE BACKWARD BACKWARD_TRANSITIVE FORWARD FORWARD_TRANSITIVE FULL FULL_TRANSITIVE".split()


class Refused(Exception):
    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Version:
    def __init__(self, number: int, id_: int, kind: str, text: str) -> None:
        self.number, self.id, self.kind, self.text, self.deleted = number, id_, kind, text, False


class SchemaServer:
    """`compatible` stands for the server's own rules: called with the level, the old text and the new one."""

    def __init__(self, *, honours_version: bool = True, auth: str | None = None) -> None:
        self.honours_version = honours_version
        self.auth = auth
        self.lock = threading.RLock()
        self.versions: dict[str, list[Version]] = {}
        self.levels: dict[str, str] = {}
        self.ids: dict[tuple[str, str], int] = {}
        self.requests: list[str] = []
        self.failures: list[int | bytes | None] = []  # answers to give first: a status, a body, or no answer at all
        self.before_post: Callable[[], None] | None = None  # what somebody else does just before
        self.http = _Server(("127.0.0.1", 0), type("Bound", (_Handler,), {"registry": self}))
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    # -- the API ---------------------------------------------------------------------------------------------------

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> Any:
        routes: list[tuple[str, str, Callable[..., Any]]] = [
            ("GET", r"/subjects", lambda: sorted(s for s in self.versions if self._live(s))),
            ("GET", r"/subjects/([^/]+)/versions", lambda s: self._numbers(s, query)),
            ("GET", r"/subjects/([^/]+)/versions/([^/]+)", self._version),
            ("POST", r"/subjects/([^/]+)/versions", lambda s: self._register(s, body)),
            ("GET", r"/config/([^/]+)", self._level),
            ("PUT", r"/config/([^/]+)", lambda s: self._set_level(s, body)),
        ]
        for verb, pattern, act in routes:
            if verb == method and (match := re.fullmatch(pattern, path)):
                with self.lock:
                    return act(*map(unquote, match.groups()))
        raise Refused(404, 404, "HTTP 404 Not Found")

    def _live(self, subject: str) -> list[Version]:
        return [v for v in self.versions.get(subject, []) if not v.deleted]

    def _numbers(self, subject: str, query: dict[str, list[str]]) -> list[int]:
        found = self.versions.get(subject, []) if query.get("deleted") == ["true"] else self._live(subject)
        if not found:
            raise Refused(404, 40401, f"Subject '{subject}' not found.")
        return [v.number for v in found]

    def _version(self, subject: str, number: str) -> Any:
        if not self._live(subject):
            raise Refused(404, 40401, f"Subject '{subject}' not found.")
        if not number.isdigit() or int(number) < 1:
            raise Refused(422, 42202, f"The specified version '{number}' is not a valid version id.")
        for version in self._live(subject):
            if version.number == int(number):
                told = {"subject": subject, "version": version.number, "id": version.id, "schema": version.text}
                return told if version.kind == "AVRO" else {**told, "schemaType": version.kind}
        raise Refused(404, 40402, f"Version {number} not found.")

    def _register(self, subject: str, body: Any) -> Any:
        if self.before_post is not None:
            act, self.before_post = self.before_post, None
            act()
        unknown = set(body) - {"schema", "schemaType", "version", "id", "references", "metadata", "ruleSet"}
        if unknown:
            raise Refused(422, 422, f"Unrecognized field: {min(unknown)}")
        kind, text = body.get("schemaType", "AVRO"), body.get("schema")
        if kind not in ("AVRO", "JSON", "PROTOBUF"):
            raise Refused(422, 42201, f"Invalid schema type {kind}")
        try:
            parsed = json.loads(text)
        except (TypeError, ValueError):
            raise Refused(422, 42201, f"Invalid schema {text}") from None
        if kind == "AVRO" and not isinstance(parsed, dict | str | list):
            raise Refused(422, 42201, f"Invalid schema {text}")
        everything, live = self.versions.setdefault(subject, []), self._live(subject)
        asked = body.get("version", 0) if self.honours_version else 0
        same = [v for v in live if v.kind == kind and json.loads(v.text) == parsed]
        if same and asked == 0:
            return {"id": same[0].id}
        level = self.levels.get(subject, "BACKWARD")
        if live and level != "NONE" and not self.compatible(kind, json.loads(live[-1].text), parsed):
            raise Refused(409, 409, f"Schema being registered is incompatible with an earlier schema for {subject}")
        following = max((v.number for v in everything), default=0) + 1
        if asked > 0 and asked != following:
            raise Refused(422, 42201, "Version is not one more than previous version")
        id_ = self.ids.setdefault((kind, json.dumps(parsed, sort_keys=True)), len(self.ids) + 1)
        everything.append(Version(following, id_, kind, json.dumps(parsed, indent=1)))
        return {"id": id_}

    def compatible(self, kind: str, old: Any, new: Any) -> bool:
        """As Confluent has it: a property that is added to an open JSON schema is not."""
        if kind != "JSON":
            return True
        return set(new.get("properties", {})) <= set(old.get("properties", {}))

    def _level(self, subject: str) -> Any:
        if subject not in self.levels:
            raise Refused(404, 40408, f"Subject '{subject}' does not have subject-level compatibility configured")
        return {"compatibilityLevel": self.levels[subject]}

    def _set_level(self, subject: str, body: Any) -> Any:
        if body.get("compatibility") not in LEVELS:
            raise Refused(422, 42203, "Invalid compatibility level.")
        self.levels[subject] = body["compatibility"]
        return body


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Clients that went away, and connections that a test had closed."""


class _Handler(BaseHTTPRequestHandler):
    registry: SchemaServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_PUT(self) -> None:
        self._serve("PUT")

    def _serve(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.registry.requests.append(f"{method} {self.path}")
        if self.registry.failures:
            failure = self.registry.failures.pop(0)
            if failure is None:
                self.close_connection = True
                self.connection.close()
            elif isinstance(failure, bytes):
                self._send(200, failure)
            else:
                self._send(failure, json.dumps({"error_code": failure * 100 + 1, "message": "no luck"}).encode())
            return
        try:
            self._send(200, json.dumps(self._answer(method, body)).encode())
        except Refused as refused:
            self._send(refused.status, json.dumps({"error_code": refused.code, "message": str(refused)}).encode())

    def _answer(self, method: str, body: bytes) -> Any:
        if self.registry.auth is not None:
            wanted = "Basic " + base64.b64encode(self.registry.auth.encode()).decode()
            if self.headers.get("Authorization") != wanted:
                raise Refused(401, 401, "Unauthorized")
        if method != "GET" and self.headers.get("Content-Type") not in (MEDIA, "application/json"):
            raise Refused(415, 415, "HTTP 415 Unsupported Media Type")
        where = urlsplit(self.path)
        return self.registry.answer(method, where.path, parse_qs(where.query), json.loads(body) if body else None)

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", MEDIA)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
