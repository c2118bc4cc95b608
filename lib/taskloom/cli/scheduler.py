"""``taskloom scheduler``."""

from __future__ import annotations

import click

__all__ = ["command"]


@click.command("scheduler")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="HOST", help="Where to listen.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8786, show_default=True, metavar="PORT", help="0: any free one."
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0.0),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait, after a restart, for workers to come back with what they have.",
)
def command(host: str, port: int, grace: float) -> None:
    """Run a scheduler, until Ctrl-C.

    Workers and clients connect to it; who connects must know the token. It is made the first time, in
    ~/.config/taskloom/token, where this user's workers and clients find it; elsewhere, set TASKLOOM_TOKEN. Other machines
    reach the scheduler only through TLS.

    \b
      taskloom scheduler
      taskloom worker tcp://127.0.0.1:8786            # in another terminal
      python -c 'import taskloom; print(taskloom.Client("tcp://127.0.0.1:8786").submit(sum, [1, 2]).result())'
    """
    from taskloom.net import find_or_make_token
    from taskloom.net.addresses import is_loopback
    from taskloom.node.scheduler import run_scheduler

    scheme = "tcp" if is_loopback(host) else "tls"
    run_scheduler(
        f"{scheme}://{host}:{port}",
        find_or_make_token(),
        lambda address: click.echo(f"taskloom scheduler at {address}"),
        grace,
    )
