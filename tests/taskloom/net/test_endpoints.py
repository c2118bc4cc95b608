"""Listening and connecting: who comes in and who does not, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from taskloom import net
from taskloom.errors import (
    AddressError,
    CommError,
    ConnectError,
    ConnectTimeoutError,
    HandshakeError,
    TokenError,
)
from taskloom.net.security import _context, temporary_security
from taskloom.protocol.handshake import MAGIC, refusal

TOKEN = "a-token-for-the-tests"


class Scheduler:
    """Something that listens, and keeps what comes."""

    def __init__(self):
        self.connections = []
        self.refused = []
        self.listener = None
        self._news = asyncio.Event()

    def welcome(self, connection):
        connection.start(self._echo(connection), lambda reason: None)
        self.connections.append(connection)
        self._news.set()

    @staticmethod
    def _echo(connection):
        def on_messages(messages):
            for message in messages:
                connection.send(message)

        return on_messages

    def on_refused(self, error, remote):
        self.refused.append((error, remote))
        self._news.set()

    async def until(self, condition):
        while not condition():
            await self._news.wait()
            self._news.clear()

    @property
    def address(self):
        return self.listener.address

    @property
    def place(self):
        address = net.parse_address(self.address)
        return address.host, address.port


@contextlib.asynccontextmanager
async def scheduler(address="tcp://127.0.0.1:0", role="scheduler", token=TOKEN, **options):
    accepts = options.pop("accepts", ("client", "worker"))
    found = Scheduler()
    found.listener = await net.listen(
        address,
        found.welcome,
        token=token,
        role=role,
        accepts=accepts,
        on_refused=found.on_refused,
        options=net.Options(**options),
    )
    try:
        yield found
    finally:
        found.listener.close()
        for connection in found.connections:
            connection.abort()
        await found.listener.wait_closed()


def connecting(address, token=TOKEN, role="client", wants="scheduler", timeout=10.0, **options):
    return net.connect(address, token=token, role=role, wants=wants, timeout=timeout, options=net.Options(**options))


async def works(connection):
    """Something goes there and back; then it is closed."""
    came = asyncio.get_running_loop().create_future()
    connection.start(came.set_result, lambda reason: None)
    connection.send("there and back")
    assert await came == ["there and back"]
    connection.close()
    await connection.wait_closed()


def talk(place, data, tls=False):
    """What a peer gets that sends this and reads until the end; blocking."""
    with socket.create_connection(place, timeout=10) as sock:
        if tls:
            sock = _context(ssl.PROTOCOL_TLS_CLIENT).wrap_socket(sock)
        with sock:
            sock.sendall(data)
            answer = b""
            try:
                while found := sock.recv(4096):
                    answer += found
            except ConnectionResetError:
                pass
            return answer


async def in_thread(function, *arguments):
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


# --- who comes in


def test_the_one_with_the_token_comes_in(run, wire):
    async def test():
        async with scheduler(f"{wire}://127.0.0.1:0") as found:
            assert found.address.startswith(f"{wire}://127.0.0.1:")
            assert net.parse_address(found.address).port
            await works(await connecting(found.address))
            assert not found.refused
            assert found.listener.refused == 0

    run(test)


@pytest.mark.parametrize("host", ["localhost", "[::1]", "127.0.0.9"])
def test_other_names_of_this_machine(run, wire, host):
    async def test():
        async with scheduler(f"{wire}://{host}:0") as found:
            port = net.parse_address(found.address).port
            await works(await connecting(f"{wire}://{host}:{port}"))

    run(test)


def test_localhost_is_tried_with_both_families(run):
    async def test():
        async with scheduler("tcp://[::1]:0") as found:
            await works(await connecting(f"tcp://localhost:{net.parse_address(found.address).port}"))

    run(test)


def test_a_wrong_token_is_refused_and_what_to_do_is_said(run, wire):
    async def test():
        async with scheduler(f"{wire}://127.0.0.1:0") as found:
            with pytest.raises(HandshakeError) as caught:
                await connecting(found.address, token="another-token-altogether")
            assert caught.value.code == "token"
            assert found.address in str(caught.value)
            assert "refuses the token that this client has" in str(caught.value)
            assert 'TASKLOOM_TOKEN="$(cat ~/.config/taskloom/token)"' in str(caught.value)
            await found.until(lambda: found.refused)
            [(error, remote)] = found.refused
            assert error.code == "token"
            assert remote.startswith(f"{wire}://127.0.0.1:")
            assert found.listener.refused == 1
            assert not found.connections
            await works(await connecting(found.address))

    run(test)


def test_what_is_there_has_another_role(run, scheme):
    async def test():
        name = "inproc://roles" if scheme == "inproc" else f"{scheme}://127.0.0.1:0"
        async with scheduler(name, role="worker") as found:
            with pytest.raises(HandshakeError, match="a scheduler was to be there, and it is a worker") as caught:
                await connecting(found.address)
            assert caught.value.code == "role"
            with pytest.raises(HandshakeError, match="takes no connections from a supervisor"):
                await connecting(found.address, role="supervisor", wants="worker")
            await works(await connecting(found.address, wants=None))

    run(test)


def test_tokens_change_while_processes_run(run, wire, tmp_path):
    """Whoever has seen the new file already, and whoever has not yet: all find each other."""

    def file(name, *tokens):
        new = tmp_path / f"{name}.new"
        new.write_text("\n".join(tokens))
        new.chmod(0o600)
        new.rename(tmp_path / name)
        return str(tmp_path / name)

    old, new, newest = "the-old-token-of-it", "the-new-token-of-it", "the-newest-token-of-it"

    async def test():
        theirs, ours = net.TokenFile(file("theirs", old)), net.TokenFile(file("ours", old))
        async with scheduler(f"{wire}://127.0.0.1:0", token=theirs) as found:
            await works(await connecting(found.address, token=ours))
            file("ours", new, old)
            await works(await connecting(found.address, token=ours))  # the new one is refused, the old one not
            file("theirs", new, old)
            await works(await connecting(found.address, token=old))
            await works(await connecting(found.address, token=ours))
            file("theirs", newest, new)
            with pytest.raises(HandshakeError, match="refuses the token"):
                await connecting(found.address, token=old)
            await works(await connecting(found.address, token=ours))

    run(test)


def test_a_token_that_could_be_guessed_is_not_used(run, wire):
    async def test():
        with pytest.raises(TokenError, match="has 5 characters, and could be guessed"):
            await net.listen(f"{wire}://127.0.0.1:0", print, token="short", role="scheduler")
        with pytest.raises(TokenError, match="could be guessed"):
            await connecting(f"{wire}://127.0.0.1:9", token="short")

    run(test)


def test_wrong_arguments(run):
    async def test():
        with pytest.raises(ValueError, match="a role is one of client, worker, scheduler, supervisor, not 'boss'"):
            await net.listen("tcp://127.0.0.1:0", print, token=TOKEN, role="boss")
        with pytest.raises(ValueError, match="python= is 'refuse' or 'warn', not 'yes'"):
            async with scheduler() as found:
                await connecting(found.address, python="yes")
        with pytest.raises(AddressError, match="port 0; that is for listening only"):
            await connecting("tcp://127.0.0.1:0")

    run(test)


# --- versions, with a process of another version


OTHER = """
import asyncio, sys
from taskloom import net
import taskloom.protocol.handshake as handshake
import taskloom.net.endpoints as endpoints
what, address, python = sys.argv[1:]
if what == "protocol":
    inner = endpoints.Identity
    endpoints.Identity = lambda *a, **k: inner(*a, **k)._replace(protocol=99, version="9.9")
else:
    endpoints.sys = type("sys", (), {"version_info": tuple(int(n) for n in what.split("."))})
async def main():
    try:
        c = await net.connect(address, token="a-token-for-the-tests", role="client", wants="scheduler",
                              options=net.Options(python=python))
    except net.endpoints.CommError as error:
        print(type(error).__name__, error.code, error)
    else:
        print("open", *c.peer.warnings)
asyncio.run(main())
"""


def other_version(what, address, python="refuse"):
    done = subprocess.run(
        [sys.executable, "-c", OTHER, what, address, python], capture_output=True, text=True, timeout=60
    )
    assert not done.stderr, done.stderr
    return done.stdout


def test_another_protocol_version_is_refused_on_both_sides(run):
    async def test():
        async with scheduler() as found:
            said = await in_thread(other_version, "protocol", found.address)
            assert said.startswith("HandshakeError protocol")
            assert "this client has taskloom 9.9 with protocol 99" in said
            assert "upgrade taskloom where the scheduler runs" in said
            await found.until(lambda: found.refused)
            assert "upgrade taskloom where this scheduler runs" in str(found.refused[0][0])

    run(test)


def test_another_python_is_refused_or_warned_of(run):
    async def test():
        minor = f"{sys.version_info[0]}.{sys.version_info[1] + 1}.0"
        patch = f"{sys.version_info[0]}.{sys.version_info[1]}.99"
        async with scheduler() as found:
            said = await in_thread(other_version, minor, found.address)
            assert said.startswith("HandshakeError python")
            assert f"this client runs Python {minor}" in said
            said = await in_thread(other_version, patch, found.address)
            assert said.startswith(f"open this client runs Python {patch}")
            assert "works in general" in found.connections[0].peer.warnings[0]
        async with scheduler(python="warn") as found:
            said = await in_thread(other_version, minor, found.address, "warn")
            assert said.startswith("open this client runs")
            assert "functions that travel by value may fail" in said

    run(test)


# --- off this machine


@pytest.mark.parametrize("address", ["tcp://0.0.0.0:0", "tcp://[::]:0", "tcp://10.1.2.3:5"])
def test_tcp_is_for_this_machine(run, address):
    async def test():
        with pytest.raises(AddressError, match=r"leaves this machine .*not encrypted. Use tls://"):
            await net.listen(address, print, token=TOKEN, role="scheduler")
        with pytest.raises(AddressError, match="leaves this machine"):
            await connecting(address.replace(":0", ":5"))

    run(test)


def test_tcp_everywhere_has_to_be_allowed(run):
    async def test():
        async with scheduler("tcp://0.0.0.0:0", allow_plain=True) as found:
            port = net.parse_address(found.address).port
            await works(await connecting(f"tcp://127.0.0.1:{port}"))

    run(test)


@pytest.mark.parametrize(("wild", "hosts"), [("0.0.0.0", ["127.0.0.1"]), ("[::]", ["127.0.0.1", "[::1]"])])
def test_tls_on_all_addresses(run, wild, hosts):
    async def test():
        async with scheduler(f"tls://{wild}:0") as found:
            port = net.parse_address(found.address).port
            for host in hosts:
                await works(await connecting(f"tls://{host}:{port}"))

    run(test)


def test_an_address_that_is_taken(run, scheme):
    async def test():
        name = "inproc://taken" if scheme == "inproc" else f"{scheme}://127.0.0.1:0"
        async with scheduler(name) as found:
            with pytest.raises(AddressError, match="listens"):
                await net.listen(found.address, print, token=TOKEN, role="scheduler")
        async with scheduler(found.address):
            pass

    run(test)


def test_an_address_of_another_machine_cannot_be_listened_at(run):
    async def test():
        with pytest.raises(AddressError, match=r"can't listen at tls://192.0.2.1:0: Cannot assign"):
            await net.listen("tls://192.0.2.1:0", print, token=TOKEN, role="scheduler")

    run(test)


def test_a_machine_that_does_not_exist(run):
    async def test():
        with pytest.raises(ConnectError, match=r"there is no machine 'nothing.invalid'"):
            await connecting("tls://nothing.invalid:5")
        with pytest.raises(AddressError, match=r"there is no machine 'nothing.invalid'"):
            await net.listen("tls://nothing.invalid:5", print, token=TOKEN, role="scheduler")

    run(test)


# --- peers that are no schedulers


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def test_nobody_is_there(run, wire):
    async def test():
        with pytest.raises(ConnectTimeoutError) as caught:
            await connecting(f"{wire}://127.0.0.1:{free_port()}", timeout=0.2)
        assert "no scheduler could be reached" in str(caught.value)
        assert "Connection refused" in str(caught.value)
        assert "Is it running there" in str(caught.value)
        assert isinstance(caught.value, TimeoutError)

    run(test)


def test_nobody_is_there_within_the_process(run):
    async def test():
        with pytest.raises(ConnectError, match="nothing in this process listens at inproc://nobody"):
            await connecting("inproc://nobody")

    run(test)


def test_who_comes_before_the_scheduler_waits_for_it(run, wire):
    async def test():
        port = free_port()
        early = asyncio.ensure_future(connecting(f"{wire}://127.0.0.1:{port}"))
        # it has been refused once at least
        probe = asyncio.ensure_future(connecting(f"{wire}://127.0.0.1:{port}", timeout=0.1))
        with pytest.raises(ConnectTimeoutError):
            await probe
        assert not early.done()
        async with scheduler(f"{wire}://127.0.0.1:{port}"):
            await works(await early)

    run(test)


@contextlib.contextmanager
def somebody(answer):
    """A server that reads something, sends this (None: nothing, ever) and closes when the peer has."""
    import threading

    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        with contextlib.suppress(OSError):
            while True:
                peer, _ = server.accept()
                with peer, contextlib.suppress(OSError):
                    peer.settimeout(10)
                    peer.recv(4096)
                    if answer is not None:
                        peer.sendall(answer)
                        peer.shutdown(socket.SHUT_WR)
                    while peer.recv(4096):
                        pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n", "no process of taskloom: it is a web server"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "it is an SSH server"),
        (os.urandom(3) + b"\0" * 50, "no process of taskloom: it answered"),
    ],
)
def test_what_is_there_is_no_scheduler(run, answer, words):
    async def test():
        with somebody(answer) as port, pytest.raises(HandshakeError, match=words) as caught:
            await connecting(f"tcp://127.0.0.1:{port}")
        assert f"tcp://127.0.0.1:{port}: what is there" in str(caught.value)

    run(test)


def test_what_is_there_does_not_speak_tls(run):
    async def test():
        with somebody(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
            with pytest.raises(HandshakeError, match="does not speak TLS; it is no scheduler of taskloom") as caught:
                await connecting(f"tls://127.0.0.1:{port}")
            assert caught.value.code == "tls"

    run(test)


def test_what_is_there_never_answers(run, wire):
    async def test():
        with somebody(None) as port, pytest.raises(ConnectTimeoutError, match="did not answer the handshake within"):
            await connecting(f"{wire}://127.0.0.1:{port}", timeout=0.2)

    run(test)


def test_what_is_there_closes_at_once(run, wire):
    async def test():
        with somebody(b"") as port, pytest.raises(ConnectTimeoutError, match="closed the connection in the") as caught:
            await connecting(f"{wire}://127.0.0.1:{port}", timeout=0.3)
        assert "tried again and again" in str(caught.value)

    run(test)


def test_tcp_to_a_port_with_tls(run):
    async def test():
        async with scheduler("tls://127.0.0.1:0") as found:
            with pytest.raises(HandshakeError, match="wants TLS; use an address that begins with tls://") as caught:
                await connecting(found.address.replace("tls:", "tcp:"))
            assert caught.value.code == "tls"
            await found.until(lambda: found.refused)
            assert found.refused[0][0].code == "tls"

    run(test)


def test_tls_to_a_port_without(run):
    async def test():
        async with scheduler() as found:
            with pytest.raises(HandshakeError, match="does not speak TLS"):
                await connecting(found.address.replace("tcp:", "tls:"))
            await found.until(lambda: found.refused)
            assert "spoke TLS to this port" in str(found.refused[0][0])

    run(test)


# --- strangers at the port


def test_http_is_answered(run, wire):
    def ask(place, url):
        try:
            urllib.request.urlopen(url.format(*place), timeout=10, context=_context(ssl.PROTOCOL_TLS_CLIENT))
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()
        return None

    async def test():
        async with scheduler(f"{wire}://127.0.0.1:0") as found:
            urls = ["http://{}:{}/status"]
            if wire == "tls":
                urls.append("https://{}:{}/status")
            for count, url in enumerate(urls, 1):
                code, body = await in_thread(ask, found.place, url)
                assert code == 400
                assert b"This port is for the processes of a taskloom cluster" in body
                await found.until(lambda count=count: len(found.refused) == count)
                assert found.refused[-1][0].code == "http"
            await works(await connecting(found.address))

    run(test)


@pytest.mark.parametrize("tls", [False, True])
def test_random_bytes_are_refused_and_disturb_nobody(run, wire, tls):
    if tls and wire == "tcp":
        pytest.skip("no TLS there")

    async def test():
        async with scheduler(f"{wire}://127.0.0.1:0") as found:
            good = await connecting(found.address)
            strangers = [
                b"\x00" * 100,
                os.urandom(5000),
                MAGIC + os.urandom(1000),
                MAGIC + b"\1\1\xff\xff" + b"x" * 100_000,
            ]
            for data in strangers:
                answer = await in_thread(talk, found.place, data, tls)
                assert len(answer) < 200
                if (wire == "tcp" or tls) and len(data) < 10_000:
                    assert answer == refusal(0)
            await found.until(lambda: len(found.refused) == len(strangers))
            assert found.listener.refused == len(strangers)
            await works(good)

    run(test)


def test_who_says_nothing_is_let_go(run, wire):
    async def test():
        async with scheduler(f"{wire}://127.0.0.1:0", handshake_timeout=0.1) as found:
            assert await in_thread(talk, found.place, b"") == b""
            await found.until(lambda: found.refused)
            assert "has not proved itself within 0.1 s" in str(found.refused[0][0])

    run(test)


def test_who_says_one_byte_at_a_time_is_let_go(run):
    async def test():
        async with scheduler(handshake_timeout=0.3) as found:
            loop = asyncio.get_running_loop()
            with socket.create_connection(found.place) as sock:
                sock.setblocking(False)
                for n in range(10_000):
                    try:
                        await loop.sock_sendall(sock, MAGIC[n : n + 1] or b"\1")
                    except OSError:
                        break
                    if found.refused:
                        break
                    await asyncio.sleep(0.01)
            await found.until(lambda: found.refused)

    run(test)


def test_strangers_who_dawdle_make_place_for_others(run):
    async def test():
        async with scheduler(places=5) as found:
            idle = []
            loop = asyncio.get_running_loop()
            for _ in range(40):
                sock = socket.socket()
                sock.setblocking(False)
                await loop.sock_connect(sock, found.place)
                idle.append(sock)
            # all places are taken, and more wait: whoever means it comes in nevertheless, after those that dawdle for a second
            # have been sent away, five at a time
            for sock in idle[5:]:
                sock.close()
            await works(await connecting(found.address, timeout=20))
            assert len(found.listener._strangers) <= 5
            assert found.listener.refused >= 1
            for sock in idle[:5]:
                sock.close()

    run(test)


def test_many_who_mean_it_all_come_in(run):
    """More than there are places: they wait in the system's queue, and none is sent away."""

    async def test():
        async with scheduler(places=4) as found:
            connections = await asyncio.gather(*[connecting(found.address, timeout=25) for _ in range(60)])
            for connection in connections:
                await works(connection)
            assert not found.refused
            assert found.listener.refused == 0

    run(test)


def test_no_descriptor_is_left(run):
    """Taking connections stops for a moment, and goes on by itself."""
    code = """
import asyncio, os, resource, socket
from taskloom import net
async def main():
    came = asyncio.Queue()
    listener = await net.listen("tcp://127.0.0.1:0", came.put_nowait, token="a-token-for-the-tests", role="scheduler")
    host = net.parse_address(listener.address)
    client = socket.socket(); client.setblocking(False)
    full = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    try:
        while True:
            full.append(os.dup(0))
    except OSError:
        pass
    await asyncio.get_running_loop().sock_connect(client, (host.host, host.port))
    while listener._again is None:  # it has found out
        await asyncio.sleep(0)
    for fd in full:
        os.close(fd)
    client.close()
    c = await net.connect(listener.address, token="a-token-for-the-tests", role="client", wants="scheduler")
    (await came.get()).abort()
    c.abort()
    listener.close()
    await listener.wait_closed()
    print("fine")
asyncio.run(main())
"""

    async def test():
        done = await in_thread(
            lambda: subprocess.run(
                [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
            )
        )
        assert (done.stdout, done.stderr) == ("fine\n", "")

    run(test)


def test_a_listener_that_closes_gives_up_strangers_and_keeps_the_others(run, wire):
    async def test():
        async with scheduler(f"{wire}://127.0.0.1:0") as found:
            good = await connecting(found.address)
            stranger = await in_thread(socket.create_connection, found.place)
            with stranger:
                while not found.listener._strangers:
                    await asyncio.sleep(0)
                found.listener.close()
                found.listener.close()
                await found.listener.wait_closed()
                assert not found.listener._strangers
            await works(good)
            with pytest.raises(ConnectTimeoutError):
                await connecting(found.address, timeout=0.1)

    run(test)


def test_connecting_can_be_given_up(run, wire):
    async def test():
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        with somebody(None) as port:
            for _ in range(8):
                task = asyncio.ensure_future(connecting(f"{wire}://127.0.0.1:{port}"))
                for _ in range(100):
                    await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
        # something of an earlier test may come and go in this process; eight attempts would leave eight
        assert len(os.listdir("/proc/self/fd")) < before + 6

    run(test)


def test_an_error_of_the_one_who_welcomes_closes_the_connection():
    problems = []

    async def test():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
        listener = await net.listen("tcp://127.0.0.1:0", lambda c: 1 / 0, token=TOKEN, role="scheduler")
        connection = await connecting(listener.address)
        closed = asyncio.get_running_loop().create_future()
        connection.start(print, closed.set_result)
        assert isinstance(await closed, CommError)
        listener.close()
        await listener.wait_closed()

    asyncio.run(asyncio.wait_for(test(), 30))
    assert isinstance(problems[0]["exception"], ZeroDivisionError)


# --- attacks, with somebody between the two


class Between:
    """Passes bytes on between a client and the scheduler, keeps them, and may change them; with TLS of its own or without."""

    def __init__(self, place, server=None, client=None):
        self.place = place
        self.server = server
        self.client = client
        self.kept = ([], [])  # from the client, from the scheduler

    async def __aenter__(self):
        self.listener = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.server)
        self.port = self.listener.sockets[0].getsockname()[1]
        self.tasks = []
        self.transports = []
        return self

    async def __aexit__(self, *exc_info):
        self.listener.close()
        for transport in self.transports:
            transport.abort()
        await asyncio.gather(*self.tasks)

    async def _serve(self, reader, writer):
        self.tasks.append(asyncio.current_task())
        there = await asyncio.open_connection(*self.place, ssl=self.client)
        self.transports += [writer.transport, there[1].transport]
        try:
            await asyncio.gather(self._pass(reader, there[1], 0), self._pass(there[0], writer, 1))
        except OSError:
            pass
        finally:
            for side in (writer, there[1]):
                side.transport.abort()

    async def _pass(self, reader, writer, side):
        while data := await reader.read(65536):
            self.kept[side].append(data)
            writer.write(data)
        with contextlib.suppress(OSError, RuntimeError, NotImplementedError):
            writer.close()


def other_certificate():
    """TLS of somebody who has a certificate of the same kind."""
    from taskloom.net.security import _load, _make_certificate

    pem, _ = _make_certificate()
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    _load(context, pem)
    return context


def test_somebody_in_the_middle_with_a_certificate_of_his_own_fails(run):
    """He opens the client's TLS, passes all of the handshake on over TLS of his own, and reads everything."""

    async def test():
        async with (
            scheduler("tls://127.0.0.1:0") as found,
            Between(found.place, other_certificate(), _context(ssl.PROTOCOL_TLS_CLIENT)) as between,
        ):
            with pytest.raises(HandshakeError) as caught:
                await connecting(f"tls://127.0.0.1:{between.port}")
            assert caught.value.code == "token"
            await found.until(lambda: found.refused)
            assert found.refused[0][0].code == "token"
            assert not found.connections
            # he has seen the proof: it was the certificate that made it useless
            assert b"".join(between.kept[0]).count(MAGIC) == 2
            assert TOKEN.encode() not in b"".join(between.kept[0])

    run(test)


def test_who_only_passes_tls_on_sees_nothing_and_does_no_harm(run):
    """A relay that cannot read, such as a forwarded port."""

    async def test():
        async with scheduler("tls://127.0.0.1:0") as found, Between(found.place) as between:
            await works(await connecting(f"tls://127.0.0.1:{between.port}"))
            assert MAGIC not in b"".join(between.kept[0])
            assert b"there and back" not in b"".join(between.kept[0] + between.kept[1])

    run(test)


def test_replaying_a_recorded_handshake_fails(run):
    async def test():
        async with scheduler() as found, Between(found.place) as between:
            await works(await connecting(f"tcp://127.0.0.1:{between.port}"))
            assert len(found.connections) == 1
            said = b"".join(between.kept[0])
            answered = b"".join(between.kept[1])
            answer = await in_thread(talk, found.place, said)
            assert answer.endswith(refusal(0))
            await found.until(lambda: found.refused)
            assert found.refused[0][0].code == "token"
            assert len(found.connections) == 1
        # and to a client, what the scheduler has said
        with somebody(answered) as port, pytest.raises(HandshakeError, match="could not prove that it knows the token"):
            await connecting(f"tcp://127.0.0.1:{port}")

    run(test)


def test_reflecting_a_client_fails(run):
    """Somebody without the token sends a client's own bytes back."""

    tasks = []

    async def echo(reader, writer):
        tasks.append(asyncio.current_task())
        while data := await reader.read(4096):
            writer.write(data)
        writer.close()

    async def test():
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        async with server:
            with pytest.raises(HandshakeError) as caught:
                await connecting(f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            assert caught.value.code == "peer"
            await asyncio.gather(*tasks)

    run(test)


# --- certificates of one's own


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Files: an authority, one that it has signed for localhost, one that another authority has signed."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("certificates")
    now = datetime.now(UTC)

    def make(name, issuer=None):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer[1].subject if issuer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()),
                critical=False,
            )
        )
        if issuer:
            builder = builder.add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer[0].public_key()), critical=False
            )
        else:
            builder = builder.add_extension(
                x509.KeyUsage(
                    digital_signature=True,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    key_cert_sign=True,
                    crl_sign=True,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
        certificate = builder.sign(issuer[0] if issuer else key, hashes.SHA256())
        pem = serialization.Encoding.PEM
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(pem))
        (folder / f"{name}.key").write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        return key, certificate

    authority, stranger = make("authority"), make("stranger")
    make("ours", authority)
    make("theirs", stranger)
    return folder


def own(folder, name, authority="authority", **options):
    return net.own_security(
        str(folder / f"{name}.pem"),
        str(folder / f"{name}.key"),
        str(folder / f"{authority}.pem") if authority else None,
        **options,
    )


def test_both_sides_bring_certificates(run, certificates):
    async def test():
        ours = own(certificates, "ours", check_hostname=True)
        async with scheduler("tls://localhost:0", security=ours) as found:
            port = net.parse_address(found.address).port
            await works(await connecting(f"tls://localhost:{port}", security=ours))
            with pytest.raises(HandshakeError, match="token"):
                await connecting(f"tls://localhost:{port}", security=ours, token="another-token-altogether")
            with pytest.raises(HandshakeError, match=r"certificate .* is not accepted: .*127.0.0.1"):
                await connecting(f"tls://127.0.0.1:{port}", security=ours)

    run(test)


def test_a_certificate_that_nobody_trusts_is_refused(run, certificates):
    async def test():
        ours, theirs = own(certificates, "ours"), own(certificates, "theirs", "stranger")
        async with scheduler("tls://127.0.0.1:0", security=ours) as found:
            with pytest.raises(HandshakeError, match="is not accepted") as caught:
                await connecting(found.address, security=theirs)
            assert caught.value.code == "tls"
            # one that trusts ours, and shows one that we don't; and one that shows none
            for security in (own(certificates, "theirs", "authority"), None):
                with pytest.raises((HandshakeError, ConnectTimeoutError)):
                    await connecting(found.address, security=security, timeout=0.5)
            assert not found.connections
            await works(await connecting(found.address, security=ours))

    run(test)


def test_a_certificate_without_an_authority_is_vouched_for_by_the_token(run, certificates):
    async def test():
        async with scheduler("tls://127.0.0.1:0", security=own(certificates, "ours", None)) as found:
            await works(await connecting(found.address))

    run(test)


def test_files_that_are_no_certificates(certificates, tmp_path):
    with pytest.raises(CommError, match=r"can't be used \(.*none.pem"):
        net.own_security(str(certificates / "none.pem"))
    with pytest.raises(CommError, match="can't be used"):
        net.own_security(str(certificates / "ours.pem"), str(certificates / "theirs.key"))
    with pytest.raises(CommError, match="check_hostname needs authorities"):
        own(certificates, "ours", None, check_hostname=True)
    locked = tmp_path / "locked.key"
    subprocess.run(
        [
            "openssl",
            "ec",
            "-aes128",
            "-passout",
            "pass:word",
            "-in",
            str(certificates / "ours.key"),
            "-out",
            str(locked),
        ],
        check=True,
        capture_output=True,
    )
    with pytest.raises(CommError, match="the key is encrypted"):
        net.own_security(str(certificates / "ours.pem"), str(locked))


def test_a_certificate_is_made_once_a_process_and_is_in_no_file():
    code = """
import os, sys
from taskloom.net.security import temporary_security
before = os.listdir("/proc/self/fd")
one = temporary_security()
assert one is temporary_security()
assert os.listdir("/proc/self/fd") == before
reader, writer = os.pipe()
if os.fork() == 0:
    os.write(writer, temporary_security().der)
    os._exit(0)
os.wait()
assert os.read(reader, 5000) != one.der
print(len(one.der))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) > 200


def test_a_certificate_where_there_is_no_memfd(monkeypatch, tmp_path):
    from taskloom.net.security import _load, _make_certificate

    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    pem, der = _make_certificate()
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    _load(context, pem)
    assert der
    assert os.listdir(tmp_path) == []


def test_no_certificate_can_be_made_without_cryptography():
    code = """
import sys
sys.modules["cryptography"] = None
import asyncio
from taskloom import net
async def main():
    try:
        await net.listen("tls://127.0.0.1:0", print, token="a-token-for-the-tests", role="scheduler")
    except net.endpoints.CommError as error:
        print(error)
    # to connect, it is not needed
    listener = await net.listen("tcp://127.0.0.1:0", print, token="a-token-for-the-tests", role="scheduler")
    listener.close()
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "pip install 'taskloom[cluster]'" in done.stdout


def test_tls_is_of_the_newest_version(run):
    async def test():
        async with scheduler("tls://127.0.0.1:0") as found:
            connection = await connecting(found.address)
            assert connection._sock.version() == "TLSv1.3"
            await works(connection)
            old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            old.check_hostname = False
            old.verify_mode = ssl.CERT_NONE
            old.maximum_version = ssl.TLSVersion.TLSv1_2

            def ask():
                with socket.create_connection(found.place, timeout=10) as sock, pytest.raises(ssl.SSLError):
                    old.wrap_socket(sock)

            await in_thread(ask)
            await found.until(lambda: found.refused)
            assert "TLS handshake" in str(found.refused[0][0])
            assert temporary_security().client.minimum_version == ssl.TLSVersion.TLSv1_3

    run(test)
