"""What is listed and watched, against an API server that breaks off, forgets, and says nonsense."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from taskloom_operator import watch
from taskloom_operator.watch import Reflector

from .apiserver import ApiServer, Dropped, refused

OURS = {"labels": {"app": "ours"}}


class Seen:
    """What a reflector has told."""

    def __init__(self, server):
        self.server = server
        self.told = []

    def __call__(self, kind, before, now):
        self.told.append((None if before is None else version(before), None if now is None else version(now)))
        self.server.tell()


def version(found):
    return int(found["metadata"]["resourceVersion"])


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """Attempts that follow each other quickly."""
    monkeypatch.setattr(watch, "FIRST", 0.01)
    monkeypatch.setattr(watch, "LONGEST", 0.05)


@asynccontextmanager
async def reflecting(server, kind="Pod", namespace=None, labels="app=ours", index=None):
    seen = Seen(server)
    reflector = Reflector(server.api, kind, namespace, labels, seen, index)
    reflector.seen = seen
    task = asyncio.ensure_future(reflector.run())
    try:
        yield reflector
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.wait([task])


def tell(story):
    async def all_of_it():
        async with asyncio.timeout(30), ApiServer() as server:
            await story(server)

    asyncio.run(all_of_it())


def names(reflector):
    return sorted(found["metadata"]["name"] for found in reflector.all())


def lists(server):
    return [call for call in server.calls if call[0] == "GET"]


async def watched(server, reflector, count=1):
    await reflector.synced.wait()
    await server.until(lambda: server.open == count)


def test_what_is_there_and_what_comes_changes_and_goes():
    async def story(server):
        await server.put("Pod", "a", metadata=OURS)
        await server.put("Pod", "other")
        async with reflecting(server) as found:
            await watched(server, found)
            assert names(found) == ["a"]
            assert "managedFields" not in found.get("lab", "a")["metadata"]
            assert found.get("lab", "a")["kind"] == "Pod"
            assert found.get("lab", "a")["apiVersion"] == "v1"
            await server.put("Pod", "b", metadata=OURS)
            await server.until(lambda: names(found) == ["a", "b"])
            assert "managedFields" not in found.get("lab", "b")["metadata"]
            await server.put("Pod", "a", metadata=OURS, status={"phase": "Running"})
            await server.until(lambda: found.get("lab", "a").get("status"))
            await server.remove("Pod", "a")
            await server.until(lambda: names(found) == ["b"])
            assert found.get("lab", "a") is None
            assert len(lists(server)) == 1
            assert len(server.watches) == 1

    tell(story)


def test_long_lists_come_in_pages(monkeypatch):
    monkeypatch.setattr(watch, "PAGE", 3)

    async def story(server):
        for n in range(8):
            await server.put("Pod", f"p{n}", metadata=OURS)
        async with reflecting(server) as found:
            await watched(server, found)
            assert names(found) == [f"p{n}" for n in range(8)]
            assert len(lists(server)) == 3

    tell(story)


def test_a_watch_that_ends_or_breaks_goes_on_where_it_was_and_lists_nothing():
    async def story(server):
        await server.put("Pod", "a", metadata=OURS)
        async with reflecting(server) as found:
            for n, end in enumerate([None, "cut", None, "cut"]):
                await server.until(lambda n=n: len(server.watches) == n + 1 and server.open == 1)
                name = f"p{n}"
                await server.put("Pod", name, metadata=OURS)
                await server.until(lambda name=name: name in names(found))
                await server.say(end)
                # while nobody watches
                await server.until(lambda n=n: server.open == 0 or len(server.watches) > n + 1)
                await server.put("Pod", f"{name}-missed", metadata=OURS)
                await server.until(lambda name=name: f"{name}-missed" in names(found))
            await server.until(lambda: server.open == 1)
            assert len(lists(server)) == 1
            # nothing is told twice
            assert len(found.seen.told) == len(set(found.seen.told))

    tell(story)


def test_bookmarks_are_remembered():
    async def story(server):
        async with reflecting(server) as found:
            await watched(server, found)
            for n in range(5):
                await server.put("Service", f"s{n}")
            await server.bookmarks()
            await server.say(None)
            await server.until(lambda: len(server.watches) == 2)
            assert server.watches[1][1]["resourceVersion"] == str(server.version)
            assert server.watches[1][1]["allowWatchBookmarks"] == "true"
            assert len(lists(server)) == 1

    tell(story)


def test_what_is_too_old_is_listed_anew_and_what_has_gone_meanwhile_is_told():
    async def story(server):
        for name in ("stays", "goes", "changes"):
            await server.put("Pod", name, metadata=OURS)
        async with reflecting(server) as found:
            await watched(server, found)
            server.trouble = lambda request: refused(503, "ServiceUnavailable") if "watch" in request.query else None
            await server.say("cut")
            await server.until(lambda: len(server.watches) >= 3)
            await server.remove("Pod", "goes")
            await server.put("Pod", "changes", metadata=OURS, status={"phase": "Running"})
            await server.put("Pod", "comes", metadata=OURS)
            server.oldest = server.version
            server.trouble = lambda request: None
            await server.until(lambda: names(found) == ["changes", "comes", "stays"])
            assert found.get("lab", "changes")["status"] == {"phase": "Running"}
            assert len(lists(server)) == 2
            told = found.seen.told[3:]
            assert len(told) == 3  # not the one that stays

    tell(story)


def test_an_api_server_that_always_says_too_old_is_not_asked_without_a_pause():
    async def story(server):
        server.oldest = 1 << 40
        async with reflecting(server) as found:
            await found.synced.wait()
            slept = []
            sleep, asyncio.sleep = asyncio.sleep, lambda seconds: slept.append(seconds) or sleep(seconds)
            try:
                begun = len(server.watches)
                await server.until(lambda: len(server.watches) >= begun + 5)
            finally:
                asyncio.sleep = sleep
            assert len(slept) >= 4

    tell(story)


def test_watches_that_end_at_once_are_not_begun_without_a_pause():
    async def story(server):
        slept = []
        sleep, asyncio.sleep = asyncio.sleep, lambda seconds: slept.append(seconds) or sleep(seconds)
        server.trouble = lambda request: web.Response(text="") if "watch" in request.query else None
        try:
            async with reflecting(server) as found:
                await found.synced.wait()
                await server.until(lambda: len(server.watches) >= 6)
        finally:
            asyncio.sleep = sleep
        assert len(slept) >= 4
        assert len(lists(server)) == 1

    tell(story)


@pytest.mark.parametrize(
    "nonsense",
    [b"{nonsense\n", b'{"type": "ADDED"}\n', b'{"type": "ADDED", "object": {}}\n', b'"text"\n', b"<html>\n"],
)
def test_nonsense_is_no_reason_to_end(nonsense):
    async def story(server):
        async with reflecting(server) as found:
            await watched(server, found)
            await server.say(nonsense)
            await server.put("Pod", "a", metadata=OURS)
            await server.until(lambda: names(found) == ["a"])

    tell(story)


def test_an_event_may_be_large_and_come_in_pieces():
    async def story(server):
        async with reflecting(server) as found:
            await watched(server, found)
            metadata = {**OURS, "name": "large", "namespace": "lab", "resourceVersion": "5000", "uid": "u"}
            event = {
                "type": "ADDED",
                "object": {"kind": "Pod", "metadata": metadata, "spec": {"text": "x" * 1_400_000}},
            }
            data = json.dumps(event).encode() + b"\n"
            for at in range(0, len(data), 100_001):
                await server.say(data[at : at + 100_001])
            await server.until(lambda: found.get("lab", "large") is not None)
            assert len(found.get("lab", "large")["spec"]["text"]) == 1_400_000

    tell(story)


def test_the_first_list_is_tried_until_it_can_be_had():
    async def story(server):
        await server.put("Pod", "a", metadata=OURS)
        answers = iter([refused(403, "Forbidden"), refused(404, "NotFound"), refused(500, "InternalError")])

        def trouble(request):
            answer = next(answers, None)
            if answer is None and len(server.calls) == 4:
                raise Dropped
            return answer

        server.trouble = trouble
        async with reflecting(server) as found:
            await found.synced.wait()
            assert names(found) == ["a"]
            assert len(lists(server)) == 5

    tell(story)


def test_a_silent_watch_is_given_up(monkeypatch):
    monkeypatch.setattr(watch, "SILENCE", 0.05)

    async def story(server):
        async with reflecting(server) as found:
            await watched(server, found)
            await server.until(lambda: len(server.watches) >= 3)
            assert len(lists(server)) == 1

    tell(story)


# --- what is known before the watch tells of it


def answer(server, name, **metadata):
    metadata = {**OURS, "name": name, "namespace": "lab", "managedFields": [], **metadata}
    return {"kind": "Pod", "apiVersion": "v1", "metadata": metadata}


def test_an_answer_counts_at_once_and_an_older_event_does_not_undo_it():
    async def story(server):
        await server.put("Pod", "a", metadata=OURS)
        async with reflecting(server) as found:
            await watched(server, found)
            server.mute = True
            before = await server.put("Pod", "a", metadata=OURS, status={"phase": "Pending"})
            event = {"type": "MODIFIED", "object": json.loads(json.dumps(before))}
            after = await server.put("Pod", "a", metadata=OURS, status={"phase": "Running"})
            found.put(json.loads(json.dumps(after)))
            assert found.get("lab", "a")["status"]["phase"] == "Running"
            await server.say(event)
            await server.bookmarks()
            later = await server.put("Pod", "b", metadata=OURS)
            await server.say({"type": "ADDED", "object": later})
            await server.until(lambda: found.get("lab", "b") is not None)
            assert found.get("lab", "a")["status"]["phase"] == "Running"

    tell(story)


def test_an_answer_that_comes_after_the_news_that_it_is_gone_brings_nothing_back():
    async def story(server):
        first = json.loads(json.dumps(await server.put("Pod", "a", metadata=OURS)))
        async with reflecting(server) as found:
            await watched(server, found)
            await server.remove("Pod", "a")
            await server.until(lambda: found.get("lab", "a") is None)
            found.put(first)
            assert found.get("lab", "a") is None
            # another one of its name is another one
            again = json.loads(json.dumps(answer(server, "a", uid="another", resourceVersion=str(server.version + 1))))
            found.put(again)
            assert found.get("lab", "a")["metadata"]["uid"] == "another"

    tell(story)


def test_news_that_an_earlier_one_is_gone_do_not_take_away_the_later_one():
    async def story(server):
        first = json.loads(json.dumps(await server.put("Pod", "a", metadata=OURS)))
        async with reflecting(server) as found:
            await watched(server, found)
            server.mute = True
            await server.remove("Pod", "a")
            gone = {**first, "metadata": {**first["metadata"], "resourceVersion": str(server.version)}}
            second = json.loads(json.dumps(await server.put("Pod", "a", metadata=OURS)))
            assert second["metadata"]["uid"] != first["metadata"]["uid"]
            found.put(second)
            await server.say({"type": "DELETED", "object": gone})
            later = await server.put("Pod", "b", metadata=OURS)
            await server.say({"type": "ADDED", "object": later})
            await server.until(lambda: found.get("lab", "b") is not None)
            assert found.get("lab", "a")["metadata"]["uid"] == second["metadata"]["uid"]

    tell(story)


def test_the_index_follows():
    async def story(server):
        def index(found):
            return found["metadata"]["labels"].get("group")

        async with reflecting(server, index=index) as found:
            await watched(server, found)
            await server.put("Pod", "a", metadata={"labels": {"app": "ours", "group": "x"}})
            await server.until(lambda: found.of("x"))
            await server.put("Pod", "a", metadata={"labels": {"app": "ours", "group": "y"}})
            await server.until(lambda: found.of("y"))
            assert not found.of("x")
            await server.remove("Pod", "a")
            await server.until(lambda: not found.of("y"))

    tell(story)


def test_what_objects_have_in_common_is_kept_once_and_nothing_becomes_something_else():
    """True is 1 is 1.0 for Python, and is not for Kubernetes."""
    parts = [True, 1, 1.0, "1", None, [], [1], [True], {}, {"a": 1}, {"a": True}, {"a": None}, [1, 2], [2, 1], 0, False]
    for one in parts:
        for other in parts:
            for wrap in (lambda part: part, lambda part: [part], lambda part: {"x": part, "y": "same"}):
                value, model = wrap(one), wrap(other)
                before = json.dumps(model)
                made = watch._shared(json.loads(json.dumps(value)), model)
                assert json.dumps(made) == json.dumps(value)
                assert json.dumps(model) == before
    first = watch._shared({"spec": {"containers": [{"image": "a", "env": [1]}]}, "metadata": {"name": "a"}}, None)
    second = watch._shared({"spec": {"containers": [{"image": "a", "env": [1]}]}, "metadata": {"name": "b"}}, first)
    assert second["spec"] is first["spec"]
    assert second["metadata"]["name"] == "b"
