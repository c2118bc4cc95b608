"""Defects of ours in a process's event loop are told, and end it where somebody would wait for ever."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import asyncio, logging, sys
from taskloom.node.process import collect_seldom, tell_defects

logging.getLogger().addHandler(logging.NullHandler())

async def main():
    collect_seldom()
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    tell_defects(loop, "taskloom worker w", ended.set)
    loop.call_exception_handler({"message": "only told"})
    assert not ended.is_set()
    loop.call_soon(lambda: 1 / 0)
    await ended.wait()

sys.stderr = None
asyncio.run(main())
print("ended")
"""


def test_a_defect_is_told_and_ends_the_process():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "ended\n"
    assert "taskloom worker w: only told; this is a defect" in done.stderr
    assert "ZeroDivisionError" in done.stderr
