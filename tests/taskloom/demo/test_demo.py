"""The demo: what it computes, what it prints, and what it leaves behind."""

from __future__ import annotations

import gzip
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

import taskloom
from taskloom.demo import logs, show
from taskloom.diagnostics import Profiler

WAYS = ["sync", "threads", "processes"]


def demo(*args: str, tmp: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "taskloom", "demo", "--size", "small", *args],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp), "COLUMNS": "80", **environment},
        timeout=60,
    )


# --- the log analysis


@pytest.fixture
def files(tmp_path):
    return logs.write_logs(range(3), tmp_path, 500)


def test_the_log_files_are_the_same_each_time_and_kept(tmp_path):
    (tmp_path / "other").mkdir()
    first = [path.read_bytes() for path in logs.write_logs(range(2), tmp_path, 100)]
    again = [path.read_bytes() for path in logs.write_logs(range(2), tmp_path, 100)]
    other = [path.read_bytes() for path in logs.write_logs(range(2), tmp_path / "other", 100)]
    assert first == again == other
    assert len(gzip.decompress(first[1]).splitlines()) == 100


def test_other_peoples_files_are_not_overwritten(tmp_path):
    (tmp_path / "access-000.log").write_text("mine")
    with pytest.raises(FileExistsError):
        logs.write_logs(range(1), tmp_path, 10)
    assert (tmp_path / "access-000.log").read_text() == "mine"


def test_the_plain_loop_is_right(files):
    data = [path.read_bytes() for path in files]
    text = b"".join(gzip.decompress(one) if one[:1] == b"\x1f" else one for one in data).decode()
    found = logs.plain_loop(files)
    assert found["requests by status"] == {
        int(status): count for status, count in Counter(re.findall(r'" (\d{3}) ', text)).items()
    }
    assert found["visitors"] == len(set(re.findall(r"^(203\.0\.113\.\d+) ", text, flags=re.MULTILINE)))
    assert sum(found["bytes by hour"].values()) == sum(map(int, re.findall(r'" \d{3} (\d+) ', text)))
    assert 0 < text.count("broken line") < 20


@pytest.mark.parametrize("scheduler", WAYS)
def test_the_bag_gives_what_the_plain_loop_gives(files, scheduler):
    (found,) = taskloom.compute(logs.with_bag(files), scheduler=scheduler)
    assert logs.tidy(found) == logs.plain_loop(files)


def test_each_line_is_parsed_once_for_all_questions(files):
    with Profiler() as profile:
        taskloom.compute(logs.with_bag(files), scheduler="sync")
    assert sum(item.tasks for item in profile.summary() if "parse" in item.function) == len(files)


# --- the matrix product


@pytest.mark.parametrize("scheduler", WAYS)
def test_the_graph_gives_the_product(scheduler):
    np = pytest.importorskip("numpy")
    from taskloom.demo import matrix

    a, b = matrix.make_blocks(3, 4, seed=1), matrix.make_blocks(3, 4, seed=2)
    graph, keys = matrix.make_graph(a, b, 3)
    get = {"sync": taskloom.get_sync, "threads": taskloom.threaded.get, "processes": taskloom.multiprocessing.get}
    product = dict(zip([key[1:] for key in keys], get[scheduler](graph, keys), strict=True))
    assert show.same_blocks(product, matrix.plain_loop(a, b, [(i, j) for i in range(3) for j in range(3)], 3))

    def whole(blocks):
        return np.block([[blocks[i, j] for j in range(3)] for i in range(3)])

    assert np.allclose(whole(product), whole(a) @ whole(b))


def test_a_wrong_product_is_found():
    pytest.importorskip("numpy")
    from taskloom.demo import matrix

    a, b = matrix.make_blocks(3, 4, seed=1), matrix.make_blocks(3, 4, seed=2)
    product = matrix.plain_loop(a, b, [(i, j) for i in range(3) for j in range(3)], 3)
    assert matrix.is_product(product, a, b, 3)
    product[1, 2] = product[1, 2] + 1e-3
    assert not matrix.is_product(product, a, b, 3)
    assert not show.same_blocks(product, matrix.plain_loop(a, b, product, 3))


# --- what it prints


@pytest.mark.parametrize("lines", [show.LOG_LINES, show.MATRIX_LINES])
def test_the_lines_of_program_that_it_shows_are_its_own(lines):
    source = "".join((Path(show.__file__).parent / name).read_text() for name in ("logs.py", "matrix.py"))
    source = " ".join(source.split())
    for line in lines.splitlines():
        assert line in source


def test_it_runs_compares_and_leaves_nothing(tmp_path):
    done = demo("--workers", "2", tmp=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Checked: every scheduler gave the plain loop's result, to the last bit." in done.stdout
    for way in show.WAYS:
        assert re.search(rf"^  {way} +\d+\.\d\d .* \d+\.\d\d", done.stdout, flags=re.MULTILINE), way
    assert done.stderr.splitlines()[0].startswith("writing log files: 4 of 4 tasks done in ")
    assert "\x1b" not in done.stdout + done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80 + len(str(Path(show.__file__)))
    assert not [line for line in done.stdout.splitlines() if line != line.rstrip()]
    assert not list(tmp_path.iterdir())


def test_without_numpy_it_says_what_is_missing_and_goes_on(tmp_path):
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "numpy.py").write_text("raise ImportError('there is no numpy')")
    done = demo("--workers", "1", tmp=tmp_path, PYTHONPATH=str(tmp_path / "path"), LC_ALL="C", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "Left out, because NumPy is not installed: pip install 'taskloom[array]'" in done.stdout
    assert "With one task at a time no scheduler is faster than a loop" in done.stdout
    assert "matrix.py" not in done.stdout


def test_the_files_can_be_kept(tmp_path):
    size = show.SIZES["small"]
    (tmp_path / "logs").mkdir()
    (before,) = logs.write_logs([0], tmp_path / "logs", size.lines)  # as a demo before would have left it
    done = demo("--workers", "1", "--keep", str(tmp_path / "logs"), tmp=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"The log files stay in {tmp_path}/logs." in " ".join(done.stdout.split())
    assert len(list((tmp_path / "logs").iterdir())) == size.files
    before.write_text("mine")
    done = demo("--keep", str(tmp_path / "logs"), tmp=tmp_path)
    assert done.stderr.endswith(
        f"Error: the log files cannot be written: {tmp_path}/logs/access-000.log: File exists\n"
    )
    assert done.returncode == 1


def test_a_wrong_result_is_shown_and_is_the_exit_status(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logs, "tidy", lambda result: {**result, "visitors": -1})
    row, _ = show.measure(show._Show(), "x", [1], lambda items: len(list(items)), {"sync": lambda: 2})
    assert not row.right
    assert "WRONG: the result of sync is not the plain loop's." in capsys.readouterr().out


def row(name: str, **seconds: float) -> show.Row:
    return show.Row(name, {"plain loop": 1.0, "sync": 1.0, **seconds}, 10, True)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        ((1.0, 0.5, 0.5, 0.7), ["processes do, even with", "Processes have to send"]),
        ((1.0, 0.5, 0.7, 0.5), ["processes do, even with", "Processes do too."]),
        ((1.0, 0.9, 1.1, 2.0), ["processes make faster where", "Threads make NumPy faster where"]),
    ],
)
def test_it_says_what_was_measured(seconds, words):
    rows = [
        row("log analysis", threads=seconds[0], processes=seconds[1]),
        row("matrix product", threads=seconds[2], processes=seconds[3]),
    ]
    said = " ".join(show.reasons(rows, 2, "medium", 0.0))
    for word in words:
        assert word in said
    assert "Other programs" not in said
    if seconds[1] > 0.8:
        said = " ".join(show.reasons(rows, 2, "small", 1.5))
        assert "Here that was not so. Other programs wanted 1.5 CPUs when this began. Try the other sizes." in said


# --- in a terminal


class Terminal:
    """The demo in a terminal of its own, 60 columns wide."""

    def __init__(self, tmp: Path, size: show.Size = show.SIZES["small"]) -> None:
        self.tmp = tmp
        self.pid, self.fd = pty.fork()
        if not self.pid:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored, and programs inherit that
            os.environ.update(TMPDIR=str(tmp), COLUMNS="60", LINES="24", TERM="xterm")
            program = (
                "from taskloom.demo import show; from taskloom.cli import main; "
                f"show.SIZES['small'] = show.Size{tuple(size)}; main()"
            )
            os.execv(sys.executable, [sys.executable, "-c", program, "demo", "--size", "small", "--workers", "2"])
        self.seen = ""
        self.family: list[psutil.Process] = []

    def read_until(self, pattern: str) -> None:
        deadline = time.monotonic() + 60
        while not re.search(pattern, self.seen):
            assert self.read(deadline), self.seen

    def read(self, deadline: float) -> bool:
        if not select.select([self.fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError(self.seen)
        try:
            data = os.read(self.fd, 65536)
        except OSError:
            return False
        self.seen += data.decode(errors="replace")
        return bool(data)

    def press(self, key: bytes) -> None:
        self.family = psutil.Process(self.pid).children(recursive=True)
        os.write(self.fd, key)

    def end(self) -> int:
        while self.read(time.monotonic() + 60):
            pass
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


# In which stage Ctrl-C is pressed: when this is to be seen, of a demo so large that the stage is not over by then.
LOGS = show.Size(files=2, lines=60_000, blocks=2, block=8)
MATRICES = show.Size(files=2, lines=10, blocks=4, block=640)
STAGES = {
    "writing": (r"writing log files", LOGS),
    "plain": (r"plain loop .*\d/\d", LOGS),
    "sync": (r"sync .*\d/\d", LOGS),
    "threads": (r"threads .*\d/\d", LOGS),
    "processes": (r"processes .*\d/\d", LOGS),
    "matrices": (r"2\. A matrix product(?s:.*)threads .*\d/\d", MATRICES),
}


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_ends_it_wherever_it_is(stage, tmp_path):
    pattern, size = STAGES[stage]
    terminal = Terminal(tmp_path, size)
    terminal.read_until(pattern)
    terminal.press(b"\x03")
    assert terminal.end() == 130
    assert terminal.seen.replace("\r", "").rstrip("\n").endswith("\ntaskloom: stopped"), terminal.seen[-300:]
    assert "Traceback" not in terminal.seen
    assert not list(tmp_path.iterdir())
    _, alive = psutil.wait_procs(terminal.family, timeout=10)
    assert not alive


def test_in_a_terminal_bars_move_and_the_fastest_is_marked(tmp_path):
    terminal = Terminal(tmp_path)
    assert terminal.end() == 0
    assert "\x1b[1;32m" in terminal.seen  # bold and green
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", terminal.seen).replace("\r", "\n")
    assert re.search(r"processes +.+ 100%", plain)
    assert "Checked: every scheduler" in plain


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_told_to_end_it_cleans_up(number, tmp_path):
    pattern, size = STAGES["processes"]
    terminal = Terminal(tmp_path, size)
    terminal.read_until(pattern)
    terminal.family = psutil.Process(terminal.pid).children(recursive=True)
    os.kill(terminal.pid, number)
    assert terminal.end() == 128 + number
    assert not list(tmp_path.iterdir())
    _, alive = psutil.wait_procs(terminal.family, timeout=10)
    assert not alive


def test_its_first_lines_can_be_taken(tmp_path):
    command = f"'{sys.executable}' -m taskloom demo --size small 2>'{tmp_path}/err' | head -3"
    (tmp_path / "tmp").mkdir()
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
        timeout=60,
    )
    assert len(done.stdout.splitlines()) == 3
    assert done.returncode == 1
    assert "Error" not in (tmp_path / "err").read_text()
    assert not list((tmp_path / "tmp").iterdir())
