"""The handshake: two machines against each other, and others in between. No socket."""

from __future__ import annotations

import hmac
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskloom.protocol import PROTOCOL, ROLES, Acceptor, Connector, Identity, Limits
from taskloom.protocol.handshake import (
    CODES,
    FORMAT,
    HELLO,
    MAGIC,
    MOST,
    PROOF,
    REFUSAL,
    USE_TLS,
    VERDICT,
    guess,
    refusal,
)

TOKEN = b"a token of the cluster"
PYTHON = (3, 11, 7)
_nonces = itertools.count(1)


def nonce() -> bytes:
    return next(_nonces).to_bytes(32, "big")


def identity(role: str, **changes) -> Identity:
    return Identity(role, PYTHON, "0.1.0")._replace(**changes)


def client(
    role="client", token=TOKEN, binding=b"", wants="scheduler", python="refuse", own=None, **changes
) -> Connector:
    return Connector(identity(role, **changes), token, own or nonce(), binding, python, wants)


def server(
    role="scheduler", token=TOKEN, binding=b"", python="refuse", accepts=tuple(ROLES), own=None, **changes
) -> Acceptor:
    return Acceptor(identity(role, **changes), token, own or nonce(), binding, python, accepts)


def run(connector: Connector, acceptor: Acceptor, to_acceptor=bytes, to_connector=bytes) -> list[bytes]:
    """Carry bytes between the two until nobody has any; what is in between may change them. What was carried."""
    carried = []
    data = connector.begin()
    while data:
        carried.append(data)
        data = acceptor.receive(to_acceptor(data))
        if data:
            carried.append(data)
            data = connector.receive(to_connector(data))
    return carried


def kinds(carried: list[bytes]) -> list[int]:
    return [data[9] for data in carried]


def test_two_that_know_the_token_get_together():
    connector = client(codecs=("lz4", "zlib"), version="0.3.0", limits=Limits(header=1000, batch=5000))
    acceptor = server(binding=b"", codecs=("zstd",), version="0.3.0")
    carried = run(connector, acceptor)
    assert kinds(carried) == [HELLO, HELLO, PROOF, VERDICT]
    assert (connector.state, acceptor.state) == ("OPEN", "OPEN")
    assert (connector.error, acceptor.error) == (None, None)
    assert connector.peer.role == "scheduler"
    assert connector.peer.identity.codecs == ("zstd",)
    theirs = acceptor.peer.identity
    assert theirs.role == "client"
    assert (theirs.python, theirs.version, theirs.protocol) == (PYTHON, "0.3.0", PROTOCOL)
    assert theirs.codecs == ("lz4", "zlib")
    assert (theirs.limits.header, theirs.limits.batch, theirs.limits.buffer) == (1000, 5000, 5000)
    assert connector.peer.warnings == acceptor.peer.warnings == ()
    for data in carried:
        assert TOKEN not in data


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("other", ROLES)
def test_every_role_with_every_other(role, other):
    connector, acceptor = client(role, wants=other), server(other, accepts=(role,))
    run(connector, acceptor)
    assert connector.state == acceptor.state == "OPEN"
    assert connector.peer.role == other
    assert acceptor.peer.role == role


def test_byte_by_byte():
    connector, acceptor = client(), server()
    outs = {id(acceptor): connector.begin(), id(connector): b""}
    for _ in range(2000):
        for side, other in ((acceptor, connector), (connector, acceptor)):
            data, outs[id(side)] = outs[id(side)][:1], outs[id(side)][1:]
            if data:
                outs[id(other)] += side.receive(data)
    assert connector.state == acceptor.state == "OPEN"


def test_what_comes_behind_the_handshake_is_kept():
    connector, acceptor = client(), server()
    proof = connector.receive(acceptor.receive(connector.begin()))
    verdict = acceptor.receive(proof + b"early")
    assert acceptor.rest == b"early"
    connector.receive(verdict[:-1])
    assert connector.state == "PROVED"
    connector.receive(verdict[-1:] + b"frames")
    connector.receive(b" and more")
    assert connector.state == "OPEN"
    assert connector.rest == b"frames and more"


# --- the wrong ones


def test_a_wrong_token_is_refused_and_said_on_both_sides():
    connector, acceptor = client(token=b"another token"), server()
    carried = run(connector, acceptor)
    assert carried[-1] == refusal(0)
    assert acceptor.state == connector.state == "FAILED"
    assert acceptor.error.code == connector.error.code == "token"
    assert "refuses the token that this client has" in str(connector.error)
    assert "says it is a client could not prove that it knows the token of this scheduler" in str(acceptor.error)
    assert acceptor.peer is None
    assert connector.peer is None


def test_an_acceptor_may_know_several_tokens():
    old, new = b"the old token of it", b"the new token of it"
    for shown in (old, new):
        connector, acceptor = client(token=shown), server(token=[new, old])
        run(connector, acceptor)
        assert (connector.state, acceptor.state) == ("OPEN", "OPEN")
    connector, acceptor = client(token=b"a token of nobody"), server(token=[new, old])
    run(connector, acceptor)
    assert (connector.error.code, acceptor.error.code) == ("token", "token")


def test_a_proof_by_one_token_is_not_answered_by_another():
    """Or who knows an old one only would be told by whom it is answered."""
    old, new = b"the old token of it", b"the new token of it"
    connector, acceptor = client(token=old), server(token=[new, old])
    proof = connector.receive(acceptor.receive(connector.begin()))
    verdict = acceptor.receive(proof)
    stranger = server(token=new, own=acceptor._nonce)
    stranger.receive(connector._mine)
    assert stranger.receive(proof) == refusal(0)
    assert connector.receive(verdict) == b""
    assert connector.state == "OPEN"


def test_a_refusal_is_the_same_whatever_was_wrong():
    """No oracle: a wrong token, and a wrong token with everything else wrong too."""
    answers = []
    for wrong in (
        client(token=b"another token"),
        client(token=b"another token", protocol=PROTOCOL + 1),
        Connector(identity("client", python=(3, 12, 0)), b"another token", nonce(), wants="scheduler"),
        client(token=b"another token", wants="worker"),
        client("supervisor", token=b"another token"),
        client(binding=b"another certificate"),
    ):
        carried = run(wrong, server(accepts=("client", "worker")))
        answers.append(carried[3])
    assert set(answers) == {refusal(0)}


def test_an_acceptor_that_does_not_know_the_token_is_found_out():
    """It says OPEN without being able to prove it."""
    connector, liar = client(), server(token=b"another token")
    liar._proof = lambda label, more=b"": hmac.digest(b"another token", label + more, "sha256")
    # it lets everybody in
    hello = connector.begin()
    proof = connector.receive(liar.receive(hello))
    verdict = liar._proof(b"taskloom handshake 1: acceptor\0", proof[12:] + b"\0")
    body = b"\0" + verdict
    answer = connector.receive(MAGIC + bytes([FORMAT, VERDICT]) + len(body).to_bytes(2, "little") + body)
    assert answer == b""
    assert connector.state == "FAILED"
    assert connector.error.code == "token"
    assert "could not prove that it knows the token" in str(connector.error)


@pytest.mark.parametrize(("ours", "theirs"), [(1, 2), (2, 1)])
def test_another_protocol_version_says_which_side_to_upgrade(ours, theirs):
    connector = client(protocol=ours, version=f"0.{ours}.0")
    acceptor = server(protocol=theirs, version=f"0.{theirs}.0")
    run(connector, acceptor)
    assert connector.state == acceptor.state == "FAILED"
    assert connector.error.code == acceptor.error.code == "protocol"
    assert f"this client has taskloom 0.{ours}.0 with protocol {ours}" in str(connector.error)
    old = "this client" if ours < theirs else "the scheduler"
    assert str(connector.error).endswith(f"upgrade taskloom where {old} runs")
    old = "the client" if ours < theirs else "this scheduler"
    assert str(acceptor.error).endswith(f"upgrade taskloom where {old} runs")


def other_python(version, connector_says="refuse", acceptor_says="refuse"):
    connector = Connector(identity("client", python=version), TOKEN, nonce(), b"", connector_says, "scheduler")
    acceptor = server(python=acceptor_says)
    run(connector, acceptor)
    return connector, acceptor


def test_another_minor_version_of_python_is_refused():
    connector, acceptor = other_python((3, 12, 1))
    assert connector.state == acceptor.state == "FAILED"
    assert connector.error.code == acceptor.error.code == "python"
    assert "this client runs Python 3.12.1, the scheduler Python 3.11.7" in str(connector.error)
    assert "use Python 3.11 for this client" in str(connector.error)
    assert "this scheduler runs Python 3.11.7, the client Python 3.12.1" in str(acceptor.error)


def test_another_minor_version_is_a_warning_where_both_want_that():
    connector, acceptor = other_python((3, 12, 1), "warn", "warn")
    assert connector.state == acceptor.state == "OPEN"
    [warning] = connector.peer.warnings
    assert (
        "this client runs Python 3.12.1, the scheduler Python 3.11.7; functions that travel by value may fail"
        in warning
    )
    assert len(acceptor.peer.warnings) == 1


def test_either_side_may_refuse_another_minor_version():
    connector, acceptor = other_python((3, 12, 1), "warn", "refuse")
    assert connector.state == acceptor.state == "FAILED"
    connector, acceptor = other_python((3, 12, 1), "refuse", "warn")
    assert connector.state == "FAILED"
    assert connector.error.code == "python"


def test_another_patch_version_is_a_warning():
    connector, acceptor = other_python((3, 11, 2))
    assert connector.state == acceptor.state == "OPEN"
    assert "3.11.2, the scheduler Python 3.11.7; that works in general" in connector.peer.warnings[0]
    assert "3.11.7, the client Python 3.11.2" in acceptor.peer.warnings[0]


def test_another_role_than_was_wanted():
    connector, acceptor = client(wants="scheduler"), server("worker")
    run(connector, acceptor)
    assert connector.error.code == acceptor.error.code == "role"
    assert str(connector.error) == "a scheduler was to be there, and it is a worker"


def test_a_role_that_is_not_taken():
    connector, acceptor = client("supervisor"), server(accepts=("client", "worker"))
    run(connector, acceptor)
    assert connector.error.code == acceptor.error.code == "role"
    assert str(connector.error) == "a scheduler takes no connections from a supervisor"


def test_whatever_answers_is_taken_where_nothing_is_wanted():
    connector, acceptor = client(wants=None), server("worker")
    run(connector, acceptor)
    assert connector.peer.role == "worker"


# --- attacks


def test_replaying_a_client_to_the_same_scheduler_fails():
    """Somebody has recorded all of it, and plays the client's part again."""
    connector, acceptor = client(), server()
    carried = run(connector, acceptor)
    again = server()
    again.receive(carried[0])
    assert again.receive(carried[2]) == refusal(0)
    assert again.error.code == "token"


def test_replaying_a_scheduler_to_the_same_client_fails():
    carried = run(client(), server())
    victim = client()
    victim.begin()
    victim.receive(carried[1])
    victim.receive(carried[3])
    assert victim.state == "FAILED"
    assert victim.error.code == "token"


def test_a_scheduler_that_used_a_nonce_twice_would_be_replayed():
    """That the nonce is what defeats it: with the same nonce the replay succeeds."""
    own = nonce()
    carried = run(client(), server(own=own))
    again = server(own=own)
    again.receive(carried[0])
    again.receive(carried[2])
    assert again.state == "OPEN"


def test_reflecting_what_a_peer_says_fails():
    """Somebody without the token answers a client with its own messages."""
    victim = client()
    hello = victim.begin()
    proof = victim.receive(hello)  # its own, as if a scheduler had said it
    assert proof[9] == PROOF
    for mirrored in (proof, proof[:9] + bytes([VERDICT]) + proof[10:], _as_verdict(proof[12:])):
        copy = client(own=hello[14:46])
        copy.begin()
        assert copy.receive(hello) == proof
        copy.receive(mirrored)
        assert copy.state == "FAILED"


def _as_verdict(proof: bytes) -> bytes:
    body = b"\0" + proof
    return MAGIC + bytes([FORMAT, VERDICT]) + len(body).to_bytes(2, "little") + body


def test_a_proof_of_one_worker_is_of_no_use_on_another_connection():
    """Somebody lets a worker connect to it, and uses what it says on a connection of its own to the scheduler."""
    victim, acceptor, thief = client("worker"), server(), client("worker")
    theirs = acceptor.receive(thief.begin())
    stolen = victim_proof(victim, theirs)
    assert acceptor.receive(stolen) == refusal(0)


def victim_proof(victim: Connector, hello: bytes) -> bytes:
    victim.begin()
    return victim.receive(hello)


def test_a_verdict_of_another_connection_of_the_same_peers_fails():
    one, two = client(), client()
    acceptor_one, acceptor_two = server(), server()
    proof_one = one.receive(acceptor_one.receive(one.begin()))
    proof_two = two.receive(acceptor_two.receive(two.begin()))
    verdict_one, verdict_two = acceptor_one.receive(proof_one), acceptor_two.receive(proof_two)
    one.receive(verdict_two)
    assert one.state == "FAILED"
    two.receive(verdict_two)
    assert two.state == "OPEN"
    assert verdict_one != verdict_two


def test_somebody_in_the_middle_with_another_certificate_fails():
    """It passes everything on unchanged; each side has the certificate that it has seen."""
    connector, acceptor = client(binding=b"certificate of the one in the middle"), server(binding=b"certificate")
    run(connector, acceptor)
    assert acceptor.state == connector.state == "FAILED"
    assert acceptor.error.code == connector.error.code == "token"
    connector, acceptor = client(binding=b"certificate"), server(binding=b"certificate")
    run(connector, acceptor)
    assert connector.state == "OPEN"


def test_somebody_who_takes_tls_away_fails():
    for mine, theirs in ((b"certificate", b""), (b"", b"certificate")):
        connector, acceptor = client(binding=mine), server(binding=theirs)
        run(connector, acceptor)
        assert acceptor.state == connector.state == "FAILED"


def test_no_byte_can_be_changed_on_the_way():
    """Whatever is flipped, in whichever message: not both sides are open, and none believes something that was not said."""
    lengths = [len(data) for data in run(client(), server())]
    for number, length in enumerate(lengths):
        for place in range(length):
            for bit in (0x01, 0x80):
                connector, acceptor = client(), server()
                seen = itertools.count()

                def change(data, number=number, place=place, bit=bit, seen=seen):
                    if next(seen) != number or place >= len(data):
                        return data
                    return data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]

                run(connector, acceptor, change, change)
                # an end that waits for more is at its end when the connection is
                connector.lost()
                acceptor.lost()
                assert connector.state == "FAILED", (number, place)
                if number < 3:
                    assert acceptor.state == "FAILED", (number, place)


def test_codecs_and_limits_cannot_be_changed_on_the_way():
    def weaken(data):
        return data.replace(b"\x0e\0", b"\x02\0", 1) if data[9] == HELLO else data

    connector, acceptor = client(codecs=("zstd", "lz4", "zlib")), server()
    carried = run(connector, acceptor, weaken)
    assert b"\x0e\0" in carried[0]
    assert connector.state == acceptor.state == "FAILED"


# --- others


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /api HTTP/1.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"OPTIONS * HTTP",
    ],
)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_http_is_answered_in_http(request_line, size):
    acceptor = server()
    answer = b""
    for at in range(0, len(request_line), size):
        answer += acceptor.receive(request_line[at : at + size])
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"taskloom" in body
    assert acceptor.error.code == "http"


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (b"\x16\x03\x01\x02\x00\x01", "tls", "spoke TLS to this port, which is without"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "peer", "b'SSH-2.0-OpenSSH_9.2"),
        (bytes(50), "peer", "no process of taskloom"),
        (b"GETTING", "peer", "no process of taskloom"),
        (MAGIC + bytes([FORMAT + 1, HELLO, 5, 0]), "protocol", "upgrade taskloom where this scheduler runs"),
        (MAGIC + bytes([0, HELLO, 5, 0]), "protocol", "upgrade taskloom where the peer runs"),
        (MAGIC + bytes([FORMAT, HELLO]) + (MOST + 1).to_bytes(2, "little"), "peer", "no meaning there"),
        (MAGIC + bytes([FORMAT, HELLO, 5, 0]) + b"12345", "peer", "no meaning there"),
        (MAGIC + bytes([FORMAT, PROOF, 32, 0]) + bytes(32), "peer", "no meaning there"),
        (MAGIC + bytes([FORMAT, VERDICT, 33, 0]) + bytes(33), "peer", "no meaning there"),
        (MAGIC + bytes([FORMAT, REFUSAL, 1, 0, 0]), "peer", "no meaning there"),
        (MAGIC + bytes([FORMAT, 99, 0, 0]), "peer", "no meaning there"),
    ],
)
def test_others_are_refused_by_an_acceptor(data, code, words):
    acceptor = server()
    assert acceptor.receive(data) == refusal(0)
    assert acceptor.state == "FAILED"
    assert acceptor.error.code == code
    assert words in str(acceptor.error)
    assert acceptor.receive(b"more") == b""


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n", "peer", "no process of taskloom: it is a web server"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "peer", "it is an SSH server, and answered 'SSH-2.0-OpenSSH_9.2"),
        (b"\x15\x03\x01\x00\x02\x02\x28", "tls", "speaks TLS; use an address that begins with tls://"),
        (b"220 mail ESMTP " + b"x" * 100, "peer", "it answered '220 mail ESMTP"),
        (refusal(USE_TLS), "tls", "the scheduler wants TLS; use an address that begins with tls://"),
        (refusal(0), "peer", "refuses this process before it was shown anything"),
        (MAGIC + bytes([FORMAT + 1, HELLO, 5, 0]), "protocol", "upgrade taskloom where this client runs"),
        (MAGIC + bytes([0, HELLO, 5, 0]), "protocol", "upgrade taskloom where the scheduler runs"),
        (MAGIC + bytes([FORMAT, HELLO, 5, 0]) + b"12345", "peer", "no meaning there"),
        (MAGIC + bytes([FORMAT, VERDICT, 33, 0]) + bytes(33), "peer", "no meaning there"),
        (MAGIC + bytes([FORMAT, PROOF, 32, 0]) + bytes(32), "peer", "no meaning there"),
    ],
)
def test_what_is_no_scheduler_is_named(data, code, words):
    connector = client()
    connector.begin()
    assert connector.receive(data) == b"", "nothing more is said to it"
    assert connector.state == "FAILED"
    assert connector.error.code == code
    assert words in str(connector.error)


def test_a_text_that_would_write_to_the_terminal_is_shown_as_what_it_is():
    connector = client()
    connector.begin()
    connector.receive(b"\x1b[2J\x07")
    assert "\x1b" not in str(connector.error)
    hostile = server()
    hello = client(version="0.1.0").begin().replace(b"0.1.0", b"\x1b[2J\x07"[:5])
    assert hostile.receive(hello) == refusal(0)


def test_a_short_verdict_is_an_error():
    connector, acceptor = client(), server()
    connector.receive(acceptor.receive(connector.begin()))
    connector.receive(MAGIC + bytes([FORMAT, VERDICT, 32, 0]) + bytes(32))
    assert connector.error.code == "peer"


def test_an_end_in_the_middle_is_an_error():
    connector, acceptor = client(), server()
    connector.begin()
    connector.lost()
    assert connector.error.code == "lost"
    assert str(connector.error) == "the scheduler closed the connection in the middle of the handshake"
    acceptor.lost("took too long")
    assert str(acceptor.error) == "the peer took too long"
    assert acceptor.state == "FAILED"


def test_what_is_behind_the_fields_of_a_hello_is_for_later_versions():
    """A later version may say more; both sides' proofs cover it."""
    connector, acceptor = client(), server()
    hello = connector.begin()
    longer = hello[:10] + (len(hello) - 12 + 4).to_bytes(2, "little") + hello[12:] + b"more"
    connector._mine = longer
    connector.receive(acceptor.receive(connector.receive(acceptor.receive(longer))))
    assert connector.state == acceptor.state == "OPEN"


def test_every_code_of_an_error_is_explained():
    assert set(CODES) >= {"token", "protocol", "python", "role", "http", "tls", "peer", "lost"}


def test_guesses():
    assert guess(b"\x16\x03\x01") == "tls"
    assert guess(b"GET /") == "http"
    assert guess(MAGIC) == "taskloom"
    assert guess(b"GE") == guess(b"") == guess(MAGIC[:3]) == guess(b"\x16") == "unclear"
    assert guess(b"GEX") == guess(b"\0") == "other"


def test_arguments_are_checked():
    for none in (b"", [], [TOKEN, b""]):
        with pytest.raises(ValueError, match="the token is empty"):
            server(token=none)
    with pytest.raises(ValueError, match="32 bytes, not 5"):
        Connector(identity("client"), TOKEN, b"short")
    with pytest.raises(ValueError, match="token is empty"):
        Connector(identity("client"), b"", bytes(32))
    connector = client()
    connector.begin()
    with pytest.raises(RuntimeError):
        connector.begin()


@settings(max_examples=300)
@given(st.binary(max_size=700), st.booleans(), st.booleans())
def test_any_bytes_are_an_error_or_wait(data, marked, middle):
    connector, acceptor = client(), server()
    hello = connector.begin()
    if middle:
        connector.receive(acceptor.receive(hello))
    if marked:
        data = MAGIC + bytes([FORMAT]) + data
    for side in (connector, acceptor):
        side.receive(data)
        assert side.state != "OPEN"
        assert len(side._data) <= MOST + 12


def test_random_changes_of_a_handshake_open_nothing():
    draw = random.Random(3)
    for _ in range(500):
        connector, acceptor = client(), server()
        changed = [False]

        def change(data, draw=draw, changed=changed):
            if draw.random() < 0.5:
                return data
            changed[0] = True
            new = bytearray(data)
            for _ in range(draw.randrange(1, 4)):
                new[draw.randrange(len(new))] ^= draw.randrange(1, 256)
            return bytes(new[: draw.randrange(len(new))] if draw.random() < 0.3 else new)

        run(connector, acceptor, change, change)
        assert changed[0] == (connector.state != "OPEN")
