"""What the API server does not take is kept, so that it is not tried again at once."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from taskloom_operator.actions import Create, Delete
from taskloom_operator.api import Api
from taskloom_operator.apply import Hands
from taskloom_operator.metrics import Metrics
from taskloom_operator.scheduler_api import Schedulers

POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "demo-worker-1", "namespace": "lab"}}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            400,
            'Pod in version "v1" cannot be handled as a Pod: json: cannot unmarshal number',
        ),  # a pod template of the user's
        (403, "exceeded quota: few"),
        (422, "spec.containers[0].image: Required value"),
    ],
)
def test_a_pod_that_is_refused_is_remembered_with_the_reason(code, words):
    async def refuse(request):
        return web.json_response({"kind": "Status", "code": code, "reason": "Invalid", "message": words}, status=code)

    async def story():
        application = web.Application()
        application.router.add_post("/api/v1/namespaces/lab/pods", refuse)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        configuration = Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")
        configuration.proxy = None
        metrics = Metrics()
        schedulers = Schedulers(metrics)
        try:
            async with ApiClient(configuration) as client:
                hands = Hands(Api(client, metrics), schedulers, metrics, lambda found: None)
                for count in (1, 2):
                    assert not await hands.do("lab", "demo", [Create(POD)], [])
                    found = hands.memory.refused["lab", "demo"]["default"]
                    assert words in found.message
                    assert found.count == count
        finally:
            await schedulers.close()
            await runner.cleanup()

    asyncio.run(story())


@pytest.mark.parametrize(("code", "going"), [(200, True), (404, True), (409, True), (500, False), (403, False)])
def test_a_pod_whose_deletion_failed_counts_as_there(code, going):
    """Else another one would be made in its place, and there would be one more than was asked for."""

    async def answer(request):
        return web.json_response({"kind": "Status", "code": code, "reason": "Any", "message": "so it is"}, status=code)

    async def story():
        application = web.Application()
        application.router.add_delete("/api/v1/namespaces/lab/pods/{name}", answer)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        configuration = Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")
        configuration.proxy = None
        metrics = Metrics()
        schedulers = Schedulers(metrics)
        try:
            async with ApiClient(configuration) as client:
                hands = Hands(Api(client, metrics), schedulers, metrics, lambda found: None)
                assert await hands.do("lab", "demo", [Delete("Pod", "lab", "demo-worker-1", "u")], []) is going
                assert hands.memory.uids_deleted() == (frozenset({"u"}) if going else frozenset())
        finally:
            await schedulers.close()
            await runner.cleanup()

    asyncio.run(story())
