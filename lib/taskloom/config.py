"""Settings: what a program, its environment and its machine's files want to be otherwise than the defaults.

A setting is looked up from the innermost place outwards, and the first place that has it counts:

1. the ``with config.set(...):`` blocks around the code that asks, in this thread or asyncio task;
2. what plain calls of ``config.set(...)`` set for the whole process;
3. the environment: ``TASKLOOM_NUM_WORKERS=4``, ``TASKLOOM_DELAYED__PURE=true`` (two underscores go one level down);
4. the user's file: ``$TASKLOOM_CONFIG``, or else ``~/.config/taskloom/config.toml`` (``$XDG_CONFIG_HOME`` is respected);
5. the machine's file: ``/etc/taskloom/config.toml``;
6. the default in the table :data:`SETTINGS` below, which lists every setting that there is.

``None`` in a block means the default; in a plain call, that what calls have set is forgotten.

>>> from taskloom import config
>>> with config.set(num_workers=2):
...     config.get("num_workers")
2
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar, Token
from typing import Any, NamedTuple

from taskloom.errors import TaskloomError

__all__ = ["SETTINGS", "Setting", "SettingWarning", "UnknownSettingError", "get", "positive_int", "refresh", "set"]

_PREFIX = "TASKLOOM_"
_NOT_SETTINGS = ("TASKLOOM_CONFIG",)  # says where the settings are


class UnknownSettingError(TaskloomError, KeyError):
    """A setting was named that does not exist; the message has the names that come close."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0]) if self.args else ""


class SettingWarning(UserWarning):
    """Something in the environment is nearly a setting, and has no effect."""


class Setting(NamedTuple):
    """One line of the table of settings.

    Attributes:
        name: dotted where it belongs to a group: "delayed.pure".
        type: what its values are, for people.
        default: its value where nothing is set.
        meaning: one sentence.
        check: called with the name and a value that is not None; returns the value to keep, raises TypeError or
            ValueError.
    """

    name: str
    type: str
    default: Any
    meaning: str
    check: Callable[[str, Any], Any]


def positive_int(name: str, value: Any) -> int:
    """Check a number of something, such as workers.

    Args:
        name: what to call it in an error.
        value: an integer of 1 or more; integers of NumPy and other types with ``__index__`` are turned into int.

    Raises:
        TypeError: it is no integer (``True`` is none either).
        ValueError: it is less than 1.

    >>> positive_int("num_workers", 4)
    4
    """
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{name} is a whole number of 1 or more, not {_shown(value)}")
    number = int(value.__index__())
    if number < 1:
        raise ValueError(f"{name} is a whole number of 1 or more, not {number}")
    return number


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} is True or False, not {_shown(value)}")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} is text, not {_shown(value)}")
    return value


def _port(name: str, value: Any) -> int:
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{name} is a port, a whole number, not {_shown(value)}")
    number = int(value.__index__())
    if not 0 <= number < 65536:
        raise ValueError(f"{name} is a port from 0 to 65535, not {number}")
    return number


def _seconds(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is a number of seconds, not {_shown(value)}")
    if not value >= 0:
        raise ValueError(f"{name} is a number of seconds of 0 or more, not {value}")
    return float(value)


def _bytes(name: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError(f"{name} is a number of bytes, text such as '4GiB', or 'auto', not {_shown(value)}")
    if value != "auto":
        from taskloom.system import parse_bytes

        parse_bytes(value)
    return value


def _scheduler(name: str, value: Any) -> Any:
    if isinstance(value, str) or callable(value):
        return value
    runs = callable(getattr(value, "get", None)) or hasattr(value, "submit") or hasattr(value, "apply_async")
    if runs and not isinstance(value, Mapping):
        return value
    raise TypeError(
        f"{name} is a name such as 'threads', 'processes' or 'sync', a get function, or an object with .get such as "
        f"a Client; not {_shown(value)}"
    )


def _executor(name: str, value: Any) -> Any:
    if callable(getattr(value, "submit", None)) or callable(getattr(value, "apply_async", None)):
        return value
    raise TypeError(f"{name} is an executor such as concurrent.futures.ThreadPoolExecutor, not {_shown(value)}")


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} of type {type(value).__name__}"


#: Every setting that there is, by name. A part of taskloom that needs one more adds a line here.
SETTINGS: dict[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting(
            "scheduler",
            "str, function or Client",
            None,
            "what runs collections where no scheduler= is given: 'threads', 'processes', 'sync', a get function or "
            "an object with .get; by default what suits the collection",
            _scheduler,
        ),
        Setting(
            "num_workers",
            "int",
            None,
            "how many tasks run at a time; by default as many as this process may use CPUs",
            positive_int,
        ),
        Setting(
            "pool",
            "executor",
            None,
            "the executor whose threads run tasks under the threaded scheduler, instead of taskloom's own",
            _executor,
        ),
        Setting(
            "delayed.pure",
            "bool",
            False,
            "whether calls of delayed functions have keys made from their arguments, so that equal calls are one task",
            _flag,
        ),
        Setting(
            "cluster.address",
            "str",
            None,
            "the scheduler that Client() and `taskloom worker` connect to where no address is given",
            _text,
        ),
        Setting("cluster.host", "str", "127.0.0.1", "where `taskloom scheduler` listens", _text),
        Setting("cluster.port", "int", 8786, "and at which port; 0: any that is free", _port),
        Setting(
            "cluster.http_port",
            "int",
            8787,
            "the port of the scheduler's HTTP interface: state, metrics, wishes; 0: any that is free",
            _port,
        ),
        Setting(
            "cluster.metrics_by_worker",
            "bool",
            False,
            "whether the scheduler's metrics are also there for each worker, with its name as a label",
            _flag,
        ),
        Setting(
            "cluster.probe_port",
            "int",
            None,
            "where `taskloom scheduler` answers, in plain HTTP, whether it lives and is ready; by default nowhere",
            _port,
        ),
        Setting(
            "cluster.certificate",
            "str",
            None,
            "a PEM file with the certificate that the scheduler shows off loopback; by default it makes one itself",
            _text,
        ),
        Setting("cluster.key", "str", None, "a PEM file with its key; by default it is in the same file", _text),
        Setting(
            "cluster.grace",
            "float",
            1.0,
            "seconds that a scheduler which was started waits for workers to come back with what they have",
            _seconds,
        ),
        Setting("worker.nworkers", "int", 1, "how many worker processes `taskloom worker` starts", positive_int),
        Setting(
            "worker.nthreads",
            "int",
            None,
            "how many tasks each runs at a time; by default so many that all CPUs are used",
            positive_int,
        ),
        Setting(
            "worker.memory_limit",
            "bytes",
            "auto",
            "how much memory each may have, such as '4GiB'; 'auto': an equal share of what there is; 0: no limit",
            _bytes,
        ),
        Setting(
            "worker.local_directory",
            "str",
            None,
            "where values go that do not fit into memory; by default where temporary files are",
            _text,
        ),
        Setting(
            "worker.state_directory",
            "str",
            None,
            "where it is noted which tasks run: where that outlives the container, a task that makes it run out of memory "
            "is known afterwards",
            _text,
        ),
        Setting(
            "worker.probe_port",
            "int",
            None,
            "where `taskloom worker` answers, in plain HTTP, whether it lives and is ready; by default nowhere",
            _port,
        ),
        Setting(
            "worker.leave_timeout",
            "float",
            25.0,
            "seconds that a worker has for having its values moved when it is told to end",
            _seconds,
        ),
    )
}

_lock = threading.Lock()  # for changes; reading needs none, because dictionaries are replaced and never changed
_from_files: dict[str, Any] = {}
_from_calls: dict[str, Any] = {}
_merged: dict[str, Any] | None = None  # all but the with blocks; None: nothing was read yet
_in_context: ContextVar[dict[str, Any] | None] = ContextVar("taskloom_config", default=None)


def get(name: str, default: Any = None) -> Any:
    """The value of a setting, here and now.

    Args:
        name: a name of :data:`SETTINGS`, or the first part of one: then a dict of the settings of that group.
        default: returned instead of the table's default where nothing is set.

    Raises:
        UnknownSettingError: there is no such setting.

    >>> get("num_workers", 8)
    8
    >>> get("delayed")
    {'pure': False}
    """
    merged = _merged
    if merged is None:
        merged = _load()
    scope = _in_context.get()
    value = merged.get(name, _load) if scope is None or name not in scope else scope[name]
    if value is _load:  # not set; any object that is no setting would do as the mark
        setting = SETTINGS.get(name)
        if setting is None:
            return _get_slowly(name, default)
        value = None
    if value is None:
        return SETTINGS[name].default if default is None else default
    return value


def _get_slowly(name: str, default: Any) -> Any:
    """The same for a name that is written otherwise than in the table, or names a group."""
    plain = _plain(name)
    if plain in SETTINGS:
        return get(plain, default)
    group = plain + "."
    members = [known for known in SETTINGS if known.startswith(group)]
    if not members:
        raise _unknown(plain)
    nested: dict[str, Any] = {}
    for member in members:
        *path, last = member[len(group) :].split(".")
        place = nested
        for part in path:
            place = place.setdefault(part, {})
        place[last] = get(member)
    return nested


class _Set:
    """What :func:`set` returns: entered, it is a block of settings; not entered, it has done its work already."""

    __slots__ = ("_before", "_changes", "_token")

    def __init__(self, changes: dict[str, Any], publish: bool) -> None:
        self._changes = changes
        self._before: dict[str, Any] | None = None
        self._token: Token[dict[str, Any] | None] | None = None
        if publish:
            self._before = _publish(changes)

    def __enter__(self) -> None:
        if self._token is not None:
            raise RuntimeError("this block of settings is entered already; call config.set(...) for each block")
        if self._before is not None:  # it was called first and entered later
            _publish(self._before)
            self._before = None
        scope = _in_context.get()
        self._token = _in_context.set(self._changes if scope is None else {**scope, **self._changes})

    def __exit__(self, *exc_info: object) -> None:
        token, self._token = self._token, None
        if token is not None:
            _in_context.reset(token)

    def __repr__(self) -> str:
        return f"<settings: {', '.join(f'{name}={value!r}' for name, value in self._changes.items())}>"


def set(settings: Mapping[str, Any] | None = None, /, **named: Any) -> _Set:
    """Change settings: for the whole process, or for a block.

    A plain call sets them for the whole process, from now on. In ``with config.set(...):`` they hold inside of the
    block only, and only for the thread or asyncio task that runs it and for the tasks of graphs that it computes; at
    its end everything is as before.

    Args:
        settings: names, dotted or as nested mappings, and their values: ``{"delayed.pure": True}`` or
            ``{"delayed": {"pure": True}}``.
        named: the same as keyword arguments, two underscores for the dot: ``delayed__pure=True``. The value None means
            the default in a block, and forgets in a plain call what calls have set.

    Raises:
        UnknownSettingError: there is no such setting. Then nothing is changed.
        TypeError, ValueError: the value is not of the setting's type, or out of its range.

    >>> with set(scheduler="sync", delayed={"pure": True}):
    ...     get("scheduler"), get("delayed.pure")
    ('sync', True)
    """
    if settings is not None and not isinstance(settings, Mapping):
        raise TypeError(f"config.set takes a mapping of settings or keyword arguments, not {_shown(settings)}")
    if _merged is None:
        _load()
    changes: dict[str, Any] = {}
    for source in (settings or {}, named):
        for name, value in _flat(source):
            changes[name] = _checked(name, value)
    return _Set(changes, publish=not _is_with(sys._getframe(1)))


def _is_with(frame: Any) -> bool:
    """Whether the next thing that a frame does with the result of its call is to enter it.

    The settings of ``with config.set(...)`` must never be seen by other threads, not even between the call and the
    block's beginning, and the call itself can tell in no other way what it is for. Where this cannot see it (a
    ``contextlib.ExitStack``, a call kept in a variable), entering takes the process-wide change back.
    """
    from opcode import opname

    code = frame.f_code.co_code
    place: int = frame.f_lasti + 2
    while place < len(code) and opname[code[place]] == "CACHE":
        place += 2
    following = [opname[code[at]] for at in (place, place + 2) if at < len(code)]
    # Python 3.11 to 3.13 have one instruction for it, 3.14 copies the object and looks __exit__ up
    return following[:1] == ["BEFORE_WITH"] or following == ["COPY", "LOAD_SPECIAL"]


def refresh() -> None:
    """Read the files and the environment again. What was set by calls stays and goes before them."""
    with _lock:
        _read()


def _load() -> dict[str, Any]:
    with _lock:
        if _merged is None:
            _read()
        return _merged or {}


def _read() -> None:
    """Read everything from outside (the lock is held)."""
    global _from_files, _merged
    found: dict[str, Any] = {}
    for path, must in _files():
        found.update(_read_file(path, must))
    found.update(_read_environment())
    _from_files = found
    _merged = {**_from_files, **_from_calls}


def _publish(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Set for the whole process, None: set no longer; return what these settings were before."""
    global _from_calls, _merged
    with _lock:
        before = {name: _from_calls.get(name) for name in changes}
        _from_calls = {name: value for name, value in {**_from_calls, **changes}.items() if value is not None}
        _merged = {**_from_files, **_from_calls}
    return before


def _files() -> Iterator[tuple[str, bool]]:
    """The files to read, what counts more later, and whether each has to be there."""
    yield "/etc/taskloom/config.toml", False
    chosen = os.environ.get("TASKLOOM_CONFIG")
    if chosen:
        yield os.path.expanduser(chosen), True
    else:
        home = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
        yield os.path.join(home, "taskloom", "config.toml"), False


def _read_file(path: str, must: bool) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        if must:
            raise type(error)(error.errno, f"{error.strerror}; the variable TASKLOOM_CONFIG names it", path) from error
        return {}
    import tomllib  # only now: most machines have no such file

    try:
        table = tomllib.loads(data.decode())
    except ValueError as error:
        raise ValueError(f"the settings in {path} are no valid TOML: {error}") from error
    return _checked_all(_flat(table), f"in the file {path}: ")


def _read_environment() -> dict[str, Any]:
    settings = []
    for variable, text in os.environ.items():
        if not variable.startswith(_PREFIX) or variable in _NOT_SETTINGS:
            continue
        name = _plain(variable[len(_PREFIX) :].lower().replace("__", "."))
        if name in SETTINGS:
            settings.append((name, _value_of(text), variable))
        else:
            _warn_of_typo(variable, name)
    found: dict[str, Any] = {}
    for name, value, variable in settings:
        found.update(_checked_all([(name, value)], f"in the variable {variable}: "))
    return found


def _warn_of_typo(variable: str, name: str) -> None:
    # Only what is nearly a setting: Kubernetes puts TASKLOOM_..._SERVICE_HOST and the like into every container, and
    # other programs may have variables of their own.
    close = _close(name, 0.8)
    if close:
        import warnings

        warnings.warn(
            f"the environment variable {variable} is no setting of taskloom; close to it: "
            + ", ".join(_PREFIX + known.upper().replace(".", "__") for known in close),
            SettingWarning,
            stacklevel=2,
        )


def _value_of(text: str) -> Any:
    """A value as people write it in a shell: a Python literal, true or false, else the text itself."""
    plain = text.strip().lower()
    if plain in ("true", "false"):
        return plain == "true"
    if plain in ("", "none"):
        return None
    from ast import literal_eval

    try:
        return literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The settings of nested mappings, by their dotted names."""
    stack: list[tuple[str, Iterator[tuple[str, Any]]]] = [("", iter(settings.items()))]
    while stack:
        prefix, items = stack[-1]
        for part, value in items:
            if not isinstance(part, str):
                raise TypeError(f"the name of a setting is a string, not {_shown(part)}")
            name = prefix + _plain(part)
            if isinstance(value, Mapping) and name not in SETTINGS:
                if not any(known.startswith(name + ".") for known in SETTINGS):
                    raise _unknown(name)
                stack.append((name + ".", iter(value.items())))
                break
            yield name, value
        else:
            stack.pop()


def _plain(name: str) -> str:
    return name.replace("__", ".").replace("-", "_")


def _checked(name: str, value: Any) -> Any:
    setting = SETTINGS.get(name)
    if setting is None:
        raise _unknown(name)
    return None if value is None else setting.check(name, value)


def _checked_all(settings: Any, where: str) -> dict[str, Any]:
    """The same for many; an error says where the wrong one stands."""
    try:
        return {name: _checked(name, value) for name, value in settings}
    except UnknownSettingError as error:
        raise UnknownSettingError(where + str(error)) from None
    except (TypeError, ValueError) as error:
        raise type(error)(where + str(error)) from None


def _unknown(name: str) -> UnknownSettingError:
    group = [known for known in SETTINGS if known.startswith(name + ".")]
    if group:
        return UnknownSettingError(f"{name!r} is a group of settings: {', '.join(group)}")
    close = _close(name, 0.5)
    hint = "close to it: " if close else "there are: "
    return UnknownSettingError(f"there is no setting {name!r}; {hint}{', '.join(close or SETTINGS)}")


def _close(name: str, cutoff: float) -> list[str]:
    import difflib  # only now: errors are rare

    close = difflib.get_close_matches(name, SETTINGS, n=3, cutoff=cutoff)
    if close:  # where one is nearly it, others that have a word in common are not meant
        likeness = {known: difflib.SequenceMatcher(None, known, name).ratio() for known in close}
        close = [known for known in close if likeness[known] > likeness[close[0]] - 0.3]
    if not close:  # the last part alone: "pure" for "delayed.pure"
        last = {known.rsplit(".", 1)[-1]: known for known in SETTINGS}
        close = [last[part] for part in difflib.get_close_matches(name, last, n=3, cutoff=max(cutoff, 0.8))]
    return close
