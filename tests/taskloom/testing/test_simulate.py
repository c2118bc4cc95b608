"""The command that runs many seeds."""

from __future__ import annotations

import subprocess
import sys

from taskloom.testing import simulate
from taskloom.testing.simulate import main, table


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "taskloom.testing.simulate", *arguments], capture_output=True, text=True, timeout=100
    )


def test_seeds_pass():
    done = run("--seeds", "50", "--start", "100", "--processes", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("50 seeds passed, ")
    assert done.stdout.endswith(" a second\n")


def test_it_stops_at_the_first_one_that_fails(monkeypatch, capsys):
    class Pool:
        """In this process, so that what is broken here is broken there."""

        def __init__(self, processes):
            self.jobs = 0

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def imap(self, function, jobs):
            return map(function, jobs)

    class Context:
        pass

    context = Context()
    context.Pool = Pool
    monkeypatch.setattr(simulate.multiprocessing, "get_context", lambda method: context)
    with simulate.BY_NAME["what nobody claims is kept"].in_force():
        assert main(["--seeds", "1000"]) == 1
    said = capsys.readouterr().out
    seed = int(said.split("seed ", 1)[1].split(":", 1)[0])
    assert f"{seed} seeds passed, " in said
    assert f"  python -m taskloom.testing.simulate --start {seed} --seeds 1\n" in said
    assert main(["--seeds", "1", "--start", str(seed)]) == 0  # the rule holds again


def test_a_table():
    assert (
        table([("a | is b", 3, "x\n  y`z|" + "w" * 200)]).splitlines()[2]
        == "| a | is b | 3 | `x yz/" + "w" * 101 + "...` |"
    )
