"""``python -m taskloom.node KIND LIFE``: a worker or scheduler process, which reads from its standard input what it is to be.

It ends when the pipe LIFE does, which is when the program that started it has ended, in whatever way.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import Any

from taskloom.local.child import die_with_parent


def _worker(hello: dict[str, Any]) -> None:
    from taskloom.errors import AddressError, CommError, HandshakeError, TokenError
    from taskloom.node.codes import REFUSED
    from taskloom.node.worker import WorkerNode

    told = hello.pop("tell")
    os.set_inheritable(told, False)
    sys.path[:] = hello.pop("path")
    sys.argv[:] = hello.pop("argv")
    listen_at = hello.pop("listen_at")
    timeout = hello.pop("timeout", 30.0)

    async def main() -> None:
        node = WorkerNode(**hello, die=_die)
        loop = asyncio.get_running_loop()
        leaving: list[Any] = []
        loop.add_signal_handler(signal.SIGTERM, lambda: leaving.append(loop.create_task(node.close())))
        await node.start(listen_at, timeout)
        os.write(told, f"{node.address}\n".encode())
        os.close(told)
        await node.finished.wait()

    try:
        asyncio.run(main())
    except (CommError, OSError) as error:
        print(f"taskloom worker {hello['name']}: {error}", file=sys.stderr)
        final = isinstance(error, (HandshakeError, TokenError, AddressError))
        sys.stderr.flush()
        os._exit(REFUSED if final else 1)
    # Threads whose tasks cannot be stopped must not keep the process.
    _die(0)


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
    hello = json.load(sys.stdin)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    {"worker": _worker, "scheduler": _scheduler}[kind](hello)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
