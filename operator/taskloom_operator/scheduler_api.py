"""Asking schedulers, over HTTPS: see docs/http.md.

The token goes only to whoever shows the certificate that stands in the cluster's Secret.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import aiohttp

from taskloom_operator import __version__
from taskloom_operator.actions import Ask
from taskloom_operator.metrics import Metrics
from taskloom_operator.names import HTTP_PORT, OPERATOR, scheduler_name
from taskloom_operator.observe import SchedulerView

__all__ = ["Credentials", "SchedulerError", "Schedulers"]

TIMEOUT = 5.0  # seconds for an answer
LONG = 60.0  # seconds that the scheduler may hold back an answer until there is news


class SchedulerError(Exception):
    """A scheduler could not be asked, or has refused.

    Attributes:
        status: of HTTP; 0: it could not be asked.
        said: what its answer has.
    """

    def __init__(self, words: str, status: int = 0, said: Mapping[str, Any] | None = None) -> None:
        super().__init__(words)
        self.status = status
        self.said = said or {}


class Credentials:
    """What is needed to talk to a scheduler.

    Args:
        token: the first line of the Secret's token.
        certificate: PEM.
    """

    def __init__(self, token: str, certificate: str) -> None:
        self.token = token
        self.context = ssl.create_default_context(cadata=certificate)
        # it is a certificate that vouches for itself, and not an authority's
        self.context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        self.context.verify_flags &= ~ssl.VERIFY_X509_STRICT


class Schedulers:
    """Requests to the schedulers of all clusters.

    Args:
        metrics: counts them.
        where: namespace and cluster -> host and port; by default the Service.
    """

    def __init__(self, metrics: Metrics, where: Any = None) -> None:
        self._metrics = metrics
        self._where = where
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """No more requests."""
        if self._session is not None:
            await self._session.close()

    async def view(self, namespace: str, name: str, credentials: Credentials, ask: Ask, threads: int) -> SchedulerView:
        """Ask for what a Plan wants to know."""
        paths = {}
        if ask & Ask.WISH:
            paths["wish"] = f"wish?threads={threads}"
        for flag, path in ((Ask.WORKERS, "workers"), (Ask.RETIREMENTS, "retirements"), (Ask.INFO, "info")):
            if ask & flag:
                paths[path] = path
        try:
            answers = await asyncio.gather(*[self.get(namespace, name, credentials, path) for path in paths.values()])
        except SchedulerError as error:
            return SchedulerView(False, str(error))
        return SchedulerView.of(**dict(zip(paths, answers, strict=True)))

    async def news(self, namespace: str, name: str, credentials: Credentials, since: str, threads: int) -> Any:
        """Wait for another wish; what it is.

        Raises:
            SchedulerError: as :meth:`get`.
        """
        path = f"wish?threads={threads}&timeout={LONG:g}" + (f"&since={quote(since)}" if since else "")
        return await self.get(namespace, name, credentials, path, LONG + 15.0)

    async def retire(self, namespace: str, name: str, credentials: Credentials, uids: tuple[str, ...]) -> None:
        """Have workers go, their values first; those that it does not know are left out.

        Raises:
            SchedulerError: as :meth:`get`.
        """
        left = list(uids)
        while left:
            try:
                await self._request("POST", namespace, name, credentials, "retire", {"pod_uids": left})
                return
            except SchedulerError as error:
                unknown = set((error.said.get("unknown") or {}).get("pod_uids") or ()) & set(left)
                if error.status != 404 or not unknown:
                    raise
                left = [uid for uid in left if uid not in unknown]  # others may go before it is asked again

    async def stay(self, namespace: str, name: str, credentials: Credentials, worker: str) -> None:
        """Have a worker stay after all; that it has gone, or may go already, is no error.

        Raises:
            SchedulerError: as :meth:`get`.
        """
        try:
            await self._request("DELETE", namespace, name, credentials, f"retirements/{quote(worker, safe='')}")
        except SchedulerError as error:
            if error.status not in (404, 409):
                raise

    async def get(
        self, namespace: str, name: str, credentials: Credentials, path: str, timeout: float = TIMEOUT
    ) -> Any:
        """What it answers.

        Raises:
            SchedulerError: it could not be asked in time, or has refused; says why.
        """
        return await self._request("GET", namespace, name, credentials, path, timeout=timeout)

    async def _request(
        self,
        method: str,
        namespace: str,
        name: str,
        credentials: Credentials,
        path: str,
        body: Any = None,
        timeout: float = TIMEOUT,
    ) -> Any:
        if self._session is None:
            agent = {"User-Agent": f"{OPERATOR}/{__version__}"}
            # without a limit: most connections wait for news, and hold up nobody
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(headers=agent, connector=connector)
        host = f"{scheduler_name(name)}.{namespace}.svc"
        place = f"{host}:{HTTP_PORT}"
        if self._where is not None:
            place = ":".join(map(str, self._where(namespace, name)))
        try:
            async with self._session.request(
                method,
                f"https://{place}/api/v1/{path}",
                json=body,
                headers={"Authorization": f"Bearer {credentials.token}"},
                ssl=credentials.context,
                server_hostname=host,
                timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=3.0),
            ) as response:
                data = await response.read()
                status = response.status
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self._metrics.asked.labels("unreachable").inc()
            words = str(error) or f"no answer in {timeout:g} s"
            raise SchedulerError(f"the scheduler does not answer: {words}") from error
        try:
            said = json.loads(data)
        except ValueError:
            said = {}
        if status >= 400:
            self._metrics.asked.labels("refused").inc()
            words = said.get("error") or f"HTTP {status}"
            raise SchedulerError(f"the scheduler refuses: {words}", status, said)
        self._metrics.asked.labels("ok").inc()
        return said
