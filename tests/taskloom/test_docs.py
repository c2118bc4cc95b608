"""What the documents say is so: every example in README.md, docs/, examples/ and the docstrings is run.

How a ```` ```python ```` block of a document is read:

- The blocks of a document are one program, run from top to bottom in an empty folder by a Python of its own, as
  ``__main__`` and without a main guard, with warnings as errors.
- ``expression  # value``: a comment that is a Python literal, or begins with one and a comma or colon, is what the
  expression must give; others are words for the reader.
- A ```` ```text ```` block right behind it is what it prints; ``...`` stands for anything. Where that is a traceback, the
  block must raise it (of paths, line numbers and markers, as Pythons differ in them, nothing is compared).
- ``>>>`` lines are a doctest.
- ``<!-- not run: reason -->`` before a block is for what no test can run.

In ```` ```sh ```` blocks, commands of ``make``, ``taskloom`` and Python files have to exist. Links have to lead somewhere.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import io
import json
import os
import pkgutil
import re
import select
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import taskloom

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
#: Documents that a command makes; links may lead to them before it was called.
MADE = {ROOT / "docs" / "benchmarks.md"}

FENCE = re.compile(r"^(?P<indent> *)(?P<marks>```+)(?P<language>[\w+-]*).*$")


class Block(NamedTuple):
    """A fenced block: ``line`` is the number of its first line, ``run`` whether it is to be run."""

    language: str
    line: int
    text: str
    follows: bool  # nothing but empty lines is between it and the block before
    run: bool


def blocks_of(text: str) -> list[Block]:
    """All fenced blocks of a Markdown document."""
    found: list[Block] = []
    lines = text.splitlines()
    end = -1  # of the block before
    at = 0
    while at < len(lines):
        fence = FENCE.match(lines[at])
        if fence is None:
            at += 1
            continue
        begin = at + 1
        at = begin
        while lines[at].strip() != fence["marks"]:
            at += 1
            assert at < len(lines), f"the block in line {begin} has no end"
        indent = len(fence["indent"])
        between = [line for line in lines[end + 1 : begin - 1] if line.strip()]
        found.append(
            Block(
                fence["language"],
                begin + 1,
                "".join(line[indent:] + "\n" for line in lines[begin:at]),
                end >= 0 and not between,
                not (between and between[-1].strip().startswith("<!-- not run: ")),
            )
        )
        end = at
        at += 1
    return found


def run_document(text: str, name: str, folder: Path) -> str:
    """Run the Python blocks of a document; what is wrong with them, or ''."""
    found = blocks_of(text)
    steps = []
    lines: list[str] = []
    for number, block in enumerate(found):
        if block.language != "python" or not block.run:
            continue
        lines += [""] * (block.line - 1 - len(lines)) + block.text.splitlines()
        after = found[number + 1] if number + 1 < len(found) else None
        printed = after.text if after is not None and after.language == "text" and after.follows else None
        steps.append((block.line, block.text, printed))
    if not steps:
        return ""
    program = folder / (name + ".py")
    program.write_text("\n".join(lines) + "\n")  # for the source lines in tracebacks
    work = folder / "work"
    work.mkdir()
    plain = {key: value for key, value in os.environ.items() if not key.startswith("TASKLOOM_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import docs_driver; docs_driver.main()"],
        input=json.dumps([str(program), steps]),
        capture_output=True,
        text=True,
        cwd=work,
        timeout=100,
        env={**plain, "PYTHONPATH": str(Path(__file__).parent)},
    )
    if done.returncode:
        return done.stderr or f"exit status {done.returncode}"
    return ""


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_examples_of_documents_do_what_they_say(document, tmp_path):
    wrong = run_document(document.read_text(), document.stem, tmp_path)
    assert not wrong, f"{document.relative_to(ROOT)}:\n{wrong}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("```python\n1 + 1  # 3\n```\n", "line 2: gives 2, and the document says 3"),
        ("```python\n1 + 1  # 3, in this thread\n```\n", "line 2: gives 2, and the document says 3"),
        ("```python\n[1, 2]  # [1, 3]: so many\n```\n", "line 2: gives [1, 2], and the document says [1, 3]"),
        ("```python\nif True:\n    1 + 1  # 3\n```\n", "line 3: gives 2"),
        ("```python\ndef f():\n    1 + 1  # 2\n```\n", "line 3: is never reached"),
        ("```python\n1 + 1  # 2.0\n```\n", "gives 2, and the document says 2.0"),
        ("```python\nx = 1\n```\nwords\n```python\nx  # 2\n```\n", "line 6: gives 1"),
        ("```python\nprint(1)\n```\n\n```text\n2\n```\n", "prints\n1\n"),
        ("```python\nprint('ab')\n```\n```text\na...c\n```\n", "prints\nab\n"),
        ("```python\n1 / 0\n```\n", "ZeroDivisionError: division by zero"),
        ("```python\n1 / 0\n```\n```text\nTraceback (most recent call last):\nKeyError: 1\n```\n", "ZeroDivisionError"),
        ("```python\npass\n```\n```text\nTraceback (most recent call last):\nKeyError: 1\n```\n", "KeyError: 1"),
        ("```python\n>>> 1 + 1\n3\n```\n", "Got:\n    2"),
        ("```python\nif\n```\n", "SyntaxError"),
        ("```python\nimport warnings; warnings.warn('old')\n```\n", "UserWarning: old"),
        ("```python\nraise SystemExit(0)\n```\n", "SystemExit"),
        ("1. list\n\n   ```python\n   1 + 1  # 3\n   ```\n", "line 4: gives 2"),
    ],
)
def test_a_wrong_example_is_found(text, words, tmp_path):
    assert words in run_document(text, "wrong", tmp_path)


RIGHT = """
```python
def f(x):
    return 1 / x

f(2)  # 0.5
f(2)  # a half
{1: (2, 3)}  # {1: (2, 3)}, as it was
print("one", 2)
```
```text
one ...
```

```python
>>> f(4)
0.25
```

<!-- not run: there is no such module -->
```python
import nothing_of_that_name
```

```python
f(0)
```

```text
Traceback (most recent call last):
  File "anything.py", line 1, in <module>
    f(0)
  File "anything.py", line 2, in f
    return 1 / x
           ~~^~~
ZeroDivisionError: division by zero
```
"""


def test_a_right_example_is_let_through(tmp_path):
    assert run_document(RIGHT, "right", tmp_path) == ""


# --- sessions with a debugger


def programs_of(text: str) -> dict[str, str]:
    """The blocks that the words before them give a file name: ```` `name.py`: ````."""
    found = {}
    lines = text.splitlines()
    for block in blocks_of(text):
        before = next((line for line in reversed(lines[: block.line - 2]) if line.strip()), "")
        name = re.search(r"`(\w+\.py)`:$", before)
        if name is not None and block.language == "python":
            found[name[1]] = block.text
    return found


def sessions_of(text: str) -> list[str]:
    return [block.text for block in blocks_of(text) if block.language == "console" and "(Pdb)" in block.text]


def talk(command: list[str], answers: list[str], prompt: str, folder: Path) -> str:
    """What stands on the terminal when a program's prompts have been answered; then it is killed."""
    ours, theirs = os.openpty()
    with subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=folder,
        start_new_session=True,
        env={**os.environ, "TERM": "dumb", "PYTHON_BASIC_REPL": "1", "PYTHON_COLORS": "0"},
    ) as process:
        os.close(theirs)
        seen = ""
        try:
            for answer in [*answers, None]:
                begin = len(seen)
                while prompt not in seen[begin:]:
                    assert select.select([ours], [], [], 30)[0], f"no prompt came after:\n{seen}"
                    seen += os.read(ours, 4096).decode()
                if answer is not None:
                    os.write(ours, answer.encode() + b"\n")
        finally:
            process.kill()
            os.close(ours)
    return seen.replace("\r\n", "\n")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_sessions_with_the_debugger_go_as_they_say(document, tmp_path):
    text = document.read_text()
    for name, program in programs_of(text).items():
        (tmp_path / name).write_text(program)
    for session in sessions_of(text):
        first, _, rest = session.partition("\n")
        command = shlex.split(first.removeprefix("$ "))
        assert command[0] == "python"
        answers = re.findall(r"^\(Pdb\) (.*)$", rest, flags=re.MULTILINE)
        seen = talk([sys.executable, *command[1:]], answers, "(Pdb) ", tmp_path)
        want = "...\n" + rest + "(Pdb) \n"
        assert doctest.OutputChecker().check_output(want, seen.rstrip() + " \n", doctest.ELLIPSIS), seen


def test_the_readme_has_a_session_with_the_debugger():
    text = (ROOT / "README.md").read_text()
    assert len(sessions_of(text)) == 1
    assert list(programs_of(text)) == ["prices.py"]


# --- links, commands


def links_of(text: str) -> list[str]:
    outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"\]\(([^)\s]+)\)", outside)


def anchors_of(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    heads = re.findall(r"^#+ +(.*)$", outside, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    text = document.read_text()
    for link in links_of(text):
        if re.match(r"https?://|mailto:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        if target in MADE and not target.exists():
            continue
        assert target.exists(), f"{document.name}: {link}"
        assert target.is_relative_to(ROOT), f"{document.name}: {link} leads out of the repository"
        if anchor:
            assert anchor in anchors_of(target.read_text()), f"{document.name}: {link}"


def test_every_document_is_in_the_index():
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in links_of(index.read_text())}
    missing = {path.name for path in DOCUMENTS[1:] if path != index and path not in linked}
    assert not missing
    missing = {path.name for path in EXAMPLES if path not in linked}
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_of_documents_exist(document):
    from taskloom.cli import _COMMANDS

    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for block in blocks_of(document.read_text()):
        if block.language not in ("sh", "console"):
            continue
        for line in block.text.splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words[:1] == ["make"]:
                asked = [word for word in words[1:] if "=" not in word]
                assert set(asked) <= targets, line
            elif words[:1] == ["taskloom"] and len(words) > 1 and not words[1].startswith("-"):
                assert words[1] in _COMMANDS, line
            elif len(words) > 1 and words[0].startswith("python") and words[1].endswith(".py"):
                # a file of the repository, or one that the document has its reader write
                assert (ROOT / words[1]).exists() or f"`{words[1]}`" in document.read_text(), line


def test_every_setting_is_in_the_documents():
    text = (ROOT / "docs" / "configuration.md").read_text()
    rows = {row[0]: row for row in re.findall(r"^\| `([\w.]+)` \|(.*?)\|(.*?)\|(.*?)\|", text, flags=re.MULTILINE)}
    assert rows.keys() == taskloom.config.SETTINGS.keys()
    for name, row in rows.items():
        variable = "TASKLOOM_" + name.upper().replace(".", "__")
        assert name == "pool" or f"`{variable}`" in row[3]


# --- examples


def expected_of(path: Path) -> str:
    """What an example prints, as the comment at its end says."""
    text = path.read_text()
    _, mark, rest = text.partition("\n# Prints:\n")
    assert mark, f"{path.name} does not say what it prints"
    lines = rest.splitlines()
    assert all(line.startswith("#") for line in lines), f"{path.name}: what it prints is the end of the file"
    return "".join(line[1:].removeprefix(" ") + "\n" for line in lines)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_print_what_they_say(path, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)], capture_output=True, text=True, cwd=tmp_path, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert doctest.OutputChecker().check_output(expected_of(path), done.stdout, doctest.ELLIPSIS), done.stdout
    assert not list(tmp_path.iterdir()), "an example leaves nothing behind"


def test_there_are_examples():
    assert len(EXAMPLES) >= 4


# --- docstrings


def modules() -> list[str]:
    """Every module of taskloom that can be imported for its names; ``__main__`` runs."""
    found = [
        module.name
        for module in pkgutil.walk_packages(taskloom.__path__, "taskloom.")
        if not module.name.endswith(".__main__")
    ]
    return ["taskloom", *found]


@pytest.mark.parametrize("name", modules())
def test_docstrings_do_what_they_say(name):
    module = importlib.import_module(name)
    out = io.StringIO()
    runner = doctest.DocTestRunner(verbose=False)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        runner.run(test, out=out.write)
    assert not runner.failures, out.getvalue()


def public() -> list[tuple[str, object]]:
    """What users get from ``taskloom`` and its public modules: functions and classes."""
    found = []
    for module in (taskloom, taskloom.diagnostics, taskloom.multiprocessing, taskloom.threaded, taskloom.config):
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value) or inspect.isclass(value):
                found.append((f"{module.__name__}.{name}", value))
    return found


@pytest.mark.parametrize(("name", "value"), public(), ids=[name for name, _ in public()])
def test_public_names_say_what_they_are_for(name, value):
    text = inspect.getdoc(value)
    assert text, f"{name} has no docstring"
    first = text.splitlines()[0]
    assert first.endswith((".", ":")), f"{name}: the first line is a sentence: {first!r}"
    if not inspect.isfunction(value):
        return
    wanted = [
        parameter
        for parameter in inspect.signature(value).parameters.values()
        if parameter.kind is not parameter.VAR_KEYWORD
    ]
    if wanted:
        assert "Args:" in text or "Arguments as for" in text, f"{name} does not say what its arguments are"
    for parameter in wanted if "Args:" in text else []:
        assert re.search(rf"\b{parameter.name}\b", text), f"{name} says nothing about {parameter.name}"
