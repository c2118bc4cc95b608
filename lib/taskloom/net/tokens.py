"""The token: who knows it belongs to the cluster, and may run anything there.

It is looked for in this order: the variable ``TASKLOOM_TOKEN``, the file that ``TASKLOOM_TOKEN_FILE`` names, and the user's own
file, ``~/.config/taskloom/token`` (``$XDG_CONFIG_HOME`` is respected). A scheduler that finds none makes the user's file, so the
same user's workers and clients find it, on this machine and on all that share the home directory.

A token that others may read is no token: such a file is refused, and the error says what to do.

The file that ``TASKLOOM_TOKEN_FILE`` names may be replaced while processes run, as Kubernetes does with secrets, and may have
several tokens, one a line: see :class:`TokenFile`. So tokens can be changed without a restart of anything: write the new one
before the old one, and take away the old one when every process has seen it.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
from collections.abc import Mapping
from typing import Any

from taskloom.errors import TokenError

__all__ = [
    "Token",
    "TokenFile",
    "check_token",
    "dump_token",
    "find_or_make_token",
    "find_token",
    "how_to_get_token",
    "load_token",
    "make_token",
    "read_token",
    "token_path",
    "tokens_of",
]

_log = logging.getLogger("taskloom.net")

LEAST = 16  # characters
_MOST = 4096


def token_path(environ: Mapping[str, str] = os.environ) -> str:
    """Where the user's own token is or would be."""
    base = environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(base, "taskloom", "token")


def check_token(token: str, where: str = "the token") -> str:
    """A token as it is used: without white space around it.

    Args:
        where: what to call it in an error; the token itself is never in one.

    Raises:
        TokenError: it is too short to be safe, or no printable ASCII.

    >>> check_token(" correct-horse-battery ")
    'correct-horse-battery'
    """
    token = token.strip()
    if len(token) < LEAST:
        raise TokenError(
            f"{where} has {len(token)} characters, and could be guessed; it needs {LEAST} or more. A good one: "
            'python -c "import secrets; print(secrets.token_urlsafe(32))"'
        )
    if len(token) > _MOST or not token.isascii() or not token.isprintable() or " " in token:
        raise TokenError(f"{where} is not one word of printable ASCII with at most {_MOST} characters")
    return token


class TokenFile:
    """The tokens in a file that may be replaced while processes run.

    It is looked at again at each connection. The first token is shown to others, the next ones where it is refused: they may not
    have seen the new file yet. Who shows any of them is let in.

    Args:
        path: of the file; one token a line, the newest first.

    Raises:
        TokenError: as :func:`read_token`.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._stamp: tuple[int, ...] = ()
        self._found = self._read()

    def __repr__(self) -> str:
        return f"TokenFile({self.path!r})"

    def tokens(self) -> tuple[str, ...]:
        """What is in it now. Where it is not fit for use any more, what it had, and a warning."""
        try:
            self._found = self._read()
        except TokenError as error:
            _log.warning("%s. The tokens that were there before are used", error)
        return self._found

    def _read(self) -> tuple[str, ...]:
        stamp: tuple[int, ...] = ()
        try:
            about = os.stat(self.path)
            stamp = about.st_dev, about.st_ino, about.st_mtime_ns, about.st_size
        except OSError:  # reading it says why
            pass
        if stamp and stamp == self._stamp:
            return self._found
        found = _read_tokens(self.path)
        self._stamp = stamp
        return found


#: How processes hold it: itself, or the file in which it may change.
Token = str | TokenFile


def tokens_of(token: Token) -> tuple[str, ...]:
    """The tokens that count now, the one to be shown first.

    Raises:
        TokenError: it is not fit for use.

    >>> tokens_of("correct-horse-battery")
    ('correct-horse-battery',)
    """
    return token.tokens() if isinstance(token, TokenFile) else (check_token(token),)


def dump_token(token: Token) -> Any:
    """What :func:`load_token` makes the same of in another process; can be written as JSON."""
    return {"file": token.path} if isinstance(token, TokenFile) else token


def load_token(dumped: Any) -> Token:
    """See :func:`dump_token`.

    Raises:
        TokenError: the file is not fit for use.
    """
    return TokenFile(dumped["file"]) if isinstance(dumped, dict) else str(dumped)


def read_token(path: str) -> str:
    """The token in a file.

    Raises:
        TokenError: there is none, or several, or others may read or replace it.
    """
    found = _read_tokens(path)
    if len(found) > 1:
        raise TokenError(
            f"the token in {path} is not one word of printable ASCII. A file with several is for TASKLOOM_TOKEN_FILE"
        )
    return found[0]


def _read_tokens(path: str) -> tuple[str, ...]:
    try:
        # not blocking: it could be a pipe
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise TokenError(f"the token in {path} can't be read: {error.strerror}") from error
    try:
        _check_file(path, os.fstat(fd))
        data = os.read(fd, _MOST + 1)
    finally:
        os.close(fd)
    try:
        lines = data.decode("ascii").split("\n")
        found = [line for line in lines if line.strip()] or [""]
        return tuple([check_token(line, f"the token in {path}") for line in found])
    except UnicodeDecodeError:
        raise TokenError(f"the token in {path} is not one word of printable ASCII") from None


def _check_file(path: str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise TokenError(f"{path} should hold the token, and is no file")
    if found.st_uid not in (0, os.geteuid()):
        raise TokenError(f"the token in {path} belongs to another user (uid {found.st_uid}), who could change it")
    # root's file that a group may read: how Kubernetes mounts a secret for a user that is not root
    others = 0o007 if found.st_uid == 0 and os.geteuid() != 0 else 0o077
    mode = stat.S_IMODE(found.st_mode)
    if mode & others:
        raise TokenError(
            f"the token in {path} can be read or changed by others (mode {mode:04o}), so it is not used. Make a new one, as it "
            f"may be known: rm {path}; or, if you are sure: chmod 600 {path}"
        )


def make_token(path: str | None = None) -> str:
    """Make a token in a file that nobody else can read; where one is there already, that one is used.

    Args:
        path: the file; by default the user's own.

    Returns:
        the token.

    Raises:
        TokenError: the file can't be made, or the one that is there is not safe.
    """
    path = token_path() if path is None else path
    folder = os.path.dirname(path) or "."
    new = os.path.join(folder, f".token-{secrets.token_hex(8)}")
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb") as file:
                os.fchmod(fd, 0o600)  # whatever the umask
                file.write(secrets.token_urlsafe(32).encode() + b"\n")
                file.flush()
                os.fsync(fd)
            # Like O_EXCL, but nobody sees it half-written; of two who make one at a time, one wins.
            try:
                os.link(new, path)
            except FileExistsError:
                pass
        finally:
            os.unlink(new)
    except OSError as error:
        raise TokenError(f"no token can be made in {path}: {error.strerror}") from error
    return read_token(path)


def find_token(environ: Mapping[str, str] = os.environ) -> Token | None:
    """The token of this user's processes; None where there is none.

    Raises:
        TokenError: there is one that is not safe, or that was named and is not there.
    """
    token = environ.get("TASKLOOM_TOKEN")
    if token:
        return check_token(token, "the variable TASKLOOM_TOKEN")
    path = environ.get("TASKLOOM_TOKEN_FILE")
    if path:
        return TokenFile(os.path.expanduser(path))
    path = token_path(environ)
    return read_token(path) if os.path.lexists(path) else None


def find_or_make_token(environ: Mapping[str, str] = os.environ) -> Token:
    """The same; where there is none, it is made in the user's own file.

    Raises:
        TokenError: see :func:`find_token` and :func:`make_token`.
    """
    found = find_token(environ)
    return make_token(token_path(environ)) if found is None else found


def how_to_get_token(host: str | None = None) -> str:
    """What to type to have a scheduler's token here.

    Args:
        host: the scheduler's machine; None: this one.
    """
    path = "~/.config/taskloom/token"
    get = f"cat {path}" if host is None else f"ssh {host} cat {path}"
    return f'TASKLOOM_TOKEN="$({get})"'
