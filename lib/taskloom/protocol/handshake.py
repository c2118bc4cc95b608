"""The handshake: who is there, and may they come in. A pure machine for each side: bytes in, bytes out.

What each side says, in turn; the connector is the one that opened the connection::

    connector                                   acceptor
    --------------------------------------------------------------------------------
    1  HELLO    role, wants, nonce, versions  ->
                                              <-  2  HELLO    role, nonce, versions
    3  PROOF    HMAC over 1, 2, certificate   ->
                                              <-  4  VERDICT  HMAC over 1 to 4, certificate
                                              <-  or REFUSAL  (the proof was wrong)
    then frames, both ways

States, and what may come in them::

    connector    START --begin()--> GREETED --HELLO--> PROVED --VERDICT--> OPEN
    acceptor     START --HELLO--> GREETED --PROOF--> OPEN
    any          --REFUSAL, anything unexpected, wrong or too long--> FAILED

Rules, each with tests that try to break it:

- **Nothing is parsed that is not of fixed form.** Before OPEN there is no msgpack, no pickle and no length above 512 bytes.
- **The token never travels.** Both sides prove that they know it, by HMAC-SHA256 with the token as the key.
- **A proof is of use once, in one direction, on one connection.** It covers both nonces (replay), a label of its side
  (reflection), and all of both hellos: roles, versions, codecs, limits (downgrade). It covers the hash of the TLS certificate
  that the acceptor has and the connector saw: who is in the middle has shown another one, and cannot use the proof.
- **The connector proves itself first.** Anybody may connect, and would else collect proofs to guess a weak token by.
- **Tokens may change.** An acceptor may know several, the newest first: a proof by any of them counts, and is answered by the
  same one. So a new token can be handed out while processes that have only the old one still come in. A connector shows one.
- **No oracle.** A peer that has not proved itself gets the same refusal whatever was wrong. Those that have are told why
  they can't come in, under the proof, so that nobody else can have said it.
- Proofs are compared in constant time.

Versions: :data:`PROTOCOL` is that of the frames and messages, and has to be equal. Python's minor version has to be equal, or
there is a warning where the settings allow it: functions by value are bytecode. Another patch version is a warning.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Collection, Iterable, Sequence
from typing import ClassVar, NamedTuple

from taskloom.errors import HandshakeError
from taskloom.protocol.compression import CODECS
from taskloom.protocol.limits import Limits

__all__ = [
    "CODES",
    "PROTOCOL",
    "ROLES",
    "USE_TLS",
    "Acceptor",
    "Connector",
    "Handshake",
    "Identity",
    "Peer",
    "guess",
    "refusal",
]

#: The version of frames and messages. Counted up when a process of the old version would misunderstand the new one.
PROTOCOL = 1

#: role -> number. A scheduler takes the others; a worker takes workers and clients.
ROLES = {"client": 1, "worker": 2, "scheduler": 3, "supervisor": 4}

#: code of a HandshakeError -> what it means.
CODES = {
    "token": "one side could not prove that it knows the token of the other",
    "protocol": "the two have versions of taskloom that don't understand each other",
    "python": "the two have Pythons that can't exchange functions",
    "role": "the peer is of a kind that is not wanted here",
    "http": "somebody speaks HTTP to the port",
    "tls": "one side speaks TLS and the other does not",
    "peer": "the peer is no process of taskloom, or a damaged one",
    "lost": "the peer closed the connection in the middle of the handshake",
    "name": "it was well, but the scheduler has another worker of that name",
}

_NUMBERS = {number: role for role, number in ROLES.items()}
_VERDICTS = {0: "", 1: "protocol", 2: "python", 3: "role"}
_VERDICT_OF = {code: number for number, code in _VERDICTS.items()}

MAGIC = b"\x8aTskLoom"  # begins neither like text nor like TLS
FORMAT = 1  # of the handshake itself
_HEAD = struct.Struct("<8sBBH")  # magic, format, type, bytes of the body
HELLO, PROOF, VERDICT, REFUSAL = 1, 2, 3, 4
_HELLO = struct.Struct("<BB32sHBBBHIQB")
MOST = 512  # bytes of a body
_MOST_TEXT = 400

#: What an acceptor says without having been shown a proof.
REFUSED, USE_TLS = 0, 1

_CONNECTOR_LABEL = b"taskloom handshake 1: connector\0"
_ACCEPTOR_LABEL = b"taskloom handshake 1: acceptor\0"

_METHODS = (b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH ", b"CONNECT ", b"TRACE ", b"PRI * ")
_HTTP_TEXT = (
    b"This port is for the processes of a taskloom cluster (scheduler, workers, clients). It does not speak HTTP.\n"
    b"The scheduler's web pages and its HTTP interface have a port of their own.\n"
)
HTTP_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n" % len(_HTTP_TEXT)
) + _HTTP_TEXT


class Identity(NamedTuple):
    """What a process says about itself.

    Attributes:
        role: one of :data:`ROLES`.
        python: its version, as ``sys.version_info[:3]``.
        version: taskloom's.
        protocol: :data:`PROTOCOL`.
        codecs: names of the codecs that it would use on this connection.
        limits: what it takes.
    """

    role: str
    python: tuple[int, int, int]
    version: str
    protocol: int = PROTOCOL
    codecs: tuple[str, ...] = ()
    limits: Limits = Limits()


class Peer(NamedTuple):
    """The other side, as it is known after the handshake.

    Attributes:
        identity: what it says about itself; of its limits, ``header`` and ``batch``.
        warnings: what is not as it should be, in sentences.
    """

    identity: Identity
    warnings: tuple[str, ...] = ()

    @property
    def role(self) -> str:
        """One of :data:`ROLES`."""
        return self.identity.role


def guess(data: bytes) -> str:
    """What somebody speaks, by the first bytes that they send: "taskloom", "tls", "http", "unclear" yet, or "other"."""
    if data[:2] == b"\x16\x03":
        return "tls"
    if data[: len(MAGIC)] == MAGIC:
        return "taskloom"
    if data.startswith(_METHODS):
        return "http"
    beginnings = (MAGIC, b"\x16\x03", *_METHODS)
    return "unclear" if any(beginning.startswith(data) for beginning in beginnings) else "other"


def refusal(code: int) -> bytes:
    """The message that an acceptor sends to a peer that it knows nothing of: ``USE_TLS``, or that it is refused."""
    return _message(REFUSAL, bytes([code]))


def _message(kind: int, body: bytes) -> bytes:
    return _HEAD.pack(MAGIC, FORMAT, kind, len(body)) + body


class _Hello(NamedTuple):
    identity: Identity
    wants: str | None
    nonce: bytes


def _pack_hello(identity: Identity, wants: str | None, nonce: bytes) -> bytes:
    version = identity.version.encode("ascii", "replace")[:32]
    codecs = sum([1 << CODECS[name] for name in identity.codecs])
    return _message(
        HELLO,
        _HELLO.pack(
            ROLES[identity.role],
            0 if wants is None else ROLES[wants],
            nonce,
            identity.protocol,
            *identity.python,
            codecs,
            min(identity.limits.header, 0xFFFFFFFF),
            min(identity.limits.batch, (1 << 64) - 1),
            len(version),
        )
        + version,
    )


def _unpack_hello(body: bytes) -> _Hello | None:
    """None: it is malformed. What stands behind the fields is of a later version, and covered by the proofs."""
    if len(body) < _HELLO.size:
        return None
    role, wants, nonce, protocol, major, minor, micro, codecs, header, batch, size = _HELLO.unpack_from(body)
    version = body[_HELLO.size : _HELLO.size + size]
    if role not in _NUMBERS or (wants and wants not in _NUMBERS) or size > 32 or len(version) < size:
        return None
    if not version.isascii() or not version.decode("ascii").isprintable():  # it is going to stand in messages
        return None
    names = tuple([name for name, number in CODECS.items() if codecs >> number & 1])
    limits = Limits()._replace(header=header, batch=batch, buffer=batch)
    identity = Identity(_NUMBERS[role], (major, minor, micro), version.decode("ascii"), protocol, names, limits)
    return _Hello(identity, _NUMBERS.get(wants), nonce)


class Handshake:
    """What both sides have in common. Make a :class:`Connector` or an :class:`Acceptor`.

    Args:
        identity: what this process says about itself.
        token: the token that both sides must know; for an acceptor, one or several.
        nonce: 32 bytes from the system's source of randomness, for this connection only.
        binding: the DER of the acceptor's TLS certificate, as it is known to this side; empty where there is no TLS.
        python: "refuse" or "warn": what another minor version of Python means.

    Attributes:
        state: see the module's text.
        peer: once the state is OPEN, the other side.
        error: once the state is FAILED, why; for this side's user.
        rest: once the state is OPEN, bytes that came behind the handshake: the beginning of frames.
    """

    _table: ClassVar[dict[tuple[str, int], str]] = {}
    _them = "peer"

    def __init__(
        self,
        identity: Identity,
        token: bytes | Sequence[bytes],
        nonce: bytes,
        binding: bytes = b"",
        python: str = "refuse",
    ) -> None:
        if len(nonce) != 32:
            raise ValueError(f"a nonce has 32 bytes, not {len(nonce)}")
        tokens = [token] if isinstance(token, bytes) else list(token)
        if not tokens or not all(tokens):
            raise ValueError("the token is empty")
        self.identity = identity
        self.state = "START"
        self.peer: Peer | None = None
        self.error: HandshakeError | None = None
        self.rest = b""
        self._tokens = tokens
        self._token = tokens[0]
        self._nonce = nonce
        self._binding = hashlib.sha256(binding).digest() if binding else b""
        self._python = python
        self._data = b""
        self._theirs: _Hello | None = None
        self._hellos = b""  # hashes of both, the connector's first

    def receive(self, data: bytes) -> bytes:
        """Bytes have come from the peer.

        Returns:
            what is to be sent to it now, maybe nothing. Look at ``state`` then: FAILED means to send and close.
        """
        if self.state == "OPEN":
            self.rest += data
            return b""
        if self.state == "FAILED":
            return b""
        self._data += data
        out = b""
        while self.state not in ("OPEN", "FAILED"):
            found = self._next()
            if found is None:
                break
            if found:
                out += found
        if self.state == "OPEN":
            self.rest, self._data = self._data, b""
        return out

    def lost(self, why: str = "") -> None:
        """The peer has closed the connection, or it broke, or it took too long."""
        if self.state not in ("OPEN", "FAILED"):
            self._fail("lost", self._lost(why or "closed the connection in the middle of the handshake"))

    def _lost(self, why: str) -> str:
        return f"the {self._them} {why}"

    def _next(self) -> bytes | None:
        """Deal with one message; None where none is whole."""
        data = self._data
        have = min(len(data), len(MAGIC))
        if data[:have] != MAGIC[:have]:
            return self._foreign(data)
        if len(data) < _HEAD.size:
            return None
        _, version, kind, size = _HEAD.unpack_from(data)
        if version != FORMAT:
            return self._other_format(version)
        if size > MOST:
            return self._malformed()
        if len(data) < _HEAD.size + size:
            return None
        whole, self._data = data[: _HEAD.size + size], data[_HEAD.size + size :]
        name = self._table.get((self.state, kind))
        if name is None:
            return self._malformed()
        answer: bytes = getattr(self, name)(whole, whole[_HEAD.size :])
        return answer

    def _fail(self, code: str, text: str, answer: bytes = b"") -> bytes:
        self.state, self.error, self._data = "FAILED", HandshakeError(text, code), b""
        return answer

    def _foreign(self, data: bytes) -> bytes | None:
        raise NotImplementedError

    def _other_format(self, version: int) -> bytes:
        raise NotImplementedError

    def _malformed(self) -> bytes:
        raise NotImplementedError

    def _proof(self, label: bytes, more: bytes = b"", token: bytes | None = None) -> bytes:
        # each part is of fixed length but the last: no two different inputs are the same bytes
        has = b"\1" if self._binding else b"\0"
        return hmac.digest(
            self._token if token is None else token, label + self._hellos + has + self._binding + more, "sha256"
        )

    def _objection(self, theirs: Identity) -> tuple[str, str] | None:
        """Why the peer can't come in: (code, what to tell either user); None where nothing is wrong."""
        ours = self.identity
        us, them = f"this {ours.role}", f"the {theirs.role}"
        if ours.protocol != theirs.protocol:
            old = us if ours.protocol < theirs.protocol else them
            return "protocol", (
                f"{us} has taskloom {ours.version} with protocol {ours.protocol}, {them} has taskloom {theirs.version} "
                f"with protocol {theirs.protocol}; upgrade taskloom where {old} runs"
            )
        if ours.python[:2] != theirs.python[:2] and self._python == "refuse":
            return "python", (
                f"{us} runs Python {_dotted(ours.python)}, {them} Python {_dotted(theirs.python)}, and functions can't "
                f"travel between them; use Python {_dotted(theirs.python[:2])} for {us}, or the same for both"
            )
        return None

    def _warnings(self, theirs: Identity) -> tuple[str, ...]:
        ours = self.identity
        if ours.python == theirs.python:
            return ()
        what = f"this {ours.role} runs Python {_dotted(ours.python)}, the {theirs.role} Python {_dotted(theirs.python)}"
        if ours.python[:2] != theirs.python[:2]:
            return (f"{what}; functions that travel by value may fail, or crash the process that runs them",)
        return (f"{what}; that works in general, but the same one everywhere is better",)

    def _open(self, theirs: Identity) -> None:
        self.state = "OPEN"
        self.peer = Peer(theirs, self._warnings(theirs))


def _dotted(numbers: Iterable[int]) -> str:
    return ".".join([str(number) for number in numbers])


class Connector(Handshake):
    """The side that opened the connection.

    Args:
        wants: the role that the other side has to have; None: any.
    """

    _table: ClassVar[dict[tuple[str, int], str]] = {
        ("GREETED", HELLO): "_hello",
        ("GREETED", REFUSAL): "_refused",
        ("PROVED", VERDICT): "_verdict",
        ("PROVED", REFUSAL): "_refused",
    }

    def __init__(
        self,
        identity: Identity,
        token: bytes,
        nonce: bytes,
        binding: bytes = b"",
        python: str = "refuse",
        wants: str | None = None,
    ) -> None:
        super().__init__(identity, token, nonce, binding, python)
        self._wants = wants
        self._them = wants or "peer"
        self._mine = b""
        self._sent_proof = b""

    def begin(self) -> bytes:
        """What to send first."""
        if self.state != "START":
            raise RuntimeError("begin() is called once, first")
        self.state = "GREETED"
        self._mine = _pack_hello(self.identity, self._wants, self._nonce)
        return self._mine

    def _hello(self, whole: bytes, body: bytes) -> bytes:
        theirs = _unpack_hello(body)
        if theirs is None:
            return self._malformed()
        self._theirs = theirs
        self._hellos = hashlib.sha256(self._mine).digest() + hashlib.sha256(whole).digest()
        self.state = "PROVED"
        self._sent_proof = self._proof(_CONNECTOR_LABEL)
        return _message(PROOF, self._sent_proof)

    def _verdict(self, whole: bytes, body: bytes) -> bytes:
        theirs = self._theirs
        assert theirs is not None
        if len(body) < 33:
            return self._malformed()
        said, proof = body[:-32], body[-32:]
        if not hmac.compare_digest(proof, self._proof(_ACCEPTOR_LABEL, self._sent_proof + said)):
            return self._fail(
                "token",
                f"what answers as a {theirs.identity.role} could not prove that it knows the token; it may be another "
                f"cluster's, or somebody in between. Nothing was sent to it",
            )
        code = _VERDICTS.get(said[0], "peer")
        if code:
            return self._fail(code, said[1:].decode("utf-8", "replace"))
        identity = theirs.identity
        if self._wants is not None and identity.role != self._wants:
            return self._fail("role", f"a {self._wants} was to be there, and it is a {identity.role}")
        objection = self._objection(identity)
        if objection is not None:
            return self._fail(*objection)
        self._open(identity)
        return b""

    def _refused(self, whole: bytes, body: bytes) -> bytes:
        code = body[0] if body else REFUSED
        if code == USE_TLS:
            return self._fail("tls", f"the {self._them} wants TLS; use an address that begins with tls://")
        if self.state == "GREETED":
            return self._fail("peer", f"the {self._them} refuses this process before it was shown anything")
        return self._fail(
            "token",
            f"the {self._them} refuses the token that this {self.identity.role} has, as it does with every token that is "
            f"not its own",
        )

    def _foreign(self, data: bytes) -> bytes:
        shown = repr(data[:40])[1:] + ("..." if len(data) > 40 else "")
        if data[:2] in (b"\x15\x03", b"\x16\x03"):
            return self._fail("tls", f"the {self._them} speaks TLS; use an address that begins with tls://")
        kind = "a web server" if data[:5] == b"HTTP/" else "an SSH server" if data[:4] == b"SSH-" else ""
        what = f"it is {kind}, and answered {shown}" if kind else f"it answered {shown}"
        return self._fail("peer", f"what is there is no process of taskloom: {what}")

    def _other_format(self, version: int) -> bytes:
        old = f"this {self.identity.role}" if version > FORMAT else f"the {self._them}"
        return self._fail(
            "protocol",
            f"the {self._them} has another format of the handshake, {version}, and this one has {FORMAT}; upgrade taskloom "
            f"where {old} runs",
        )

    def _malformed(self) -> bytes:
        return self._fail("peer", f"the {self._them} said something in the handshake that has no meaning there")


class Acceptor(Handshake):
    """The side that was connected to.

    Args:
        accepts: the roles that may come in.
    """

    _table: ClassVar[dict[tuple[str, int], str]] = {
        ("START", HELLO): "_hello",
        ("GREETED", PROOF): "_proved",
    }
    _them = "peer"

    def __init__(
        self,
        identity: Identity,
        token: bytes | Sequence[bytes],
        nonce: bytes,
        binding: bytes = b"",
        python: str = "refuse",
        accepts: Collection[str] = tuple(ROLES),
    ) -> None:
        super().__init__(identity, token, nonce, binding, python)
        self._accepts = accepts

    def _hello(self, whole: bytes, body: bytes) -> bytes:
        theirs = _unpack_hello(body)
        if theirs is None:
            return self._malformed()
        self._theirs = theirs
        mine = _pack_hello(self.identity, None, self._nonce)
        self._hellos = hashlib.sha256(whole).digest() + hashlib.sha256(mine).digest()
        self.state = "GREETED"
        return mine

    def _proved(self, whole: bytes, body: bytes) -> bytes:
        theirs = self._theirs
        assert theirs is not None
        known = False
        for token in self._tokens:  # all of them, whichever fits: so nothing can be told from how long it takes
            # of another length it is not equal either
            if hmac.compare_digest(body, self._proof(_CONNECTOR_LABEL, token=token)):
                known, self._token = True, token
        if not known:
            return self._fail(
                "token",
                f"a peer that says it is a {theirs.identity.role} could not prove that it knows the token of this "
                f"{self.identity.role}; it was refused",
                refusal(REFUSED),
            )
        identity = theirs.identity
        code, text = "", ""
        if theirs.wants is not None and theirs.wants != self.identity.role:
            code, text = "role", f"a {theirs.wants} was to be there, and it is a {self.identity.role}"
        elif identity.role not in self._accepts:
            code, text = "role", f"a {self.identity.role} takes no connections from a {identity.role}"
        else:
            objection = self._objection(identity)
            if objection is not None:
                # for the peer's user, from the peer's side
                code, text = objection[0], self._seen_from_there(theirs.identity)
        said = bytes([_VERDICT_OF[code]]) + text.encode()[:_MOST_TEXT]
        answer = _message(VERDICT, said + self._proof(_ACCEPTOR_LABEL, body + said))
        if code:
            objection = self._objection(identity)
            return self._fail(code, objection[1] if objection is not None and objection[0] == code else text, answer)
        self._open(identity)
        return answer

    def _seen_from_there(self, theirs: Identity) -> str:
        other = Handshake(theirs, b"-", bytes(32), python=self._python)
        objection = other._objection(self.identity)
        return "" if objection is None else objection[1]

    def _foreign(self, data: bytes) -> bytes | None:
        what = guess(data)
        if what == "unclear":
            return None  # it will be known soon
        if what == "http":
            return self._fail("http", "somebody spoke HTTP to this port", HTTP_ANSWER)
        if what == "tls":
            return self._fail("tls", "somebody spoke TLS to this port, which is without (tcp://)", refusal(REFUSED))
        return self._fail(
            "peer", f"somebody who is no process of taskloom said {data[:40]!r} to this port", refusal(REFUSED)
        )

    def _other_format(self, version: int) -> bytes:
        old = f"this {self.identity.role}" if version > FORMAT else "the peer"
        return self._fail(
            "protocol",
            f"a peer has another format of the handshake, {version}, and this one has {FORMAT}; upgrade taskloom where {old} "
            f"runs",
            refusal(REFUSED),
        )

    def _malformed(self) -> bytes:
        return self._fail("peer", "a peer said something in the handshake that has no meaning there", refusal(REFUSED))
