"""The commands on an address that leaves this machine: all of it by TLS."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

import taskloom
from taskloom.client import Client
from taskloom.errors import AddressError, CommError, HandshakeError
from taskloom.net import pinned_context

TOKEN = "t" * 43


def own_address():
    for addresses in psutil.net_if_addrs().values():
        for one in addresses:
            if one.family == socket.AF_INET and not one.address.startswith(("127.", "169.254.")):
                return one.address
    return None


@pytest.fixture
def start(tmp_path):
    processes = []
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("TASKLOOM", "XDG_"))}
    environ |= {"PYTHONUNBUFFERED": "1", "HOME": str(tmp_path)}

    def run(*args, token=TOKEN):
        process = subprocess.Popen(
            [sys.executable, "-m", "taskloom", *args],
            env={**environ, "TASKLOOM_TOKEN": token},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def test_scheduler_worker_and_client(start):
    host = own_address()
    if host is None:
        pytest.skip("this machine has no address but its loopback")
    address = start("scheduler", "--host", host, "--port", "0", "--http-port", "-1").stdout.readline().split()[-1]
    assert address.startswith(f"tls://{host}:")
    plain = address.replace("tls://", "tcp://")
    worker = start("worker", address, "--nthreads", "1", "--nworkers", "2")
    for _ in range(2):
        assert "at tls://" in worker.stdout.readline()
    with Client(address, token=TOKEN) as client:
        assert client.gather(client.map(lambda x: x + 1, range(100))) == list(range(1, 101))
        made = client.map(lambda n: bytes(100_000 + n), range(8))
        assert client.submit(lambda *all: sum(map(len, all)), *made).result(timeout=30) == 800_028
        assert len(client.gather(made)[3]) == 100_003
        with pytest.raises(HandshakeError, match="token"):
            Client(address, token="u" * 43)
        with pytest.raises(AddressError, match="leaves this machine"):
            Client(plain, token=TOKEN)
        refused = start("worker", plain)
        assert refused.wait(30) == 1
        assert f"Use {address}" in refused.stderr.read()
        stranger = start("worker", address, token="u" * 43)
        assert stranger.wait(30) == 1
        assert "token" in stranger.stderr.read()
        with pytest.raises(CommError):
            Client(f"tcp://127.0.0.1:{address.rpartition(':')[2]}", token=TOKEN, timeout=0.3)
        assert client.submit(abs, -1).result(timeout=30) == 1


def test_a_certificate_of_ones_own_and_probes(start, tmp_path):
    """Whoever asks over HTTPS can check whom it sends the token to; probes need neither."""
    host = own_address()
    if host is None:
        pytest.skip("this machine has no address but its loopback")
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    make_certificate(certificate, key, host)
    with socket.create_server((host, 0)) as one, socket.create_server((host, 0)) as two:
        http, probe = one.getsockname()[1], two.getsockname()[1]
    scheduler = start(
        "scheduler", "--host", host, "--port", "0", "--http-port", str(http), "--probe-port", str(probe),
        "--certificate", str(certificate), "--key", str(key),
    )  # fmt: skip
    address = scheduler.stdout.readline().split()[-1]
    context = ssl.create_default_context(cafile=str(certificate))
    request = urllib.request.Request(f"https://{host}:{http}/api/v1/info", headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, context=context, timeout=30) as answer:
        assert json.load(answer)["address"] == address
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(request, context=ssl.create_default_context(), timeout=30)
    for place in (host, "127.0.0.1"):
        with urllib.request.urlopen(f"http://{place}:{probe}/api/v1/ready", timeout=30) as answer:
            assert json.load(answer)["ready"] is True
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"http://{host}:{probe}/api/v1/info", timeout=30)
    start("worker", address, "--nthreads", "1").stdout.readline()
    with Client(address, token=TOKEN) as client:
        assert client.submit(abs, -1).result(timeout=30) == 1


def document_block(language, words):
    """The block of docs/http.md in which these words stand."""
    text = (Path(__file__).parents[3] / "docs" / "http.md").read_text()
    (found,) = [b for b in re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) if words in b]
    return found


def test_https_with_a_certificate_that_the_scheduler_makes(start, tmp_path, capsys):
    """As docs/http.md has it: the token goes to who has that certificate, and to nobody else."""
    host = own_address()
    if host is None:
        pytest.skip("this machine has no address but its loopback")
    scheduler = start("scheduler", "--host", "0.0.0.0", "--port", "0", "--http-port", "0")
    port = scheduler.stdout.readline().split()[-1].rpartition(":")[2]
    said = scheduler.stdout.readline()
    url, path = re.search(r"HTTP at (https://0\.0\.0\.0:\d+), its certificate in (.+)$", said).groups()
    http = url.rpartition(":")[2]
    assert path == str(tmp_path / ".config" / "taskloom" / f"https-{http}.pem")
    pem = Path(path).read_text()

    # a program with a client
    with Client(f"tls://{host}:{port}", token=TOKEN) as client:
        info = client.scheduler_info()
        assert info["http"] == f"https://{host}:{http}"
        assert info["http_certificate"] == pem
        names = {"client": client, "token": TOKEN, "taskloom": taskloom, "urllib": urllib, "json": json}
        exec(document_block("py", "pinned_context"), names)
        assert capsys.readouterr().out == "0\n"
    request = urllib.request.Request(f"https://{host}:{http}/api/v1/health")
    make_certificate(tmp_path / "other.pem", tmp_path / "other.key", host)
    other = (tmp_path / "other.pem").read_text()
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(request, context=pinned_context(other), timeout=30)
    strict = pinned_context(pem)
    strict.verify_flags |= ssl.VERIFY_X509_STRICT  # as in Python 3.13
    with urllib.request.urlopen(request, context=strict, timeout=30) as answer:
        assert answer.status == 200
    for nothing in ("", "no certificate"):
        with pytest.raises((CommError, ssl.SSLError)):
            pinned_context(nothing)

    # curl
    if shutil.which("curl") is None:
        return
    block = document_block("bash", "--cacert").replace("node7", host).replace("8787", http)
    script = f'ssh() {{ shift; (cd "$HOME" && "$@"); }}\n{block}'  # it is this machine
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TOKEN": TOKEN}

    def run(script):
        return subprocess.run(
            ["bash", "-euc", script], env=environ, cwd=folder, capture_output=True, text=True, timeout=60, check=False
        )

    done = run(script)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["http"] == f"https://0.0.0.0:{http}"
    done = run(block.partition("\n")[2].replace("scheduler.pem", str(tmp_path / "other.pem")))
    assert done.returncode == 60  # the certificate is another one: nothing was sent
    assert done.stdout == ""


def make_certificate(certificate, key, host):
    from datetime import UTC, datetime, timedelta
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "taskloom")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(host))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(private, hashes.SHA256())
    )
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    certificate.write_bytes(made.public_bytes(encoding))
    key.write_bytes(private.private_bytes(encoding, form, serialization.NoEncryption()))
    key.chmod(0o600)


def test_a_certificate_that_is_not_there(start, tmp_path):
    host = own_address()
    if host is None:
        pytest.skip("this machine has no address but its loopback")
    scheduler = start("scheduler", "--host", host, "--port", "0", "--certificate", str(tmp_path / "none"))
    _, err = scheduler.communicate(timeout=30)
    assert scheduler.returncode == 1
    assert "the certificate can't be used" in err
    assert "Traceback" not in err
