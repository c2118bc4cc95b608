"""A small API server of Kubernetes, over HTTPS: TaskClusters, Secrets, pods and their logs, and ports that are really forwarded.

It knows no schema and runs nothing. What it has in common with the real one is what a client can stumble over: it asks who
somebody is and what they may, forwards ports by the protocol of WebSockets, and has the real one's words for what it refuses.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import ipaddress
import json
import ssl
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from aiohttp import WSMsgType, web

GROUP = "/apis/taskloom.dev/v1alpha1"


def make_certificate(folder: Path) -> tuple[str, str]:
    """Files with a certificate for this machine, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "api server")])
    now = datetime.now(UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign"), False
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True, key_cert_sign=True, encipher_only=False, decipher_only=False, **usage
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = folder / "api.crt", folder / "api.key"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return str(files[0]), str(files[1])


class Kubernetes:
    """What it keeps, what it was asked, and what it refuses.

    Attributes:
        objects: by plural, namespace and name.
        calls: verb, resource (with a subresource), namespace and name of all requests, in order.
        queries, bodies: of the same.
        credentials: who shows one of these is known.
        denied: verbs and resources that nobody has the right to.
        installed: whether there are TaskClusters.
        ports: pod -> the port of this machine that stands for its port 8786.
        operate: called with each TaskCluster that has changed, to do what the operator would.
        before: called with the verb and resource of each request; what it says, if not None, is the status of the answer.
        deaf: pings are not answered.
    """

    def __init__(self, folder: Path) -> None:
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.calls: list[tuple[str, str, str, str]] = []
        self.queries: list[dict[str, str]] = []
        self.bodies: list[Any] = []
        self.agents: set[str] = set()
        self.credentials = {"user-1"}
        self.denied: set[tuple[str, str]] = set()
        self.installed = True
        self.ports: dict[str, int] = {}
        self.operate: Callable[[dict[str, Any]], object] = lambda cluster: None
        self.before: Callable[[str, str], int | None] = lambda verb, resource: None
        self.deaf = False
        self.pings = 0
        self.open: set[web.WebSocketResponse] = set()
        self.uids = 0
        self.certificate, self._key = make_certificate(folder)
        self.folder = folder
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port = self._run(self._start())
        self.kubeconfig = str(folder / "kubeconfig")
        self.write_kubeconfig({"token": "user-1"})

    # --- as others see it

    def write_kubeconfig(self, user: dict[str, Any], host: str = "localhost", namespace: str = "lab") -> None:
        """The file that KUBECONFIG names; with two contexts, of which the present one is "here"."""
        authority = base64.b64encode(Path(self.certificate).read_bytes()).decode()
        cluster = {"server": f"https://{host}:{self.port}", "certificate-authority-data": authority}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": user}, {"name": "nobody", "user": {"token": "nobody"}}],
            "contexts": [
                {"name": "here", "context": {"cluster": "c", "user": "u", "namespace": namespace}},
                {"name": "there", "context": {"cluster": "c", "user": "u", "namespace": "other"}},
                {"name": "unknown", "context": {"cluster": "c", "user": "nobody"}},
            ],
        }
        Path(self.kubeconfig).write_text(yaml.safe_dump(config))

    def put(self, plural: str, name: str, namespace: str = "lab", **fields: Any) -> dict[str, Any]:
        """Make an object, or change one."""
        found = self.objects.setdefault((plural, namespace, name), {})
        metadata = {"name": name, "namespace": namespace, "creationTimestamp": "2026-01-01T00:00:00Z"}
        found.update(copy.deepcopy(fields))
        found["metadata"] = {**metadata, **found.get("metadata", {})}
        if "uid" not in found["metadata"]:
            self.uids += 1
            found["metadata"]["uid"] = f"uid-{self.uids}"
        return found

    def put_secret(self, cluster: str, *tokens: str, namespace: str = "lab") -> None:
        data = {"token": base64.b64encode("\n".join(tokens).encode()).decode()}
        self.put("secrets", f"{cluster}-token", namespace, data=data)

    def put_pod(
        self, cluster: str, component: str, name: str, port: int = 0, namespace: str = "lab", **status: Any
    ) -> dict[str, Any]:
        labels = {"taskloom.dev/cluster": cluster, "taskloom.dev/component": component}
        ready = {
            "phase": "Running",
            "containerStatuses": [{"name": component, "state": {"running": {}}}],
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        if port:
            self.ports[name] = port
        return self.put(
            "pods", name, namespace, metadata={"labels": labels}, status=status or ready, log=f"{name} is up\n"
        )

    def verbs(self) -> set[tuple[str, str]]:
        return {(verb, resource) for verb, resource, _, _ in self.calls}

    def cut(self) -> None:
        """Cut all that is forwarded."""

        async def cut() -> None:
            for socket in list(self.open):
                transport = socket._req.transport if socket._req is not None else None
                if transport is not None:
                    transport.abort()

        self._run(cut())

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _start(self) -> int:
        application = web.Application()
        for api in ("/api/v1", GROUP):
            for place in ("/{plural}", "/namespaces/{namespace}/{plural}"):
                for rest in ("", "/{name}", "/{name}/{sub}"):
                    application.router.add_route("*", api + place + rest, self._any)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.certificate, self._key)
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context).start()
        return int(self._runner.addresses[0][1])

    def close(self) -> None:
        self._run(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    # --- requests

    async def _any(self, request: web.Request) -> web.StreamResponse:
        answer = await self._answer(request)
        if not answer.prepared:
            answer.force_close()  # who asks again has to find it again
        return answer

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        found = request.match_info
        plural, namespace, name, sub = (found.get(part, "") for part in ("plural", "namespace", "name", "sub"))
        verb = {"GET": "get" if name else "list", "POST": "create", "PATCH": "patch", "DELETE": "delete"}[
            request.method
        ]
        resource = f"{plural}/{sub}" if sub else plural
        text = await request.text() if sub != "portforward" else ""
        self.agents.add(request.headers.get("User-Agent", ""))
        self.calls.append((verb, resource, namespace, name))
        self.queries.append(dict(request.query))
        self.bodies.append(json.loads(text) if text else None)
        status = self.before(verb, resource)
        if status is not None:
            return _refused(status, "", "not now")
        if request.headers.get("Authorization", "").lower().removeprefix("bearer ") not in self.credentials:
            return _refused(401, "Unauthorized", "Unauthorized")
        if (verb, resource) in self.denied:
            words = (
                f'{plural} "{name}" is forbidden: User "u" cannot {verb} resource "{resource}" in API group "" in the '
                f'namespace "{namespace}"'
            )
            return _refused(403, "Forbidden", words)
        if plural == "taskclusters" and not self.installed:
            return web.Response(status=404, text="404 page not found\n")
        answer = getattr(self, f"_{verb}")(request, plural, namespace, name, sub, self.bodies[-1])
        if asyncio.iscoroutine(answer):
            answer = await answer
        if isinstance(answer, web.StreamResponse):
            return answer
        return web.json_response(answer, status=201 if verb == "create" else 200)

    def _list(self, request: Any, plural: str, namespace: str, *rest: Any) -> Any:
        wanted = dict(part.split("=") for part in request.query.get("labelSelector", "").split(",") if part)
        items = [
            one
            for (kind, space, _), one in self.objects.items()
            if kind == plural
            and namespace in ("", space)
            and wanted.items() <= one["metadata"].get("labels", {}).items()
        ]
        return {"kind": "List", "items": items}

    def _get(self, request: web.Request, plural: str, namespace: str, name: str, sub: str, body: Any) -> Any:
        found = self.objects.get((plural, namespace, name))
        if found is None:
            return _refused(404, "NotFound", f'{plural} "{name}" not found')
        if sub == "log":
            if request.query.get("follow"):
                return self._follow(request, found)
            lines = found["log"].splitlines(keepends=True)
            return web.Response(text="".join(lines[-int(request.query.get("tailLines", len(lines))) :]))
        if sub == "portforward":
            return self._forward(request, name)
        return found

    def _create(self, request: Any, plural: str, namespace: str, name: str, sub: str, body: Any) -> Any:
        name = body["metadata"]["name"]
        if (plural, namespace, name) in self.objects:
            return _refused(409, "AlreadyExists", f'{plural} "{name}" already exists')
        wrong = [
            key for key in body["spec"] if key not in ("workers", "image", "idleTimeout", "ttlSecondsAfterFinished")
        ]
        if wrong and request.query.get("fieldValidation") == "Strict":
            return _refused(400, "BadRequest", f'strict decoding error: unknown field "spec.{wrong[0]}"')
        metadata = {**body["metadata"], "namespace": namespace, "generation": 1}
        found = self.put(plural, name, namespace, **{**body, "metadata": metadata})
        self.operate(found)
        return found

    def _patch(self, request: Any, plural: str, namespace: str, name: str, sub: str, body: Any) -> Any:
        found = self.objects.get((plural, namespace, name))
        if found is None:
            return _refused(404, "NotFound", f'{plural} "{name}" not found')
        assert request.content_type == "application/merge-patch+json"
        assert request.query["fieldManager"] == "taskloom-client"
        if sub == "scale":
            body = {"spec": {"workers": body["spec"]}}
        after = _merged(found, body)
        workers = after["spec"]["workers"]
        if ("replicas" in workers) == ("autoscale" in workers):
            return _refused(422, "Invalid", "replicas and autoscale exclude each other: leave one of them out")
        found["spec"] = after["spec"]
        found["metadata"]["generation"] += 1
        self.operate(found)
        return found

    def _delete(self, request: Any, plural: str, namespace: str, name: str, sub: str, body: Any) -> Any:
        found = self.objects.get((plural, namespace, name))
        if found is None:
            return _refused(404, "NotFound", f'{plural} "{name}" not found')
        if body["preconditions"]["uid"] != found["metadata"]["uid"]:
            return _refused(409, "Conflict", "the UID in the precondition is another one")
        del self.objects[plural, namespace, name]
        return {"kind": "Status", "status": "Success"}

    async def _follow(self, request: web.Request, found: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(found["log"].encode())
        while not found.get("over"):  # a test says when
            await asyncio.sleep(0.02)
        await response.write(b"the last line\n")
        await response.write_eof()
        return response

    async def _forward(self, request: web.Request, pod: str) -> web.StreamResponse:
        port = int(request.query["ports"])
        response = web.WebSocketResponse(protocols=("v4.channel.k8s.io",), autoping=False, max_msg_size=0)
        await response.prepare(request)
        assert response.ws_protocol == "v4.channel.k8s.io"
        self.open.add(response)
        try:
            for channel in (0, 1):
                await response.send_bytes(bytes([channel]) + port.to_bytes(2, "little"))
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.ports[pod])
            except OSError as error:
                words = f"an error occurred forwarding {port} -> {port}: {error.strerror}"
                await response.send_bytes(b"\1" + words.encode())
                return response
            back = asyncio.ensure_future(self._back(reader, response))
            try:
                while True:
                    message = await response.receive()
                    if message.type is WSMsgType.BINARY:
                        assert message.data[0] == 0
                        writer.write(message.data[1:])
                        await writer.drain()
                    elif message.type is WSMsgType.PING:
                        self.pings += 1
                        if not self.deaf:
                            await response.pong(message.data)
                    else:
                        break
            except OSError:
                pass
            finally:
                back.cancel()
                writer.close()
        finally:
            self.open.discard(response)
        return response

    async def _back(self, reader: asyncio.StreamReader, response: web.WebSocketResponse) -> None:
        try:
            while data := await reader.read(1 << 15):
                await response.send_bytes(b"\0" + data)
        except OSError:
            pass
        await response.close()


def _refused(code: int, reason: str, message: str) -> web.Response:
    status = {"kind": "Status", "apiVersion": "v1", "code": code, "reason": reason, "message": message}
    return web.json_response(status, status=code)


def _merged(before: Any, given: Any) -> Any:
    if not isinstance(before, dict) or not isinstance(given, dict):
        return copy.deepcopy(given)
    found = copy.deepcopy(before)
    for name, value in given.items():
        if value is None:
            found.pop(name, None)
        else:
            found[name] = _merged(before.get(name), value)
    return found
