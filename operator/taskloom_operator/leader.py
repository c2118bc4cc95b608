"""Which replica acts: the one that holds the Lease.

``kubernetes.aio.leaderelection`` decides it. The Lease itself is read and written here: the library's own way passes what its
generated client refuses, and ends where the API server does not answer for a moment. At the end the Lease is given back, so
that the next replica need not wait.

Nobody acts longer than the Lease that was last had for certain: an API server that does not answer at all would have the
library wait while another replica takes over.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.aio.leaderelection.resourcelock.baselock import BaseLock

from taskloom_operator.api import JSON, MERGE, Api, ApiError
from taskloom_operator.names import OPERATOR

__all__ = ["lead"]

# seconds: how long it holds, until when it has to be renewed, how often that is tried
DURATION, RENEW, RETRY = 15, 10, 2
HOLD = 12.0  # seconds after which whoever has not renewed it stops, before anybody else may begin
ATTEMPT = 4.0  # seconds for an answer

_log = logging.getLogger("taskloom_operator.leader")


class _Lock(BaseLock):
    """The Lease, as the library wants to see it."""

    def __init__(self, api: Api, namespace: str, identity: str) -> None:
        super().__init__(OPERATOR, namespace, identity)
        self.until = 0.0  # so long it is ours, by time.monotonic
        self._api = api
        self._found: dict[str, Any] = {}

    async def get(self, name: str, namespace: str) -> tuple[bool, Any]:
        """Whether there is one, and who holds it; or the error."""
        try:
            found = await self._api.request("GET", Api.path("Lease", namespace, name), timeout=ATTEMPT)
        except ApiError as error:
            if error.status == 404:
                return False, _Absent("NotFound", '{"code": 404}')
            _log.warning("the Lease cannot be read: %s", error)
            return False, _Absent(error.reason, "")
        self._found = found
        spec = found.get("spec") or {}
        seconds = spec.get("leaseDurationSeconds")
        return True, LeaderElectionRecord(
            spec.get("holderIdentity") or None,
            None if seconds is None else str(seconds),
            spec.get("acquireTime"),
            spec.get("renewTime"),
        )

    async def create(self, name: str, namespace: str, election_record: Any) -> bool:
        """Make it, held by us."""
        metadata = {"name": name, "namespace": namespace}
        manifest = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata}
        path = Api.path("Lease", namespace)
        return await self._write("POST", path, {**manifest, "spec": _spec(election_record)}, JSON)

    async def update(self, name: str, namespace: str, updated_record: Any) -> bool:
        """Take or renew it, if nobody was faster."""
        version = self._found["metadata"]["resourceVersion"]
        patch = {"metadata": {"resourceVersion": version}, "spec": _spec(updated_record)}
        return await self._write("PATCH", Api.path("Lease", namespace, name), patch, MERGE)

    async def _write(self, method: str, path: str, body: Any, content: str) -> bool:
        begun = time.monotonic()  # when it was written nobody here knows, but not before
        try:
            await self._api.request(method, path, body, {"fieldManager": OPERATOR}, content, ATTEMPT)
        except ApiError as error:
            if error.status != 409:
                _log.warning("the Lease cannot be had: %s", error)
            return False
        self.until = begun + HOLD
        return True

    async def give_back(self) -> None:
        """Have nobody hold it, if it is ours."""
        path = Api.path("Lease", self.namespace, self.name)
        try:
            found = await self._api.request("GET", path, timeout=ATTEMPT)
            if found["spec"].get("holderIdentity") == self.identity:
                patch = {
                    "metadata": {"resourceVersion": found["metadata"]["resourceVersion"]},
                    "spec": {"holderIdentity": "", "leaseDurationSeconds": 1},
                }
                await self._api.request("PATCH", path, patch, {"fieldManager": OPERATOR}, MERGE, ATTEMPT)
        except ApiError as error:
            if error.status != 404:
                _log.warning("the Lease could not be given back: %s", error)


def _spec(record: Any) -> dict[str, Any]:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    acquired = str(record.acquire_time)
    return {
        "holderIdentity": record.holder_identity,
        "leaseDurationSeconds": int(float(record.lease_duration)),
        "acquireTime": acquired if acquired.endswith("Z") else now,
        "renewTime": now,
    }


class _Absent(ApiException):
    """What the library looks into to see whether it may make the Lease."""

    def __init__(self, reason: str, body: str) -> None:
        super().__init__(status=0, reason=reason)
        self.body = body


async def lead(api: Api, namespace: str, identity: str, run: Callable[[], Awaitable[None]]) -> None:
    """Wait for the Lease, run something while it is held, and give it back when this is cancelled.

    Args:
        api: of Kubernetes.
        namespace: where the Lease is.
        identity: of this replica.
        run: what the leader does.

    Returns:
        when the Lease was lost: another one will act soon, so end at once.

    Raises:
        Exception: what ``run`` has raised.
    """
    led: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    running: list[Any] = []
    lock = _Lock(api, namespace, identity)

    async def guard() -> None:
        while (left := lock.until - time.monotonic()) > 0:
            await asyncio.sleep(left)
        _log.error("the Lease has not been renewed in time")
        if not led.done():
            led.set_result(None)

    async def started() -> None:
        running.extend([asyncio.current_task(), asyncio.ensure_future(guard())])
        try:
            await run()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if not led.done():
                led.set_exception(error)

    async def stopped() -> None:
        _log.error("the Lease is lost")

    config = Config(
        lock,
        lease_duration=DURATION,
        renew_deadline=RENEW,
        retry_period=RETRY,
        onstarted_leading=started,
        onstopped_leading=stopped,
    )
    election = asyncio.ensure_future(LeaderElection(config).run())
    try:
        await asyncio.wait([election, led], return_when=asyncio.FIRST_COMPLETED)
        if led.done():
            led.result()
        else:
            election.result()
    finally:
        for task in (election, *running):
            task.cancel()
        await asyncio.wait([election, *running])
        led.cancel()
        await lock.give_back()
