"""Which replica acts: the one that holds the Lease.

``kubernetes.aio.leaderelection`` does it. Added here: that an API server which does not answer for a moment is no end of it, and
that the Lease is given back at the end, so that the next one need not wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.aio.leaderelection.resourcelock.baselock import BaseLock

from taskloom_operator.api import Api, ApiError
from taskloom_operator.names import OPERATOR

__all__ = ["lead"]

DURATION, RENEW, RETRY = (
    15,
    10,
    2,
)  # seconds: how long it holds, until when it has to be renewed, and how often that is tried

_log = logging.getLogger("taskloom_operator.leader")


class _Lock(LeaseLock):
    """The Lease; that nobody answers is as if it could not be had just now."""

    async def get(self, name: str, namespace: str) -> Any:
        try:
            return await super().get(name, namespace)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            _log.warning("the Lease cannot be read: %r", error)
            return False, _Unreachable()

    async def create(self, name: str, namespace: str, election_record: Any) -> bool:
        try:
            return bool(await super().create(name, namespace, election_record))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            _log.warning("the Lease cannot be made: %r", error)
            return False

    async def update(self, name: str, namespace: str, updated_record: Any) -> bool:
        try:
            return bool(await super().update(name, namespace, updated_record))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            _log.warning("the Lease cannot be renewed: %r", error)
            return False


class _Unreachable(Exception):
    reason = "nobody answers"
    body = None


async def lead(api: Api, namespace: str, identity: str, run: Callable[[], Awaitable[None]]) -> None:
    """Wait for the Lease, run something while it is held, and give it back when this is cancelled.

    Args:
        client, api: of the API server.
        namespace: where the Lease is.
        identity: of this replica.
        run: what the leader does.

    Returns:
        when the Lease was lost: another one may act by then, so end at once.
    """
    lock = _Lock(OPERATOR, namespace, identity, client)
    led: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    running: list[Any] = []

    async def started() -> None:
        running.append(asyncio.current_task())
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
        election.result()
    finally:
        for task in (election, *running):
            task.cancel()
        await asyncio.wait([election, *running])
        led.cancel()
        await _give_back(api, namespace, identity)


async def _give_back(api: Api, namespace: str, identity: str) -> None:
    try:
        found = await api.get("Lease", namespace, OPERATOR)
        if found is not None and found["spec"].get("holderIdentity") == identity:
            version = found["metadata"]["resourceVersion"]
            patch = {
                "metadata": {"resourceVersion": version},
                "spec": {"holderIdentity": "", "leaseDurationSeconds": 1},
            }
            await api.patch("Lease", namespace, OPERATOR, patch)
    except ApiError as error:
        _log.warning("the Lease could not be given back: %s", error)
