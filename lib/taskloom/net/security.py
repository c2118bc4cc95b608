"""TLS: certificates and contexts.

Each process that listens makes itself a certificate when it starts, keeps it in memory, and loses it when it ends. Nobody has
signed it, and nobody has to: the handshake (:mod:`taskloom.protocol.handshake`) proves with the token that the two ends of a TLS
connection are the two that know it. Certificates of one's own can be brought instead, or in addition: then they are verified,
on both sides.
"""

from __future__ import annotations

import functools
import os
import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from taskloom.errors import CommError

__all__ = ["CERTIFIED_NAME", "Security", "own_security", "pinned_context", "temporary_security", "write_certificate"]

#: The one name that certificates are for which processes make themselves: who asks over HTTPS can ask for it, wherever it is.
CERTIFIED_NAME = "taskloom"


class Security(NamedTuple):
    """What TLS connections of a process use.

    Make it with :func:`own_security` or :func:`temporary_security`.

    Attributes:
        server: for connections that come in; None: this process can't listen with TLS.
        der: the certificate that ``server`` shows.
        client: for connections to others.
        check_hostname: whether a certificate has to be for the name that was connected to.
    """

    server: ssl.SSLContext | None
    der: bytes
    client: ssl.SSLContext
    check_hostname: bool = False


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_COMPRESSION
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # nobody comes back with one
    else:
        # Whom we talk to is proved by the token, bound to the certificate that is seen.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def own_security(
    certificate: str, key: str | None = None, authorities: str | None = None, check_hostname: bool = False
) -> Security:
    """Certificates that the user brings.

    Args:
        certificate: a PEM file: the certificate of this process, and those between it and the authority.
        key: a PEM file with its key; None: it is in the same file.
        authorities: a PEM file with those whose signature counts. With it, both sides have to show a certificate that one of
            them has signed (mutual TLS); without it, that is left to the token.
        check_hostname: whether the certificate must be for the host name or IP address that is connected to.

    Raises:
        CommError: a file can't be read or used.
    """
    server, client = _context(ssl.PROTOCOL_TLS_SERVER), _context(ssl.PROTOCOL_TLS_CLIENT)
    try:
        for context in (server, client):
            # not asked for on a terminal: most processes have none
            context.load_cert_chain(certificate, key, password=_no_password)
            if authorities is not None:
                context.load_verify_locations(authorities)
                context.verify_mode = ssl.CERT_REQUIRED
        with open(certificate) as file:
            text = file.read()
        begin = text.index("-----BEGIN CERTIFICATE-----")
        end = text.index("-----END CERTIFICATE-----", begin)
        der = ssl.PEM_cert_to_DER_cert(text[begin : end + len("-----END CERTIFICATE-----")])
        if check_hostname:
            if authorities is None:
                raise ValueError(
                    "check_hostname needs authorities: a certificate that nobody vouches for can name any host"
                )
            client.check_hostname = True
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        files = ", ".join([name for name in (certificate, key, authorities) if name])
        raise CommError(f"the certificate can't be used ({files}): {error}") from error
    return Security(server, der, client, check_hostname)


def pinned_context(certificate: str) -> ssl.SSLContext:
    """For HTTPS to a server whose certificate is known: to that one, whatever it is called, and to no other.

    Args:
        certificate: as PEM: what ``client.scheduler_info()["http_certificate"]`` says, or the file that ``taskloom scheduler``
            writes holds.

    Raises:
        CommError: it is no certificate.
    """
    try:
        context = ssl.create_default_context(cadata=ssl.DER_cert_to_PEM_cert(ssl.PEM_cert_to_DER_cert(certificate)))
    except ValueError as error:  # with no certificate, those that the system knows would be trusted
        raise CommError(f"that is no certificate, so nobody can be trusted by it: {error}") from error
    # the process that has the key is who it is at any address
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def write_certificate(path: str, der: bytes) -> None:
    """Write a certificate, as PEM, where people and programs find whom they may trust; what was there is replaced.

    Raises:
        OSError: that is not possible.
    """
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, mode=0o700, exist_ok=True)
    fd, new = tempfile.mkstemp(prefix=".certificate-", dir=folder)
    try:
        with open(fd, "w") as file:
            os.fchmod(fd, 0o644)  # it is no secret
            file.write(ssl.DER_cert_to_PEM_cert(der))
        os.replace(new, path)
    except BaseException:
        os.unlink(new)
        raise


def _no_password() -> str:
    raise ValueError("the key is encrypted; write it without a passphrase, readable for this user only")


def client_security() -> Security:
    """For a process that only connects to others."""
    return Security(None, b"", _client_context())


@functools.cache
def _client_context() -> ssl.SSLContext:
    return _context(ssl.PROTOCOL_TLS_CLIENT)


def temporary_security() -> Security:
    """A certificate for this process, made at the first call.

    Raises:
        CommError: the package ``cryptography`` is not installed.
    """
    return _temporary(os.getpid())  # a process made by fork() gets one of its own


@functools.cache
def _temporary(pid: int) -> Security:
    pem, der = _make_certificate()
    server = _context(ssl.PROTOCOL_TLS_SERVER)
    _load(server, pem)
    return Security(server, der, _client_context())


def _make_certificate() -> tuple[bytes, bytes]:
    """A key and a certificate that it has signed itself: (both as PEM, the certificate as DER)."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as error:
        raise CommError(
            "to listen for other machines this process has to make itself a certificate, and the package cryptography, which "
            "does that, is not installed: pip install 'taskloom[cluster]'"
        ) from error
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, CERTIFIED_NAME)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # clocks differ, and nobody looks at these: it ends with the process
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=3650))
        # for HTTPS, where who asks checks it: it vouches for itself alone. The name is that of no machine; see docs/http.md
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(CERTIFIED_NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding
    private = key.private_bytes(encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private + certificate.public_bytes(encoding.PEM), certificate.public_bytes(encoding.DER)


def _load(context: ssl.SSLContext, pem: bytes) -> None:
    """Load a key that is in no file: OpenSSL's function wants the name of one."""
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
        fd = os.memfd_create("taskloom-certificate", os.MFD_CLOEXEC)
        try:
            os.write(fd, pem)
            context.load_cert_chain(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
        return
    with tempfile.NamedTemporaryFile() as file:  # mode 0600; gone when it was read
        file.write(pem)
        file.flush()
        context.load_cert_chain(file.name)
