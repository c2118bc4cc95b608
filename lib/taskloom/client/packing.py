"""Functions and arguments on their way out: columns of tasks, as the client's machine takes them.

Everything of the user's that can fail (a function or argument that does not pickle, a future of another client) fails here, in
the thread that calls. Calls are sent when all of them are packed; a graph, block by block, and what was sent is taken back.

While arguments are pickled, a future in them, however deep, asks :func:`place` for its position among the inputs of the task, and
travels as that.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from taskloom.core.messages import PIN, WISH, Options
from taskloom.errors import ClusterError, SerializationError
from taskloom.graph.compile import LIST_OF, LOAD, PLAIN, REFS, RUN, VALUE, Plan
from taskloom.graph.node import Named
from taskloom.local.run import name_of
from taskloom.node import calls
from taskloom.protocol import Payload
from taskloom.serialize.objects import _goes_by_name

if TYPE_CHECKING:
    from taskloom.client.engine import Engine

__all__ = ["Columns", "FutureError", "Handle", "Packer", "identity", "nothing", "place", "unreadable"]

FIRST, NEXT = 200, 1000  # tasks in the first block of a graph, so that workers begin soon, and in the next ones
BYTES = 4 << 20  # bytes of arguments after which a block ends before
_MOST_NAMED = 1000  # functions whose pickles are kept
_NOTHING: tuple[int, ...] = ()


def identity(value: Any) -> Any:
    """Its argument."""
    return value


def nothing() -> None:
    """Stands for the function of a task whose call is all in its arguments."""


def unreadable(key: Any, error: Exception) -> SerializationError:
    """What to raise where the value of a task has come, and does not unpickle here.

    Args:
        key: of the task.
        error: what unpickling it has raised.
    """
    if isinstance(error, ImportError):
        advice = "what its class is in has to be installed here as it is on the workers"
    elif isinstance(error, AttributeError):
        advice = "the module is another one here than on the workers: Client.get_versions(check=True) compares packages"
    else:
        advice = "see to how its class pickles (__reduce__, __setstate__)"
    return SerializationError(
        f"the task {key!r} has ended well, and its value does not unpickle in this process: {type(error).__name__}: {error}. "
        f"Either {advice}, or the task returns something plainer"
    )


class Columns(NamedTuple):
    """A block of tasks, in columns.

    Attributes:
        first: the counter of the first.
        functions, args, deps, wanted, unpin: see :meth:`taskloom.core.client.ClientMachine.submit`.
    """

    first: int
    functions: list[tuple[bytes, Any]]
    args: list[Any]
    deps: list[Sequence[int]]
    wanted: bytes
    unpin: tuple[int, int] = (0, 0)


class Handle:
    """What stands for a value on the cluster: the part of a future that matters here.

    Attributes:
        client: whose it is.
        counter: its number there; below 0: it was released.
        key: its name.
    """

    __slots__ = ("client", "counter", "key")

    client: Any
    counter: int
    key: Any


class _AtWork(threading.local):
    packer: Packer | None = None


_at_work = _AtWork()


class FutureError(TypeError):
    """A future that cannot stand where it does."""


def place(future: Handle) -> int:
    """The position of a future among the inputs of the task whose arguments are being pickled.

    Raises:
        TypeError: none are, or those of another client's.
    """
    packer = _at_work.packer
    if packer is None:
        raise FutureError(
            f"{future!r} is a handle of this client's, and travels only among the arguments of submit, map and the like, where "
            "it stands for its value. To send the value somewhere else, send future.result()"
        )
    return packer.place(future)


class Packer:
    """Packs one submission.

    Args:
        engine: of the client.
        copy: whether large buffers are copied, as the caller may change them before they are sent.
    """

    def __init__(self, engine: Engine, copy: bool = True) -> None:
        self.engine = engine
        self.copy = copy
        self.needed: dict[int, int] = {}  # inputs of the task at hand: counter -> position
        self._functions: dict[int, tuple[Any, tuple[bytes, Any]]] = {}
        # of the graph that was packed: the counter of its first task, and which that are
        self.base = 0
        self.order: Sequence[int] = ()
        self.keys: Sequence[Any] = ()
        self.options: Options | None = None  # of the block that was packed last, where they are not the same for all

    # --- functions

    def function(self, function: Any) -> tuple[bytes, Any]:
        """A function as a pair of hash and payload.

        Raises:
            SerializationError: it does not pickle.
        """
        found = self._functions.get(id(function))
        if found is not None:
            return found[1]
        named = self.engine.named
        found = named.get(id(function))
        if found is None or (len(found) > 2 and not found[2].holds(function)):
            try:
                payload = calls.pack_function(function)
            except FutureError as error:
                raise SerializationError(
                    f"{name_of(function)} has a future inside (a closure, a default or a global), and a future stands for its "
                    "value among the arguments only: pass it as one"
                ) from error
            except Exception as error:
                raise SerializationError(
                    f"the function {name_of(function)} cannot go to the cluster, as it does not pickle: "
                    f"{type(error).__name__}: {error}"
                ) from error
            found = function, (bytes(payload.parts[0]), payload)
            # One that goes by its name has always the same pickle. Another one may have other globals the next time.
            if _is_named(function):
                self._keep(found)
            elif type(function) is FunctionType:
                plain = _Plain(function)
                if plain.holds(function):
                    self._keep((*found, plain))
        self._functions[id(function)] = found
        return found[1]

    def _keep(self, found: tuple[Any, ...]) -> None:
        named = self.engine.named
        if len(named) >= _MOST_NAMED:
            named.clear()
        named[id(found[0])] = found

    # --- arguments

    def place(self, future: Handle) -> int:
        """See :func:`place`."""
        return self.needed.setdefault(self.counter_of(future), len(self.needed))

    def counter_of(self, future: Handle) -> int:
        """The counter of a future that is an input.

        Raises:
            TypeError: it is another client's.
            ClusterError: it was released.
        """
        if future.client._engine is not self.engine:
            raise FutureError(
                f"{future!r} is a future of another client ({future.client!r}), and this one cannot have its value: pass "
                "future.result(), or submit there"
            )
        if future.counter < 0:
            raise ClusterError(f"{future!r} was released, so its value cannot be an argument any more")
        return future.counter

    def payload(self, pack: Any, what: Any) -> Payload:
        """A pickle in which futures are positions in ``needed``."""
        before, _at_work.packer = _at_work.packer, self
        try:
            found: Payload = pack(what)
        finally:
            _at_work.packer = before
        if self.copy and len(found.parts) > 1:
            # bytes cannot change
            parts = [part if _is_bytes(part) else bytes(part) for part in found.parts]
            found = Payload(parts)
        return found

    def row(self, function: Any, args: tuple[Any, ...]) -> tuple[Any, Sequence[int]]:
        """Arguments of a call, and counters of its inputs.

        Raises:
            SerializationError: one does not pickle; says which.
        """
        if calls.are_atoms(args):
            return args, _NOTHING
        self.needed = {}
        if _all_handles(args):
            for arg in args:
                self.place(arg)
            if len(self.needed) == len(args):
                return None, tuple(self.needed)
            self.needed = {}
        try:
            return self.payload(calls.pack_call, args), tuple(self.needed)
        except Exception as error:
            raise self._explained(function, args, error) from error

    def _explained(self, function: Any, args: Sequence[Any], error: Exception) -> Exception:
        """Which argument it was."""
        names: tuple[str, ...] = ()
        if type(function) is Named:
            function, names = function.func, function.names
        for n, arg in enumerate(args):
            try:
                self.payload(calls.pack_value, arg)
            except (FutureError, ClusterError) as problem:
                return problem
            except Exception as problem:
                at = n - (len(args) - len(names))
                which = repr(names[at]) if at >= 0 else f"{n + 1}"
                return SerializationError(
                    f"{name_of(function)} cannot be called on the cluster, as its argument {which}, of type "
                    f"{type(arg).__name__}, does not pickle: {type(problem).__name__}: {problem}"
                )
        return SerializationError(
            f"{name_of(function)} cannot be called on the cluster, as its arguments do not pickle: {type(error).__name__}: "
            f"{error}"
        )

    # --- graphs

    def graph(
        self, plan: Plan, wanted: dict[int, int], each: Sequence[Options | None] | None = None
    ) -> Iterator[Columns]:
        """A graph in blocks, each as soon as it is packed.

        What a later block needs is pinned until that has come.

        Args:
            wanted: filled with the counters of the outputs, by their ids.
            each: options of each task by its id, where they are not the same for all; tasks of a block have the same, and
                ``options`` says which.

        Raises:
            SerializationError, FutureError: something does not pickle. The caller takes back what it has sent.
        """
        order, tasks, specs, all_deps, dependents = plan.order, plan.tasks, plan.specs, plan.deps, plan.dependents
        positions = plan.positions()
        aliases = {i: self.counter_of(tasks[i]) for i in order if specs[i] == VALUE and isinstance(tasks[i], Handle)}
        if aliases:
            order = [i for i in order if i not in aliases]
            positions = [0] * len(tasks)
            for position, i in enumerate(order):
                positions[i] = position
        total = len(order)
        base = self.base = self.engine.reserve(total)
        self.order, self.keys = order, plan.keys
        if total:
            self.engine.graphs.add(base, order, plan.keys)
        counters = [base + position for position in positions]
        for i, counter in aliases.items():
            counters[i] = counter
        for i in plan.outputs:
            if i in aliases:
                self.engine.share(counters[i])
            wanted[i] = counters[i]
        outputs = set(plan.outputs)
        known = self._functions.get
        are_atoms = calls.are_atoms

        start = 0
        limit = FIRST
        weight = 0
        functions: list[tuple[bytes, Any]] = []
        args: list[Any] = []
        deps: list[Sequence[int]] = []
        for position, i in enumerate(order):
            spec, task = specs[i], tasks[i]
            if spec == PLAIN or spec == REFS:
                function = task[0]
            elif spec == VALUE:
                function = identity
            else:
                function = nothing
            found = known(id(function))
            functions.append(self.function(function) if found is None else found[1])
            if spec == REFS and not aliases:
                ids = all_deps[i]
                if len(ids) == 1:
                    args.append(None)
                    deps.append((counters[ids[0]],))
                else:
                    first_at: dict[int, int] = {}
                    places = [first_at.setdefault(d, len(first_at)) for d in ids]
                    args.append(None if len(first_at) == len(ids) else calls.pack_mixed(ids, places))
                    deps.append([counters[d] for d in first_at])
            else:
                row = task[1:] if spec == PLAIN else (task,) if spec == VALUE else None
                if row is not None and are_atoms(row):
                    args.append(row)
                    deps.append(_NOTHING)
                else:
                    try:
                        packed, needed = self._nested(plan, i, row, counters)
                    except (FutureError, ClusterError):
                        raise
                    except Exception as error:
                        raise self._explained_task(plan, i, row, error) from error
                    args.append(packed)
                    deps.append(needed)
                    weight += 8 * len(needed) + (0 if packed is None else packed.nbytes)
            end = position + 1
            ends = each is not None and (end == total or each[order[end]] != each[i])
            if ends or len(functions) == limit or weight > BYTES:
                if each is not None:
                    self.options = each[i]
                yield Columns(
                    base + start,
                    functions,
                    args,
                    deps,
                    self._flags(order[start:end], outputs, dependents, positions, end if end < total else None),
                    (base, base + total) if start and end == total else (0, 0),
                )
                functions, args, deps = [], [], []
                start, limit, weight = end, NEXT, 0
        if functions:
            flags = self._flags(order[start:], outputs, dependents, positions, None)
            yield Columns(base + start, functions, args, deps, flags, (base, base + total) if start else (0, 0))

    @staticmethod
    def _flags(
        ids: Sequence[int], outputs: set[int], dependents: Sequence[Any], positions: Sequence[int], end: int | None
    ) -> bytes:
        """What is wanted of tasks; ``end``: the position of the first one of the next block."""
        if end is None:
            return bytes([WISH if i in outputs else 0 for i in ids])
        flags = bytearray(len(ids))
        for k, i in enumerate(ids):
            if i in outputs:
                flags[k] = WISH
            after = dependents[i]
            if after is not None:
                if type(after) is int:
                    if positions[after] >= end:
                        flags[k] |= PIN
                elif max([positions[f] for f in after]) >= end:
                    flags[k] |= PIN
        return bytes(flags)

    def _nested(
        self, plan: Plan, i: int, row: tuple[Any, ...] | None, counters: Sequence[int]
    ) -> tuple[Any, Sequence[int]]:
        """The arguments of a task that are more than plain ones or plain references, and counters of its inputs."""
        needed: dict[int, int] = {}
        self.needed = needed
        if row is not None:
            return self.payload(calls.pack_call, row), tuple(needed)
        ids = plan.deps[i]
        at = {d: needed.setdefault(counters[d], len(needed)) for d in ids}
        spec = plan.specs[i]
        if spec == REFS:
            if len(needed) == len(ids):
                return None, tuple(needed)
            return calls.pack_mixed(ids, [at[d] for d in ids]), tuple(needed)
        steps: list[tuple[int, Any]] = []
        for step, operand in spec:  # type: ignore[union-attr]
            if step == LOAD:
                operand = at[operand]
            elif step == LIST_OF:
                operand = tuple([at[d] for d in operand])
            elif step == RUN:
                operand = (operand[0], operand[1], tuple([at[d] for d in operand[2]]))
            steps.append((step, operand))
        return self.payload(calls.pack_steps, tuple(steps)), tuple(needed)

    def _explained_task(self, plan: Plan, i: int, row: tuple[Any, ...] | None, error: Exception) -> Exception:
        task, key = plan.tasks[i], plan.keys[i]
        if row is not None and plan.specs[i] == PLAIN:
            found = self._explained(task[0], row, error)
            found.add_note(f"in the task {key!r}")
            return found
        return SerializationError(
            f"the task {key!r} cannot go to the cluster, as something in it does not pickle: {type(error).__name__}: {error}"
        )


class _Plain:
    """What makes the pickle of a function that goes by value depend on its code alone: it uses no global of its program's."""

    __slots__ = ("code", "names")

    def __init__(self, function: FunctionType) -> None:
        self.code = function.__code__
        names: set[str] = set()
        codes = [self.code]
        while codes:
            code = codes.pop()
            names.update(code.co_names)  # of attributes too; then it is taken for less plain than it is
            codes += [const for const in code.co_consts if isinstance(const, CodeType)]
        self.names = tuple(names)

    def holds(self, function: FunctionType) -> bool:
        """Whether that is still so."""
        if function.__code__ is not self.code or function.__closure__ or function.__dict__:
            return False
        if function.__defaults__ or function.__kwdefaults__ or function.__annotations__:
            return False
        space = function.__globals__
        return not any(name in space for name in self.names)


def _all_handles(args: Sequence[Any]) -> bool:
    return all(isinstance(arg, Handle) for arg in args)


def _is_named(function: Any) -> bool:
    if type(function) is FunctionType:
        return _goes_by_name(function)
    return type(function) is BuiltinFunctionType and (
        function.__self__ is None or isinstance(function.__self__, ModuleType)
    )


def _is_bytes(part: Any) -> bool:
    return type(part) is bytes or (type(part) is memoryview and type(part.obj) is bytes)
