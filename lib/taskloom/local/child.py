"""A process of the pool: ``python -m taskloom.local``, started by :mod:`taskloom.local.processes`.

Two threads. The main thread runs tasks, in the order in which they came, and reports: when its queue is empty, else every
few milliseconds. The other reads the socket, so that a process in the middle of a long task still hands out values, gives
back tasks that it has not begun, and notices that its parent has gone.

It never imports the user's ``__main__``: what that defines comes by value.

Values stay here. A value that is only used by tasks of the same block is dropped after its last use, without a word to the
parent; small ones that others may need go with the report; large ones when they are asked for.
"""

from __future__ import annotations

import fcntl
import io
import mmap
import os
import pickle
import select
import signal
import socket
import sys
import threading
import traceback
from collections import deque
from queue import SimpleQueue
from time import perf_counter
from typing import Any, NoReturn

from taskloom.graph.compile import PLAIN, REFS
from taskloom.local.channel import Receiver, encode, materialize, send_blocking
from taskloom.local.frames import cut_frames
from taskloom.local.run import evaluate
from taskloom.serialize.errors import dump_error
from taskloom.serialize.objects import IN_BAND, PROTOCOL, Packer, _Pickler, dumps, store

__all__ = ["LONG", "NONE_BEGUN", "OUTPUT", "PRIVATE", "WANTED", "ResultError", "in_child", "main"]

# What becomes of a task's value.
PRIVATE = 0  # only tasks of the same block use it
WANTED = 1  # others may use it: goes with the report if it is small
OUTPUT = 2  # the caller gets it
LONG = 4  # and, beside one of these: the task takes long, so what was done before is reported before

# What the cell holds beside ids: no task runs; and what the parent writes there at the start of a run.
NO_TASK = -1
NONE_BEGUN = -2

REPORT_EVERY = 0.002  # seconds between reports while tasks run
SMALL = 64 * 1024  # bytes that go with a report without being asked for
# A value of one of these types is pickled with all its likes in one go, others each by itself.
_ATOMS = frozenset({int, float, bool, type(None), complex})

_child: Child | None = None


def in_child() -> bool:
    """Whether this process is one of a pool's."""
    return _child is not None


class _Block:
    """Tasks that came in one message; its body is unpickled when its turn comes."""

    __slots__ = ("body", "buffers", "run", "todo")

    def __init__(self, run: int, count: int, body: Any, buffers: list[Any]) -> None:
        self.run = run
        self.todo: deque[int] = deque(range(count))
        self.body = body
        self.buffers = buffers


class Child:
    def __init__(self, sock: socket.socket, cell: Any) -> None:
        self.sock = sock
        self.cell = cell  # the id of the task that runs, for the parent to read when this process has died
        self.receiver = Receiver(sock)
        self.blocks: SimpleQueue[_Block | tuple[str, Any]] = SimpleQueue()
        self.waiting: deque[_Block] = deque()  # blocks that may be given back, oldest first
        self.sending = threading.Lock()
        self.values: dict[int, Any] = {}
        self.refs: dict[int, int] = {}  # uses of a value that are still to come, here and elsewhere
        self.dropped: set[int] = set()  # ids dropped while blocks were waiting, which may bring them again
        self.run = -1
        self.refusing = False  # a block could not be read; those after it may need what it brought
        self.is_copy = False  # this is a process that a task has forked, with everything above but the socket

    def send(self, header: Any, buffers: Any = ()) -> None:
        parts = encode(header, buffers)
        with self.sending:
            send_blocking(self.sock, parts)

    def become_copy(self) -> None:
        """A task has forked, and this is the new process: it reports nothing and runs nothing more for the pool.

        Its copy of the socket would keep the parent from hearing that the process of the pool has died.
        """
        self.is_copy = True
        self.sock.close()
        for block in self.waiting:
            block.todo.clear()

    # --- the reading thread

    def read(self) -> None:
        parent = os.getppid()
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        while True:
            # An orphan is not always told by the socket: a process that its parent forked may hold the other end.
            if not poll.poll(1000):
                if os.getppid() != parent:
                    os._exit(1)
                continue
            try:
                messages = self.receiver.receive()
                if messages is None:
                    os._exit(0)
                for header, buffers in messages:
                    self.handle(header, buffers)
            except OSError:
                os._exit(1)

    def handle(self, header: Any, buffers: list[Any]) -> None:
        kind, run = header[:2]
        if kind == "tasks":
            _, _, count, digests, forget, drops = header
            if run != self.run:
                self.begin(run)
            functions = store()
            functions.forget(forget)
            functions.add(dict(zip(digests, [bytes(b) for b in materialize(buffers[: len(digests)])], strict=True)))
            self.drop(drops)
            block = _Block(run, count, buffers[len(digests)], buffers[len(digests) + 1 :])
            self.waiting.append(block)
            self.blocks.put(block)
        elif kind == "fetch":
            for i in header[2]:
                self.hand_out(run, i)
        elif kind == "drop":
            self.drop(header[2])
        elif kind == "revoke":
            self.send(("revoked", run, self.give_back(header[2])))
        elif kind == "reset":
            self.give_back(1 << 60)
            # acknowledged by the main thread, when it has ended what it was at
            self.blocks.put(("reset", (run, header[2])))
        elif kind == "resume":
            self.blocks.put(("resume", run))
        elif kind == "call":
            self.blocks.put(("call", (header[1], buffers)))
        elif kind == "place":
            self.blocks.put(("place", header[2]))

    def begin(self, run: int) -> None:
        self.run = run
        self.values = {}
        self.refs = {}
        self.dropped = set()
        store().begin()

    def drop(self, ids: list[int]) -> None:
        if self.waiting:
            self.dropped.update(ids)
        for i in ids:
            self.values.pop(i, None)
            self.refs.pop(i, None)

    def give_back(self, most: int) -> int:
        """Take up to so many tasks off the end of the queue."""
        count = 0
        for block in reversed(list(self.waiting)):
            while count < most:
                try:
                    block.todo.pop()
                except IndexError:
                    break
                count += 1
        return count

    @staticmethod
    def empty(todo: deque[int]) -> int:
        """Take all that is left of a block; how many there were. The other thread may be giving some back."""
        count = 0
        try:
            while True:
                todo.popleft()
                count += 1
        except IndexError:
            return count

    def hand_out(self, run: int, i: int) -> None:
        try:
            data, buffers = dumps(self.values[i])
        except BaseException as error:
            self.send(("value", run, i, False), [dump_error(error)])
            return
        self.send(("value", run, i, True), [data, *buffers])

    # --- the main thread

    def work(self) -> None:
        while True:
            block = self.blocks.get()
            if type(block) is tuple:
                what, argument = block
                if what == "reset":
                    run, failed = argument
                    if run == self.run:
                        self.begin(-1)
                    self.refusing = False
                    if failed:
                        self.send(("reset", run))
                elif what == "resume":
                    self.refusing = False
                elif what == "place":
                    _go_to(argument)
                else:
                    self.call(*argument)
                continue
            try:
                self.run_block(block)  # type: ignore[arg-type]
            finally:
                self.waiting.popleft()

    def call(self, token: int, buffers: list[Any]) -> None:
        """Call a function that the parent sent: the pool's initializer."""
        try:
            function, arguments = pickle.loads(buffers[0])
            function(*arguments)
        except BaseException as error:
            cut_frames(error)
            self.send(("called", token, False), [dump_error(error)])
        else:
            self.send(("called", token, True))

    def run_block(self, block: _Block) -> None:
        run, todo = block.run, block.todo
        if not todo:
            return
        if self.refusing:
            self.empty(todo)
            return
        values, refs = self.values, self.refs
        try:
            buffers = materialize(block.buffers)
            stream = pickle.Unpickler(io.BytesIO(materialize([block.body])[0]), buffers=iter(buffers))
            watched, packed, data, ids, specs, functions, args, deps, wants, uses = stream.load()
            at = len(buffers) - sum([count for _, count in packed])
            for i, count in packed:
                values[i] = pickle.loads(buffers[at], buffers=buffers[at + 1 : at + count])
                at += count
            values.update(data)
            if self.dropped:
                # The tasks of this block that needed them were taken back, and have run elsewhere since. First in, then
                # out: the other thread does it the other way round.
                for i in self.dropped.intersection([*data, *[i for i, _ in packed]]):
                    values.pop(i, None)
        except BaseException as error:
            cut_frames(error)
            # which of them it was only the parent can find out
            self.refusing = True
            self.send(("unreadable", run, self.empty(todo)), [dump_error(error)])
            return
        finally:
            block.body = block.buffers = None  # type: ignore[assignment]

        cell = self.cell
        report = _Report(self, run, bool(watched))
        stops = report.stops
        take = todo.popleft
        now = report.start
        due = now + REPORT_EVERY
        while True:
            try:
                k = take()
            except IndexError:
                break
            i = ids[k]
            want = wants[k]
            if want & LONG:
                want &= ~LONG
                if stops:
                    if not report.send():
                        return
                    now = perf_counter()
                    report.begin(now)
                    due = now + REPORT_EVERY
            cell[0] = i
            spec = specs[k]
            needed = deps[k]
            try:
                if spec == PLAIN:
                    value = functions[k](*args[k])
                elif spec == REFS:
                    value = functions[k](*[values[d] for d in needed])
                else:
                    value = evaluate(spec, values)
            except BaseException as error:
                cut_frames(error)
                report.send(i, error)
                self.give_back(1 << 60)
                return
            for d in needed:
                count = refs.get(d)
                if count is not None:
                    if count == 1:
                        del refs[d]
                        values.pop(d, None)
                    else:
                        refs[d] = count - 1
            count = uses[k]
            if count:
                values[i] = value
                refs[i] = count
            if want:
                report.add(i, value, want)
            value = None
            now = perf_counter()
            stops.append(now)
            if now >= due:
                if not report.send():
                    return
                now = perf_counter()
                report.begin(now)
                due = now + REPORT_EVERY
        if stops:
            report.send()


class _Report:
    """Results on their way to the parent."""

    def __init__(self, child: Child, run: int, watched: bool) -> None:
        self.child = child
        self.run = run
        self.watched = watched
        self.stops: list[float] = []
        self.begin(perf_counter())

    def begin(self, now: float) -> None:
        self.start = now
        self.stops.clear()
        self.atom_ids: list[int] = []
        self.atoms: list[Any] = []
        self.out_ids: list[int] = []
        self.outs: list[Any] = []
        self.kept: list[tuple[int, Any]] = []

    def add(self, i: int, value: Any, want: int) -> None:
        if type(value) in _ATOMS:
            self.atom_ids.append(i)
            self.atoms.append(value)
        elif want == OUTPUT:
            self.out_ids.append(i)
            self.outs.append(value)
        else:
            self.kept.append((i, value))

    def send(self, failed: int = -1, error: BaseException | None = None) -> bool:
        """Send what has been done since the last time; False if a result could not be sent, which ends the block."""
        if self.child.is_copy:
            _leave(error)
        self.child.cell[0] = NO_TASK
        buffers: list[Any] = []
        packer = Packer()
        good = True
        try:
            packer.dump(self.atoms)
            for value in self.outs:
                packer.dump(value)
            stream = packer.getvalue()
            buffers = packer.buffers
        except BaseException:
            good = False
            failed, error = self._culprit()
            self.outs = self.out_ids = []
            packer = Packer()
            packer.dump(self.atoms)
            stream = packer.getvalue()
            buffers = packer.buffers
        packed: list[tuple[int, int]] = []
        rest: list[Any] = []
        for i, value in self.kept:
            small = dumps_small(value)
            if small is not None:
                packed.append((i, len(small)))
                rest += small
        count = len(self.stops)
        last = self.stops[-1] if count else self.start
        seconds = last - self.start
        times = (self.start, self.stops) if self.watched or seconds > count * 50e-6 else None
        for stream_out in (sys.stdout, sys.stderr):
            try:
                stream_out.flush()
            except Exception:
                pass
        failure = None if error is None else (failed, len(buffers) + len(rest) + 1)
        header = ("done", self.run, count, seconds, times, self.atom_ids, self.out_ids, len(buffers), packed, failure)
        tail = [] if error is None else [dump_error(error)]
        self.child.send(header, [stream, *buffers, *rest, *tail])
        if not good:
            self.child.give_back(1 << 60)
        return good

    def _culprit(self) -> tuple[int, BaseException]:
        for i, value in zip(self.out_ids, self.outs, strict=True):
            try:
                dumps(value)
            except BaseException as error:
                return i, ResultError(type(value).__qualname__, f"{type(error).__name__}: {error}")
        return -1, ResultError("?", "it pickles only by itself")


class _TooLarge(Exception):
    pass


class _Small(io.BytesIO):
    """A file that refuses what is too much. The pickler writes piece by piece, so it stops early."""

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > SMALL:
            raise _TooLarge
        return super().write(data)


def dumps_small(value: Any) -> list[Any] | None:
    """A value's pickle and its buffers, if that is at most SMALL bytes; else None, without pickling all of it.

    None too for what does not pickle: it stays here, and is an error only if it is asked for.
    """
    buffers: list[Any] = []
    room = SMALL

    def keep_apart(buffer: pickle.PickleBuffer) -> bool:
        nonlocal room
        raw = buffer.raw()
        if raw.nbytes < IN_BAND:
            return True
        room -= raw.nbytes
        if room < 0:
            raise _TooLarge
        buffers.append(raw)
        return False

    file = _Small()
    try:
        _Pickler(file, protocol=PROTOCOL, buffer_callback=keep_apart).dump(value)
    except BaseException:
        return None
    return [file.getvalue(), *buffers] if file.tell() <= room else None


class ResultError(Exception):
    """A result that does not pickle; the parent, which knows the key, makes the error of it that people see."""


def die_with_parent(life: int) -> None:
    """Let the kernel kill this process when the pipe's other end, which only the parent has, is closed.

    A thread that waits for the end of a pipe needs the interpreter to do anything about it, and a task in native code may
    never let go of that; a signal needs nobody.
    """
    fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
    else:
        try:
            fcntl.fcntl(life, 10, signal.SIGKILL)  # F_SETSIG on Linux; Python has no name for it
        except OSError:  # elsewhere: SIGIO, which ends a process too
            pass
    fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(life, 0)
    if poll.poll(0):  # it was closed before
        os._exit(1)


def main(argv: list[str]) -> None:
    global _child
    sock_fd, life, cell_fd = (int(arg) for arg in argv)
    # Ctrl-C goes to every process of the terminal: what it means is the parent's to say. A handler, not SIG_IGN: programs
    # that tasks start do not inherit it.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    die_with_parent(life)
    cell = memoryview(mmap.mmap(cell_fd, 8)).cast("q")
    os.close(cell_fd)
    sock = socket.socket(fileno=sock_fd)
    for fd in (sock_fd, life):
        os.set_inheritable(fd, False)
    child = _child = Child(sock, cell)
    os.register_at_fork(after_in_child=child.become_copy)
    hello = _first_message(child)
    _go_to(hello["place"])
    if hello["pythonpath"] is None:
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = hello["pythonpath"]
    sys.argv[:] = hello["argv"]
    from taskloom import config

    # The cores are taken: a task that computes a graph does so in its own thread.
    config.set(scheduler="sync")
    threading.Thread(target=child.read, name="taskloom-reader", daemon=True).start()
    child.work()


def _leave(error: BaseException | None) -> NoReturn:
    """The end of a process that a task has forked, and that has come back from the task: as of a program."""
    code = 0
    if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
        code = error.code or 0
    elif error is not None:
        code = 1
        try:
            if isinstance(error, SystemExit):
                print(error.code, file=sys.stderr)
            else:
                traceback.print_exception(error)
        except Exception:  # there is nobody to tell
            pass
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass
    os._exit(code & 0xFF)


def _go_to(place: tuple[str, list[str]]) -> None:
    """Be where the parent is: its working directory, its sys.path."""
    folder, path = place
    sys.path[:] = path
    try:
        if os.getcwd() != folder:
            os.chdir(folder)
    except OSError:  # it is gone, or was; a task that needs it says so
        pass


def _first_message(child: Child) -> dict[str, Any]:
    found: list[Any] = []
    while not found:
        messages = child.receiver.receive()
        if messages is None:
            os._exit(0)
        found += messages
    for header, buffers in found[1:]:
        child.handle(header, buffers)
    hello: dict[str, Any] = found[0][0]
    return hello
