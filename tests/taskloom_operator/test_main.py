"""The operator as a process, against an API server over a real socket."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from contextlib import asynccontextmanager, suppress

import aiohttp
import yaml

from taskloom_operator import __version__

from .apiserver import ApiServer, refused


def tell(story, tmp_path):
    async def all_of_it():
        async with asyncio.timeout(60), ApiServer() as server:
            config = {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": {"server": server.client.configuration.host}}],
                "users": [{"name": "u", "user": {"token": "mine"}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
            (tmp_path / "config").write_text(yaml.safe_dump(config))
            await story(server)

    asyncio.run(all_of_it())


def free():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Process:
    """One that runs."""

    def __init__(self, running, health, metrics):
        self.running, self.health, self.metrics = running, health, metrics

    async def get(self, path, port=0):
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{port or self.health}{path}") as answer,
        ):
            return answer.status, await answer.text()

    async def end(self, number=signal.SIGTERM):
        """Its exit status, and what it has written."""
        self.running.send_signal(number)
        _, said = await asyncio.wait_for(self.running.communicate(), 20)
        return self.running.returncode, said.decode()


@asynccontextmanager
async def process(tmp_path, *arguments, name="one"):
    health, metrics = free(), free()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("KUBERNETES_")}
    running = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "taskloom_operator",
        "--image=taskloom:1",
        f"--kubeconfig={tmp_path / 'config'}",
        "--lease-namespace=system",
        f"--health-port={health}",
        f"--metrics-port={metrics}",
        *arguments,
        env={**environment, "POD_NAME": name, "NO_PROXY": "*", "no_proxy": "*"},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Process(running, health, metrics)
    finally:
        with suppress(ProcessLookupError):
            running.kill()
        await running.communicate()


def holder(server):
    return ((server.get("Lease", "taskloom-operator", "system") or {}).get("spec") or {}).get("holderIdentity")


def made(server, namespace="lab"):
    return server.get("Deployment", "demo-scheduler", namespace)


async def cluster(server, namespace="lab"):
    await server.put("TaskCluster", "demo", namespace, spec={"workers": {"replicas": 1}})


def test_it_acts_says_how_it_is_and_ends_when_told(tmp_path):
    async def story(server):
        await cluster(server)
        async with process(tmp_path, "--log-format=json") as one:
            await server.until(lambda: made(server))
            assert holder(server) == "one"
            assert await one.get("/healthz") == (200, "ok")
            assert await one.get("/readyz") == (200, "ok")
            status, text = await one.get("/metrics", one.metrics)
            assert status == 200
            assert "taskloom_operator_leader 1.0" in text
            assert "process_resident_memory_bytes" in text
            assert server.agents == {f"taskloom-operator/{__version__}"}
            code, said = await one.end()
            assert code == 0, said
            assert holder(server) == ""
            lines = [json.loads(line) for line in said.splitlines()]
            assert any("acts" in line["message"] and line["level"] == "info" for line in lines)

    tell(story, tmp_path)


def test_the_other_one_takes_over_when_the_first_is_told_to_end(tmp_path):
    async def story(server):
        async with process(tmp_path) as first:
            await server.until(lambda: holder(server) == "one")
            async with process(tmp_path, name="two") as second:
                code, said = await first.end()
                assert code == 0, said
                await server.until(lambda: holder(server) == "two")
                await cluster(server)
                await server.until(lambda: made(server))
                code, said = await second.end()
                assert code == 0, said

    tell(story, tmp_path)


def test_many_namespaces_take_many_watches(tmp_path):
    async def story(server):
        namespaces = [f"n{n}" for n in range(16)]
        for namespace in namespaces:
            await cluster(server, namespace)
        async with process(tmp_path, "--no-leader-election", *[f"--namespace={name}" for name in namespaces]) as one:
            await server.until(lambda: all(made(server, namespace) for namespace in namespaces), 40)
            assert server.open > 100
            assert holder(server) is None
            code, said = await one.end(signal.SIGINT)
            assert code == 0, said

    tell(story, tmp_path)


def test_what_it_cannot_begin_with_is_said_in_words(tmp_path):
    async def story(server):
        async with process(tmp_path, "--kubeconfig=/nowhere/config") as one:
            _, said = await asyncio.wait_for(one.running.communicate(), 20)
            assert one.running.returncode == 2
            assert "--kubeconfig" in said.decode()
            assert "Traceback" not in said.decode()
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            async with process(tmp_path, f"--health-port={taken.getsockname()[1]}") as one:
                _, said = await asyncio.wait_for(one.running.communicate(), 20)
                assert one.running.returncode == 2
                assert "--health-port" in said.decode()
                assert "Traceback" not in said.decode()

    tell(story, tmp_path)


def test_an_api_server_that_is_away_is_waited_for(tmp_path):
    async def story(server):
        server.trouble = lambda request: refused(503, "ServiceUnavailable")
        async with process(tmp_path) as one:
            await server.until(lambda: server.calls)
            assert one.running.returncode is None
            server.trouble = lambda request: None
            await cluster(server)
            await server.until(lambda: made(server))
            assert (await one.end())[0] == 0

    tell(story, tmp_path)
