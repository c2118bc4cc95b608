"""The ``taskloom`` command.

Each subcommand is a module here with a function ``command``, imported when it is asked for; what it needs beyond click,
it imports when it runs. Exit statuses: 0 all went well, 1 it did not, 2 the command line was wrong, 130 Ctrl-C, 143
the signal TERM, 129 the terminal was closed.
"""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import click

import taskloom
from taskloom import config
from taskloom.errors import TaskloomError

__all__ = ["Program", "main", "setting"]

_show_any_warning = warnings.showwarning

# name -> its module, and one line about it: the list of commands is shown without importing them
_COMMANDS = {
    "cluster": ("taskloom.cli.cluster", "A scheduler and workers on this machine."),
    "demo": ("taskloom.cli.demo", "A real computation on every scheduler of this machine."),
    "kube": ("taskloom.cli.kube", "Clusters on Kubernetes."),
    "scheduler": ("taskloom.cli.scheduler", "The scheduler of a cluster."),
    "worker": ("taskloom.cli.worker", "A worker for a scheduler."),
}


class Program(click.Group):
    """A group of commands that says what went wrong in one line."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> Any:  # type: ignore[override]
        extra["standalone_mode"] = False
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # nohup's is kept
                signal.signal(number, _end)
        warnings.showwarning = _show_warning
        try:
            status = super().main(args, prog_name, **extra)
            sys.stdout.flush()
        except (click.Abort, KeyboardInterrupt):
            _say("taskloom: stopped")
            status = 130
        except click.ClickException as error:
            error.show()
            status = error.exit_code
        except BrokenPipeError:  # who read our output has left: `taskloom demo | head`
            status = 1
        except (TaskloomError, OSError, ImportError) as error:
            _say(f"taskloom: {type(error).__name__}: {error}")
            status = 1
        try:
            sys.stdout.flush()
        except OSError:
            # What is still in the buffer goes nowhere, and must not be tried again when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(status or 0)


class _Main(Program):
    """One that imports its commands late."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(_COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _COMMANDS[name][1]) for name in self.list_commands(ctx)])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name = args[0]
        if name not in _COMMANDS and not name.startswith("-"):
            close = difflib.get_close_matches(name.lower(), _COMMANDS, n=1)
            hint = f"do you mean {close[0]!r}?" if close else f"there is: {', '.join(sorted(_COMMANDS))}."
            raise click.UsageError(f"there is no command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


def setting(name: str) -> Any:
    """A setting; where a variable or a file has nonsense, that is told in a line.

    Args:
        name: of the setting, such as "cluster.port".

    Raises:
        click.ClickException: a setting, be it this one or another, is not as it should be; says which, and where it stands.
    """
    try:
        return config.get(name)
    except (TypeError, ValueError) as error:
        raise click.ClickException(str(error)) from error


def _show_warning(
    message: Any, category: type[Warning], filename: str, lineno: int, file: Any = None, line: str | None = None
) -> None:
    """A warning that is for the user of a command is a line; others are as Python has them."""
    if issubclass(category, config.SettingWarning) and file is None:
        _say(f"taskloom: {message}")
    else:
        _show_any_warning(message, category, filename, lineno, file, line)


def _end(number: int, frame: object) -> None:
    """Told to end: as Ctrl-C, so that files and processes are cleaned up; without a word."""
    sys.exit(128 + number)


def _say(text: str) -> None:
    try:
        click.echo(text, err=True)
    except OSError:  # nobody is there to read it
        pass


@click.group(
    cls=_Main,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Start here:
  taskloom demo        watch it work, about 15 seconds; leaves nothing behind
  python -c 'import taskloom; help(taskloom)'

To complete commands with the Tab key (zsh: zsh_source):

\b
  eval "$(_TASKLOOM_COMPLETE=bash_source taskloom)"
""",
)
@click.version_option(taskloom.__version__, prog_name="taskloom", message="%(prog)s %(version)s")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Run graphs of tasks: in this thread, on threads, on processes, on a cluster.

    A graph is a dict. Each key has a value, or a task: a function and its arguments. Where an argument is a key, the
    task needs that key's value first. taskloom finds out what can run when, and runs it:

    \b
      import taskloom
      graph = {"x": 1, "y": (sum, ["x", 10])}
      taskloom.get_sync(graph, "y")                 # 11, in this thread
      taskloom.threaded.get(graph, "y")             # 11, on threads
      taskloom.multiprocessing.get(graph, "y")      # 11, on processes

    taskloom.delayed and taskloom.bag make such graphs of ordinary code.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
