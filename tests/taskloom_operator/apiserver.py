"""A small API server of Kubernetes, over real sockets: objects with versions, lists in pages, watches, and trouble on demand.

It knows no schema and runs nothing. What it has in common with the real one is what clients can stumble over: every change has
a version, a watch goes on from a version or says 410 where that is too old, a merge is a merge, a delete may name a uid.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable
from typing import Any

from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from taskloom_operator.api import KINDS, Api
from taskloom_operator.metrics import Metrics

Key = tuple[str, str, str]  # plural, namespace, name

_BY_PLURAL = {plural: (kind, api) for kind, (api, plural) in KINDS.items()}


class Dropped(Exception):
    """The connection is to be cut, without an answer."""


class ApiServer:
    """What it keeps, what it was asked, and what is to go wrong.

    Attributes:
        objects: by plural, namespace and name.
        calls: method, path and query of all requests but watches, in order; ``watches``: those.
        trouble: called with each request before it is looked at; may return an answer, or raise :class:`Dropped`.
        oldest: watches from before this version are told 410.
        open: how many watches there are now.
    """

    def __init__(self) -> None:
        self.objects: dict[Key, dict[str, Any]] = {}
        self.version = 100
        self.oldest = 0
        self.calls: list[tuple[str, str, dict[str, str]]] = []
        self.watches: list[tuple[str, dict[str, str]]] = []
        self.agents: set[str] = set()
        self.trouble: Callable[[web.Request], Any] = lambda request: None
        self.mute = False  # watches are open and say nothing
        self.mute_kinds: set[str] = set()  # likewise, of these plurals
        self._history: list[tuple[int, str, Key, dict[str, Any], dict[str, str]]] = []
        self._listening: dict[asyncio.Queue[Any], tuple[str, str]] = {}
        self._news = asyncio.Event()

    @property
    def open(self) -> int:
        return len(self._listening)

    # --- as another client would

    async def put(self, kind: str, name: str, namespace: str = "lab", **more: Any) -> dict[str, Any]:
        """Make an object, or change one."""
        key = KINDS[kind][1], namespace, name
        before = self.objects.get(key)
        given = {**copy.deepcopy(before or {}), **copy.deepcopy(more), "kind": kind, "apiVersion": _version(kind)}
        given["metadata"] = {**(before or {}).get("metadata", {}), **more.get("metadata", {})}
        given["metadata"] |= {"name": name, "namespace": namespace}
        return await self._set(key, given)

    async def remove(self, kind: str, name: str, namespace: str = "lab") -> None:
        """Delete an object."""
        await self._drop((KINDS[kind][1], namespace, name))

    def get(self, kind: str, name: str, namespace: str = "lab") -> dict[str, Any] | None:
        return self.objects.get((KINDS[kind][1], namespace, name))

    async def bookmarks(self) -> None:
        """Tell all that watch how far they are."""
        for queue, (plural, _) in list(self._listening.items()):
            kind, _ = _BY_PLURAL[plural]
            metadata = {"resourceVersion": str(self.version), "creationTimestamp": None}
            queue.put_nowait({"type": "BOOKMARK", "object": {"kind": kind, "metadata": metadata}})

    async def say(self, event: Any) -> None:
        """Send something of one's own to all that watch; None ends a watch, "cut" its connection, bytes go as they are."""
        for queue in list(self._listening):
            queue.put_nowait(event)

    async def until(self, condition: Callable[[], Any], seconds: float = 20.0) -> None:
        """Wait until something is so, looking at it after each request and change."""
        async with asyncio.timeout(seconds):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def tell(self) -> None:
        """Something has happened that somebody may wait for."""
        self._news.set()

    # --- objects

    async def _set(self, key: Key, given: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        before = self.objects.get(key)
        metadata = given["metadata"]
        metadata["resourceVersion"] = str(self.version)
        metadata["managedFields"] = [{"manager": "somebody", "fieldsV1": {"f:spec": {}}}]
        metadata.setdefault("uid", f"uid-{self.version}")
        if before is None or before.get("spec") != given.get("spec"):
            metadata["generation"] = metadata.get("generation", 0) + 1
        self.objects[key] = given
        await self._record("ADDED" if before is None else "MODIFIED", key, given)
        return given

    async def _drop(self, key: Key) -> None:
        found = copy.deepcopy(self.objects.pop(key))
        self.version += 1
        found["metadata"]["resourceVersion"] = str(self.version)
        await self._record("DELETED", key, found)

    async def _record(self, what: str, key: Key, found: dict[str, Any]) -> None:
        found = copy.deepcopy(found)
        self._history.append((self.version, what, key, found, found["metadata"].get("labels") or {}))
        if not self.mute and key[0] not in self.mute_kinds:
            for queue, (plural, namespace) in self._listening.items():
                if plural == key[0] and namespace in ("", key[1]):
                    queue.put_nowait({"type": what, "object": found})
        self.tell()

    # --- requests

    async def _any(self, request: web.Request) -> web.StreamResponse:
        found = request.match_info
        plural, namespace, name, sub = (found.get(part, "") for part in ("plural", "namespace", "name", "sub"))
        self.agents.add(request.headers.get("User-Agent", ""))
        query = dict(request.query)
        watch = query.get("watch") == "true"
        if watch:
            self.watches.append((plural, query))
        else:
            self.calls.append((request.method, request.path, query))
        try:
            answer = self.trouble(request)
            if asyncio.iscoroutine(answer):
                answer = await answer
            if answer is None:
                if watch:
                    return await self._watch(request, plural, namespace, query)
                answer = await getattr(self, f"_{request.method.lower()}")(request, plural, namespace, name, sub)
        except Dropped:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        finally:
            self.tell()
        if isinstance(answer, web.StreamResponse):
            return answer
        return web.json_response(answer, status=201 if request.method == "POST" else 200)

    async def _get(self, request: web.Request, plural: str, namespace: str, name: str, sub: str) -> Any:
        if sub == "log":
            return web.Response(text=self.objects[plural, namespace, name]["log"])
        if name:
            return self.objects.get((plural, namespace, name)) or refused(404, "NotFound")
        kind = _BY_PLURAL[plural][0]
        wanted = _selector(request.query.get("labelSelector", ""))
        found = [
            # without kind and version, as the real one does
            {part: value for part, value in one.items() if part not in ("kind", "apiVersion")}
            for key, one in sorted(self.objects.items())
            if key[0] == plural and namespace in ("", key[1]) and _fits(one, wanted)
        ]
        first, count = int(request.query.get("continue", "0")), int(request.query.get("limit", "0")) or len(found)
        metadata: dict[str, Any] = {"resourceVersion": str(self.version)}
        if first + count < len(found):
            metadata["continue"] = str(first + count)
        items = found[first : first + count]
        return {"kind": f"{kind}List", "apiVersion": _version(kind), "metadata": metadata, "items": items}

    async def _post(self, request: web.Request, plural: str, namespace: str, name: str, sub: str) -> Any:
        given = await request.json()
        key = plural, namespace, given["metadata"]["name"]
        if key in self.objects:
            return refused(409, "AlreadyExists")
        return await self._set(key, _with_data(given))

    async def _patch(self, request: web.Request, plural: str, namespace: str, name: str, sub: str) -> Any:
        given, key = json.loads(await request.text()), (plural, namespace, name)
        apply = request.content_type == "application/apply-patch+yaml"
        before = self.objects.get(key)
        if before is None:
            if not apply or sub or given["metadata"].get("uid"):
                return refused(404, "NotFound")
            return await self._set(key, given)
        for part in ("uid", "resourceVersion"):
            if given.get("metadata", {}).get(part) not in (None, before["metadata"][part]):
                return refused(409, "Conflict")
        if sub == "status":
            given = {"status": given["status"]}
        after = _merged(before, given)
        if apply and sub == "status":
            after["status"] = given["status"]  # all of it is one manager's
        after = _with_data(after)
        if after == before:
            return before
        return await self._set(key, after)

    async def _delete(self, request: web.Request, plural: str, namespace: str, name: str, sub: str) -> Any:
        key, options = (plural, namespace, name), json.loads(await request.text() or "{}")
        found = self.objects.get(key)
        if found is None:
            return refused(404, "NotFound")
        if options.get("preconditions", {}).get("uid") not in (None, found["metadata"]["uid"]):
            return refused(409, "Conflict")
        await self._drop(key)
        return {"kind": "Status", "status": "Success"}

    async def _watch(self, request: web.Request, plural: str, namespace: str, query: dict[str, str]) -> Any:
        since = int(query["resourceVersion"])
        wanted = _selector(query.get("labelSelector", ""))
        queue: asyncio.Queue[Any] = asyncio.Queue()
        if since < self.oldest:
            status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            queue.put_nowait({"type": "ERROR", "object": status})
            queue.put_nowait(None)
        for version, what, key, found, _ in self._history:
            if version > since and key[0] == plural and namespace in ("", key[1]) and not self.mute:
                queue.put_nowait({"type": what, "object": found})
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        self._listening[queue] = plural, namespace
        self.tell()
        try:
            while (event := await queue.get()) is not None:
                if event == "cut":
                    raise Dropped
                if isinstance(event, bytes):
                    await response.write(event)
                elif event["type"] in ("BOOKMARK", "ERROR") or _fits(event["object"], wanted):
                    await response.write(json.dumps(event).encode() + b"\n")
        finally:
            del self._listening[queue]
            self.tell()
        await response.write_eof()
        return response

    async def __aenter__(self) -> ApiServer:
        application = web.Application()
        for api in ("/api/v1", "/apis/{group}/{version}"):
            for place in ("/namespaces/{namespace}/{plural}", "/{plural}"):
                for rest in ("", "/{name}", "/{name}/{sub}"):
                    application.router.add_route("*", api + place + rest, self._any)
        self.runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        configuration = Configuration(host=f"http://127.0.0.1:{self.runner.addresses[0][1]}")
        configuration.proxy = None
        self.metrics = Metrics()
        self.client = await ApiClient(configuration).__aenter__()
        self.api = Api(self.client, self.metrics)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.client.close()
        await self.runner.cleanup()


def refused(code: int, reason: str, message: str = "") -> web.Response:
    """An answer that says no."""
    status = {"kind": "Status", "code": code, "reason": reason, "message": message or reason}
    return web.json_response(status, status=code)


def _version(kind: str) -> str:
    return KINDS[kind][0].removeprefix("/apis/").removeprefix("/api/")


def _selector(text: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in text.split(",") if part)  # type: ignore[misc]


def _fits(found: dict[str, Any], wanted: dict[str, str]) -> bool:
    labels = found["metadata"].get("labels") or {}
    return all(labels.get(name) == value for name, value in wanted.items())


def _merged(before: Any, given: Any) -> Any:
    if not isinstance(before, dict) or not isinstance(given, dict):
        return copy.deepcopy(given)
    found = copy.deepcopy(before)
    for name, value in given.items():
        if value is None:
            found.pop(name, None)
        else:
            found[name] = _merged(before.get(name), value)
    return found


def _with_data(given: dict[str, Any]) -> dict[str, Any]:
    """stringData is for writing."""
    if "stringData" in given:
        import base64

        written = {name: base64.b64encode(text.encode()).decode() for name, text in given.pop("stringData").items()}
        given["data"] = {**given.get("data", {}), **written}
    return given
