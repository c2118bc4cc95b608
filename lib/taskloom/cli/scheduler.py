"""``taskloom scheduler``."""

from __future__ import annotations

import os

import click

from taskloom.cli import setting

__all__ = ["command"]


@click.command("scheduler")
@click.option("--host", metavar="HOST", help="Where to listen.  [default: 127.0.0.1, this machine alone]")
@click.option("--port", type=click.IntRange(0, 65535), metavar="PORT", help="0: any free one.  [default: 8786]")
@click.option("--http-host", metavar="HOST", help="Where to serve HTTP.  [default: as --host]")
@click.option(
    "--http-port",
    type=click.IntRange(-1, 65535),
    metavar="PORT",
    help="Where to serve state, metrics and wishes over HTTP; 0: any free port; -1: not at all.  [default: 8787]",
)
@click.option(
    "--metrics-by-worker/--no-metrics-by-worker",
    default=None,
    help="Whether metrics are also there for each worker, by its name: where workers come and go, names add up in Prometheus.  "
    "[default: no]",
)
@click.option(
    "--probe-port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Where it answers in plain HTTP, at all addresses and without the token, whether it lives (/api/v1/health) and is ready "
    "(/api/v1/ready).  [default: nowhere]",
)
@click.option(
    "--certificate",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="The certificate (PEM) that it shows off loopback.  [default: one that it makes itself]",
)
@click.option(
    "--key",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="The certificate's key (PEM).  [default: in the same file]",
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0.0),
    metavar="SECONDS",
    help="How long to wait, after a restart, for workers to come back with what they have.  [default: 1]",
)
def command(
    host: str | None,
    port: int | None,
    http_host: str | None,
    http_port: int | None,
    metrics_by_worker: bool | None,
    probe_port: int | None,
    certificate: str | None,
    key: str | None,
    grace: float | None,
) -> None:
    """Run a scheduler, until Ctrl-C.

    Workers and clients connect to it; who connects must know the token. It is made the first time, in
    ~/.config/taskloom/token, where this user's workers and clients find it; elsewhere, set TASKLOOM_TOKEN, or
    TASKLOOM_TOKEN_FILE. Other machines reach the scheduler only through TLS: --host 0.0.0.0 or this machine's address.

    Defaults can be set in ~/.config/taskloom/config.toml, under [cluster], and by variables: TASKLOOM_CLUSTER__PORT=9000.

    \b
      taskloom scheduler
      taskloom worker tcp://127.0.0.1:8786            # in another terminal
      python -c 'import taskloom; print(taskloom.Client("tcp://127.0.0.1:8786").submit(sum, [1, 2]).result())'
    """
    from taskloom.net import find_or_make_token
    from taskloom.net.addresses import is_here
    from taskloom.node.scheduler import run_scheduler

    host = setting("cluster.host") if host is None else host
    port = setting("cluster.port") if port is None else port
    grace = setting("cluster.grace") if grace is None else grace
    wished = setting("cluster.http_port") if http_port is None else http_port
    certificate = certificate or setting("cluster.certificate")
    scheme = "tcp" if is_here(host) else "tls"

    def tell(address: str, http: str | None) -> None:
        click.echo(f"taskloom scheduler at {address}")
        if http is not None:
            where = ""
            if http.startswith("https") and certificate is None:
                where = _publish(http.rpartition(":")[2])
            click.echo(f"taskloom scheduler: HTTP at {http}{where}")

    run_scheduler(
        f"{scheme}://{host}:{port}",
        find_or_make_token(),
        tell,
        grace,
        None if wished < 0 else (host if http_host is None else http_host, wished),
        http_may_fail=http_port is None,
        each_worker=setting("cluster.metrics_by_worker") if metrics_by_worker is None else metrics_by_worker,
        probe_port=setting("cluster.probe_port") if probe_port is None else probe_port,
        certificate=certificate,
        key=key or setting("cluster.key"),
    )


def _publish(port: str) -> str:
    """Write the certificate that this process has made itself beside the user's token; words about it."""
    from taskloom.net.security import temporary_security, write_certificate
    from taskloom.net.tokens import token_path

    path = os.path.join(os.path.dirname(token_path()), f"https-{port}.pem")
    try:
        write_certificate(path, temporary_security().der)
    except OSError as error:
        return f" (its certificate cannot be written to {path}: {error.strerror})"
    return f", its certificate in {path}"
