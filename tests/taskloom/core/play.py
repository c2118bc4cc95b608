"""A scheduler to talk to: messages in, messages out; after each batch all its invariants are checked."""

from __future__ import annotations

from taskloom.core.messages import WISH, Cancel, Functions, GaveBack, Options, Release, Report, Retry, Run, Submit
from taskloom.core.scheduler.checks import CheckedScheduler, validate
from taskloom.core.scheduler.machine import CLIENT, WORKER
from taskloom.core.scheduler.state import NAMES

UUID = b"c" * 16
FUNCTION = b"function"


class Play:
    """One client, some workers."""

    def __init__(self, *workers, incarnation=0, grace=0.0):
        self.scheduler = CheckedScheduler(incarnation, grace)
        self.now = 0.0
        self.client = self.scheduler.client_came(UUID)
        self.workers = [self.came(*((worker,) if isinstance(worker, str) else worker)) for worker in workers]
        self.next = 0
        self.known = False

    def came(self, name, threads=1, limit=0, resources=None, before=-1):
        return self.scheduler.worker_came(name, threads, limit, resources, before)

    # --- events in, [(who, message)] out

    def hear(self, *events):
        said = self.scheduler.handle(events, self.now)
        validate(self.scheduler)
        assert all((kind == CLIENT) == (number in self.scheduler.clients) for kind, number, _ in said)
        return [(number, message) for _, number, message in said]

    def from_client(self, *messages):
        return self.hear(*[(CLIENT, self.client, message) for message in messages])

    def from_worker(self, number, *messages):
        return self.hear(*[(WORKER, number, message) for message in messages])

    def submit(self, *deps, wanted=None, functions=None, unpin=(0, 0), **options):
        """Tasks; deps count from the first task of all. By default what no other of them needs is wanted."""
        first, count = self.next, len(deps)
        self.next += count
        if wanted is None:
            used = {d for needed in deps for d in needed}
            wanted = bytes([WISH * (first + k not in used) for k in range(count)])
        functions = functions or [0] * count
        block = Submit(
            first, functions, [f"args {first + k}" for k in range(count)], deps, wanted, Options(**options), unpin
        )
        if self.known:
            return self.from_client(block)
        self.known = True
        return self.from_client(Functions(range(4), [FUNCTION] * 4), block)

    def report(self, number, *counters, seconds=0.001, size=10, results=None):
        """Tasks are done, each under the grant that it has; in one Report where that is one."""
        messages = []
        for counter in counters:
            slot = self.slot(counter)
            tasks = self.scheduler.tasks
            result = None if results is None else results.get(counter)
            messages.append(Report(tasks.grant[slot], [tasks.tid(slot)], [size], [seconds], [result], [], []))
        return self.from_worker(number, *messages)

    def raised(self, number, counter, error="error"):
        slot = self.slot(counter)
        return self.from_worker(
            number, Report(self.scheduler.tasks.grant[slot], [], [], [], [], [self.tid(counter)], [error])
        )

    def gave_back(self, number, *counters):
        grants = [self.scheduler.tasks.grant[self.slot(counter)] for counter in counters]
        return self.from_worker(number, GaveBack([self.tid(counter) for counter in counters], grants, [], []))

    def kept(self, number, *counters):
        grants = [self.scheduler.tasks.grant[self.slot(counter)] for counter in counters]
        return self.from_worker(number, GaveBack([], [], [self.tid(counter) for counter in counters], grants))

    def release(self, *counters):
        return self.from_client(Release(counters))

    def cancel(self, *counters):
        return self.from_client(Cancel(counters))

    def retry(self, *counters):
        return self.from_client(Retry(counters))

    def left(self, number, **how):
        self.scheduler.worker_left(number, **how)
        return self.hear()

    # --- what the scheduler thinks

    def slot(self, counter):
        return self.scheduler._slot(self.scheduler.clients[self.client], counter)

    def tid(self, counter):
        return self.scheduler.tasks.tid(self.slot(counter))

    def state(self, counter):
        slot = self.slot(counter)
        return "free" if slot < 0 else NAMES[self.scheduler.tasks.state[slot]]

    def states(self, *counters):
        return [self.state(counter) for counter in counters]

    def place(self, counter):
        return self.scheduler.tasks.place[self.slot(counter)]


def runs(said):
    """Who was sent which tasks: worker -> counters of the tasks, in order."""
    found = {}
    for number, message in said:
        if type(message) is Run:
            found.setdefault(number, []).extend(counter for _, counter in message.owners)
    return found


def only(said, kind):
    """The messages of one kind, with whom they go to."""
    return [(number, message) for number, message in said if type(message) is kind]
