"""The API server of Kubernetes, in objects as their JSON has them.

``kubernetes.aio`` finds the configuration and the credentials, renews them, and carries the requests; its models are not used: an
operator has to keep fields that it has never heard of.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio.client import ApiClient

from taskloom_operator import __version__
from taskloom_operator.metrics import Metrics
from taskloom_operator.names import GROUP, OPERATOR, VERSION

__all__ = ["APPLY", "JSON", "KINDS", "MERGE", "Api", "ApiError", "Kind"]

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
JSON = "application/json"

Kind = tuple[str, str]  # the path of its API, and its name in paths

#: kind -> where it is.
KINDS: dict[str, Kind] = {
    "TaskCluster": (f"/apis/{GROUP}/{VERSION}", "taskclusters"),
    "TaskWorkerGroup": (f"/apis/{GROUP}/{VERSION}", "taskworkergroups"),
    "TaskJob": (f"/apis/{GROUP}/{VERSION}", "taskjobs"),
    "Pod": ("/api/v1", "pods"),
    "Secret": ("/api/v1", "secrets"),
    "Service": ("/api/v1", "services"),
    "Event": ("/api/v1", "events"),
    "Deployment": ("/apis/apps/v1", "deployments"),
    "Job": ("/apis/batch/v1", "jobs"),
    "NetworkPolicy": ("/apis/networking.k8s.io/v1", "networkpolicies"),
    "Lease": ("/apis/coordination.k8s.io/v1", "leases"),
}


class ApiError(Exception):
    """The API server has refused something.

    Attributes:
        status: of HTTP; 0: it could not be asked.
        reason: one word, such as "NotFound" or "Conflict".
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class Api:
    """Requests to the API server.

    Args:
        client: knows where it is, and who we are.
        metrics: counts requests.
    """

    def __init__(self, client: ApiClient, metrics: Metrics) -> None:
        client.user_agent = f"{OPERATOR}/{__version__}"
        self._client = client
        self._metrics = metrics

    @staticmethod
    def path(kind: str, namespace: str | None, name: str = "", sub: str = "") -> str:
        """Of an object, or of all of a kind.

        >>> Api.path("Pod", "lab", "one", "log"), Api.path("TaskCluster", None)
        ('/api/v1/namespaces/lab/pods/one/log', '/apis/taskloom.dev/v1alpha1/taskclusters')
        """
        api, plural = KINDS[kind]
        parts = [api.lstrip("/")]
        if namespace is not None:
            parts += ["namespaces", quote(namespace)]
        parts.append(plural)
        parts += [quote(part) for part in (name, sub) if part]
        return "/" + "/".join(parts)

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        query: Mapping[str, Any] | None = None,
        content: str = JSON,
        timeout: float = 30.0,
    ) -> Any:
        """Ask, and wait for the answer.

        Returns:
            what its JSON says.

        Raises:
            ApiError: it was refused, or nobody could be asked.
        """
        data = await self._read(method, path, body, query, content, timeout)
        try:
            return json.loads(data)
        except ValueError as error:  # of somebody on the way
            raise ApiError(0, "Unreachable", f"what answers for the API server is none: {data[:200]!r}") from error

    async def text(self, path: str, query: Mapping[str, Any]) -> str:
        """A text, such as a log.

        Raises:
            ApiError: as above.
        """
        return (await self._read("GET", path, None, query, JSON, 30.0)).decode("utf-8", "replace")

    async def _read(self, method: str, path: str, body: Any, query: Any, content: str, timeout: float) -> bytes:
        self._metrics.requests.labels(method).inc()
        response = await self._send(method, path, body, query, content, aiohttp.ClientTimeout(total=timeout))
        try:
            data = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ApiError(0, "Unreachable", f"the API server: {error or type(error).__name__}") from error
        if not 200 <= response.status < 300:
            raise _error(response.status, data)
        return data

    async def watch(self, path: str, query: Mapping[str, Any], silence: float) -> AsyncIterator[dict[str, Any]]:
        """The events of a watch, until the API server ends it.

        Args:
            silence: seconds without anything, after which it is given up.

        Raises:
            ApiError: as above.
        """
        self._metrics.requests.labels("WATCH").inc()
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=silence)
        response = await self._send("GET", path, None, {**query, "watch": "true"}, JSON, timeout)
        try:
            if response.status != 200:
                raise _error(response.status, await response.read())
            async for line in response.content:
                yield json.loads(line)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise ApiError(0, "Unreachable", f"a watch broke: {error or type(error).__name__}") from error
        finally:
            response.close()

    async def _send(
        self, method: str, path: str, body: Any, query: Any, content: str, timeout: Any
    ) -> aiohttp.ClientResponse:
        headers = {"Accept": JSON, "Content-Type": content, "User-Agent": self._client.user_agent}
        queries: list[tuple[str, str]] = [
            (key, str(value)) for key, value in (query or {}).items() if value is not None
        ]
        try:
            await self._client.update_params_for_auth(headers, queries, ["BearerToken"], path, method, body)
            url = self._client.configuration.host + path + (f"?{urlencode(queries)}" if queries else "")
            found = await self._client.rest_client.request(  # type: ignore[no-untyped-call]
                method, url, headers=headers, body=body, _request_timeout=timeout
            )
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ApiError(0, "Unreachable", f"the API server: {error or type(error).__name__}") from error
        response: aiohttp.ClientResponse = found.response
        return response

    # --- what is asked for often

    async def get(self, kind: str, namespace: str, name: str) -> Any:
        """An object; None where there is none of that name."""
        try:
            return await self.request("GET", self.path(kind, namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def create(self, manifest: Mapping[str, Any]) -> Any:
        """Make an object."""
        path = self.path(manifest["kind"], manifest["metadata"]["namespace"])
        return await self.request("POST", path, manifest, {"fieldManager": OPERATOR})

    async def apply(self, manifest: Mapping[str, Any], sub: str = "") -> Any:
        """Server-side apply, by force."""
        metadata = manifest["metadata"]
        path = self.path(manifest["kind"], metadata["namespace"], metadata["name"], sub)
        return await self.request("PATCH", path, manifest, {"fieldManager": OPERATOR, "force": "true"}, APPLY)

    async def patch(self, kind: str, namespace: str, name: str, patch: Mapping[str, Any]) -> Any:
        """A JSON merge patch."""
        return await self.request("PATCH", self.path(kind, namespace, name), patch, {"fieldManager": OPERATOR}, MERGE)

    async def delete(self, kind: str, namespace: str, name: str, uid: str, grace: int | None = None) -> Any:
        """Delete this object and no other of its name; its dependents go after it."""
        options: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid},
            "propagationPolicy": "Background",
        }
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        return await self.request("DELETE", self.path(kind, namespace, name), options)


def _error(status: int, data: bytes) -> ApiError:
    try:
        said = json.loads(data)
        return ApiError(status, str(said.get("reason") or status), str(said.get("message") or said))
    except (ValueError, AttributeError):
        return ApiError(status, str(status), data.decode("utf-8", "replace")[:500])
