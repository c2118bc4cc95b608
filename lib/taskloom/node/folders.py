"""Folders of a process's own among temporary files, that somebody removes also where the process was killed.

Whether a folder's owner still lives says a lock (flock) on a file in it, which the kernel lets go of however a process ends,
and which cannot be mistaken for that of another process with the same number, as a pid can.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator

__all__ = ["make_owned", "remove_orphans", "take_orphans"]

_PREFIXES = ("taskloom-values-", "taskloom-running-")
_UNFINISHED = "taskloom-making-"
_OWNER = "owner"
_MARK = b"a folder of taskloom's for values that do not fit into memory; it belongs to process "
_OLD = 3600.0  # seconds after which a folder that nobody has finished making is given up


def make_owned(parent: str, kind: str) -> tuple[str, int]:
    """Make a folder that only this user can read.

    Args:
        parent: the directory to make it in, which has to be there.
        kind: "values" or "running".

    Returns:
        Its path, and the descriptor that says that its owner lives. Remove the folder, then close that.

    Raises:
        OSError: it cannot be made.
    """
    making = tempfile.mkdtemp(prefix=_UNFINISHED, dir=parent)  # 0700
    try:
        fd = os.open(os.path.join(making, _OWNER), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    try:
        os.write(fd, _MARK + str(os.getpid()).encode() + b"\n")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # a file system without locks: nobody will take the folder for an orphan, alive or dead
            pass
        # only now does it have a name that others look at
        path = os.path.join(parent, f"taskloom-{kind}-{os.path.basename(making)[len(_UNFINISHED) :]}")
        os.rename(making, path)
    except BaseException:
        os.close(fd)
        shutil.rmtree(making, ignore_errors=True)
        raise
    return path, fd


def remove_orphans(parent: str) -> list[str]:
    """Remove the folders of processes that are gone: only such as this module makes, of this user.

    Returns:
        The paths of what was removed.
    """
    return list(take_orphans(parent))


def take_orphans(parent: str) -> Iterator[str]:
    """The same, one after the other: each is removed when the next one is asked for, so that it can be looked at before."""
    try:
        with os.scandir(parent) as found:
            entries = [entry for entry in found if entry.name.startswith((*_PREFIXES, _UNFINISHED))]
    except OSError:
        return
    for entry in entries:
        try:
            about = entry.stat(follow_symlinks=False)
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid():
                continue
            if entry.name.startswith(_UNFINISHED) and time.time() - about.st_mtime < _OLD:
                continue
            fd = os.open(os.path.join(entry.path, _OWNER), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            if os.read(fd, len(_MARK)) != _MARK:
                continue
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # else its owner is alive
            yield entry.path
            shutil.rmtree(entry.path, ignore_errors=True)
        except OSError:
            continue
        finally:
            os.close(fd)
