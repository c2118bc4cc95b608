"""From ``kube://namespace/name`` to an address and a token."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from urllib.parse import parse_qs, unquote, urlsplit

from taskloom.deploy.kube.api import Api, KubernetesError
from taskloom.deploy.kube.forward import Forwarder
from taskloom.deploy.kube.names import PORT, scheduler_name
from taskloom.errors import AddressError
from taskloom.net import Token, TokenFile, find_token

__all__ = ["Reached", "parse", "reach"]

OFTEN = 0.2  # seconds between looks whether it is there


class Reached:
    """A way to a cluster.

    Attributes:
        address: of its scheduler, from here.
        token: what is to be known.
        name, namespace: of the TaskCluster.
        direct: False where workers cannot be reached from here; None: that has to be tried.
    """

    def __init__(
        self, address: str, token: Token, namespace: str, name: str, forwarder: Forwarder | None, folder: str = ""
    ) -> None:
        self.address = address
        self.token = token
        self.namespace = namespace
        self.name = name
        self.direct = None if forwarder is None else False
        self._forwarder = forwarder
        self._folder = folder

    def close(self) -> None:
        """Forward nothing more."""
        if self._forwarder is not None:
            self._forwarder.close()
        if self._folder:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self._folder, "token"))
                os.rmdir(self._folder)


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
    if found.scheme != "kube" or not 1 <= len(parts) <= 2 or query:
        raise AddressError(
            f"{address!r} is no address of a cluster on Kubernetes: kube://NAMESPACE/NAME, or kube://NAME, with ?context=NAME "
            "where it is not the present one"
        )
    return (parts[0] if len(parts) == 2 else None), parts[-1], context


def reach(address: str, timeout: float = 10.0, token: Token | None = None) -> Reached:
    """Find the way to a TaskCluster. That its scheduler runs is not waited for: who connects tries until it does.

    Args:
        address: ``kube://namespace/name``.
        timeout: seconds for the cluster's token to be there: the operator makes it when the TaskCluster is new.
        token: another one than the cluster's.

    Raises:
        AddressError: that is no such address.
        KubernetesError: the API server refuses, there is no such cluster, or it has no token yet.
    """
    space, name, context = parse(address)
    if context is None and os.environ.get("KUBERNETES_SERVICE_HOST") and space is not None:
        own = token if token is not None else find_token()
        if own is not None:  # in a pod that has the token mounted: nothing has to be asked
            return Reached(_inside(space, name), own, space, name, None)
    api = Api(context)
    space = space or api.namespace
    deadline = time.monotonic() + timeout
    tokens = api.tokens(space, name) if token is None else None
    while token is None and tokens is None:
        cluster = api.cluster(space, name)  # that there is none is said at once
        if time.monotonic() > deadline:
            phase = (cluster.get("status") or {}).get("phase")
            why = "the operator has not looked at it: is it at work?" if phase is None else f"its phase is {phase}"
            raise KubernetesError(f"the TaskCluster {space}/{name} has no token after {timeout:g} s: {why}")
        threading.Event().wait(OFTEN)
        tokens = api.tokens(space, name)
    folder = ""
    if token is None:
        assert tokens is not None
        folder, token = _keep(tokens)
    if api.inside:
        return Reached(_inside(space, name), token, space, name, None, folder)
    known: Token = token

    def open_one() -> object:
        if folder:
            fresh = api.tokens(space, name)
            if fresh is not None:
                _write(folder, fresh)
        pod = api.scheduler_pod(space, name)
        return None if pod is None else api.forward(space, pod, PORT)

    forwarder = Forwarder(open_one)
    return Reached(f"tls://127.0.0.1:{forwarder.port}", known, space, name, forwarder, folder)


def _inside(namespace: str, name: str) -> str:
    return f"tls://{scheduler_name(name)}.{namespace}.svc:{PORT}"


def _keep(tokens: str) -> tuple[str, TokenFile]:
    """The tokens in a file of our own: the client looks at it again when it connects, and they may have changed by then."""
    folder = tempfile.mkdtemp(prefix="taskloom-token-")
    _write(folder, tokens)
    return folder, TokenFile(os.path.join(folder, "token"))


def _write(folder: str, tokens: str) -> None:
    path = os.path.join(folder, "token")
    with contextlib.suppress(OSError), open(path) as file:
        if file.read() == tokens:
            return
    new = f"{path}.{threading.get_ident()}"
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(tokens)
    os.rename(new, path)
