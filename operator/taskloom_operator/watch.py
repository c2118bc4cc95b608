"""Objects of a kind as they are now: listed once, then watched.

``kubernetes.informer`` does it for threads, and keeps models; this keeps plain dicts, in one event loop, without what is only
for people who look at who has written what.

Rules:

- A watch that ends or breaks is begun again where it was; only where the API server no longer knows what has happened since, or
  where it has said what nobody understands, all is listed anew.
- No two attempts without a pause between, unless the one before was of use.
- Of two versions of an object the later one counts, whichever way it came: from a list, a watch or an answer to a write. What is
  gone does not come back.
"""

from __future__ import annotations

import asyncio
import logging
import operator
import random
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from taskloom_operator.api import Api, ApiError

__all__ = ["Reflector"]

PAGE = 100  # objects in one answer: what it takes to read them all at once is not given back
WATCH = (240, 300)  # seconds until the API server is to end a watch, so that not all end at once
SILENCE = 150.0  # seconds without a word; the API server sends a bookmark each minute
FIRST, LONGEST = 0.5, 30.0  # seconds between attempts, at first and at last
HEARD = 2.0  # seconds between them at most while the API server does answer
USEFUL = 5.0  # seconds that a watch has lasted that was of use
GONE = 120.0  # seconds in which an answer may still come that is older than the end of its object

_log = logging.getLogger("taskloom_operator.watch")

Object = dict[str, Any]
OnChange = Callable[[str, Object | None, Object | None], object]  # kind, before, now


class Reflector:
    """The objects of a kind, in one namespace or in all.

    Args:
        api: where they are.
        kind: of them.
        namespace: None: all.
        labels: a selector; "": all.
        changed: called when one has come, changed or gone.
        index: the key under which it is found by :meth:`of`; None: it is not indexed.

    Attributes:
        synced: set when they have been listed once.
        heard: when the API server was last heard, by ``time.monotonic``.
    """

    def __init__(
        self,
        api: Api,
        kind: str,
        namespace: str | None,
        labels: str,
        changed: OnChange,
        index: Callable[[Object], Any] | None = None,
    ) -> None:
        self.kind = kind
        self.namespace = namespace
        self.synced = asyncio.Event()
        self.heard = time.monotonic()
        self._api = api
        self._path = Api.path(kind, namespace)
        self._labels = labels or None
        self._changed = changed
        self._index = index
        self._objects: dict[tuple[str, str], Object] = {}
        self._indexed: dict[Any, dict[tuple[str, str], Object]] = {}
        self._version: str | None = None  # that the next watch goes on from; None: all has to be listed
        self._gone: dict[Any, float] = {}  # uids of what is gone, since when

    def get(self, namespace: str, name: str) -> Object | None:
        """One of them."""
        return self._objects.get((namespace, name))

    def of(self, key: Any) -> list[Object]:
        """Those that have this key."""
        return list(self._indexed.get(key, {}).values())

    def all(self) -> list[Object]:
        """All of them."""
        return list(self._objects.values())

    def put(self, found: Mapping[str, Any]) -> None:
        """What the API server has answered when it was changed: it may be here before the watch tells of it, or after."""
        if found["metadata"].get("uid") not in self._gone:
            self._set(dict(found))

    async def run(self) -> None:
        """List and watch, for ever."""
        delay = FIRST
        while True:
            begun = time.monotonic()
            heard = self.heard
            try:
                if self._version is None:
                    self._version = await self._list()
                    self.synced.set()
                await self._watch()
                self.heard = time.monotonic()
            except ApiError as error:
                if error.status == 410:
                    self._version = None  # what we know is too old to go on from
                    _log.info("%s: %s", self.kind, error)
                else:
                    _log.warning("%s: %s", self.kind, error)
            except Exception:
                # what was said is not what is said of objects, or a defect here; a list may do
                self._version = None
                _log.exception("%s", self.kind)
            if self.heard > heard:
                delay = FIRST if self.heard - begun > USEFUL else min(delay, HEARD)
            # not all at once, though it is one event that ends all watches: that of an API server
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, LONGEST)

    async def _list(self) -> str:
        query: dict[str, Any] = {"labelSelector": self._labels, "limit": PAGE}
        seen: set[tuple[str, str]] = set()
        while True:
            page = await self._api.request("GET", self._path, query=query)
            self.heard = time.monotonic()
            for item in page.get("items") or ():
                item.setdefault("kind", self.kind)
                item.setdefault("apiVersion", page["apiVersion"])
                seen.add(_key(item))
                self._set(item)
            more = page["metadata"].get("continue")
            if not more:
                break
            query["continue"] = more
        version = str(page["metadata"]["resourceVersion"])
        for key, item in list(self._objects.items()):
            # what was made since comes by the watch
            if key not in seen and not _later(item["metadata"]["resourceVersion"], version):
                self._remove(key)
        return version

    async def _watch(self) -> None:
        query = {
            "labelSelector": self._labels,
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": random.randint(*WATCH),
        }
        async for event in self._api.watch(self._path, query, SILENCE):
            self.heard = time.monotonic()
            what, item = event["type"], event["object"]
            if what == "ERROR":
                raise ApiError(int(item.get("code") or 0), str(item.get("reason")), str(item.get("message")))
            version = str(item["metadata"]["resourceVersion"])
            if what == "DELETED":
                self._end(item)
            elif what != "BOOKMARK":
                self._set(item)
            self._version = version

    def _set(self, item: Object) -> None:
        item["metadata"].pop("managedFields", None)
        (item["metadata"].get("annotations") or {}).pop("kubectl.kubernetes.io/last-applied-configuration", None)
        key = _key(item)
        before = self._objects.get(key)
        if before is not None:
            old, new = before["metadata"]["resourceVersion"], item["metadata"]["resourceVersion"]
            if old == new or _later(old, new):
                return
            self._unindex(key, before)
        model = before
        others = self._objects if self._index is None else self._indexed.setdefault(self._index(item), {})
        if model is None and others:
            model = next(iter(others.values()))
        others[key] = self._objects[key] = item = _shared(item, model)
        self._changed(self.kind, before, item)

    def _end(self, item: Object) -> None:
        """An object is gone, as the watch says; there may be a later one of its name already."""
        key, metadata = _key(item), item["metadata"]
        self._bury(metadata.get("uid"))
        before = self._objects.get(key)
        if before is not None and before["metadata"].get("uid") != metadata.get("uid"):
            if _later(before["metadata"]["resourceVersion"], metadata["resourceVersion"]):
                return
        self._remove(key)

    def _remove(self, key: tuple[str, str]) -> None:
        before = self._objects.pop(key, None)
        if before is not None:
            self._bury(before["metadata"].get("uid"))
            self._unindex(key, before)
            self._changed(self.kind, before, None)

    def _bury(self, uid: Any) -> None:
        now = time.monotonic()
        for one, since in list(self._gone.items()):
            if now - since <= GONE:
                break
            del self._gone[one]
        self._gone.setdefault(uid, now)

    def _unindex(self, key: tuple[str, str], item: Object) -> None:
        if self._index is not None:
            name = self._index(item)
            several = self._indexed.get(name)
            if several is not None:
                several.pop(key, None)
                if not several:
                    del self._indexed[name]


def _key(item: Mapping[str, Any]) -> tuple[str, str]:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]


def _later(one: str, other: str) -> bool:
    """Whether the first of two versions is the later one."""
    return one.isdigit() and other.isdigit() and int(one) > int(other)


def _shared(value: Any, model: Any) -> Any:
    """The same, in less memory: short texts are there but once, and so is what an object has in common with another one.

    Pods of one cluster differ in little; a tenth of the memory.
    """
    kind = type(value)
    if kind is dict:
        other = model if type(model) is dict else {}
        made = {sys.intern(key): _shared(part, other.get(key)) for key, part in value.items()}
        if len(made) == len(other) and all(part is other.get(key, made) for key, part in made.items()):
            return other
        return made
    if kind is list:
        others = model if type(model) is list and len(model) == len(value) else [None] * len(value)
        parts = [_shared(part, other) for part, other in zip(value, others, strict=True)]
        return others if type(model) is list and all(map(operator.is_, parts, others)) and others is model else parts
    if kind is type(model) and value == model:
        return model
    return sys.intern(value) if kind is str and len(value) <= 100 else value
