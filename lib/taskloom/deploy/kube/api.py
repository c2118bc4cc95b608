"""The API server, by the user's own rights."""

from __future__ import annotations

import base64
import os
from typing import Any

from taskloom.deploy.kube.names import CLUSTER, COMPONENT, GROUP, VERSION, token_name
from taskloom.errors import ClusterError, TaskloomError, TokenError

__all__ = ["Api", "KubernetesError"]

_INSTALL = "pip install 'taskloom[kube]'"


class KubernetesError(ClusterError):
    """The API server of Kubernetes could not be asked, or has refused; says what to do."""


class Api:
    """What is asked of the API server.

    Args:
        context: of the kubeconfig; None: the present one, or this pod's own rights.

    Attributes:
        namespace: where things are where nothing else is said.
        inside: whether this is a pod of that cluster.

    Raises:
        KubernetesError: the package is not installed, or no cluster is known here.
    """

    def __init__(self, context: str | None = None) -> None:
        try:
            from kubernetes import client, config
        except ImportError as error:
            raise KubernetesError(f"kube:// needs the package kubernetes ({error}): {_INSTALL}") from error
        self.inside = context is None and bool(os.environ.get("KUBERNETES_SERVICE_HOST"))
        configuration = client.Configuration()
        try:
            if self.inside:
                config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
                with open("/var/run/secrets/kubernetes.io/serviceaccount/namespace") as file:
                    self.namespace = file.read().strip()
            else:
                config.load_kube_config(context=context, client_configuration=configuration)  # type: ignore[no-untyped-call]
                contexts, present = config.list_kube_config_contexts()  # type: ignore[no-untyped-call]
                chosen = next((one for one in contexts if one["name"] == context), present)
                self.namespace = chosen["context"].get("namespace") or "default"
        except (config.ConfigException, OSError) as error:
            raise KubernetesError(
                f"no Kubernetes cluster is known here ({error}). Is `kubectl get pods` at work? KUBECONFIG names the file that "
                "says where the cluster is"
            ) from error
        self.where = configuration.host
        self._client = client
        self._api = client.ApiClient(configuration)
        self.core = client.CoreV1Api(self._api)
        self.custom = client.CustomObjectsApi(self._api)

    def close(self) -> None:
        """No more requests."""
        self._api.close()  # type: ignore[no-untyped-call]

    def problem(self, error: Exception, verb: str, what: str) -> TaskloomError:
        """An error of a request, in words."""
        status = getattr(error, "status", None)
        if status == 403:
            words = f"you may not {verb} {what}. Ask for a role that may: kubectl auth can-i {verb} {what.split(' ')[0].lower()}s"
        elif status == 401:
            words = "the API server does not know you: your credentials may have expired"
        elif status == 404 and "page not found" in str(getattr(error, "body", "")):
            words = (
                "this Kubernetes knows no TaskClusters: the chart is not installed. helm install taskloom charts/taskloom "
                "--namespace taskloom-system --create-namespace"
            )
        elif status == 404:
            words = f"there is no {what}"
        elif status:
            words = f"{verb} {what}: {getattr(error, 'reason', '')} {getattr(error, 'body', '')}".strip()
        else:
            words = f"the API server at {self.where} does not answer: {error}"
        return KubernetesError(words)

    def call(self, verb: str, what: str, function: Any, *args: Any, **options: Any) -> Any:
        """Ask for something.

        Raises:
            KubernetesError: it was refused, in words.
        """
        try:
            return function(*args, **options)
        except (self._client.ApiException, OSError) as error:
            raise self.problem(error, verb, what) from error
        except Exception as error:
            if type(error).__module__.startswith("urllib3"):
                raise self.problem(error, verb, what) from error
            raise

    def cluster(self, namespace: str, name: str) -> dict[str, Any]:
        """A TaskCluster.

        Raises:
            KubernetesError: there is none; says how to see which there are.
        """
        what = f"TaskCluster {name} in the namespace {namespace}"
        found: dict[str, Any] = self.call(
            "get", what, self.custom.get_namespaced_custom_object, GROUP, VERSION, namespace, "taskclusters", name
        )
        return found

    def tokens(self, namespace: str, name: str) -> str | None:
        """The tokens of a cluster, one a line; None: there is no Secret yet."""
        secret = token_name(name)
        try:
            found = self.core.read_namespaced_secret(secret, namespace)
        except self._client.ApiException as error:
            if error.status == 404:
                return None
            raise self.problem(error, "get", f"Secret {secret} in the namespace {namespace}") from error
        try:
            return base64.b64decode((found.data or {})["token"]).decode("ascii")
        except (KeyError, TypeError, ValueError) as error:
            raise TokenError(f"the Secret {secret} in the namespace {namespace} has no token in it") from error

    def scheduler_pod(self, namespace: str, name: str) -> str | None:
        """The scheduler's pod, if one runs."""
        labels = f"{CLUSTER}={name},{COMPONENT}=scheduler"
        found = self.call("list", f"Pods in the namespace {namespace}", self.core.list_namespaced_pod, namespace,
                          label_selector=labels)  # fmt: skip
        for pod in found.items:
            ready = any(one.ready for one in pod.status.container_statuses or ())
            if pod.metadata.deletion_timestamp is None and pod.status.phase == "Running" and ready:
                return str(pod.metadata.name)
        return None

    def forward(self, namespace: str, pod: str, port: int) -> Any:
        """A socket that leads to a port of a pod, and what has to be kept with it."""
        from kubernetes import stream

        connection = stream.portforward(
            self.core.connect_get_namespaced_pod_portforward, pod, namespace, ports=str(port)
        )
        return connection.socket(port), connection
