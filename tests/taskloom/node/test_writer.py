"""Lines for people, where people read them and where nobody does."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

from taskloom.node.writer import Writer


class Slow:
    """A stream that takes a line when it is told to."""

    def __init__(self):
        self.lines = []
        self.go = threading.Semaphore(0)
        self.busy = threading.Event()

    def write(self, text):
        self.busy.set()
        assert self.go.acquire(timeout=30)
        self.lines.append(text)

    def flush(self):
        pass


def test_what_is_too_much_is_left_out_and_told(monkeypatch):
    stream = Slow()
    monkeypatch.setattr(sys, "stderr", stream)
    writer = Writer("stderr", most=50)
    writer.say("the first one")
    assert stream.busy.wait(30)
    for n in range(20):  # 8 characters each, and an end
        writer.say(f"line  {n:02}")
    assert stream.lines == []  # it did not wait
    for _ in range(100):
        stream.go.release()
    writer.close(30)
    assert stream.lines == [
        "the first one\n",
        *[f"line  {n:02}\n" for n in range(4)],
        "taskloom: 16 lines left out here, as nobody read them\n",
    ]
    writer.say("after the end")
    assert len(stream.lines) == 6


def test_it_goes_on_after_a_gap(monkeypatch):
    stream = Slow()
    monkeypatch.setattr(sys, "stderr", stream)
    writer = Writer("stderr", most=20)
    writer.say("a" * 15)
    assert stream.busy.wait(30)
    writer.say("b" * 15)  # left out
    stream.busy.clear()
    for _ in range(100):
        stream.go.release()
    while stream.lines != ["a" * 15 + "\n"] or writer._waiting:
        threading.Event().wait(0.001)
    writer.say("c")
    writer.close(30)
    assert stream.lines[1:] == ["taskloom: 1 line left out here, as nobody read them\n", "c\n"]


def test_a_process_ends_though_nobody_reads():
    """What waits in a pipe that is full holds up neither the program nor its end."""
    program = """if True:
        import os, sys
        from taskloom.node.writer import Writer
        with Writer("stderr") as writer:
            for n in range(100_000):
                writer.say(f"line {n}" + "x" * 100)
            print("said", flush=True)
            writer.close(0.05)
    """
    ours, theirs = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=theirs, timeout=60, check=False
        )
        assert done.stdout == b"said\n"
        assert done.returncode == 0
        assert os.read(ours, 10) == b"line 0xxxx"
    finally:
        os.close(ours)
        os.close(theirs)


def test_nobody_is_there():
    program = """if True:
        from taskloom.node.writer import Writer
        import sys
        with Writer("stdout") as writer:
            writer.say("one")
        sys.stdout = None
        with Writer("stdout") as writer:
            writer.say("one")
    """
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=theirs, stderr=subprocess.PIPE, timeout=60, check=False
        )
    finally:
        os.close(theirs)
    assert (done.returncode, done.stderr) == (0, b"")
