"""The ``taskloom`` command.

Each subcommand is a module here with a function ``command``, imported when it is asked for; what it needs beyond click,
it imports when it runs. Exit statuses: 0 all went well, 1 it did not, 2 the command line was wrong, 130 Ctrl-C.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

import taskloom
from taskloom.errors import TaskloomError

__all__ = ["main"]

# name -> module; more come with the cluster
_COMMANDS = {
    "demo": "taskloom.cli.demo",
}


class _Main(click.Group):
    """A group that imports its commands late and says what went wrong in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        where = _COMMANDS.get(cmd_name)
        if where is None:
            return None
        command: click.Command = importlib.import_module(where).command
        return command

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> Any:  # type: ignore[override]
        extra["standalone_mode"] = False
        try:
            status = super().main(args, prog_name or "taskloom", **extra)
            sys.stdout.flush()
        except click.exceptions.Exit as error:
            status = error.exit_code
        except (click.Abort, KeyboardInterrupt):
            click.echo("taskloom: stopped", err=True)
            status = 130
        except click.ClickException as error:
            error.show()
            status = error.exit_code
        except BrokenPipeError:
            # Who read our output has left (`taskloom demo | head`); nothing may be written at exit either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            status = 1
        except (TaskloomError, OSError, ImportError) as error:
            click.echo(f"taskloom: {type(error).__name__}: {error}", err=True)
            status = 1
        sys.exit(status or 0)


@click.command(
    cls=_Main,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Start here:
  taskloom demo                a real computation on this machine, about 20 seconds
  python -c 'import taskloom; help(taskloom)'""",
)
@click.version_option(taskloom.__version__, prog_name="taskloom", message="%(prog)s %(version)s")
def main() -> None:
    """Run graphs of tasks on one machine: in this thread, on threads, on processes.

    A graph is a dict: each key holds a value, or a task, which is a function and its arguments. Where an argument is
    a key, the task needs that key's value first. taskloom finds out what can run when, and runs it:

    \b
      import taskloom
      graph = {"x": 1, "y": (sum, ["x", 10])}
      taskloom.get_sync(graph, "y")                 # 11, in this thread
      taskloom.threaded.get(graph, "y")             # on threads
      taskloom.multiprocessing.get(graph, "y")      # on processes

    taskloom.delayed and taskloom.bag make such graphs of ordinary code.
    """
