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
    help="How much to compute: about 3 seconds, 20 seconds, or a few minutes on two CPUs.",
)
@click.option(
    "--workers", type=click.IntRange(min=1), metavar="N", help="Tasks at a time.  [default: as many as there are CPUs]"
)
@click.option(
    "--keep",
    type=click.Path(file_okay=False, dir_okay=True, writable=True),
    metavar="DIR",
    help="Write the log files to this folder and leave them there.",
)
@click.pass_context
def command(ctx: click.Context, size: str, workers: int | None, keep: str | None) -> None:
    """See taskloom work: a real computation on all schedulers of this machine.

    Analyses log files that it makes up, and multiplies two matrices; each in a plain loop, in one thread, on threads
    and on processes. All results are compared. Needs no network, and leaves nothing behind.
    """
    from taskloom.demo.show import demo

    if not demo(size, workers, keep):
        ctx.exit(1)
