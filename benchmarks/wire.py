"""``python -m benchmarks.wire``: what a message costs, by itself and between two processes; beside a bare socket.

Every figure is the best of several rounds. Between processes, the other end is a process of its own, on this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import mmap
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from taskloom import net
from taskloom.protocol import Decoder, Encoder, Payload

TOKEN = "a-token-for-the-benchmark"
MEGABYTE = 1 << 20


def best(function: Callable[[], Any], number: int, rounds: int = 7) -> float:
    """Seconds of one call."""
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(number):
            function()
        times.append((time.perf_counter() - begin) / number)
    return min(times)


def show(what: str, value: float, unit: str) -> None:
    print(f"{what:<66} {value:10.3f} {unit}", flush=True)


# --- without a wire


def block(count: int) -> tuple[Any, ...]:
    """Tasks in columns, as a scheduler sends them."""
    draw = random.Random(1)
    ids = list(range(1_000_000, 1_000_000 + count))
    return (
        "run",
        7,
        ids,
        [draw.randrange(1 << 20) for _ in ids],
        [draw.randrange(5) for _ in ids],
        [draw.randbytes(20) for _ in ids],
        [[draw.randrange(1 << 20)] for _ in ids],
        bytes(count),
    )


def codec() -> None:
    """Encoding and decoding alone."""
    for name, message, per, number in (
        ("a block of 1,000 tasks in 6 columns", block(1000), 1000, 100),
        ("a lone message", ("done", 123, 456, None), 1, 5000),
    ):
        encoder, decoder = Encoder(), Decoder()

        def encode(encoder: Encoder = encoder, message: Any = message) -> Any:
            encoder.add(message)
            return encoder.take()

        data = encode()[0]
        show(f"encode {name}", best(encode, number) / per * 1e6, "us")
        show(f"decode {name}", best(lambda d=decoder, x=data: d.feed(x), number) / per * 1e6, "us")
        show(f"  on the wire {name}", len(data) / per, "bytes")
    encoder, decoder = Encoder(), Decoder()

    def encode_many() -> Any:
        for n in range(1000):
            encoder.add(("done", n, 456, None))
        return encoder.take()

    data = encode_many()[0]
    show("encode a message of 1,000 in a batch", best(encode_many, 20) / 1000 * 1e6, "us")
    show("decode a message of 1,000 in a batch", best(lambda: decoder.feed(data), 20) / 1000 * 1e6, "us")


# --- between two processes


class Here:
    """This end."""

    def __init__(self, connection: net.Connection) -> None:
        self.connection = connection
        self.waiter: asyncio.Future[Any] | None = None
        connection.start(self.on_messages, lambda reason: None)

    def on_messages(self, messages: list[Any]) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(messages[-1])

    async def ask(self, message: Any) -> Any:
        self.waiter = self.connection.loop.create_future()
        self.connection.send(message)
        return await self.waiter


async def there(scheme: str) -> None:
    """The other end: answers."""
    done = asyncio.get_running_loop().create_future()

    def welcome(connection: net.Connection) -> None:
        def on_messages(messages: list[Any]) -> None:
            for message in messages:
                if message[0] == "ask":
                    connection.send(("answer", message[1]))

        connection.start(on_messages, done.set_result)

    listener = await net.listen(f"{scheme}://127.0.0.1:0", welcome, token=TOKEN, role="scheduler")
    print(listener.address, flush=True)
    await done
    listener.close()


async def between(scheme: str, address: str, quick: bool) -> None:
    here = Here(await net.connect(address, token=TOKEN, role="client", wants="scheduler"))
    await here.ask(("ask", 0))
    count = 300 if quick else 3000
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        for n in range(count):
            await here.ask(("ask", n))
        times.append((time.perf_counter() - begin) / count)
    show(f"{scheme}: round trip of a lone message", min(times) * 1e6, "us")
    for batch in (1, 10, 1000):
        total = (2_000 if batch == 1 else 50_000) // (10 if quick else 1)
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            for n in range(total // batch):
                for _ in range(batch):
                    here.connection.send(("done", n, 456, None))
                await asyncio.sleep(0)
            await here.ask(("ask", 0))
            times.append((time.perf_counter() - begin) / total)
        show(f"{scheme}: one way, a message in batches of {batch}", min(times) * 1e6, "us")
    here.connection.close()
    await here.connection.wait_closed()


def bare_there(size: int) -> None:
    """The other end of a bare socket: new memory for each block, as whoever keeps it needs."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        sock, _ = server.accept()
        with sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while kind := sock.recv(1):
                if kind == b"p":
                    sock.sendall(b"a")
                    continue
                # the fastest that there is: a bytearray would be filled with zeros first
                memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                if hasattr(mmap, "MADV_HUGEPAGE"):
                    memory.madvise(mmap.MADV_HUGEPAGE)
                view = memoryview(memory)
                at = 0
                while at < size:
                    at += sock.recv_into(view[at:])
                sock.sendall(b"a")


def bare(port: int, count: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def ping() -> None:
            sock.sendall(b"p")
            sock.recv(1)

        show("bare socket: round trip of a byte", best(ping, count, 5) * 1e6, "us")


async def large(addresses: dict[str, str], size: int) -> None:
    """One large payload over each, in turns, so that what else the machine does hits all alike."""
    data = os.urandom(MEGABYTE) * (size // MEGABYTE)
    payload = Payload([b"pickle", data])
    ends = {}
    for scheme in ("tcp", "tls"):
        ends[scheme] = Here(await net.connect(addresses[scheme], token=TOKEN, role="client", wants="scheduler"))
        await ends[scheme].ask(("ask", 0))
    times: dict[str, list[float]] = {"bare socket": [], "tcp": [], "tls": []}
    with socket.create_connection(("127.0.0.1", int(addresses["bare"]))) as sock:
        for _ in range(12):
            begin = time.perf_counter()
            sock.sendall(b"d")
            sock.sendall(data)
            sock.recv(1)
            times["bare socket"].append(time.perf_counter() - begin)
            for scheme, end in ends.items():
                begin = time.perf_counter()
                await end.ask(("ask", 0, payload))
                times[scheme].append(time.perf_counter() - begin)
    for name, found in times.items():
        show(f"{name}: {size / 1e6:.0f} MB", min(found) * 1e3, "ms")
    for scheme in ends:
        show(f"{scheme}: of the bare socket's time", min(times[scheme]) / min(times["bare socket"]), "times")
        ends[scheme].connection.close()
        await ends[scheme].connection.wait_closed()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, to see whether it works")
    parser.add_argument("--there", help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = MEGABYTE * (10 if options.quick else 100)
    if options.there == "bare":
        bare_there(size)
        return
    if options.there:
        asyncio.run(there(options.there))
        return
    codec()
    flags = ["--quick"] if options.quick else []
    for measure in ("small", "large"):
        with contextlib.ExitStack() as stack:
            addresses = {}
            for scheme in ("bare", "tcp", "tls"):
                command = [sys.executable, "-m", "benchmarks.wire", "--there", scheme, *flags]
                process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
                assert process.stdout is not None
                addresses[scheme] = process.stdout.readline().strip()
            if measure == "small":
                bare(int(addresses["bare"]), 300 if options.quick else 3000)
                for scheme in ("tcp", "tls"):
                    asyncio.run(between(scheme, addresses[scheme], options.quick))
            else:
                asyncio.run(large(addresses, size))


if __name__ == "__main__":
    main()
