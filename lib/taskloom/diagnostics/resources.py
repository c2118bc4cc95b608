"""What a computation takes of the machine: memory and CPU of this process and its children, sampled over time."""

from __future__ import annotations

import html
import itertools
import threading
from time import perf_counter
from typing import Any, NamedTuple

from taskloom.diagnostics.events import Callback, RunInfo

__all__ = ["ResourceProfiler", "ResourceSummary", "Resources"]


class Resources(NamedTuple):
    """One sample.

    Attributes:
        time: when it was taken, in seconds of ``time.perf_counter()``, as in :class:`taskloom.diagnostics.Record`.
        memory: bytes resident (RSS) in this process and its children together. Pages that they share count once each.
        cpu: percent of one CPU that they used since the sample before; 200 is two CPUs busy. 0 in the first sample of
            a series.
        processes: how many they are.
    """

    time: float
    memory: int
    cpu: float
    processes: int


class ResourceSummary(NamedTuple):
    """Samples summed up.

    Attributes:
        samples: how many there are.
        seconds: from the first to the last one.
        memory_max, memory_mean: bytes.
        cpu_max, cpu_mean: percent of one CPU; the mean is weighted with the time between samples.
    """

    samples: int
    seconds: float
    memory_max: int
    memory_mean: float
    cpu_max: float
    cpu_mean: float


class ResourceProfiler(Callback):
    """Samples memory and CPU use while a computation runs.

    As a context manager it samples as long as the block lasts; registered, or handed to ``get``, as long as a run
    does. The samples are kept until :meth:`clear`. It takes one at the begin, one every ``dt`` seconds and one at the
    end, on a thread of its own, which has ended when the block or the run is over.

    Args:
        dt: seconds between two samples. One takes about a millisecond, and more where a machine has thousands of
            processes.

    Attributes:
        results: list of :class:`Resources`, by time.

    Raises:
        ValueError: ``dt`` is not positive.
        ModuleNotFoundError: psutil is not installed.
    """

    def __init__(self, dt: float = 1.0) -> None:
        if not dt > 0:
            raise ValueError(f"dt is a number of seconds above 0, not {dt!r}")
        try:
            import psutil  # noqa: F401
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("ResourceProfiler needs psutil: pip install psutil", name="psutil") from error
        self.dt = dt
        self.results: list[Resources] = []
        self._lock = threading.Lock()
        self._users = 0  # runs and blocks that want samples
        self._sampler: _Sampler | None = None

    def __enter__(self) -> Any:
        self._begin()
        return super().__enter__()

    def __exit__(self, *exc_info: object) -> None:
        super().__exit__(*exc_info)
        self._end()

    def start(self, info: RunInfo) -> None:
        self._begin()

    def finish(self, info: RunInfo, error: BaseException | None) -> None:
        self._end()

    def clear(self) -> None:
        """Forget all samples."""
        self.results.clear()

    def summary(self) -> ResourceSummary:
        """The samples summed up; all zero where there are none."""
        samples = list(self.results)
        if not samples:
            return ResourceSummary(0, 0.0, 0, 0.0, 0.0, 0.0)
        seconds = samples[-1].time - samples[0].time
        # A sample's percentage is of the time since the one before.
        used = sum(b.cpu * (b.time - a.time) for a, b in itertools.pairwise(samples))
        return ResourceSummary(
            samples=len(samples),
            seconds=seconds,
            memory_max=max(sample.memory for sample in samples),
            memory_mean=sum(sample.memory for sample in samples) / len(samples),
            cpu_max=max(sample.cpu for sample in samples),
            cpu_mean=used / seconds if seconds > 0 else 0.0,
        )

    def __repr__(self) -> str:
        found = self.summary()
        return (
            f"<ResourceProfiler: {found.samples} samples in {found.seconds:.1f} s; memory at most "
            f"{found.memory_max / 2**20:,.0f} MiB; CPU {found.cpu_mean:.0f} % on average, at most {found.cpu_max:.0f} %>"
        )

    def _repr_html_(self) -> str:
        return f"<div>{html.escape(repr(self)[1:-1])}</div>"

    def _begin(self) -> None:
        with self._lock:
            self._users += 1
            if self._sampler is None:
                self._sampler = _Sampler(self.results, self.dt)
                self._sampler.start()

    def _end(self) -> None:
        with self._lock:
            if self._users:
                self._users -= 1
            if self._users or self._sampler is None:
                return
            sampler, self._sampler = self._sampler, None
        sampler.stop.set()
        sampler.join()


class _Sampler(threading.Thread):
    """Takes samples until it is told to stop."""

    def __init__(self, results: list[Resources], dt: float) -> None:
        super().__init__(name="taskloom-resources", daemon=True)
        self.results = results
        self.dt = dt
        self.stop = threading.Event()
        self.used: dict[Any, float] = {}  # process -> CPU seconds at the last sample
        self.last: float | None = None

    def run(self) -> None:
        import psutil

        me = psutil.Process()
        self._take(psutil, me)
        while not self.stop.wait(self.dt):
            self._take(psutil, me)
        self._take(psutil, me)  # after the end

    def _take(self, psutil: Any, me: Any) -> None:
        try:
            self.results.append(self._sample(psutil, me))
        except psutil.Error:  # not allowed to look, or a process that is gone: no sample this time
            pass

    def _sample(self, psutil: Any, me: Any) -> Resources:
        memory = 0
        seconds = 0.0
        used: dict[Any, float] = {}
        for process in (me, *me.children(recursive=True)):
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    memory += process.memory_info().rss
            except psutil.Error:  # it ended in between
                continue
            # psutil's Process hashes by pid and time of creation, so a pid used again is another one
            used[process] = times.user + times.system
            seconds += used[process] - self.used.get(process, 0.0)
        now = perf_counter()
        cpu = 0.0 if self.last is None else 100.0 * max(0.0, seconds) / max(now - self.last, 1e-9)
        self.used, self.last = used, now
        return Resources(now, memory, cpu, len(used))
