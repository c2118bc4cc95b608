"""Client("kube://..."): from outside by forwarded ports, from inside by the Service; what is said where that does not work."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import socket
import stat
import sys
import threading

import pytest

from taskloom import Client, errors
from taskloom.deploy.kube import forward, names, reach
from taskloom.deploy.kube.api import Api
from taskloom.deploy.kube.reach import parse
from taskloom.errors import AddressError, ConnectTimeoutError, KubernetesError, TokenError
from taskloom.net import tokens_of

from .conftest import TOKEN, status_of, until


def inc(x):
    return x + 1


def descriptors():
    gc.collect()
    return {
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{fd}")
    }


def threads():
    # those of the local schedulers stay for the next graph
    ours = ("taskloom-kube", "taskloom-client")
    return {thread.name for thread in threading.enumerate() if thread.name.startswith(ours)}


# --- from outside


def test_work_is_done_from_outside(lab):
    with Client("kube://lab/demo") as client:
        assert client.gather(client.map(inc, range(1000))) == list(range(1, 1001))
        data = os.urandom(5_000_000)
        assert client.submit(bytes.__add__, client.scatter(data), b"!").result() == data + b"!"
        assert client.address.startswith("tls://127.0.0.1:")
    # what a role has to allow, and no more
    assert lab.verbs() == {("get", "secrets"), ("list", "pods"), ("get", "pods/portforward")}
    assert all(namespace == "lab" for _, _, namespace, _ in lab.calls)
    assert all(agent.startswith("taskloom-client/") for agent in lab.agents)


def test_nothing_is_left_of_it(lab):
    with Client("kube://lab/demo") as client:  # whatever is made once for the process
        client.submit(inc, 1).result()
    until(lambda: not lab.open and not threads())
    before = descriptors()
    with Client("kube://lab/demo") as client:
        assert client.submit(inc, 1).result() == 2
        assert lab.open
    until(lambda: not lab.open and not threads())
    until(lambda: descriptors() <= before)


def test_an_asynchronous_client(lab):
    async def work():
        async with Client("kube://lab/demo", asynchronous=True) as client:
            return await client.gather(client.map(inc, range(10)))

    assert asyncio.run(work()) == list(range(1, 11))


def test_the_namespace_and_the_context_may_be_left_to_the_kubeconfig(lab):
    with Client("kube://demo") as client:
        assert client.submit(inc, 1).result() == 2
    with pytest.raises(KubernetesError, match="no TaskCluster demo in the namespace other; there is none at all"):
        Client("kube://demo?context=there")
    with pytest.raises(KubernetesError, match="no TaskCluster dmeo in the namespace lab; there are demo"):
        Client("kube://dmeo")


def test_the_setting_names_it_too(lab, monkeypatch):
    from taskloom import config

    with config.set({"cluster.address": "kube://lab/demo"}), Client() as client:
        assert client.submit(inc, 1).result() == 2


def test_a_connection_that_breaks_is_made_again_to_the_pod_that_is_there_then(lab, pods, caplog):
    with Client("kube://lab/demo") as client:
        kept = client.submit(inc, 1)
        assert kept.result() == 2
        del lab.objects["pods", "lab", "demo-scheduler-0"]
        del lab.ports["demo-scheduler-0"]
        lab.put_pod("demo", "scheduler", "demo-scheduler-1", pods.port)
        lab.cut()
        assert client.submit(inc, 2).result(timeout=30) == 3
        assert kept.result() == 2
    forwarded = [name for _, resource, _, name in lab.calls if resource == "pods/portforward"]
    assert forwarded == ["demo-scheduler-0", "demo-scheduler-1"]


def test_of_two_schedulers_the_one_that_is_ready_and_not_on_its_way_out(lab, pods):
    def put(name, created, **more):
        pod = lab.put_pod("demo", "scheduler", name, pods.port, **more)
        pod["metadata"]["creationTimestamp"] = created
        return pod

    running = {"phase": "Running", "containerStatuses": [{"name": "scheduler", "state": {"running": {}}}]}
    put("newest", "2026-01-04T00:00:00Z")["metadata"]["deletionTimestamp"] = "2026-01-05T00:00:00Z"
    put("newer", "2026-01-03T00:00:00Z", **running, conditions=[{"type": "Ready", "status": "False"}])
    put("new", "2026-01-02T00:00:00Z")
    with Client("kube://lab/demo") as client:
        assert client.submit(inc, 1).result() == 2
    assert [name for _, resource, _, name in lab.calls if resource == "pods/portforward"] == ["new"]


# --- tokens


def test_a_token_that_the_pods_have_not_seen_yet(lab):
    lab.put_secret("demo", "n" * 40, TOKEN)
    with Client("kube://lab/demo") as client:
        assert client.submit(inc, 1).result() == 2


def test_tokens_that_change_while_a_client_is_there(lab, pods):
    try:
        with Client("kube://lab/demo") as client:
            assert client.submit(inc, 1).result() == 2
            lab.put_secret("demo", "n" * 40)
            pods.write_tokens("n" * 40, TOKEN)
            lab.cut()
            assert client.submit(inc, 2).result(timeout=30) == 3
    finally:
        pods.write_tokens(TOKEN)


def test_tokens_are_not_written_to_disk(lab, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Client("kube://lab/demo") as client:
        assert client.submit(inc, 1).result() == 2
        for folder, _, files in os.walk(tmp_path):
            for name in files:
                path = os.path.join(folder, name)
                if stat.S_ISREG(os.stat(path).st_mode):
                    with open(path, "rb") as file:
                        assert TOKEN.encode() not in file.read(), path


def test_a_wrong_token_is_told_as_such(lab):
    lab.put_secret("demo", "x" * 40)
    with pytest.raises(errors.HandshakeError, match="token"):
        Client("kube://lab/demo")


@pytest.mark.parametrize("data", [None, {}, {"token": "AAAA"}, {"token": "%"}, {"token": "c2hvcnQ="}])
def test_a_secret_that_is_none(lab, data):
    lab.put("secrets", "demo-token", data=data)
    with pytest.raises(TokenError, match="demo-token"):
        Client("kube://lab/demo")


def test_a_token_of_ones_own_needs_no_secret(lab):
    lab.denied.add(("get", "secrets"))
    with Client("kube://lab/demo", token=TOKEN) as client:
        assert client.submit(inc, 1).result() == 2


# --- from inside


@pytest.fixture
def inside(lab, monkeypatch, tmp_path):
    """As in a pod that has a service account."""
    from kubernetes.aio.config import incluster_config

    from taskloom.deploy.kube import api

    (tmp_path / "namespace").write_text("lab")
    (tmp_path / "account").write_text("user-1")
    monkeypatch.setattr(api, "_SERVICE_ACCOUNT", str(tmp_path))
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "account"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", lab.certificate)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(lab.port))
    monkeypatch.delenv("KUBECONFIG")
    return lab


SERVICE = "tls://demo-scheduler.lab.svc:8786"


def test_inside_it_is_the_service_and_the_token_that_is_mounted(inside, monkeypatch, tmp_path):
    (tmp_path / "token").write_text("m" * 40)
    (tmp_path / "token").chmod(0o600)
    monkeypatch.setenv("TASKLOOM_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setitem(sys.modules, "kubernetes.aio", None)  # the image has no such package
    way = reach("kube://lab/demo")
    assert (way.address, tokens_of(way.token), way.direct) == (SERVICE, ("m" * 40,), None)
    assert inside.calls == []
    way.close()


def test_inside_it_is_the_secret_where_nothing_is_mounted(inside):
    for address in ("kube://lab/demo", "kube://demo"):
        way = reach(address)
        assert (way.address, tokens_of(way.token), way.direct) == (SERVICE, (TOKEN,), None)
        way.close()
    assert inside.verbs() == {("get", "secrets")}


def test_inside_of_another_cluster_its_token_is_not_taken_for_this_ones(inside, monkeypatch):
    from taskloom import config

    monkeypatch.setenv("TASKLOOM_TOKEN", "m" * 40)
    with config.set({"cluster.address": "tls://other-scheduler.lab.svc:8786"}):
        way = reach("kube://lab/demo")
    assert tokens_of(way.token) == (TOKEN,)
    way.close()
    with config.set({"cluster.address": SERVICE}):
        way = reach("kube://lab/demo")
    assert tokens_of(way.token) == ("m" * 40,)


def test_inside_with_no_rights_at_all(inside, tmp_path):
    (tmp_path / "account").unlink()
    with pytest.raises(KubernetesError, match="mount the cluster's Secret NAME-token and set TASKLOOM_TOKEN_FILE"):
        Client("kube://lab/demo")


def test_inside_with_a_context_it_is_another_kubernetes(inside, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", inside.kubeconfig)
    with Client("kube://lab/demo?context=here") as client:
        assert client.address.startswith("tls://127.0.0.1:")
        assert client.submit(inc, 1).result() == 2


# --- what is said


def test_addresses_that_are_none():
    for address in ("kube://", "kube://a/b/c", "kube://a/b?contxt=c", "kube:a#b", "kubernetes://a/b"):
        with pytest.raises(AddressError, match="kube://NAMESPACE/NAME"):
            parse(address)


def test_no_kubeconfig(kubernetes, monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(KubernetesError, match=r"there is no file .*none.*KUBECONFIG"):
        Client("kube://lab/demo")
    monkeypatch.delenv("KUBECONFIG")
    with pytest.raises(KubernetesError, match=r"\.kube/config"):
        Client("kube://lab/demo")
    assert not threads()


@pytest.mark.parametrize(
    "text", ["a: [", "a: b", "", "- a", "current-context: x\ncontexts: []\nclusters: []\nusers: []"]
)
def test_a_kubeconfig_that_is_none(kubernetes, text):
    with open(kubernetes.kubeconfig, "w") as file:
        file.write(text)
    with pytest.raises(KubernetesError, match="cannot be found by the kubeconfig"):
        Client("kube://lab/demo")


def test_a_context_that_is_not_there(kubernetes):
    with pytest.raises(KubernetesError, match=r"the context 'mars' of the kubeconfig.*mars"):
        Client("kube://lab/demo?context=mars")


def test_several_kubeconfigs(lab, monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'none'}:{lab.kubeconfig}")
    with Client("kube://lab/demo") as client:
        assert client.submit(inc, 1).result() == 2


def test_the_package_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "kubernetes.aio", None)
    with pytest.raises(KubernetesError, match=r"pip install 'taskloom\[kube\]'"):
        Client("kube://lab/demo")


def test_the_chart_is_not_installed(kubernetes):
    kubernetes.installed = False
    with pytest.raises(KubernetesError, match=r"chart is not installed there. helm install taskloom") as caught:
        Client("kube://lab/demo")
    assert caught.value.reason == "NotInstalled"


@pytest.mark.parametrize(
    ("verb", "resource", "words"),
    [
        ("get", "secrets", "you may not get secrets in the namespace lab.*auth can-i get secrets -n lab"),
        ("list", "pods", "you may not list pods in the namespace lab.*auth can-i list pods -n lab"),
        (
            "get",
            "pods/portforward",
            "get and create pods/portforward.*can-i create pods --subresource=portforward -n lab",
        ),
    ],
)
def test_a_right_that_is_missing_is_named(lab, verb, resource, words):
    lab.denied.add((verb, resource))
    with pytest.raises(KubernetesError, match=words) as caught:
        Client("kube://lab/demo")
    assert caught.value.status == 403
    assert not threads()


def test_credentials_that_are_not_known(lab):
    with pytest.raises(KubernetesError, match=r"does not know you.*kubectl get pods"):
        Client("kube://lab/demo?context=unknown")


def test_credentials_that_expire_are_renewed(lab, tmp_path):
    """As clouds do it: a program tells a token that is good for some minutes."""
    program = tmp_path / "login"
    program.write_text(
        f"""#!{sys.executable}
import json, pathlib
count = pathlib.Path({str(tmp_path)!r}) / "count"
number = int(count.read_text()) + 1 if count.exists() else 1
count.write_text(str(number))
status = {{"token": f"user-{{number}}"}}
print(json.dumps({{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}}))
"""
    )
    program.chmod(0o700)
    lab.write_kubeconfig(
        {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(program), "args": []}}
    )
    with Client("kube://lab/demo") as client:
        assert client.submit(inc, 1).result() == 2
        assert (tmp_path / "count").read_text() == "1"
        lab.credentials = {"user-2"}
        lab.cut()
        assert client.submit(inc, 2).result(timeout=30) == 3
        assert (tmp_path / "count").read_text() == "2"


def test_nobody_answers(kubernetes):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    kubernetes.port = port
    kubernetes.write_kubeconfig({"token": "user-1"})
    with pytest.raises(KubernetesError, match=f"https://localhost:{port} does not answer"):
        Client("kube://lab/demo")


def test_an_api_server_that_takes_connections_and_says_nothing(kubernetes, end, monkeypatch):
    monkeypatch.setattr(sys.modules["taskloom.deploy.kube.reach"], "LATE", 0.1)
    kubernetes.port = end.getsockname()[1]
    kubernetes.write_kubeconfig({"token": "user-1"})
    with pytest.raises(ConnectTimeoutError, match=r"takes long: it has not said within 0\.3 s how to reach"):
        Client("kube://lab/demo", timeout=0.2)
    assert not threads()


def test_a_cluster_that_the_operator_has_not_seen(kubernetes):
    kubernetes.put("taskclusters", "demo", spec={"workers": {"replicas": 1}})
    with pytest.raises(ConnectTimeoutError, match=r"no token after 0.3 s: the operator has not looked at it"):
        Client("kube://lab/demo", timeout=0.3)


def test_a_scheduler_that_does_not_come(lab):
    waiting = {"waiting": {"reason": "ErrImageNeverPull", "message": "image nothing:none is not there"}}
    lab.put_pod(
        "demo",
        "scheduler",
        "demo-scheduler-0",
        phase="Pending",
        containerStatuses=[{"name": "scheduler", "state": waiting}],
    )
    cluster = lab.objects["taskclusters", "lab", "demo"]
    cluster["status"] = status_of(cluster, 0, SchedulerReady=("ImagePullError", "in the operator's words"))
    with pytest.raises(ConnectTimeoutError) as caught:
        Client("kube://lab/demo", timeout=0.3)
    for words in ("after 0.3 s", "ErrImageNeverPull, image nothing:none is not there", "in the operator's words"):
        assert words in str(caught.value)


def test_a_scheduler_that_comes_later(lab, pods):
    del lab.objects["pods", "lab", "demo-scheduler-0"]
    secret = lab.objects.pop(("secrets", "lab", "demo-token"))

    def before(verb, resource):
        asked = [one for one in lab.calls if one[:2] == ("get", "secrets")]
        if len(asked) == 3:
            lab.objects["secrets", "lab", "demo-token"] = secret
        if len([one for one in lab.calls if one[:2] == ("list", "pods")]) == 3:
            lab.put_pod("demo", "scheduler", "demo-scheduler-0", pods.port)

    lab.before = before
    with Client("kube://lab/demo", timeout=30) as client:
        assert client.submit(inc, 1).result() == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spec": {"suspend": True}}, "is suspended"),
        ({"status": {"phase": "Finished"}}, "idleTimeout"),
        ({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}, "is being deleted"),
    ],
)
def test_a_cluster_that_will_not_run(lab, change, words):
    del lab.objects["pods", "lab", "demo-scheduler-0"]
    lab.put("taskclusters", "demo", **{"spec": {"workers": {}}, **change})
    with pytest.raises(KubernetesError, match=words):
        Client("kube://lab/demo", timeout=60)


def test_a_port_where_nobody_listens(lab, caplog):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        lab.ports["demo-scheduler-0"] = sock.getsockname()[1]
    with pytest.raises(ConnectTimeoutError) as caught:
        Client("kube://lab/demo", timeout=0.5)
    assert any("an error occurred forwarding" in note for note in caught.value.__notes__)
    said = [record.message for record in caplog.records if record.name == "taskloom.deploy.kube"]
    assert len(said) == 1
    assert said[0].startswith("TaskCluster lab/demo: an error occurred forwarding 8786 -> 8786")


def test_after_a_fork_it_is_not_used(lab):
    with Api() as api:
        child = os.fork()
        if not child:
            try:
                api.run(api.find("pods", "lab"))
            except errors.ClusterError as error:
                os._exit(7 if "another process" in str(error) else 1)
            except BaseException:
                os._exit(2)
            os._exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    with pytest.raises(errors.ClusterError, match="closed"):
        api.run(api.find("pods", "lab"))


# --- the forwarded port itself


@pytest.fixture
def end():
    """A server that takes connections and does with them what a test says."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.settimeout(30)
        yield sock


def ends_of(way, end):
    """Both ends of a connection that is forwarded."""
    near = socket.create_connection(("127.0.0.1", int(way.address.rpartition(":")[2])))
    far = end.accept()[0]
    for sock in (near, far):
        sock.settimeout(30)
    return near, far


@pytest.mark.parametrize("there", [True, False])
def test_an_end_that_does_not_read_holds_up_the_other(lab, end, monkeypatch, there):
    monkeypatch.setattr(forward, "TICK", 0.2)  # a second is long, and the end is alive
    lab.ports["demo-scheduler-0"] = end.getsockname()[1]
    way = reach("kube://lab/demo")
    near, far = ends_of(way, end)
    with near, far:
        writer, reader = (near, far) if there else (far, near)
        writer.setblocking(False)
        most, sent = 256 << 20, 0
        piece = bytes(1 << 20)
        while sent < most and select.select([], [writer], [], 1.0)[1]:
            sent += writer.send(piece)
        assert sent < most
        got = 0
        while got < sent:  # and all of it comes, however long that took
            got += len(reader.recv(1 << 20))
        reader.sendall(b"enough")
        writer.settimeout(30)
        assert writer.recv(100) == b"enough"
        assert way.problem == ""
    way.close()


def test_an_end_that_says_goodbye_hears_the_answer(lab, end, monkeypatch):
    monkeypatch.setattr(forward, "LINGER", 60.0)
    lab.ports["demo-scheduler-0"] = end.getsockname()[1]
    way = reach("kube://lab/demo")
    near, far = ends_of(way, end)
    with near, far:
        near.sendall(b"goodbye")
        near.shutdown(socket.SHUT_WR)
        assert far.recv(100) == b"goodbye"
        far.sendall(b"farewell")
        assert near.recv(100) == b"farewell"
        far.close()
        assert near.recv(100) == b""
    way.close()


def test_an_end_that_closes_is_closed_at_the_other(lab, end, monkeypatch):
    monkeypatch.setattr(forward, "LINGER", 0.05)
    lab.ports["demo-scheduler-0"] = end.getsockname()[1]
    way = reach("kube://lab/demo")
    port = int(way.address.rpartition(":")[2])
    for number in range(3):
        with socket.create_connection(("127.0.0.1", port)) as near:
            near.sendall(b"%d" % number)
            with end.accept()[0] as far:
                far.settimeout(30)
                assert far.recv(10) == b"%d" % number
                near.close()
                assert far.recv(10) == b""
    way.close()


def test_an_end_that_is_silent_and_alive_stays(lab, end, monkeypatch):
    monkeypatch.setattr(forward, "TICK", 0.01)
    lab.ports["demo-scheduler-0"] = end.getsockname()[1]
    way = reach("kube://lab/demo")
    near, far = ends_of(way, end)
    with near, far:
        until(lambda: lab.pings > 20)
        far.sendall(b"still there")
        assert near.recv(100) == b"still there"
    way.close()


def test_an_end_that_has_vanished_is_found_out(lab, end, monkeypatch, caplog):
    monkeypatch.setattr(forward, "TICK", 0.05)
    lab.deaf = True
    lab.ports["demo-scheduler-0"] = end.getsockname()[1]
    way = reach("kube://lab/demo")
    near, far = ends_of(way, end)
    with near, far:
        assert near.recv(100) == b""
    until(lambda: "nothing has come" in way.problem)
    assert lab.pings >= 3
    way.close()


def test_many_at_a_time(lab, end):
    lab.ports["demo-scheduler-0"] = end.getsockname()[1]
    end.listen(200)

    def serve():
        far = []
        while len(far) < 150:
            far.append(end.accept()[0])
        for sock in far:
            sock.sendall(b"one of many")
            sock.close()

    server = threading.Thread(target=serve)
    server.start()
    way = reach("kube://lab/demo")
    port = int(way.address.rpartition(":")[2])
    near = [socket.create_connection(("127.0.0.1", port)) for _ in range(150)]  # more than a pool of connections has
    for sock in near:
        sock.settimeout(60)
        assert sock.recv(100) == b"one of many"
        sock.close()
    server.join()
    way.close()


# --- names


def test_names_are_those_of_the_operator():
    from taskloom_operator import names as theirs

    for name in names.__all__:
        if name == "MANAGER":
            assert names.MANAGER != theirs.OPERATOR, "who has written a field is told by it"
        elif name.endswith("_name"):
            assert getattr(names, name)("demo") == getattr(theirs, name)("demo")
        else:
            assert getattr(names, name) == getattr(theirs, name)


def test_time_is_not_wasted_on_looking(lab):
    """A client that is let in at once needs to know the token and the pod, and nothing else."""
    with Client("kube://lab/demo"):
        pass
    asked = [(verb, resource) for verb, resource, _, _ in lab.calls]
    assert asked.count(("list", "pods")) == 1
    assert asked.count(("get", "pods/portforward")) == 1
    assert len(asked) <= 4
