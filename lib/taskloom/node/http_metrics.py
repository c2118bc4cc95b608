"""What Prometheus reads of a scheduler, at ``/metrics``.

Numbers are made when they are asked for; between two scrapes the scheduler pays for a look at its connections each second, and
for nothing a task. No label grows without bound: there are no keys of tasks, functions or clients, and names of workers only
where that is asked for, of those that are here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from taskloom.net import Connection
from taskloom.node.http_state import State, Terms

__all__ = ["Metrics"]

LOOK = 1.0  # seconds between looks at the event loop and the connections
LAGS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds


class Metrics:
    """The metrics of a scheduler's process.

    Args:
        state: what there is.
        each_worker: whether there are metrics of single workers too, with their names as a label.
    """

    def __init__(self, state: State, each_worker: bool = False) -> None:
        self._state = state
        self._each_worker = each_worker
        self._traffic = _Traffic(state)
        # a registry of our own: what a user's program in this process registers is not ours to tell
        self.registry = CollectorRegistry(auto_describe=False)
        self._lag = Histogram(
            "taskloom_scheduler_event_loop_lag_seconds",
            "How late the scheduler's event loop was, looked at once a second.",
            buckets=LAGS,
            registry=self.registry,
        )
        self.requests = Counter(
            "taskloom_scheduler_http_requests",
            "Requests that the HTTP interface has answered.",
            ("path", "status"),
            registry=self.registry,
        )
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Look from now on."""
        loop = asyncio.get_running_loop()
        self._due = loop.time() + LOOK
        self._timer = loop.call_at(self._due, self._look)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._lag.observe(max(0.0, loop.time() - self._due))
        self._traffic.look()
        self.start()

    def changed(self) -> None:
        """Somebody may have come."""
        self._traffic.changed()

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def text(self, accept: str) -> tuple[bytes, str]:
        """All metrics, in the format that the header ``Accept`` wants, and the type of that."""
        encoder, kind = choose_encoder(accept)
        return encoder(self.registry), kind

    def describe(self) -> Iterator[Metric]:
        """See :class:`prometheus_client.registry.Collector`; nothing is looked at before the first scrape."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """See :class:`prometheus_client.registry.Collector`."""
        state = self._state
        info, machine = state.info(), state.node.machine
        wish = state.wishes.answer(Terms())[0]

        def gauge(name: str, text: str, value: float) -> Metric:
            return GaugeMetricFamily(f"taskloom_scheduler_{name}", text, value)

        def gauges(name: str, text: str, label: str, values: dict[str, int]) -> Metric:
            family = GaugeMetricFamily(f"taskloom_scheduler_{name}", text, labels=[label])
            for key, value in values.items():
                family.add_metric([key], value)
            return family

        yield InfoMetricFamily("taskloom_scheduler", "Which scheduler this is.", {"version": info["version"]})
        yield gauge("start_time_seconds", "When it began, since the epoch.", info["started"])
        yield gauge("incarnation", "What tells it from those before it; greater than theirs.", info["incarnation"])
        yield gauge("settled", "1 when the grace after its start is over.", info["settled"])
        yield gauges("workers", "Workers.", "state", info["workers"])
        yield gauge("threads", "Threads of all workers.", info["threads"])
        yield gauge("supervisors", "Supervisors that are connected.", info["supervisors"])
        yield gauges("clients", "Clients; those that are away may come back.", "state", info["clients"])
        yield gauges("tasks", "Tasks.", "state", info["tasks"])
        yield gauge("tasks_runnable", "Tasks that could run at a time.", info["runnable"])
        yield gauge("tasks_stuck", "Tasks that no worker here may run.", len(machine.placing.stuck))
        yield gauge("held_bytes", "Values that workers hold, copies too.", info["nbytes"])
        yield gauge("memory_limit_bytes", "Memory limits of workers that stay, in all.", wish["memory_limit"])
        yield gauge("occupancy_seconds", "What all work is likely to take on one thread.", wish["seconds"])
        yield gauge("wished_workers", "Workers that the cluster could use.", wish["workers"])
        totals = info["totals"]
        for name, text in (
            ("done", "Tasks that workers have done."),
            ("failed", "Tasks that have failed for good by themselves."),
            ("cancelled", "Tasks that were cancelled."),
            ("retried", "Tries of tasks that raised, or whose worker died, and that were tried again."),
            ("stolen", "Tasks that went from a worker with much to do to one with nothing."),
        ):
            yield CounterMetricFamily(f"taskloom_scheduler_tasks_{name}", text, totals[name])
        yield CounterMetricFamily("taskloom_scheduler_workers_lost", "Workers that are gone.", totals["lost"])
        yield from self._traffic.collect()
        if self._each_worker:
            yield from self._workers()

    def _workers(self) -> Iterator[Metric]:
        names = ["worker"]
        sent = GaugeMetricFamily("taskloom_worker_tasks_sent", "Tasks that a worker was sent.", labels=names)
        held = GaugeMetricFamily("taskloom_worker_held_bytes", "Values that a worker holds.", labels=names)
        busy = GaugeMetricFamily("taskloom_worker_occupancy_seconds", "What they are likely to take.", labels=names)
        seen: dict[str, list[float]] = {}
        for worker in self._state.node.machine.workers.values():  # two of one name would be one series
            old = seen.get(worker.name, [0, 0, 0])
            new = len(worker.sent), worker.nbytes, worker.load
            seen[worker.name] = [a + b for a, b in zip(old, new, strict=True)]
        for name, values in seen.items():
            for family, value in zip((sent, held, busy), values, strict=True):
                family.add_metric([name], value)
        yield from (sent, held, busy)


class _Traffic:
    """What has gone over the connections to clients, workers and supervisors, also those that are closed by now."""

    def __init__(self, state: State) -> None:
        self._node = state.node
        self._seen: dict[Connection, tuple[str, tuple[int, ...]]] = {}
        self._totals: dict[str, list[int]] = {kind: [0, 0, 0, 0, 0] for kind in ("client", "worker", "supervisor")}
        self._newest = 0

    def changed(self) -> None:
        """Somebody may have come."""
        newest = next(reversed(self._node.peers), 0)
        if newest != self._newest:
            self._newest = newest
            self._find()

    def _find(self) -> None:
        seen = self._seen
        for peer in self._node.peers.values():
            self._add(peer.connection, peer.kind)
        for connection in self._node.hosts.hosts:
            self._add(connection, "supervisor")
        for connection in [connection for connection in seen if connection.closed]:
            self._count(connection)
            del seen[connection]

    def _add(self, connection: Connection, kind: str) -> None:
        if connection not in self._seen:
            self._seen[connection] = kind, (0, 0, 0, 0)
            self._totals[kind][4] += 1

    def _count(self, connection: Connection) -> None:
        kind, old = self._seen[connection]
        counters = connection.counters
        new = counters.messages_in, counters.messages_out, counters.bytes_in, counters.bytes_out
        totals = self._totals[kind]
        for n in range(4):
            totals[n] += new[n] - old[n]
        self._seen[connection] = kind, new

    def look(self) -> None:
        """Count what has gone over the connections since the last time."""
        for connection in self._seen:
            self._count(connection)
        self._find()

    def collect(self) -> Iterator[Metric]:
        """The totals."""
        self.look()
        messages = CounterMetricFamily(
            "taskloom_scheduler_messages", "Messages, by whom they are from or to.", labels=["peer", "direction"]
        )
        sizes = CounterMetricFamily(
            "taskloom_scheduler_traffic_bytes", "Bytes on the wire, the same.", labels=["peer", "direction"]
        )
        came = CounterMetricFamily("taskloom_scheduler_connections", "Who has connected.", labels=["peer"])
        for kind, (messages_in, messages_out, bytes_in, bytes_out, connections) in self._totals.items():
            messages.add_metric([kind, "in"], messages_in)
            messages.add_metric([kind, "out"], messages_out)
            sizes.add_metric([kind, "in"], bytes_in)
            sizes.add_metric([kind, "out"], bytes_out)
            came.add_metric([kind], connections)
        yield from (messages, sizes, came)
