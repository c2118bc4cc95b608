"""What the tests of connections share: two ends in one loop, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

import pytest

from taskloom import net

TOKEN = "a-token-for-the-tests"


class End:
    """One end of a connection: keeps what comes."""

    def __init__(self, connection, start=True):
        self.connection = connection
        self.messages = []
        self.batches = []
        self.closes = []
        self._news = asyncio.Event()
        if start:
            self.start()

    def start(self):
        self.connection.start(self.on_messages, self.on_close)

    def on_messages(self, messages):
        assert not self.closes
        self.batches.append(len(messages))
        self.messages += messages
        self._news.set()

    def on_close(self, reason):
        self.closes.append(reason)
        self._news.set()

    async def until(self, condition):
        while not condition():
            await self._news.wait()
            self._news.clear()

    async def get(self, count):
        """The first so many messages, which are taken away."""
        await self.until(lambda: len(self.messages) >= count)
        found, self.messages = self.messages[:count], self.messages[count:]
        return found

    async def closed(self):
        """Why it was closed."""
        await self.until(lambda: self.closes)
        await self.connection.wait_closed()
        return self.closes[0]


_names = itertools.count()


def address_of(scheme):
    return f"inproc://test-{next(_names)}" if scheme == "inproc" else f"{scheme}://127.0.0.1:0"


@contextlib.asynccontextmanager
async def pair_of_ends(scheme, start=True, options=None, theirs=None):
    """(the connector's end, the acceptor's); both are closed at the end, and nothing may be left."""
    arrived = asyncio.get_running_loop().create_future()
    refused = []
    listener = await net.listen(
        address_of(scheme),
        arrived.set_result,
        token=TOKEN,
        role="scheduler",
        options=theirs or options or net.Options(),
        on_refused=lambda error, remote: refused.append(error),
    )
    connection = await net.connect(
        listener.address, token=TOKEN, role="client", wants="scheduler", options=options or net.Options()
    )
    ends = End(connection, start), End(await arrived, start)
    try:
        yield ends
    finally:
        for end in ends:
            end.connection.abort()
            await end.connection.wait_closed()
        listener.close()
        await listener.wait_closed()
        assert not refused


@pytest.fixture
def ends():
    """``async with ends(scheme) as (one, other)``."""
    return pair_of_ends


@pytest.fixture
def end():
    return End


@pytest.fixture(params=["tcp", "tls", "inproc"])
def scheme(request):
    return request.param


@pytest.fixture(params=["tcp", "tls"])
def wire(request):
    return request.param


@pytest.fixture
def run():
    """Run a coroutine function; it may take half a minute, and must leave no task and no error that nobody saw."""

    def runner(function, *arguments):
        problems = []

        async def main():
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda loop, context: problems.append(context))
            await asyncio.wait_for(function(*arguments), 30)
            left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            assert not left

        asyncio.run(main())
        assert not problems

    return runner
