"""``taskloom kube``, and ``kubectl taskloom``."""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from taskloom.cli import Program
from taskloom.errors import KubernetesError

if TYPE_CHECKING:
    from taskloom.deploy.kube.api import Api

__all__ = ["command", "plugin"]


def _where(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that all have: which Kubernetes, and where in it."""
    function = click.option("--context", metavar="NAME", help="Of the kubeconfig.  [default: the present one]")(
        function
    )
    return click.option(
        "-n", "--namespace", metavar="NAME", help="Where it is.  [default: that of the kubeconfig's context]"
    )(function)


@contextmanager
def _api(context: str | None, namespace: str | None) -> Iterator[tuple[Api, str]]:
    from taskloom.deploy.kube.api import Api

    with Api(context) as api:
        yield api, namespace or api.namespace


def _limits(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """MIN:MAX."""
    if value is None:
        return None
    low, _, high = value.partition(":")
    if low.isdecimal() and high.isdecimal() and 0 < int(high) >= int(low):
        return int(low), int(high)
    raise click.BadParameter(f"{value!r} is not MIN:MAX, such as 0:10", ctx, param)


@click.group("kube", cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def command() -> None:
    """Clusters on Kubernetes, by the rights that your kubeconfig has.

    taskloom's operator has to run there; its chart installs it. "kubectl taskloom" is the same, wherever kubectl finds
    kubectl-taskloom in the PATH.

    \b
      taskloom kube create demo --workers 3
      python -c 'import taskloom; print(taskloom.Client("kube://demo").submit(sum, [1, 2]).result())'
      taskloom kube delete demo
    """


def plugin() -> None:
    """``kubectl-taskloom``, which kubectl runs for ``kubectl taskloom``."""
    command.main(prog_name="kubectl taskloom")


# --- create


@command.command("create", short_help="Make one.")
@click.argument("name")
@_where
@click.option("--workers", type=click.IntRange(min=0), metavar="N", help="How many.  [default: 1]")
@click.option("--adapt", metavar="MIN:MAX", callback=_limits, help="As many as there is work for, within these limits.")
@click.option("--image", metavar="IMAGE", help="What scheduler and workers run.  [default: the operator's setting]")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="How many tasks each worker runs at a time.")
@click.option("--memory-limit", metavar="BYTES", help="How much memory the values of a worker may take, such as 2Gi.")
@click.option("--cpu", metavar="CPUS", help="How many CPUs a worker needs, such as 2 or 500m.")
@click.option("--memory", metavar="BYTES", help="How much memory a worker needs, and gets at most, such as 4Gi.")
@click.option(
    "--env", multiple=True, metavar="NAME=VALUE", help="A variable of the workers; may be given several times."
)
@click.option(
    "-f",
    "--file",
    type=click.File("rb"),
    metavar="FILE",
    help="A TaskCluster, or its spec, as YAML, to begin with.  [-: standard input]",
)
@click.option("--dry-run", is_flag=True, help="Print it as YAML for kubectl, and do nothing.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Whether to wait until it is ready.")
@click.option(
    "--timeout", type=click.FloatRange(min=0.0), default=120.0, show_default=True, metavar="SECONDS", help="How long."
)
def create(
    name: str,
    namespace: str | None,
    context: str | None,
    workers: int | None,
    adapt: tuple[int, int] | None,
    image: str | None,
    threads: int | None,
    memory_limit: str | None,
    cpu: str | None,
    memory: str | None,
    env: Sequence[str],
    file: Any,
    dry_run: bool,
    wait: bool,
    timeout: float,
) -> None:
    """Make a cluster.

    \b
      taskloom kube create demo --workers 3 --cpu 1 --memory 2Gi
      taskloom kube create demo --adapt 0:10 --dry-run > demo.yaml
    """
    from taskloom.deploy.kube.cluster import manifest

    if workers is not None and adapt is not None:
        raise click.UsageError("--workers says how many there are, and --adapt that it changes: give one of them")
    variables = {}
    for one in env:
        key, mark, value = one.partition("=")
        if not key or not mark:
            raise click.BadParameter(f"{one!r} is not NAME=VALUE", param_hint="--env")
        variables[key] = value
    needs = {key: value for key, value in (("cpu", cpu), ("memory", memory)) if value is not None}
    resources = {"requests": needs, **({"limits": {"memory": memory}} if memory is not None else {})}
    found = manifest(
        name,
        n_workers=workers,
        adapt=adapt,
        image=image,
        threads=threads,
        memory_limit=memory_limit,
        resources=resources if needs else None,
        env=variables,
        spec=_spec_of(file),
    )
    if dry_run:
        if namespace is not None:
            found["metadata"]["namespace"] = namespace
        click.echo(_as_yaml(found), nl=False)
        return
    with _api(context, namespace) as (api, space):
        query = {"fieldValidation": "Strict"}
        try:
            api.run(api.request("create", "taskclusters", space, body=found, query=query))
        except KubernetesError as error:
            if error.reason != "AlreadyExists":
                raise
            raise click.ClickException(
                f"the TaskCluster {space}/{name} is there already: taskloom kube get {name} -n {space}"
            ) from error
        click.echo(f"TaskCluster {space}/{name} is made")
        if wait:
            _wait(api, space, name, timeout)
            click.echo(f'it is ready: taskloom.Client("kube://{space}/{name}")')


def _spec_of(file: Any) -> dict[str, Any] | None:
    if file is None:
        return None
    yaml = _yaml()
    name = getattr(file, "name", "standard input")
    try:
        found = yaml.safe_load(file.read())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{name} is no YAML: {error}", param_hint="--file") from error
    if isinstance(found, dict) and "kind" in found:
        if found["kind"] != "TaskCluster":
            raise click.BadParameter(f"{name} has a {found['kind']} in it, no TaskCluster", param_hint="--file")
        found = found.get("spec") or {}
    if not isinstance(found, dict):
        raise click.BadParameter(f"{name} has no TaskCluster in it", param_hint="--file")
    return found


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise KubernetesError(f"YAML needs a package ({error}): pip install 'taskloom[kube]'") from error
    return yaml


def _as_yaml(found: Mapping[str, Any]) -> str:
    return str(_yaml().safe_dump(dict(found), sort_keys=False))


def _wait(api: Api, namespace: str, name: str, timeout: float) -> None:
    """Wait until it is ready, and say meanwhile what is missing."""
    from taskloom.deploy.kube.cluster import is_ready, told, until

    said = ""

    def look(seen: Mapping[str, Any]) -> bool:
        nonlocal said
        words = next((one.get("message", "") for one in told(seen) if one["type"] == "Ready"), "")
        if words and words != said and not is_ready(seen):
            said = words
            click.echo(words, err=True)
        return is_ready(seen)

    api.run(until(api, namespace, name, look, time.monotonic() + timeout, timeout, "ready"))


# --- get


@command.command("get", short_help="Show what there is.")
@click.argument("names", nargs=-1)
@_where
@click.option("-A", "--all-namespaces", "everywhere", is_flag=True, help="In all namespaces.")
def get(names: Sequence[str], namespace: str | None, context: str | None, everywhere: bool) -> None:
    """Show clusters: all of them, or these with all that is said of them."""
    if names and everywhere:
        raise click.UsageError("a cluster of some name is in one namespace: --all-namespaces is for all of them")
    with _api(context, namespace) as (api, space):
        if not names:
            found = api.run(api.find("taskclusters", None if everywhere else space))
            if not found:
                click.echo(
                    f"there are no TaskClusters in {'any namespace' if everywhere else f'the namespace {space}'}",
                    err=True,
                )
                return
            click.echo(_table(found, everywhere))
            return
        for number, name in enumerate(names):
            one = api.run(api.cluster(space, name))
            pods = [pod for part in ("scheduler", "worker") for pod in api.run(api.pods(space, name, part))]
            click.echo(("\n" if number else "") + _table([one], False))
            click.echo(_details(one, pods))


def _table(found: Sequence[Mapping[str, Any]], everywhere: bool) -> str:
    rows = [["NAME", "PHASE", "WORKERS", "AGE", ""]]
    for one in sorted(found, key=lambda one: (one["metadata"]["namespace"], one["metadata"]["name"])):
        metadata, status = one["metadata"], one.get("status") or {}
        conditions = {part["type"]: part for part in status.get("conditions") or ()}
        ready = conditions.get("Ready") or {}
        words = "" if ready.get("status") == "True" else str(ready.get("message") or "")
        workers = f"{status.get('readyReplicas', 0)}/{status.get('desiredReplicas', '?')}"
        if (one["spec"].get("workers") or {}).get("autoscale"):
            workers += " (adapts)"
        rows.append(
            [
                metadata["name"],
                status.get("phase") or "Unknown",
                workers,
                _age(metadata.get("creationTimestamp")),
                words,
            ]
        )
        if everywhere:
            rows[-1].insert(0, metadata["namespace"])
    if everywhere:
        rows[0].insert(0, "NAMESPACE")
    return _aligned(rows)


def _details(one: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> str:
    status = one.get("status") or {}
    rows = [["", "CONDITION", "", "SINCE", "WHY"]]
    for part in status.get("conditions") or ():
        why = f"{part.get('reason', '')}: {part.get('message', '')}"
        rows.append(["", part["type"], part["status"], _age(part.get("lastTransitionTime")), why])
    if len(rows) == 1:
        rows.append(["", "-", "", "", "the operator has not looked at it: is it running?"])
    more = [["", "POD", "", "AGE", "NODE"]]
    for pod in pods:
        state = pod.get("status") or {}
        ready = any(part["type"] == "Ready" and part["status"] == "True" for part in state.get("conditions") or ())
        phase = "Terminating" if "deletionTimestamp" in pod["metadata"] else str(state.get("phase", ""))
        words = "ready" if ready and phase == "Running" else phase
        node = str((pod.get("spec") or {}).get("nodeName") or "")
        more.append(["", pod["metadata"]["name"], words, _age(pod["metadata"].get("creationTimestamp")), node])
    return "\n" + _aligned(rows) + ("\n\n" + _aligned(more) if len(more) > 1 else "")


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    rows = [[" ".join(text.split()) for text in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _age(since: str | None) -> str:
    """How long ago a time is, as kubectl says it."""
    from datetime import UTC, datetime

    if not since:
        return "?"
    seconds = max(0, int((datetime.now(UTC) - datetime.fromisoformat(since)).total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


# --- scale, delete


@command.command("scale", short_help="Change how many workers one has.")
@click.argument("name")
@click.argument("workers", required=False, type=click.IntRange(min=0))
@_where
@click.option("--adapt", metavar="MIN:MAX", callback=_limits, help="As many as there is work for, within these limits.")
@click.option(
    "--idle-seconds",
    type=click.IntRange(min=0),
    metavar="SECONDS",
    help="For how long a worker has nothing to do before it may go.  [default: 60]",
)
def scale(
    name: str,
    workers: int | None,
    namespace: str | None,
    context: str | None,
    adapt: tuple[int, int] | None,
    idle_seconds: int | None,
) -> None:
    """Change how many WORKERS a cluster has. Those that go have their values moved before.

    \b
      taskloom kube scale demo 10
      taskloom kube scale demo --adapt 0:10 --idle-seconds 30
    """
    from taskloom.deploy.kube.cluster import scaled

    if (workers is None) == (adapt is None):
        raise click.UsageError("give how many workers there are to be, or --adapt MIN:MAX")
    if idle_seconds is not None and adapt is None:
        raise click.UsageError("--idle-seconds is for --adapt")
    change: dict[str, Any] = {"replicas": workers}
    words = f"{workers} worker{'' if workers == 1 else 's'}"
    if adapt is not None:
        limits = {"min": adapt[0], "max": adapt[1]}
        change = {"autoscale": limits if idle_seconds is None else {**limits, "idleSeconds": idle_seconds}}
        words = f"{adapt[0]} to {adapt[1]} workers"
    with _api(context, namespace) as (api, space):
        api.run(scaled(api, api.run(api.cluster(space, name)), change))
        click.echo(f"TaskCluster {space}/{name} is to have {words}")


@command.command("delete", short_help="Delete them, with all that was made for them.")
@click.argument("names", nargs=-1, required=True)
@_where
def remove(names: Sequence[str], namespace: str | None, context: str | None) -> None:
    """Delete clusters, with all that was made for them."""
    from taskloom.deploy.kube.cluster import delete

    with _api(context, namespace) as (api, space):
        for found in [api.run(api.cluster(space, name)) for name in names]:
            api.run(delete(api, found))
            click.echo(f"TaskCluster {space}/{found['metadata']['name']} is deleted")


# --- logs


@command.command("logs", short_help="What a scheduler or a worker has written.")
@click.argument("name")
@_where
@click.option("--worker", metavar="NAME", help="Of this worker, or the end of its name.  [default: of the scheduler]")
@click.option("--tail", type=click.IntRange(min=0), metavar="N", help="The last lines only.")
@click.option("-f", "--follow", is_flag=True, help="Go on until Ctrl-C.")
@click.option("--previous", is_flag=True, help="Of the container that was there before it was started again.")
def logs(
    name: str,
    namespace: str | None,
    context: str | None,
    worker: str | None,
    tail: int | None,
    follow: bool,
    previous: bool,
) -> None:
    """Show what the scheduler of a cluster has written, or a worker."""
    from taskloom.deploy.kube.cluster import log_query, pod_of

    with _api(context, namespace) as (api, space):
        pod, container = api.run(pod_of(api, space, name, worker))

        async def show() -> None:
            async for line in api.lines(space, pod, log_query(container, tail, previous, follow)):
                click.echo(line, nl=False)

        api.run(show())


# --- connect


@command.command("connect", short_help="Forward a port to one, or run a program with it.")
@click.argument("name")
@click.argument("program", nargs=-1, type=click.UNPROCESSED)
@_where
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, metavar="PORT", help="Of this machine.  [default: any free one]"
)
@click.option(
    "--timeout", type=click.FloatRange(min=0.0), default=30.0, show_default=True, metavar="SECONDS", help="To reach it."
)
@click.pass_context
def connect(
    ctx: click.Context,
    name: str,
    program: Sequence[str],
    namespace: str | None,
    context: str | None,
    port: int,
    timeout: float,
) -> None:
    """Forward a port of this machine to the scheduler of a cluster, until Ctrl-C, or for a PROGRAM.

    In the program, Client() is connected with the cluster. It needs to know nothing of Kubernetes, and no package for it.

    \b
      taskloom kube connect demo -- python program.py
      taskloom kube connect demo --port 8786
    """
    from taskloom.deploy.kube.reach import way_to
    from taskloom.net import tokens_of

    with _api(context, namespace) as (api, space):
        try:
            way = api.run(way_to(api, space, name, timeout, port=port, owns=False))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise click.BadParameter(f"{port} is taken by another program", param_hint="--port") from error
        with tempfile.TemporaryDirectory(prefix="taskloom-kube-") as folder:
            path = os.path.join(folder, "token")
            _write(path, tokens_of(way.token))
            variables = {"TASKLOOM_CLUSTER__ADDRESS": way.address, "TASKLOOM_TOKEN_FILE": path}
            process = None
            try:
                if program:
                    kept = {key: value for key, value in os.environ.items() if key != "TASKLOOM_TOKEN"}
                    process = _start(program, {**kept, **variables})
                else:
                    click.echo(f"TaskCluster {space}/{name} at {way.address}, until Ctrl-C. In another terminal:")
                    click.echo(
                        "  export " + " ".join(f"{key}={shlex.quote(value)}" for key, value in variables.items())
                    )
                    click.echo("  python -c 'import taskloom; print(taskloom.Client().submit(sum, [1, 2]).result())'")
                    sys.stdout.flush()
                status = _stay(process, path, way)
            finally:
                if process is not None and process.poll() is None:
                    process.terminate()
                    process.wait()
                way.close()
        ctx.exit(status if status >= 0 else 128 - status)


def _start(program: Sequence[str], environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(program, env=dict(environ))
    except OSError as error:
        raise click.ClickException(f"{program[0]} cannot be run: {error.strerror}") from error


def _stay(process: subprocess.Popen[bytes] | None, path: str, way: Any) -> int:
    """Stay until the program has ended; its exit status. The tokens may change meanwhile."""
    from threading import Event

    from taskloom.net import tokens_of

    written = tokens_of(way.token)
    interrupted = False
    while True:
        try:
            if process is None:
                Event().wait(1.0)
            else:
                return process.wait(1.0)
        except subprocess.TimeoutExpired:
            pass
        except KeyboardInterrupt:
            if process is None or interrupted:
                raise
            interrupted = True  # the program was told, too, and decides
        if tokens_of(way.token) != written:
            written = tokens_of(way.token)
            _write(path, written)


def _write(path: str, tokens: Sequence[str]) -> None:
    with open(os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write("\n".join(tokens) + "\n")
    os.rename(f"{path}.new", path)
