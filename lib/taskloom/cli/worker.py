"""``taskloom worker``."""

from __future__ import annotations

import click

__all__ = ["command"]


@click.command("worker")
@click.argument("address")
@click.option(
    "--nthreads", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Tasks at a time."
)
@click.option("--name", default="", metavar="NAME", help="What it is called.  [default: worker- and its process id]")
@click.option("--host", default=None, metavar="HOST", help="Where other workers reach it.  [default: as the scheduler]")
@click.option(
    "--resource",
    "resources",
    multiple=True,
    metavar="NAME=AMOUNT",
    help="What it has that tasks can ask for, such as GPU=1; may be given several times.",
)
def command(address: str, nthreads: int, name: str, host: str | None, resources: tuple[str, ...]) -> None:
    """Run a worker for the scheduler at ADDRESS, until Ctrl-C.

    It comes back to a scheduler that is started anew, with the values that it holds. The token is found as by
    "taskloom scheduler".

    \b
      taskloom worker tcp://127.0.0.1:8786 --nthreads 4
    """
    from taskloom.errors import TokenError
    from taskloom.net import find_token
    from taskloom.net.addresses import is_loopback, parse_address
    from taskloom.net.tokens import how_to_get_token
    from taskloom.node.worker import run_worker

    where = parse_address(address)
    token = find_token()
    if token is None:
        machine = None if where.scheme == "inproc" or is_loopback(where.host) else where.host
        raise TokenError(
            f"there is no token for {address}. Type: {how_to_get_token(machine)} taskloom worker {address}"
        )
    amounts: dict[str, float] = {}
    for item in resources:
        label, _, amount = item.partition("=")
        try:
            amounts[label] = float(amount)
        except ValueError as error:
            raise click.BadParameter(f"{item!r} is not NAME=AMOUNT, such as GPU=1", param_hint="--resource") from error
    if host is None:
        host = "127.0.0.1" if is_loopback(where.host) else "0.0.0.0"
    scheme = "tcp" if is_loopback(host) else "tls"
    run_worker(
        address,
        token,
        lambda own: click.echo(f"taskloom worker at {own}"),
        listen_at=f"{scheme}://{host}:0",
        name=name,
        threads=nthreads,
        resources=amounts,
    )
