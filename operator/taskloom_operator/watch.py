"""Objects of a kind as they are now: listed once, then watched.

``kubernetes.informer`` does it for threads, and keeps models; this keeps plain dicts, in one event loop, without what is only
for people who look at who has written what.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from taskloom_operator.api import Api, ApiError

__all__ = ["Reflector"]

PAGE = 500  # objects in one answer
WATCH = (240, 300)  # seconds until the API server is to end a watch, so that not all end at once
SILENCE = 150.0  # seconds without a word; the API server sends a bookmark each minute
LONGEST = 30.0  # seconds between attempts

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
        self.synced = asyncio.Event()
        self.heard = time.monotonic()
        self._api = api
        self._path = Api.path(kind, namespace)
        self._labels = labels or None
        self._changed = changed
        self._index = index
        self._objects: dict[tuple[str, str], Object] = {}
        self._indexed: dict[Any, dict[tuple[str, str], Object]] = {}

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
        """What the API server has answered when it was changed: it may be here before the watch tells of it."""
        self._set(dict(found))

    async def run(self) -> None:
        """List and watch, for ever."""
        delay = 0.5
        while True:
            try:
                version = await self._list()
                self.synced.set()
                delay = 0.5
                while True:
                    version = await self._watch(version)
            except ApiError as error:
                if error.status == 410:  # what we know is too old to go on from
                    continue
                _log.warning("%s: %s", self.kind, error)
            await asyncio.sleep(delay * random.uniform(0.7, 1.3))
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
        for key in [key for key in self._objects if key not in seen]:
            self._remove(key)
        return str(page["metadata"]["resourceVersion"])

    async def _watch(self, version: str) -> str:
        query = {
            "labelSelector": self._labels,
            "resourceVersion": version,
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
                self._remove(_key(item))
            elif what != "BOOKMARK":
                self._set(item)
        return version

    def _set(self, item: Object) -> None:
        item["metadata"].pop("managedFields", None)
        (item["metadata"].get("annotations") or {}).pop("kubectl.kubernetes.io/last-applied-configuration", None)
        key = _key(item)
        before = self._objects.get(key)
        if before is not None:
            if before["metadata"].get("uid") == item["metadata"].get("uid"):
                old, new = before["metadata"]["resourceVersion"], item["metadata"]["resourceVersion"]
                if old == new or (old.isdigit() and new.isdigit() and int(new) < int(old)):
                    return
            self._unindex(key, before)
        self._objects[key] = item
        if self._index is not None:
            self._indexed.setdefault(self._index(item), {})[key] = item
        self._changed(self.kind, before, item)

    def _remove(self, key: tuple[str, str]) -> None:
        before = self._objects.pop(key, None)
        if before is not None:
            self._unindex(key, before)
            self._changed(self.kind, before, None)

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
