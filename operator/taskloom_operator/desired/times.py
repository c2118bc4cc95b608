"""Times as Kubernetes writes them, and waiting longer and longer."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

__all__ = ["backoff", "seconds", "stamp"]

LONGEST = 300.0


def stamp(now: float) -> str:
    """Seconds since 1970 as text, to the second.

    >>> stamp(1_700_000_000.9)
    '2023-11-14T22:13:20Z'
    """
    return datetime.fromtimestamp(int(now), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds(text: Any) -> float | None:
    """The other way; None: there is none.

    >>> seconds("2023-11-14T22:13:20Z"), seconds(None)
    (1700000000.0, None)
    """
    if not text:
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError):
        return None


def backoff(tries: int, longest: float = LONGEST) -> float:
    """Seconds to wait before something is tried again that has failed so many times: one, then twice as long each time.

    >>> [backoff(tries) for tries in (0, 1, 2, 3, 9, 1000)]
    [0.0, 1.0, 2.0, 4.0, 256.0, 300.0]
    """
    return 0.0 if tries <= 0 else min(longest, 2.0 ** min(tries - 1, 30))
