"""What the operator asks of schedulers, with a real one and real workers, as they are in pods: TLS, a token, uids of pods."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from contextlib import asynccontextmanager

from taskloom_operator.actions import Ask
from taskloom_operator.apply import make_certificate
from taskloom_operator.manifests import naming
from taskloom_operator.metrics import Metrics
from taskloom_operator.scheduler_api import Credentials, Schedulers

TOKEN = "t" * 43
ALL = Ask.WISH | Ask.WORKERS | Ask.RETIREMENTS | Ask.INFO


class Cluster:
    """A scheduler and workers, and how the operator reaches them."""

    def __init__(self, folder):
        self.processes = []
        certificate, key = make_certificate(naming.scheduler_hosts("demo", "lab"))
        for name, text in (("crt", certificate), ("key", key), ("token", TOKEN + "\n")):
            (folder / name).write_text(text)
            (folder / name).chmod(0o600)
        own = {key: value for key, value in os.environ.items() if not key.startswith(("TASKLOOM", "XDG_"))}
        self.environment = {
            **own,
            "HOME": str(folder),
            "PYTHONUNBUFFERED": "1",
            "TASKLOOM_TOKEN_FILE": str(folder / "token"),
            "TASKLOOM_CLUSTER__CERTIFICATE": str(folder / "crt"),
            "TASKLOOM_CLUSTER__KEY": str(folder / "key"),
        }
        self.credentials = Credentials(TOKEN, certificate)
        self.schedulers = Schedulers(Metrics(), lambda namespace, name: ("127.0.0.1", self.http))

    async def run(self, *args, **environment):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "taskloom",
            *args,
            env={**self.environment, **environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        self.processes.append(process)
        return process

    async def begin(self):
        anywhere = ("--host", "0.0.0.0", "--port", "0", "--http-host", "0.0.0.0", "--http-port", "0")
        process = await self.run("scheduler", *anywhere)
        said = b""
        while not (found := re.search(rb"tls://0\.0\.0\.0:(\d+)[^$]*https://0\.0\.0\.0:(\d+)", said)):
            line = await process.stdout.readline()
            assert line, said
            said += line
        self.port, self.http = int(found[1]), int(found[2])

    async def worker(self, uid):
        return await self.run(
            *("worker", f"tls://127.0.0.1:{self.port}", "--name", f"demo-worker-{uid}", "--nthreads", "1"),
            *("--memory-limit", "0", "--host", "127.0.0.1"),
            TASKLOOM_POD_UID=uid,
        )

    async def view(self, ask=ALL):
        return await self.schedulers.view("lab", "demo", self.credentials, ask, 1)

    async def until(self, condition):
        """Ask until something is so; the view."""
        while True:
            view = await self.view()
            assert view.reachable, view.error
            if condition(view):
                return view
            await asyncio.sleep(0.05)


@asynccontextmanager
async def running(folder):
    cluster = Cluster(folder)
    try:
        await cluster.begin()
        yield cluster
    finally:
        await cluster.schedulers.close()
        for process in cluster.processes:
            if process.returncode is None:
                process.kill()
        for process in cluster.processes:
            await process.communicate()


def test_a_real_scheduler_answers_all_that_it_is_asked(tmp_path):
    async def story():
        async with asyncio.timeout(60), running(tmp_path) as cluster:
            view = await cluster.view()
            assert view.reachable, view.error
            assert (view.wish.workers, view.workers, view.retirements) == (0, {}, {})
            assert (view.clients, view.tasks, view.settled) == (
                0,
                0,
                False,
            )  # it waits for the first one, see docs/http.md

            # news of its wish, and an end of waiting without news
            said = await cluster.schedulers.get("lab", "demo", cluster.credentials, "wish?threads=1")
            since = said["version"]
            said = await cluster.schedulers.get(
                "lab", "demo", cluster.credentials, f"wish?threads=1&since={since}&timeout=0.05"
            )
            assert said["version"] == since
            assert said["changed"] is False
            first = await cluster.schedulers.news("lab", "demo", cluster.credentials, "", 1)
            assert first["version"] == since

            workers = {uid: await cluster.worker(uid) for uid in ("uid-a", "uid-b")}
            view = await cluster.until(lambda view: len(view.workers) == 2 and view.settled)
            assert {uid: worker.worker for uid, worker in view.workers.items()} == {
                uid: f"demo-worker-{uid}" for uid in workers
            }
            assert {worker.state for worker in view.workers.values()} == {"running"}

            # one that is not known is left out; asking twice is as asking once
            for _ in range(2):
                await cluster.schedulers.retire("lab", "demo", cluster.credentials, ("uid-a", "uid-nobody"))
            await cluster.until(lambda view: "uid-a" not in view.workers or view.workers["uid-a"].state == "retired")
            assert await asyncio.wait_for(workers["uid-a"].wait(), 20) == 0
            view = await cluster.until(lambda view: view.retirements["uid-a"].state == "gone")
            assert view.retirements["uid-a"].was_ready
            assert set(view.workers) == {"uid-b"}

            # none of them is known: nothing to do; and that one has gone, or was not to go, is no error
            await cluster.schedulers.retire("lab", "demo", cluster.credentials, ("uid-nobody",))
            for name in ("demo-worker-uid-a", "demo-worker-uid-b", "demo-worker-nobody"):
                await cluster.schedulers.stay("lab", "demo", cluster.credentials, name)
            view = await cluster.view()
            assert view.workers["uid-b"].state == "running"

            # a scheduler that is no more
            cluster.processes[0].kill()
            await cluster.processes[0].wait()
            view = await cluster.view()
            assert not view.reachable
            assert "does not answer" in view.error

    asyncio.run(story())
