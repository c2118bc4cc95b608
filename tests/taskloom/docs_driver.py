"""Runs the program of a document, in a Python of its own: see ``test_docs.py``, which starts it.

Standard input: JSON ``[name, steps]``. The name is that of the file with the program's lines, for tracebacks; a step is
``[line, source, printed]``: the number of its first line, its text, and what it prints or None. What is wrong goes to standard
error, and the exit status is 1.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import json
import sys
import traceback
from typing import Any


class Document:
    def __init__(self, name: str) -> None:
        self.name = name
        self.space = vars(sys.modules["__main__"])  # so what it defines is, for pickle and for users, __main__'s
        self.space.pop("docs_driver", None)
        self.space["__file__"] = name
        self.space["__check__"] = self.check
        self.said: dict[int, Any] = {}
        self.reached: set[int] = set()
        self.wrong: list[str] = []

    def step(self, line: int, source: str, printed: str | None) -> None:
        if source.lstrip().startswith(">>>"):
            self.doctest(line, source)
            return
        out = io.StringIO()
        source = "\n" * (line - 1) + source
        error = None
        with contextlib.redirect_stdout(out):
            try:
                checks = Checks(source.splitlines(), self.said)
                tree = ast.fix_missing_locations(checks.visit(ast.parse(source, self.name)))
                exec(compile(tree, self.name, "exec"), self.space)
            except BaseException as raised:
                error = raised
        got = out.getvalue()
        if error is None:
            self.wrong += [f"line {number}: is never reached" for number in self.said.keys() - self.reached]
            self.reached |= self.said.keys()
        else:
            tb = error.__traceback__
            while tb is not None and tb.tb_frame.f_code.co_filename != self.name:
                tb = tb.tb_next
            got += "".join(traceback.format_exception(type(error), error, tb))
            if printed is None or "Traceback" not in printed:
                self.wrong.append(f"line {line}: raised\n{got}")
                return
        if printed is not None and not doctest.OutputChecker().check_output(tidy(printed), tidy(got), doctest.ELLIPSIS):
            self.wrong.append(f"line {line}: prints\n{got}and the document says\n{printed}")

    def doctest(self, line: int, source: str) -> None:
        test = doctest.DocTestParser().get_doctest(source, self.space, "block", self.name, line - 1)
        out = io.StringIO()
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
        runner.run(test, out=out.write, clear_globs=False)
        self.space.update(test.globs)
        if runner.failures:
            self.wrong.append(out.getvalue())

    def check(self, line: int, value: Any) -> None:
        said = self.said[line]
        self.reached.add(line)
        if value != said or (repr(value) != repr(said) and not isinstance(value, set)):
            self.wrong.append(f"line {line}: gives {value!r}, and the document says {said!r}")


class Checks(ast.NodeTransformer):
    """Makes ``expression  # value`` a call that compares the two."""

    def __init__(self, lines: list[str], said: dict[int, Any]) -> None:
        self.lines = lines
        self.said = said

    def visit_Expr(self, node: ast.Expr) -> ast.Expr:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        rest = self.lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode().strip()
        said = literal(rest[1:].strip()) if rest.startswith("#") else None
        if said is not None:
            self.said[node.lineno] = said[0]
            check = ast.Name("__check__", ast.Load())
            node.value = ast.copy_location(ast.Call(check, [ast.Constant(node.lineno), node.value], []), node.value)
        return node


def literal(text: str) -> list[Any] | None:
    """The Python literal that a comment is, or begins with, in a list; None where there is none."""
    cuts = [len(text)] + [at for at, sign in enumerate(text) if sign in ",:" and text[at + 1 : at + 2] == " "]
    for cut in sorted(cuts, reverse=True):
        try:
            return [ast.literal_eval(text[:cut])]
        except (ValueError, SyntaxError):
            pass
    return None


def tidy(text: str) -> str:
    """A text without what differs from Python to Python and from folder to folder."""
    found = []
    for line in text.rstrip().splitlines():
        if line.strip() and not set(line) - set(" ^~"):
            continue
        if line.startswith('  File "'):
            line = "  File" + line[line.rindex(",") :]
        found.append(line.rstrip() + "\n")
    return "".join(found)


def main() -> None:
    name, steps = json.load(sys.stdin)
    document = Document(name)
    for step in steps:
        document.step(*step)
    if document.wrong:
        print("\n".join(document.wrong), file=sys.stderr)
        sys.exit(1)
