"""The operator's process: ``python -m taskloom_operator``."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from kubernetes.aio import client as kube
from kubernetes.aio import config
from kubernetes.aio.config.config_exception import ConfigException

from taskloom_operator import __version__
from taskloom_operator.api import Api
from taskloom_operator.health import serve
from taskloom_operator.leader import lead
from taskloom_operator.metrics import Metrics
from taskloom_operator.observe import Settings
from taskloom_operator.reconcile import Controller
from taskloom_operator.scheduler_api import Schedulers

__all__ = ["main"]

SILENT = 400.0  # seconds without a word from the API server after which this process is of no use

_log = logging.getLogger("taskloom_operator")


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m taskloom_operator",
        description="Run what TaskClusters, TaskWorkerGroups and TaskJobs say, on the Kubernetes that this pod is in, or "
        "that the kubeconfig names.",
    )
    add = parser.add_argument
    add("--image", required=True, help="what clusters run that do not say")
    add("--image-pull-policy", default="IfNotPresent", choices=["IfNotPresent", "Always", "Never"])
    add("--image-pull-secret", action="append", default=[], metavar="NAME", help="for those images; several times")
    add("--namespace", action="append", default=[], help="look at this one only; several times; by default at all")
    add("--no-network-policy", action="store_true", help="make no NetworkPolicies")
    add("--kubeconfig", metavar="FILE", help="by default this pod's own rights, else $KUBECONFIG or ~/.kube/config")
    add("--lease-namespace", metavar="NAMESPACE", help="where the Lease is; by default $POD_NAMESPACE, or default")
    add("--no-leader-election", action="store_true", help="act at once: there is no other replica")
    add("--health-port", type=int, default=8080, help="/healthz and /readyz")
    add("--metrics-port", type=int, default=8081, help="/metrics")
    add("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    add("--log-format", default="text", choices=["text", "json"], help="json: an object a line")
    add("--version", action="version", version=__version__)
    return parser


async def _run(options: argparse.Namespace) -> int:
    loop = asyncio.get_running_loop()
    if options.kubeconfig is None and os.environ.get("KUBERNETES_SERVICE_HOST"):
        config.load_incluster_config()  # type: ignore[no-untyped-call]
    else:
        await config.load_kube_config(config_file=options.kubeconfig)  # type: ignore[no-untyped-call]
    home = options.lease_namespace or os.environ.get("POD_NAMESPACE") or "default"
    identity = os.environ.get("POD_NAME") or f"{socket.gethostname()}-{os.getpid()}"
    settings = Settings(
        options.image,
        options.image_pull_policy,
        tuple(options.image_pull_secret),
        os.environ.get("POD_NAMESPACE", ""),
        not options.no_network_policy,
    )
    metrics = Metrics()
    metrics.leader.set(0)
    acting: list[Controller] = []

    def alive() -> str:
        # that this is answered shows that the loop turns
        if acting and acting[0].silent > SILENT:
            return f"the API server has not been heard for {acting[0].silent:.0f} s"
        return ""

    try:
        runners = await serve(metrics, alive, lambda: "", options.health_port, options.metrics_port)
    except OSError as error:
        print(f"taskloom_operator: {error}. Give --health-port and --metrics-port", file=sys.stderr)
        return 2
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    configuration = kube.Configuration.get_default_copy()
    configuration.connection_pool_maxsize = 0  # no limit: with many namespaces, watches would take all
    async with kube.ApiClient(configuration) as client:
        api = Api(client, metrics)
        schedulers = Schedulers(metrics)

        async def act() -> None:
            metrics.leader.set(1)
            _log.info("%s acts, version %s", identity, __version__)
            controller = Controller(api, schedulers, metrics, settings, options.namespace)
            acting.append(controller)
            await controller.run()

        work = asyncio.ensure_future(act() if options.no_leader_election else lead(api, home, identity, act))
        stop = asyncio.ensure_future(told.wait())
        try:
            await asyncio.wait([work, stop], return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
                return 1  # the Lease is lost: whoever restarts this has it wait for the next
            return 0
        finally:
            metrics.leader.set(0)
            stop.cancel()
            work.cancel()
            await asyncio.wait([work])
            await schedulers.close()
            for runner in runners:
                await runner.cleanup()


class _Json(logging.Formatter):
    """A record as an object of JSON, in one line."""

    def format(self, record: logging.LogRecord) -> str:
        found = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            found["error"] = self.formatException(record.exc_info)
        return json.dumps(found, ensure_ascii=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command.

    Returns:
        the exit status: 0 after a signal to end, 1 where the Lease was lost, 2 where it cannot begin.
    """
    options = _arguments().parse_args(arguments)
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(_Json() if options.log_format == "json" else text)
    logging.basicConfig(level=options.log_level.upper(), handlers=[handler])
    logging.getLogger("aiohttp").setLevel(logging.WARNING)
    try:
        return asyncio.run(_run(options))
    except ConfigException as error:
        print(f"taskloom_operator: no way to the API server is known: {error}. Give --kubeconfig FILE", file=sys.stderr)
        return 2
