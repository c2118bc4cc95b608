"""What tasks print, log and warn: whose it is, what becomes of too much, and that all is as before afterwards."""

from __future__ import annotations

import contextvars
import io
import logging
import sys
import threading
import time
import warnings

import pytest

from taskloom.node.executor import CANCELLED, Executor
from taskloom.node.output import Output, Piece


class Worker:
    """An executor whose output is collected as a worker does it."""

    def __init__(self, **options):
        self.output = Output(**options)
        self.news = threading.Event()
        self.executor = Executor(2, self.news.set, output=self.output)

    def run(self, *functions):
        """Run functions as tasks 0, 1, ...; what they said, as a list of pieces for each, and the outcomes."""
        with self.output:
            return self._run(functions)

    def _run(self, functions):
        self.executor.submit([(n, n, function, ()) for n, function in enumerate(functions)])
        said = {n: [] for n in range(len(functions))}
        ended = {}
        deadline = time.monotonic() + 20
        while len(ended) < len(functions):
            assert self.news.wait(deadline - time.monotonic())
            self.news.clear()
            outcomes = self.executor.collect()
            for piece in self.output.take():
                assert piece.ticket not in ended, "it came after the task's end"
                said[piece.ticket].append(piece)
            ended.update({ticket: (kind, value) for ticket, kind, value, _ in outcomes})
        return said, ended


@pytest.fixture
def worker():
    worker = Worker()
    yield worker
    assert worker.executor.close() == []
    assert worker.executor.faults == 0


def test_without_an_echo_it_is_printed_where_the_client_is_alone(capsys):
    def speak():
        print("out")
        print("err", file=sys.stderr)
        warnings.warn("careful", UserWarning, stacklevel=1)

    worker = Worker(echo=False, most_per_task=30)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        said, _ = worker.run(speak, lambda: [print("x" * 20) for _ in range(3)])
    worker.executor.close()
    assert [piece.text for piece in said[0]] == ["out\n", "err\n", "careful"]
    assert "".join(piece.text for piece in said[1]).startswith("x" * 20 + "\n" + "x" * 9)
    out, err = capsys.readouterr()
    assert (out, err) == ("\n" + "x" * 20 + "\n", "err\n")  # what is more than a task may say


def test_what_a_task_prints_is_its_own_and_is_printed_too(capsys):
    worker = Worker()
    said, _ = worker.run(
        lambda: print("one", 1),
        lambda: print("two", file=sys.stderr),
        lambda: None,
    )
    with worker.output:
        print("nobody")
    assert said == {0: [Piece(0, "stdout", "one 1\n")], 1: [Piece(1, "stderr", "two\n")], 2: []}
    captured = capsys.readouterr()
    assert sorted(captured.out.splitlines()) == ["nobody", "one 1"]
    assert captured.err == "two\n"
    worker.executor.close()


def test_everything_is_as_before_in_the_end():
    before = sys.stdout, sys.stderr, warnings.showwarning, list(logging.getLogger().handlers)
    with Output():
        assert sys.stdout is not before[0]
        kept = sys.stdout
    assert (sys.stdout, sys.stderr, warnings.showwarning, list(logging.getLogger().handlers)) == before
    assert kept.write("still a stream\n") == 15


def test_who_has_replaced_the_stream_meanwhile_keeps_it():
    before = sys.stdout
    mine = io.StringIO()
    try:
        with Output():
            sys.stdout = mine
        assert sys.stdout is mine
    finally:
        sys.stdout = before


def test_output_comes_while_the_task_runs(worker):
    go = threading.Event()
    result = []

    def task():
        print("at once")
        result.append(go.wait(20))

    with worker.output:
        worker.executor.submit([(0, 0, task, ())])
        assert worker.news.wait(20)
        assert worker.executor.collect() == []
        pieces = worker.output.take()
    assert "".join(piece.text for piece in pieces).startswith("at once")  # the end of the line may come later
    go.set()
    while not worker.executor.collect():
        worker.news.wait(0.01)
    assert result == [True]


def test_threads_with_the_tasks_context_speak_in_its_name(worker):
    def task():
        context = contextvars.copy_context()
        threads = [threading.Thread(target=context.run, args=(print, "inside")), threading.Thread(target=print)]
        for thread in threads:
            thread.start()
            thread.join()

    said, _ = worker.run(task)
    assert "".join(piece.text for piece in said[0]) == "inside\n"


def test_log_records(worker):
    log = logging.getLogger("some.where")

    def task():
        log.warning("attention: %s", 5)
        log.debug("too fine")
        logging.getLogger("other").error("worse")

    said, _ = worker.run(task)
    assert [(piece.kind, piece.text, piece.details[:2]) for piece in said[0]] == [
        ("log", "attention: 5", ("some.where", logging.WARNING)),
        ("log", "worse", ("other", logging.ERROR)),
    ]
    assert said[0][0].details[2] == __file__
    with worker.output:
        log.warning("nobody's")
    assert worker.output.take() == []


def test_a_record_that_cannot_be_formatted_disturbs_nobody(worker, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    said, ended = worker.run(lambda: logging.getLogger("x").warning("%d", "no number"))
    assert said == {0: []}
    assert ended == {0: (0, None)}


def test_warnings_come_once_and_not_as_stderr_too(worker):
    def task():
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            # catch_warnings puts showwarning back to what it is here: ours
            warnings.warn("careful", DeprecationWarning, stacklevel=1)

    with warnings.catch_warnings(record=True) as shown:
        said, _ = worker.run(task)
    assert [str(warning.message) for warning in shown] == ["careful"]
    assert [(piece.kind, piece.text, piece.details[:2]) for piece in said[0]] == [
        ("warning", "careful", ("DeprecationWarning", __file__))
    ]


def test_a_task_that_says_too_much_is_cut_off_with_a_note():
    worker = Worker(most_per_task=1000)

    def task():
        for _ in range(100):
            print("x" * 99)

    said, _ = worker.run(task, lambda: print("small"))
    text = "".join(piece.text for piece in said[0] if piece.kind == "stdout")
    assert text == ("x" * 99 + "\n") * 10
    assert [piece.text for piece in said[0] if piece.kind == "stderr"] == [
        "\n[this task has written more than 1,000 characters; the rest is on its worker]\n"
    ]
    assert said[1] == [Piece(1, "stdout", "small\n")]
    assert worker.output.dropped == 0
    worker.executor.close()


def test_what_nobody_fetches_does_not_fill_the_memory():
    output = Output(most_per_task=10**9, most_waiting=1000)
    executor = Executor(1, lambda: None, output=output)
    with output:
        executor.submit([(n, n, print, ("x" * 99,)) for n in range(100)])
        deadline = time.monotonic() + 20
        done = 0
        while done < 100:
            done += len(executor.collect())
            assert time.monotonic() < deadline
            time.sleep(0.001)
        kept = sum(len(piece.text) for piece in output.take())
    assert 1000 <= kept <= 1200
    assert output.dropped == 10_000 - kept
    executor.close()


def test_pieces_of_one_stream_in_a_row_are_one(worker):
    def task():
        for n in range(1000):
            print(n, end=" ")
        sys.stderr.write("!")
        print("end")

    said, _ = worker.run(task)
    assert "".join(p.text for p in said[0] if p.kind == "stdout") == "".join(f"{n} " for n in range(1000)) + "end\n"
    assert len(said[0]) < 200  # 2,002 writes


def test_a_task_that_prints_can_be_cancelled():
    """Whatever it is interrupted in, others can print after it."""
    worker = Worker(most_per_task=10**9)
    sink = io.StringIO()
    before, sys.stdout = sys.stdout, sink
    try:
        with worker.output:

            def chatter():
                while True:
                    print("x")

            for n in range(0, 100, 2):
                worker.executor.submit([(n, n, chatter, ())])
                deadline = time.monotonic() + 20
                while not worker.output.take():
                    assert time.monotonic() < deadline
                worker.executor.stop([n])
                worker.executor.submit([(n + 1, n + 1, print, ("after",))])
                ended = []
                while len(ended) < 2:
                    ended += worker.executor.collect()
                    worker.news.wait(0.001)
                    assert time.monotonic() < deadline
                assert (n, CANCELLED) in [outcome[:2] for outcome in ended]
                pieces = worker.output.take()
                assert Piece(n + 1, "stdout", "after\n") in pieces
    finally:
        sys.stdout = before
    assert worker.executor.close() == []
    assert worker.executor.faults == 0


def test_the_stream_is_one_in_every_respect(worker):
    def task():
        out = sys.stdout
        out.writelines(["a", "b\n"])
        out.flush()
        out.close()
        print("c")
        return out.writable(), out.readable(), out.isatty(), out.encoding

    said, ended = worker.run(task)
    assert "".join(piece.text for piece in said[0]) == "ab\nc\n"
    assert ended[0][1] == (True, False, False, sys.stdout.encoding)


def test_without_a_console():
    before, sys.stdout = sys.stdout, None
    try:
        with Output():
            print("into nothing")
        assert sys.stdout is None
    finally:
        sys.stdout = before
