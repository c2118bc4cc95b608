"""Tracebacks that show the user's code and leave our machinery out."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from types import TracebackType
from typing import ParamSpec, TypeVar

__all__ = ["cut_frames", "note_task", "quiet_frames"]

P = ParamSpec("P")
R = TypeVar("R")

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
# The demo is a user's program that happens to live in the package.
_USERS = os.path.join(_PACKAGE, "demo")


def is_ours(filename: str) -> bool:
    """Whether a file belongs to taskloom's machinery."""
    return filename.startswith(_PACKAGE) and not filename.startswith(_USERS)


def cut_frames(error: BaseException) -> None:
    """Take our frames out of an error's traceback, wherever they stand; the user's stay, in their order."""
    error.__traceback__ = _without_ours(error.__traceback__)


def _without_ours(tb: TracebackType | None) -> TracebackType | None:
    kept: list[TracebackType] = []
    cut = False
    while tb is not None:
        if is_ours(tb.tb_frame.f_code.co_filename):
            cut = True
        else:
            kept.append(tb)
        tb = tb.tb_next
    if not cut:
        return kept[0] if kept else None
    chain: TracebackType | None = None
    for item in reversed(kept):
        chain = TracebackType(chain, item.tb_frame, item.tb_lasti, item.tb_lineno)
    return chain


def note_task(error: BaseException, key: object) -> None:
    """Say in the error's notes (PEP 678) which task raised it, once."""
    if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
        return
    text = repr(key)
    note = f"raised in the task {text if len(text) <= 200 else text[:197] + '...'}"
    notes = getattr(error, "__notes__", ())
    if not any(isinstance(old, str) and old.startswith("raised in the task ") for old in notes):
        try:
            error.add_note(note)
        except Exception:  # an exception class may forbid attributes; its message is worth more than our note
            pass


def quiet_frames(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a public function so that an error passing through shows one line of ours, not all of them."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            cut_frames(error)
            raise

    return call
