"""``taskloom demo``."""

from __future__ import annotations

import click

__all__ = ["command"]


@click.command("demo")
@click.option(
    "--size",
    type=click.Choice(["small", "medium", "large"]),
    default="medium",
    show_default=True,
    help="How much to compute: on two CPUs about 2 seconds, 15 seconds, a minute.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 1000),
    metavar="N",
    help="How many tasks run at a time. By default as many as there are CPUs.",
)
@click.option(
    "--keep",
    type=click.Path(file_okay=False, writable=True),
    metavar="DIR",
    help="Write the log files to this folder and leave them there.",
)
@click.pass_context
def command(ctx: click.Context, size: str, workers: int | None, keep: str | None) -> None:
    """See taskloom work: a real computation on every scheduler of this machine.

    Analyses log files that it makes up, and multiplies two matrices: each in a plain loop, in this thread, on threads
    and on processes, with the times side by side. Every result is checked. Needs no network, leaves nothing behind.
    """
    from taskloom.demo.show import demo

    try:
        right = demo(size, workers, keep)
    except OSError as error:
        if error.filename is None:  # a pipe whose reader has left, and the like
            raise
        raise click.ClickException(f"the log files cannot be written: {error.filename}: {error.strerror}") from None
    if not right:
        ctx.exit(1)
