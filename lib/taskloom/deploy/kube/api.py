"""The API server of Kubernetes, by the user's own rights: requests, in objects as their JSON has them.

The package ``kubernetes`` finds the configuration and the credentials. Its asynchronous client carries the requests, and not
the other one: a port is forwarded by many connections at a time, each held up when its other end is slow, which threads over TLS
do badly. All of it lives in one event loop, in a thread of its own. Models are not used: half of what is asked for here is no
resource of Kubernetes' own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import selectors
import threading
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote, urlencode

from taskloom.deploy.kube.names import CLUSTER, COMPONENT, GROUP, MANAGER, VERSION
from taskloom.errors import ClusterError, KubernetesError

__all__ = ["Api", "inside", "passing"]

_INSTALL = "pip install 'taskloom[kube]'"
CHART = "helm install taskloom charts/taskloom --namespace taskloom-system --create-namespace"
_SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_JSON = "application/json"
MERGE = "application/merge-patch+json"
CONNECT = 10.0  # seconds to reach the API server
GOODBYE = 0.5  # seconds to end connections to it

_METHODS = {"get": "GET", "list": "GET", "create": "POST", "patch": "PATCH", "delete": "DELETE"}
_PATHS = {
    "taskclusters": (f"apis/{GROUP}/{VERSION}", "TaskCluster"),
    "pods": ("api/v1", "Pod"),
    "secrets": ("api/v1", "Secret"),
}

T = TypeVar("T")


def inside() -> bool:
    """Whether this is a pod of a Kubernetes cluster."""
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


def passing(error: KubernetesError) -> bool:
    """Whether it may be better in a moment: the API server is not there just now, or has too much to do."""
    return error.status in (0, 429) or error.status >= 500


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that goes on while the interpreter ends, when there are no threads any more: clusters are deleted then."""

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        try:
            return super().run_in_executor(executor, func, *args)
        except RuntimeError:
            future = self.create_future()
            try:
                future.set_result(func(*args))
            except Exception as error:
                future.set_exception(error)
            return future


class Api:
    """What is asked of the API server.

    Its coroutines run by :meth:`run`, from any thread.

    Args:
        context: of the kubeconfig; None: the present one, or, in a pod, that pod's own rights.

    Attributes:
        namespace: where things are where nothing else is said.
        inside: whether it is asked by a pod's own rights.
        where: the URL of the API server.

    Raises:
        KubernetesError: the package is not installed, or no cluster is known here.
    """

    def __init__(self, context: str | None = None) -> None:
        try:
            import aiohttp
            from kubernetes.aio import client, config
        except ImportError as error:
            raise KubernetesError(f"for Kubernetes, the package kubernetes is needed ({error}): {_INSTALL}") from error
        self._http = aiohttp
        self._config = config
        self._context = context
        self.inside = context is None and inside()
        self.namespace = "default"
        self._settings = client.Configuration(connection_pool_maxsize=0)  # connections that are forwarded stay for long
        self._pid = os.getpid()
        self._selector = selectors.DefaultSelector()
        self._loop = _Loop(self._selector)
        self._thread = threading.Thread(target=self._serve, name="taskloom-kube", daemon=True)
        self._thread.start()
        self._client: Any = None
        self._credentials = 0  # how often they were read
        self._renewing = asyncio.Lock()
        try:
            self.run(self._start(client.ApiClient))
        except BaseException:
            self.close()
            raise
        self.where: str = self._settings.host

    def _serve(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Wait for a coroutine of this object.

        Raises:
            ClusterError: it is closed, or belongs to the process that this one was forked from.
        """
        if self._pid != os.getpid() or not self._thread.is_alive():
            coroutine.close()
            raise ClusterError("this connection to Kubernetes is closed, or belongs to another process: make a new one")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C, if it is not the coroutine's own
            future.cancel()
            raise

    def close(self) -> None:
        """No more requests."""
        if self._pid != os.getpid() or not self._thread.is_alive():
            return
        try:
            self.run(self._stop())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def _stop(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others, timeout=2.0)
        if self._client is not None:
            await self._client.close()
        deadline = self._loop.time() + GOODBYE
        # TLS ends with a word from the other side; what is left is the loop's own
        while len(self._selector.get_map()) > 1 and self._loop.time() < deadline:
            await asyncio.sleep(0.002)
        for transport in list(getattr(self._loop, "_transports", {}).values()):
            transport.abort()
        await asyncio.sleep(0)
        await self._loop.shutdown_default_executor()

    # --- where it is, and who we are

    async def _start(self, make: Any) -> None:
        await self._load()
        self._client = make(self._settings)

    async def _renew(self, refused: int) -> None:
        """What was shown is not good any more.

        Args:
            refused: which one it was. Many may find that out at a time, and one looks for another: that may ask a program, or
                people.
        """
        async with self._renewing:
            if self._credentials == refused:
                await self._load()

    async def _load(self) -> None:
        """Read who we are; once more where that has expired."""
        self._credentials += 1
        try:
            if self.inside:
                self._config.load_incluster_config(client_configuration=self._settings)  # type: ignore[no-untyped-call]
                with contextlib.suppress(OSError), open(f"{_SERVICE_ACCOUNT}/namespace") as file:
                    self.namespace = file.read().strip()
                return
            paths = os.environ.get("KUBECONFIG") or os.path.expanduser("~/.kube/config")
            if not any(os.path.exists(os.path.expanduser(path)) for path in paths.split(os.pathsep) if path):
                raise KubernetesError(
                    f"no Kubernetes cluster is known here: there is no file {paths}. It is the one that kubectl uses; the "
                    "variable KUBECONFIG names another one"
                )
            load: Any = self._config.load_kube_config
            loader = await load(
                config_file=paths, context=self._context, client_configuration=self._settings, persist_config=False
            )
            self.namespace = loader.current_context["context"].get("namespace") or "default"
        except KubernetesError:
            raise
        except Exception as error:  # of the YAML, of its structure, of files that it names
            if self.inside:
                why = (
                    f"this pod has no rights of its own at the API server ({error}). Give it a service account, or mount the "
                    "cluster's Secret NAME-token and set TASKLOOM_TOKEN_FILE"
                )
            else:
                which = "" if self._context is None else f" the context {self._context!r} of"
                why = f"the cluster cannot be found by{which} the kubeconfig {paths}: {error}"
            raise KubernetesError(why) from error

    # --- requests

    async def request(
        self,
        verb: str,
        kind: str,
        namespace: str | None,
        name: str = "",
        sub: str = "",
        body: Any = None,
        query: Mapping[str, str] | None = None,
        timeout: float = 30.0,
    ) -> Any:
        """Ask, and wait for the answer.

        Args:
            verb: get, list, create, patch (a JSON merge patch) or delete.
            kind: such as "pods".
            namespace: None: all.

        Returns:
            what its JSON says; a text where it is none.

        Raises:
            KubernetesError: it was refused, or nobody could be asked; says what to do.
        """
        response = await self._send(
            verb, kind, namespace, name, sub, body, query, self._http.ClientTimeout(total=timeout, sock_connect=CONNECT)
        )
        try:
            data = await response.read()
        except (self._http.ClientError, OSError, TimeoutError) as error:
            raise self._silent(error) from error
        try:
            return json.loads(data)
        except ValueError:
            return data.decode("utf-8", "replace")

    async def _send(
        self, verb: str, kind: str, namespace: str | None, name: str, sub: str, body: Any, query: Any, timeout: Any
    ) -> Any:
        path = _path(kind, namespace, name, sub)
        asked = {**(query or {}), **({"fieldManager": MANAGER} if verb in ("create", "patch") else {})}
        target = f"{self._settings.host}{path}" + (f"?{urlencode(asked)}" if asked else "")
        content = MERGE if verb == "patch" else _JSON
        for again in (True, False):
            shown = self._credentials
            headers = {"Accept": f"{_JSON}, */*", "Content-Type": content}
            await self._sign(headers)
            try:
                found = await self._client.rest_client.request(
                    _METHODS[verb], target, headers=headers, body=body, _request_timeout=timeout
                )
            except (self._http.ClientError, OSError, TimeoutError) as error:
                raise self._silent(error) from error
            response = found.response
            if response.status == 401 and again:  # tokens of some clusters are good for minutes
                response.release()
                await self._renew(shown)
                continue
            if not 200 <= response.status < 300:
                try:
                    text = await response.text(errors="replace")
                except (self._http.ClientError, OSError, TimeoutError) as error:
                    raise self._silent(error) from error
                self._refuse(response.status, text, verb, kind, namespace, name, sub)
            return response
        raise AssertionError("not reached")

    async def _sign(self, headers: dict[str, str]) -> None:
        from taskloom import __version__

        headers["User-Agent"] = f"{MANAGER}/{__version__}"
        await self._client.update_params_for_auth(headers, [], ["BearerToken"], "", "", None)

    def _silent(self, error: BaseException) -> KubernetesError:
        words = str(error) or type(error).__name__
        return KubernetesError(f"the API server of Kubernetes at {self._settings.host} does not answer: {words}")

    def _refuse(
        self, status: int, text: str, verb: str, kind: str, namespace: str | None, name: str, sub: str
    ) -> NoReturn:
        """Raise what an answer that is no says, and what to do."""
        try:
            told = json.loads(text)
            reason, words = str(told.get("reason") or ""), str(told.get("message") or "")
        except (ValueError, AttributeError):
            told, reason, words = None, "", (text.strip().splitlines() or [""])[0][:300]
        where = "in all namespaces" if namespace is None else f"in the namespace {namespace}"
        singular = _PATHS[kind][1]
        what = f"{singular} {name} {where}" if name else f"{singular}s {where}"
        if status == 403 and (not words or " cannot " in words):  # others are a quota's, or of an admission webhook
            full = f"{kind}.{GROUP}" if kind == "taskclusters" else kind
            full += f" --subresource={sub}" if sub else ""
            words = (
                f"you may not {verb} {f'{kind}/{sub}' if sub else kind} {where}. Ask who looks after the cluster for that right; "
                f"this says whether you have it: kubectl auth can-i {verb.split(' ')[-1]} {full} "
                f"{'-A' if namespace is None else f'-n {namespace}'}"
            )
        elif status == 401:
            words = (
                f"the API server at {self._settings.host} does not know you: your credentials are not right, or have expired. "
                "Does `kubectl get pods` work?"
            )
        elif status == 404 and told is None and kind == "taskclusters":
            reason = "NotInstalled"
            words = (
                f"the Kubernetes at {self._settings.host} knows no TaskClusters: taskloom's chart is not installed there. "
                f"{CHART}"
            )
        elif status == 404 and name and not sub:
            words = f"there is no {what}"
        else:
            words = words if told is not None and words else f"{what}: the API server answers {status} {words}".rstrip()
        raise KubernetesError(words, status, reason)

    # --- what is asked for

    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        """An object; None: there is none of that name."""
        try:
            found: dict[str, Any] = await self.request("get", kind, namespace, name)
        except KubernetesError as error:
            if error.status == 404 and error.reason != "NotInstalled":
                return None
            raise
        return found

    async def cluster(self, namespace: str, name: str) -> dict[str, Any]:
        """A TaskCluster.

        Raises:
            KubernetesError: there is none; says which there are.
        """
        found = await self.get("taskclusters", namespace, name)
        if found is not None:
            return found
        there: list[str] = []
        with contextlib.suppress(KubernetesError):
            there = [one["metadata"]["name"] for one in await self.find("taskclusters", namespace)]
        words = f"there are {', '.join(sorted(there)[:10])}" if there else "there is none at all"
        raise KubernetesError(f"there is no TaskCluster {name} in the namespace {namespace}; {words}", 404, "NotFound")

    async def find(self, kind: str, namespace: str | None, **labels: str) -> list[dict[str, Any]]:
        """Objects that have these labels: all of a namespace's, or of all namespaces."""
        query = {"labelSelector": ",".join(f"{key}={value}" for key, value in labels.items())} if labels else None
        return list((await self.request("list", kind, namespace, query=query))["items"])

    async def pods(self, namespace: str, cluster: str, component: str) -> Sequence[dict[str, Any]]:
        """The pods of a cluster that are its scheduler, its workers or its jobs."""
        return await self.find("pods", namespace, **{CLUSTER: cluster, COMPONENT: component})

    async def lines(self, namespace: str, pod: str, query: Mapping[str, str]) -> AsyncIterator[str]:
        """What a container writes, line by line, until it ends.

        Args:
            query: as of a pod's log: container, tailLines, follow, previous.
        """
        timeout = self._http.ClientTimeout(total=None, sock_connect=CONNECT)
        response = await self._send("get", "pods", namespace, pod, "log", None, query, timeout)
        try:
            async for line in response.content:
                yield line.decode("utf-8", "replace")
        except (self._http.ClientError, OSError, TimeoutError) as error:
            raise self._silent(error) from error
        finally:
            response.close()

    async def forward(self, namespace: str, pod: str, port: int) -> Any:
        """A WebSocket that leads to a port of a pod.

        Raises:
            KubernetesError: as above.
        """
        http, rest = self._http, self._client.rest_client
        if rest.pool_manager is None:
            rest.pool_manager = rest._create_pool_manager()
        target = f"{self._settings.host}{_path('pods', namespace, pod, 'portforward')}?ports={port}"
        for again in (True, False):
            shown = self._credentials
            headers: dict[str, str] = {}
            await self._sign(headers)
            try:
                return await rest.pool_manager.ws_connect(
                    target,
                    headers=headers,
                    protocols=("v4.channel.k8s.io",),
                    autoping=False,
                    max_msg_size=0,
                    timeout=http.ClientWSTimeout(ws_close=1.0),
                    proxy=rest.proxy,
                    proxy_headers=rest.proxy_headers,
                    server_hostname=self._settings.tls_server_name,
                )
            except http.WSServerHandshakeError as error:
                if error.status == 401 and again:
                    await self._renew(shown)
                    continue
                # which of the two it is depends on the version
                self._refuse(error.status, "", "both get and create", "pods", namespace, pod, "portforward")
            except (http.ClientError, OSError, TimeoutError) as error:
                raise self._silent(error) from error
        raise AssertionError("not reached")


def _path(kind: str, namespace: str | None, name: str = "", sub: str = "") -> str:
    """Of an object, or of all of a kind.

    >>> _path("pods", "lab", "one", "log"), _path("taskclusters", None)
    ('/api/v1/namespaces/lab/pods/one/log', '/apis/taskloom.dev/v1alpha1/taskclusters')
    """
    parts = [_PATHS[kind][0]]
    if namespace is not None:
        parts += ["namespaces", quote(namespace, "")]
    parts.append(kind)
    parts += [quote(part, "") for part in (name, sub) if part]
    return "/" + "/".join(parts)
