"""The Lease, against an API server that keeps Leases and nothing else."""

from __future__ import annotations

import asyncio
import copy
import json

import pytest
from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from taskloom_operator import leader
from taskloom_operator.api import Api
from taskloom_operator.leader import lead
from taskloom_operator.metrics import Metrics

LEASES = "/apis/coordination.k8s.io/v1/namespaces/system/leases"


class Leases:
    """The API server. It changes a Lease only for who has seen the one before."""

    def __init__(self):
        self.kept = {}
        self.version = 0
        self.asked = 0
        self.answers = asyncio.Event()  # while it is not set, nobody gets an answer
        self.answers.set()

    def put(self, name, lease):
        self.version += 1
        lease["metadata"] |= {"namespace": "system", "resourceVersion": str(self.version)}
        self.kept[name] = lease
        return web.json_response(lease)

    @staticmethod
    def refused(code, reason):
        return web.json_response({"kind": "Status", "code": code, "reason": reason, "message": reason}, status=code)

    async def create(self, request):
        lease = await request.json()
        name = lease["metadata"]["name"]
        if set(request.query) - {"fieldManager"}:
            return self.refused(400, f"BadRequest: {request.query_string}")
        return self.refused(409, "AlreadyExists") if name in self.kept else self.put(name, lease)

    async def get(self, request):
        found = self.kept.get(request.match_info["name"])
        return self.refused(404, "NotFound") if found is None else web.json_response(found)

    async def change(self, request):
        name = request.match_info["name"]
        given, before = json.loads(await request.text()), self.kept[name]
        if given["metadata"].get("resourceVersion") != before["metadata"]["resourceVersion"]:
            return self.refused(409, "Conflict")
        if request.method == "PUT":
            return self.put(name, given)
        merged = copy.deepcopy(before)
        merged["spec"] |= given["spec"]
        return self.put(name, merged)

    @property
    def holder(self):
        found = self.kept.get("taskloom-operator")
        return found and found["spec"]["holderIdentity"]

    async def start(self):
        @web.middleware
        async def late(request, handler):
            self.asked += 1
            await self.answers.wait()
            return await handler(request)

        application = web.Application(middlewares=[late])
        application.router.add_post(LEASES, self.create)
        application.router.add_get(LEASES + "/{name}", self.get)
        application.router.add_put(LEASES + "/{name}", self.change)
        application.router.add_patch(LEASES + "/{name}", self.change)
        self.runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{self.runner.addresses[0][1]}"


def run(story):
    async def all_of_it():
        leases = Leases()
        configuration = Configuration(host=await leases.start())
        configuration.proxy = None
        try:
            async with ApiClient(configuration) as client:
                await asyncio.wait_for(story(leases, Api(client, Metrics())), 60)
        finally:
            await leases.runner.cleanup()

    asyncio.run(all_of_it())


def candidate(api, name):
    """A replica; the event is set while it acts."""
    acts = asyncio.Event()

    async def act():
        acts.set()
        try:
            await asyncio.Event().wait()
        finally:
            acts.clear()

    return asyncio.ensure_future(lead(api, "system", name, act)), acts


async def acting(task, acts):
    """Wait until a replica acts; what it says if it never will."""
    wait = asyncio.ensure_future(acts.wait())
    await asyncio.wait([task, wait], return_when=asyncio.FIRST_COMPLETED)
    wait.cancel()
    if task.done():
        task.result()
    assert acts.is_set()


async def end(task):
    task.cancel()
    await asyncio.wait([task])


def test_the_first_one_makes_the_lease_and_acts_and_gives_it_back():
    async def story(leases, api):
        task, acts = candidate(api, "one")
        await acting(task, acts)
        assert leases.holder == "one"
        await end(task)
        assert leases.holder == ""
        assert not acts.is_set()

    run(story)


def test_the_second_one_acts_when_the_first_has_gone():
    async def story(leases, api):
        first, acts = candidate(api, "one")
        await acting(first, acts)
        second, follows = candidate(api, "two")
        await end(first)
        await acting(second, follows)
        assert leases.holder == "two"
        assert not acts.is_set()
        await end(second)

    run(story)


def test_who_acts_and_fails_says_so():
    async def story(leases, api):
        async def act():
            raise ZeroDivisionError("it was nothing")

        with pytest.raises(ZeroDivisionError, match="it was nothing"):
            await lead(api, "system", "one", act)
        assert leases.holder == ""

    run(story)


def test_who_gets_no_answer_stops_before_another_one_may_begin(monkeypatch):
    for name, seconds in {"DURATION": 3, "RENEW": 2, "RETRY": 1, "HOLD": 1.5, "ATTEMPT": 0.2}.items():
        monkeypatch.setattr(leader, name, seconds)

    async def story(leases, api):
        task, acts = candidate(api, "one")
        await acting(task, acts)
        leases.answers.clear()
        await asyncio.wait_for(asyncio.shield(task), 10)
        assert not acts.is_set()
        assert leases.holder == "one"  # it could not be given back
        leases.answers.set()
        second, follows = candidate(api, "two")
        await acting(second, follows)
        await end(second)

    run(story)


def test_one_request_without_an_answer_is_no_reason_to_stop(monkeypatch):
    for name, seconds in {"RETRY": 1, "ATTEMPT": 0.1}.items():
        monkeypatch.setattr(leader, name, seconds)

    async def story(leases, api):
        task, acts = candidate(api, "one")
        await acting(task, acts)
        leases.answers.clear()
        asked = leases.asked
        while leases.asked < asked + 2:
            await asyncio.sleep(0.01)
        leases.answers.set()
        version = leases.version
        while leases.version == version:
            await asyncio.sleep(0.01)
        assert acts.is_set()
        assert not task.done()
        await end(task)
        assert leases.holder == ""

    run(story)


def test_one_whose_lease_another_one_has_taken_stops(monkeypatch):
    for name, seconds in {"DURATION": 3, "RENEW": 2, "RETRY": 1, "HOLD": 1.5, "ATTEMPT": 0.2}.items():
        monkeypatch.setattr(leader, name, seconds)

    async def story(leases, api):
        task, acts = candidate(api, "one")
        await acting(task, acts)
        leases.put("taskloom-operator", {**leases.kept["taskloom-operator"], "spec": {
            "holderIdentity": "somebody", "leaseDurationSeconds": 60,
            "acquireTime": "2026-01-01T00:00:00.000000Z", "renewTime": "2026-01-01T00:00:00.000000Z",
        }})  # fmt: skip
        await asyncio.wait_for(asyncio.shield(task), 10)
        assert not acts.is_set()
        assert leases.holder == "somebody"

    run(story)
