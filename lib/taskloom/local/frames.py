"""Tracebacks that show the user's code and leave our machinery out."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from types import TracebackType
from typing import ParamSpec, TypeVar

from taskloom.errors import TaskloomError

__all__ = ["cut_frames", "note_callback", "note_task", "quiet_frames"]

P = ParamSpec("P")
R = TypeVar("R")

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
# The demo is a user's program that happens to live in the package.
_USERS = os.path.join(_PACKAGE, "demo")

_NOTES = ("raised in the task ", "raised by the callback ")


def is_ours(filename: str) -> bool:
    """Whether a file belongs to taskloom's machinery."""
    return filename.startswith(_PACKAGE) and not filename.startswith(_USERS)


def cut_frames(error: BaseException, last: bool = False) -> None:
    """Take our frames out of an error's traceback, wherever they stand; the user's stay, in their order.

    Args:
        last: the frame that raised it stays, even if it is ours.
    """
    # not by assignment: an exception class may forbid it
    BaseException.with_traceback(error, _without_ours(error.__traceback__, last))


def _without_ours(tb: TracebackType | None, last: bool) -> TracebackType | None:
    kept: list[TracebackType] = []
    cut = False
    while tb is not None:
        if is_ours(tb.tb_frame.f_code.co_filename) and not (last and tb.tb_next is None):
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
    _note(error, _NOTES[0], "", key)


def note_callback(error: BaseException, name: str, key: object) -> None:
    """Say in the error's notes that not the task raised it but a callback that was told of the task."""
    _note(error, _NOTES[1], f"{name}, which was told of the task ", key)


def _note(error: BaseException, start: str, middle: str, key: object) -> None:
    if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)) or _is_noted(error):
        return
    try:
        text = repr(key)
        error.add_note(start + middle + (text if len(text) <= 200 else text[:197] + "..."))
    except (
        Exception
    ):  # an exception class may forbid attributes, a key have no repr: the error is worth more than our note
        pass


def _is_noted(error: BaseException) -> bool:
    try:
        return any(isinstance(note, str) and note.startswith(_NOTES) for note in getattr(error, "__notes__", ()))
    except Exception:
        return False


def quiet_frames(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a public function so that an error passing through does not show our frames.

    One line of ours stays where the error is our own fault: where neither a task raised it nor we, on purpose.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            expected = isinstance(error, TaskloomError) or not isinstance(error, Exception) or _is_noted(error)
            cut_frames(error, last=not expected)
            del args, kwargs  # a traceback that somebody keeps leads here (`f_back`), and not to the graph
            raise

    return call
