"""``python -m taskloom.node KIND LIFE``: a worker or scheduler process, which reads from its standard input what it is to be.

It ends when the pipe LIFE does, which is when the program that started it has ended, in whatever way.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import tempfile
import warnings
from typing import Any

from taskloom.local.child import die_with_parent
from taskloom.node.process import tell_defects


def _worker(hello: dict[str, Any]) -> None:
    from taskloom import config
    from taskloom.node.codes import LEFT, REFUSED
    from taskloom.node.worker import WorkerNode

    tell = hello.pop("tell")
    sys.path[:] = hello.pop("path")
    sys.argv[:] = hello.pop("argv")
    pythonpath = hello.pop("pythonpath")
    if pythonpath is None:
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = pythonpath
    # The cores are taken: a task that computes a graph does so in its own thread.
    config.set(scheduler="sync")
    # A task in pure Python holds the interpreter for so long against the event loop, which has others to answer.
    sys.setswitchinterval(0.0005)
    listen_at = hello.pop("listen_at")
    timeout = hello.pop("timeout", 30.0)
    folder = hello["folder"]
    if folder is not None:
        try:
            os.makedirs(folder, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            print(
                f"taskloom worker {hello['name']}: values cannot be written to the folder {folder!r}: {error.strerror}. "
                "Name another one: --local-directory, or local_directory=",
                file=sys.stderr,
            )
            _die(REFUSED)

    # What the worker itself has to say. Where no handler is set, Python would print it, but capturing what tasks log is one.
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("taskloom: %(message)s"))
    handler.setLevel(logging.WARNING)
    logging.getLogger("taskloom").addHandler(handler)

    async def main() -> None:
        node = WorkerNode(**hello, die=_die)
        loop = asyncio.get_running_loop()
        tell_defects(loop, f"taskloom worker {node.name}", lambda: _die(1))
        leaving: list[Any] = []
        loop.add_signal_handler(signal.SIGTERM, _die, LEFT)  # it has nothing yet
        await node.start(listen_at, timeout)
        loop.add_signal_handler(signal.SIGTERM, lambda: leaving.append(loop.create_task(node.close())))
        tell(node.address)
        await node.finished.wait()

    asyncio.run(main())
    # Threads whose tasks cannot be stopped must not keep the process.
    _die(LEFT)


def _scheduler(hello: dict[str, Any]) -> None:
    from taskloom.node.scheduler import serve

    asyncio.run(serve(**hello))


def _die(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
    os._exit(code)


def main(kind: str, life: int) -> None:
    """Be what the standard input says."""
    # What Ctrl-C means is for the program that started this one to say.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    die_with_parent(life)
    os.set_inheritable(life, False)
    said = sys.stdin.read()
    if not said.endswith("}"):  # who started this is gone already
        _die(1)
    hello = json.loads(said)
    told = hello["tell"]
    os.set_inheritable(told, False)

    def tell(address: str, http: str | None = None) -> None:
        os.write(told, f"{address} {http or ''}".rstrip().encode() + b"\n")
        os.close(told)

    hello["tell"] = tell
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    from taskloom.config import SettingWarning

    warnings.simplefilter("ignore", SettingWarning)  # the program that started this one says it
    from taskloom.errors import AddressError, CommError, HandshakeError, TokenError
    from taskloom.net import load_token
    from taskloom.node.codes import REFUSED

    try:
        hello["token"] = load_token(hello["token"])
        {"worker": _worker, "scheduler": _scheduler}[kind](hello)
    except ImportError as error:  # it is of no use to try again
        print(
            f"taskloom {kind} {hello.get('name', '')}".rstrip()
            + f": a package that it needs cannot be imported by {sys.executable}: {error}. Try: pip install 'taskloom[cluster]'",
            file=sys.stderr,
        )
        _die(REFUSED)
    except (CommError, OSError) as error:
        print(f"taskloom {kind} {hello.get('name', '')}".rstrip() + f": {error}", file=sys.stderr)
        # a scheduler cannot listen where it is to; a worker may be too early
        final = kind == "scheduler" or isinstance(error, (HandshakeError, TokenError, AddressError))
        _die(REFUSED if final else 1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
