"""From ``kube://namespace/name`` to an address and a token.

From outside all goes through the API server: the token is read by the user's own rights, and connections are forwarded to the
scheduler's pod. In a pod of the same Kubernetes it is the scheduler's Service, with the token that is mounted there, or that of
the Secret.
"""

from __future__ import annotations

import asyncio
import base64
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from taskloom import config
from taskloom.deploy.kube.api import Api, inside, passing
from taskloom.deploy.kube.forward import Forwarder
from taskloom.deploy.kube.names import PORT, scheduler_name, token_name
from taskloom.errors import AddressError, ConnectTimeoutError, KubernetesError, TokenError
from taskloom.net import Token, TokenFile, find_token
from taskloom.net.tokens import check_token

__all__ = ["Pauses", "Reached", "parse", "reach", "troubles", "way_to"]

OFTEN, SELDOM = 0.2, 1.0  # seconds between looks whether it is there, at first and after a while
LATE = 2.0  # seconds that the API server may take longer than a scheduler


class Pauses:
    """Pauses between looks, which get longer."""

    def __init__(self) -> None:
        self._next = OFTEN

    async def pause(self) -> None:
        """Wait."""
        await asyncio.sleep(self._next)
        self._next = min(SELDOM, 1.1 * self._next)


class SecretTokens(TokenFile):
    """The tokens of a cluster's Secret. They are read again for each connection that is forwarded, and written nowhere."""

    def __init__(self, text: str, where: str) -> None:
        self.path = where
        self._tokens = self._read_text(text)

    def tokens(self) -> tuple[str, ...]:
        """What was in it when it was looked at last."""
        return self._tokens

    def put(self, text: str) -> None:
        """It was looked at again.

        Raises:
            TokenError: there is no token in it that is fit for use.
        """
        self._tokens = self._read_text(text)

    def _read_text(self, text: str) -> tuple[str, ...]:
        lines = [line for line in text.split("\n") if line.strip()] or [""]
        return tuple([check_token(line, f"the token in {self.path}") for line in lines])


class Reached:
    """A way to a cluster; for a client, what it connects to.

    Attributes:
        address: of its scheduler, from here.
        token: what is to be known.
        namespace, name: of the TaskCluster.
        direct: False where workers cannot be reached from here; None: that has to be tried.
    """

    def __init__(
        self,
        address: str,
        token: Token,
        namespace: str,
        name: str,
        api: Api | None = None,
        forwarder: Forwarder | None = None,
        owns: bool = True,
    ) -> None:
        self.address = address
        self.token = token
        self.namespace = namespace
        self.name = name
        self.direct = None if forwarder is None else False
        self._api = api
        self._forwarder = forwarder
        self._owns = owns

    def __repr__(self) -> str:
        return f"<TaskCluster {self.namespace}/{self.name} at {self.address}>"

    @property
    def problem(self) -> str:
        """Why the last connection could not be forwarded, or broke; "": it could."""
        return "" if self._forwarder is None else self._forwarder.problem

    def close(self) -> None:
        """Forward nothing more."""
        api, self._api = self._api, None
        if api is None:
            return
        try:
            if self._forwarder is not None:
                api.run(self._forwarder.close())
        finally:
            if self._owns:
                api.close()


def parse(address: str) -> tuple[str | None, str, str | None]:
    """Namespace (None: that of the context), name and context of an address.

    Raises:
        AddressError: it is none.

    >>> parse("kube://lab/demo"), parse("kube://demo?context=home")
    (('lab', 'demo', None), (None, 'demo', 'home'))
    """
    found = urlsplit(address)
    parts = [unquote(part) for part in (found.netloc + found.path).split("/") if part]
    query = parse_qs(found.query)
    context = query.pop("context", [None])[-1]
    if found.scheme != "kube" or not 1 <= len(parts) <= 2 or query or found.fragment:
        raise AddressError(
            f"{address!r} is no address of a cluster on Kubernetes: kube://NAMESPACE/NAME, or kube://NAME, with ?context=NAME "
            "where it is not the present one"
        )
    return (parts[0] if len(parts) == 2 else None), parts[-1], context


def reach(address: str, timeout: float = 10.0, token: Token | None = None) -> Reached:
    """Find the way to a TaskCluster.

    Args:
        address: ``kube://namespace/name``.
        timeout: seconds for its scheduler to be there: it may just have been made.
        token: another one than the cluster's.

    Raises:
        AddressError: that is no such address.
        KubernetesError: the API server refuses something, or there is no such cluster.
        ConnectTimeoutError: its scheduler is not there; says what the operator and the pods say about it.
    """
    namespace, name, context = parse(address)
    if context is None and inside() and token is None:
        token = _mounted(address, namespace, name)
    if context is None and inside() and token is not None and namespace is not None:
        return Reached(service_address(namespace, name), token, namespace, name)  # nothing has to be asked
    api = Api(context)
    try:
        return api.run(way_to(api, namespace or api.namespace, name, timeout, token))
    except BaseException:
        api.close()
        raise


def service_address(namespace: str, name: str) -> str:
    """Of a scheduler, inside of the Kubernetes cluster.

    >>> service_address("lab", "demo")
    'tls://demo-scheduler.lab.svc:8786'
    """
    return f"tls://{scheduler_name(name)}.{namespace}.svc:{PORT}"


def _mounted(address: str, namespace: str | None, name: str) -> Token | None:
    """The token that this pod was given; None: it has none, or that of another cluster."""
    if not (os.environ.get("TASKLOOM_TOKEN") or os.environ.get("TASKLOOM_TOKEN_FILE")):
        return None
    own = config.get("cluster.address")  # of pods that belong to a cluster
    if own is not None and own != address and namespace is not None and own != service_address(namespace, name):
        return None
    return find_token()


async def way_to(
    api: Api,
    namespace: str,
    name: str,
    timeout: float,
    token: Token | None = None,
    port: int = 0,
    owns: bool = True,
) -> Reached:
    """The same in the event loop of an Api.

    Args:
        port: of this machine, where it is forwarded; 0: any that is free.
        owns: whether the Api is closed with what comes back.
    """
    try:
        async with asyncio.timeout(timeout + LATE):
            return await _way_to(api, namespace, name, timeout, token, port, owns)
    except TimeoutError as error:
        if isinstance(error, ConnectTimeoutError):
            raise
        raise ConnectTimeoutError(
            f"the API server of Kubernetes at {api.where} takes long: it has not said within {timeout + LATE:g} s how to "
            f"reach the TaskCluster {namespace}/{name}"
        ) from error


async def _way_to(
    api: Api, namespace: str, name: str, timeout: float, token: Token | None, port: int, owns: bool
) -> Reached:
    deadline = time.monotonic() + timeout
    tokens: SecretTokens | None = None
    if token is None:
        tokens = await _tokens(api, namespace, name, deadline, timeout)
    known: Token | None = token if token is not None else tokens
    assert known is not None
    if api.inside:
        return Reached(service_address(namespace, name), known, namespace, name, api, None, owns)

    async def far() -> Any:
        if tokens is not None:  # it may have been changed
            secret, pod = await asyncio.gather(_secret(api, namespace, name), _scheduler(api, namespace, name))
            if secret is not None:
                tokens.put(secret)
        else:
            pod = await _scheduler(api, namespace, name)
        return await api.forward(namespace, pod, PORT)

    what = f"TaskCluster {namespace}/{name}"
    first = await _patiently(far, api, namespace, name, deadline, timeout)
    forwarder = Forwarder(far, what)
    try:
        await forwarder.start(port, first)
    except BaseException:
        await forwarder.close()
        raise
    return Reached(f"tls://127.0.0.1:{forwarder.port}", known, namespace, name, api, forwarder, owns)


async def _tokens(api: Api, namespace: str, name: str, deadline: float, timeout: float) -> SecretTokens:
    pauses = Pauses()
    while True:
        try:
            text = await _secret(api, namespace, name)
            if text is not None:
                return SecretTokens(text, f"the Secret {token_name(name)} of the namespace {namespace}")
            words = troubles(await api.cluster(namespace, name))  # that there is none is told at once
        except KubernetesError as error:
            if error.status == 0 or not passing(error):
                raise
            words = str(error)
        if time.monotonic() > deadline:
            raise ConnectTimeoutError(f"the TaskCluster {namespace}/{name} has no token after {timeout:g} s: {words}")
        await pauses.pause()


async def _secret(api: Api, namespace: str, name: str) -> str | None:
    """The tokens of a cluster, one a line; None: there is no Secret yet."""
    secret = token_name(name)
    found = await api.get("secrets", namespace, secret)
    if found is None:
        return None
    try:
        return base64.b64decode((found.get("data") or {})["token"]).decode("ascii")
    except (KeyError, ValueError) as error:
        raise TokenError(f"the Secret {secret} of the namespace {namespace} has no token in it") from error


async def _scheduler(api: Api, namespace: str, name: str) -> str:
    """The scheduler's pod that runs; of several the one that is ready, then the newest."""
    found = []
    pods = await api.pods(namespace, name, "scheduler")
    for pod in pods:
        status = pod.get("status") or {}
        runs = any("running" in (one.get("state") or {}) for one in status.get("containerStatuses") or ())
        if "deletionTimestamp" not in pod["metadata"] and status.get("phase") == "Running" and runs:
            ready = any(one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions") or ())
            found.append((ready, pod["metadata"].get("creationTimestamp") or "", pod["metadata"]["name"]))
    if not found:
        raise _NotYet(_what_pods_say(pods))
    return str(max(found)[2])


class _NotYet(KubernetesError):
    """No scheduler runs just now."""


async def _patiently(far: Any, api: Api, namespace: str, name: str, deadline: float, timeout: float) -> Any:
    """A first connection; until then it is said what is missing."""
    pauses = Pauses()
    while True:
        try:
            return await far()
        except KubernetesError as error:
            if error.status in (401, 403):
                raise
            problem = error
        words = ""
        try:
            cluster = await api.cluster(namespace, name)
        except KubernetesError as error:
            if not passing(error):
                raise
        else:
            ended = _ended(cluster)
            if ended:
                raise KubernetesError(f"the TaskCluster {namespace}/{name} {ended}", 0, "NotRunning")
            words = f": {troubles(cluster)}"
        if time.monotonic() > deadline:
            raise ConnectTimeoutError(
                f"the scheduler of the TaskCluster {namespace}/{name} cannot be reached after {timeout:g} s ({problem}){words}"
            ) from problem
        await pauses.pause()


def _ended(cluster: Mapping[str, Any]) -> str:
    """Why no scheduler will come; "": it may."""
    spec, status = cluster.get("spec") or {}, cluster.get("status") or {}
    if spec.get("suspend"):
        return "is suspended: nothing of it runs until spec.suspend is false"
    if status.get("phase") == "Finished":
        return "is finished: it was idle for longer than its idleTimeout. Delete it, and make it again"
    if "deletionTimestamp" in cluster["metadata"]:
        return "is being deleted"
    return ""


def _what_pods_say(pods: Sequence[Mapping[str, Any]]) -> str:
    said = []
    for pod in pods:
        status = pod.get("status") or {}
        words = [str(status.get("phase", "Pending"))]
        for one in status.get("containerStatuses") or ():
            waiting = (one.get("state") or {}).get("waiting") or {}
            words += [str(waiting[part]) for part in ("reason", "message") if waiting.get(part)]
        for one in status.get("conditions") or ():
            if one["type"] == "PodScheduled" and one["status"] == "False":
                words += [str(one[part]) for part in ("reason", "message") if one.get(part)]
        if "deletionTimestamp" in pod["metadata"]:
            words = ["is about to end"]
        said.append(f"its pod {pod['metadata']['name']}: {', '.join(words)}")
    return "; ".join(said) or "it has no pod"


def troubles(cluster: Mapping[str, Any]) -> str:
    """What stands in the way of a TaskCluster, in the words of its conditions.

    >>> troubles({"metadata": {"name": "demo"}})
    'the operator has not looked at it: is it running? kubectl get pods -A -l app.kubernetes.io/component=operator'
    >>> ready = {"type": "Ready", "status": "False", "reason": "QuotaExceeded", "message": "exceeded quota: few"}
    >>> troubles({"metadata": {"name": "demo"}, "status": {"conditions": [ready]}})
    'QuotaExceeded: exceeded quota: few'
    """
    conditions = (cluster.get("status") or {}).get("conditions") or []
    if not conditions:
        return "the operator has not looked at it: is it running? kubectl get pods -A -l app.kubernetes.io/component=operator"
    said = []
    for one in conditions:
        if one["type"] in ("SchedulerReady", "WorkersReady", "Ready") and one["status"] != "True":
            said.append(f"{one.get('reason', '')}: {one.get('message', '')}")
    status = cluster["status"]
    ready = f"all is as it is to be, with {status.get('readyReplicas', 0)} of {status.get('desiredReplicas', 0)} workers ready"
    return "; ".join(dict.fromkeys(said)) or ready
