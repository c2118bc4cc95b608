"""The pages of the HTTP interface, on tornado.

Rules that hold for all of them, and are in :class:`_Page` alone:

- what is not marked ``open`` asks for the token, before anything of the request's body is looked at;
- every answer is JSON (but ``/metrics``), and an error says in ``error`` what is wrong and in ``hint`` what to do;
- nothing is stored by anybody on the way, and no other site's page in a browser may read anything: there is no CORS, and there
  are no cookies, so a browser never sends by itself what lets it in;
- on loopback the ``Host`` must be one of this machine: a name that an attacker's page has pointed at 127.0.0.1 is refused.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import math
import ssl
from collections.abc import Sequence
from typing import Any, Protocol

from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream, StreamClosedError
from tornado.web import Application, HTTPError, MissingArgumentError, RequestHandler, stream_request_body

from taskloom.net.addresses import is_loopback
from taskloom.net.tokens import Token, how_to_get_token, tokens_of
from taskloom.node.http_metrics import Metrics
from taskloom.node.http_state import Refused, State, Terms

__all__ = ["PATHS", "Server", "make_application", "make_probes"]

BODY = 64 << 10  # bytes of a request's body that are read
DISCARDED = 64 << 20  # and that are thrown away, so that the answer arrives; above, the connection is cut
HEADERS = 32 << 10  # bytes
IDLE = 75.0  # seconds that a connection may say nothing, or take to say its headers
BODY_SECONDS = 15.0  # that it may take for its body
CONNECTIONS = 2048  # at a time
LONGEST = 300.0  # seconds that a request may wait for news
TASKS = 20  # of each state, in a dump

_log = logging.getLogger("taskloom.scheduler.http")

_WORDS = {400: "the request makes no sense here", 404: "there is nothing here", 405: "this can't be done here"}


def _plain(value: Any) -> Any:
    """A value as JSON can say it: numbers that are none are null, and what only Python knows is words."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (str, int)) else repr(value)


def _dumps(value: Any) -> str:
    return json.dumps(_plain(value), allow_nan=False)


@stream_request_body
class _Page(RequestHandler):
    """What all pages have in common."""

    open = False

    def initialize(self, state: State, token: Token, local: bool, metrics: Metrics | None, **more: Any) -> None:
        self.state = state
        self.body = bytearray()
        self._token = token
        self._local = local
        self._metrics = metrics
        self._too_large = False
        self._refusal: Exception | None = None

    def set_default_headers(self) -> None:
        self.set_header("Server", "taskloom")
        self.set_header("Content-Type", "application/json")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")

    def compute_etag(self) -> str | None:
        """What is new each time needs no mark to find out that it is."""
        return None

    def prepare(self) -> None:
        try:
            self._check()
        except (Refused, HTTPError) as error:
            headers = self.request.headers
            if headers.get("Content-Length", "0") == "0" and "Transfer-Encoding" not in headers:
                raise
            # An answer before the body has come in whole would cut the connection, and might not arrive.
            self._refusal = error
            setattr(self, (self.request.method or "GET").lower(), self._refuse)

    async def _refuse(self, *args: str) -> None:
        assert self._refusal is not None
        raise self._refusal

    def _check(self) -> None:
        if self._local and not _is_here(self.request.host_name):
            raise Refused(
                421,
                f"this scheduler listens on loopback, and is not known as {self.request.host_name[:100]!r}",
                "use 127.0.0.1 or localhost in the URL",
            )
        if not self.open:
            self._check_token()
        if type(self).__dict__.get((self.request.method or "").lower()) is None:
            raise HTTPError(405)
        length = self.request.headers.get("Content-Length", "0")
        if length.isdigit() and int(length) > BODY:
            self._refuse_body()

    def _check_token(self) -> None:
        kind, _, said = self.request.headers.get("Authorization", "").partition(" ")
        said = said.strip()
        known = [hmac.compare_digest(said.encode(), token.encode()) for token in tokens_of(self._token)]
        if kind.lower() == "bearer" and any(known):
            return
        wrong = "the token is wrong" if kind.lower() == "bearer" else "a token is needed"
        self.set_header("WWW-Authenticate", 'Bearer realm="taskloom"')
        host = None if self._local else self.request.host_name
        raise Refused(
            401,
            wrong,
            "send the scheduler's token in the header Authorization: Bearer TOKEN. To have it where you are: "
            + how_to_get_token(host if host and _NAME_LIKE.issuperset(host) else None),
        )

    def data_received(self, chunk: bytes) -> None:
        if self._refusal is not None or self._too_large:
            return  # it is read so that the answer arrives, and thrown away
        self.body += chunk
        if len(self.body) > BODY:
            self.body.clear()
            self._too_large = True  # said when it has come in whole

    def _refuse_body(self) -> None:
        raise Refused(413, f"the body is larger than {BODY} bytes", "ask in several requests")

    def read_json(self) -> dict[str, Any]:
        """The body, an object.

        Raises:
            Refused: it is none.
        """
        if self._too_large:
            self._refuse_body()
        try:
            found = json.loads(bytes(self.body))
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"the body is not JSON: {error}", 'send an object, such as {"count": 1}') from None
        if not isinstance(found, dict):
            raise Refused(400, "the body is JSON, and no object", 'send an object, such as {"count": 1}')
        return found

    def number(self, name: str, default: float, least: float, most: float) -> float:
        """A number in the query.

        Raises:
            Refused: it is none, or out of bounds.
        """
        text = self.get_query_argument(name, None)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise Refused(400, f"{name}={text[:100]} is no number from {least:g} to {most:g}", f"leave {name} out")
        return value

    def say(self, value: Any, status: int = 200) -> None:
        """Answer."""
        self.set_status(status)
        self.write(_dumps(value) + "\n")

    # --- errors

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(error, Refused):
            self.set_status(error.status)
            self.finish(_dumps({"error": error.error, "hint": error.hint, **error.more}) + "\n")
            return
        said: dict[str, Any] = {"error": _WORDS.get(status_code, "the scheduler cannot answer")}
        if status_code == 404:
            said = {"error": f"there is no {self.request.path[:200]!r} here", "hint": "see paths", "paths": list(PATHS)}
        elif status_code == 405:
            can = [method for method in self.SUPPORTED_METHODS if method.lower() in type(self).__dict__]
            self.set_header("Allow", ", ".join(can))
            said = {"error": f"{self.request.method} can't be done here", "hint": f"use {' or '.join(can) or 'GET'}"}
        elif isinstance(error, MissingArgumentError):
            said = {"error": f"the query lacks {error.arg_name}", "hint": "see docs/http.md"}
        elif isinstance(error, HTTPError) and status_code < 500:
            said = {"error": error.log_message or self._reason, "hint": "see docs/http.md"}
        else:
            said["hint"] = "this is a bug of taskloom; its log says where"
        self.finish(_dumps(said) + "\n")

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(error, Refused):
            # headers such as WWW-Authenticate stay
            self.set_status(error.status)
            self.write_error(error.status, **kwargs)
            return
        super().send_error(status_code, **kwargs)

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if not isinstance(value, (Refused, HTTPError, StreamClosedError)):
            _log.error("a request failed: %s %s", self.request.method, self.request.path, exc_info=(typ, value, tb))


_NAME_LIKE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-")


def _is_here(host: str) -> bool:
    """Whether a host in a URL can only mean this machine."""
    host = host.rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return is_loopback(host.strip("[]"))


class _Health(_Page):
    open = True

    async def get(self) -> None:
        self.say({"status": "ok"})  # that somebody answers says all

    head = get


class _Ready(_Page):
    open = True

    async def get(self) -> None:
        found = self.state.ready()
        settled = self.get_query_argument("settled", "0") not in ("0", "false", "")
        ready = found["ready"] and (found.get("settled", True) or not settled)
        self.say({**found, "ready": ready}, 200 if ready else 503)

    head = get


class _Info(_Page):
    async def get(self) -> None:
        self.say(self.state.info())


class _Workers(_Page):
    async def get(self) -> None:
        self.say({"workers": self.state.workers()})


class _Clients(_Page):
    async def get(self) -> None:
        self.say({"clients": self.state.clients()})


class _Wish(_Page):
    async def get(self) -> None:
        threads = self.number("threads", 0, 0, 1 << 20)
        terms = Terms(
            self.number("target_seconds", Terms().target_seconds, 0.001, 1e6),
            int(threads) or None,
            self.number("assumed", Terms().assumed, 0.0, 1e6),
        )
        since = self.get_query_argument("since", None)
        timeout = self.number("timeout", 0.0 if since is None else 30.0, 0.0, LONGEST)
        if since is None:
            timeout = 0.0
        self._waits = asyncio.current_task()
        try:
            found = await self.state.wishes.wait(terms, since or "", timeout)
        except asyncio.CancelledError:
            return  # whoever has asked is gone
        finally:
            self._waits = None
        self.say({**found, "changed": found["version"] != since})

    _waits: asyncio.Task[Any] | None = None

    def on_connection_close(self) -> None:
        if self._waits is not None:
            self._waits.cancel()


class _Retire(_Page):
    async def post(self) -> None:
        asked = self.read_json()
        unknown = asked.keys() - {"workers", "pod_uids", "count"}
        hint = '{"workers": ["a", "b"]}, {"pod_uids": ["..."]} or {"count": 2}'
        if unknown:
            raise Refused(400, f"the body has {', '.join(sorted(unknown))[:200]}, which means nothing here", hint)
        names, pod_uids, count = asked.get("workers", []), asked.get("pod_uids", []), asked.get("count", 0)
        for key, value in (("workers", names), ("pod_uids", pod_uids)):
            if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
                raise Refused(400, f"{key} is a list of strings", hint)
        if type(count) is not int or count < 0:
            raise Refused(400, "count is a number, 0 or more", hint)
        if not asked:
            raise Refused(400, "the body does not say who is to go", hint)
        self.say({"retirements": self.state.retirements.retire(names, pod_uids, count)}, 202)


class _Retirements(_Page):
    async def get(self) -> None:
        self.say({"retirements": self.state.retirements.list()})


class _Retirement(_Page):
    async def get(self, name: str) -> None:
        found = [one for one in self.state.retirements.list() if one["worker"] == name]
        if not found:
            raise Refused(404, f"no worker called {name} is to go, or has gone", "see /api/v1/retirements")
        self.say({"retirements": found})

    async def delete(self, name: str) -> None:
        self.say({"retirements": self.state.retirements.cancel(name)})


class _Task(_Page):
    async def get(self, client: str, counter: str) -> None:
        self.say(self.state.task(client, int(counter)))


class _Dump(_Page):
    async def get(self) -> None:
        text = self.get_query_argument("tasks", str(TASKS))
        if text != "all" and not (text.isascii() and text.isdigit() and int(text) <= 100_000):
            raise Refused(400, f"tasks={text[:100]} is neither 'all' nor a number up to 100000", "leave tasks out")
        head = _dumps(self.state.dump())
        try:
            self.write(head[:-1] + ', "tasks": [')
            between = "\n"
            for piece in self.state.tasks(None if text == "all" else int(text)):
                for task in piece:
                    self.write(between + _dumps(task))
                    between = ",\n"
                await self.flush()
                await asyncio.sleep(0)  # others have their turn, also where all of it goes out at once
            self.write("\n]}\n")
            await self.finish()
        except StreamClosedError:
            pass  # whoever has asked is gone


class _Metrics(_Page):
    async def get(self) -> None:
        assert self._metrics is not None
        text, kind = self._metrics.text(self.request.headers.get("Accept", ""))
        self.set_header("Content-Type", kind)
        self.write(text)


class _Nothing(_Page):
    """Every other path. That there is nothing is no secret."""

    open = True

    def _check(self) -> None:
        raise HTTPError(404)


_PAGES: tuple[tuple[str, str, type[_Page]], ...] = (
    ("/api/v1/health", r"/api/v1/health", _Health),
    ("/api/v1/ready", r"/api/v1/ready", _Ready),
    ("/api/v1/info", r"/api/v1/info", _Info),
    ("/api/v1/workers", r"/api/v1/workers", _Workers),
    ("/api/v1/clients", r"/api/v1/clients", _Clients),
    ("/api/v1/wish", r"/api/v1/wish", _Wish),
    ("/api/v1/retire", r"/api/v1/retire", _Retire),
    ("/api/v1/retirements", r"/api/v1/retirements", _Retirements),
    ("/api/v1/retirements/NAME", r"/api/v1/retirements/(.+)", _Retirement),
    ("/api/v1/tasks/CLIENT/COUNTER", r"/api/v1/tasks/([0-9a-fA-F]{1,64})/([0-9]{1,18})", _Task),
    ("/api/v1/dump", r"/api/v1/dump", _Dump),
    ("/metrics", r"/metrics", _Metrics),
)

#: All paths that there are.
PATHS = tuple(path for path, _, _ in _PAGES)
_NAMES: dict[type, str] = {page: path for path, _, page in _PAGES}


def _application(
    pages: Sequence[tuple[str, str, type[_Page]]], state: Any, token: Token, local: bool, metrics: Metrics | None
) -> Application:
    given = {"state": state, "token": token, "local": local, "metrics": metrics}

    def log(handler: RequestHandler) -> None:
        if metrics is not None:
            metrics.requests.labels(_NAMES.get(type(handler), "other"), str(handler.get_status())).inc()
        _log.debug("%s %s: %d", handler.request.method, handler.request.path, handler.get_status())

    return Application(
        [(pattern, page, given) for _, pattern, page in pages],
        default_handler_class=_Nothing,
        default_handler_args=given,
        log_function=log,
    )


def make_application(state: State, token: Token, local: bool, metrics: Metrics) -> Application:
    """All pages.

    Args:
        local: whether they can be had on loopback only.
    """
    return _application(_PAGES, state, token, local, metrics)


class HasReady(Protocol):
    """Whose readiness can be asked for."""

    def ready(self) -> dict[str, Any]:
        """Whether it is, under "ready"."""


def make_probes(state: HasReady) -> Application:
    """Health and readiness alone, for whoever can't show a token."""
    return _application([page for page in _PAGES if page[2].open], state, "", False, None)


class Server(HTTPServer):
    """tornado's, with limits."""

    def initialize(self, application: Application, context: ssl.SSLContext | None = None) -> None:  # type: ignore[override]
        """tornado calls this in the place of ``__init__``."""
        super().initialize(
            application,
            ssl_options=context,
            max_header_size=HEADERS,
            max_body_size=DISCARDED,
            idle_connection_timeout=IDLE,
            body_timeout=BODY_SECONDS,
        )
        self.connections = 0

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        if self.connections >= CONNECTIONS:
            stream.close()
            return
        self.connections += 1
        super().handle_stream(stream, address)

    def on_close(self, server_conn: object) -> None:
        self.connections -= 1
        super().on_close(server_conn)
