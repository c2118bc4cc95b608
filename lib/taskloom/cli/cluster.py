"""``taskloom cluster``."""

from __future__ import annotations

import click

from taskloom.cli import setting

__all__ = ["command"]


@click.command("cluster")
@click.option("--nworkers", type=click.IntRange(min=1), metavar="N", help="How many processes.  [default: one a CPU]")
@click.option("--nthreads", type=click.IntRange(min=1), metavar="N", help="How many tasks each runs at a time.")
@click.option(
    "--memory-limit",
    metavar="BYTES",
    help="How much memory each may have, such as 4GiB; 0: no limit.  [default: an equal share of what there is]",
)
@click.option(
    "--local-directory",
    type=click.Path(file_okay=False, writable=True),
    metavar="DIR",
    help="Where values go that do not fit into memory.  [default: where temporary files are]",
)
@click.option("--port", type=click.IntRange(0, 65535), metavar="PORT", help="0: any free one.  [default: 8786]")
@click.option(
    "--http-port",
    type=click.IntRange(-1, 65535),
    metavar="PORT",
    help="Where to serve state, metrics and wishes over HTTP; 0: any free port; -1: not at all.  [default: 8787]",
)
def command(
    nworkers: int | None,
    nthreads: int | None,
    memory_limit: str | None,
    local_directory: str | None,
    port: int | None,
    http_port: int | None,
) -> None:
    """Run a scheduler and workers on this machine, until Ctrl-C.

    For programs that come and go: each connects to it, and finds what is there. A program that wants a cluster for itself
    alone needs none of this; taskloom.Client() starts one for it.

    Defaults can be set in ~/.config/taskloom/config.toml, under [cluster] and [worker], and by variables:
    TASKLOOM_CLUSTER__PORT=9000, TASKLOOM_WORKER__MEMORY_LIMIT=2GiB.

    \b
      taskloom cluster --nworkers 4
      python -c 'import taskloom; print(taskloom.Client("tcp://127.0.0.1:8786").submit(sum, [1, 2]).result())'
    """
    import threading

    from taskloom.deploy.local import LocalCluster
    from taskloom.net import find_or_make_token

    port = setting("cluster.port") if port is None else port
    wished = setting("cluster.http_port") if http_port is None else http_port
    try:
        cluster = LocalCluster(
            nworkers,
            nthreads or setting("worker.nthreads"),
            memory_limit=setting("worker.memory_limit") if memory_limit is None else memory_limit,
            local_directory=local_directory or setting("worker.local_directory"),
            scheduler_port=port,
            http_port=None if wished < 0 else wished,
            http_may_fail=http_port is None,
            token=find_or_make_token(),
        )
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--memory-limit") from error
    with cluster:
        cluster.wait_for_workers()
        click.echo(f"taskloom cluster at {cluster.address}")
        if cluster.http_address is not None:
            click.echo(f"taskloom cluster: HTTP at {cluster.http_address}")
        threading.Event().wait()  # a signal raises here
