"""Two machines: network namespaces that are joined by a cable, each with processes of its own. Needs root."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import uuid

import pytest

PROGRAM = """
import asyncio, json, os, sys
from taskloom import net
from taskloom.errors import CommError
from taskloom.protocol import Payload
TOKEN = "a-token-for-the-tests"

async def scheduler(address):
    done = asyncio.get_running_loop().create_future()
    def welcome(connection):
        def on_messages(messages):
            for message in messages:
                connection.send(message)
        def on_close(reason):
            done.set_result(str(reason))
        connection.start(on_messages, on_close)
    listener = await net.listen(address, welcome, token=TOKEN, role="scheduler")
    print(listener.address, flush=True)
    print(await done, flush=True)
    listener.close()
    await listener.wait_closed()

async def client(address):
    connection = await net.connect(address, token=TOKEN, role="client", wants="scheduler", timeout=10)
    came = asyncio.Queue()
    closed = asyncio.get_running_loop().create_future()
    connection.start(lambda messages: [came.put_nowait(m) for m in messages], closed.set_result)
    flat = bytes(10_000_000)
    noise = os.urandom(3_000_000)
    connection.send(("blocks", Payload([b"p", flat, noise])))
    _, payload = await came.get()
    assert payload == Payload([b"p", flat, noise])
    print(json.dumps({
        "scheme": connection.scheme, "local": connection.local, "remote": connection.remote,
        "out": connection.counters.bytes_out, "codecs": connection.peer.identity.codecs,
    }), flush=True)
    for line in sys.stdin:
        if line == "close\\n":
            connection.close()
            await connection.wait_closed()
            return
        if line == "wait\\n":
            while True:
                connection.send("is there anybody")
                if closed.done():
                    break
                await asyncio.sleep(0.05)
            print(type(closed.result()).__name__, closed.result(), flush=True)
            return

try:
    asyncio.run({"scheduler": scheduler, "client": client}[sys.argv[1]](sys.argv[2]))
except CommError as error:
    print(type(error).__name__, error, flush=True)
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def machines():
    """(name, address) of two machines."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the command ip")
    tag = uuid.uuid4().hex[:6]
    names = [f"taskloom-{tag}-a", f"taskloom-{tag}-b"]
    made = []
    try:
        try:
            for name in names:
                ip("netns", "add", name)
                made.append(name)
            ip(
                "link",
                "add",
                f"tl{tag}a",
                "netns",
                names[0],
                "type",
                "veth",
                "peer",
                "name",
                f"tl{tag}b",
                "netns",
                names[1],
            )
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces can be made here: {error.stderr.strip()}")
        for name, link, address in ((names[0], f"tl{tag}a", "10.77.0.1"), (names[1], f"tl{tag}b", "10.77.0.2")):
            ip("-n", name, "address", "add", f"{address}/24", "dev", link)
            ip("-n", name, "address", "add", f"fd77::{address[-1]}/64", "dev", link, "nodad")
            ip("-n", name, "link", "set", link, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield [(names[0], "10.77.0.1", f"tl{tag}a"), (names[1], "10.77.0.2", f"tl{tag}b")]
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "delete", name], check=False)


@contextlib.contextmanager
def start(machine, role, address, program=PROGRAM):
    """A process on a machine; it does not outlive the block."""
    with subprocess.Popen(
        ["ip", "netns", "exec", machine[0], sys.executable, "-W", "error", "-c", program, role, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("listen", "host"), [("0.0.0.0", "10.77.0.1"), ("[::]", "[fd77::1]"), ("10.77.0.1", "10.77.0.1")]
)
def test_tls_between_two_machines(machines, listen, host):
    one, two = machines
    with start(one, "scheduler", f"tls://{listen}:0") as there:
        port = there.stdout.readline().strip().rpartition(":")[2]
        with start(two, "client", f"tls://{host}:{port}") as here:
            found = json.loads(here.stdout.readline())
            assert found["scheme"] == "tls"
            assert found["remote"] == f"tls://{host}:{port}"
            assert found["local"].startswith(f"tls://{'[fd77::2]' if ':' in host else '10.77.0.2'}:")
            # there is a wire, so what shrinks is compressed: the noise does not
            assert "zlib" in found["codecs"]
            assert 3_000_000 < found["out"] < 4_000_000
            here.stdin.write("close\n")
            here.stdin.flush()
            assert here.stdout.read() == ""
            assert here.wait() == 0
        assert "closed the connection" in there.stdout.readline()


def test_tcp_between_two_machines_is_refused(machines):
    one, two = machines
    with start(one, "scheduler", "tcp://10.77.0.1:0") as there:
        assert there.stdout.readline().startswith("AddressError tcp://10.77.0.1:0 leaves this machine")
    with start(two, "client", "tcp://10.77.0.1:8786") as here:
        said = here.stdout.readline()
    assert said.startswith("AddressError tcp://10.77.0.1:8786 leaves this machine")
    assert "Use tls://10.77.0.1:8786" in said


def test_a_machine_that_answers_nothing(machines):
    """A cable that is pulled before: no refusal comes, only silence."""
    one, two = machines
    code = (
        PROGRAM.replace("timeout=10)", "timeout=0.3)")  # it waits for nothing that could come
    )
    ip("-n", one[0], "link", "set", one[2], "down")
    try:
        done = subprocess.run(
            ["ip", "netns", "exec", two[0], sys.executable, "-c", code, "client", "tls://10.77.0.1:8786"],
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        ip("-n", one[0], "link", "set", one[2], "up")
        # an address of version 6 goes with the link
        subprocess.run(
            ["ip", "-n", one[0], "address", "add", "fd77::1/64", "dev", one[2], "nodad"],
            check=False,
            capture_output=True,
        )
    assert done.stdout.startswith(
        "ConnectTimeoutError no scheduler could be reached at tls://10.77.0.1:8786 within 0.3 s"
    )


def test_a_peer_whose_machine_vanishes_is_noticed(machines):
    """The cable is pulled while messages are on their way: the system gives up after the time that the socket was given."""
    one, two = machines
    program = "import taskloom.net.stream\ntaskloom.net.stream._USER_TIMEOUT = 700\n" + PROGRAM
    with start(one, "scheduler", "tls://10.77.0.1:0") as there:
        address = there.stdout.readline().strip()
        with start(two, "client", address, program) as here:
            json.loads(here.stdout.readline())
            ip("-n", one[0], "link", "set", one[2], "down")
            try:
                here.stdin.write("wait\n")
                here.stdin.flush()
                said = here.stdout.readline()
            finally:
                ip("-n", one[0], "link", "set", one[2], "up")
    assert said.startswith("ConnectionLostError the connection to the scheduler at")
    assert "broke" in said


# --- the commands

SNIFF = """
import select, socket, sys
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 20)
print("ready", flush=True)
seen = []
while True:
    if wire in select.select([wire, sys.stdin], [], [])[0]:
        seen.append(wire.recv(1 << 17))
    else:
        break
wire.setblocking(False)
try:
    while True:
        seen.append(wire.recv(1 << 17))
except BlockingIOError:
    pass
sys.stdout.flush()
sys.stdout.buffer.write(b"".join(seen))
"""

USE = """
import sys, taskloom
def make(n):
    import os
    return b"what-nobody-may-read" + os.urandom(20_000)  # not to be compressed
with taskloom.Client(sys.argv[1]) as client:
    client.wait_for_workers(2)
    info = client.scheduler_info()
    print(sorted(worker["address"].rpartition(":")[0] for worker in info["workers"].values()), flush=True)
    made = [client.submit(make, n, workers=["far" if n % 2 else "near"]) for n in range(6)]
    lengths = [client.submit(len, value, workers=["near" if n % 2 else "far"]) for n, value in enumerate(made)]
    print(client.gather(lengths), flush=True)
    print({value[:20] for value in client.gather(made)}, flush=True)
"""


@contextlib.contextmanager
def run_on(machine, *args, **environ):
    """A process on a machine, of a user with a home and variables of its own."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("TASKLOOM", "XDG_"))}
    with subprocess.Popen(
        ["ip", "netns", "exec", machine[0], sys.executable, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**plain, "PYTHONUNBUFFERED": "1", **environ},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_scheduler_worker_and_client_on_two_machines(machines, tmp_path):
    """As docs/cluster.md has it. Nothing of it can be read on the wire, and who has not the token has no part in it."""
    one, two = machines
    homes = [tmp_path / "one", tmp_path / "two"]
    for home in homes:
        home.mkdir()
    here, there = str(homes[0]), str(homes[1])
    cli = ("-m", "taskloom")
    with (
        run_on(one, "-c", SNIFF) as sniffer,
        run_on(
            one, *cli, "scheduler", "--host", "10.77.0.1", "--port", "0", "--http-port", "-1", HOME=here
        ) as scheduler,
    ):
        assert sniffer.stdout.readline() == b"ready\n"
        address = scheduler.stdout.readline().decode().split()[-1]
        assert address.startswith("tls://10.77.0.1:")
        token = (homes[0] / ".config" / "taskloom" / "token").read_text().strip()

        # whoever does not know the token, or would speak in clear, is told what to do
        for wrong, environ, words in [
            (
                address,
                {},
                f'Type: TASKLOOM_TOKEN="$(ssh 10.77.0.1 cat ~/.config/taskloom/token)" taskloom worker {address}',
            ),
            (address, {"TASKLOOM_TOKEN": "another-token-altogether"}, "token"),
            (address.replace("tls:", "tcp:"), {"TASKLOOM_TOKEN": token}, f"Use {address}"),
        ]:
            with run_on(two, *cli, "worker", wrong, HOME=there, **environ) as worker:
                _, err = worker.communicate(timeout=60)
            assert worker.returncode == 1
            assert words in err.decode()

        threads = ("--nthreads", "1", "--name")
        with (
            run_on(one, *cli, "worker", address, *threads, "near", HOME=here) as near,
            run_on(two, *cli, "worker", address, *threads, "far", HOME=there, TASKLOOM_TOKEN=token) as far,
            run_on(two, "-c", USE, address, HOME=there, TASKLOOM_TOKEN=token) as client,
        ):
            assert b"worker near at tls://10.77.0.1:" in near.stdout.readline()
            assert b"worker far at tls://10.77.0.2:" in far.stdout.readline()
            out, err = client.communicate(timeout=60)
            assert err == b""
            assert out.decode().splitlines() == [
                "['tls://10.77.0.1', 'tls://10.77.0.2']",
                str([20_020] * 6),
                "{b'what-nobody-may-read'}",
            ]
            # told to end, one on each machine
            far.terminate()
            far.communicate(timeout=60)
            assert far.returncode == 143
        seen, _ = sniffer.communicate(timeout=60)
    assert len(seen) > 100_000
    assert b"what-nobody-may-read" not in seen
    assert token.encode() not in seen
