"""The file of running tasks: what a reader finds in it, at any time, and after the writer was killed."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys

import psutil
import pytest

from taskloom.node.cell import NOBODY, RunningCells, read_running


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "running")


def test_what_is_written_is_read(path):
    cells = RunningCells(path, 3)
    assert read_running(path).tids == []
    cells.words[1] = 7
    cells.words[2] = 2**63 - 1
    found = read_running(path)
    assert found.tids == [7, 2**63 - 1]
    assert found.pid == os.getpid()
    assert found.started == psutil.Process().create_time()
    cells.words[1] = NOBODY
    assert read_running(path).tids == [2**63 - 1]
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert os.listdir(os.path.dirname(path)) == ["running"]
    cells.close()
    assert not os.path.exists(path)
    cells.close()


def test_the_file_can_stay(path):
    cells = RunningCells(path, 3)
    cells.words[0] = 5
    cells.close(remove=False)
    assert read_running(path).tids == [5]


def test_the_layout_is_as_documented(path):
    cells = RunningCells(path, 2)
    cells.words[0] = 1
    with open(path, "rb") as file:
        data = file.read()
    assert data[:8] == b"TLRUN01\n"
    assert int.from_bytes(data[8:16], sys.byteorder) == 2
    assert int.from_bytes(data[16:24], sys.byteorder) == os.getpid()
    assert data[32:64] == bytes(32)
    assert int.from_bytes(data[64:72], sys.byteorder, signed=True) == 1
    assert int.from_bytes(data[72:], sys.byteorder, signed=True) == -(2**63)
    cells.close()


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data + b"x", lambda data: data[:70]])
def test_a_file_of_another_size_is_refused(path, damage):
    RunningCells(path, 3).close(remove=False)
    with open(path, "rb") as file:
        data = file.read()
    with open(path, "wb") as file:
        file.write(damage(data))
    with pytest.raises(ValueError, match="is damaged"):
        read_running(path)


@pytest.mark.parametrize("data", [b"", b"TLRUN01", b"TLRUN02\n" + bytes(80), bytes(200)])
def test_another_file_is_refused(path, data):
    with open(path, "wb") as file:
        file.write(data)
    with pytest.raises(ValueError, match="is no file of running tasks"):
        read_running(path)


def test_a_number_of_threads_out_of_range_is_refused(path):
    for count in (0, -1, 1 << 20):
        with pytest.raises(ValueError, match="count is a number of threads"):
            RunningCells(path, count)
    with pytest.raises(FileNotFoundError):
        RunningCells(path + "/x", 1)


WRITER = """
import sys
from taskloom.node.cell import RunningCells
words = RunningCells(sys.argv[1], 1).words
a, b = 0x0102030405060708, -0x0102030405060709
words[0] = a
print("ready", flush=True)
while True:
    words[0] = a
    words[0] = b
"""


def test_no_number_is_torn_and_the_last_one_outlives_a_killed_process(path):
    expected = ([0x0102030405060708], [-0x0102030405060709])
    seen = set()
    with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            for _ in range(20_000):
                tids = read_running(path).tids
                assert tids in expected
                seen.add(tids[0])
        finally:
            process.send_signal(signal.SIGKILL)
    assert len(seen) == 2
    found = read_running(path)
    assert found.tids in expected
    assert found.pid == process.pid


TASK = """
import sys, time
from taskloom.node.cell import RunningCells
from taskloom.node.executor import Executor
executor = Executor(2, lambda: None, cells=RunningCells(sys.argv[1], 66))
executor.submit([(1, 101, int, ()), (2, 102, time.sleep, (60,)), (3, 103, print, ("here",)), (4, 104, time.sleep, (60,))])
time.sleep(60)
"""


def test_the_running_tasks_of_a_killed_process_are_known(path):
    with subprocess.Popen([sys.executable, "-u", "-c", TASK, path], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"here\n"
            for _ in range(10_000):  # the thread that printed takes the next one any moment
                if sorted(read_running(path).tids) == [102, 104]:
                    break
        finally:
            process.send_signal(signal.SIGKILL)
    assert sorted(read_running(path).tids) == [102, 104]
