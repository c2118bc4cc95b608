"""Doing what a Plan says."""

from __future__ import annotations

import base64
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from taskloom_operator.actions import (
    Action,
    Apply,
    Create,
    Delete,
    MakeSecret,
    Note,
    Patch,
    Retire,
    RotateToken,
    Stay,
    WriteStatus,
)
from taskloom_operator.api import MERGE, Api, ApiError
from taskloom_operator.metrics import Metrics
from taskloom_operator.names import CLUSTER, DEFAULT_GROUP, GROUP, GROUP_LABEL, OPERATOR, ROTATED, VERSION, token_name
from taskloom_operator.observe import Refused
from taskloom_operator.scheduler_api import Credentials, SchedulerError, Schedulers

__all__ = ["Hands", "Memory", "SecretView", "make_certificate"]

EXPECTED = 60.0  # seconds in which what was created or deleted has to be seen
SAID = 600.0  # seconds in which an event that is the same is counted up
SAID_MOST = 2000

_log = logging.getLogger("taskloom_operator.apply")


class SecretView:
    """A Secret, as far as it is needed.

    Attributes:
        manifest: its metadata alone, for the decisions.
        owner: uid of the cluster that it was made for; "": somebody has brought it.
        credentials: to talk to the scheduler; None: what is in it is not fit for that.
    """

    def __init__(self, found: Mapping[str, Any]) -> None:
        self.owner = next(
            (one["uid"] for one in found["metadata"].get("ownerReferences") or () if one.get("controller")), ""
        )
        self.manifest: dict[str, Any] = {
            "metadata": {k: v for k, v in found["metadata"].items() if k != "managedFields"}
        }
        self.credentials: Credentials | None = None
        data = found.get("data") or {}
        try:
            token = base64.b64decode(data["token"]).decode().split()[0]
            self.credentials = Credentials(token, base64.b64decode(data["tls.crt"]).decode())
        except (KeyError, IndexError, ValueError, OSError) as error:  # ssl.SSLError is an OSError
            _log.warning("the Secret %s is not fit for use: %r", found["metadata"]["name"], error)


class Memory:
    """What was done and cannot be seen yet. Losing it costs at most that something is done twice, which changes nothing."""

    def __init__(self) -> None:
        self.expected: dict[tuple[str, str], dict[str, tuple[float, Mapping[str, Any]]]] = {}
        self.deleted: dict[str, float] = {}
        self.refused: dict[tuple[str, str], dict[str, Refused]] = {}
        self.secrets: dict[tuple[str, str], SecretView | None] = {}

    def seen(self, key: tuple[str, str], pod: str) -> None:
        """A pod of a cluster has come, or gone."""
        pods = self.expected.get(key)
        if pods is not None:
            pods.pop(pod, None)
            if not pods:
                del self.expected[key]

    def uids_deleted(self) -> frozenset[str]:
        """Uids of what was deleted of late."""
        now = time.monotonic()
        for uid, since in list(self.deleted.items()):
            if now - since <= EXPECTED:
                break
            del self.deleted[uid]
        return frozenset(self.deleted)

    def forget(self, key: tuple[str, str]) -> None:
        """A cluster is gone."""
        for kept in (self.expected, self.refused, self.secrets):
            kept.pop(key, None)


class Hands:
    """Does what Plans say.

    Args:
        api: of Kubernetes. schedulers: of clusters.
        changed: told of each object that the API server has answered with, before the watch tells of it.
    """

    def __init__(
        self, api: Api, schedulers: Schedulers, metrics: Metrics, changed: Callable[[Mapping[str, Any]], object]
    ) -> None:
        self.memory = Memory()
        self._api = api
        self._schedulers = schedulers
        self._metrics = metrics
        self._changed = changed
        self._events: OrderedDict[tuple[str, ...], tuple[str, int, float]] = OrderedDict()

    async def secret(self, namespace: str, cluster: str, uid: str, again: bool = False) -> SecretView | None:
        """The Secret of a cluster; read once, and when it seems to have changed.

        Args:
            uid: of the cluster. A Secret of another one of its name will soon be gone: it is looked for each time.
        """
        key = namespace, cluster
        known = self.memory.secrets.get(key)
        if again or known is None or known.owner not in ("", uid):
            found = await self._api.get("Secret", namespace, token_name(cluster))
            self.memory.secrets[key] = known = None if found is None else SecretView(found)
        return known

    async def expected(self, key: tuple[str, str], seen: Callable[[str], bool]) -> list[Mapping[str, Any]]:
        """Pods of a cluster that were created and are not seen.

        Args:
            seen: whether the watch has told of one of this name. Of one that it does not tell of for long, the API server is
                asked: otherwise there would be too many where watches are slower than writes.

        Raises:
            ApiError: it does not answer.
        """
        for name, (since, _) in list(self.memory.expected.get(key, {}).items()):
            if not seen(name):
                if time.monotonic() - since <= EXPECTED:
                    continue
                found = await self._api.get("Pod", key[0], name)
                if found is not None:
                    self._changed(found)
            self.memory.seen(key, name)
        return [pod for _, pod in self.memory.expected.get(key, {}).values()]

    async def do(self, namespace: str, cluster: str, actions: Sequence[Action], written: Sequence[WriteStatus]) -> bool:
        """Do these, then write the statuses.

        Returns:
            whether all was done; where not, look again after a while.
        """
        done = True
        for action in actions:
            kind = type(action).__name__
            try:
                await self._one(namespace, cluster, action)
            except (ApiError, SchedulerError) as error:
                self._metrics.actions.labels(kind, "failed").inc()
                _log.warning("%s/%s: %s failed: %s", namespace, cluster, kind, error)
                done = False
                break
            self._metrics.actions.labels(kind, "done").inc()
        for status in written:
            try:
                await self._status(status)
            except ApiError as error:
                if error.status not in (404, 409):  # it is gone, or another one of its name is there
                    _log.warning("the status of %s %s/%s: %s", status.kind, namespace, status.name, error)
                    done = False
        return done

    async def _one(self, namespace: str, cluster: str, action: Action) -> None:
        key = namespace, cluster
        if isinstance(action, Apply):
            self._changed(await self._api.apply(action.manifest))
        elif isinstance(action, Create):
            await self._create(key, action.manifest)
        elif isinstance(action, Patch):
            await self._gently(self._api.patch(action.kind, action.namespace, action.name, action.patch))
        elif isinstance(action, Delete):
            await self._gently(self._api.delete(action.kind, action.namespace, action.name, action.uid, action.grace))
            self.memory.deleted[action.uid] = time.monotonic()  # one that failed counts as there, and is not replaced
        elif isinstance(action, MakeSecret):
            await self._make_secret(key, action)
        elif isinstance(action, RotateToken):
            await self._rotate(key, action)
        elif isinstance(action, Retire):
            credentials = self._credentials(key)
            await self._schedulers.retire(namespace, cluster, credentials, action.uids)
        elif isinstance(action, Stay):
            credentials = self._credentials(key)
            for worker in action.workers:
                await self._schedulers.stay(namespace, cluster, credentials, worker)
        elif isinstance(action, Note):
            await self._note(action)

    def _credentials(self, key: tuple[str, str]) -> Credentials:
        found = self.memory.secrets.get(key)
        if found is None or found.credentials is None:
            raise SchedulerError("the Secret with its token is not there")
        return found.credentials

    @staticmethod
    async def _gently(call: Any) -> None:
        try:
            await call
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    async def _create(self, key: tuple[str, str], manifest: Mapping[str, Any]) -> None:
        labels = manifest["metadata"].get("labels") or {}
        group = labels.get(GROUP_LABEL, DEFAULT_GROUP)
        try:
            found = await self._api.create(manifest)
        except ApiError as error:
            if error.status == 409 and error.reason == "AlreadyExists":
                found = manifest
            else:
                if error.status in (400, 403, 422) and manifest["kind"] == "Pod":
                    refused = self.memory.refused.setdefault(key, {})
                    before = refused.get(group)
                    refused[group] = Refused(str(error), time.time(), 1 if before is None else before.count + 1)
                raise
        if manifest["kind"] == "Pod" and CLUSTER in labels:
            self.memory.refused.get(key, {}).pop(group, None)
            self.memory.expected.setdefault(key, {})[manifest["metadata"]["name"]] = time.monotonic(), found
        elif found is not manifest:
            self._changed(found)

    # --- tokens

    async def _make_secret(self, key: tuple[str, str], action: MakeSecret) -> None:
        certificate, private = make_certificate(action.hosts)
        manifest = {
            **action.manifest,
            "stringData": {
                "token": secrets.token_urlsafe(32) + "\n",
                "tls.crt": certificate,
                "tls.key": private,
            },
        }
        try:
            found = await self._api.create(manifest)
        except ApiError as error:
            if error.status != 409:
                raise
            found = await self._api.get("Secret", key[0], action.manifest["metadata"]["name"])
        self.memory.secrets[key] = None if found is None else SecretView(found)

    async def _rotate(self, key: tuple[str, str], action: RotateToken) -> None:
        found = await self._api.get("Secret", action.namespace, action.name)
        if found is None or found["metadata"]["uid"] != action.uid:
            self.memory.secrets.pop(key, None)
            return
        if (found["metadata"].get("annotations") or {}).get(ROTATED) != action.value:
            before = base64.b64decode((found.get("data") or {}).get("token", "")).decode().split()
            tokens = [secrets.token_urlsafe(32), *before[:1]]
            metadata = {
                "uid": action.uid,
                "resourceVersion": found["metadata"]["resourceVersion"],
                "annotations": {ROTATED: action.value},
            }
            patch = {"metadata": metadata, "stringData": {"token": "\n".join(tokens) + "\n"}}
            found = await self._api.patch("Secret", action.namespace, action.name, patch)
        self.memory.secrets[key] = SecretView(found)

    # --- what is told

    async def _status(self, written: WriteStatus) -> None:
        manifest = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": written.kind,
            "metadata": {"name": written.name, "namespace": written.namespace, "uid": written.uid},
            "status": written.status,
        }
        self._changed(await self._api.apply(manifest, "status"))

    async def _note(self, note: Note) -> None:
        """An Event; one that was said of late is counted up. That it cannot be written stops nothing."""
        about = note.about["metadata"]
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        said = about["uid"], note.type, note.reason, note.message
        known = self._events.pop(said, None)
        try:
            if known is not None and time.monotonic() - known[2] < SAID:
                name, count, _ = known
                patch = {"count": count + 1, "lastTimestamp": now}
                path = Api.path("Event", about["namespace"], name)
                await self._api.request("PATCH", path, patch, content=MERGE)
                self._events[said] = name, count + 1, time.monotonic()
                return
            name = f"{about['name'][:200]}.{secrets.token_hex(8)}"
            reference = {key: note.about[key] for key in ("apiVersion", "kind")}
            reference |= {key: about[key] for key in ("name", "namespace", "uid")}
            manifest = {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": name, "namespace": about["namespace"]},
                "involvedObject": reference,
                "type": note.type,
                "reason": note.reason,
                "message": note.message[:1000],
                "source": {"component": OPERATOR},
                "reportingComponent": OPERATOR,
                "firstTimestamp": now,
                "lastTimestamp": now,
                "count": 1,
            }
            await self._api.create(manifest)
            self._events[said] = name, 1, time.monotonic()
            while len(self._events) > SAID_MOST:
                self._events.popitem(last=False)
        except ApiError as error:
            _log.info("an event on %s could not be written: %s", about["name"], error)


def make_certificate(hosts: Sequence[str]) -> tuple[str, str]:
    """A certificate that vouches for itself.

    Args:
        hosts: DNS names that it is for.

    Returns:
        it and its key, as PEM.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "taskloom")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), private.decode()
