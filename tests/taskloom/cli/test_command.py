"""The ``taskloom`` command, as it is typed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import taskloom

SCRIPT = Path(sysconfig.get_path("scripts")) / "taskloom"


def run(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "taskloom", *args],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "COLUMNS": "100", **environment},
    )


def test_the_script_and_the_module_are_the_same_command():
    script = subprocess.run([SCRIPT, "--version"], capture_output=True, text=True)
    module = run("--version")
    assert script.stdout == module.stdout == f"taskloom {taskloom.__version__}\n"
    assert (script.returncode, module.returncode) == (0, 0)


def test_without_arguments_it_prints_its_help_where_it_can_be_piped_on():
    alone, asked, short = run(), run("--help"), run("-h")
    assert alone.stdout == asked.stdout == short.stdout
    assert re.search(r"demo +A real computation", alone.stdout)
    assert (alone.stderr, alone.returncode) == ("", 0)


def test_the_help_shows_a_graph_that_gives_what_it_says():
    lines = [line.strip() for line in run("--help").stdout.splitlines()]
    begin = lines.index("import taskloom")
    code = lines[begin : lines.index("", begin)]
    assert len(code) == 5
    space: dict[str, object] = {}
    for line in code:
        statement, _, said = line.partition("#")
        if said:
            assert eval(statement, space) == int(said.split(",")[0])
        else:
            exec(statement, space)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["demmo"], "there is no command 'demmo'; do you mean 'demo'?"),
        (["DEMO"], "do you mean 'demo'?"),
        (["frobnicate"], "there is no command 'frobnicate'; there is: cluster, demo, kube, scheduler, worker."),
        (["--frobnicate"], "No such option"),
        (["demo", "--size", "huge"], "'huge' is not one of 'small', 'medium', 'large'"),
        (["demo", "--workers", "0"], "0 is not in the range"),
        (["demo", "--workers", "two"], "'two' is not a valid integer"),
        (["demo", "--workrs", "2"], "--workers"),
        (["demo", "more"], "unexpected extra argument"),
        (["demo", "--keep", __file__], "is a file"),
    ],
)
def test_a_wrong_command_line_is_told_in_few_words(typed, words):
    done = run(*typed)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert done.returncode == 2


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    done = run("demo", "--size", "small", "--keep", str(tmp_path / "file" / "logs"))
    assert done.stderr == f"Error: the log files cannot be written: {tmp_path}/file/logs: Not a directory\n"
    assert done.returncode == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_must_not_be_written_to_is_told(tmp_path):
    tmp_path.chmod(0o500)
    done = run("demo", "--size", "small", "--keep", str(tmp_path))
    assert "is not writable" in done.stderr
    assert done.returncode == 2


def test_the_help_imports_no_scheduler():
    code = """
import sys
from taskloom.cli import main
sys.argv = ["taskloom", "--help"]
try:
    main()
except SystemExit as error:
    assert error.code == 0
print([name for name in ("numpy", "rich", "taskloom.threaded", "taskloom.demo", "asyncio") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_shell_can_complete_commands_and_options():
    done = subprocess.run(
        [SCRIPT],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "COMP_WORDS": "taskloom demo --si",
            "COMP_CWORD": "2",
            "_TASKLOOM_COMPLETE": "bash_complete",
        },
    )
    assert done.stdout == "plain,--size\n"


def test_who_reads_only_the_first_line_gets_it_and_no_complaint():
    out, into = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-m", "taskloom", "--help"], stdout=into, stderr=subprocess.PIPE, text=True
    ) as process:
        os.close(into)
        os.close(out)  # nobody reads at all
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait() == 1
