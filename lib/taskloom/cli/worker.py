"""``taskloom worker``."""

from __future__ import annotations

import math

import click

from taskloom.cli import setting

__all__ = ["command"]


@click.command("worker")
@click.argument("address", required=False)
@click.option(
    "--nworkers", type=click.IntRange(min=1), metavar="N", help="How many processes, each a worker.  [default: 1]"
)
@click.option(
    "--nthreads",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many tasks each runs at a time.  [default: so many that all CPUs are used]",
)
@click.option(
    "--memory-limit",
    metavar="BYTES",
    help="How much memory each may have, such as 4GiB; 0: no limit.  [default: an equal share of what there is]",
)
@click.option(
    "--name", default="", metavar="NAME", help="What it is called.  [default: the machine's name and a number]"
)
@click.option("--host", metavar="HOST", help="Where other workers reach it.  [default: as the scheduler]")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    metavar="PORT",
    help="And at which port.  [default: any free one]",
)
@click.option(
    "--resource",
    "resources",
    multiple=True,
    metavar="NAME=AMOUNT",
    help="What it has that tasks can ask for, such as GPU=1; may be given several times.",
)
@click.option(
    "--local-directory",
    type=click.Path(file_okay=False, writable=True),
    metavar="DIR",
    help="Where values go that do not fit into memory.  [default: where temporary files are]",
)
@click.option(
    "--state-directory",
    type=click.Path(file_okay=False, writable=True),
    metavar="DIR",
    help="Where it is noted which tasks run. If it outlives the container, a task that made it run out of memory is known "
    "afterwards. For this command alone.",
)
@click.option(
    "--probe-port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Where it answers in plain HTTP, at all addresses, whether it lives (/api/v1/health) and is ready (/api/v1/ready).  "
    "[default: nowhere]",
)
@click.option(
    "--leave-timeout",
    type=click.FloatRange(min=0.0),
    metavar="SECONDS",
    help="How long it may take to have its values moved when it is told to end.  [default: 25]",
)
def command(
    address: str | None,
    nworkers: int | None,
    nthreads: int | None,
    memory_limit: str | None,
    name: str,
    host: str | None,
    port: int,
    resources: tuple[str, ...],
    local_directory: str | None,
    state_directory: str | None,
    probe_port: int | None,
    leave_timeout: float | None,
) -> None:
    """Run workers for the scheduler at ADDRESS, until Ctrl-C.

    They run tasks in processes of their own; one that dies is replaced, and the reason is told here and to whoever wanted
    its task. They come back to a scheduler that is started anew, with the values that they hold. Told to end (Ctrl-C, or the
    signal TERM), they have other workers take their values first; Ctrl-C once more ends them at once.

    The token is found as by "taskloom scheduler". ADDRESS may be left out where cluster.address is set: in
    ~/.config/taskloom/config.toml, or by TASKLOOM_CLUSTER__ADDRESS; likewise all else, under [worker].

    \b
      taskloom worker tcp://127.0.0.1:8786 --nworkers 4 --nthreads 1 --memory-limit 2GiB
    """
    from taskloom.errors import TokenError
    from taskloom.net import find_token
    from taskloom.net.addresses import is_here, parse_address
    from taskloom.net.tokens import how_to_get_token
    from taskloom.node.supervisor import run_workers
    from taskloom.system import cpu_count, memory_total, parse_bytes

    address = address or setting("cluster.address")
    if not address:
        raise click.UsageError(
            "which scheduler? Type: taskloom worker tcp://HOST:PORT, as the scheduler says when it starts"
        )
    where = parse_address(address)
    token = find_token()
    if token is None:
        machine = None if where.scheme == "inproc" or is_here(where.host) else where.host
        raise TokenError(
            f"there is no token for {address}. Type: {how_to_get_token(machine)} taskloom worker {address}"
        )
    count = nworkers or setting("worker.nworkers")
    threads = nthreads or setting("worker.nthreads") or max(1, cpu_count() // count)
    wished = setting("worker.memory_limit") if memory_limit is None else memory_limit
    try:
        limit = memory_total() // count if wished == "auto" else parse_bytes(wished)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--memory-limit") from error
    if port and count > 1:
        raise click.BadParameter(f"{count} workers cannot all listen at port {port}; leave it out", param_hint="--port")
    amounts: dict[str, float] = {}
    for item in resources:
        label, _, amount = item.partition("=")
        try:
            amounts[label] = float(amount)
            if not label or not 0 <= amounts[label] < math.inf:
                raise ValueError(item)
        except ValueError as error:
            raise click.BadParameter(f"{item!r} is not NAME=AMOUNT, such as GPU=1", param_hint="--resource") from error
    if host is None:
        host = "127.0.0.1" if is_here(where.host) else "0.0.0.0"
    scheme = "tcp" if is_here(host) else "tls"
    probes = setting("worker.probe_port") if probe_port is None else probe_port
    run_workers(
        address,
        token,
        leave=setting("worker.leave_timeout") if leave_timeout is None else leave_timeout,
        count=count,
        threads=threads,
        limit=limit,
        name=name,
        resources=amounts,
        listen_at=f"{scheme}://{host}:{port}",
        folder=local_directory or setting("worker.local_directory"),
        notes=state_directory or setting("worker.state_directory"),
        probe=None if probes is None else ("", probes),
    )
