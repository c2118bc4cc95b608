"""The operator's shell, against an API server and schedulers over real sockets."""

from __future__ import annotations

import asyncio
import base64
import ssl
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509

from taskloom_operator import __version__, apply, reconcile, watch
from taskloom_operator.actions import Ask
from taskloom_operator.apply import make_certificate
from taskloom_operator.manifests import naming
from taskloom_operator.metrics import Metrics
from taskloom_operator.names import CLUSTER, COMPONENT, MANAGED_BY, OPERATOR
from taskloom_operator.observe import Settings
from taskloom_operator.reconcile import Controller, Queue
from taskloom_operator.scheduler_api import Credentials, SchedulerError, Schedulers

from .apiserver import ApiServer, Dropped, refused

KEY = "cluster", "lab", "demo"


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """Attempts that follow each other quickly."""
    monkeypatch.setattr(watch, "FIRST", 0.01)
    monkeypatch.setattr(watch, "LONGEST", 0.05)
    monkeypatch.setattr(reconcile, "AGAIN", (0.02, 0.1))


def tell(story, *args):
    async def all_of_it():
        async with asyncio.timeout(40), ApiServer() as server:
            await story(server, *args)

    asyncio.run(all_of_it())


async def soon(server, condition, seconds=20.0):
    """Wait until something is so that no request need tell of."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, condition
        await asyncio.sleep(0.005)


@asynccontextmanager
async def controlling(server, namespaces=(), where=None):
    schedulers = Schedulers(server.metrics, where or (lambda namespace, name: ("127.0.0.1", 1)))
    controller = Controller(server.api, schedulers, server.metrics, Settings("taskloom:1"), namespaces)
    task = asyncio.ensure_future(controller.run())
    try:
        yield controller
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.wait([task])
        await schedulers.close()


async def cluster(server, name="demo", namespace="lab", **spec):
    spec = spec or {"workers": {"replicas": 2}}
    await server.put("TaskCluster", name, namespace, spec=spec, metadata={"annotations": {}})


async def scheduler_runs(server, name="demo", namespace="lab"):
    """What the controllers of Kubernetes do for a Deployment."""
    labels = {MANAGED_BY: OPERATOR, CLUSTER: name, COMPONENT: naming.SCHEDULER}
    await server.put("Pod", f"{name}-scheduler-1", namespace, metadata={"labels": labels}, status={"phase": "Running"})
    await server.put("Deployment", f"{name}-scheduler", namespace, status={"availableReplicas": 1})


def of(server, plural, namespace="lab"):
    return sorted(key[2] for key in server.objects if key[0] == plural and key[1] == namespace)


def workers(server, namespace="lab"):
    return [name for name in of(server, "pods", namespace) if "-worker-" in name]


def calls(server, *methods):
    return [call for call in server.calls if call[0] in methods]


def at_rest(controller):
    queue = controller._queue
    return not queue._busy and all(when > time.monotonic() + 0.5 for when in queue._due.values())


async def settled(server, controller):
    """Wait until nothing is to be looked at."""
    await soon(server, lambda: controller._synced and at_rest(controller))


def made(server, name="demo", namespace="lab"):
    return server.get("Deployment", f"{name}-scheduler", namespace) is not None


# --- clusters


def test_a_cluster_is_made_and_nothing_more_is_asked():
    async def story(server):
        await cluster(server)
        async with controlling(server) as controller:
            await server.until(lambda: made(server))
            assert of(server, "secrets") == ["demo-token"]
            assert of(server, "services") == ["demo-scheduler"]
            assert of(server, "networkpolicies") == ["demo"]
            assert not workers(server)
            await scheduler_runs(server)
            await server.until(lambda: len(workers(server)) == 2)
            await settled(server, controller)
            assert server.get("TaskCluster", "demo")["status"]["desiredReplicas"] == 2
            # each pod was one request, and no request failed
            assert len([call for call in calls(server, "POST") if call[1].endswith("/pods")]) == 2
            # the Secret is read by name, and not each time
            assert len([call for call in calls(server, "GET") if "/secrets" in call[1]]) <= 2
            assert all(call[1].endswith("/demo-token") for call in calls(server, "GET") if "/secrets" in call[1])
            before = len(server.calls)
            await server.bookmarks()
            async with looked_at(server, controller):
                await server.put("Pod", "demo-scheduler-1", status={"phase": "Running", "message": "news"})
            assert len(server.calls) == before
            assert server.agents == {f"{OPERATOR}/{__version__}"}

    tell(story)


@asynccontextmanager
async def looked_at(server, controller):
    """Wait until what is done here was looked at."""
    before = reconciled(server)
    yield
    await soon(server, lambda: reconciled(server) > before)
    await settled(server, controller)


def reconciled(server, outcome="done"):
    return server.metrics.reconciles.labels("cluster", outcome)._value.get()


def test_the_secret_is_fit_for_the_scheduler():
    async def story(server):
        await cluster(server)
        async with controlling(server):
            await server.until(lambda: made(server))
            data = server.get("Secret", "demo-token")["data"]
            assert set(data) == {"token", "tls.crt", "tls.key"}
            token = base64.b64decode(data["token"]).decode()
            assert token.endswith("\n")
            assert len(token) > 40
            with tempfile.TemporaryDirectory() as folder:
                for name in ("tls.crt", "tls.key"):
                    (Path(folder) / name).write_bytes(base64.b64decode(data[name]))
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(Path(folder) / "tls.crt", Path(folder) / "tls.key")
            certificate = x509.load_pem_x509_certificate(base64.b64decode(data["tls.crt"]))
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            assert set(names.get_values_for_type(x509.DNSName)) == {
                "demo-scheduler",
                "demo-scheduler.lab",
                "demo-scheduler.lab.svc",
                "demo-scheduler.lab.svc.cluster.local",
                "localhost",
            }

    tell(story)


@pytest.mark.parametrize("namespaces", [(), ("lab", "other"), ("other", "lab")])
def test_what_a_user_changes_is_followed_in_each_namespace(namespaces):
    async def story(server):
        for namespace in ("lab", "other"):
            await cluster(server, namespace=namespace)
        async with controlling(server, namespaces):
            for namespace in ("lab", "other"):
                await server.until(lambda namespace=namespace: made(server, namespace=namespace))
                await scheduler_runs(server, namespace=namespace)
                await server.until(lambda namespace=namespace: len(workers(server, namespace)) == 2)
            for namespace in ("lab", "other"):
                await cluster(server, namespace=namespace, workers={"replicas": 4})
                await server.until(lambda namespace=namespace: len(workers(server, namespace)) == 4)
                await server.until(
                    lambda namespace=namespace: (
                        server.get("TaskCluster", "demo", namespace)["status"]["desiredReplicas"] == 4
                    )
                )

    tell(story)


def test_one_namespace_only():
    async def story(server):
        await cluster(server, namespace="other")
        await cluster(server)
        async with controlling(server, ("lab",)) as controller:
            await server.until(lambda: made(server))
            await settled(server, controller)
            assert not of(server, "deployments", "other")
            assert all("/namespaces/lab/" in call[1] for call in server.calls)

    tell(story)


def test_a_cluster_that_is_made_anew_while_the_old_secret_is_still_there():
    async def story(server):
        await cluster(server)
        async with controlling(server) as controller:
            await server.until(lambda: made(server))
            await settled(server, controller)
            for kind, name in (
                ("Deployment", "demo-scheduler"),
                ("Service", "demo-scheduler"),
                ("NetworkPolicy", "demo"),
            ):
                await server.remove(kind, name)
            await server.remove("TaskCluster", "demo")
            await cluster(server)
            uid = server.get("TaskCluster", "demo")["metadata"]["uid"]
            await server.until(
                lambda: any(
                    "earlier TaskCluster" in one["message"]
                    for one in (server.get("TaskCluster", "demo").get("status") or {}).get("conditions", [])
                )
            )
            assert not made(server)
            await server.remove("Secret", "demo-token")
            await server.until(lambda: made(server))
            assert server.get("Secret", "demo-token")["metadata"]["ownerReferences"][0]["uid"] == uid

    tell(story)


def test_a_pod_whose_deletion_fails_is_deleted_after_all():
    async def story(server):
        await cluster(server)
        async with controlling(server) as controller:
            await server.until(lambda: made(server))
            await scheduler_runs(server)
            await server.until(lambda: len(workers(server)) == 2)
            await settled(server, controller)
            failed = []

            def trouble(request):
                if request.method == "DELETE" and len(failed) < 3:
                    failed.append(request.path)
                    if len(failed) == 2:
                        raise Dropped
                    return refused(500, "InternalError")
                return None

            server.trouble = trouble
            await cluster(server, workers={"replicas": 0})
            await server.until(lambda: not workers(server))
            assert len(failed) == 3

    tell(story)


def test_no_pod_more_than_wanted_while_the_watch_says_nothing(monkeypatch):
    """Writes work, watches do not: however long that takes, what was made is not made again."""

    async def story(server):
        await cluster(server)
        async with controlling(server) as controller:
            await server.until(lambda: made(server))
            await scheduler_runs(server)
            await server.until(lambda: len(workers(server)) == 2)
            await settled(server, controller)
            server.mute_kinds = {"pods"}
            await cluster(server, workers={"replicas": 4})
            await server.until(lambda: len(workers(server)) == 4)
            await settled(server, controller)
            assert len(controller._hands.memory.expected["lab", "demo"]) == 2
            monkeypatch.setattr(apply, "EXPECTED", 0.0)  # that was long enough
            for n in range(3):
                async with looked_at(server, controller):
                    await server.put("TaskCluster", "demo", metadata={"labels": {"n": str(n)}})
            # they were asked for by name instead
            assert len([call for call in calls(server, "GET") if "/pods/" in call[1]]) == 2
            assert ("lab", "demo") not in controller._hands.memory.expected
            assert len(workers(server)) == 4

    tell(story)


def test_who_may_not_list_is_told_and_begins_when_it_may():
    async def story(server):
        server.trouble = lambda request: refused(403, "Forbidden") if "/taskjobs" in request.path else None
        await cluster(server)
        async with controlling(server):
            await server.until(lambda: len([call for call in server.calls if "/taskjobs" in call[1]]) > 3)
            assert not made(server)
            server.trouble = lambda request: None
            await server.until(lambda: made(server))

    tell(story)


def test_a_look_that_fails_is_tried_again_and_holds_up_nobody_else():
    async def story(server):
        def trouble(request):
            return refused(500, "InternalError") if "/bad-token" in request.path else None

        server.trouble = trouble
        await cluster(server, "bad")
        await cluster(server)
        async with controlling(server):
            await server.until(lambda: made(server))
            await soon(server, lambda: reconciled(server, "failed") >= 3)
            assert not made(server, "bad")
            server.trouble = lambda request: None
            await server.until(lambda: made(server, "bad"))

    tell(story)


def test_phases_are_counted():
    async def story(server):
        await cluster(server)
        await cluster(server, "other", suspend=True)
        async with controlling(server):
            text = lambda: server.metrics.text().decode()  # noqa: E731
            suspended = 'taskloom_operator_resources{kind="TaskCluster",phase="Suspended"}'
            await soon(server, lambda: f"{suspended} 1.0" in text())
            await server.remove("TaskCluster", "other")
            await soon(server, lambda: f"{suspended} 0.0" in text())
            assert 'taskloom_operator_api_requests_total{verb="POST"}' in text()

    tell(story)


def test_the_log_of_a_job_is_a_text_whatever_is_in_it():
    async def story(server):
        await server.put("Pod", "done", log='{"a": 1}\n')
        controller = Controller(server.api, Schedulers(server.metrics), server.metrics, Settings("taskloom:1"))
        assert await controller._tail("lab", "done") == '{"a": 1}\n'
        server.trouble = lambda request: refused(400, "BadRequest", "container is waiting to start")
        assert await controller._tail("lab", "done") == ""

    tell(story)


# --- schedulers


class Scheduler:
    """One over HTTPS, of which only the answers are made up."""

    def __init__(self, hosts=("demo-scheduler.lab.svc",), token="secret"):
        self.certificate, self.key = make_certificate(hosts)
        self.token = token
        self.asked = []
        self.waiting = 0
        self.wish = {"version": "1", "workers": 0, "why": "nothing", "unmet": [], "spare": [], "settled": True}
        self.news = asyncio.Event()

    @property
    def credentials(self):
        return Credentials(self.token, self.certificate)

    @property
    def where(self):
        return lambda namespace, name: ("127.0.0.1", self.port)

    async def answer(self, request):
        path = request.match_info["path"]
        self.asked.append((path, dict(request.query)))
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response({"error": "the token is missing or wrong"}, status=401)
        if path == "wish":
            if request.query.get("since") == self.wish["version"]:
                self.waiting += 1
                self.news.clear()
                try:
                    await self.news.wait()
                finally:
                    self.waiting -= 1
            return web.json_response({**self.wish, "changed": True})
        return web.json_response({path: []})

    async def __aenter__(self):
        application = web.Application()
        application.router.add_route("*", "/api/v1/{path}", self.answer)
        self.runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self.runner.setup()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory() as folder:
            for name, text in (("crt", self.certificate), ("key", self.key)):
                (Path(folder) / name).write_text(text)
            context.load_cert_chain(Path(folder) / "crt", Path(folder) / "key")
        await web.TCPSite(self.runner, "127.0.0.1", 0, ssl_context=context).start()
        self.port = self.runner.addresses[0][1]
        return self

    async def __aexit__(self, *error):
        await self.runner.cleanup()


def ask(story):
    async def all_of_it():
        async with asyncio.timeout(30), Scheduler() as scheduler:
            schedulers = Schedulers(Metrics(), scheduler.where)
            try:
                await story(scheduler, schedulers)
            finally:
                await schedulers.close()

    asyncio.run(all_of_it())


def test_a_scheduler_is_asked_for_what_is_wanted_and_no_more():
    async def story(scheduler, schedulers):
        view = await schedulers.view("lab", "demo", scheduler.credentials, Ask.WISH | Ask.WORKERS, 2)
        assert view.reachable, view.error
        assert view.wish.workers == 0
        assert view.workers == {}
        assert view.retirements is None
        assert sorted(scheduler.asked) == [("wish", {"threads": "2"}), ("workers", {})]

    ask(story)


def test_the_token_goes_to_nobody_else():
    """Neither to who has another certificate, nor to who has that of another cluster."""

    async def story(scheduler, schedulers):
        other, _ = make_certificate(["demo-scheduler.lab.svc"])
        view = await schedulers.view("lab", "demo", Credentials("secret", other), Ask.WISH, 1)
        assert not view.reachable
        assert "CERTIFICATE" in view.error
        view = await schedulers.view("lab", "another", scheduler.credentials, Ask.WISH, 1)
        assert not view.reachable
        assert "CERTIFICATE" in view.error
        assert not scheduler.asked

    ask(story)


def test_a_scheduler_that_refuses_says_why():
    async def story(scheduler, schedulers):
        wrong = Credentials("wrong", scheduler.certificate)
        with pytest.raises(SchedulerError, match="the token is missing or wrong") as caught:
            await schedulers.get("lab", "demo", wrong, "wish")
        assert caught.value.status == 401

    ask(story)


def test_many_that_wait_for_news_hold_up_nobody():
    async def story(scheduler, schedulers):
        many = [
            asyncio.ensure_future(schedulers.news("lab", "demo", scheduler.credentials, "1", 1)) for _ in range(130)
        ]
        await soon(None, lambda: scheduler.waiting == 130)
        view = await schedulers.view("lab", "demo", scheduler.credentials, Ask.WISH, 1)
        assert view.reachable, view.error
        scheduler.news.set()
        for said in await asyncio.gather(*many):
            assert said["version"] == "1"

    ask(story)


def autoscaled(server):
    return cluster(server, workers={"autoscale": {"min": 0, "max": 5}})


async def with_credentials(server, scheduler):
    """The Secret has what this scheduler takes."""
    data = {"token": scheduler.token + "\n", "tls.crt": scheduler.certificate, "tls.key": scheduler.key}
    await server.put("Secret", "demo-token", data={k: base64.b64encode(v.encode()).decode() for k, v in data.items()})


def test_a_wish_is_followed_as_it_changes():
    async def story(server):
        async with Scheduler() as scheduler:
            await with_credentials(server, scheduler)
            await autoscaled(server)
            async with controlling(server, where=scheduler.where):
                await server.until(lambda: made(server))
                await scheduler_runs(server)
                await soon(server, lambda: scheduler.waiting == 1)
                assert not workers(server)
                scheduler.wish |= {"version": "2", "workers": 3, "why": "work"}
                scheduler.news.set()
                await server.until(lambda: len(workers(server)) == 3)
                await soon(server, lambda: scheduler.waiting == 1)
                await server.put("TaskCluster", "demo", spec={"workers": {"replicas": 3}})
                # nobody waits any longer
                await soon(server, lambda: scheduler.waiting == 0)

    tell(story)


def test_a_scheduler_that_does_not_answer_is_not_asked_without_a_pause(monkeypatch):
    monkeypatch.setattr(reconcile, "DEAF", (1000.0, 1000.0))

    async def story(server):
        knocked = []

        async def shut(reader, writer):
            knocked.append(1)
            writer.close()

        door = await asyncio.start_server(shut, "127.0.0.1", 0)
        async with door:
            port = door.sockets[0].getsockname()[1]
            await autoscaled(server)
            async with controlling(server, where=lambda namespace, name: ("127.0.0.1", port)) as controller:
                await server.until(lambda: made(server))
                await scheduler_runs(server)
                await soon(server, lambda: len(knocked) >= 2)
                await settled(server, controller)
                before = len(knocked)
                for n in range(20):  # meanwhile others are looked at
                    await cluster(server, f"other{n}")
                    await server.until(lambda n=n: made(server, f"other{n}"))
                assert len(knocked) - before <= 2

    tell(story)


def test_a_wish_that_changes_all_the_time_is_asked_for_with_pauses():
    async def story(server):
        async with Scheduler() as scheduler:
            await with_credentials(server, scheduler)
            await autoscaled(server)

            class Restless(dict):
                def __getitem__(self, name):
                    return str(time.monotonic()) if name == "version" else super().__getitem__(name)

                def keys(self):
                    return super().keys()

            scheduler.wish = Restless(scheduler.wish)
            slept = []
            sleep = asyncio.sleep
            async with controlling(server, where=scheduler.where):
                await server.until(lambda: made(server))
                asyncio.sleep = lambda seconds, *args: slept.append(seconds) or sleep(0, *args)
                try:
                    await scheduler_runs(server)
                    waits = lambda: [query for path, query in scheduler.asked if "timeout" in query]  # noqa: E731
                    while len(waits()) < 5:
                        await sleep(0.005)
                finally:
                    asyncio.sleep = sleep
            assert slept.count(reconcile.PAUSE) >= 4

    tell(story)


def test_another_certificate_in_the_secret_is_found_out():
    async def story(server):
        async with Scheduler() as scheduler:
            old = Scheduler()
            await with_credentials(server, old)
            await autoscaled(server)
            async with controlling(server, where=scheduler.where):
                await server.until(lambda: made(server))
                await with_credentials(server, scheduler)
                scheduler.wish |= {"workers": 1, "why": "work"}
                await scheduler_runs(server)
                await server.until(lambda: len(workers(server)) == 1)

    tell(story)


def test_another_token_is_used_once_it_is_rotated():
    async def story(server):
        async with Scheduler() as scheduler:
            await with_credentials(server, scheduler)
            await autoscaled(server)
            async with controlling(server, where=scheduler.where):
                await server.until(lambda: made(server))
                await scheduler_runs(server)
                await soon(server, lambda: scheduler.waiting == 1)
                await server.put("TaskCluster", "demo", metadata={"annotations": {"taskloom.dev/rotate-token": "1"}})
                tokens = lambda: base64.b64decode(server.get("Secret", "demo-token")["data"]["token"]).split()  # noqa: E731
                await server.until(lambda: len(tokens()) == 2)
                assert tokens()[1] == b"secret"
                scheduler.token = tokens()[0].decode()
                scheduler.wish |= {"version": "2", "workers": 2, "why": "work"}
                scheduler.news.set()
                await server.until(lambda: len(workers(server)) == 2)

    tell(story)


# --- the queue


def queue(story):
    async def all_of_it():
        async with asyncio.timeout(20):
            await story(Queue(Metrics()))

    asyncio.run(all_of_it())


def keys(count):
    return [("cluster", "lab", f"c{n}") for n in range(count)]


def test_what_is_added_twice_is_handed_out_once():
    async def story(one):
        a, b = keys(2)
        for key in (a, b, a, a):
            one.add(key)
        assert await one.take() == a
        assert await one.take() == b
        taking = asyncio.ensure_future(one.take())
        one.done(a)
        one.done(b)
        one.add(b)
        assert await taking == b

    queue(story)


def test_one_at_a_time_and_what_happens_meanwhile_counts():
    async def story(one):
        (a,) = keys(1)
        one.add(a)
        assert await one.take() == a
        one.add(a)
        one.add(a)
        taking = asyncio.ensure_future(one.take())
        b = ("job", "lab", "b")
        one.add(b)
        assert await taking == b
        one.done(a)
        assert await one.take() == a
        one.done(a)
        assert not one._due

    queue(story)


def test_the_earlier_of_two_times_counts():
    async def story(one):
        a, b = keys(2)
        one.add(a, 1000.0)
        one.add(b, 0.02)
        assert await one.take() == b
        taking = asyncio.ensure_future(one.take())
        one.add(a)
        one.add(a, 2000.0)
        assert await taking == a
        one.done(a)
        assert not one._due

    queue(story)


def test_many_hands_take_all_and_none_twice():
    async def story(one):
        busy, most, seen = set(), 0, []

        async def hand():
            nonlocal most
            while True:
                key = await one.take()
                assert key not in busy
                busy.add(key)
                most = max(most, len(busy))
                await asyncio.sleep(0)
                busy.discard(key)
                seen.append(key)
                one.done(key)

        hands = [asyncio.ensure_future(hand()) for _ in range(4)]
        all_of_them = keys(50)
        for n, key in enumerate(all_of_them * 3):
            one.add(key, 0.001 * (n % 7))
            if n % 10 == 0:
                await asyncio.sleep(0)
        await soon(None, lambda: not one._due and not busy)
        assert set(seen) == set(all_of_them)
        assert most > 1
        for task in hands:
            task.cancel()
        results = await asyncio.gather(*hands, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)

    queue(story)
